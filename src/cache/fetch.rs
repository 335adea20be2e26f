//! Fetches and their results: a shared response, a private one, a validated stored one, or a stale one in place of an
//! error.

use super::fill::{FetchLeader, FetchOutcome};
use super::key::Key;
use super::least_rate::LeastRate;
use super::object::{HeadFinding, SharedResponse, Stored};
use super::policy::{self, CachePolicy, Milliseconds, Refusal, RequestTraits, Terms, Timing};
use super::store::{Address, CacheHit, FetchToken, Found};
use super::streaming_body::{Demand, StreamingBody, StreamingReader};
use super::vary::{Selecting, Varies};
use super::{Cache, PASS};
use crate::clock;
use crate::consistency::{FetchBase, Requester, StoredTag};
use crate::http::fields::{NamedByConnection, content_length};
use crate::http::head::RequestFields;
use bytes::Bytes;
use http::header::{DATE, TRAILER};
use http::{Extensions, HeaderMap, HeaderName, Response, StatusCode, response};
use http_body::Body as HttpBody;
use std::borrow::Cow;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

/// An error response to a request with a head of more bytes than this may be caused by the request itself (cache
/// poisoning), so it is not shared.
const SUSPICIOUS_HEAD: usize = 4 << 10;

/// The interval of checks for slow readers while a fetch waits for them.
const READER_TICK: Duration = Duration::from_secs(1);

/// The source of responses: each call is one request to a node.
pub(crate) trait FetchOrigin {
    type Body: HttpBody<Data = Bytes> + Unpin;
    type Error;

    /// Fetches the complete response, or validates a stored one by a conditional request.
    async fn fetch(&mut self, validated: Option<&Stored>) -> Result<Response<Self::Body>, Self::Error>;
}

/// A request for a fetch: its key and the request's traits and fields.
pub(crate) struct Order {
    pub(crate) key: Key,
    pub(crate) uri: String,
    /// The key has further parts besides the URI.
    pub(crate) has_parts: bool,
    /// The fields of the request, by which variants are selected (`Vary`).
    pub(crate) request: RequestFields,
    pub(crate) traits: RequestTraits,
    pub(crate) policy: Arc<CachePolicy>,
    /// The requester, on a route with a guarantee.
    pub(crate) requester: Option<Rc<Requester>>,
    /// The lower bound of the fetch's age, on a route with a guarantee: what its response includes at least.
    pub(crate) base: Option<FetchBase>,
}

/// The result of a fetch for the request that began it.
pub(crate) enum LeaderResult<B, F> {
    /// A response that is not stored.
    Private(Response<B>),
    /// A response whose body is arriving.
    Streaming {
        reader: StreamingReader,
        /// The fields of the response without `Trailer`, including those that are not stored.
        own: HeaderMap,
        /// It will be stored, as far as its head tells.
        is_stored: bool,
    },
    /// A stored response.
    Confirmed {
        stored: SharedResponse,
        /// A node has validated it now; otherwise another fetch had stored it meanwhile.
        validated: bool,
    },
    /// A stale response in place of a node's error (RFC 5861 4).
    StandIn(SharedResponse),
    Failed(F),
}

/// A body that is read to its end even when its client has left.
pub(crate) struct Arriving<B> {
    leader: FetchLeader,
    streaming: EndOnDrop,
    body: B,
}

/// The effect of new fields (a 304, or a HEAD) on a stored response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UpdateResult {
    /// The response is stored with the new fields.
    Kept,
    /// The new fields are specific to the client that sent the request; the stored response stays as it is.
    Private,
    /// The new fields forbid storage, so the stored response is removed.
    Gone,
}

/// Ends a streaming body when the fetch is dropped, so that its readers do not wait for more.
struct EndOnDrop(Arc<StreamingBody>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end(false);
    }
}

