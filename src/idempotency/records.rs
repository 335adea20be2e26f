//! The records of the store, as one process uses them, and its own claims, which are kept while they are open, whatever
//! happens to their tasks.

use super::clock::millis;
use super::ended::EndedKeys;
use super::identity::Id;
use super::open_claims::{Abandoned, OpenClaims, Unsettled};
use super::open_sagas::OpenSagas;
use super::record::{Finish, Record, ReleaseWay, State, Token};
use super::store::{Authorised, Completion, Found, Listed, Release, Store, StoreError, Tended};
use super::stores::{self, Kind, OpenError};
use super::unknowns::Unknowns;
use crate::control::{Event, Events};
use parking_lot::Mutex;
use prometheus::{Histogram, HistogramVec};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot};

/// The timeout of a call to the store.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// The interval at which waiting requests look up results of other processes.
const POLL: Duration = Duration::from_millis(250);
/// Before a claim is sent again whose record was not found.
const BREATH: Duration = Duration::from_millis(20);
/// Between two rounds of upkeep.
const ROUND: Duration = Duration::from_millis(500);
const SHORTEST_ROUND: Duration = Duration::from_millis(20);
/// The interval of searches for running records without a task.
const SEARCH: Duration = Duration::from_secs(5);
/// The time for which such a record is kept: the default of a route.
const LOST_TTL: Duration = Duration::from_secs(24 * 3600);

/// The records, for one process.
pub(crate) struct Records {
    pub(crate) kind: Kind,
    pub(super) store: Box<dyn Store>,
    pub(super) calls: Calls,
    writing: Arc<Writing>,
    /// The number of the last claim.
    pub(super) last: AtomicU64,
    /// In milliseconds.
    shortest_lease: AtomicU64,
    /// The requests that wait for the end of a run.
    waiting: Mutex<HashMap<Id, Waiting>>,
    pub(super) claims: OpenClaims,
    pub(super) sagas: OpenSagas,
    pub(super) unknowns: Unknowns,
    pub(super) ended: EndedKeys,
}

#[derive(Default)]
struct Waiting {
    waiters: usize,
    ended: Arc<Notify>,
}

/// The kinds of calls of the store.
pub(super) struct Calls {
    pub(super) claim: Call,
    complete: Call,
    release: Call,
    look_up: Call,
    find: Call,
    authorise: Call,
    beat: Call,
    tend: Call,
    pub(super) append: Call,
    pub(super) sagas: Call,
}

/// One kind of call.
pub(super) struct Call {
    /// The duration, in both metrics that tell it.
    by_op: Histogram,
    by_store: Histogram,
    /// Present for calls that always write: others succeed while a disk is full.
    writing: Option<Arc<Writing>>,
}

/// The result of the last write, for the log and the events.
struct Writing {
    store: String,
    has_failed: AtomicBool,
    events: Arc<Events>,
}

impl Calls {
    fn of(by_op: &HistogramVec, by_store: &HistogramVec, writing: &Arc<Writing>) -> Calls {
        let reads = |name| Call {
            by_op: by_op.with_label_values(&[name]),
            by_store: by_store.with_label_values(&["idempotency", name]),
            writing: None,
        };
        let writes = |name| Call { writing: Some(Arc::clone(writing)), ..reads(name) };
        Calls {
            claim: writes("claim"),
            complete: writes("complete"),
            release: writes("release"),
            look_up: reads("look_up"),
            find: reads("find"),
            authorise: writes("authorise"),
            beat: writes("beat"),
            tend: reads("expire"),
            append: writes("append"),
            sagas: reads("sagas"),
        }
    }
}

impl Writing {
    /// Takes the result of a write; records an event where it begins or ceases to fail.
    fn note(&self, failure: Option<&StoreError>) {
        // Neither of these says anything about the store itself.
        if matches!(failure, Some(StoreError::Overloaded | StoreError::Released)) {
            return;
        }
        let has_failed = failure.is_some();
        if self.has_failed.load(Ordering::Relaxed) != has_failed
            && self.has_failed.swap(has_failed, Ordering::Relaxed) != has_failed
        {
            let error = failure.map(ToString::to_string);
            self.events.record(Event::Store { store: self.store.clone(), working: !has_failed, error });
        }
    }
}

