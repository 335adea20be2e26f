//! The kinds of stores, and their opening.

use super::clock::Clock;
use super::memory::{self, Memory};
#[cfg(feature = "postgres")]
use super::postgres;
#[cfg(feature = "redis")]
use super::redis;
use super::sqlite::{FileError, Sqlite};
use super::store::Store;
use std::any::Any;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// A kind of store, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Sqlite(PathBuf),
    Memory,
    #[cfg(feature = "postgres")]
    Postgres(postgres::Settings),
    #[cfg(feature = "redis")]
    Redis(redis::Settings),
}

impl Kind {
    /// Returns whether another configuration may be the same store. For a remote store its own identity decides, as its
    /// address and password may change.
    pub(crate) fn may_be(&self, other: &Kind) -> bool {
        match (self, other) {
            #[cfg(feature = "postgres")]
            (Kind::Postgres(one), Kind::Postgres(other)) => one.identity_file == other.identity_file,
            #[cfg(feature = "redis")]
            (Kind::Redis(one), Kind::Redis(other)) => {
                (&one.identity_file, &one.fleet) == (&other.identity_file, &other.fleet)
            }
            _ => self == other,
        }
    }

    /// Returns a store in PostgreSQL. `authorities` are trusted for TLS instead of the system's.
    ///
    /// # Errors
    /// The URL is not valid, or this program was built without PostgreSQL.
    #[cfg(feature = "postgres")]
    pub(crate) fn postgres(
        url: &str,
        authorities: Option<rustls::RootCertStore>,
        identity_file: &Path,
    ) -> Result<Kind, OpenError> {
        postgres::settings(url, authorities, identity_file).map(Kind::Postgres).map_err(OpenError::Settings)
    }

    #[cfg(not(feature = "postgres"))]
    pub(crate) fn postgres(_: &str, _: Option<rustls::RootCertStore>, _: &Path) -> Result<Kind, OpenError> {
        Err(OpenError::Settings("this Ringway was built without the feature `postgres`".to_owned()))
    }

    /// Returns the settings that a remote store may take over while it works.
    pub(super) fn settings(&self) -> &(dyn Any + Send + Sync) {
        match self {
            #[cfg(feature = "postgres")]
            Kind::Postgres(settings) => settings,
            #[cfg(feature = "redis")]
            Kind::Redis(settings) => settings,
            local => local,
        }
    }

    /// Returns the store's name for a successor of this process, which must use the same one.
    pub(crate) fn name(&self) -> String {
        match self {
            #[cfg(feature = "postgres")]
            // The successor recognises the store by its identity.
            Kind::Postgres(settings) => format!("postgres, known by `{}`", settings.identity_file.display()),
            #[cfg(feature = "redis")]
            Kind::Redis(settings) => format!("redis, known by `{}`", settings.identity_file.display()),
            local => local.to_string(),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Sqlite(path) => path.display().fmt(f),
            Kind::Memory => f.write_str("memory"),
            #[cfg(feature = "postgres")]
            Kind::Postgres(settings) => settings.fmt(f),
            #[cfg(feature = "redis")]
            Kind::Redis(settings) => settings.fmt(f),
        }
    }
}

/// A store that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("{0}")]
    System(#[from] io::Error),
    #[error("{0}")]
    File(#[from] FileError),
    #[error("{0}")]
    Settings(String),
}

/// Opens a store under a number of its own.
///
/// # Errors
/// A local store is not there or not usable. A remote store connects later.
pub(super) fn open(kind: &Kind) -> Result<Box<dyn Store>, OpenError> {
    let holder = getrandom::u64().map_err(io::Error::other)?;
    Ok(match kind {
        Kind::Sqlite(path) => Box::new(Sqlite::open(path, holder, Clock::new())?),
        Kind::Memory => Box::new(Memory::new(holder, Clock::new(), memory::MAX_BYTES)),
        #[cfg(feature = "postgres")]
        Kind::Postgres(settings) => Box::new(postgres::start(settings, holder)?),
        #[cfg(feature = "redis")]
        Kind::Redis(settings) => Box::new(redis::start(settings, holder)?),
    })
}

/// Returns what a store guarantees, in sentences. Changes nothing.
///
/// # Errors
///
/// The store cannot be reached, or must not be used.
pub(crate) fn inspect(kind: &Kind) -> Result<Vec<String>, String> {
    match kind {
        Kind::Memory => Ok(promise_of(kind)),
        Kind::Sqlite(path) => super::sqlite::inspect(path).map(|()| promise_of(kind)),
        #[cfg(feature = "postgres")]
        Kind::Postgres(settings) => postgres::inspect(settings),
        #[cfg(feature = "redis")]
        Kind::Redis(settings) => redis::inspect(settings),
    }
}

/// Returns what a local store guarantees.
pub(super) fn promise_of(kind: &Kind) -> Vec<String> {
    let sentences: &[&str] = match kind {
        Kind::Memory => &[
            "memory: at most once while this process lives; a restart or an upgrade forgets all records, and a repeated \
             request runs again.",
        ],
        Kind::Sqlite(_) => &[
            "SQLite with a write-ahead log and `synchronous = FULL`: a claim is on the disk before its request is sent, a \
             result before its client gets it.",
            "A proxy that is killed, or a machine that crashes, loses nothing that the disk has acknowledged; a machine \
             or a disk that is lost takes its records along.",
            "At most once on this machine: proxies of other machines do not see these records. Share a PostgreSQL \
             or Redis store for that.",
        ],
        #[cfg(feature = "postgres")]
        Kind::Postgres(_) => &[],
        #[cfg(feature = "redis")]
        Kind::Redis(_) => &[],
    };
    sentences.iter().map(|&sentence| sentence.to_owned()).collect()
}

/// Takes the store at the configured address for the right one.
///
/// # Errors
/// It is a local store, or it cannot be reached.
pub(crate) fn adopt(kind: &Kind) -> Result<Vec<String>, String> {
    match kind {
        Kind::Sqlite(_) | Kind::Memory => Err("only a store that machines share is adopted".to_owned()),
        #[cfg(feature = "postgres")]
        Kind::Postgres(settings) => postgres::adopt(settings),
        #[cfg(feature = "redis")]
        Kind::Redis(settings) => redis::adopt(settings),
    }
}

/// Returns the statements that make the tables of a PostgreSQL store.
pub(crate) fn schema() -> String {
    #[cfg(feature = "postgres")]
    return postgres::script();
    #[cfg(not(feature = "postgres"))]
    "-- this Ringway was built without PostgreSQL\n".to_owned()
}