impl Order {
    fn address(&self) -> Address<'_> {
        Address { key: self.key, uri: &self.uri, is_listed: self.has_parts }
    }

    /// Returns the order for a requester, whose fetch begins now.
    pub(crate) fn for_requester(mut self, requester: Option<&Rc<Requester>>) -> Order {
        self.base = requester.and_then(|requester| requester.begin());
        self.requester = requester.cloned();
        self
    }

    /// Returns whether a stored response may be served to the requester without validation.
    pub(crate) fn accepts(&self, stored: &Stored, now: Milliseconds) -> bool {
        self.requester.as_ref().is_none_or(|requester| requester.check(stored.causal_tag(), now).is_ok())
    }

    /// Returns whether the requester may wait for a running fetch with this base.
    pub(super) fn may_wait(&self, base: Option<&FetchBase>) -> bool {
        self.requester.as_ref().is_none_or(|requester| requester.may_wait(base))
    }

    /// Returns the tag of an answer whose head has arrived.
    fn tag(&self, now: Milliseconds) -> Option<StoredTag> {
        self.requester.as_ref().zip(self.base.as_ref()).map(|(requester, base)| requester.tag(base, now))
    }

    /// Returns the group of a request before the `Vary` of its responses is known.
    pub(super) fn base_group(&self) -> Key {
        let RequestTraits { has_authorization, has_cookie, .. } = self.traits;
        self.key.derive(|part| part(&[u8::from(has_authorization), u8::from(has_cookie)]))
    }

    /// Returns whether an error response may be caused by the fields of this request (see [`SUSPICIOUS_HEAD`]).
    fn is_suspicious(&self, status: StatusCode) -> bool {
        let head = || self.request.plain().iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>();
        (status.is_client_error() || status.is_server_error()) && head() > SUSPICIOUS_HEAD
    }
}

/// Returns the group of the requests that select the same variant.
pub(super) fn variant_group(base: Key, selecting: &Selecting) -> Key {
    base.derive(|part| {
        selecting.each(|name, value| {
            part(name);
            part(&[u8::from(value.is_some())]);
            part(value.unwrap_or_default());
        });
    })
}

/// Returns the fields that decide on storage: those of a response and those that its `Connection` names, which are not
/// forwarded.
fn deciding<'a>(fields: &'a HeaderMap, extensions: &Extensions) -> Cow<'a, HeaderMap> {
    match extensions.get::<NamedByConnection>() {
        None => Cow::Borrowed(fields),
        Some(NamedByConnection(named)) => {
            let mut all = fields.clone();
            all.extend(named.clone());
            Cow::Owned(all)
        }
    }
}

/// Returns the names of the fields that a response's `Connection` names.
fn named_by_connection(extensions: &Extensions) -> impl Iterator<Item = HeaderName> {
    extensions.get::<NamedByConnection>().into_iter().flat_map(|NamedByConnection(named)| named.keys().cloned())
}

/// Returns whether a response counts as a failure of the node (RFC 5861 4).
pub(crate) fn is_failure(status: StatusCode) -> bool {
    matches!(status.as_u16(), 500 | 502..=504)
}

impl Cache {
    /// Fetches a response for all requests of a group, up to its head. The caller hands the arriving body to
    /// [`Cache::receive`]. With `must_fetch` no stored response is used without validation.
    pub(crate) async fn fetch<O: FetchOrigin>(
        &self,
        leader: FetchLeader,
        order: &Order,
        origin: &mut O,
        must_fetch: bool,
    ) -> (LeaderResult<O::Body, O::Error>, Option<Arriving<O::Body>>) {
        // Looked up once more: since the first look-up a purge or a response may have arrived.
        let mut base = match self.store.look_up(order.key, &order.request) {
            Found::Response(hit) => Some(hit),
            Found::OtherVariants(_) | Found::Nothing => None,
        };
        let now = self.now();
        if let Some(hit) = base.as_ref().filter(|hit| !must_fetch && hit.is_fresh(now) && order.accepts(hit, now)) {
            hit.note_use(now);
            let stored = hit.share();
            leader.finish(FetchOutcome::Stored { stored: Arc::clone(&stored), validated: false });
            return (LeaderResult::Confirmed { stored, validated: false }, None);
        }
        loop {
            let requested = self.now();
            let answer = origin.fetch(base.as_deref()).await;
            let timing = Timing { requested, received: self.now(), received_at: clock::unix_seconds().cast_signed() };
            let response = match answer {
                Ok(response) => response,
                Err(failure) => {
                    let Some(stale) = base.as_ref().and_then(|hit| self.stand_in(&leader, order, hit, timing.received))
                    else {
                        leader.finish(FetchOutcome::Released);
                        return (LeaderResult::Failed(failure), None);
                    };
                    leader.finish(FetchOutcome::StandIn(Arc::clone(&stale)));
                    return (LeaderResult::StandIn(stale), None);
                }
            };
            if let Some(hit) = base.take() {
                if response.status() == StatusCode::NOT_MODIFIED {
                    if !hit.is_confirmed_by(response.headers()) {
                        // The validators are those of another response: fetch the complete one.
                        continue;
                    }
                    let (head, _) = response.into_parts();
                    let stored = self.confirm(leader, order, &hit, &head, timing);
                    return (LeaderResult::Confirmed { stored, validated: true }, None);
                }
                if is_failure(response.status())
                    && let Some(stale) = self.stand_in(&leader, order, &hit, timing.received)
                {
                    leader.finish(FetchOutcome::StandIn(Arc::clone(&stale)));
                    return (LeaderResult::StandIn(stale), None);
                }
            }
            return self.deliver(leader, order, response, timing);
        }
    }

