//! A connection to PostgreSQL: to a server that takes writes if there is one, and only to the store that is known.

use super::prepared::{Answer, Prepared};
use super::rows::Param;
use super::{Settings, promise, schema};
use crate::idempotency::remote::{IdentityFile, Known};
use crate::idempotency::remote::{SILENCE, Status, Use};
use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio_postgres::config::{Host, TargetSessionAttrs};
use tokio_postgres::error::{Severity, SqlState};
use tokio_postgres::types::ToSql;
use tokio_postgres::{AsyncMessage, Client, Config, Error, Row};
use tokio_postgres_rustls::MakeRustlsConnect;

/// The time after which the kernel gives up a connection whose bytes are not acknowledged.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection, and the task that drives it.
pub(super) struct Connection {
    pub(super) client: Client,
    tls: MakeRustlsConnect,
    /// Notices of the severity WARNING so far.
    warnings: Rc<Cell<u64>>,
    ended: Rc<Notify>,
    /// The store that it leads to.
    pub(super) identity: String,
    /// The server takes writes.
    is_writable: bool,
    /// None before the connection is checked.
    pub(super) prepared: Prepared,
    /// Commits wait for standbys, or it is not known that they do not.
    pub(super) has_standbys: bool,
    pub(super) host: String,
}

impl Connection {
    /// Returns how many warnings the server has sent: the wait for a standby that was cancelled is one.
    pub(super) fn warnings(&self) -> u64 {
        self.warnings.get()
    }

    /// Returns when the connection has ended, or when a better server is there: one that takes writes.
    pub(super) async fn closed(&self, status: &Status) {
        if self.client.is_closed() {
            return;
        }
        let better = async {
            while self.is_writable || !status.is_up() {
                tokio::time::sleep(SILENCE).await;
            }
        };
        tokio::select! {
            () = self.ended.notified() => {}
            () = better => {}
        }
    }

    /// Asks the server to end what it works on for this connection, which holds locks until then.
    pub(super) fn cancel(&self) {
        let (token, tls) = (self.client.cancel_token(), self.tls.clone());
        tokio::task::spawn_local(async move {
            let _ = tokio::time::timeout(SILENCE, token.cancel_query(tls)).await;
        });
    }
}

/// Sends a statement when it is first polled: the prepared one, where there is one.
pub(super) fn query<'a>(connection: &'a Connection, text: &'a str, params: Vec<Param<'a>>) -> Answer<'a, Vec<Row>> {
    Box::pin(async move {
        let Some(statement) = connection.prepared.get(text) else {
            return connection.client.query_typed(text, &params).await;
        };
        let values: Vec<&(dyn ToSql + Sync)> = params.iter().map(|(value, _)| *value).collect();
        let answer = connection.client.query(statement, &values).await;
        answer.inspect_err(|error| connection.prepared.note(error))
    })
}

/// Connects to a server, and makes sure that it holds the store. `used` is the store that this process has worked on.
///
/// # Errors
/// A sentence for operators.
pub(super) async fn connect(
    settings: &Settings,
    what_for: Use,
    used: Option<&str>,
    status: &Status,
    may_prepare: &Rc<Cell<bool>>,
) -> Result<Connection, String> {
    let mut connection = match open(settings, TargetSessionAttrs::ReadWrite).await {
        Ok(connection) => connection,
        // Results can be replayed from a standby.
        Err(error) if what_for == Use::Reading => {
            let standby = open(settings, TargetSessionAttrs::Any).await.map_err(|_| error)?;
            Connection { is_writable: false, ..standby }
        }
        Err(error) => return Err(error),
    };
    let checked = tokio::time::timeout(2 * SILENCE, check(&connection.client, settings, what_for, used));
    connection.identity = checked.await.map_err(|_| "the server does not answer".to_owned())??;
    let found = tokio::time::timeout(SILENCE, promise::find(&connection.client));
    if let Ok(Ok(found)) = found.await {
        // What a standby shows is not lost with the server.
        connection.has_standbys = !found.standbys.trim().is_empty() && !found.is_standby;
        if what_for == Use::Writing {
            status.promises(promise::sentences(&found));
        }
    }
    let prepared = tokio::time::timeout(SILENCE, Prepared::on(&connection.client, Rc::clone(may_prepare)));
    match prepared.await {
        Ok(Ok(prepared)) => connection.prepared = prepared,
        Ok(Err(error)) if connection.client.is_closed() => return Err(explain(&error)),
        Ok(Err(error)) => tracing::debug!(error = explain(&error), "the statements are not prepared"),
        Err(_) => return Err("the server does not answer".to_owned()),
    }
    Ok(connection)
}

