//! The objects of the store: responses and markers under one key.

use super::body::{self, Body, Run};
use super::directives::RequestDirectives;
use super::packed_headers::PackedHeaders;
use super::policy::{self, Milliseconds, Reuse, Terms};
use super::purge::{Epoch, Turn};
use super::vary::{Selecting, Varies};
use crate::consistency::StoredTag;
use crate::http::fields::content_length;
use crate::http::head::RequestFields;
use bytes::Bytes;
use http::header::{AGE, DATE, ETAG, LAST_MODIFIED};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use smallvec::SmallVec;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};

/// The memory of an object besides its fields, body and URI: its structures here and in the table.
pub(super) const OVERHEAD: usize = 440;

/// The memory of one key in the index of its URI's keys.
const LISTED: usize = 96;

/// The memory of a marker: the same structures as those of an object.
const MARKER: usize = 444;

/// The most variants of a key. Those that were never used are evicted first, the oldest of them first, then the least
/// recently used.
pub(super) const MAX_VARIANTS: usize = 32;

/// The first pause after a node failed while a stale response was available, and the longest.
const FIRST_PAUSE: Milliseconds = 1000;
const LONGEST_PAUSE: Milliseconds = 30_000;

/// Hop-by-hop and per-response fields that are never stored (RFC 9111 3.1, RFC 9211 2).
const NEVER_STORED: [&str; 8] = [
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-authorization",
    "te",
    "trailer",
    "age",
    "cache-status",
    "content-length",
];

/// Fields that a 304 does not update, as they describe the stored body (RFC 9111 3.2).
const KEPT_BY_304: [&str; 5] =
    ["content-length", "content-encoding", "content-range", "content-md5", "transfer-encoding"];

/// The resolution in which uses are recorded, in milliseconds.
const USE_TICK: Milliseconds = 64;

/// The entry under a key.
#[derive(Debug)]
pub(super) enum StoredEntry {
    Object(Object),
    Marker(Marker),
}

/// The responses of one key, newest first.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) uri: Box<str>,
    /// There may be other keys of the same URI.
    pub(super) is_listed: bool,
    pub(super) variants: Variants,
}

/// The responses to one key: nearly always one.
#[derive(Debug)]
pub(super) enum Variants {
    One(Stored),
    More(Box<[Stored]>),
}

impl std::ops::Deref for Variants {
    type Target = [Stored];

    fn deref(&self) -> &[Stored] {
        match self {
            Variants::One(stored) => std::slice::from_ref(stored),
            Variants::More(variants) => variants,
        }
    }
}

impl FromIterator<Stored> for Variants {
    fn from_iter<I: IntoIterator<Item = Stored>>(variants: I) -> Variants {
        let mut variants = variants.into_iter();
        match (variants.next(), variants.next()) {
            (Some(one), None) => Variants::One(one),
            (first, second) => Variants::More(first.into_iter().chain(second).chain(variants).collect()),
        }
    }
}

/// The hints of a key for later requests.
#[derive(Debug)]
pub(super) struct Marker {
    /// The time until which its requests are not collapsed.
    pub(super) pass_until: Milliseconds,
    /// The selecting fields of the newest response.
    pub(super) varies: Option<Selecting>,
}

/// A soft purge has made the response stale.
const SOFT_PURGED: u8 = 1;
/// An event of the fleet may have been missed since the response was validated.
const IN_DOUBT: u8 = 2;
/// The validation of a response in doubt has begun.
const UNDER_VALIDATION: u8 = 4;

/// Parts that few responses have.
#[derive(Clone, Debug)]
struct Rare {
    varies: Option<Selecting>,
    tags: Box<[u64]>,
    /// The tag of the response, on a route with a guarantee.
    causal: Option<Box<StoredTag>>,
}

impl Rare {
    fn of(varies: Option<Selecting>, tags: Box<[u64]>, causal: Option<Box<StoredTag>>) -> Option<Box<Rare>> {
        let is_there = varies.is_some() || !tags.is_empty() || causal.is_some();
        is_there.then(|| Box::new(Rare { varies, tags, causal }))
    }
}