impl Records {
    /// Opens the store.
    ///
    /// # Errors
    /// A local store is not there or not usable.
    pub(crate) fn open(
        kind: Kind,
        by_op: &HistogramVec,
        by_store: &HistogramVec,
        events: &Arc<Events>,
    ) -> Result<Arc<Records>, OpenError> {
        let has_failed = AtomicBool::new(false);
        let writing = Arc::new(Writing { store: kind.to_string(), has_failed, events: Arc::clone(events) });
        Ok(Arc::new(Records {
            store: stores::open(&kind)?,
            calls: Calls::of(by_op, by_store, &writing),
            writing,
            kind,
            last: AtomicU64::new(0),
            shortest_lease: AtomicU64::new(millis(ROUND) * 3),
            waiting: Mutex::default(),
            claims: OpenClaims::default(),
            sagas: OpenSagas::default(),
            unknowns: Unknowns::default(),
            ended: EndedKeys::default(),
        }))
    }

    #[cfg(test)]
    pub(super) fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// Returns whether writes reach the store, as far as it is known.
    pub(crate) fn is_up(&self) -> bool {
        self.store.is_up().unwrap_or_else(|| !self.writing.has_failed.load(Ordering::Relaxed))
    }

    /// Returns what can be lost and when, in sentences.
    pub(crate) fn promise(&self) -> Vec<String> {
        let found = self.store.promise();
        if found.is_empty() { stores::promise_of(&self.kind) } else { found }
    }

    /// Goes on under another configuration of the same store.
    pub(crate) fn reconfigure(&self, kind: &Kind) {
        if self.kind.may_be(kind) {
            self.store.reconfigure(kind.settings());
        }
    }

    /// Returns whether the store has recorded the end of every closed claim.
    pub(crate) fn is_settled(&self) -> bool {
        self.claims.are_settled()
    }

    /// Records an event of what the store holds.
    pub(crate) fn record(&self, event: Event) {
        self.writing.events.record(event);
    }

    /// Returns the number of records, where the store has it.
    pub(crate) fn count(&self) -> Option<u64> {
        self.store.count()
    }

    /// Makes a record unknown where a run of this process has ended without a result, and the store has not heard of
    /// it.
    pub(super) fn correct(&self, record: &mut Record) {
        if record.state == State::Running
            && record.token.holder == self.store.holder()
            && self.claims.unsettled(record.token) == Some(Abandoned::Unknown)
        {
            record.state = State::Unknown;
        }
    }

    pub(super) async fn look_up(&self, id: Id) -> Result<Option<Found>, StoreError> {
        self.look_up_within(id, PATIENCE).await
    }

    pub(super) async fn look_up_within(&self, id: Id, patience: Duration) -> Result<Option<Found>, StoreError> {
        let mut found = ask(&self.calls.look_up, patience, |done| self.store.look_up(id, done)).await?;
        if let Some(found) = &mut found {
            self.correct(&mut found.record);
        }
        Ok(found)
    }

    /// Waits until a run has ended, at most until a deadline; returns whether it has.
    pub(crate) async fn wait(&self, id: Id, deadline: Instant) -> bool {
        let waiter = Waiter::enter(self, id);
        loop {
            // Registered first: a run that ended before is found by the look-up.
            let ended = waiter.ended.notified();
            // The time left, and enough for one answer where none is.
            let left = deadline.saturating_duration_since(Instant::now()).max(POLL);
            match self.look_up_within(id, left.min(PATIENCE)).await {
                Ok(Some(found)) if found.record.is_running() => {}
                Ok(Some(_)) => return true,
                // Released, or not here yet: a standby may be behind. The claim that follows decides; it is not sent
                // all the time.
                Ok(None) => {
                    tokio::time::sleep(BREATH).await;
                    return true;
                }
                // It may answer later.
                Err(_) => {}
            }
            let now = Instant::now();
            if now >= deadline {
                return false;
            }
            // Other processes send no notification.
            let _ = tokio::time::timeout_at((now + POLL).min(deadline).into(), ended).await;
        }
    }

