//! A thread with a connection, and its bounded queue. Waiting calls are carried out together.

use crate::idempotency::store::{Done, StoreError};
use std::fmt;
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Calls that may wait; further ones fail at once.
const QUEUE: usize = 8192;

/// The most that is carried out together.
const BATCH: usize = 512;

/// If the last commit had this many calls, the next one waits briefly for further calls.
const CROWD: usize = 4;
const MOMENT: Duration = Duration::from_micros(300);

/// A call, with its caller.
pub(super) trait Job<D>: Send {
    /// Does it; the result is kept until all is durable.
    fn run(&mut self, db: &mut D) -> rusqlite::Result<()>;
    /// Returns the result to the caller.
    fn settle(self: Box<Self>, outcome: Result<(), StoreError>);
}

struct Call<T, U, F, G> {
    work: F,
    /// Makes the answer of the result.
    finish: G,
    result: Option<T>,
    done: Done<U>,
}

impl<D, T, U, F, G> Job<D> for Call<T, U, F, G>
where
    T: Send,
    F: FnMut(&mut D) -> rusqlite::Result<T> + Send,
    G: FnOnce(T) -> Result<U, StoreError> + Send,
{
    fn run(&mut self, db: &mut D) -> rusqlite::Result<()> {
        self.result = Some((self.work)(db)?);
        Ok(())
    }

    fn settle(self: Box<Self>, outcome: Result<(), StoreError>) {
        let Call { result, finish, done, .. } = *self;
        done(outcome.and_then(|()| result.ok_or(StoreError::Ended)).and_then(finish));
    }
}

/// The worker of a queue: it carries out all waiting calls, or none.
pub(super) trait Carrier: Send + 'static {
    type Db;
    /// With many calls it waits for more: one commit is for all of them.
    const GATHERS: bool;
    fn carry_out(&mut self, jobs: &mut [Box<dyn Job<Self::Db>>]) -> Result<(), JobFailure>;
}

/// Why nothing was carried out.
pub(super) struct JobFailure {
    pub(super) error: StoreError,
    /// The failure concerns a single call.
    pub(super) is_of_one: bool,
}

impl JobFailure {
    pub(super) fn of_all(error: impl fmt::Display) -> JobFailure {
        JobFailure { error: StoreError::Failed(error.to_string()), is_of_one: false }
    }

    pub(super) fn of_one(error: impl fmt::Display) -> JobFailure {
        JobFailure { is_of_one: true, ..JobFailure::of_all(error) }
    }

    /// All may be there, or nothing.
    pub(super) fn torn(error: impl fmt::Display) -> JobFailure {
        JobFailure { error: StoreError::Torn(error.to_string()), is_of_one: false }
    }
}

/// The sending side. Dropped, it waits until the last call is carried out.
pub(super) struct Lane<D> {
    queue: Option<SyncSender<Box<dyn Job<D>>>>,
    thread: Option<JoinHandle<()>>,
}

impl<D: 'static> Lane<D> {
    pub(super) fn start(name: &str, carrier: impl Carrier<Db = D>) -> io::Result<Lane<D>> {
        let (queue, jobs) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || work(carrier, &jobs))?;
        Ok(Lane { queue: Some(queue), thread: Some(thread) })
    }

    /// Queues a call. It may be run a second time, where the first was undone: it takes effect once, or not
    /// at all.
    pub(super) fn submit<T: Send + 'static>(
        &self,
        work: impl FnMut(&mut D) -> rusqlite::Result<T> + Send + 'static,
        done: Done<T>,
    ) {
        self.submit_then(work, Ok, done);
    }

    /// Queues a call whose answer is made of its result.
    pub(super) fn submit_then<T: Send + 'static, U: 'static>(
        &self,
        work: impl FnMut(&mut D) -> rusqlite::Result<T> + Send + 'static,
        finish: impl FnOnce(T) -> Result<U, StoreError> + Send + 'static,
        done: Done<U>,
    ) {
        let Some(queue) = &self.queue else { return done(Err(StoreError::Ended)) };
        match queue.try_send(Box::new(Call { work, finish, result: None, done })) {
            Ok(()) => {}
            Err(TrySendError::Full(job)) => job.settle(Err(StoreError::Overloaded)),
            Err(TrySendError::Disconnected(job)) => job.settle(Err(StoreError::Ended)),
        }
    }
}

impl<D> Drop for Lane<D> {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
            && thread.join().is_err()
        {
            tracing::error!("a thread of the idempotency store ended in a panic");
        }
    }
}

fn work<C: Carrier>(mut carrier: C, jobs: &Receiver<Box<dyn Job<C::Db>>>) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut before = 0;
    while let Ok(first) = jobs.recv() {
        batch.push(first);
        batch.extend(jobs.try_iter().take(BATCH - 1));
        if C::GATHERS && before >= CROWD {
            std::thread::sleep(MOMENT);
            batch.extend(jobs.try_iter().take(BATCH - batch.len()));
        }
        before = batch.len();
        match carrier.carry_out(&mut batch) {
            // A row that cannot be read must not fail the other calls.
            Err(JobFailure { is_of_one: true, .. }) if batch.len() > 1 => {
                let mut all = Ok(());
                for mut job in batch.drain(..) {
                    let outcome = match &all {
                        Ok(()) => carrier.carry_out(std::slice::from_mut(&mut job)),
                        Err(error) => Err(JobFailure { error: StoreError::clone(error), is_of_one: false }),
                    };
                    if let Err(JobFailure { error, is_of_one: false }) = &outcome {
                        all = Err(error.clone());
                    }
                    job.settle(outcome.map_err(|failure| failure.error));
                }
            }
            outcome => {
                let outcome = outcome.map_err(|failure| failure.error);
                batch.drain(..).for_each(|job| job.settle(outcome.clone()));
            }
        }
    }
}
