//! A store in Redis or Valkey, which the proxies of a fleet share.
//!
//! `connection` finds the server that takes writes and the store that is known, `batch` carries out the calls that wait
//! in one pipeline and one `WAIT`, `scripts` decide on the server, `values` reads their replies, `facts` are what
//! `INFO` tells of a server, `promise` says what they allow.

mod batch;
mod connection;
mod facts;
mod operate;
mod promise;
mod scripts;
mod values;

pub(super) use operate::{adopt, archive, inspect};

use super::record::Holder;
use super::remote::{Engine, Pending, Remote, Status, Use, holder_name};
use crate::io::redis::Login;
use connection::Connection;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// The place of the store, and the secrets to reach it.
#[derive(Clone)]
pub(crate) struct Settings {
    /// Hosts and ports; one of them takes writes.
    pub(crate) addresses: Vec<String>,
    pub(crate) login: Login,
    /// The replicas that must have a claim before its request is sent.
    pub(crate) replicas: u32,
    /// The proxies that belong together: a part of every key.
    pub(crate) fleet: String,
    /// The local file with the identity of the store that this machine knows.
    pub(crate) identity_file: PathBuf,
}

impl Settings {
    fn parts(&self) -> impl PartialEq + '_ {
        (&self.addresses, &self.login, self.replicas, &self.fleet, &self.identity_file)
    }

    /// Returns the beginning of every key.
    fn prefix(&self) -> String {
        format!("ringway:{}:", self.fleet)
    }
}

impl PartialEq for Settings {
    fn eq(&self, other: &Settings) -> bool {
        self.parts() == other.parts()
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
        write!(f, "redis {}", self.addresses.join(","))
    }
}

/// Starts the store, which connects by itself.
///
/// # Errors
/// No thread can be started.
pub(super) fn start(settings: &Settings, holder: Holder) -> io::Result<Remote<Settings>> {
    let name = holder_name();
    Remote::start("redis", holder, settings.clone(), move |status| Redis {
        holder,
        name,
        status,
        writable: RefCell::default(),
        confirmed: Cell::default(),
    })
}

/// The protocol of a store in Redis.
struct Redis {
    holder: Holder,
    name: String,
    status: Arc<Status>,
    /// The address of the server that took writes last.
    writable: RefCell<Option<String>>,
    /// The time in microseconds, by the clock of the server that takes writes, up to which its replicas have all
    /// results; zero where none is known.
    confirmed: Cell<u64>,
}

impl Redis {
    /// Notes the server that takes writes, and says where it is another one than before.
    fn note_writable(&self, address: &str) {
        let before = self.writable.replace(Some(address.to_owned()));
        if let Some(before) = before.filter(|before| before != address) {
            tracing::warn!(from = before, to = address, "the idempotency store has moved to another server");
        }
    }
}

impl Engine for Redis {
    type Settings = Settings;
    type Connection = Connection;

    async fn connect(&self, settings: &Settings, what_for: Use) -> Result<Connection, String> {
        let connection = connection::connect(settings, what_for).await?;
        if what_for == Use::Writing {
            self.confirmed.set(0);
            self.note_writable(&connection.address);
            self.status.promises(connection.promise());
        }
        Ok(connection)
    }

    async fn carry_out(&self, connection: &mut Connection, calls: &mut Vec<Pending>) -> Result<(), String> {
        batch::carry_out(self, connection, calls).await
    }

    fn refusal(&self, connection: &Connection) -> Option<String> {
        let refusal = connection.pulse.borrow().refuses(connection.replicas)?;
        Some(format!("{}: {}", connection.address, refusal.text()))
    }

    async fn closed(&self, connection: &Connection) {
        connection.closed().await;
    }
}
