//! A store in PostgreSQL, which the proxies of a fleet share.
//!
//! `connection` finds the server that takes writes and the store that is known, `batch` carries out the calls that wait
//! in one transaction, `rows` are its statements and `params` their parameters, `prepared` has those that are prepared:
//! none behind a pooler, so that PgBouncer may stand between in transaction mode. `promise` says what the server's
//! settings allow.

mod batch;
mod confirmed;
mod connection;
mod operate;
mod params;
mod prepared;
mod promise;
mod rows;
mod sagas;
mod schema;

pub(super) use operate::archive;
pub(super) use operate::{adopt, inspect};
pub(super) use schema::script;

use super::record::Holder;
use super::remote::{Engine, Pending, Remote, Status, Use, holder_name};
use crate::tls::{ClientTls, Trust};
use confirmed::Confirmed;
use connection::Connection;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use tokio_postgres::config::{Host, SslMode};

/// The advisory lock for making the tables; the next number is for upkeep. "RW" and a number.
const LOCK: i64 = 0x5257_0001;
const UPKEEP_LOCK: i64 = LOCK + 1;

/// The place of the store, and the secrets to reach it.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) config: Arc<tokio_postgres::Config>,
    pub(crate) tls: Arc<rustls::ClientConfig>,
    /// The local file with the identity of the store that this machine knows.
    pub(crate) identity_file: PathBuf,
}

impl PartialEq for Settings {
    fn eq(&self, other: &Settings) -> bool {
        self.config == other.config && self.identity_file == other.identity_file
    }
}

impl Eq for Settings {}

/// Passwords do not show.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "postgres {}", connection::place(&self.config))
    }
}

/// Reads the settings of a store. `authorities` are trusted for TLS instead of the system's.
///
/// # Errors
/// A sentence for operators, without the secrets of the URL.
pub(crate) fn settings(
    url: &str,
    authorities: Option<rustls::RootCertStore>,
    identity_file: &Path,
) -> Result<Settings, String> {
    const EXPECTED: &str = "expected a URL like `postgres://user:password@host:5432/database`, with special characters \
         of the password percent-encoded (`@` is `%40`)";
    // The parser's own words would show the password.
    let config: tokio_postgres::Config = match url.starts_with("postgres://") || url.starts_with("postgresql://") {
        true => url.parse().map_err(|_| EXPECTED.to_owned())?,
        false => return Err(EXPECTED.to_owned()),
    };
    let is_odd = |host: &Host| matches!(host, Host::Tcp(name) if name.contains(['@', '/', ':', '?']));
    if config.get_hosts().is_empty() || config.get_hosts().iter().any(is_odd) {
        return Err(EXPECTED.to_owned());
    }
    let trust = match authorities {
        // No handshake will ask whom to trust.
        _ if config.get_ssl_mode() == SslMode::Disable => Trust::Anybody,
        Some(store) => Trust::These(store),
        None => Trust::System,
    };
    let tls = ClientTls::new(trust, None, &[], Vec::new()).map_err(|error| error.to_string())?;
    Ok(Settings { config: Arc::new(config), tls: tls.config, identity_file: identity_file.to_owned() })
}

/// Starts the store, which connects by itself.
///
/// # Errors
/// No thread can be started.
pub(super) fn start(settings: &Settings, holder: Holder) -> io::Result<Remote<Settings>> {
    let name = holder_name();
    Remote::start("postgres", holder, settings.clone(), move |status| Postgres {
        holder,
        name,
        status,
        used: RefCell::default(),
        may_prepare: Rc::new(Cell::new(true)),
        confirmed: Confirmed::default(),
    })
}

/// The protocol of a store in PostgreSQL.
struct Postgres {
    holder: Holder,
    name: String,
    status: Arc<Status>,
    /// The store that this process has worked on.
    used: RefCell<Option<String>>,
    /// The server has known every statement that was prepared.
    may_prepare: Rc<Cell<bool>>,
    confirmed: Confirmed,
}

impl Engine for Postgres {
    type Settings = Settings;
    type Connection = Connection;
    const KEEPS_SAGAS: bool = true;
    const PREFERS_LOOK_UPS: bool = true;

    async fn connect(&self, settings: &Settings, what_for: Use) -> Result<Connection, String> {
        let used = self.used.borrow().clone();
        let connection =
            connection::connect(settings, what_for, used.as_deref(), &self.status, &self.may_prepare).await?;
        *self.used.borrow_mut() = Some(connection.identity.clone());
        if what_for == Use::Writing {
            self.confirmed.forget();
        }
        Ok(connection)
    }

    async fn carry_out(&self, connection: &mut Connection, calls: &mut Vec<Pending>) -> Result<(), String> {
        let carried_out = batch::carry_out(self, connection, calls).await;
        if carried_out.is_err() {
            connection.cancel();
        }
        carried_out
    }

    async fn closed(&self, connection: &Connection) {
        connection.closed(&self.status).await;
    }
}
