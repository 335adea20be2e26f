//! Fetches, and their results: a response for all, one for its own client, a confirmation, a stand-in.

use super::fill::{FetchLeader, FetchOutcome};
use super::key::Key;
use super::least_rate::LeastRate;
use super::object::{HeadFinding, SharedResponse, Stored};
use super::policy::{self, CachePolicy, Milliseconds, Refusal, RequestTraits, Terms, Timing};
use super::store::{Address, CacheHit, FetchToken, Found};
use super::streaming_body::{Pace, StreamingBody, StreamingReader};
use super::vary::{Selecting, Varies};
use super::{Cache, PASS};
use crate::clock;
use crate::http::fields::{NamedByConnection, content_length};
use crate::http::head::RequestFields;
use bytes::Bytes;
use http::header::{DATE, TRAILER};
use http::{Extensions, HeaderMap, HeaderName, Response, StatusCode, response};
use http_body::Body as HttpBody;
use std::borrow::Cow;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::{Duration, Instant};

/// Errors that a request may have brought about by its own fields, when its head is longer than this,
/// are not believed by other requests.
const SUSPICIOUS_HEAD: usize = 4 << 10;

/// The interval at which slow readers are looked for while a fetch waits for them.
const READER_TICK: Duration = Duration::from_secs(1);

/// Where responses come from: one fetch a call.
pub(crate) trait FetchOrigin {
    type Body: HttpBody<Data = Bytes> + Unpin;
    type Failure;

    /// Asks for the whole response, or, where there is something to validate, whether it has changed.
    async fn fetch(&mut self, validated: Option<&Stored>) -> Result<Response<Self::Body>, Self::Failure>;
}

/// A fetch that a request asks for.
pub(crate) struct Order {
    pub(crate) key: Key,
    pub(crate) uri: String,
    /// The key has other parts than the URI.
    pub(crate) has_parts: bool,
    /// The fields of the request, by which responses are chosen.
    pub(crate) request: RequestFields,
    pub(crate) traits: RequestTraits,
    pub(crate) policy: Arc<CachePolicy>,
}

/// The result of a fetch for the request that led it.
pub(crate) enum LeaderResult<B, F> {
    /// A response that is not stored.
    Private(Response<B>),
    /// One whose body is arriving, to be stored as far as is known.
    Streaming {
        reader: StreamingReader,
        /// The fields that came but `Trailer`, also those that are not stored.
        own: HeaderMap,
        is_stored: bool,
    },
    /// A stored one that the node has confirmed, or that another fetch has brought meanwhile.
    Confirmed {
        stored: SharedResponse,
        /// The node was asked.
        asked: bool,
    },
    /// A stale one, for the node has failed.
    StandIn(SharedResponse),
    Failed(F),
}

/// A body that is to be read to its end, also when its client has left.
pub(crate) struct Arriving<B> {
    lead: FetchLeader,
    growing: Growth,
    body: B,
}

/// What becomes of a stored response whose fields have been told anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UpdateResult {
    /// It is stored under the new fields.
    Kept,
    /// They are for the client alone that asked; what is stored stays as it was.
    Private,
    /// What may not be kept as it is now may not be kept as it was.
    Gone,
}

/// A growing body that does not leave its readers waiting when its fetch has ended.
struct Growth(Arc<StreamingBody>);

impl Drop for Growth {
    fn drop(&mut self) {
        self.0.end(false);
    }
}

impl Order {
    fn address(&self) -> Address<'_> {
        Address { key: self.key, uri: &self.uri, is_listed: self.has_parts }
    }

    /// The group of a request before it is known by what its responses vary.
    pub(super) fn base_group(&self) -> Key {
        let RequestTraits { has_authorization, has_cookie, .. } = self.traits;
        self.key.derive(|part| part(&[u8::from(has_authorization), u8::from(has_cookie)]))
    }

    /// Returns whether an error may be this request's own doing, and says nothing of its URI.
    fn is_suspicious(&self, status: StatusCode) -> bool {
        let head = || self.request.plain().iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>();
        (status.is_client_error() || status.is_server_error()) && head() > SUSPICIOUS_HEAD
    }
}

/// Returns the group of those that choose the same response.
pub(super) fn variant_group(base: Key, selecting: &Selecting) -> Key {
    base.derive(|part| {
        selecting.each(|name, value| {
            part(name);
            part(&[u8::from(value.is_some())]);
            part(value.unwrap_or_default());
        });
    })
}

/// Returns an answer's fields as far as they decide: with those that its `Connection` has named, which go no further.
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

/// Returns the names of those fields.
fn named_by_connection(extensions: &Extensions) -> impl Iterator<Item = HeaderName> {
    extensions.get::<NamedByConnection>().into_iter().flat_map(|NamedByConnection(named)| named.keys().cloned())
}

