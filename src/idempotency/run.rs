//! A request's run: its claim, the single run, and its end.

use super::claim::{Claim, End, REPLAY_WITHIN, Settled, Turn};
use super::record::State;
use super::records::Records;
use super::request::{KeyedRequest, Policy};
use super::response::StoredResponse;
use super::saga::NewSaga;
use super::store::{Found, StoreError};
use crate::clock::BootTime;
use crate::http::budget::Share;
use bytes::{Bytes, BytesMut};
use http::{Extensions, HeaderMap, Response, StatusCode};
use http_body::Body;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The node of a run.
pub(crate) trait Origin {
    type Body: Body<Data = Bytes> + Unpin;
    type Error;
    /// Sends the request, at most once, and no byte of it after a time. The response is that for the client.
    async fn send(&mut self, by: BootTime) -> Sent<Self::Body, Self::Error>;
}

/// The result of sending a request.
pub(crate) enum Sent<B, F> {
    /// Not one byte of it left this process.
    Nothing(F),
    /// It may have run, and no answer came.
    NoAnswer(F),
    /// The head of the response. `whole`: every byte of the request had been sent by then.
    Answer { response: Response<B>, whole: bool },
}

/// The result of a request's start.
pub(crate) enum Started {
    /// To run.
    First(Claim),
    /// It has run; this was its answer.
    Replay(StoredResponse),
    /// It must not run.
    Refused(Refused),
    /// The store is out of order, and the route forwards without it.
    Unprotected(StoreError),
}

/// Why a request must not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The same is running.
    Running,
    /// The key was used for another request.
    Mismatch,
    /// It may have run.
    Unknown,
    /// It has run; its response was too large to be kept.
    TooLarge,
    StoreFailed(StoreError),
}

/// Finds out whether a request is the first of its key; waits for the run of another one if the route
/// says so. With a saga, the claim begins it.
pub(crate) async fn start(
    records: &Arc<Records>,
    asked: &KeyedRequest,
    policy: &Policy,
    saga: Option<&NewSaga>,
) -> Started {
    let deadline = policy.wait.map(|wait| Instant::now() + wait);
    if records.store.prefers_look_ups()
        && records.ended.has(asked.id)
        && let Ok(Some(found)) = records.look_up_within(asked.id, REPLAY_WITHIN).await
        && found.record.state == State::Done
        && let Some(started) = answer(records, asked, found, deadline).await
    {
        return started;
    }
    loop {
        let found = match records.claim(asked, policy, saga).await {
            Ok(Turn::First(claim)) => return Started::First(claim),
            Ok(Turn::Found(found)) => found,
            Err(error) if policy.forwards_without_store => return Started::Unprotected(error),
            Err(error) => return Started::Refused(Refused::StoreFailed(error)),
        };
        if let Some(started) = answer(records, asked, found, deadline).await {
            return started;
        }
    }
}

/// Returns the answer to a request whose key has a record, as [`start`] does; nothing where the key is free. Nothing is
/// claimed.
pub(crate) async fn repeat(records: &Arc<Records>, asked: &KeyedRequest, policy: &Policy) -> Option<Started> {
    let deadline = policy.wait.map(|wait| Instant::now() + wait);
    loop {
        let found = match records.look_up(asked.id).await {
            Ok(found) => found?,
            Err(error) => return Some(Started::Refused(Refused::StoreFailed(error))),
        };
        if let Some(started) = answer(records, asked, found, deadline).await {
            return Some(started);
        }
    }
}

/// Returns the answer to a request by the record of its key. Returns nothing once a run has ended that the request has
/// waited for: the key may be free.
async fn answer(
    records: &Arc<Records>,
    asked: &KeyedRequest,
    found: Found,
    deadline: Option<Instant>,
) -> Option<Started> {
    if found.record.fingerprint != asked.fingerprint {
        return Some(Started::Refused(Refused::Mismatch));
    }
    Some(match (found.record.state, found.response) {
        (State::Done, Some(response)) => {
            records.ended.note(asked.id);
            Started::Replay(response)
        }
        (State::Done | State::DoneWithoutBody, _) => Started::Refused(Refused::TooLarge),
        (State::Unknown | State::Tombstone, _) => Started::Refused(Refused::Unknown),
        (State::Running | State::Saga, _) => match deadline {
            Some(deadline) if Instant::now() < deadline && records.wait(asked.id, deadline).await => return None,
            _ => Started::Refused(Refused::Running),
        },
    })
}

/// The result of a run.
pub(crate) enum Outcome<B, F> {
    /// The complete response, the extensions for this client only, and the result of its storage.
    Answer { response: StoredResponse, beside: Extensions, settled: Settled },
    /// A response by which the node declares that it has done nothing: the next request runs.
    Passed(Response<B>),
    /// A response that is larger than the limit: the part that was read, and the rest.
    Large { head: Response<()>, beginning: Bytes, rest: B },
    /// It may have run, and there is no complete response.
    Unknown,
    /// Nothing was sent; the next request runs again.
    NotSent(F),
}

