//! What a process knows of its store, and of its own claims: none is ever forgotten while it is open,
//! whatever becomes of the task that holds it.

use super::clock::{Clock, millis};
use super::identity::Id;
use super::memory::{self, Memory};
use super::record::{Finish, Millis, Record, State, Token};
use super::sqlite::{OpenError, Sqlite};
use super::store::{Authorised, Completion, Found, Listed, Store, StoreError, Tended};
use prometheus::{Histogram, HistogramVec};
use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot};

/// The time that a call to the store may take before it is given up.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// The period at which waiting requests look for results of other processes.
const POLL: Duration = Duration::from_millis(250);
/// Between two rounds of upkeep.
const ROUND: Duration = Duration::from_millis(500);
const SHORTEST_ROUND: Duration = Duration::from_millis(20);
/// Claims that the store owes an end to; beyond that, new ones are refused.
pub(super) const MAX_UNSETTLED: usize = 10_000;
/// The number of them that are tried again in a round.
const SETTLED_A_ROUND: usize = 1000;

/// Which store.
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

/// The records, as one process sees them.
pub(crate) struct Records {
    pub(crate) kind: Kind,
    pub(super) store: Box<dyn Store>,
    pub(super) clock: Clock,
    pub(super) durations: Durations,
    /// The number of the last claim.
    pub(super) last: AtomicU64,
    /// Claims that are open here.
    open: AtomicU64,
    /// In milliseconds.
    shortest_lease: AtomicU64,
    /// The requests that wait for the end of a run.
    waiting: Mutex<HashMap<Id, Waiting>>,
    /// Claims whose end the store has not taken.
    pub(super) unsettled: Mutex<HashMap<Token, Unsettled>>,
}

#[derive(Default)]
struct Waiting {
    waiters: usize,
    ended: Arc<Notify>,
}

/// A claim that is not open any more, and of whose end the store has not heard.
#[derive(Clone, Copy)]
pub(super) struct Unsettled {
    pub(super) id: Id,
    pub(super) end: Abandoned,
    pub(super) ttl: Duration,
    /// When it was claimed.
    pub(super) entered: Millis,
    /// The store was told, and has not answered yet.
    pub(super) is_told: bool,
}

/// The end of a claim whose run said nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Abandoned {
    /// Nothing was sent.
    Free,
    /// It may have run.
    Unknown,
}

/// The durations of the store's calls, by kind.
pub(super) struct Durations {
    pub(super) claim: Histogram,
    complete: Histogram,
    release: Histogram,
    look_up: Histogram,
    find: Histogram,
    authorise: Histogram,
    beat: Histogram,
    tend: Histogram,
}

impl Durations {
    fn of(family: &HistogramVec) -> Durations {
        let op = |name| family.with_label_values(&[name]);
        Durations {
            claim: op("claim"),
            complete: op("complete"),
            release: op("release"),
            look_up: op("look_up"),
            find: op("find"),
            authorise: op("authorise"),
            beat: op("beat"),
            tend: op("expire"),
        }
    }
}

impl Records {
    /// Opens the store.
    pub(crate) fn open(kind: Kind, durations: &HistogramVec) -> Result<Arc<Records>, OpenError> {
        let holder = getrandom::u64().map_err(std::io::Error::other)?;
        let clock = Clock::new();
        let store: Box<dyn Store> = match &kind {
            Kind::Sqlite(path) => Box::new(Sqlite::open(path, holder, clock.now())?),
            Kind::Memory => Box::new(Memory::new(holder, memory::MAX_BYTES)),
        };
        Ok(Arc::new(Records {
            kind,
            store,
            clock,
            durations: Durations::of(durations),
            last: AtomicU64::new(0),
            open: AtomicU64::new(0),
            shortest_lease: AtomicU64::new(millis(ROUND) * 3),
            waiting: Mutex::default(),
            unsettled: Mutex::default(),
        }))
    }

    #[cfg(test)]
    pub(super) fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// Returns whether the store has heard how every claim ended that is not open any more.
    pub(crate) fn is_settled(&self) -> bool {
        locked(&self.unsettled).is_empty()
    }