/// Returns whether an answer counts as a failure of the node (RFC 5861 4).
pub(crate) fn is_failure(status: StatusCode) -> bool {
    matches!(status.as_u16(), 500 | 502..=504)
}

impl Cache {
    /// Fetches for all who wait, up to the head of the response; what arrives after that is to be
    /// handed to [`Cache::receive`]. `must_ask` tells that the client wants no stored response.
    pub(crate) async fn fetch<O: FetchOrigin>(
        &self,
        lead: FetchLeader,
        order: &Order,
        origin: &mut O,
        must_ask: bool,
    ) -> (LeaderResult<O::Body, O::Failure>, Option<Arriving<O::Body>>) {
        // Looked up once more: a purge may have come before this fetch began, or a response.
        let mut base = match self.store.look_up(order.key, &order.request) {
            Found::Response(held) => Some(held),
            Found::OtherVariants(_) | Found::Nothing => None,
        };
        if let Some(held) = base.as_ref().filter(|held| !must_ask && held.is_fresh(self.now())) {
            held.note_use(self.now());
            let stored = held.share();
            lead.settle(FetchOutcome::Stored { stored: Arc::clone(&stored), asked: false });
            return (LeaderResult::Confirmed { stored, asked: false }, None);
        }
        loop {
            let asked = self.now();
            let answer = origin.fetch(base.as_deref()).await;
            let timing = Timing { asked, came: self.now(), came_at: clock::unix_seconds().cast_signed() };
            let response = match answer {
                Ok(response) => response,
                Err(failure) => {
                    let Some(stale) = base.as_ref().and_then(|held| self.stand_in(&lead, order, held, timing.came))
                    else {
                        lead.settle(FetchOutcome::Released);
                        return (LeaderResult::Failed(failure), None);
                    };
                    lead.settle(FetchOutcome::StandIn(Arc::clone(&stale)));
                    return (LeaderResult::StandIn(stale), None);
                }
            };
            if let Some(held) = base.take() {
                if response.status() == StatusCode::NOT_MODIFIED {
                    if !held.is_confirmed_by(response.headers()) {
                        // It speaks of another response than the one that is here: ask for the whole.
                        continue;
                    }
                    let (told, _) = response.into_parts();
                    let stored = self.confirm(lead, order, &held, &told, timing);
                    return (LeaderResult::Confirmed { stored, asked: true }, None);
                }
                if is_failure(response.status())
                    && let Some(stale) = self.stand_in(&lead, order, &held, timing.came)
                {
                    lead.settle(FetchOutcome::StandIn(Arc::clone(&stale)));
                    return (LeaderResult::StandIn(stale), None);
                }
            }
            return self.deliver(lead, order, response, timing);
        }
    }

    /// Returns the stored response that stands in for a failed node, unless it was purged, changed or superseded
    /// meanwhile.
    fn stand_in(
        &self,
        lead: &FetchLeader,
        order: &Order,
        held: &CacheHit,
        now: Milliseconds,
    ) -> Option<SharedResponse> {
        let is_gone = lead.token.is_outdated() || self.store.is_gone(&order.uri, held);
        if is_gone { None } else { held.stand_in(now) }
    }

    /// The node has confirmed what is stored: its fields are updated, and it is fresh again.
    fn confirm(
        &self,
        lead: FetchLeader,
        order: &Order,
        held: &CacheHit,
        told: &response::Parts,
        timing: Timing,
    ) -> SharedResponse {
        let (stored, update) = self.freshened(order, held, told, timing, &lead.token);
        stored.note_use(timing.came);
        let is_kept = match update {
            UpdateResult::Kept => self.store.put(order.address(), stored.clone(), &lead.token, Some(held)),
            UpdateResult::Private => false,
            UpdateResult::Gone => {
                self.store.supersede(order.key, &lead.token, |stored| stored.is_for(&order.request));
                false
            }
        };
        let stored = Arc::new(stored);
        match is_kept && stored.may_be_shared() {
            true => lead.settle(FetchOutcome::Stored { stored: Arc::clone(&stored), asked: true }),
            false => lead.settle(FetchOutcome::Released),
        }
        stored
    }

