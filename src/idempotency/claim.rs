//! The right to run a request, and the duty to say how it ended: kept whatever becomes of the task that
//! holds it.

use super::record::{Finish, Millis, Token};
use super::records::{Abandoned, MAX_UNSETTLED, PATIENCE, Records, Unsettled, ask, locked};
use super::request::{Asked, Policy};
use super::response::StoredResponse;
use super::store::{Claimed, Completion, Found, NewClaim, StoreError};
use super::warn_unknown;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Between two tries to store a result: at first, and at most.
const RETRY: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(500)];

/// The end of a run.
#[derive(Clone, Debug)]
pub(crate) enum End {
    Released,
    Done(StoredResponse),
    DoneWithoutBody,
    Unknown,
}

/// The result of telling the store the end of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    /// It is durable.
    Durable,
    /// The record is not this run's any more: an operator, or `on_unknown: retry`, has let another run.
    Superseded,
    /// The store did not take it in time; it will be told that the outcome is unknown.
    Failed,
}

/// The right to run a request, and the duty to say how it ended.
pub(crate) struct Claim {
    records: Arc<Records>,
    asked: Asked,
    token: Token,
    ttl: Duration,
    lease: Duration,
    entered: Millis,
    may_have_run: bool,
    /// An earlier run of the request may have been carried out; the end of this run does not change that.
    is_repetition: bool,
    is_settled: bool,
}

impl Claim {
    /// For a claim that the store has made.
    pub(super) fn new(
        records: Arc<Records>,
        asked: Asked,
        token: Token,
        (ttl, lease): (Duration, Duration),
        is_repetition: bool,
    ) -> Claim {
        let entered = records.opened(lease);
        let (may_have_run, is_settled) = (is_repetition, false);
        Claim { records, asked, token, ttl, lease, entered, may_have_run, is_repetition, is_settled }
    }

    /// From here on the request may run.
    pub(crate) fn sending(&mut self) {
        self.may_have_run = true;
    }

    /// Says how it ended, durably; tried again for the length of the lease.
    pub(crate) async fn settle(mut self, end: End) -> Settled {
        let end = match end {
            // A released repetition leaves the record as it was: the outcome of the first run is unknown.
            End::Released if self.is_repetition => End::Unknown,
            end => end,
        };
        let deadline = Instant::now() + self.lease;
        let mut pause = RETRY[0];
        let settled = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.tell_store(&end, left.clamp(RETRY[0], PATIENCE)).await {
                Ok(true) => break Settled::Durable,
                Ok(false) => break Settled::Superseded,
                Err(error) if Instant::now() + pause >= deadline => {
                    tracing::error!(%error, id = %self.asked.id, "the end of a request could not be stored");
                    break Settled::Failed;
                }
                Err(_) => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY[1]);
                }
            }
        };
        match settled {
            Settled::Durable | Settled::Superseded => self.is_settled = true,
            // Dropped, the claim goes on trying, without the result.
            Settled::Failed => self.may_have_run = !matches!(end, End::Released),
        }
        let Asked { id, subject, .. } = &self.asked;
        match (&end, settled) {
            (End::Unknown, Settled::Durable) => warn_unknown(*id, subject, "the node gave no whole answer"),
            // One that was released is gone, whoever heard of it first.
            (End::Done(_) | End::DoneWithoutBody | End::Unknown, Settled::Superseded) => {
                tracing::warn!(%id, key = subject.key, "the end of a request came after another run of it was let");
            }
            _ => {}
        }
        settled
    }

    async fn tell_store(&self, end: &End, patience: Duration) -> Result<bool, StoreError> {
        let records = &self.records;
        let (id, token) = (self.asked.id, self.token);
        let (finish, response) = match end {
            End::Released => return records.release(id, token, patience).await,
            End::Done(response) => (Finish::Done, Some(response.clone())),
            End::DoneWithoutBody => (Finish::DoneWithoutBody, None),
            End::Unknown => (Finish::Unknown, None),
        };
        let expires = records.later_expiry(self.ttl, self.entered);
        records.complete(Completion { id, token, finish, response, expires }, patience).await
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.records.closed(self.asked.id);
        if self.is_settled {
            return;
        }
        let end = if self.may_have_run { Abandoned::Unknown } else { Abandoned::Free };
        if end == Abandoned::Unknown {
            warn_unknown(self.asked.id, &self.asked.subject, "its run ended without a result that could be stored");
        }
        let unsettled = Unsettled { id: self.asked.id, end, ttl: self.ttl, entered: self.entered, is_told: false };
        self.records.abandon(self.token, unsettled);
    }
}

/// The result of a claim for a request.
pub(crate) enum Turn {
    /// It is the first, and is to run.
    First(Claim),
    /// There was one before it.
    Found(Found),
}

impl Records {
    /// Claims a request. Returns the claim, or the record of an earlier request with its key. A claim whose waiting
    /// request is gone releases itself.
    pub(crate) async fn claim(self: &Arc<Self>, asked: &Asked, policy: &Policy) -> Result<Turn, StoreError> {
        if locked(&self.unsettled).len() >= MAX_UNSETTLED {
            return Err(StoreError::Overloaded);
        }
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let token = Token { holder: self.store.holder(), number };
        let now = self.clock.now();
        let claim = NewClaim {
            id: asked.id,
            subject: Arc::clone(&asked.subject),
            fingerprint: asked.fingerprint,
            token,
            retake: policy.retries_unknown,
            lease: policy.lease,
            now,
            expires: self.clock.expiry(policy.ttl),
        };
        let (records, mine, ttl, lease) = (Arc::clone(self), asked.clone(), policy.ttl, policy.lease);
        let retake = policy.retries_unknown;
        let turn = ask(&self.durations.claim, PATIENCE, |done| {
            let made = move |claimed| {
                done(match claimed {
                    Ok(claimed @ (Claimed::First | Claimed::Again)) => {
                        let is_repetition = claimed == Claimed::Again;
                        Ok(Turn::First(Claim::new(records, mine, token, (ttl, lease), is_repetition)))
                    }
                    Ok(Claimed::Found(found)) => Ok(Turn::Found(found)),
                    Err(error) => {
                        if matches!(error, StoreError::Torn(_)) {
                            // The claim may have replaced a record whose outcome is unknown.
                            let end = if retake { Abandoned::Unknown } else { Abandoned::Free };
                            let (id, entered) = (mine.id, now);
                            let unsettled = Unsettled { id, end, ttl, entered, is_told: false };
                            locked(&records.unsettled).insert(token, unsettled);
                        }
                        Err(error)
                    }
                });
            };
            self.store.claim(claim, Box::new(made));
        });
        match turn.await {
            Ok(Turn::Found(mut found)) => {
                self.correct(&mut found.record);
                Ok(Turn::Found(found))
            }
            // A store that only fails to write can still replay.
            Err(error) => match self.look_up(asked.id).await {
                Ok(Some(found)) if found.record.token != token && !found.record.is_over(now) => Ok(Turn::Found(found)),
                _ => Err(error),
            },
            first => first,
        }
    }
}