/// Connects to the first host that has these attributes. Each host has a second for all that it takes.
///
/// # Errors
/// A sentence for operators: what each host said.
pub(super) async fn open(settings: &Settings, wanted: TargetSessionAttrs) -> Result<Connection, String> {
    let mut refusals = Vec::new();
    for config in hosts(&settings.config, wanted) {
        let host = place(&config);
        match tokio::time::timeout(2 * SILENCE, open_one(settings, &config)).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) => refusals.push(format!("{host}: {}", explain(&error))),
            Err(_) => refusals.push(format!("{host}: it does not answer")),
        }
    }
    Err(refusals.join("; "))
}

/// Returns a configuration for each host.
fn hosts(config: &Config, wanted: TargetSessionAttrs) -> Vec<Config> {
    let (ports, addresses) = (config.get_ports(), config.get_hostaddrs());
    let one = |(index, host): (usize, &Host)| {
        let mut one = Config::new();
        match host {
            Host::Tcp(name) => one.host(name),
            Host::Unix(path) => one.host_path(path),
        };
        if let Some(address) = addresses.get(index) {
            one.hostaddr(*address);
        }
        one.port(ports.get(index).or(ports.first()).copied().unwrap_or(5432));
        config.get_user().map(|user| one.user(user));
        config.get_password().map(|password| one.password(password));
        config.get_dbname().map(|name| one.dbname(name));
        config.get_options().map(|options| one.options(options));
        one.application_name(config.get_application_name().unwrap_or("ringway"));
        one.ssl_mode(config.get_ssl_mode()).ssl_negotiation(config.get_ssl_negotiation());
        one.channel_binding(config.get_channel_binding());
        one.target_session_attrs(wanted).connect_timeout(SILENCE).tcp_user_timeout(TCP_USER_TIMEOUT);
        one
    };
    config.get_hosts().iter().enumerate().map(one).collect()
}

async fn open_one(settings: &Settings, config: &Config) -> Result<Connection, Error> {
    let tls = MakeRustlsConnect::new((*settings.tls).clone());
    let (client, mut driver) = config.connect(tls.clone()).await?;
    let (warnings, ended) = (Rc::new(Cell::new(0)), Rc::new(Notify::new()));
    let (counted, told) = (Rc::clone(&warnings), Rc::clone(&ended));
    tokio::task::spawn_local(async move {
        while let Some(Ok(message)) = poll_fn(|cx| driver.poll_message(cx)).await {
            if let AsyncMessage::Notice(notice) = message
                && matches!(notice.parsed_severity(), Some(Severity::Warning))
            {
                tracing::warn!(message = notice.message(), "PostgreSQL warns");
                counted.set(counted.get() + 1);
            }
        }
        told.notify_one();
    });
    let identity = String::new();
    Ok(Connection {
        client,
        tls,
        warnings,
        ended,
        identity,
        is_writable: true,
        prepared: Prepared::default(),
        has_standbys: true,
        host: place(config),
    })
}

/// Makes the tables where there are none, and compares the store's identity with the one that is known here. Returns
/// the identity.
async fn check(client: &Client, settings: &Settings, what_for: Use, used: Option<&str>) -> Result<String, String> {
    let file = IdentityFile::new(&settings.identity_file);
    let known = file.read().map_err(|error| file_error(settings, &error))?;
    // The file may have been lost; a process knows the store that it has worked on.
    let is_lost = known == Known::Nothing;
    let known = match used {
        Some(used) if is_lost => Known::This(used.to_owned()),
        _ => known,
    };
    let (found, version) = match identity(client).await {
        Ok(found) => found,
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => match &known {
            Known::Nothing => create(client).await?,
            Known::This(_) => return Err(EMPTY.to_owned()),
        },
        Err(error) => return Err(explain(&error)),
    };
    compare(&found, version, &known)?;
    if version != schema::VERSION && what_for == Use::Writing {
        migrate(client).await?;
    }
    if is_lost && what_for == Use::Writing {
        file.write(&found).map_err(|error| file_error(settings, &error))?;
    }
    Ok(found)
}