    /// Returns all records with a key.
    pub(crate) async fn find(&self, key: &str) -> Result<Vec<Listed>, StoreError> {
        let mut listed = ask(&self.calls.find, PATIENCE, |done| self.store.find(key.to_owned(), done)).await?;
        listed.iter_mut().for_each(|listed| self.correct(&mut listed.record));
        Ok(listed)
    }

    /// Returns the newest records of this process whose outcome is still not known; their age is the time since then.
    pub(crate) async fn unknown(&self) -> Result<Vec<Listed>, StoreError> {
        let mut listed = Vec::new();
        for (id, subject, since) in self.unknowns.newest() {
            let found = self.look_up(id).await?.filter(|found| found.record.state == State::Unknown);
            // It was released, or a late result has arrived.
            let Some(Found { record, .. }) = found else {
                self.unknowns.forget(id);
                continue;
            };
            let (subject, age) = ((*subject).clone(), since.elapsed());
            listed.push(Listed { id, subject, record, status: None, age, expires_in: None, holder_name: None });
        }
        Ok(listed)
    }

    /// Removes a record that has ended, so that the next request runs.
    pub(crate) async fn authorise(&self, id: Id) -> Result<Authorised, StoreError> {
        ask(&self.calls.authorise, PATIENCE, |done| self.store.authorise(id, done)).await
    }

    /// Sends heartbeats, ends orphaned claims, and removes expired records, for the life of the process.
    pub(crate) async fn keep(self: Arc<Self>) {
        tokio::join!(self.keep_alive(), self.keep_tidy(), self.keep_sagas());
    }

    async fn keep_alive(self: &Arc<Self>) {
        let mut last_beat = Instant::now();
        loop {
            let lease = Duration::from_millis(self.shortest_lease.load(Ordering::Relaxed));
            tokio::time::sleep((lease / 6).clamp(SHORTEST_ROUND, ROUND)).await;
            if (self.claims.are_held() || self.sagas.are_open()) && last_beat.elapsed() >= lease / 3 {
                last_beat = Instant::now();
                // The writing thread has logged the failure of the store.
                let _ = ask(&self.calls.beat, PATIENCE, |done| self.store.beat(done)).await;
            }
            self.settle_what_is_left();
        }
    }

    async fn keep_sagas(self: &Arc<Self>) {
        loop {
            tokio::time::sleep(ROUND).await;
            if self.sagas.are_expected() {
                self.find_orphans().await;
            }
        }
    }

    async fn keep_tidy(self: &Arc<Self>) {
        let mut last_search = Instant::now();
        loop {
            let tended = ask(&self.calls.tend, PATIENCE, |done| self.store.tend(done)).await;
            if !matches!(tended, Ok(Tended { more: true, .. })) {
                tokio::time::sleep(self.store.tend_interval()).await;
            }
            self.find_orphans().await;
            if last_search.elapsed() >= SEARCH {
                self.end_lost_claims().await;
                self.find_lost_sagas().await;
                last_search = Instant::now();
            }
        }
    }

    /// Ends running records of this process without a task: copies of claims that arrived after their tombstone. A
    /// claim that was never granted is released, as nothing was sent under it; the outcome of any other is unknown.
    pub(super) async fn end_lost_claims(self: &Arc<Self>) {
        let Ok(running) = ask(&self.calls.find, PATIENCE, |done| self.store.running(done)).await else { return };
        for (id, token) in running.into_iter().filter(|(_, token)| !self.claims.contains(*token)) {
            let end = match self.claims.is_ungranted(token) {
                true => Abandoned::Released(ReleaseWay::Entombed),
                false => Abandoned::Unknown,
            };
            tracing::warn!(%id, ?end, "a claim of this process was found running that no request holds");
            self.abandon(token, Unsettled { id, end, ttl: LOST_TTL, of_saga: false, is_told: false });
        }
    }

