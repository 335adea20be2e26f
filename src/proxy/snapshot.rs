//! One configuration, built and ready to serve: immutable, and swapped as a whole.

use super::affinity::Affinity;
use super::exchange::RouteLabel;
use super::field_rules::FieldRules;
use super::hash_key::ScopeSources;
use super::rate_limit::RateLimit;
use super::request::Form;
use super::route::Table;
use super::saga::{self, SagaRules};
use super::session::{ConsistencyRules, SessionRules};
use super::strong::StrongRoutes;
use crate::cache::{self, BypassCookies, KeyRules};
use crate::config::values::HashSource;
use crate::config::{self, Config, FingerprintKind, OnConcurrent, OnStoreFailure, OnUnknown};
use crate::fleet::quorum::QuorumRules;
use crate::http::head::RequestFields;
use crate::idempotency::{Policy, Records, Scope};
use crate::telemetry::access_log::Sink;
use crate::telemetry::metrics::Metrics;
use crate::upstream::{BadPool, Discovered, Earlier, Pool, Registry};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use prometheus::IntCounter;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The configuration as requests use it.
pub(crate) struct Snapshot {
    pub(crate) config: Config,
    pub(crate) table: Table,
    /// As the table's indices have it: in the order of the file, and before them the one of the sagas' states.
    pub(crate) routes: Vec<Arc<Route>>,
    pub(crate) pools: Vec<Arc<Pool>>,
    /// Where workers write the access log.
    pub(crate) log: Option<Arc<Sink>>,
    /// The fields in which routes expect idempotency keys, and those that routes set: `Connection` must not name them.
    pub(super) protected_fields: Vec<HeaderName>,
    /// The signer of sessions, where a route is causal.
    pub(super) sessions: Option<Arc<SessionRules>>,
    /// A route has a guarantee of its reads.
    pub(super) has_guarantees: bool,
    /// The strong routes that are verified by a quorum, where there are any.
    pub(crate) strong: Option<StrongRoutes>,
    /// The store, where a route uses it.
    pub(super) records: Option<Arc<Records>>,
}

/// A route, ready to be taken.
pub(crate) struct Route {
    pub(crate) label: Arc<RouteLabel>,
    pub(crate) action: Action,
    pub(crate) hash_on: Vec<HashSource>,
    pub(super) affinity: Option<Affinity>,
    pub(crate) cache: Option<CacheRules>,
    pub(super) consistency: Option<ConsistencyRules>,
    pub(super) idempotency: Option<Arc<IdempotencyRules>>,
    pub(crate) rate_limit: Option<Arc<RateLimit>>,
    pub(crate) strip_prefix: Option<String>,
    pub(crate) request_fields: FieldRules,
}

/// The cache rules of a route.
pub(crate) struct CacheRules {
    pub(crate) key: KeyRules,
    pub(crate) policy: Arc<cache::CachePolicy>,
    pub(super) lock_timeout: Duration,
    pub(super) bypass_cookies: BypassCookies,
    /// By [`CacheResult`].
    counters: [IntCounter; CacheResult::ALL.len()],
}

/// The cache's result for a request: the label in metrics and logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CacheResult {
    /// Answered from the store.
    Hit,
    /// Answered from the store although stale.
    Stale,
    /// Answered from the store after the node has confirmed it.
    Revalidated,
    /// Fetched, for this request and for those that come later.
    Miss,
    /// Answered by a fetch that another request had begun.
    Collapsed,
    /// Fetched for this request alone.
    Pass,
    /// Fetched for this request alone, as a write is under way.
    Marked,
    /// Not a request that a cache answers.
    Bypass,
    /// `only-if-cached`, and it was not.
    Refused,
}

impl CacheResult {
    const ALL: [CacheResult; 9] = [
        CacheResult::Hit,
        CacheResult::Stale,
        CacheResult::Revalidated,
        CacheResult::Miss,
        CacheResult::Collapsed,
        CacheResult::Pass,
        CacheResult::Marked,
        CacheResult::Bypass,
        CacheResult::Refused,
    ];

