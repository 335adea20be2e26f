//! Columns as they are written and read.

use crate::idempotency::identity::Subject;
use rusqlite::{Result, Row};

/// SQLite's numbers have a sign; ours are bits.
pub(super) fn signed(number: u64) -> i64 {
    number.cast_signed()
}

/// Reads a number of 64 bits.
pub(super) fn number(row: &Row<'_>, column: usize) -> Result<u64> {
    row.get::<_, i64>(column).map(i64::cast_unsigned)
}

/// Reads five columns.
pub(super) fn subject(row: &Row<'_>, first: usize) -> Result<Subject> {
    Ok(Subject {
        namespace: row.get(first)?,
        method: row.get(first + 1)?,
        authority: row.get(first + 2)?,
        path: row.get(first + 3)?,
        key: row.get(first + 4)?,
    })
}