    /// Returns how many records there are.
    pub(crate) fn count(&self) -> u64 {
        self.store.count()
    }

    /// What the store cannot know yet: that a run here has ended without a result.
    pub(super) fn correct(&self, record: &mut Record) {
        if record.state == State::Running
            && record.token.holder == self.store.holder()
            && let Some(unsettled) = locked(&self.unsettled).get(&record.token)
            && unsettled.end == Abandoned::Unknown
        {
            record.state = State::Unknown;
        }
    }

    pub(super) async fn look_up(&self, id: Id) -> Result<Option<Found>, StoreError> {
        let mut found = ask(&self.durations.look_up, PATIENCE, |done| self.store.look_up(id, done)).await?;
        if let Some(found) = &mut found {
            self.correct(&mut found.record);
        }
        Ok(found)
    }

    /// Waits until a run has ended, at most until a deadline; gives whether it has.
    pub(crate) async fn wait(&self, id: Id, deadline: Instant) -> bool {
        let waiter = Waiter::enter(self, id);
        loop {
            // Heard from here on; what ended before is what the look-up sees.
            let ended = waiter.ended.notified();
            match self.look_up(id).await {
                Ok(Some(found)) if found.record.state == State::Running => {}
                Ok(_) => return true,
                // It may answer later.
                Err(_) => {}
            }
            let now = Instant::now();
            if now >= deadline {
                return false;
            }
            // Nobody tells of what another process does.
            let _ = tokio::time::timeout_at((now + POLL).min(deadline).into(), ended).await;
        }
    }

    /// Returns all records with a key.
    pub(crate) async fn find(&self, key: &str) -> Result<Vec<Listed>, StoreError> {
        let mut listed = ask(&self.durations.find, PATIENCE, |done| self.store.find(key.to_owned(), done)).await?;
        listed.iter_mut().for_each(|listed| self.correct(&mut listed.record));
        Ok(listed)
    }

    /// Removes a record that has ended, so that the next request runs.
    pub(crate) async fn authorise(&self, id: Id) -> Result<Authorised, StoreError> {
        ask(&self.durations.authorise, PATIENCE, |done| self.store.authorise(id, self.clock.now(), done)).await
    }

    /// Seconds from when a record was claimed until now.
    pub(crate) fn age(&self, listed: &Listed) -> f64 {
        self.clock.now().saturating_sub(listed.record.created) as f64 / 1000.0
    }

    /// Seconds until a record may go.
    pub(crate) fn remaining(&self, listed: &Listed) -> f64 {
        listed.record.expires.saturating_sub(self.clock.now()) as f64 / 1000.0
    }

    /// Shows that this process lives, ends what is left over, and forgets what has expired; for as long
    /// as the process lives.
    pub(crate) async fn keep(self: Arc<Self>) {
        tokio::join!(self.keep_alive(), self.keep_tidy());
    }

    async fn keep_alive(self: &Arc<Self>) {
        let mut last_beat = Instant::now();
        loop {
            let lease = Duration::from_millis(self.shortest_lease.load(Ordering::Relaxed));
            tokio::time::sleep((lease / 6).clamp(SHORTEST_ROUND, ROUND)).await;
            if self.open.load(Ordering::Relaxed) > 0 && last_beat.elapsed() >= lease / 3 {
                last_beat = Instant::now();
                // The writing thread has told of what is wrong with the store.
                let _ = ask(&self.durations.beat, PATIENCE, |done| self.store.beat(done)).await;
            }
            self.settle_what_is_left();
        }
    }

    async fn keep_tidy(&self) {
        loop {
            self.clock.follow();
            let tended = ask(&self.durations.tend, PATIENCE, |done| self.store.tend(self.clock.now(), done)).await;
            if !matches!(tended, Ok(Tended { more: true, .. })) {
                tokio::time::sleep(ROUND).await;
            }
        }
    }

