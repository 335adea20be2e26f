//! The rules of RFC 9111 for one response, as pure functions: storage ([`storable`]), freshness, age and
//! reuse ([`reuse`]).

use super::directives::{Ignored, RequestDirectives, ResponseDirectives};
use super::least_rate::LeastRate;
use crate::config::{ClientDirectives, IgnoredDirective, Limits, RouteCache};
use crate::http::date;
use http::header::{AGE, DATE, ETAG, EXPIRES, LAST_MODIFIED, SET_COOKIE};
use http::{HeaderMap, HeaderName, StatusCode};
use std::time::Duration;

/// A duration, or a time of the monotonic clock, in milliseconds.
pub(crate) type Milliseconds = i64;

/// The heuristic lifetime is the time since `Last-Modified` divided by this (RFC 9111 4.2.2).
const HEURISTIC_FRACTION: i64 = 10;

/// The cache rules of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CachePolicy {
    pub(crate) default_ttl: Milliseconds,
    pub(crate) negative_ttl: Milliseconds,
    /// The longest heuristic freshness lifetime (RFC 9111 4.2.2); 0 for none.
    pub(crate) heuristic_max: Milliseconds,
    pub(crate) stale_while_revalidate: Milliseconds,
    pub(crate) stale_if_error: Milliseconds,
    pub(crate) honours_clients: bool,
    pub(crate) stores_set_cookie: bool,
    /// A response with `s-maxage` may be served stale where its own directives allow that.
    pub(crate) allows_stale_with_s_maxage: bool,
    /// The freshness lifetime of responses with a status below 400; it overrides their own.
    pub(crate) ttl: Option<Milliseconds>,
    pub(crate) ignored: Ignored,
    pub(crate) max_object: u64,
    /// The least rate of a reader for which other readers of a body wait.
    pub(crate) least_rate: LeastRate,
}

impl CachePolicy {
    /// Returns the policy of a route; `largest` bounds the size of a stored body by that of the cache.
    pub(crate) fn of(route: &RouteCache, stale_if_error: Duration, largest: u64, limits: &Limits) -> CachePolicy {
        let overrides = route.r#override.as_ref();
        let ignores = |directive| overrides.is_some_and(|overrides| overrides.ignore.contains(&directive));
        CachePolicy {
            default_ttl: milliseconds(route.default_ttl),
            negative_ttl: milliseconds(route.negative_ttl),
            heuristic_max: milliseconds(route.heuristic_max),
            stale_while_revalidate: milliseconds(route.stale_while_revalidate),
            stale_if_error: milliseconds(stale_if_error),
            honours_clients: route.client_directives == ClientDirectives::Honour,
            stores_set_cookie: route.store_set_cookie,
            allows_stale_with_s_maxage: route.allow_stale_with_s_maxage,
            ttl: overrides.and_then(|overrides| overrides.ttl).map(milliseconds),
            ignored: Ignored {
                private: ignores(IgnoredDirective::Private),
                no_cache: ignores(IgnoredDirective::NoCache),
                no_store: ignores(IgnoredDirective::NoStore),
            },
            max_object: route.max_object.0.min(largest),
            least_rate: LeastRate { bytes: limits.body_min_rate.0, grace: limits.write_timeout },
        }
    }
}

#[cfg(any(test, feature = "fuzzing"))]
impl CachePolicy {
    /// Returns a policy that adds nothing to what responses say.
    pub(crate) fn plain() -> CachePolicy {
        CachePolicy {
            default_ttl: 0,
            negative_ttl: 0,
            heuristic_max: 86_400_000,
            stale_while_revalidate: 0,
            stale_if_error: 0,
            honours_clients: false,
            stores_set_cookie: false,
            allows_stale_with_s_maxage: false,
            ttl: None,
            ignored: Ignored::default(),
            max_object: 1 << 20,
            least_rate: LeastRate { bytes: 240, grace: Duration::from_secs(30) },
        }
    }
}

pub(crate) fn milliseconds(duration: Duration) -> Milliseconds {
    Milliseconds::try_from(duration.as_millis()).unwrap_or(Milliseconds::MAX)
}

pub(super) fn in_milliseconds(seconds: u32) -> Milliseconds {
    i64::from(seconds) * 1000
}

