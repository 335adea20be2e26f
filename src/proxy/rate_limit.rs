//! Rate limits: a token bucket (GCRA) for every key of a route, and the `RateLimit` fields of responses.
//!
//! A request is counted when its route is found; where hits of the cache or replays are not to count, when it turns
//! out to be none of these.

use super::hash_key::find_key;
use super::request::Form;
use crate::config;
use crate::config::values::HashSource;
use crate::http::forwarded::network_of;
use crate::http::head::RequestFields;
use crate::http::problem::{Problem, ProblemKind};
use crate::telemetry::metrics::Metrics;
use governor::clock::{Clock, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::keyed::DashMapStateStore;
use governor::{Quota, RateLimiter};
use http::{HeaderMap, HeaderName, HeaderValue};
use prometheus::IntCounter;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

type Limiter = RateLimiter<u64, DashMapStateStore<u64>, DefaultClock, StateInformationMiddleware>;

/// The limit of one route, with the remaining quota of every key.
pub(crate) struct RateLimit {
    settings: config::RateLimit,
    name: String,
    limiter: Limiter,
    clock: DefaultClock,
    /// The time that brings one request back.
    period: Duration,
    burst: u32,
    policy: HeaderValue,
    /// Keys are kept as hashes that no caller can foretell.
    hasher: RandomState,
    /// There are more keys than `max_keys`: new ones share the places.
    is_crowded: AtomicBool,
    refused: IntCounter,
}

/// The requests that a key has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Remainder {
    remaining: u32,
    /// The seconds until the quota is full again or, if it is spent, until one more request is allowed.
    seconds: u64,
}

/// A request that is still to be counted.
#[derive(Clone)]
pub(super) struct Uncounted {
    limit: Arc<RateLimit>,
    key: u64,
}

/// The limit that a request was counted against, and the remaining quota of its key.
pub(crate) struct Standing {
    limit: Arc<RateLimit>,
    remainder: Remainder,
}

impl RateLimit {
    /// Returns the limit of a route; if the route had the same one before, with the remaining quotas of its keys.
    pub(super) fn build(
        route: &str,
        settings: &config::RateLimit,
        metrics: &Metrics,
        earlier: Option<&Arc<RateLimit>>,
    ) -> Arc<RateLimit> {
        if let Some(earlier) = earlier.filter(|earlier| earlier.settings == *settings && earlier.name == route) {
            return Arc::clone(earlier);
        }
        let burst = settings.burst.unwrap_or(settings.requests);
        let period = (settings.per / settings.requests).max(Duration::from_nanos(1));
        let quota = Quota::with_period(period).expect("a period is not zero");
        let quota = quota.allow_burst(NonZeroU32::new(burst).expect("a burst is within 1 and more"));
        Arc::new(RateLimit {
            limiter: RateLimiter::dashmap(quota).with_middleware(),
            clock: DefaultClock::default(),
            period,
            burst,
            policy: policy(route, settings),
            hasher: RandomState::new(),
            is_crowded: AtomicBool::new(false),
            refused: metrics.rate_limited.with_label_values(&[route]),
            name: route.to_owned(),
            settings: settings.clone(),
        })
    }

    pub(super) fn counts_hits(&self) -> bool {
        self.settings.cache_hits
    }

    pub(super) fn counts_replays(&self) -> bool {
        self.settings.replays
    }

    /// Returns the request before it is counted: by the first source that is present, else by its client's address.
    pub(super) fn uncounted(self: &Arc<Self>, form: &Form<'_>, fields: &RequestFields) -> Uncounted {
        let found = find_key(&self.settings.key, form, fields);
        let key = match &found {
            Some(found) if *found.source != HashSource::ClientIp => {
                self.hasher.hash_one((found.source.to_string(), &*found.key))
            }
            _ => self.hasher.hash_one(network_of(fields.facts.address)),
        };
        Uncounted { limit: Arc::clone(self), key }
    }

    /// Counts a request of a key; returns the remaining quota, and whether the request is allowed.
    fn count(&self, key: u64) -> (Remainder, bool) {
        let places = u64::from(self.settings.max_keys);
        let key = if self.is_crowded.load(Ordering::Relaxed) { key % places } else { key };
        match self.limiter.check_key(&key) {
            Ok(state) => {
                let remaining = state.remaining_burst_capacity();
                let spent = self.burst.saturating_sub(remaining);
                (Remainder { remaining, seconds: seconds(self.period * spent) }, true)
            }
            Err(until) => {
                let wait = until.wait_time_from(self.clock.now());
                (Remainder { remaining: 0, seconds: seconds(wait).max(1) }, false)
            }
        }
    }

    /// Drops keys whose quota is full again.
    pub(crate) fn tidy(&self) {
        self.limiter.retain_recent();
        self.limiter.shrink_to_fit();
        self.is_crowded.store(self.limiter.len() > self.settings.max_keys as usize, Ordering::Relaxed);
    }
}

impl Uncounted {
    /// Counts the request. Returns the quota of its key, and the problem document where it is spent.
    pub(super) fn count(self) -> (Standing, Result<(), Problem>) {
        let (remainder, may_go_on) = self.limit.count(self.key);
        let refused = (!may_go_on).then(|| {
            self.limit.refused.inc();
            let detail = format!("too many requests; the next one may be made in {} s", remainder.seconds);
            Problem::new(ProblemKind::RateLimited, detail).retry_after(remainder.seconds.try_into().unwrap_or(u32::MAX))
        });
        (Standing { limit: self.limit, remainder }, refused.map_or(Ok(()), Err))
    }
}

