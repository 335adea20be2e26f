//! A store behind a network: the adapter between the store's trait and an [`Engine`].
//!
//! A thread with a runtime of its own drives two queues, each with a connection and a bound: one for calls that write,
//! one for look-ups. Waiting calls are carried out together. A queue connects when it begins, and again whenever its
//! connection breaks or is silent; calls that were never sent fail at once while the store is known to be away, and
//! calls of unknown fate are sent again until their timeout.

mod call;
mod identity_file;
mod lane;

pub(super) use crate::io::silence::{SILENCE, silence_for};
pub(super) use call::{Call, Pending};
pub(super) use identity_file::{IdentityFile, Known};

use super::identity::Id;
use super::record::{Holder, Token};
use super::saga::{Append, Appended, SagaQuery, SagaRow, Seen};
use super::store::{
    Authorised, ClaimReply, Completion, Done, Found, Listed, NewClaim, Release, Store, StoreError, Tended, no_sagas,
};
use lane::Lane;
use parking_lot::Mutex;
use std::any::Any;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};

/// The most calls in a queue; further ones fail at once.
const QUEUE: usize = 8192;
/// The most calls that are carried out together.
pub(super) const BATCH: usize = 512;
/// The most bytes of results that are carried out together.
const BATCH_BYTES: usize = 8 << 20;
/// Between two attempts to connect; for as long a call waits for a connection that has never failed.
pub(super) const ATTEMPT: Duration = Duration::from_millis(250);

/// The promise while the store cannot be written, in a sentence.
pub(super) const WITHOUT_WRITES: &str = "While no server takes writes, new keys are refused (CP) or forwarded unprotected \
    (AP), as the route's `on_store_failure` says; stored results are replayed where a server can be read.";

/// The use of a queue's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// It must reach a server that takes writes.
    Writing,
    /// It should reach the server that accepts writes, or else any that can be read.
    Reading,
}

/// The protocol of a remote store. Both queues share it, on one thread.
pub(super) trait Engine: 'static {
    /// The place of the store, and the secrets to reach it.
    type Settings: Clone + Send + Sync + 'static;
    type Connection: 'static;
    /// It carries out the calls of sagas.
    const KEEPS_SAGAS: bool = false;
    /// A look-up takes it less than a claim that finds a result.
    const PREFERS_LOOK_UPS: bool = false;

    /// Connects, and makes sure that it is the right store.
    ///
    /// # Errors
    /// A sentence for operators.
    async fn connect(&self, settings: &Self::Settings, what_for: Use) -> Result<Self::Connection, String>;

    /// Carries out calls, and removes those that it has answered. The others are sent again. The connection is replaced
    /// after an error, which is a sentence for operators.
    async fn carry_out(&self, connection: &mut Self::Connection, calls: &mut Vec<Pending>) -> Result<(), String>;

    /// Returns why new claims are refused on a connection that works, in a sentence for operators.
    fn refusal(&self, _connection: &Self::Connection) -> Option<String> {
        None
    }

    /// Returns when the connection has ended by itself.
    async fn closed(&self, connection: &Self::Connection);
}

/// The state of a store: whether it confirms calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum State {
    /// No attempt to connect has ended yet.
    #[default]
    Unknown,
    Up,
    Down,
}

/// The state of a remote store, for all threads.
#[derive(Default)]
pub(super) struct Status {
    state: Mutex<State>,
    count: AtomicU64,
    promise: Mutex<Vec<String>>,
}

impl Status {
    pub(super) fn is_up(&self) -> bool {
        *self.state.lock() == State::Up
    }

    /// Sets the state. Returns the one before.
    fn set(&self, state: State) -> State {
        std::mem::replace(&mut *self.state.lock(), state)
    }

    /// Notes the guarantees of the engine's settings, in sentences.
    pub(super) fn promises(&self, sentences: Vec<String>) {
        *self.promise.lock() = sentences;
    }

    pub(super) fn promise(&self) -> Vec<String> {
        self.promise.lock().clone()
    }

    /// Notes the approximate number of records.
    pub(super) fn counted(&self, records: u64) {
        self.count.store(records, Ordering::Relaxed);
    }
}

/// A store behind a network.
pub(super) struct Remote<S> {
    holder: Holder,
    writes: mpsc::Sender<Pending>,
    reads: mpsc::Sender<Pending>,
    settings: watch::Sender<S>,
    status: Arc<Status>,
    keeps_sagas: bool,
    prefers_look_ups: bool,
}

/// Returns the name of this process for operators: its host and process id.
pub(super) fn holder_name() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{host}/{}", std::process::id())
}