/// The database that is known lacks the tables.
pub(super) const EMPTY: &str = "the database has no tables of Ringway, though this machine knows a store: it was restarted \
     empty, or it is another database; a request that the lost store remembered would run again. If that is meant, run \
     `ringway store adopt`";

/// Compares the store that was found with the one that is known.
///
/// # Errors
/// It is another one, or its tables have another version.
pub(super) fn compare(found: &str, version: i32, known: &Known) -> Result<(), String> {
    if !(1..=schema::VERSION).contains(&version) {
        return Err(format!(
            "the tables have version {version}, and this Ringway knows versions up to {}: run one that fits",
            schema::VERSION
        ));
    }
    match known {
        Known::This(known) if known != found => Err(format!(
            "the database holds another store ({found}) than the one that this machine knows ({known}): the address leads \
             to a wrong database, or the store was made anew; if that is meant, run `ringway store adopt`"
        )),
        _ => Ok(()),
    }
}

pub(super) fn file_error(settings: &Settings, error: &std::io::Error) -> String {
    format!("the file `{}`, which names the store that is known here: {error}", settings.identity_file.display())
}

/// Returns the identity of the store, and the version of its tables.
pub(super) async fn identity(client: &Client) -> Result<(String, i32), Error> {
    let row = client.query_typed_one("SELECT identity, version FROM ringway_store", &[]).await?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}

/// Makes the tables. Where another proxy makes them at the same time, one of the two does.
///
/// # Errors
/// A sentence for operators.
pub(super) async fn create(client: &Client) -> Result<(String, i32), String> {
    let (lock, tables, sagas, name) = (super::LOCK, schema::DDL, schema::SAGAS, schema::NAME);
    let script = format!("BEGIN; SELECT pg_advisory_xact_lock({lock}); {tables} {sagas} {name} COMMIT;");
    let created = client.batch_execute(&script).await;
    if let Err(error) = created {
        let _ = client.batch_execute("ROLLBACK").await;
        return Err(match error.code() {
            Some(code) if *code == SqlState::INSUFFICIENT_PRIVILEGE => format!(
                "the database has no tables of Ringway, and the role may not make them ({error}); run \
                 `ringway store schema | psql` as one that may"
            ),
            _ => explain(&error),
        });
    }
    tracing::info!("the tables of the idempotency store were made");
    identity(client).await.map_err(|error| explain(&error))
}

/// Brings the tables of version 1 to this version.
///
/// # Errors
/// A sentence for operators.
pub(super) async fn migrate(client: &Client) -> Result<(), String> {
    let (lock, sagas, migrate) = (super::LOCK, schema::SAGAS, schema::MIGRATE);
    let script = format!("BEGIN; SELECT pg_advisory_xact_lock({lock}); {sagas} {migrate} COMMIT;");
    if let Err(error) = client.batch_execute(&script).await {
        let _ = client.batch_execute("ROLLBACK").await;
        return Err(match error.code() {
            Some(code) if *code == SqlState::INSUFFICIENT_PRIVILEGE => format!(
                "the tables have version 1, and the role may not bring them to version {} ({error}); run \
                 `ringway store schema | psql` as one that may",
                schema::VERSION
            ),
            _ => explain(&error),
        });
    }
    tracing::info!(version = schema::VERSION, "the tables of the idempotency store were brought to a new version");
    Ok(())
}

/// Returns an error with its cause, in one sentence.
pub(super) fn explain(error: &Error) -> String {
    use std::error::Error as _;
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let next_text = next.to_string();
        if !text.contains(&next_text) {
            text = format!("{text}: {next_text}");
        }
        cause = next.source();
    }
    text
}

/// Returns the hosts and the database of a configuration, without its secrets.
pub(super) fn place(config: &Config) -> String {
    let ports = config.get_ports();
    let hosts: Vec<String> = config
        .get_hosts()
        .iter()
        .enumerate()
        .map(|(index, host)| {
            let port = ports.get(index).or(ports.first()).copied().unwrap_or(5432);
            match host {
                Host::Tcp(name) => format!("{name}:{port}"),
                Host::Unix(path) => format!("{}:{port}", path.display()),
            }
        })
        .collect();
    let database = config.get_dbname().or(config.get_user()).unwrap_or_default();
    format!("{}/{database}", hosts.join(","))
}
