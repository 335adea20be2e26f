//! The file: opening it, its tables, and the check that it is still the opened one.

use crate::idempotency::store_identity::new_identity;
use rusqlite::{Connection, OpenFlags};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The time for which another process may lock the file before a call fails, and the interval of attempts: short, as a
/// busy writer unlocks it only for moments.
const BUSY: Duration = Duration::from_secs(2);
const BUSY_STEP: Duration = Duration::from_micros(500);

/// The application id of the file (`PRAGMA application_id`): "RWid".
const APPLICATION: i64 = 0x5257_6964;

/// The version of the tables (`PRAGMA user_version`).
const VERSION: i64 = 3;

/// Pages of the log before it is written back: 32 MiB.
const CHECKPOINT: i64 = 8192;

/// The size of the log after it was written back, in bytes.
const LOG_SIZE: i64 = 64 << 20;

/// KiB of pages that a writing and a reading connection keep.
const WRITER_CACHE: i64 = 8 << 10;
const READER_CACHE: i64 = 2 << 10;

/// `state`: 0 running, 1 done, 2 done without a body, 3 unknown, 4 tombstone, 5 under a saga. `holder` and `number` are
/// the token. Times are milliseconds since 1970; `expires` of a running record is `created` and its time to live. Rows
/// stand in the order of the claims, so that a commit touches few pages; an identity begins with a hash of its key, so
/// that a key's records stand together.
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
        trailers BLOB,
        dead_holder INTEGER,
        dead_number INTEGER
    );
    CREATE INDEX records_by_expiry ON records (expires) WHERE state <> 0;
    CREATE INDEX records_by_holder ON records (holder) WHERE state = 0;
    CREATE TABLE holders (holder INTEGER PRIMARY KEY, beat INTEGER NOT NULL);
    CREATE TABLE extent (records INTEGER NOT NULL);
    INSERT INTO extent VALUES (0);
    CREATE TABLE store (identity TEXT NOT NULL);
";

/// The sagas. `holder` and `number` are the token of the claim, `owner` the process that works on it, or 0; `state` as
/// [`Standing`](crate::saga::log::Standing) has it: 0 running, 1 compensating, 2 succeeded, 3 compensated, 4 stuck.
const SAGAS: &str = "
    CREATE TABLE sagas (
        id BLOB PRIMARY KEY,
        holder INTEGER NOT NULL,
        number INTEGER NOT NULL,
        owner INTEGER NOT NULL,
        epoch INTEGER NOT NULL,
        sequence INTEGER NOT NULL,
        state INTEGER NOT NULL,
        seed BLOB NOT NULL,
        definition TEXT NOT NULL,
        inputs TEXT NOT NULL,
        log TEXT NOT NULL,
        lease INTEGER NOT NULL,
        ttl INTEGER NOT NULL,
        created INTEGER NOT NULL,
        touched INTEGER NOT NULL,
        expires INTEGER NOT NULL
    );
    CREATE INDEX sagas_by_state ON sagas (state, created);
    CREATE INDEX sagas_by_owner ON sagas (owner) WHERE state < 2;
    CREATE INDEX sagas_by_expiry ON sagas (expires) WHERE state IN (2, 3);
";

/// From version 1, whose processes may go on while their successor begins: their statements fit both.
const FROM_VERSION_1: &str = "
    ALTER TABLE records ADD COLUMN dead_holder INTEGER;
    ALTER TABLE records ADD COLUMN dead_number INTEGER;
    DROP INDEX records_by_expiry;
    CREATE INDEX records_by_expiry ON records (expires) WHERE state <> 0;
    CREATE TABLE store (identity TEXT NOT NULL);
";

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
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

/// The files beside the database, by device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sides {
    log: (u64, u64),
    index: (u64, u64),
}

/// The purpose of a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    Writing,
    Reading,
}

impl StoreFile {
    /// Creates the file where there is none, and its tables.
    pub(super) fn prepare(path: &Path) -> Result<StoreFile, FileError> {
        if let Some(folder) = path.parent()
            && !folder.as_os_str().is_empty()
        {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        // Only the owner may read the responses; SQLite's other files get the same mode.
        let is_new = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
            Ok(_) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(error.into()),
        };
        // One name for all processes that share it, whatever links lead to it.
        let path = path.canonicalize()?;
        let file = StoreFile { identity: identity_of(&path)?, path };
        let deadline = Instant::now() + BUSY;
        let made = loop {
            match file.connect(Use::Writing).and_then(|mut connection| file.make_tables(&mut connection)) {
                // SQLite does not wait for others when it turns on the log.
                Err(FileError::Sqlite(error)) if is_busy(&error) && Instant::now() < deadline => {
                    std::thread::sleep(BUSY_STEP);
                }
                made => break made?,
            }
        };
        if made && !is_new {
            tracing::warn!(path = %file.path.display(), "the idempotency store was empty: it remembers nothing");
        }
        if made {
            // A created folder must survive a crash, like its content.
            file.path.ancestors().skip(1).take(2).try_for_each(sync_folder)?;
        }
        Ok(file)
    }