    /// A stored response under new fields, and what is to become of it.
    fn freshened(
        &self,
        order: &Order,
        held: &Stored,
        told: &response::Parts,
        timing: Timing,
        token: &FetchToken,
    ) -> (Stored, UpdateResult) {
        let freshened = |told: &HeaderMap| {
            let mut fields = held.freshened_fields(told);
            if !told.contains_key(DATE) {
                // The time at which it came counts, and not that of what was stored.
                fields.remove(DATE);
            }
            fields
        };
        let said = freshened(&deciding(&told.headers, &told.extensions));
        // Whose request it was decides whether the fields may be everybody's.
        let traits = RequestTraits { is_post: false, no_store: false, ..order.traits };
        let judged = policy::storable(traits, held.status, &said, timing, &order.policy);
        let is_chosen_alike = match (Varies::of(&said, &order.request), &held.varies) {
            (Varies::No, None) => true,
            (Varies::By(now), Some(then)) => now.is_by_the_fields_of(then),
            _ => false,
        };
        let update = match &judged {
            Ok(_) if is_chosen_alike => UpdateResult::Kept,
            Err(Refusal::NeverUsable) => UpdateResult::Private,
            Err(refusal) if policy::is_private_to_request(traits, held.status, *refusal) => UpdateResult::Private,
            _ => UpdateResult::Gone,
        };
        let admission = judged.unwrap_or_else(|_| (once(timing), Vec::new()));
        let fields = freshened(&told.headers);
        let stored = Stored::new(held.status, fields, admission, &order.request, timing.came_at, token.moment());
        (stored.take_body_of(held), update)
    }

    /// The answer to a HEAD tells what a GET would find (RFC 9111 4.3.5).
    pub(crate) fn learn_from_head(
        &self,
        order: &Order,
        told: &response::Parts,
        asked: Milliseconds,
        token: &FetchToken,
    ) {
        let Found::Response(held) = self.store.look_up(order.key, &order.request) else { return };
        if told.status != held.status {
            return;
        }
        match held.compare_with_head(&deciding(&told.headers, &told.extensions)) {
            HeadFinding::Nothing => {}
            HeadFinding::Differs => held.is_soft_purged.store(true, Relaxed),
            HeadFinding::Same => {
                let timing = Timing { asked, came: self.now(), came_at: clock::unix_seconds().cast_signed() };
                let (stored, update) = self.freshened(order, &held, told, timing, token);
                // A soft-purged response is fresh again only once it has been validated itself.
                stored.is_soft_purged.store(held.is_soft_purged.load(Relaxed), Relaxed);
                if update == UpdateResult::Kept {
                    self.store.put(order.address(), stored, token, Some(&held));
                }
            }
        }
    }

    /// An answer that is not stored ends the stored one that it supersedes, unless that is its asker's own doing. Returns
    /// whether one is left.
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

    /// The same for an answer that its client alone has got, to a GET with conditions of its own.
    pub(crate) fn note_private(&self, order: &Order, token: &FetchToken, told: &response::Parts, asked: Milliseconds) {
        if matches!(told.status, StatusCode::PARTIAL_CONTENT | StatusCode::NOT_MODIFIED) {
            return;
        }
        let timing = Timing { asked, came: self.now(), came_at: clock::unix_seconds().cast_signed() };
        if let Err(refusal) = self.admit(order, told, content_length(&told.headers), timing) {
            self.supersede(order, token, told.status, refusal);
        }
    }