/// One stored response. There may be millions: what few of them have stands elsewhere.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) status: StatusCode,
    fields: PackedHeaders,
    /// The segments of the body. A small body has none.
    segments: Option<Box<Arc<[Bytes]>>>,
    /// The place of the rest of the body behind the fields.
    rest_at: u32,
    pub(super) terms: Terms,
    rare: Option<Box<Rare>>,
    /// The last epoch whose rules were checked and do not apply: at first the one at which its request, or its
    /// validation, began.
    pub(super) checked: AtomicU64,
    /// The turn of that request, truncated.
    pub(super) turn: u32,
    /// [`SOFT_PURGED`], [`IN_DOUBT`], [`UNDER_VALIDATION`].
    marks: AtomicU8,
    /// The time of the last use, from 1; 0 for never. Recorded only where there may be other variants.
    used: AtomicU32,
    /// The time until which the node is not asked again, in milliseconds, and in the lowest byte the number of
    /// consecutive failures.
    pause: AtomicU64,
}

impl Clone for Stored {
    fn clone(&self) -> Stored {
        Stored {
            status: self.status,
            fields: self.fields.clone(),
            segments: self.segments.clone(),
            rest_at: self.rest_at,
            terms: self.terms,
            rare: self.rare.clone(),
            checked: AtomicU64::new(self.checked.load(Relaxed)),
            turn: self.turn,
            marks: AtomicU8::new(self.marks.load(Relaxed)),
            used: AtomicU32::new(self.used.load(Relaxed)),
            pause: AtomicU64::new(self.pause.load(Relaxed)),
        }
    }
}

impl Stored {
    /// Returns a stored response without its body.
    pub(crate) fn new(
        status: StatusCode,
        mut fields: HeaderMap,
        (terms, withheld): (Terms, Vec<HeaderName>),
        request: &RequestFields,
        received_at: i64,
        (epoch, turn): (Epoch, Turn),
    ) -> Stored {
        let tags = tags(&fields);
        // A message without a date gets the time of its arrival (RFC 9110 6.6.1).
        if !fields.contains_key(DATE)
            && let Some(date) = crate::http::date::format(received_at)
        {
            fields.insert(DATE, date);
        }
        let varies = match Varies::of(&fields, request) {
            Varies::By(selecting) => Some(selecting),
            Varies::No | Varies::ByAnything => None,
        };
        for name in NEVER_STORED {
            fields.remove(name);
        }
        for name in &withheld {
            fields.remove(name);
        }
        let fields = PackedHeaders::pack(&fields);
        Stored {
            status,
            rest_at: fields.end(),
            fields,
            segments: None,
            terms,
            rare: Rare::of(varies, tags, None),
            checked: AtomicU64::new(epoch),
            turn: turn as u32,
            marks: AtomicU8::new(0),
            used: AtomicU32::new(0),
            pause: AtomicU64::new(0),
        }
    }

    /// Returns the response with its body, where it had none.
    pub(super) fn with_body(mut self, body: Body) -> Stored {
        self.rest_at = self.fields.append(&body.rest);
        self.segments = body.segments.map(Box::new);
        self
    }

    /// Returns the response with another tag, or without one.
    pub(super) fn with_tag(mut self, causal: Option<StoredTag>) -> Stored {
        if causal.is_some() || self.causal_tag().is_some() {
            let (varies, tags) = self.rare.take().map_or_else(Default::default, |rare| (rare.varies, rare.tags));
            self.rare = Rare::of(varies, tags, causal.map(Box::new));
        }
        self
    }

    /// Returns what it is no older than, on a route with a guarantee.
    pub(crate) fn causal_tag(&self) -> Option<&StoredTag> {
        self.rare.as_ref()?.causal.as_deref()
    }

    /// Returns the request fields that choose it, where it is one of several responses.
    pub(super) fn varies(&self) -> Option<&Selecting> {
        self.rare.as_ref()?.varies.as_ref()
    }

    /// Returns the tags that it can be purged by, hashed.
    pub(super) fn tags(&self) -> &[u64] {
        self.rare.as_ref().map_or(&[], |rare| &rare.tags)
    }

    /// Returns its fields with its current age (RFC 9111 5.1).
    pub(crate) fn head(&self, now: Milliseconds) -> HeaderMap {
        let mut head = HeaderMap::with_capacity(self.fields.len() + 4);
        self.fields.unpack(&mut head);
        head.insert(AGE, HeaderValue::from(self.age(now)));
        head
    }

    /// Returns its age in whole seconds.
    pub(crate) fn age(&self, now: Milliseconds) -> u32 {
        u32::try_from((now - self.terms.born).max(0) / 1000).unwrap_or(1 << 31)
    }

