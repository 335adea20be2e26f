//! What RFC 9111 says of one response: may it be stored, how long is it fresh, may it answer this
//! request. Plain values in, a named decision out.

use super::directives::{Ignored, RequestDirectives, ResponseDirectives};
use super::least_rate::LeastRate;
use crate::config::{ClientDirectives, IgnoredDirective, Limits, RouteCache};
use crate::http::date;
use http::header::{AGE, DATE, ETAG, EXPIRES, LAST_MODIFIED, SET_COOKIE};
use http::{HeaderMap, HeaderName, StatusCode};
use std::time::Duration;

/// A span or a point of the monotonic clock, in milliseconds.
pub(crate) type Milliseconds = i64;

/// The part of its age at which a response without a freshness of its own becomes stale.
const HEURISTIC_FRACTION: i64 = 10;

/// The cache rules of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CachePolicy {
    pub(crate) default_ttl: Milliseconds,
    pub(crate) negative_ttl: Milliseconds,
    /// The longest freshness that is only guessed; 0 for none.
    pub(crate) heuristic_max: Milliseconds,
    pub(crate) stale_while_revalidate: Milliseconds,
    pub(crate) stale_if_error: Milliseconds,
    pub(crate) honours_clients: bool,
    pub(crate) stores_set_cookie: bool,
    /// `s-maxage` does not forbid what a response says itself of being stale.
    pub(crate) allows_stale_with_s_maxage: bool,
    /// The freshness lifetime of responses below 400, whatever they say.
    pub(crate) ttl: Option<Milliseconds>,
    pub(crate) ignored: Ignored,
    pub(crate) max_object: u64,
    /// For readers of one body that hold up others.
    pub(crate) least_rate: LeastRate,
}

