//! A store in one SQLite file, shared by the processes of a machine.
//!
//! One thread writes: waiting calls share one commit, and so one sync of the disk. Another thread reads. A connection
//! with an error is closed and opened again, so that the store recovers when the disk does.

mod archive;
mod beats;
mod columns;
mod file;
mod holders;
mod lane;
mod rows;
mod sagas;

pub(super) use archive::{archive, inspect};
pub(crate) use file::FileError;

use super::clock::Clock;
use super::identity::Id;
use super::record::{Holder, Token};
use super::saga::{Append, Appended, SagaQuery, SagaRow, Seen};
use super::store::{Authorised, ClaimReply, Completion, Done, Found, Listed, NewClaim, Release, Store, Tended};
use crate::clock::BootTime;
use file::{Sides, StoreFile, Use};
use holders::Holders;
use lane::{Carrier, Job, JobFailure, Lane};
use rusqlite::Connection;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// A store in a file.
pub(crate) struct Sqlite {
    holder: Holder,
    clock: Arc<Clock>,
    writer: Lane<Desk>,
    reader: Lane<Connection>,
    count: Arc<AtomicU64>,
}

/// The state of the writing thread.
struct Desk {
    connection: Connection,
    clock: Arc<Clock>,
    holders: Holders,
    /// Records added, less those removed, since the last commit.
    added: i64,
    last_beat: Option<Instant>,
}

impl Sqlite {
    /// Opens or creates the file, and ends the claims of dead processes.
    pub(crate) fn open(path: &Path, holder: Holder, clock: Clock) -> Result<Sqlite, FileError> {
        let clock = Arc::new(clock);
        let file = StoreFile::prepare(path)?;
        let holders = Holders::enter(&file.path, holder)?;
        let connection = file.connect(Use::Writing)?;
        let mut desk = Desk { connection, clock: Arc::clone(&clock), holders, added: 0, last_beat: None };
        desk.connection.execute_batch("BEGIN IMMEDIATE")?;
        rows::enter(&desk.connection, holder)?;
        let now = clock.now();
        rows::bury_the_dead(&mut desk, now)?;
        desk.connection.execute_batch("COMMIT")?;
        let count = Arc::new(AtomicU64::new(rows::extent(&desk.connection)?));
        let reader = Reader { file: file.clone(), connection: Some(file.connect(Use::Reading)?) };
        let (sides, count_there) = (file.sides()?, Arc::clone(&count));
        let writer = Writer { file, sides, desk, reconnect: false, is_out: false, count: count_there };
        Ok(Sqlite {
            holder,
            clock,
            writer: Lane::start("idempotency-writer", writer)?,
            reader: Lane::start("idempotency-reader", reader)?,
            count,
        })
    }
}

impl Store for Sqlite {
    fn holder(&self) -> Holder {
        self.holder
    }

    fn claim(&self, claim: NewClaim, done: Done<ClaimReply>) {
        let sent = BootTime::now();
        let reply = move |made: Result<(_, _), _>| {
            made.map(|(claimed, began)| ClaimReply { claimed, sent, is_resent: false, began })
        };
        self.writer.submit_then(move |desk| rows::claim(desk, &claim), reply, done);
    }

    fn complete(&self, completion: Completion, done: Done<bool>) {
        self.writer.submit(move |desk| rows::complete(desk, &completion), done);
    }

    fn release(&self, release: Release, done: Done<bool>) {
        self.writer.submit(move |desk| rows::release(desk, &release), done);
    }

    fn authorise(&self, id: Id, done: Done<Authorised>) {
        self.writer.submit(move |desk| rows::authorise(desk, id), done);
    }

    fn beat(&self, done: Done<()>) {
        self.writer.submit(beats::beat, done);
    }

    fn tend(&self, done: Done<Tended>) {
        self.clock.follow();
        let count = Arc::clone(&self.count);
        let tend = move |desk: &mut Desk| {
            // Others may have added some.
            count.store(rows::extent(&desk.connection)?, Ordering::Relaxed);
            rows::tend(desk)
        };
        self.writer.submit(tend, done);
    }

    fn running(&self, done: Done<Vec<(Id, Token)>>) {
        self.writer.submit(rows::running, done);
    }

    fn look_up(&self, id: Id, done: Done<Option<Found>>) {
        let now = self.clock.now();
        self.reader.submit(move |connection| rows::look_up(connection, id, now), done);
    }

    fn find(&self, key: String, done: Done<Vec<Listed>>) {
        let now = self.clock.now();
        self.reader.submit(move |connection| rows::find(connection, &key, now), done);
    }