    /// Returns the seconds until it becomes stale; negative since then, and since a soft purge.
    pub(crate) fn ttl(&self, now: Milliseconds) -> i64 {
        let left = (self.terms.born + self.terms.lifetime - now).div_euclid(1000);
        if self.is_soft_purged() { left.min(-1) } else { left }
    }

    pub(crate) fn body(&self) -> Body {
        Body { segments: self.segments.as_deref().cloned(), rest: self.fields.behind(self.rest_at) }
    }

    /// Returns the body as it is written at once; one that is longer than a segment is read by a [`Reader`].
    ///
    /// [`Reader`]: super::Reader
    pub(crate) fn run(&self) -> Result<Run, Body> {
        match self.segments.as_deref().map(AsRef::as_ref) {
            Some([all]) if self.rest_at == self.fields.end() => Ok(Run::One(all.clone())),
            _ => self.body().into_run(),
        }
    }

    pub(crate) fn body_len(&self) -> u64 {
        let segments = self.segments.iter().flat_map(|segments| segments.iter());
        segments.map(|segment| segment.len() as u64).sum::<u64>() + u64::from(self.fields.end() - self.rest_at)
    }

    pub(crate) fn field(&self, name: &HeaderName) -> Option<HeaderValue> {
        self.fields.get(name)
    }

    /// Returns the strong validator by which its parts can be combined.
    pub(crate) fn strong_tag(&self) -> Option<HeaderValue> {
        self.fields.get(&ETAG).filter(|tag| tag.as_bytes().starts_with(b"\""))
    }

    /// Returns whether its request began before another one's. Turns wrap around.
    pub(super) fn is_older_than(&self, other: &Stored) -> bool {
        self.is_from_before(other.turn.into())
    }

    /// Returns whether its request began before a turn.
    pub(super) fn is_from_before(&self, turn: Turn) -> bool {
        (1..1 << 31).contains(&(turn as u32).wrapping_sub(self.turn))
    }

    /// Returns whether a request selects this variant.
    pub(crate) fn is_for(&self, request: &RequestFields) -> bool {
        self.varies().is_none_or(|selecting| selecting.matches(request))
    }

    pub(crate) fn reuse(&self, now: Milliseconds, requested: Option<&RequestDirectives>) -> Reuse {
        match self.marks.load(Relaxed) {
            0 => policy::reuse(&self.terms, now, false, requested),
            SOFT_PURGED => policy::reuse(&self.terms, now, true, requested),
            _ => Reuse::AfterValidation,
        }
    }

    /// Returns how it can be reused where nobody can say whether it has changed, and the operator has chosen to serve
    /// it all the same: a doubt counts for nothing.
    pub(crate) fn reuse_unverified(&self, now: Milliseconds, requested: Option<&RequestDirectives>) -> Reuse {
        policy::reuse(&self.terms, now, self.is_soft_purged(), requested)
    }

    pub(crate) fn is_fresh(&self, now: Milliseconds) -> bool {
        matches!(self.reuse(now, None), Reuse::Yes { stale: false })
    }

    /// Makes the response stale.
    pub(super) fn soft_purge(&self) {
        self.marks.fetch_or(SOFT_PURGED, Relaxed);
    }

    pub(super) fn is_soft_purged(&self) -> bool {
        self.marks.load(Relaxed) & SOFT_PURGED != 0
    }

    /// Has the response validated before it is served again.
    pub(super) fn doubt(&self) {
        // One that is under validation since an earlier doubt needs another one.
        let _ = self.marks.fetch_update(Relaxed, Relaxed, |marks| Some(marks & SOFT_PURGED | IN_DOUBT));
    }

    /// Returns whether the response must be validated because an event of the fleet may have been missed.
    pub(crate) fn is_in_doubt(&self) -> bool {
        self.marks.load(Relaxed) & IN_DOUBT != 0
    }

    /// Notes that the validation of a response in doubt begins. Returns whether it is the first request to do so.
    pub(super) fn begin_validation(&self) -> bool {
        self.marks.fetch_or(UNDER_VALIDATION, Relaxed) & UNDER_VALIDATION == 0
    }

    /// Ends a validation that was not begun after all.
    pub(super) fn put_off_validation(&self) {
        self.marks.fetch_and(!UNDER_VALIDATION, Relaxed);
    }