/// Runs a claimed request. The response is read to its end, even when its client has left; the end of the run is
/// durable when this returns, unless the outcome says otherwise.
pub(crate) async fn run<O: Origin>(
    mut claim: Claim,
    origin: &mut O,
    policy: &Policy,
    share: &mut Share,
) -> Outcome<O::Body, O::Error> {
    claim.sending();
    let (response, whole) = match origin.send(claim.send_by()).await {
        Sent::Answer { response, whole } => (response, whole),
        Sent::NoAnswer(_) => {
            claim.settle(End::Unknown).await;
            return Outcome::Unknown;
        }
        Sent::Nothing(failure) => {
            claim.settle(End::Released).await;
            return Outcome::NotSent(failure);
        }
    };
    let status = response.status();
    if policy.release_on.contains(&status) || (status == StatusCode::REQUEST_TIMEOUT && !whole) {
        claim.settle(End::Released).await;
        return Outcome::Passed(response);
    }
    // A gateway behind does not know the outcome either.
    if matches!(status, StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT) {
        claim.settle(End::Unknown).await;
        return Outcome::Unknown;
    }
    let (mut head, mut body) = response.into_parts();
    let (body, trailers) = match read(&mut body, policy, share).await {
        Read::Whole(body, trailers) => (body, trailers),
        Read::TooLarge(beginning) => {
            claim.settle(End::DoneWithoutBody).await;
            return Outcome::Large { head: Response::from_parts(head, ()), beginning, rest: body };
        }
        Read::Broken => {
            claim.settle(End::Unknown).await;
            return Outcome::Unknown;
        }
    };
    let beside = std::mem::take(&mut head.extensions);
    let response = StoredResponse::new(head.status, &head.headers, body, trailers.as_ref());
    let settled = claim.settle(End::Done(response.clone())).await;
    Outcome::Answer { response, beside, settled }
}

enum Read {
    Whole(Bytes, Option<HeaderMap>),
    /// The part of the body that was read.
    TooLarge(Bytes),
    Broken,
}

/// Reads a body to its end, as far as it is to be stored and fits into the share.
async fn read<B: Body<Data = Bytes> + Unpin>(body: &mut B, policy: &Policy, share: &mut Share) -> Read {
    let (announced, limit) = (body.size_hint().lower(), policy.max_response);
    if announced > limit {
        return Read::TooLarge(Bytes::new());
    }
    let mut pieces = Pieces::expecting(announced);
    let mut trailers = None;
    loop {
        match poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
            None => return Read::Whole(pieces.join(), trailers),
            Some(Err(_)) => return Read::Broken,
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    pieces.push(data);
                    if pieces.length > limit || !cover(share, pieces.length.max(announced), policy.lease).await {
                        return Read::TooLarge(pieces.join());
                    }
                }
                Err(frame) => trailers = frame.into_trailers().ok(),
            },
        }
    }
}

/// The longest time for which a response waits for the budget; its node waits too.
const ROOM_WITHIN: Duration = Duration::from_secs(1);

/// Grows a share, and waits for others to return a part of the budget if needed: a result that is not stored is lost.
async fn cover(share: &mut Share, bytes: u64, patience: Duration) -> bool {
    let deadline = Instant::now() + patience.min(ROOM_WITHIN);
    while !share.cover(bytes) {
        if !share.may_cover(bytes) || Instant::now() >= deadline {
            tracing::warn!(bytes, "`limits.buffered_bytes` leaves no room for an answer, which is not stored");
            return false;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    true
}

/// The pieces of a body; most bodies come in one piece, which is not copied.
#[derive(Default)]
pub(crate) struct Pieces {
    first: Bytes,
    more: BytesMut,
    expected: u64,
    pub(crate) length: u64,
}

impl Pieces {
    /// For a body of this length, as far as it was announced.
    pub(crate) fn expecting(expected: u64) -> Pieces {
        Pieces { expected, ..Pieces::default() }
    }

    pub(crate) fn push(&mut self, data: Bytes) {
        self.length += data.len() as u64;
        if self.length == data.len() as u64 {
            self.first = data;
            return;
        }
        if self.more.is_empty() {
            self.more.reserve(self.expected.max(self.length) as usize);
            self.more.extend_from_slice(&std::mem::take(&mut self.first));
        }
        self.more.extend_from_slice(&data);
    }

    pub(crate) fn join(self) -> Bytes {
        if self.more.is_empty() { self.first } else { self.more.freeze() }
    }
}