    /// The files beside it, which SQLite keeps for as long as a connection is open.
    pub(super) fn sides(&self) -> Result<Sides, FileError> {
        let beside = |suffix: &str| {
            let mut path = self.path.as_os_str().to_owned();
            path.push(suffix);
            identity_of(Path::new(&path))
        };
        Ok(Sides { log: beside("-wal")?, index: beside("-shm")? })
    }

    /// Opens the file that [`StoreFile::prepare`] found. Never creates one: with an empty store, requests that the lost
    /// one had recorded would run again.
    pub(super) fn connect(&self, what_for: Use) -> Result<Connection, FileError> {
        self.check()?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(&self.path, flags)?;
        connection.busy_handler(Some(wait_for_others))?;
        let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
        if mode != "wal" {
            return Err(FileError::NoLog(mode));
        }
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "temp_store", "MEMORY")?;
        connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT)?;
        connection.pragma_update(None, "journal_size_limit", LOG_SIZE)?;
        let cache = if what_for == Use::Writing { WRITER_CACHE } else { READER_CACHE };
        connection.pragma_update(None, "cache_size", -cache)?;
        connection.pragma_update(None, "query_only", what_for == Use::Reading)?;
        connection.set_prepared_statement_cache_capacity(32);
        Ok(connection)
    }

    /// Returns whether the path still leads to the file.
    pub(super) fn check(&self) -> Result<(), FileError> {
        if identity_of(&self.path)? == self.identity { Ok(()) } else { Err(FileError::Replaced) }
    }

    /// Returns whether the tables had to be created.
    fn make_tables(&self, connection: &mut Connection) -> Result<bool, FileError> {
        let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let pragma = |name: &str| transaction.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let made = match (pragma("application_id")?, pragma("user_version")?) {
            (APPLICATION, VERSION) => false,
            (APPLICATION, version @ (1 | 2)) => {
                if version == 1 {
                    transaction.execute_batch(FROM_VERSION_1)?;
                    name(&transaction)?;
                }
                transaction.execute_batch(SAGAS)?;
                transaction.pragma_update(None, "user_version", VERSION)?;
                false
            }
            (APPLICATION, version) => return Err(FileError::Newer(version)),
            _ => {
                let objects: i64 = transaction.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
                if objects > 0 {
                    return Err(FileError::Foreign);
                }
                transaction.execute_batch(TABLES)?;
                transaction.execute_batch(SAGAS)?;
                name(&transaction)?;
                true
            }
        };
        transaction.commit()?;
        Ok(made)
    }
}

/// Reads the version of a file, and changes nothing.
///
/// # Errors
/// The file is not a store, or has a newer version.
pub(super) fn look_at(path: &Path) -> Result<(), FileError> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let pragma = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    match (pragma("application_id")?, pragma("user_version")?) {
        (APPLICATION, ..=VERSION) => Ok(()),
        (APPLICATION, version) => Err(FileError::Newer(version)),
        _ if path.metadata()?.len() == 0 => Ok(()),
        _ => Err(FileError::Foreign),
    }
}

/// Gives the file a version and an identity.
fn name(connection: &Connection) -> Result<(), FileError> {
    connection.execute("INSERT INTO store VALUES (?1)", [new_identity()?])?;
    connection.pragma_update(None, "application_id", APPLICATION)?;
    connection.pragma_update(None, "user_version", VERSION)?;
    Ok(())
}

/// Device and inode; a file that is gone was replaced by nothing.
fn identity_of(path: &Path) -> Result<(u64, u64), FileError> {
    match std::fs::metadata(path) {
        Ok(metadata) => Ok((metadata.dev(), metadata.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(FileError::Replaced),
        Err(error) => Err(error.into()),
    }
}

/// Makes the entries of a folder durable; not every folder can be opened for that, and not every file system supports
/// it.
fn sync_folder(folder: &Path) -> Result<(), FileError> {
    use io::ErrorKind::{InvalidInput, PermissionDenied, Unsupported};
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        Err(error) if !matches!(error.kind(), InvalidInput | PermissionDenied | Unsupported) => Err(error.into()),
        _ => Ok(()),
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseBusy, DatabaseLocked};
    matches!(error.sqlite_error_code(), Some(DatabaseBusy | DatabaseLocked))
}

/// Called by SQLite while another process has the file, for the n-th time.
fn wait_for_others(times: i32) -> bool {
    std::thread::sleep(BUSY_STEP);
    BUSY_STEP.saturating_mul(times.unsigned_abs()) < BUSY
}