    /// Returns the stored response that stands in for a failed node, unless it was purged, changed or superseded
    /// meanwhile.
    fn stand_in(
        &self,
        leader: &FetchLeader,
        order: &Order,
        hit: &CacheHit,
        now: Milliseconds,
    ) -> Option<SharedResponse> {
        let is_gone = leader.token.is_outdated() || self.store.is_gone(&order.uri, hit) || !order.accepts(hit, now);
        if is_gone { None } else { hit.stand_in(now) }
    }

    /// Updates a stored response by a 304 (RFC 9111 4.3.4) and returns it.
    fn confirm(
        &self,
        leader: FetchLeader,
        order: &Order,
        hit: &CacheHit,
        answer: &response::Parts,
        timing: Timing,
    ) -> SharedResponse {
        let (stored, update) = self.freshened(order, hit, answer, timing, &leader.token);
        stored.note_use(timing.received);
        let is_kept = match update {
            UpdateResult::Kept => self.store.put(order.address(), stored.clone(), &leader.token, Some(hit)),
            UpdateResult::Private => false,
            UpdateResult::Gone => {
                self.store.supersede(order.key, &leader.token, |stored| stored.is_for(&order.request));
                false
            }
        };
        let stored = Arc::new(stored);
        match is_kept && stored.may_be_shared() {
            true => leader.finish(FetchOutcome::Stored { stored: Arc::clone(&stored), validated: true }),
            false => leader.finish(FetchOutcome::Released),
        }
        stored
    }

    /// Returns a stored response with the new fields of a 304 or a HEAD, and their effect on the stored one.
    fn freshened(
        &self,
        order: &Order,
        previous: &Stored,
        answer: &response::Parts,
        timing: Timing,
        token: &FetchToken,
    ) -> (Stored, UpdateResult) {
        let freshened = |new: &HeaderMap| {
            let mut fields = previous.freshened_fields(new);
            if !new.contains_key(DATE) {
                // Without a new date the age counts from the arrival, not from the date of the stored response.
                fields.remove(DATE);
            }
            fields
        };
        let deciding_fields = freshened(&deciding(&answer.headers, &answer.extensions));
        // The traits of the request decide whether the new fields may be shared.
        let traits = RequestTraits { is_post: false, no_store: false, ..order.traits };
        let judged = policy::storable(traits, previous.status, &deciding_fields, timing, &order.policy);
        let is_chosen_alike = match (Varies::of(&deciding_fields, &order.request), previous.varies()) {
            (Varies::No, None) => true,
            (Varies::By(now), Some(then)) => now.is_by_the_fields_of(then),
            _ => false,
        };
        let update = match &judged {
            Ok(_) if is_chosen_alike => UpdateResult::Kept,
            Err(Refusal::NeverUsable) => UpdateResult::Private,
            Err(refusal) if policy::is_private_to_request(traits, previous.status, *refusal) => UpdateResult::Private,
            _ => UpdateResult::Gone,
        };
        let admission = judged.unwrap_or_else(|_| (once(timing), Vec::new()));
        let fields = freshened(&answer.headers);
        let stored =
            Stored::new(previous.status, fields, admission, &order.request, timing.received_at, token.moment())
                .with_tag(order.tag(timing.received));
        (stored.take_body_of(previous), update)
    }

    /// Updates or invalidates a stored response by the response to a HEAD (RFC 9111 4.3.5).
    pub(crate) fn learn_from_head(
        &self,
        order: &Order,
        answer: &response::Parts,
        requested: Milliseconds,
        token: &FetchToken,
    ) {
        let Found::Response(hit) = self.store.look_up(order.key, &order.request) else { return };
        if answer.status != hit.status {
            return;
        }
        match hit.compare_with_head(&deciding(&answer.headers, &answer.extensions)) {
            HeadFinding::Nothing => {}
            HeadFinding::Differs => hit.soft_purge(),
            HeadFinding::Same => {
                let timing =
                    Timing { requested, received: self.now(), received_at: clock::unix_seconds().cast_signed() };
                let (stored, update) = self.freshened(order, &hit, answer, timing, token);
                // A HEAD ends neither a soft purge nor a doubt: only a validation of the response does.
                stored.keep_marks_of(&hit);
                // Nor does it say that the body is as new as it is: the validators may be weak.
                let stored = stored.with_tag(hit.causal_tag().cloned());
                if update == UpdateResult::Kept {
                    self.store.put(order.address(), stored, token, Some(&hit));
                }
            }
        }
    }