    /// Takes over the marks of the response that this one replaces without a validation.
    pub(super) fn keep_marks_of(&self, other: &Stored) {
        self.marks.store(other.marks.load(Relaxed), Relaxed);
    }

    /// Returns whether several requests may share the response to one validation (RFC 9111 4).
    pub(crate) fn may_be_shared(&self) -> bool {
        !self.terms.always_validate && self.terms.lifetime > 0
    }

    /// Returns whether it may be served in place of a node's error. A stored error is no better than the new one.
    pub(crate) fn stands_in(&self, now: Milliseconds) -> bool {
        !self.status.is_server_error() && !self.is_in_doubt() && policy::stands_in(&self.terms, now)
    }

    /// Records a use.
    pub(crate) fn note_use(&self, now: Milliseconds) {
        if self.varies().is_some() {
            self.used.store(u32::try_from(now.max(0) / USE_TICK + 1).unwrap_or(u32::MAX), Relaxed);
        }
    }

    /// Returns whether the node has failed so recently that it is not asked again.
    pub(crate) fn is_pausing(&self, now: Milliseconds) -> bool {
        now.max(0).unsigned_abs() < self.pause.load(Relaxed) >> 8
    }

    /// Records a failure of the node. Requests that fail together count as one failure.
    pub(super) fn pause(&self, now: Milliseconds) {
        // A request for a stored error goes to the node, which may have recovered.
        if self.status.is_server_error() || self.is_pausing(now) {
            return;
        }
        let failures = (self.pause.load(Relaxed) & 0xff).min(16);
        let pause = (FIRST_PAUSE << failures).min(LONGEST_PAUSE);
        self.pause.store((now + pause).max(0).unsigned_abs() << 8 | (failures + 1), Relaxed);
    }

    /// Adds the validators of this response to a request (RFC 9111 4.3.1). Returns whether there are any.
    pub(crate) fn add_conditions(&self, request: &mut HeaderMap) -> bool {
        use http::header::{IF_MODIFIED_SINCE, IF_NONE_MATCH};
        let validators =
            [(IF_NONE_MATCH, self.fields.get(&ETAG)), (IF_MODIFIED_SINCE, self.fields.get(&LAST_MODIFIED))];
        let mut any = false;
        for (name, validator) in validators {
            if let Some(validator) = validator {
                request.insert(name, validator);
                any = true;
            }
        }
        any
    }

    /// Returns whether a 304 validates this response (RFC 9111 4.3.4).
    pub(crate) fn is_confirmed_by(&self, fields: &HeaderMap) -> bool {
        let agrees = |name: &HeaderName| match (fields.get(name), self.fields.get(name)) {
            (Some(told), Some(known)) => strip_weak(told.as_bytes()) == strip_weak(known.as_bytes()),
            (Some(_), None) => *name != ETAG,
            (None, _) => true,
        };
        agrees(&ETAG) && (fields.contains_key(ETAG) || agrees(&LAST_MODIFIED))
    }

    /// Returns the relation of the response to a HEAD to this one (RFC 9111 4.3.5).
    pub(crate) fn compare_with_head(&self, fields: &HeaderMap) -> HeadFinding {
        let is_same_tag = |told: &HeaderValue| {
            self.fields.get(&ETAG).is_some_and(|known| strip_weak(told.as_bytes()) == strip_weak(known.as_bytes()))
        };
        let tag = fields.get(ETAG).map(is_same_tag);
        let modified = fields.get(LAST_MODIFIED).map(|told| self.fields.get(&LAST_MODIFIED).as_ref() == Some(told));
        let length = content_length(fields).map(|length| length == self.body_len());
        match (tag, modified) {
            _ if [tag, modified, length].contains(&Some(false)) => HeadFinding::Differs,
            (None, None) => HeadFinding::Nothing,
            _ => HeadFinding::Same,
        }
    }

    /// Returns the fields after a 304 or an equal HEAD: new values replace the stored ones (RFC 9111 3.2). The tag is
    /// kept, as one that was matched weakly may be another body's (RFC 9111 4.3.4).
    pub(crate) fn freshened_fields(&self, told: &HeaderMap) -> HeaderMap {
        let mut fields = HeaderMap::with_capacity(self.fields.len() + told.len());
        self.fields.unpack(&mut fields);
        let has_tag = fields.contains_key(ETAG);
        let kept = |name: &HeaderName| KEPT_BY_304.contains(&name.as_str()) || (*name == ETAG && has_tag);
        for name in told.keys().filter(|name| !kept(name)) {
            fields.remove(name);
            for value in told.get_all(name) {
                fields.append(name, value.clone());
            }
        }
        fields
    }