    fn settle_what_is_left(self: &Arc<Self>) {
        for (token, unsettled) in self.claims.untold() {
            self.abandon(token, unsettled);
        }
    }

    /// Has the store record the end of a claim without a task; repeated until it has.
    pub(super) fn abandon(self: &Arc<Self>, token: Token, unsettled: Unsettled) {
        let Unsettled { id, end, ttl, of_saga, .. } = unsettled;
        // Known here from now on, and in the store once it has recorded it.
        self.claims.abandon(token, Unsettled { is_told: true, ..unsettled });
        let records = Arc::clone(self);
        let heard = Box::new(move |result: Result<bool, StoreError>| {
            match result {
                Ok(_) => records.claims.leave(token),
                Err(_) => records.claims.abandon(token, Unsettled { is_told: false, ..unsettled }),
            }
            records.tell(id);
        });
        match end {
            Abandoned::Released(way) => self.store.release(Release { id, token, way, ttl, of_saga }, heard),
            Abandoned::Unknown => {
                let completion = Completion { id, token, finish: Finish::Unknown, response: None, ttl };
                self.store.complete(completion, heard);
            }
        }
    }

    /// Notes the lease of a claim that this process works on.
    pub(super) fn opened(&self, lease: Duration) {
        self.shortest_lease.fetch_min(millis(lease), Ordering::Relaxed);
    }

    pub(super) async fn release(&self, release: Release, patience: Duration) -> Result<bool, StoreError> {
        ask(&self.calls.release, patience, |done| self.store.release(release, done)).await
    }

    pub(super) async fn complete(&self, completion: Completion, patience: Duration) -> Result<bool, StoreError> {
        ask(&self.calls.complete, patience, |done| self.store.complete(completion, done)).await
    }

    /// Wakes the requests that wait for the end of a run.
    pub(super) fn tell(&self, id: Id) {
        if let Some(waiting) = self.waiting.lock().get(&id) {
            waiting.ended.notify_waiters();
        }
    }
}

/// Calls the store and waits for its result.
pub(super) async fn ask<T: Send + 'static>(
    call: &Call,
    patience: Duration,
    begin: impl FnOnce(Box<dyn FnOnce(Result<T, StoreError>) + Send>),
) -> Result<T, StoreError> {
    let began = Instant::now();
    let (tell, told) = oneshot::channel();
    // The caller may not wait any more.
    begin(Box::new(move |result| drop(tell.send(result))));
    let told = tokio::time::timeout(patience, told).await;
    let took = began.elapsed().as_secs_f64();
    call.by_op.observe(took);
    call.by_store.observe(took);
    let result = match told {
        Err(_) => Err(StoreError::TooSlow),
        Ok(answer) => answer.unwrap_or(Err(StoreError::Ended)),
    };
    // A short timeout of the caller says nothing about the store.
    if let Some(writing) = call.writing.as_ref().filter(|_| told_in_time(&result, patience)) {
        writing.note(result.as_ref().err());
    }
    result
}

/// Returns whether a call had the full timeout of the store.
fn told_in_time<T>(result: &Result<T, StoreError>, patience: Duration) -> bool {
    !matches!(result, Err(StoreError::TooSlow)) || patience >= PATIENCE
}

/// A waiter for the end of a run.
struct Waiter<'a> {
    records: &'a Records,
    id: Id,
    ended: Arc<Notify>,
}

impl<'a> Waiter<'a> {
    fn enter(records: &'a Records, id: Id) -> Waiter<'a> {
        let mut waiting = records.waiting.lock();
        let entry = waiting.entry(id).or_default();
        entry.waiters += 1;
        Waiter { records, id, ended: Arc::clone(&entry.ended) }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut waiting = self.records.waiting.lock();
        if let Some(entry) = waiting.get_mut(&self.id) {
            entry.waiters -= 1;
            if entry.waiters == 0 {
                waiting.remove(&self.id);
            }
        }
    }
}