    pub(crate) fn label(self) -> &'static str {
        match self {
            CacheResult::Hit => "hit",
            CacheResult::Stale => "stale",
            CacheResult::Revalidated => "revalidated",
            CacheResult::Miss => "miss",
            CacheResult::Collapsed => "collapsed",
            CacheResult::Pass => "pass",
            CacheResult::Marked => "marked",
            CacheResult::Bypass => "bypass",
            CacheResult::Refused => "refused",
        }
    }
}

impl CacheRules {
    fn build(route: &config::Route, settings: &config::RouteCache, config: &Config, metrics: &Metrics) -> CacheRules {
        let (route, stale_if_error) = (route.name.as_str(), route.stale_if_error());
        let key = KeyRules::of(&settings.key);
        let largest = config.settings.cache.max_object.0;
        CacheRules {
            key: if config.settings.routes.iter().any(parts_reads) { key.for_route_only(route) } else { key },
            policy: Arc::new(cache::CachePolicy::of(settings, stale_if_error, largest, &config.settings.limits)),
            lock_timeout: settings.lock_timeout,
            bypass_cookies: BypassCookies::of(settings.bypass_cookies.iter().map(|name| name.as_str())),
            counters: CacheResult::ALL.map(|result| metrics.cache_requests.with_label_values(&[route, result.label()])),
        }
    }

    pub(super) fn count(&self, result: CacheResult) {
        self.counters[result as usize].inc();
    }
}

/// The idempotency rules of a route.
pub(crate) struct IdempotencyRules {
    pub(super) policy: Policy,
    pub(super) records: Arc<Records>,
    pub(super) namespace: String,
    pub(super) methods: Vec<Method>,
    pub(super) required: bool,
    /// The field of the key.
    pub(super) key_header: HeaderName,
    /// Fingerprints are made of the canonical form of a body.
    pub(super) is_canonical: bool,
    pub(super) scope: ScopeSources,
    pub(super) max_request: u64,
    /// By [`IdempotencyResult`].
    counters: [IntCounter; IdempotencyResult::ALL.len()],
}

/// The result for a request with an `Idempotency-Key`: the label in metrics and logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IdempotencyResult {
    /// It ran.
    First,
    /// It got the stored result.
    Replayed,
    /// The same was still running.
    Conflict,
    /// The key was used for another request.
    Mismatch,
    /// It may have run before, or the first run ended without a complete response.
    Unknown,
    /// There was no key, and there had to be one.
    Missing,
    /// The key is invalid, or the caller is unknown.
    Invalid,
    /// It has run, and its result was too large to be kept.
    TooLarge,
    /// The store was out of order.
    StoreFailure,
}

impl IdempotencyResult {
    const ALL: [IdempotencyResult; 9] = [
        IdempotencyResult::First,
        IdempotencyResult::Replayed,
        IdempotencyResult::Conflict,
        IdempotencyResult::Mismatch,
        IdempotencyResult::Unknown,
        IdempotencyResult::Missing,
        IdempotencyResult::Invalid,
        IdempotencyResult::TooLarge,
        IdempotencyResult::StoreFailure,
    ];

    pub(crate) fn label(self) -> &'static str {
        match self {
            IdempotencyResult::First => "first",
            IdempotencyResult::Replayed => "replayed",
            IdempotencyResult::Conflict => "conflict",
            IdempotencyResult::Mismatch => "mismatch",
            IdempotencyResult::Unknown => "unknown",
            IdempotencyResult::Missing => "missing",
            IdempotencyResult::Invalid => "invalid",
            IdempotencyResult::TooLarge => "too_large",
            IdempotencyResult::StoreFailure => "store_failure",
        }
    }
}

impl IdempotencyRules {
    fn build(
        route: &str,
        settings: &config::RouteIdempotency,
        config: &Config,
        metrics: &Metrics,
        records: &Arc<Records>,
    ) -> IdempotencyRules {
        let family = &metrics.idempotency_requests;
        IdempotencyRules {
            policy: Policy {
                ttl: settings.ttl,
                lease: settings.lease,
                wait: (settings.on_concurrent == OnConcurrent::Wait).then_some(settings.wait),
                retries_unknown: settings.on_unknown.value == OnUnknown::Retry,
                forwards_without_store: settings.on_store_failure.value == OnStoreFailure::Forward,
                release_on: settings.release_on.clone(),
                max_response: settings.max_response.0,
            },
            records: Arc::clone(records),
            namespace: settings.namespace.value.clone(),
            methods: settings.methods.clone(),
            required: settings.required,
            key_header: settings.key_header.clone(),
            is_canonical: settings.fingerprint == FingerprintKind::Canonical,
            scope: ScopeSources::of(&settings.scope),
            max_request: settings.max_request.0.min(config.settings.limits.request_body.0),
            counters: IdempotencyResult::ALL.map(|result| family.with_label_values(&[route, result.label()])),
        }
    }

