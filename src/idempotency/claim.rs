//! A claim: the right to run a request, and the duty to record its end, whatever happens to its task.

use super::open_claims::{Abandoned, Unsettled};
use super::open_saga::OpenSaga;
use super::record::{Finish, Millis, ReleaseWay, Token};
use super::records::{PATIENCE, Records, ask};
use super::request::{KeyedRequest, Policy};
use super::response::StoredResponse;
use super::saga::{LASTING, NewSaga};
use super::store::{ClaimReply, Claimed, Completion, Found, NewClaim, Release, StoreError};
use super::warn_unknown;
use crate::clock::BootTime;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The timeout of a look-up after a failed claim.
pub(super) const REPLAY_WITHIN: Duration = Duration::from_millis(500);
/// The interval of attempts to store a result: at first, and at most.
const RETRY: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(500)];

/// The end of a run.
#[derive(Clone, Debug)]
pub(crate) enum End {
    Released,
    Done(StoredResponse),
    DoneWithoutBody,
    Unknown,
}

/// The result of recording the end of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    /// It is durable.
    Durable,
    /// The record belongs to another run: an operator, or `on_unknown: retry`, has allowed it.
    Superseded,
    /// The store did not accept it in time; an unknown outcome will be recorded.
    Failed,
}

/// The right to run a request, and the duty to record its end.
pub(crate) struct Claim {
    records: Arc<Records>,
    asked: KeyedRequest,
    token: Token,
    ttl: Duration,
    lease: Duration,
    /// The time at which the granted claim was sent.
    sent: BootTime,
    /// The way in which it is released.
    way: ReleaseWay,
    /// The store's time when its saga began.
    began: Option<Millis>,
    may_have_run: bool,
    is_settled: bool,
}

impl Claim {
    /// Returns the claim that the store has made.
    fn new(records: Arc<Records>, asked: KeyedRequest, token: Token, policy: &Times, reply: &ClaimReply) -> Claim {
        records.opened(policy.lease);
        let way = match (&reply.claimed, reply.is_resent) {
            // An earlier run of the request may have been carried out; the end of this run does not change that.
            (Claimed::Again, _) => ReleaseWay::Retaken,
            (_, true) => ReleaseWay::Entombed,
            (_, false) => ReleaseWay::Plain,
        };
        let Times { ttl, lease } = *policy;
        let may_have_run = false;
        let (sent, began) = (reply.sent, reply.began);
        Claim { records, asked, token, ttl, lease, sent, way, began, may_have_run, is_settled: false }
    }

    /// Returns the saga that has begun with the claim, as its owner: from here on the saga says how it ended.
    pub(crate) fn into_saga(mut self) -> OpenSaga {
        let saga = OpenSaga::begun(&self.records, self.asked.id, self.token, self.lease, (self.began, self.sent));
        // The process is known to live by its saga.
        self.is_settled = true;
        saga
    }

    /// Returns the time by which the first byte of the request must be sent: a process that was suspended for longer
    /// may count as dead. In the remaining half of the lease no other process ends the claim.
    pub(crate) fn send_by(&self) -> BootTime {
        self.sent + self.lease / 2
    }

    /// Notes that the request may run from here on.
    pub(crate) fn sending(&mut self) {
        self.may_have_run = true;
    }

    /// Records the end of the run, durably; repeated for the length of the lease.
    pub(crate) async fn settle(mut self, end: End) -> Settled {
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
        if matches!((&end, settled), (End::Done(_), Settled::Durable)) {
            self.records.ended.note(self.asked.id);
        }
        match settled {
            Settled::Durable | Settled::Superseded => self.is_settled = true,
            // When it is dropped, the claim continues to record its end, without the result.
            Settled::Failed => self.may_have_run = !matches!(end, End::Released),
        }
        let KeyedRequest { id, subject, .. } = &self.asked;
        match (&end, settled) {
            (End::Released, Settled::Durable) if self.way == ReleaseWay::Retaken => {
                self.unknown("an earlier run of it may have been carried out");
            }
            (End::Unknown, Settled::Durable) => self.unknown("the node gave no whole answer"),
            // A released claim is gone, whichever copy the store got first.
            (End::Done(_) | End::DoneWithoutBody | End::Unknown, Settled::Superseded) => {
                tracing::warn!(%id, key = subject.key, "the end of a request came after another run of it was let");
            }
            _ => {}
        }
        settled
    }