/// The traits of the request that a response answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RequestTraits {
    /// Another method than GET and HEAD; its response is stored only where `Content-Location` names its own URI.
    pub(crate) is_post: bool,
    pub(crate) has_authorization: bool,
    pub(crate) has_cookie: bool,
    pub(crate) no_store: bool,
}

/// The time of a request and of its response (RFC 9111 4.2.3: `request_time` and `response_time`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timing {
    pub(crate) requested: Milliseconds,
    pub(crate) received: Milliseconds,
    /// The time of the response on the wall clock, in seconds since 1970.
    pub(crate) received_at: i64,
}

/// Why a response is not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// 206, 304, or a status that `must-understand` forbids to guess about (5.2.2.3).
    Status,
    /// `no-store` of the response (5.2.2.5) or of the request (5.2.1.5).
    NoStore,
    /// `private` (5.2.2.7).
    Private,
    /// The request had `Authorization` and nothing allows to share the response (3.5).
    Authorization,
    /// `Set-Cookie`, which the route does not store.
    SetCookie,
    /// `Vary: *`, or a field that tells all clients apart (4.1).
    Vary,
    /// Neither a freshness lifetime nor a validator.
    NeverUsable,
    /// Larger than the route stores.
    TooLarge,
}

/// The terms on which a response is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    /// The time at which it was zero seconds old (4.2.3).
    pub(crate) born: Milliseconds,
    /// The time for which it is fresh from then on (4.2.1).
    pub(crate) lifetime: Milliseconds,
    /// The seconds after that in which it may be served while it is validated (RFC 5861 3).
    pub(crate) stale_while_revalidate: u32,
    /// The seconds after that in which it may be served when the node fails (RFC 5861 4).
    pub(crate) stale_if_error: u32,
    /// `no-cache`: never served without validation (5.2.2.4).
    pub(crate) always_validate: bool,
    /// `must-revalidate`, `proxy-revalidate` or `s-maxage`: never served stale, not even to a client with `max-stale`.
    pub(crate) never_stale: bool,
}

/// Returns whether a response may be stored, and on which terms, without which fields (RFC 9111 3).
pub(crate) fn storable(
    traits: RequestTraits,
    status: StatusCode,
    fields: &HeaderMap,
    timing: Timing,
    policy: &CachePolicy,
) -> Result<(Terms, Vec<HeaderName>), Refusal> {
    let directives = ResponseDirectives::of(fields).without(policy.ignored);
    if matches!(status, StatusCode::PARTIAL_CONTENT | StatusCode::NOT_MODIFIED) {
        return Err(Refusal::Status);
    }
    if directives.must_understand && !is_understood(status) {
        return Err(Refusal::Status);
    }
    // A cache that understands the status is to ignore the `no-store` beside `must-understand`.
    if traits.no_store || (directives.no_store && !directives.must_understand) {
        return Err(Refusal::NoStore);
    }
    if directives.private {
        return Err(Refusal::Private);
    }
    let is_shared = directives.public || directives.must_revalidate || directives.s_maxage.is_some();
    if traits.has_authorization && !is_shared {
        return Err(Refusal::Authorization);
    }
    let withholds_cookie = directives.withheld.contains(&SET_COOKIE);
    if fields.contains_key(SET_COOKIE) && !policy.stores_set_cookie && !withholds_cookie {
        return Err(Refusal::SetCookie);
    }
    // The response to another method than GET must carry an explicit lifetime of its own (RFC 9110 9.3.3).
    let configured = policy.ttl.filter(|_| status.as_u16() < 400 && !traits.is_post);
    let explicit = configured.or_else(|| explicit_lifetime(&directives, fields, timing));
    let lifetime = match explicit {
        Some(lifetime) => lifetime,
        None if traits.is_post => return Err(Refusal::NeverUsable),
        None if directives.no_cache => 0,
        // The response may be specific to the user whom the cookie identifies; only the origin can say that it is not.
        None if traits.has_cookie && !directives.public => return Err(Refusal::NeverUsable),
        None if traits.has_cookie => 0,
        None => implied_lifetime(&directives, status, fields, timing, policy),
    };
    let may_be_kept =
        explicit.is_some() || directives.public || directives.no_cache || is_heuristically_cacheable(status);
    let has_validator = fields.contains_key(ETAG) || last_modified(fields).is_some();
    if !may_be_kept && lifetime == 0 || (lifetime == 0 || directives.no_cache) && !has_validator {
        return Err(Refusal::NeverUsable);
    }
    let never_stale = directives.forbids_stale(policy.allows_stale_with_s_maxage);
    // With `s-maxage` the configured stale times do not apply, only the response's own directives.
    let is_strict = directives.s_maxage.is_some();
    let stale = |given: Option<u32>, configured: Milliseconds| match given {
        _ if never_stale => 0,
        Some(seconds) => seconds,
        None if is_strict => 0,
        None => u32::try_from(configured.max(0).unsigned_abs().div_ceil(1000)).unwrap_or(u32::MAX),
    };
    let terms = Terms {
        born: timing.received - initial_age(fields, timing),
        lifetime,
        stale_while_revalidate: stale(directives.stale_while_revalidate, policy.stale_while_revalidate),
        stale_if_error: stale(directives.stale_if_error, policy.stale_if_error),
        always_validate: directives.no_cache,
        never_stale,
    };
    Ok((terms, directives.withheld))
}