    /// Takes a response to all who may have it.
    fn deliver<B, F>(
        &self,
        mut lead: FetchLeader,
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
                let is_one_left = self.supersede(order, &lead.token, head.status, refusal);
                self.note_refusal(&lead, order, head.status, refusal, is_one_left);
                lead.settle(FetchOutcome::Released);
                return (LeaderResult::Private(Response::from_parts(head, body)), None);
            }
        };
        let terms = admission.0;
        let base = order.base_group();
        match selecting {
            // From now on requests know by what to group.
            Some(selecting) => {
                lead.answer_to(variant_group(base, &selecting));
                lead.token.is_for(variant_group(order.key, &selecting));
                self.store.mark(base, Milliseconds::MIN, Some(selecting));
            }
            None if self.store.marker(base, |marker| marker.varies.is_some()) == Some(true) => {
                self.store.mark(base, Milliseconds::MIN, None);
            }
            None => {}
        }
        let age = timing.came - terms.born;
        let is_shared =
            !terms.always_validate && age < terms.lifetime + policy::in_milliseconds(terms.stale_while_revalidate);
        let mut own = head.headers.clone();
        // Trailers are not stored, and readers of a body on its way to the store get none.
        own.remove(TRAILER);
        let mut admission = admission;
        admission.1.extend(named_by_connection(&head.extensions));
        let said = deciding(&head.headers, &head.extensions).into_owned();
        // A body of unknown length is too large or not only at its end.
        let is_stored =
            length.is_some_and(|length| self.has_room_for(length)) && !self.is_beaten(order, &said, &lead.token);
        let stored = Stored::new(head.status, said, admission, &order.request, timing.came_at, lead.token.moment());
        let growing = lead.grow(stored, length, order.policy.max_object, is_shared);
        let reader = growing.read().expect("nothing has arrived yet that could be too much");
        (LeaderResult::Streaming { reader, own, is_stored }, Some(Arriving { lead, growing: Growth(growing), body }))
    }

    /// Returns whether a body of that length finds room in the store, and on its way there.
    fn has_room_for(&self, length: u64) -> bool {
        length < self.memory - self.memory / 16 && self.fills.has_room_for(length)
    }

    /// Stores the response to another method, where it says that it is what a GET would find (RFC 9110
    /// 9.3.3).
    pub(crate) fn adopt<B, F>(
        &self,
        order: &Order,
        response: Response<B>,
        asked: Milliseconds,
        token: FetchToken,
    ) -> (LeaderResult<B, F>, Option<Arriving<B>>) {
        let timing = Timing { asked, came: self.now(), came_at: clock::unix_seconds().cast_signed() };
        self.deliver(self.fills.solo(&order.uri, order.base_group(), token), order, response, timing)
    }

    /// Takes the body of a response to those who read it and then into the store.
    pub(crate) async fn receive<B: HttpBody<Data = Bytes> + Unpin>(&self, order: &Order, arriving: Arriving<B>) {
        let Arriving { lead, growing, body } = arriving;
        let growing = &growing.0;
        let whole = self.pump(&lead, order, body, growing).await;
        if let Some(body) = growing.end(whole) {
            let stored = Stored::clone(&growing.head).with_body(body);
            self.store.put(order.address(), stored, &lead.token, None);
        } else {
            if growing.is_too_large() {
                self.store.mark(lead.narrowest(), self.now() + PASS, None);
            }
            // A body without readers is not read to its end.
            if whole || growing.is_too_large() {
                self.supersede(order, &lead.token, growing.head.status, Refusal::TooLarge);
            }
        }
    }

    /// Returns whether a response may be stored; on which terms, and by what it was chosen.
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
        let said = deciding(&head.headers, &head.extensions);
        let admission = policy::storable(order.traits, head.status, &said, timing, &order.policy)?;
        if length.is_some_and(|length| length > order.policy.max_object) {
            return Err(Refusal::TooLarge);
        }
        match Varies::of(&said, &order.request) {
            Varies::No => Ok((admission, None)),
            Varies::By(selecting) => Ok((admission, Some(selecting))),
            Varies::ByAnything => Err(Refusal::Vary),
        }
    }

    /// Remembers that requests like this one need not wait for one another, unless its own fields may
    /// be the reason. `is_one_left` tells that others have a stored response to wait with.
    fn note_refusal(&self, lead: &FetchLeader, order: &Order, status: StatusCode, refusal: Refusal, is_one_left: bool) {
        let is_own = match is_one_left {
            true => policy::is_private_to_request(order.traits, status, refusal),
            false => policy::is_askers_own_status(order.traits, status) || order.traits.no_store,
        };
        if !is_own && !order.is_suspicious(status) && !order.traits.is_post {
            self.store.mark(lead.key, self.now() + PASS, None);
        }
    }

    /// Waits until readers leave room for more of a body.
    async fn room(&self, growing: &StreamingBody, least: LeastRate) -> Pace {
        let room = || poll_fn(|cx| growing.poll_room(cx, self.memory));
        if let Poll::Ready(pace) = poll_fn(|cx| Poll::Ready(growing.poll_room(cx, self.memory))).await {
            return pace;
        }
        loop {
            let began = Instant::now();
            let pace = tokio::time::timeout(READER_TICK, room()).await;
            growing.waited(began.elapsed(), least);
            if let Ok(pace) = pace {
                return pace;
            }
        }
    }

    /// Reads a body to its end; gives whether it was whole.
    async fn pump<B: HttpBody<Data = Bytes> + Unpin>(
        &self,
        lead: &FetchLeader,
        order: &Order,
        mut body: B,
        growing: &StreamingBody,
    ) -> bool {
        let mut is_joinable = true;
        loop {
            if self.room(growing, order.policy.least_rate).await == Pace::Stop {
                return false;
            }
            match poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                None => return true,
                Some(Err(_)) => return false,
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        growing.push(data, self.memory);
                    }
                }
            }
            if is_joinable && growing.is_outgrown() {
                lead.leave();
                lead.token.retire();
                is_joinable = false;
            }
        }
    }
}

/// The terms of a response that is given out once and not kept.
fn once(timing: Timing) -> Terms {
    Terms {
        born: timing.came,
        lifetime: 0,
        stale_while_revalidate: 0,
        stale_if_error: 0,
        always_validate: true,
        never_stale: true,
    }
}
