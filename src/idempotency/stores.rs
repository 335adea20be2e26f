//! The kinds of stores, and how one is opened.

use super::clock::Clock;
use super::memory::{self, Memory};
use super::sqlite::{FileError, Sqlite};
use super::store::Store;
use std::fmt;
use std::io;
use std::path::PathBuf;

/// A kind of store, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Sqlite(PathBuf),
    Memory,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Sqlite(path) => path.display().fmt(f),
            Kind::Memory => f.write_str("memory"),
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
    })
}