/// Returns the explicit freshness lifetime of a response (4.2.1).
fn explicit_lifetime(directives: &ResponseDirectives, fields: &HeaderMap, timing: Timing) -> Option<Milliseconds> {
    if let Some(seconds) = directives.s_maxage.or(directives.max_age) {
        return Some(i64::from(seconds) * 1000);
    }
    if directives.targeted {
        return None;
    }
    let mut lines = fields.get_all(EXPIRES).iter();
    let expires = lines.next()?;
    // Several lines of `Expires`, or an invalid date, count as a time in the past (5.3).
    let expires = if lines.next().is_some() { None } else { date::parse(expires) };
    let Some(expires) = expires else { return Some(0) };
    let date = generated(fields).unwrap_or(timing.received_at);
    Some(expires.saturating_sub(date).max(0).saturating_mul(1000))
}

/// Returns the freshness lifetime of a response without an explicit one: heuristic (4.2.2), then the configured one.
fn implied_lifetime(
    directives: &ResponseDirectives,
    status: StatusCode,
    fields: &HeaderMap,
    timing: Timing,
    policy: &CachePolicy,
) -> Milliseconds {
    if !is_heuristically_cacheable(status) && !directives.public {
        return 0;
    }
    if policy.heuristic_max > 0
        && let Some(modified) = last_modified(fields)
    {
        let date = generated(fields).unwrap_or(timing.received_at);
        let guessed = date.saturating_sub(modified).max(0).saturating_mul(1000) / HEURISTIC_FRACTION;
        return guessed.min(policy.heuristic_max);
    }
    match is_negative(status) {
        true => policy.negative_ttl,
        false => policy.default_ttl,
    }
}

/// Returns the age of a response at its arrival (4.2.3).
pub(crate) fn initial_age(fields: &HeaderMap, timing: Timing) -> Milliseconds {
    let apparent = generated(fields).map_or(0, |date| timing.received_at.saturating_sub(date).max(0));
    let corrected = age_value(fields).saturating_mul(1000).saturating_add(timing.received - timing.requested);
    apparent.saturating_mul(1000).max(corrected)
}

/// Returns the first member of `Age` in seconds; an invalid value counts as 0 (5.1).
fn age_value(fields: &HeaderMap) -> i64 {
    let first = fields.get(AGE).and_then(|value| value.as_bytes().split(|&byte| byte == b',').next());
    match first.map(<[u8]>::trim_ascii) {
        Some(digits) if !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) => {
            std::str::from_utf8(digits).ok().and_then(|digits| digits.parse::<u32>().ok()).unwrap_or(u32::MAX).into()
        }
        _ => 0,
    }
}

fn generated(fields: &HeaderMap) -> Option<i64> {
    fields.get(DATE).and_then(date::parse)
}

fn last_modified(fields: &HeaderMap) -> Option<i64> {
    fields.get(LAST_MODIFIED).and_then(date::parse)
}

/// Returns whether a status is heuristically cacheable (RFC 9110 15.1).
fn is_heuristically_cacheable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 451 | 501)
}

/// Returns whether `negative_ttl` applies to a status in place of `default_ttl`.
fn is_negative(status: StatusCode) -> bool {
    matches!(status.as_u16(), 404 | 405 | 410 | 414 | 451 | 501)
}