    pub(super) fn count(&self, result: IdempotencyResult) {
        self.counters[result as usize].inc();
    }
}

/// Returns whether a route may match some reads of a URI and not others: by fields, or GET without HEAD.
fn parts_reads(route: &config::Route) -> bool {
    let reads = route.methods.iter().filter(|method| [http::Method::GET, http::Method::HEAD].contains(method)).count();
    !route.headers.entries.is_empty() || reads == 1
}

/// The action of a route.
pub(crate) enum Action {
    Forward(Arc<Pool>),
    Redirect {
        to: HeaderValue,
        status: StatusCode,
    },
    Respond {
        status: StatusCode,
        body: Bytes,
    },
    Saga(Arc<SagaRules>),
    /// The states of sagas, for the callers that began them.
    SagaStates,
}

/// The parts that a snapshot is built from, beside its configuration.
pub(crate) struct Parts<'a> {
    pub(crate) registry: &'a Registry,
    pub(crate) metrics: &'a Metrics,
    pub(crate) discovered: &'a Discovered,
    pub(crate) log: Option<Arc<Sink>>,
    /// There if a route uses them.
    pub(crate) records: Option<&'a Arc<Records>>,
    /// There if strong routes are verified by a quorum.
    pub(crate) quorum: Option<Arc<QuorumRules>>,
    /// The one that is in force.
    pub(crate) earlier: Option<&'a Snapshot>,
    /// The configuration is the same; only nodes from DNS may be new.
    pub(crate) is_same: bool,
}

impl Snapshot {
    /// Returns the names of nodes that cannot be resolved.
    pub(crate) fn unresolved(&self) -> Vec<(String, u16)> {
        let settings = |pool: &Pool| self.config.settings.pools.get(&pool.name);
        let named = |pool: &Arc<Pool>| {
            let listed = settings(pool).map(config::Pool::listed).unwrap_or_default();
            let is_unresolved = |id: &str| pool.nodes.iter().any(|node| *node.id == *id && node.unresolved.is_some());
            let found = listed.iter().filter(|node| is_unresolved(node.id.as_str()));
            found.map(|node| (node.address.host.clone(), node.address.port)).collect::<Vec<_>>()
        };
        self.pools.iter().flat_map(named).collect()
    }

    /// Builds rings and routes. May resolve names and take a while: not for a worker's thread.
    pub(crate) fn build(config: Config, parts: Parts<'_>) -> Result<Snapshot, BadPool> {
        let settings = &config.settings;
        let mut pools = HashMap::new();
        let mut listed = Vec::new();
        for (name, pool) in settings.pools.iter() {
            let found = pool.discovery.as_ref().map_or_else(Vec::new, |wanted| parts.discovered.nodes(wanted));
            let earlier = parts.earlier.and_then(|earlier| earlier.pools.iter().find(|pool| *pool.name == **name));
            let pool = match earlier {
                Some(earlier) if parts.is_same && pool.discovery.is_none() => Arc::clone(earlier),
                _ => {
                    let earlier = earlier.map(|pool| Earlier { pool, is_same: parts.is_same });
                    Arc::new(Pool::build(name, pool, &found, (parts.registry, &config.secrets), earlier)?)
                }
            };
            pools.insert(name.as_str(), Arc::clone(&pool));
            listed.push(pool);
        }
        let built = settings.routes.iter().map(|route| {
            let mut earlier = parts.earlier.iter().flat_map(|earlier| &earlier.routes);
            let earlier = earlier.find(|earlier| *earlier.label.name == **route.name);
            Arc::new(Route::build(route, &pools, &config, &parts, earlier))
        });
        let states = saga::states_route(&settings.routes);
        let (table, routes): (Table, Vec<Arc<Route>>) = match states {
            None => (Table::new(&settings.routes), built.collect()),
            // Before all others, for it is not theirs to take.
            Some(states) => {
                if let Some(records) = parts.records {
                    records.expect_sagas();
                }
                let of_states = Arc::new(Route::build(&states, &pools, &config, &parts, None));
                let all: Vec<config::Route> = std::iter::once(states).chain(settings.routes.iter().cloned()).collect();
                (Table::new(&all), std::iter::once(of_states).chain(built).collect())
            }
        };
        let protected_fields = config.protected_fields();
        let records = parts.records.cloned();
        let sessions = SessionRules::build(&config);
        let strong = StrongRoutes::build(&config, parts.quorum.as_ref(), parts.metrics);
        let has_guarantees = routes.iter().any(|route| route.consistency.is_some());
        Ok(Snapshot {
            table,
            routes,
            pools: listed,
            log: parts.log,
            protected_fields,
            sessions,
            has_guarantees,
            strong,
            records,
            config,
        })
    }