    fn settle_what_is_left(self: &Arc<Self>) {
        let left: Vec<(Token, Unsettled)> = {
            let unsettled = locked(&self.unsettled);
            let untold = unsettled.iter().filter(|(_, unsettled)| !unsettled.is_told);
            untold.take(SETTLED_A_ROUND).map(|(token, unsettled)| (*token, *unsettled)).collect()
        };
        for (token, unsettled) in left {
            self.abandon(token, unsettled);
        }
    }

    /// Tells the store how a claim ended of which nobody will say more; not done until the store has
    /// heard of it.
    pub(super) fn abandon(self: &Arc<Self>, token: Token, unsettled: Unsettled) {
        let Unsettled { id, end, ttl, entered, .. } = unsettled;
        // Known here from now on, and to the store as soon as it hears of it.
        locked(&self.unsettled).insert(token, Unsettled { is_told: true, ..unsettled });
        let records = Arc::clone(self);
        let heard = Box::new(move |result: Result<bool, StoreError>| {
            let mut left = locked(&records.unsettled);
            match result {
                Ok(_) => drop(left.remove(&token)),
                Err(_) => drop(left.insert(token, Unsettled { is_told: false, ..unsettled })),
            }
            drop(left);
            records.tell(id);
        });
        match end {
            Abandoned::Free => self.store.release(id, token, heard),
            Abandoned::Unknown => {
                let (finish, expires) = (Finish::Unknown, self.clock.later_expiry(ttl, entered));
                self.store.complete(Completion { id, token, finish, response: None, expires }, heard);
            }
        }
    }

    /// There is a claim that this process works on. Gives when it was entered.
    pub(super) fn opened(&self, lease: Duration) -> Millis {
        self.open.fetch_add(1, Ordering::Relaxed);
        self.shortest_lease.fetch_min(millis(lease), Ordering::Relaxed);
        self.clock.latest()
    }

    /// It does not any more.
    pub(super) fn closed(&self, id: Id) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        self.tell(id);
    }

    pub(super) async fn release(&self, id: Id, token: Token, patience: Duration) -> Result<bool, StoreError> {
        ask(&self.durations.release, patience, |done| self.store.release(id, token, done)).await
    }

    pub(super) async fn complete(&self, completion: Completion, patience: Duration) -> Result<bool, StoreError> {
        ask(&self.durations.complete, patience, |done| self.store.complete(completion, done)).await
    }

    /// When a claim's record may go, if that is later than was thought.
    pub(super) fn later_expiry(&self, ttl: Duration, entered: Millis) -> Option<Millis> {
        self.clock.later_expiry(ttl, entered)
    }

    /// Wakes who waits for the end of a run.
    fn tell(&self, id: Id) {
        if let Some(waiting) = locked(&self.waiting).get(&id) {
            waiting.ended.notify_waiters();
        }
    }
}

/// Calls the store and waits for what it says.
pub(super) async fn ask<T: Send + 'static>(
    duration: &Histogram,
    patience: Duration,
    call: impl FnOnce(Box<dyn FnOnce(Result<T, StoreError>) + Send>),
) -> Result<T, StoreError> {
    let began = Instant::now();
    let (tell, told) = oneshot::channel();
    // Nobody may be there to hear it any more.
    call(Box::new(move |result| drop(tell.send(result))));
    let told = tokio::time::timeout(patience, told).await;
    duration.observe(began.elapsed().as_secs_f64());
    told.map_err(|_| StoreError::TooSlow)?.map_err(|_| StoreError::Ended)?
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One who waits for the end of a run.
struct Waiter<'a> {
    records: &'a Records,
    id: Id,
    ended: Arc<Notify>,
}

impl<'a> Waiter<'a> {
    fn enter(records: &'a Records, id: Id) -> Waiter<'a> {
        let mut waiting = locked(&records.waiting);
        let entry = waiting.entry(id).or_default();
        entry.waiters += 1;
        Waiter { records, id, ended: Arc::clone(&entry.ended) }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut waiting = locked(&self.records.waiting);
        if let Some(entry) = waiting.get_mut(&self.id) {
            entry.waiters -= 1;
            if entry.waiters == 0 {
                waiting.remove(&self.id);
            }
        }
    }
}