/// Returns whether the caching rules of a final status are known here, as `must-understand` requires (5.2.2.3).
fn is_understood(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200..=205 | 300..=303 | 305 | 307 | 308 | 400..=417 | 421 | 422 | 426 | 428 | 429 | 431 | 451 | 500..=505 | 511)
}

/// The ways in which a stored response may answer a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reuse {
    /// Without validation; `stale` where the client's `max-stale` allows a stale response.
    Yes { stale: bool },
    /// At once, while one request validates it in the background (RFC 5861 3).
    WhileValidating,
    /// Only after a node has validated it.
    AfterValidation,
}

/// Returns the way in which a stored response may answer a request at a point in time (RFC 9111 4).
///
/// `is_soft_purged`: a soft purge has made it stale. `requested`: the directives of the request, where they count.
pub(crate) fn reuse(
    terms: &Terms,
    now: Milliseconds,
    is_soft_purged: bool,
    requested: Option<&RequestDirectives>,
) -> Reuse {
    let age = now - terms.born;
    let stale_for = age - terms.lifetime;
    let requested = requested.copied().unwrap_or_default();
    if terms.always_validate || requested.no_cache {
        return Reuse::AfterValidation;
    }
    let within = |limit: Option<u32>, value: i64| limit.is_none_or(|seconds| value <= i64::from(seconds) * 1000);
    if !within(requested.max_age, age) && requested.max_stale.is_none() {
        return Reuse::AfterValidation;
    }
    let is_fresh = stale_for < 0 && !is_soft_purged;
    if is_fresh {
        let stays_fresh = requested.min_fresh.is_none_or(|seconds| stale_for + i64::from(seconds) * 1000 <= 0);
        return if stays_fresh { Reuse::Yes { stale: false } } else { Reuse::AfterValidation };
    }
    if terms.never_stale || requested.min_fresh.is_some() {
        return Reuse::AfterValidation;
    }
    if let Some(seconds) = requested.max_stale
        && !is_soft_purged
        && stale_for <= i64::from(seconds) * 1000
    {
        return Reuse::Yes { stale: true };
    }
    match stale_for.max(0) < in_milliseconds(terms.stale_while_revalidate) && requested.max_age.is_none() {
        true => Reuse::WhileValidating,
        false => Reuse::AfterValidation,
    }
}

/// Returns whether a status depends on the requester: it says nothing about the response to other requests.
pub(crate) fn is_specific_to_requester(traits: RequestTraits, status: StatusCode) -> bool {
    match status.as_u16() {
        400 | 402 | 405..=409 | 411..=429 | 431 => true,
        401 | 403 => traits.has_authorization || traits.has_cookie,
        _ => false,
    }
}

/// Returns whether a response may be unstorable because of the requester alone. Such a response does not invalidate
/// the stored one; otherwise any client could remove a page from the cache.
pub(crate) fn is_private_to_request(traits: RequestTraits, status: StatusCode, refusal: Refusal) -> bool {
    traits.no_store
        || is_specific_to_requester(traits, status)
        || match refusal {
            Refusal::Private | Refusal::SetCookie => traits.has_authorization || traits.has_cookie,
            // A success for credentials is specific to them; an error status (404, 410) is not.
            Refusal::Authorization => status.is_success(),
            Refusal::NeverUsable => traits.has_cookie && status.is_success(),
            Refusal::Status | Refusal::NoStore | Refusal::Vary | Refusal::TooLarge => false,
        }
}

/// Returns whether a response that cannot be stored removes the stored response that it supersedes.
pub(crate) fn supersedes(traits: RequestTraits, status: StatusCode, refusal: Refusal, stored: StatusCode) -> bool {
    // A server error says nothing about the resource, but it does replace a stored server error.
    !is_private_to_request(traits, status, refusal) && (!status.is_server_error() || stored.is_server_error())
}

/// Returns whether a stale response may be served in place of a node's error (RFC 5861 4).
pub(crate) fn stands_in(terms: &Terms, now: Milliseconds) -> bool {
    !terms.never_stale && now - terms.born - terms.lifetime < in_milliseconds(terms.stale_if_error)
}

#[cfg(test)]
pub(super) mod tests;