impl CachePolicy {
    /// `largest` is what the whole cache takes.
    pub(crate) fn of(route: &RouteCache, largest: u64, limits: &Limits) -> CachePolicy {
        let overrides = route.r#override.as_ref();
        let ignores = |directive| overrides.is_some_and(|overrides| overrides.ignore.contains(&directive));
        CachePolicy {
            default_ttl: milliseconds(route.default_ttl),
            negative_ttl: milliseconds(route.negative_ttl),
            heuristic_max: milliseconds(route.heuristic_max),
            stale_while_revalidate: milliseconds(route.stale_while_revalidate),
            stale_if_error: milliseconds(route.stale_if_error),
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

/// When a response was asked for and when it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timing {
    pub(crate) asked: Milliseconds,
    pub(crate) came: Milliseconds,
    /// The same moment on the calendar, in seconds since 1970.
    pub(crate) came_at: i64,
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
    /// Neither fresh for any time nor possible to validate.
    NeverUsable,
    /// Larger than the route stores.
    TooLarge,
}

/// On which terms a response is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    /// When it was zero seconds old (4.2.3).
    pub(crate) born: Milliseconds,
    /// The time for which it is fresh from then on (4.2.1).
    pub(crate) lifetime: Milliseconds,
    /// The seconds after that in which it may be served while it is validated (RFC 5861 3).
    pub(crate) stale_while_revalidate: u32,
    /// The seconds after that in which it may be served when the node fails (RFC 5861 4).
    pub(crate) stale_if_error: u32,
    /// `no-cache`: never without asking (5.2.2.4).
    pub(crate) always_validate: bool,
    /// `must-revalidate` and its like: never stale, not even for a client that would take it.
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
    let said = ResponseDirectives::of(fields).without(policy.ignored);
    if matches!(status, StatusCode::PARTIAL_CONTENT | StatusCode::NOT_MODIFIED) {
        return Err(Refusal::Status);
    }
    if said.must_understand && !is_understood(status) {
        return Err(Refusal::Status);
    }
    // A cache that understands the status is to ignore the `no-store` beside `must-understand`.
    if traits.no_store || (said.no_store && !said.must_understand) {
        return Err(Refusal::NoStore);
    }
    if said.private {
        return Err(Refusal::Private);
    }
    let is_shared = said.public || said.must_revalidate || said.s_maxage.is_some();
    if traits.has_authorization && !is_shared {
        return Err(Refusal::Authorization);
    }
    let withholds_cookie = said.withheld.contains(&SET_COOKIE);
    if fields.contains_key(SET_COOKIE) && !policy.stores_set_cookie && !withholds_cookie {
        return Err(Refusal::SetCookie);
    }
    // The answer to another method must say itself that reads may have it.
    let configured = policy.ttl.filter(|_| status.as_u16() < 400 && !traits.is_post);
    let explicit = configured.or_else(|| explicit_lifetime(&said, fields, timing));
    let lifetime = match explicit {
        Some(lifetime) => lifetime,
        None if traits.is_post => return Err(Refusal::NeverUsable),
        None if said.no_cache => 0,
        // It may be about whoever the cookie stands for; only the origin can say that it is not.
        None if traits.has_cookie && !said.public => return Err(Refusal::NeverUsable),
        None if traits.has_cookie => 0,
        None => implied_lifetime(&said, status, fields, timing, policy),
    };
    let may_be_kept = explicit.is_some() || said.public || said.no_cache || is_heuristically_cacheable(status);
    let has_validator = fields.contains_key(ETAG) || last_modified(fields).is_some();
    if !may_be_kept && lifetime == 0 || (lifetime == 0 || said.no_cache) && !has_validator {
        return Err(Refusal::NeverUsable);
    }
    let never_stale = said.forbids_stale(policy.allows_stale_with_s_maxage);
    // Then only what it says itself counts.
    let is_strict = said.s_maxage.is_some();
    let stale = |given: Option<u32>, configured: Milliseconds| match given {
        _ if never_stale => 0,
        Some(seconds) => seconds,
        None if is_strict => 0,
        None => u32::try_from(configured.max(0).unsigned_abs().div_ceil(1000)).unwrap_or(u32::MAX),
    };
    let terms = Terms {
        born: timing.came - initial_age(fields, timing),
        lifetime,
        stale_while_revalidate: stale(said.stale_while_revalidate, policy.stale_while_revalidate),
        stale_if_error: stale(said.stale_if_error, policy.stale_if_error),
        always_validate: said.no_cache,
        never_stale,
    };
    Ok((terms, said.withheld))
}

/// Returns how long the origin says that a response is fresh (4.2.1).
fn explicit_lifetime(said: &ResponseDirectives, fields: &HeaderMap, timing: Timing) -> Option<Milliseconds> {
    if let Some(seconds) = said.s_maxage.or(said.max_age) {
        return Some(i64::from(seconds) * 1000);
    }
    if said.targeted {
        return None;
    }
    let mut lines = fields.get_all(EXPIRES).iter();
    let expires = lines.next()?;
    // Several, or one that is no date, are in the past (5.3).
    let expires = if lines.next().is_some() { None } else { date::parse(expires) };
    let Some(expires) = expires else { return Some(0) };
    let date = generated(fields).unwrap_or(timing.came_at);
    Some(expires.saturating_sub(date).max(0).saturating_mul(1000))
}

/// Returns how long a response is fresh of which the origin says nothing (4.2.2, then the configuration).
fn implied_lifetime(
    said: &ResponseDirectives,
    status: StatusCode,
    fields: &HeaderMap,
    timing: Timing,
    policy: &CachePolicy,
) -> Milliseconds {
    if !is_heuristically_cacheable(status) && !said.public {
        return 0;
    }
    if policy.heuristic_max > 0
        && let Some(modified) = last_modified(fields)
    {
        let date = generated(fields).unwrap_or(timing.came_at);
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
    let apparent = generated(fields).map_or(0, |date| timing.came_at.saturating_sub(date).max(0));
    let told = told_age(fields).saturating_mul(1000).saturating_add(timing.came - timing.asked);
    apparent.saturating_mul(1000).max(told)
}

/// Returns the first member of `Age`; what is no number is ignored (5.1).
fn told_age(fields: &HeaderMap) -> i64 {
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

/// Statuses that may be kept without being told so (RFC 9110 15.1).
fn is_heuristically_cacheable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 451 | 501)
}

/// Answers that say that there is nothing.
fn is_negative(status: StatusCode) -> bool {
    matches!(status.as_u16(), 404 | 405 | 410 | 414 | 451 | 501)
}

/// Final statuses whose meaning for a cache is known here.
fn is_understood(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200..=205 | 300..=303 | 305 | 307 | 308 | 400..=417 | 421 | 422 | 426 | 428 | 429 | 431 | 451 | 500..=505 | 511)
}