/// Runs a future on a runtime of its own.
pub(super) fn alone<T>(future: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let runtime = |error: io::Error| error.to_string();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(runtime)?;
    tokio::task::LocalSet::new().block_on(&runtime, future)
}

impl<S: Clone + Send + Sync + 'static> Remote<S> {
    /// Starts the thread of a store, which connects by itself.
    ///
    /// # Errors
    /// No thread can be started.
    pub(super) fn start<E: Engine<Settings = S>>(
        name: &'static str,
        holder: Holder,
        settings: S,
        engine: impl FnOnce(Arc<Status>) -> E + Send + 'static,
    ) -> io::Result<Remote<S>> {
        let (writes, written) = mpsc::channel(QUEUE);
        let (reads, read) = mpsc::channel(QUEUE);
        let (settings, asked) = watch::channel(settings);
        let status = Arc::new(Status::default());
        let told = Arc::clone(&status);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name(format!("store-{name}")).spawn(move || {
            let engine = engine(Arc::clone(&told));
            let lane = |what_for, queue| Lane {
                name,
                engine: &engine,
                what_for,
                queue,
                settings: asked.clone(),
                status: Arc::clone(&told),
            };
            let lanes = tokio::task::LocalSet::new();
            lanes.block_on(&runtime, async {
                tokio::join!(lane(Use::Writing, written).run(), lane(Use::Reading, read).run())
            });
        })?;
        let (keeps_sagas, prefers_look_ups) = (E::KEEPS_SAGAS, E::PREFERS_LOOK_UPS);
        Ok(Remote { holder, writes, reads, settings, status, keeps_sagas, prefers_look_ups })
    }

    fn submit(&self, call: Call) {
        let queue = if call.only_reads() { &self.reads } else { &self.writes };
        match queue.try_send(Pending::new(call)) {
            Ok(()) => {}
            Err(TrySendError::Full(pending)) => pending.call.fail(StoreError::Overloaded),
            Err(TrySendError::Closed(pending)) => pending.call.fail(StoreError::Ended),
        }
    }
}

impl<S: Clone + Send + Sync + 'static> Store for Remote<S> {
    fn holder(&self) -> Holder {
        self.holder
    }

    fn claim(&self, claim: NewClaim, done: Done<ClaimReply>) {
        if claim.saga.is_some() && !self.keeps_sagas {
            return done(Err(no_sagas()));
        }
        self.submit(Call::Claim(claim, done));
    }

    fn complete(&self, completion: Completion, done: Done<bool>) {
        self.submit(Call::Complete(completion, done));
    }

    fn release(&self, release: Release, done: Done<bool>) {
        self.submit(Call::Release(release, done));
    }

    fn authorise(&self, id: Id, done: Done<Authorised>) {
        self.submit(Call::Authorise(id, done));
    }

    fn beat(&self, done: Done<()>) {
        self.submit(Call::Beat(done));
    }

    fn tend(&self, done: Done<Tended>) {
        self.submit(Call::Tend(done));
    }

    fn running(&self, done: Done<Vec<(Id, Token)>>) {
        self.submit(Call::Running(done));
    }

    fn look_up(&self, id: Id, done: Done<Option<Found>>) {
        self.submit(Call::LookUp(id, done));
    }

    fn find(&self, key: String, done: Done<Vec<Listed>>) {
        self.submit(Call::Find(key, done));
    }

    fn append(&self, append: Append, done: Done<Option<Appended>>) {
        if !self.keeps_sagas {
            return done(Err(no_sagas()));
        }
        self.submit(Call::Append(append, done));
    }

    fn take_over(&self, seen: Seen, done: Done<Option<SagaRow>>) {
        if !self.keeps_sagas {
            return done(Err(no_sagas()));
        }
        self.submit(Call::TakeOver(seen, done));
    }

    fn sagas(&self, query: SagaQuery, done: Done<Vec<SagaRow>>) {
        if !self.keeps_sagas {
            return done(Err(no_sagas()));
        }
        self.submit(Call::Sagas(query, done));
    }

    fn keeps_sagas(&self) -> bool {
        self.keeps_sagas
    }

    fn prefers_look_ups(&self) -> bool {
        self.prefers_look_ups
    }

    fn count(&self) -> Option<u64> {
        self.status.is_up().then(|| self.status.count.load(Ordering::Relaxed))
    }

    fn is_up(&self) -> Option<bool> {
        Some(self.status.is_up())
    }

    fn promise(&self) -> Vec<String> {
        self.status.promise()
    }

    fn reconfigure(&self, settings: &(dyn Any + Send + Sync)) {
        if let Some(settings) = settings.downcast_ref::<S>() {
            self.settings.send_replace(settings.clone());
        }
    }

    fn tend_interval(&self) -> Duration {
        Duration::from_secs(5)
    }
}
