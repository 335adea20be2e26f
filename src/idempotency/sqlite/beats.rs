//! The heartbeat of this process in the file.

use super::Desk;
use super::columns::signed;
use rusqlite::Result;
use std::time::{Duration, Instant};

/// Shows that this process lives.
pub(super) fn beat(desk: &mut Desk) -> Result<()> {
    desk.connection
        .prepare_cached("INSERT INTO holders VALUES (?1, 1) ON CONFLICT (holder) DO UPDATE SET beat = beat + 1")?
        .execute([signed(desk.holders.own)])?;
    desk.last_beat = Some(Instant::now());
    Ok(())
}

/// Shows that this process lives, unless it has of late.
pub(super) fn beat_within(desk: &mut Desk, lease: Duration) -> Result<()> {
    match desk.last_beat.is_none_or(|last| last.elapsed() >= lease / 3) {
        true => beat(desk),
        false => Ok(()),
    }
}