    /// Notes that the outcome of its request is not known.
    fn unknown(&self, why: &str) {
        let KeyedRequest { id, subject, .. } = &self.asked;
        warn_unknown(*id, subject, why);
        self.records.unknowns.note(*id, subject);
    }

    async fn tell_store(&self, end: &End, patience: Duration) -> Result<bool, StoreError> {
        let records = &self.records;
        let (id, token) = (self.asked.id, self.token);
        let (finish, response) = match end {
            End::Released => {
                let of_saga = self.began.is_some();
                return records.release(Release { id, token, way: self.way, ttl: self.ttl, of_saga }, patience).await;
            }
            End::Done(response) => (Finish::Done, Some(response.clone())),
            End::DoneWithoutBody => (Finish::DoneWithoutBody, None),
            End::Unknown => (Finish::Unknown, None),
        };
        records.complete(Completion { id, token, finish, response, ttl: self.ttl }, patience).await
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.is_settled {
            self.records.claims.leave(self.token);
            self.records.tell(self.asked.id);
            return;
        }
        let end = if self.may_have_run { Abandoned::Unknown } else { Abandoned::Released(self.way) };
        if matches!(end, Abandoned::Unknown | Abandoned::Released(ReleaseWay::Retaken)) {
            self.unknown("its run ended without a result that could be stored");
        }
        let of_saga = self.began.is_some();
        let unsettled = Unsettled { id: self.asked.id, end, ttl: self.ttl, of_saga, is_told: false };
        self.records.tell(self.asked.id);
        self.records.abandon(self.token, unsettled);
    }
}

/// The result of a claim for a request.
pub(crate) enum Turn {
    /// It is the first request with the key, and is to run.
    First(Claim),
    /// There is a record of an earlier request.
    Found(Found),
}

/// The times of a claim.
#[derive(Clone, Copy)]
struct Times {
    ttl: Duration,
    lease: Duration,
}

impl Records {
    /// Claims a request. Returns the claim, or the record of an earlier request with its key. A claim whose request is
    /// dropped while it waits releases itself.
    pub(crate) async fn claim(
        self: &Arc<Self>,
        asked: &KeyedRequest,
        policy: &Policy,
        saga: Option<&NewSaga>,
    ) -> Result<Turn, StoreError> {
        if saga.is_some() && self.is_full_of_sagas() {
            return self.look_up(asked.id).await?.map(Turn::Found).ok_or(StoreError::Overloaded);
        }
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let token = Token { holder: self.store.holder(), number };
        if !self.claims.enter(token) {
            return Err(StoreError::Overloaded);
        }
        let claim = NewClaim {
            id: asked.id,
            subject: Arc::clone(&asked.subject),
            fingerprint: asked.fingerprint,
            token,
            retake: policy.retries_unknown,
            lease: policy.lease,
            ttl: if saga.is_some() { LASTING } else { policy.ttl },
            saga: saga.cloned().map(Box::new),
        };
        let of_saga = saga.is_some();
        let (records, mine) = (Arc::clone(self), asked.clone());
        let (times, retake) = (Times { ttl: policy.ttl, lease: policy.lease }, policy.retries_unknown);
        // A later reply would not allow a byte to be sent.
        let patience = PATIENCE.min(policy.lease / 2);
        let turn = ask(&self.calls.claim, patience, |done| {
            let made = move |reply: Result<ClaimReply, StoreError>| {
                done(match reply {
                    Ok(ClaimReply { claimed: Claimed::Found(found), .. }) => {
                        records.claims.leave(token);
                        Ok(Turn::Found(found))
                    }
                    Ok(reply) => Ok(Turn::First(Claim::new(records, mine, token, &times, &reply))),
                    Err(error) => {
                        match error {
                            StoreError::Torn(_) => {
                                let way = if retake { ReleaseWay::Retaken } else { ReleaseWay::Entombed };
                                let end = Abandoned::Released(way);
                                let ttl = times.ttl;
                                let unsettled = Unsettled { id: mine.id, end, ttl, of_saga, is_told: false };
                                records.claims.was_not_granted(token);
                                records.claims.abandon(token, unsettled);
                            }
                            _ => records.claims.leave(token),
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
            Err(error) => match self.look_up_within(asked.id, REPLAY_WITHIN).await {
                Ok(Some(found)) if found.record.token != token => Ok(Turn::Found(found)),
                _ => Err(error),
            },
            first => first,
        }
    }
}
