//! The file: how it is opened, what is in it, and whether it is still the one that was opened.

use rusqlite::{Connection, OpenFlags};
use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long another process may hold the file before a call fails.
const BUSY: Duration = Duration::from_secs(2);

/// Marks the file as ours (`PRAGMA application_id`): "RWid".
const APPLICATION: i64 = 0x5257_6964;

/// The version of the tables (`PRAGMA user_version`).
const VERSION: i64 = 1;

/// Pages of the log before it is written back: 32 MiB.
const CHECKPOINT: i64 = 8192;

/// KiB of pages that a writing and a reading connection keep.
const WRITER_CACHE: i64 = 8 << 10;
const READER_CACHE: i64 = 2 << 10;

/// `state`: 0 running, 1 done, 2 done without a body, 3 unknown. `holder` and `number` are the token.
/// Times are milliseconds since 1970. Rows stand in the order of the claims, so that a commit touches
/// few pages; an identity begins with a hash of its key, so that a key's records stand together.
const TABLES: &str = "
    CREATE TABLE records (
        row INTEGER PRIMARY KEY,
        id BLOB NOT NULL UNIQUE,
        state INTEGER NOT NULL,
        holder INTEGER NOT NULL,
        number INTEGER NOT NULL,
        lease INTEGER NOT NULL,
        created INTEGER NOT NULL,
        expires INTEGER NOT NULL,
        fingerprint BLOB NOT NULL,
        namespace TEXT NOT NULL,
        method TEXT NOT NULL,
        authority TEXT NOT NULL,
        path TEXT NOT NULL,
        key TEXT NOT NULL,
        status INTEGER,
        fields BLOB,
        body BLOB,
        trailers BLOB
    );
    CREATE INDEX records_by_expiry ON records (expires);
    CREATE INDEX records_by_holder ON records (holder) WHERE state = 0;
    CREATE TABLE holders (holder INTEGER PRIMARY KEY, beat INTEGER NOT NULL);
    CREATE TABLE extent (records INTEGER NOT NULL);
    INSERT INTO extent VALUES (0);
";

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Sqlite(#[from] rusqlite::Error),
    #[error("the file is a database, but not one of Ringway's")]
    Foreign,
    #[error("the file has version {0}, and this Ringway knows versions up to {VERSION}: run the newer one")]
    Newer(i64),
    #[error("the file system does not take a write-ahead log (journal mode `{0}`); use a local one")]
    NoLog(String),
    #[error("the file is not the one that was opened: it was moved, removed or replaced; restart to begin anew")]
    Replaced,
}

/// A database file that was found good.
#[derive(Clone, Debug)]
pub(super) struct StoreFile {
    pub(super) path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    Writing,
    Reading,
}

impl StoreFile {
    /// Makes the file where there is none, and its tables.
    pub(super) fn prepare(path: &Path) -> Result<StoreFile, OpenError> {
        if let Some(folder) = path.parent()
            && !folder.as_os_str().is_empty()
        {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        // What callers were answered is for nobody else to read; SQLite's other files take after it.
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.into()),
            _ => {}
        }
        let metadata = std::fs::metadata(path)?;
        let file = StoreFile { path: path.to_owned(), identity: (metadata.dev(), metadata.ino()) };
        file.make_tables(&mut file.connect(Use::Writing)?)?;
        Ok(file)
    }

    /// Opens the file that [`StoreFile::prepare`] found. Never makes one: an empty store would run
    /// again what the lost one remembered.
    pub(super) fn connect(&self, what_for: Use) -> Result<Connection, OpenError> {
        self.check()?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags)?;
        connection.busy_timeout(BUSY)?;
        let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
        if mode != "wal" {
            return Err(OpenError::NoLog(mode));
        }
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "temp_store", "MEMORY")?;
        connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT)?;
        let cache = if what_for == Use::Writing { WRITER_CACHE } else { READER_CACHE };
        connection.pragma_update(None, "cache_size", -cache)?;
        connection.pragma_update(None, "query_only", what_for == Use::Reading)?;
        connection.set_prepared_statement_cache_capacity(32);
        Ok(connection)
    }

    /// Whether the path still leads to the file.
    pub(super) fn check(&self) -> Result<(), OpenError> {
        match std::fs::metadata(&self.path) {
            Ok(metadata) if (metadata.dev(), metadata.ino()) == self.identity => Ok(()),
            Ok(_) => Err(OpenError::Replaced),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(OpenError::Replaced),
            Err(error) => Err(error.into()),
        }
    }

    fn make_tables(&self, connection: &mut Connection) -> Result<(), OpenError> {
        let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let pragma = |name: &str| transaction.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        match (pragma("application_id")?, pragma("user_version")?) {
            (APPLICATION, VERSION) => {}
            (APPLICATION, version) => return Err(OpenError::Newer(version)),
            _ => {
                let objects: i64 = transaction.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
                if objects > 0 {
                    return Err(OpenError::Foreign);
                }
                transaction.execute_batch(TABLES)?;
                transaction.pragma_update(None, "application_id", APPLICATION)?;
                transaction.pragma_update(None, "user_version", VERSION)?;
            }
        }
        transaction.commit()?;
        Ok(())
    }
}