/// Whether a stored response may answer a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reuse {
    /// As it is; `stale` where the client takes that.
    Yes { stale: bool },
    /// Now as it is, while one request asks the node whether it still holds.
    WhileValidating,
    /// Only after the node was asked.
    AfterValidation,
}

/// Decides on a stored response at a point in time (RFC 9111 4).
///
/// `is_soft_purged` tells that an operator has called it stale.
pub(crate) fn reuse(
    terms: &Terms,
    now: Milliseconds,
    is_soft_purged: bool,
    asked: Option<&RequestDirectives>,
) -> Reuse {
    let age = now - terms.born;
    let stale_for = age - terms.lifetime;
    let asked = asked.copied().unwrap_or_default();
    if terms.always_validate || asked.no_cache {
        return Reuse::AfterValidation;
    }
    let within = |limit: Option<u32>, value: i64| limit.is_none_or(|seconds| value <= i64::from(seconds) * 1000);
    if !within(asked.max_age, age) && asked.max_stale.is_none() {
        return Reuse::AfterValidation;
    }
    let is_fresh = stale_for < 0 && !is_soft_purged;
    if is_fresh {
        let stays_fresh = asked.min_fresh.is_none_or(|seconds| stale_for + i64::from(seconds) * 1000 <= 0);
        return if stays_fresh { Reuse::Yes { stale: false } } else { Reuse::AfterValidation };
    }
    if terms.never_stale || asked.min_fresh.is_some() {
        return Reuse::AfterValidation;
    }
    if let Some(seconds) = asked.max_stale
        && !is_soft_purged
        && stale_for <= i64::from(seconds) * 1000
    {
        return Reuse::Yes { stale: true };
    }
    match stale_for.max(0) < in_milliseconds(terms.stale_while_revalidate) && asked.max_age.is_none() {
        true => Reuse::WhileValidating,
        false => Reuse::AfterValidation,
    }
}

/// Returns whether a status is an asker's own doing: such an answer says nothing of what others would be given.
pub(crate) fn is_askers_own_status(traits: RequestTraits, status: StatusCode) -> bool {
    match status.as_u16() {
        400 | 402 | 405..=409 | 411..=429 | 431 => true,
        401 | 403 => traits.has_authorization || traits.has_cookie,
        _ => false,
    }
}

/// Returns whether it may be an asker's own doing that the answer to it cannot be stored. Such an answer ends nothing
/// that is stored, or any client could end a page for all.
pub(crate) fn is_private_to_request(traits: RequestTraits, status: StatusCode, refusal: Refusal) -> bool {
    traits.no_store
        || is_askers_own_status(traits, status)
        || match refusal {
            Refusal::Private | Refusal::SetCookie => traits.has_authorization || traits.has_cookie,
            // A response to credentials is for these alone; but a resource that is gone is gone for all.
            Refusal::Authorization => status.is_success(),
            Refusal::NeverUsable => traits.has_cookie && status.is_success(),
            Refusal::Status | Refusal::NoStore | Refusal::Vary | Refusal::TooLarge => false,
        }
}

/// Returns whether an answer that cannot be stored ends the stored response that it supersedes.
pub(crate) fn supersedes(traits: RequestTraits, status: StatusCode, refusal: Refusal, stored: StatusCode) -> bool {
    // A server that fails says nothing of its resource; but one error takes the place of another.
    !is_private_to_request(traits, status, refusal) && (!status.is_server_error() || stored.is_server_error())
}

/// Returns whether a stale response may stand in for a node that fails.
pub(crate) fn stands_in(terms: &Terms, now: Milliseconds) -> bool {
    !terms.never_stale && now - terms.born - terms.lifetime < in_milliseconds(terms.stale_if_error)
}

#[cfg(test)]
pub(super) mod tests;