impl Standing {
    /// Adds the fields of the quota for clients (draft-ietf-httpapi-ratelimit-headers).
    pub(super) fn add_to(&self, fields: &mut HeaderMap) {
        fields.insert(RATELIMIT_POLICY, self.limit.policy.clone());
        let Remainder { remaining, seconds } = self.remainder;
        let parameters = [("r", i64::from(remaining)), ("t", i64::try_from(seconds).unwrap_or(i64::MAX))];
        fields.insert(RATELIMIT, field(&self.limit.name, &parameters));
    }
}

/// Whole seconds, and no less than the time.
fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

/// `"route";q=100;w=60`; a window below a second is left out.
fn policy(route: &str, settings: &config::RateLimit) -> HeaderValue {
    let window = (settings.per.subsec_nanos() == 0).then(|| settings.per.as_secs().cast_signed());
    let quota = ("q", i64::from(settings.requests));
    match window {
        Some(window) => field(route, &[quota, ("w", window)]),
        None => field(route, &[quota]),
    }
}

/// Returns a list of one item: a name with numbers.
fn field(name: &str, numbers: &[(&str, i64)]) -> HeaderValue {
    let mut text = String::with_capacity(name.len() + 24);
    // A structured-field string (RFC 9651 3.3.3) has visible ASCII and spaces.
    text.push('"');
    for character in name.chars() {
        match character {
            '"' | '\\' => text.extend(['\\', character]),
            ' '..='~' => text.push(character),
            _ => text.push('?'),
        }
    }
    text.push('"');
    for (name, number) in numbers {
        text.push(';');
        text.push_str(name);
        text.push('=');
        text.push_str(itoa::Buffer::new().format(*number));
    }
    HeaderValue::try_from(text).expect("visible ASCII is a field value")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sfv::List;

    fn limit(text: &str) -> Arc<RateLimit> {
        let settings = config::read::default_value(text);
        RateLimit::build("a \"route\"", &settings, &Metrics::new(), None)
    }

    #[test]
    fn a_key_may_ask_so_often_and_is_told() {
        let limit = limit("{ requests: 3, per: 1h }");
        let remainders: Vec<(u32, bool)> = (0..5)
            .map(|_| {
                let (remainder, may) = limit.count(1);
                (remainder.remaining, may)
            })
            .collect();
        assert_eq!(remainders, [(2, true), (1, true), (0, true), (0, false), (0, false)]);
        let (remainder, _) = limit.count(1);
        assert!((1190..=1200).contains(&remainder.seconds), "{remainder:?}");
        assert!(limit.count(2).1, "another key has its own");
    }

    #[test]
    fn the_fields_are_structured() {
        let limit = limit("{ requests: 100, per: 1m, burst: 7 }");
        assert_eq!(limit.policy, "\"a \\\"route\\\"\";q=100;w=60");
        let mut fields = HeaderMap::new();
        let (remainder, _) = limit.count(1);
        Standing { limit: Arc::clone(&limit), remainder }.add_to(&mut fields);
        assert_eq!(fields[RATELIMIT], "\"a \\\"route\\\"\";r=6;t=1");
        let parsed = sfv::Parser::new(fields[RATELIMIT].as_bytes()).parse::<List>().unwrap();
        assert_eq!(parsed.len(), 1);
        assert_eq!(policy("x", &config::read::default_value("{ requests: 5, per: 250ms }")), "\"x\";q=5");
    }

    #[test]
    fn keys_beyond_the_bound_share() {
        let limit = limit("{ requests: 1, per: 1h, max_keys: 10 }");
        (0..100).for_each(|key| assert!(limit.count(key).1));
        limit.tidy();
        assert!(limit.is_crowded.load(Ordering::Relaxed));
        assert!((1000..2000).filter(|&key| limit.count(key).1).count() <= 10);
        assert!(limit.limiter.len() <= 110);
        // Keys with a full quota are dropped.
        let quick = self::limit("{ requests: 1, per: 1ms, max_keys: 10 }");
        (0..100).for_each(|key| assert!(quick.count(key).1));
        std::thread::sleep(Duration::from_millis(5));
        quick.tidy();
        assert_eq!((quick.limiter.len(), quick.is_crowded.load(Ordering::Relaxed)), (0, false));
    }

    #[test]
    fn a_reload_forgets_nothing_of_a_limit_that_stays() {
        let settings = config::read::default_value("{ requests: 1, per: 1h }");
        let metrics = Metrics::new();
        let first = RateLimit::build("r", &settings, &metrics, None);
        assert!(first.count(1).1);
        let same = RateLimit::build("r", &settings, &metrics, Some(&first));
        assert!(!same.count(1).1);
        let other = config::read::default_value("{ requests: 2, per: 1h }");
        assert!(RateLimit::build("r", &other, &metrics, Some(&first)).count(1).1);
    }

    proptest! {
        #[test]
        fn every_name_makes_a_field(name in any::<String>()) {
            let value = field(&name, &[("q", 1)]);
            prop_assert!(sfv::Parser::new(value.as_bytes()).parse::<List>().is_ok());
        }
    }
}
