//! A connection to one endpoint of etcd. It belongs to the thread that opened it, and ends with its owner.

use super::error::EtcdError;
use super::settings::{Endpoint, EtcdLogin};
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderValue, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio_rustls::TlsConnector;

/// The time after which the kernel gives up a connection whose bytes are not acknowledged.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection that serves one call at a time.
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    host: HeaderValue,
    task: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Connection {
    /// Connects. The caller sets the deadline.
    pub(super) async fn open(endpoint: &Endpoint, login: &EtcdLogin) -> Result<Connection, EtcdError> {
        let failed = |cause: String| EtcdError::Unreachable(format!("{}: {cause}", endpoint.url));
        let socket = TcpStream::connect((&*endpoint.host, endpoint.port)).await.map_err(|it| failed(it.to_string()))?;
        // Without either a connection still works.
        let _ = socket.set_nodelay(true);
        let _ = socket2::SockRef::from(&socket).set_tcp_user_timeout(Some(TCP_USER_TIMEOUT));
        let (sender, task) = match &login.tls {
            Some(tls) if endpoint.is_tls => {
                let name = match &login.server_name {
                    Some(name) => name.clone(),
                    None => ServerName::try_from(endpoint.host.clone()).map_err(|it| failed(it.to_string()))?,
                };
                let connecting = TlsConnector::from(Arc::clone(&tls.config)).connect(name, socket);
                run(connecting.await.map_err(|it| failed(it.to_string()))?).await
            }
            _ => run(socket).await,
        }
        .map_err(|it| failed(it.to_string()))?;
        let host = if endpoint.host.contains(':') { format!("[{}]", endpoint.host) } else { endpoint.host.clone() };
        let host = HeaderValue::from_str(&format!("{host}:{}", endpoint.port)).map_err(|it| failed(it.to_string()))?;
        Ok(Connection { sender, host, task })
    }

    /// Returns whether the next call can go out on it.
    pub(super) fn is_usable(&self) -> bool {
        self.sender.is_ready()
    }

    /// Sends a call. Returns its response, whose body is still to come.
    pub(super) async fn send(
        &mut self,
        path: &str,
        body: Bytes,
        token: Option<&str>,
    ) -> Result<Response<Incoming>, EtcdError> {
        let mut request = Request::post(path).header(HOST, &self.host).header(CONTENT_TYPE, "application/json");
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, token);
        }
        let failed = |cause: String| EtcdError::Unreachable(cause);
        let request = request.body(Full::new(body)).map_err(|it| failed(it.to_string()))?;
        self.sender.send_request(request).await.map_err(|it| failed(it.to_string()))
    }
}

/// Speaks HTTP/1.1 on a stream, from a task of its own.
async fn run<S>(stream: S) -> hyper::Result<(SendRequest<Full<Bytes>>, AbortHandle)>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    let task = tokio::task::spawn_local(async move {
        // Its calls hear of the end.
        let _ = connection.await;
    });
    Ok((sender, task.abort_handle()))
}
