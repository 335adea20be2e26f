//! Copying records from one store to another, offline: `ringway store copy`.
//!
//! Records keep their identity, state, token, times and result. A running one has no holder any more, and becomes
//! unknown. Existing records of the target stay, unless the source has more: the target's has expired, or is an unknown
//! outcome of the same run. Tombstones are not copied.
//!
//! Sagas that have ended go along where both stores keep sagas; where the target keeps none, their answers do. While a
//! saga is open nothing is copied: the services know its steps by keys that only its row can make.

use super::clock::Clock;
use super::identity::{Id, Subject};
use super::record::{Event, Record, Transition, transition};
use super::response::StoredResponse;
use super::saga::SagaRow;
use super::stores::Kind;

/// The number of records that are moved at a time.
pub(super) const PAGE: i64 = 50;

/// A record with all that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Archived {
    pub(super) id: Id,
    pub(super) subject: Subject,
    pub(super) record: Record,
    /// In milliseconds.
    pub(super) lease: i64,
    pub(super) response: Option<StoredResponse>,
}

/// A store that no process works on.
pub(super) trait Archive {
    /// Returns the number of records.
    fn count(&mut self) -> Result<u64, String>;
    /// Returns the next records after an identity, in order; none at the end.
    fn read(&mut self, after: Option<Id>) -> Result<Vec<Archived>, String>;
    /// Adds missing records, durably. Returns the number of added ones.
    fn write(&mut self, records: &[Archived]) -> Result<u64, String>;
    /// Returns how many sagas go on, or are stuck.
    fn open_sagas(&mut self) -> Result<u64, String> {
        Ok(0)
    }
    /// Returns the next sagas after an identity, in order; none at the end.
    fn read_sagas(&mut self, _after: Option<Id>) -> Result<Vec<SagaRow>, String> {
        Ok(Vec::new())
    }
    /// Adds sagas that have ended, beside their records. A store that keeps none has their answers all the same.
    fn write_sagas(&mut self, _sagas: &[SagaRow]) -> Result<(), String> {
        Ok(())
    }
    /// Ends the copy, at the target.
    fn finish(&mut self) -> Result<(), String> {
        Ok(())
    }
}

/// The result of a copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Copied {
    pub(crate) read: u64,
    pub(crate) added: u64,
    /// Requests that ran when their process ended.
    pub(crate) unknown: u64,
}

/// Copies all records. `progress` gets the number of read ones, and of all.
///
/// # Errors
///
/// A sentence for operators. Records that were copied by then stay; a second copy continues.
pub(crate) fn copy(from: &Kind, to: &Kind, mut progress: impl FnMut(u64, u64)) -> Result<Copied, String> {
    if from == to {
        return Err("both are the same store".to_owned());
    }
    let named = |kind: &Kind, error: String| format!("{kind}: {error}");
    let mut source = archive(from, false).map_err(|error| named(from, error))?;
    let mut target = archive(to, true).map_err(|error| named(to, error))?;
    let open = source.open_sagas().map_err(|error| named(from, error))?;
    if open > 0 {
        let error = format!(
            "{open} sagas are open; start a Ringway on this store until they have ended, or resolve those that are \
             stuck: `ringway sagas` lists them"
        );
        return Err(named(from, error));
    }
    let all = source.count().map_err(|error| named(from, error))?;
    let (mut copied, mut last, now) = (Copied::default(), None, Clock::new().now());
    loop {
        let mut page = source.read(last).map_err(|error| named(from, error))?;
        let Some(end) = page.last() else { break };
        last = Some(end.id);
        copied.read += page.len() as u64;
        for archived in &mut page {
            let event = Event::HolderDied(archived.record.token.holder);
            if let Transition::Becomes(record) = transition(Some(&archived.record), event, now) {
                archived.record = record;
                copied.unknown += 1;
            }
        }
        copied.added += target.write(&page).map_err(|error| named(to, error))?;
        progress(copied.read, all.max(copied.read));
    }
    let mut last = None;
    loop {
        let page = source.read_sagas(last).map_err(|error| named(from, error))?;
        let Some(end) = page.last() else { break };
        last = Some(end.id);
        target.write_sagas(&page).map_err(|error| named(to, error))?;
    }
    target.finish().map(|()| copied).map_err(|error| named(to, error))
}

fn archive(kind: &Kind, is_target: bool) -> Result<Box<dyn Archive>, String> {
    match kind {
        Kind::Memory => Err("it forgets when its process ends: there is nothing to copy".to_owned()),
        Kind::Sqlite(path) => super::sqlite::archive(path, is_target),
        #[cfg(feature = "postgres")]
        Kind::Postgres(settings) => super::postgres::archive(settings, is_target),
        #[cfg(feature = "redis")]
        Kind::Redis(settings) => super::redis::archive(settings, is_target),
    }
}
