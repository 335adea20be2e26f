//! The file of a store that no process has open, for a copy.

use super::file::{self, StoreFile, Use};
use super::{holders, rows, sagas};
use crate::idempotency::clock::Clock;
use crate::idempotency::copy::{Archive, Archived, PAGE};
use crate::idempotency::identity::Id;
use crate::idempotency::saga::SagaRow;
use rusqlite::Connection;
use std::path::Path;

/// Counts the records again, without tombstones.
const COUNT: &str = "UPDATE extent SET records = (SELECT count(*) FROM records WHERE state <> 4)";

/// Opens the file; makes it where it is to be the target.
///
/// # Errors
/// It is not there, not a store, or a process has it open.
pub(in crate::idempotency) fn archive(path: &Path, is_target: bool) -> Result<Box<dyn Archive>, String> {
    if !is_target && !path.exists() {
        return Err("there is no such file".to_owned());
    }
    let file = StoreFile::prepare(path).map_err(|error| error.to_string())?;
    if holders::is_in_use(&file.path) {
        return Err("a running Ringway has it open; stop it first: what it writes meanwhile would be missed".to_owned());
    }
    let connection = file.connect(Use::Writing).map_err(|error| error.to_string())?;
    Ok(Box::new(SqliteArchive { connection }))
}

/// Inspects a file without a change.
///
/// # Errors
///
/// It exists and is not a store that this version supports.
pub(in crate::idempotency) fn inspect(path: &Path) -> Result<(), String> {
    if !path.exists() {
        return Ok(());
    }
    file::look_at(path).map_err(|error| error.to_string())
}

struct SqliteArchive {
    connection: Connection,
}

impl Archive for SqliteArchive {
    fn count(&mut self) -> Result<u64, String> {
        rows::extent(&self.connection).map_err(|error| error.to_string())
    }

    fn read(&mut self, after: Option<Id>) -> Result<Vec<Archived>, String> {
        rows::page(&self.connection, after).map_err(|error| error.to_string())
    }

    fn open_sagas(&mut self) -> Result<u64, String> {
        sagas::open(&self.connection).map_err(|error| error.to_string())
    }

    fn read_sagas(&mut self, after: Option<Id>) -> Result<Vec<SagaRow>, String> {
        sagas::page(&self.connection, after, PAGE).map_err(|error| error.to_string())
    }

    fn write_sagas(&mut self, rows: &[SagaRow]) -> Result<(), String> {
        let mut write = || {
            let transaction = self.connection.transaction()?;
            rows.iter().try_for_each(|row| sagas::add(&transaction, row))?;
            transaction.commit()
        };
        write().map_err(|error: rusqlite::Error| error.to_string())
    }

    fn finish(&mut self) -> Result<(), String> {
        self.connection.execute(COUNT, []).map(drop).map_err(|error| error.to_string())
    }

    fn write(&mut self, records: &[Archived]) -> Result<u64, String> {
        let now = Clock::new().now();
        let mut write = || {
            let transaction = self.connection.transaction()?;
            let mut added = 0;
            for archived in records {
                added += rows::add(&transaction, archived, now)?;
            }
            transaction.commit()?;
            Ok(added)
        };
        write().map_err(|error: rusqlite::Error| error.to_string())
    }
}