    /// Removes the stored responses that a response which is not stored supersedes, unless it is specific to its
    /// requester. Returns whether a stored response is left.
    fn supersede(&self, order: &Order, token: &FetchToken, status: StatusCode, refusal: Refusal) -> bool {
        let is_own = |stored: StatusCode| {
            order.is_suspicious(status) || !policy::supersedes(order.traits, status, refusal, stored)
        };
        if !order.traits.is_post && !is_own(status) {
            let is_superseded = |stored: &Stored| stored.is_for(&order.request) && !is_own(stored.status);
            self.store.supersede(order.key, token, is_superseded);
        }
        matches!(self.store.look_up(order.key, &order.request), Found::Response(_))
    }

    /// Removes the stored responses that the response to a GET with conditions of the client's own supersedes.
    pub(crate) fn note_private(
        &self,
        order: &Order,
        token: &FetchToken,
        answer: &response::Parts,
        requested: Milliseconds,
    ) {
        if matches!(answer.status, StatusCode::PARTIAL_CONTENT | StatusCode::NOT_MODIFIED) {
            return;
        }
        let timing = Timing { requested, received: self.now(), received_at: clock::unix_seconds().cast_signed() };
        if let Err(refusal) = self.admit(order, answer, content_length(&answer.headers), timing) {
            self.supersede(order, token, answer.status, refusal);
        }
    }

    /// Begins to stream a response to all requests that may share it, or returns it as private.
    fn deliver<B, F>(
        &self,
        mut leader: FetchLeader,
        order: &Order,
        response: Response<B>,
        timing: Timing,
    ) -> (LeaderResult<B, F>, Option<Arriving<B>>) {
        let (head, body) = response.into_parts();
        let length = content_length(&head.headers);
        let (admission, selecting) = match self.admit(order, &head, length, timing) {
            Ok(admitted) => admitted,
            Err(refusal) => {
                tracing::debug!(uri = order.uri, ?refusal, "not stored");
                let is_one_left = self.supersede(order, &leader.token, head.status, refusal);
                self.note_refusal(&leader, order, head.status, refusal, is_one_left);
                leader.finish(FetchOutcome::Released);
                return (LeaderResult::Private(Response::from_parts(head, body)), None);
            }
        };
        let terms = admission.0;
        let base = order.base_group();
        match selecting {
            // Later requests are grouped by these fields.
            Some(selecting) => {
                leader.narrow(variant_group(base, &selecting));
                leader.token.is_for(variant_group(order.key, &selecting));
                self.store.mark(base, Milliseconds::MIN, Some(selecting));
            }
            None if self.store.marker(base, |marker| marker.varies.is_some()) == Some(true) => {
                self.store.mark(base, Milliseconds::MIN, None);
            }
            None => {}
        }
        let age = timing.received - terms.born;
        let is_shared =
            !terms.always_validate && age < terms.lifetime + policy::in_milliseconds(terms.stale_while_revalidate);
        let mut own = head.headers.clone();
        // Trailers are neither stored nor passed to readers of a streaming body.
        own.remove(TRAILER);
        let mut admission = admission;
        admission.1.extend(named_by_connection(&head.extensions));
        let fields = deciding(&head.headers, &head.extensions).into_owned();
        // With an unknown length only the end of the body tells whether it is too large.
        let is_stored =
            length.is_some_and(|length| self.has_room_for(length)) && !self.is_outdated(order, &fields, &leader.token);
        let stored =
            Stored::new(head.status, fields, admission, &order.request, timing.received_at, leader.token.moment())
                .with_tag(order.tag(timing.received));
        let streaming = leader.stream(stored, length, order.policy.max_object, is_shared);
        let reader = streaming.read().expect("a body is not too large before its first piece");
        (
            LeaderResult::Streaming { reader, own, is_stored },
            Some(Arriving { leader, streaming: EndOnDrop(streaming), body }),
        )
    }

    /// Returns whether a body of that length fits in the memory of the cache and in the budget of buffers.
    fn has_room_for(&self, length: u64) -> bool {
        length < self.memory - self.memory / 16 && self.fills.has_room_for(length)
    }

