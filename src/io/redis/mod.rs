//! A connection to a Redis or Valkey server, on sockets and TLS that are made here. It belongs to the thread that opened
//! it, and is never renewed by itself: what was sent on it has a known order.

mod counted;

use super::silence::{SILENCE, silence_for};
use ::redis::aio::{ConnectionLike, MultiplexedConnection};
use ::redis::{AsyncConnectionConfig, Cmd, Pipeline, RedisConnectionInfo, RedisError};
use counted::Counted;
use rustls::pki_types::ServerName;
use std::cell::Cell;
use std::fmt;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_rustls::TlsConnector;

pub(crate) use ::redis::Value;

/// The time after which the kernel gives up a connection whose bytes are not acknowledged.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(30);

/// The login to a server, and TLS.
#[derive(Clone, Default)]
pub(crate) struct Login {
    pub(crate) username: Option<String>,
    pub(crate) password: Option<String>,
    pub(crate) tls: Option<TlsSettings>,
}

/// TLS towards the servers.
#[derive(Clone)]
pub(crate) struct TlsSettings {
    pub(crate) config: Arc<rustls::ClientConfig>,
    /// The name that servers must show; without one the host of their address.
    pub(crate) server_name: Option<ServerName<'static>>,
    /// The digest of the settings and files that the configuration was made of.
    pub(crate) digest: Vec<u8>,
}

impl Login {
    fn parts(&self) -> impl PartialEq + '_ {
        let tls = self.tls.as_ref().map(|tls| (&tls.server_name, &tls.digest));
        (&self.username, &self.password, tls)
    }
}

impl PartialEq for Login {
    fn eq(&self, other: &Login) -> bool {
        self.parts() == other.parts()
    }
}

impl Eq for Login {}

/// Passwords do not show.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login(..)")
    }
}

/// A connection to a server.
pub(crate) struct Client {
    client: MultiplexedConnection,
    /// The bytes that have arrived.
    arrived: Arc<AtomicU64>,
    ended: Rc<Ended>,
}

/// The end of a connection.
#[derive(Default)]
struct Ended {
    has_ended: Cell<bool>,
    told: Notify,
}

impl Client {
    /// Connects to a server, inside a `LocalSet`. The caller bounds the time.
    ///
    /// # Errors
    /// A sentence for operators.
    pub(crate) async fn open(login: &Login, address: &str) -> Result<Client, String> {
        let socket = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        let options = socket2::SockRef::from(&socket);
        let set = options.set_tcp_nodelay(true).and_then(|()| options.set_tcp_user_timeout(Some(TCP_USER_TIMEOUT)));
        set.map_err(|error| error.to_string())?;
        match &login.tls {
            None => Client::greet(login, socket).await,
            Some(tls) => {
                let name = name_of(tls, address)?;
                let shaken = TlsConnector::from(Arc::clone(&tls.config)).connect(name, socket).await;
                Client::greet(login, shaken.map_err(|error| format!("TLS: {error}"))?).await
            }
        }
    }

    async fn greet<S>(login: &Login, stream: S) -> Result<Client, String>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut info = RedisConnectionInfo::default().set_lib_name("ringway", env!("CARGO_PKG_VERSION"));
        if let Some(username) = &login.username {
            info = info.set_username(username);
        }
        if let Some(password) = &login.password {
            info = info.set_password(password);
        }
        let config = AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None);
        let (stream, arrived) = Counted::new(stream);
        let made = MultiplexedConnection::new_with_config(&info, stream, config).await;
        let (client, driver) = made.map_err(|error| explain(&error))?;
        let ended = Rc::new(Ended::default());
        let told = Rc::clone(&ended);
        tokio::task::spawn_local(async move {
            driver.await;
            told.has_ended.set(true);
            told.told.notify_one();
        });
        Ok(Client { client, arrived, ended })
    }

    /// Returns when the connection has ended.
    pub(crate) async fn closed(&self) {
        if !self.ended.has_ended.get() {
            self.ended.told.notified().await;
        }
    }

    /// Sends commands, with so many bytes of results, without waiting between them. Returns their replies, errors of
    /// the server among them. The server has a second, and the time that the bytes of either way may take.
    ///
    /// # Errors
    /// The connection broke, or was silent.
    pub(crate) async fn send(&self, commands: &Pipeline, bytes: usize) -> Result<Vec<Value>, String> {
        self.send_within(commands, bytes, Duration::ZERO).await
    }

    /// Sends commands of which one may wait at the server for that long.
    ///
    /// # Errors
    /// As for [`Client::send`].
    pub(crate) async fn send_within(
        &self,
        commands: &Pipeline,
        bytes: usize,
        blocks: Duration,
    ) -> Result<Vec<Value>, String> {
        let mut client = self.client.clone();
        let mut replies = pin!(client.req_packed_commands(commands, 0, commands.len()));
        let (began, before) = (Instant::now(), self.arrived.load(Ordering::Relaxed));
        let mut until = began + blocks + silence_for(bytes);
        loop {
            if let Ok(replies) = tokio::time::timeout_at(until.into(), &mut replies).await {
                return replies.map_err(|error| explain(&error));
            }
            let arrived = usize::try_from(self.arrived.load(Ordering::Relaxed) - before).unwrap_or(usize::MAX);
            let next = began + blocks + silence_for(bytes.saturating_add(arrived));
            if next <= Instant::now() {
                return Err("the server does not answer".to_owned());
            }
            until = next;
        }
    }

    /// Sends one command.
    ///
    /// # Errors
    /// As for [`Client::send`], and where the server refuses it.
    pub(crate) async fn ask(&self, command: Cmd) -> Result<Value, String> {
        let mut commands = Pipeline::new();
        commands.add_command(command);
        match self.send(&commands, 0).await?.pop() {
            Some(Value::ServerError(error)) => Err(error.to_string()),
            Some(value) => Ok(value),
            None => Err("the server gave no reply".to_owned()),
        }
    }
}

/// Returns the result of an attempt that has a second.
///
/// # Errors
/// That of the attempt, or that the server is silent.
pub(crate) async fn within_a_second<T>(attempt: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    tokio::time::timeout(SILENCE, attempt).await.unwrap_or_else(|_| Err("it does not answer".to_owned()))
}

/// Returns the name that a server must show.
fn name_of(tls: &TlsSettings, address: &str) -> Result<ServerName<'static>, String> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    match &tls.server_name {
        Some(name) => Ok(name.clone()),
        None => ServerName::try_from(host.to_owned()).map_err(|error| error.to_string()),
    }
}

/// Returns an error in a sentence.
pub(crate) fn explain(error: &RedisError) -> String {
    error.to_string()
}

/// Returns the bytes of a reply.
pub(crate) fn bytes(value: &Value) -> Option<&[u8]> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.as_bytes()),
        _ => None,
    }
}

/// Returns the text of a reply.
pub(crate) fn text(value: &Value) -> Option<String> {
    match value {
        Value::VerbatimString { text, .. } => Some(text.clone()),
        value => bytes(value).map(|bytes| String::from_utf8_lossy(bytes).into_owned()),
    }
}

/// Returns the number of a reply.
pub(crate) fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        value => std::str::from_utf8(bytes(value)?).ok()?.parse().ok(),
    }
}

/// Returns the values of a reply; none where it is no list.
pub(crate) fn list(value: &Value) -> &[Value] {
    match value {
        Value::Array(values) => values,
        _ => &[],
    }
}