    fn append(&self, append: Append, done: Done<Option<Appended>>) {
        let sent = BootTime::now();
        let reply = move |now: Option<_>| Ok(now.map(|now| Appended { now, sent }));
        self.writer.submit_then(move |desk| sagas::append(desk, &append), reply, done);
    }

    fn take_over(&self, seen: Seen, done: Done<Option<SagaRow>>) {
        self.writer.submit(move |desk| sagas::take_over(desk, seen), done);
    }

    fn sagas(&self, query: SagaQuery, done: Done<Vec<SagaRow>>) {
        match query {
            SagaQuery::Orphaned => self.writer.submit(sagas::orphaned, done),
            query => {
                let (own, now) = (self.holder, self.clock.now());
                self.reader.submit(move |connection| sagas::find(connection, own, query, now), done);
            }
        }
    }

    fn keeps_sagas(&self) -> bool {
        true
    }

    fn count(&self) -> Option<u64> {
        Some(self.count.load(Ordering::Relaxed))
    }
}

struct Writer {
    file: StoreFile,
    /// The files beside it when it was opened, which stay for as long as this process has it open.
    sides: Sides,
    desk: Desk,
    /// The connection must be replaced.
    reconnect: bool,
    /// The failure of the store has been logged.
    is_out: bool,
    count: Arc<AtomicU64>,
}

impl Carrier for Writer {
    type Db = Desk;
    const GATHERS: bool = true;

    fn carry_out(&mut self, jobs: &mut [Box<dyn Job<Desk>>]) -> Result<(), JobFailure> {
        let committed = self.prepare(jobs).and_then(|count| self.commit(count).map_err(JobFailure::torn));
        if committed.is_err() {
            // A pending transaction must not block others.
            let _ = self.desk.connection.execute_batch("ROLLBACK");
            self.desk.last_beat = None;
        }
        match (&committed, self.is_out) {
            (Err(JobFailure { error, is_of_one: true }), _) => {
                tracing::error!(%error, path = %self.file.path.display(), "a call to the idempotency store failed");
            }
            (Ok(()), true) => tracing::info!(path = %self.file.path.display(), "the idempotency store works again"),
            (Err(JobFailure { error, .. }), false) => {
                tracing::error!(%error, path = %self.file.path.display(), "the idempotency store is out of order");
            }
            _ => {}
        }
        self.reconnect = committed.is_err();
        self.is_out = committed.as_ref().is_err_and(|failure| !failure.is_of_one);
        committed
    }
}

impl Writer {
    /// Does everything but make it durable; gives how many records there are then, if that changes.
    fn prepare(&mut self, jobs: &mut [Box<dyn Job<Desk>>]) -> Result<Option<u64>, JobFailure> {
        self.begin().map_err(JobFailure::of_all)?;
        for job in jobs {
            job.run(&mut self.desk).map_err(JobFailure::of_one)?;
        }
        match self.desk.added {
            0 => Ok(None),
            added => rows::extend(&self.desk.connection, added).map(Some).map_err(JobFailure::of_all),
        }
    }

    fn begin(&mut self) -> Result<(), FileError> {
        self.file.check()?;
        if self.file.sides()? != self.sides {
            // A write now would be lost with the removed file.
            return Err(FileError::Replaced);
        }
        if self.reconnect {
            self.desk.connection = self.file.connect(Use::Writing)?;
        }
        self.desk.added = 0;
        self.desk.connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        Ok(())
    }

    fn commit(&mut self, count: Option<u64>) -> Result<(), FileError> {
        self.desk.connection.prepare_cached("COMMIT")?.execute([])?;
        if let Some(count) = count {
            self.count.store(count, Ordering::Relaxed);
        }
        Ok(())
    }
}

struct Reader {
    file: StoreFile,
    connection: Option<Connection>,
}

impl Carrier for Reader {
    type Db = Connection;
    const GATHERS: bool = false;

    fn carry_out(&mut self, jobs: &mut [Box<dyn Job<Connection>>]) -> Result<(), JobFailure> {
        let read = self.read(jobs);
        if read.is_err() {
            self.connection = None;
        }
        read
    }
}

impl Reader {
    fn read(&mut self, jobs: &mut [Box<dyn Job<Connection>>]) -> Result<(), JobFailure> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(self.file.connect(Use::Reading).map_err(JobFailure::of_all)?),
        };
        jobs.iter_mut().try_for_each(|job| job.run(connection)).map_err(JobFailure::of_one)
    }
}