    /// Returns whether the proxy can serve: a pool that routes forward to has an available node, or no route forwards.
    /// The outage of one pool is no reason to refuse all traffic.
    pub(crate) fn is_usable(&self) -> bool {
        let mut pools = self.routes.iter().filter_map(|route| match &route.action {
            Action::Forward(pool) => Some(pool),
            Action::Redirect { .. } | Action::Respond { .. } | Action::Saga(_) | Action::SagaStates => None,
        });
        let now = Instant::now();
        match pools.next() {
            Some(first) => first.is_usable(now) || pools.any(|pool| pool.is_usable(now)),
            None => true,
        }
    }
}

impl Route {
    /// Returns the scope of a caller, where the route runs a saga.
    pub(super) fn saga_scope(&self, form: &Form<'_>, fields: &RequestFields) -> Option<Scope> {
        let rules = self.idempotency.as_ref().filter(|_| matches!(self.action, Action::Saga(_)))?;
        rules.scope.read(form, fields)
    }

    fn build(
        route: &config::Route,
        pools: &HashMap<&str, Arc<Pool>>,
        config: &Config,
        parts: &Parts<'_>,
        earlier: Option<&Arc<Route>>,
    ) -> Route {
        let (metrics, records) = (parts.metrics, parts.records);
        static SERIAL: AtomicU64 = AtomicU64::new(1);
        let action = match (&route.pool, &route.redirect, &route.respond, &route.saga) {
            (Some(pool), ..) => Action::Forward(Arc::clone(&pools[pool.as_str()])),
            (_, Some(redirect), ..) => Action::Redirect { to: redirect.to.value.clone(), status: redirect.status.0 },
            (_, _, Some(respond), _) => Action::Respond { status: respond.status, body: respond.body.clone().into() },
            (.., Some(saga)) => Action::Saga(Arc::new(SagaRules::of(&route.name, saga))),
            // Validation asks for exactly one action: this route is of no file.
            (None, None, None, None) => Action::SagaStates,
        };
        Route {
            label: Arc::new(RouteLabel {
                serial: SERIAL.fetch_add(1, Ordering::Relaxed),
                name: route.name.as_str().into(),
                duration: metrics.request_duration.with_label_values(&[route.name.as_str()]),
                response_fields: FieldRules::of(&route.response_headers),
                is_logged: route.access_log,
            }),
            action,
            hash_on: route.hash_on.clone(),
            affinity: route.affinity_cookie.as_ref().map(|cookie| Affinity::new(cookie, &config.secrets)),
            cache: route.cache.as_ref().map(|cache| CacheRules::build(route, cache, config, metrics)),
            consistency: ConsistencyRules::build(route, metrics, parts.quorum.as_ref()),
            idempotency: route.idempotency.as_ref().map(|settings| {
                let records = records.expect("the store is open where a route uses it");
                Arc::new(IdempotencyRules::build(&route.name, settings, config, metrics, records))
            }),
            rate_limit: route.rate_limit.as_ref().map(|settings| {
                let earlier = earlier.and_then(|earlier| earlier.rate_limit.as_ref());
                RateLimit::build(&route.name, settings, metrics, earlier)
            }),
            strip_prefix: route.strip_prefix.as_ref().map(|path| path.0.clone()),
            request_fields: FieldRules::of(&route.request_headers),
        }
    }
}