    /// Returns this head with the body of an earlier response.
    pub(crate) fn take_body_of(self, older: &Stored) -> Stored {
        // The tags came in fields that are not stored, and a 304 need not repeat these.
        let tags = if self.tags().is_empty() { older.tags() } else { self.tags() };
        let rare = Rare::of(older.varies().cloned(), tags.into(), self.causal_tag().cloned().map(Box::new));
        Stored { status: older.status, rare, ..self }.with_body(older.body())
    }

    /// Returns its memory in bytes, without the overhead.
    pub(super) fn size(&self) -> usize {
        let rare = self.rare.as_ref().map_or(0, |rare| {
            let causal = rare.causal.as_ref().map_or(0, |tag| tag.size());
            size_of::<Rare>() + rare.varies.as_ref().map_or(0, Selecting::size) + size_of_val(&*rare.tags) + causal
        });
        self.fields.size() + self.segments.as_ref().map_or(0, |segments| body::size(segments)) + rare
    }
}

impl StoredEntry {
    /// Returns its memory in bytes.
    pub(super) fn weight(&self) -> u32 {
        let size = match self {
            StoredEntry::Object(object) => {
                let variants = &object.variants;
                let bodies: usize = variants.iter().map(Stored::size).sum();
                let listed = if object.is_listed { LISTED } else { 0 };
                object.uri.len() + bodies + OVERHEAD * variants.len().max(1) + listed
            }
            StoredEntry::Marker(marker) => MARKER + marker.varies.as_ref().map_or(0, Selecting::size),
        };
        u32::try_from(size).unwrap_or(u32::MAX)
    }
}

impl Object {
    /// Returns the object with a new response, in place of those that it replaces.
    pub(super) fn with(&self, stored: Stored, stays: impl Fn(&Stored) -> bool) -> Object {
        // A response without `Vary` is the only one.
        let mut others: SmallVec<[&Stored; 8]> = SmallVec::new();
        if stored.varies().is_some() {
            for other in self.variants.iter().filter(|other| other.varies().is_some()) {
                if other.varies() == stored.varies() {
                    stored.used.fetch_max(other.used.load(Relaxed), Relaxed);
                } else if stays(other) {
                    others.push(other);
                }
            }
            if others.len() >= MAX_VARIANTS {
                // Among equally used ones the newest stay; their order does not change.
                let mut uses: Vec<(u32, usize)> =
                    others.iter().map(|other| other.used.load(Relaxed)).zip(0..).collect();
                uses.sort_by_key(|&(used, place)| (std::cmp::Reverse(used), place));
                let mut kept: Vec<usize> = uses[..MAX_VARIANTS - 1].iter().map(|&(_, place)| place).collect();
                kept.sort_unstable();
                others = kept.into_iter().map(|place| others[place]).collect();
            }
        }
        let variants = std::iter::once(stored).chain(others.into_iter().cloned()).collect();
        Object { uri: self.uri.clone(), is_listed: self.is_listed, variants }
    }
}

/// The relation of the response to a HEAD to a stored response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeadFinding {
    /// A validator is equal, and nothing differs.
    Same,
    /// A GET would get another response.
    Differs,
    /// There is no validator. An equal length confirms nothing.
    Nothing,
}

/// Returns a tag without `W/`.
pub(super) fn strip_weak(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// Returns the hashed tags for purges: of `Cache-Tag` (commas) and `Surrogate-Key` (spaces).
pub(super) fn tags(fields: &HeaderMap) -> Box<[u64]> {
    let split = |name: &'static str, separator: u8| {
        fields.get_all(name).iter().flat_map(move |value| value.as_bytes().split(move |&byte| byte == separator))
    };
    split("cache-tag", b',')
        .chain(split("surrogate-key", b' '))
        .map(<[u8]>::trim_ascii)
        .filter(|tag| !tag.is_empty())
        .map(super::key::hash_text)
        .collect()
}

/// Shared by all its readers.
pub(crate) type SharedResponse = Arc<Stored>;