    /// Stores the response to a POST as that of a GET, where its `Content-Location` allows that (RFC 9110 9.3.3).
    pub(crate) fn adopt<B, F>(
        &self,
        order: &Order,
        response: Response<B>,
        requested: Milliseconds,
        token: FetchToken,
    ) -> (LeaderResult<B, F>, Option<Arriving<B>>) {
        let timing = Timing { requested, received: self.now(), received_at: clock::unix_seconds().cast_signed() };
        self.deliver(
            self.fills.solo(&order.uri, order.base_group(), (token, order.base.clone())),
            order,
            response,
            timing,
        )
    }

    /// Streams the body of a response to its readers, and stores it at its end.
    pub(crate) async fn receive<B: HttpBody<Data = Bytes> + Unpin>(&self, order: &Order, arriving: Arriving<B>) {
        let Arriving { leader, streaming, body } = arriving;
        let streaming = &streaming.0;
        let whole = self.pump(&leader, order, body, streaming).await;
        if let Some(body) = streaming.end(whole) {
            let stored = Stored::clone(&streaming.head).with_body(body);
            self.store.put(order.address(), stored, &leader.token, None);
        } else {
            if streaming.is_too_large() {
                self.store.mark(leader.narrowest(), self.now() + PASS, None);
            }
            // A body without readers is abandoned before its end, which says nothing about its size.
            if whole || streaming.is_too_large() {
                self.supersede(order, &leader.token, streaming.head.status, Refusal::TooLarge);
            }
        }
    }

    /// Returns the terms on which a response may be stored and the fields that select it (`Vary`), or the refusal.
    #[expect(clippy::type_complexity, reason = "a pair of pairs, taken apart at once")]
    fn admit(
        &self,
        order: &Order,
        head: &response::Parts,
        length: Option<u64>,
        timing: Timing,
    ) -> Result<((Terms, Vec<HeaderName>), Option<Selecting>), Refusal> {
        if order.is_suspicious(head.status) {
            return Err(Refusal::Status);
        }
        let fields = deciding(&head.headers, &head.extensions);
        let admission = policy::storable(order.traits, head.status, &fields, timing, &order.policy)?;
        if length.is_some_and(|length| length > order.policy.max_object) {
            return Err(Refusal::TooLarge);
        }
        match Varies::of(&fields, &order.request) {
            Varies::No => Ok((admission, None)),
            Varies::By(selecting) => Ok((admission, Some(selecting))),
            Varies::ByAnything => Err(Refusal::Vary),
        }
    }

    /// Marks the group of a fetch so that its requests go to the nodes one by one for [`PASS`], unless the refusal is
    /// specific to this request. `is_one_left`: other requests still have a stored response.
    fn note_refusal(
        &self,
        leader: &FetchLeader,
        order: &Order,
        status: StatusCode,
        refusal: Refusal,
        is_one_left: bool,
    ) {
        let is_own = match is_one_left {
            true => policy::is_private_to_request(order.traits, status, refusal),
            false => policy::is_specific_to_requester(order.traits, status) || order.traits.no_store,
        };
        if !is_own && !order.is_suspicious(status) && !order.traits.is_post {
            self.store.mark(leader.key, self.now() + PASS, None);
        }
    }

    /// Waits until the readers have taken enough of a body for more of it to be buffered.
    async fn room(&self, streaming: &StreamingBody, least: LeastRate) -> Demand {
        let room = || poll_fn(|cx| streaming.poll_room(cx, self.memory));
        if let Poll::Ready(demand) = poll_fn(|cx| Poll::Ready(streaming.poll_room(cx, self.memory))).await {
            return demand;
        }
        loop {
            let began = Instant::now();
            let demand = tokio::time::timeout(READER_TICK, room()).await;
            streaming.waited(began.elapsed(), least);
            if let Ok(demand) = demand {
                return demand;
            }
        }
    }

    /// Copies a body into the streaming body. Returns whether it was complete.
    async fn pump<B: HttpBody<Data = Bytes> + Unpin>(
        &self,
        leader: &FetchLeader,
        order: &Order,
        mut body: B,
        streaming: &StreamingBody,
    ) -> bool {
        let mut is_joinable = true;
        loop {
            if self.room(streaming, order.policy.least_rate).await == Demand::Stop {
                return false;
            }
            match poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                None => return true,
                Some(Err(_)) => return false,
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        streaming.push(data, self.memory);
                    }
                }
            }
            if is_joinable && streaming.is_outgrown() {
                leader.leave();
                leader.token.retire();
                is_joinable = false;
            }
        }
    }
}

/// Returns the terms of a response that is served once and not stored.
fn once(timing: Timing) -> Terms {
    Terms {
        born: timing.received,
        lifetime: 0,
        stale_while_revalidate: 0,
        stale_if_error: 0,
        always_validate: true,
        never_stale: true,
    }
}
