//! The table of metrics. The families, the removal of old series and `docs/metrics.md` are made from it:
//! `RINGWAY_BLESS=1 cargo test --lib reference`.
//!
//! Counters in the path of a request are relaxed atomics behind handles that are looked up once; gauges of other state
//! are read at each scrape.

use super::families::{Family, Labels, ReadGauge, Registered, register, registered};
use super::process_metrics::ProcessMetrics;
use prometheus::core::Collector;
use prometheus::proto::{LabelPair, MetricFamily};
use prometheus::{
    Counter, Encoder, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry, TextEncoder,
};
use std::collections::BTreeMap;
use std::sync::LazyLock;

pub(crate) use super::families::Sample;

macro_rules! metrics {
    (
        kept { $($field:ident: $type:ident, $name:literal, [$($label:literal),*], $help:literal, $purpose:literal;)* }
        elsewhere {
            $($other:ident: $kind:ident, $other_name:literal, [$($other_label:literal),*], $other_help:literal,
                $other_purpose:literal;)*
        }
    ) => {
        /// All metrics of the process.
        pub(crate) struct Metrics {
            registry: Registry,
            $(pub(crate) $field: $type,)*
        }

        #[expect(non_upper_case_globals, reason = "a family is named as its field")]
        mod family {
            use super::*;

            $(pub(super) const $field: Family = Family {
                name: $name,
                kind: <$type as Registered>::KIND,
                labels: &[$($label),*],
                help: $help,
                purpose: $purpose,
            };)*
        }

        /// The families whose values are kept elsewhere, most of them read at each scrape.
        pub(crate) mod elsewhere {
            use crate::telemetry::families::{Family, Kind};

            $(pub(crate) const $other: Family = Family {
                name: $other_name,
                kind: Kind::$kind,
                labels: &[$($other_label),*],
                help: $other_help,
                purpose: $other_purpose,
            };)*
        }

        #[cfg(test)]
        const FAMILIES: &[Family] = &[$(family::$field,)* $(elsewhere::$other,)*];

        impl Metrics {
            fn registered() -> Metrics {
                let registry = Registry::new();
                Metrics { $($field: registered(&registry, &family::$field),)* registry }
            }

            /// Removes the series whose labels are not to be kept, from every family.
            fn retain_series(&self, keep: &dyn Fn(&Labels) -> bool) {
                $(self.$field.retain(&family::$field, keep);)*
            }

            /// Creates a series that has this value in all labels, in every family.
            #[cfg(test)]
            fn touch(&self, value: &str) {
                $(self.$field.touch(&family::$field, value);)*
            }
        }
    };
}

metrics! {
    kept {
        build_info: IntGaugeVec, "ringway_build_info", ["version"],
            "The running version.",
            "Shows a rollout: the versions of all proxies.";
        requests: IntCounterVec, "ringway_requests_total", ["route", "method", "code"],
            "Requests answered.",
            "Rate of requests and share of errors. Alert on the share of `code=~\"5..\"` of a route.";
        request_duration: HistogramVec, "ringway_request_duration_seconds", ["route"],
            "Time from a request's head to the end of its response.",
            "Latency as clients see it. Alert on a high quantile of a route.";
        requests_in_flight: IntGauge, "ringway_requests_in_flight", [],
            "Requests in flight from clients.",
            "Concurrency. A steady rise at a constant rate of requests means that nodes or clients slow down.";
        connections: IntGaugeVec, "ringway_connections", ["listener"],
            "Open client connections.",
            "Alert when the sum approaches `limits.connections`: further clients wait.";
        connections_total: IntCounterVec, "ringway_connections_total", ["listener"],
            "Client connections accepted.",
            "Compare with requests: many connections for few requests are clients without keep-alive, or an attack.";
        tls_handshakes: IntCounterVec, "ringway_tls_handshakes_total", ["listener", "result"],
            "TLS handshakes with clients.",
            "Alert on a rising share of `result=\"failure\"`: an expired certificate, or clients without a common version.";
        http2_glitches: IntCounterVec, "ringway_http2_glitches_total", ["kind"],
            "HTTP/2 misbehaviour, in the points that are added to the score of its connection.",
            "Shows an attack over HTTP/2, and its kind. See `limits.http2_glitches`.";
        connections_aborted: IntCounterVec, "ringway_connections_aborted_total", ["reason"],
            "Client connections, and requests over HTTP/2, that the proxy aborted because of the client's behaviour.",
            "Shows slow or hostile clients by the reason; if honest ones are affected, raise the limit of that reason.";
        request_bytes: IntCounter, "ringway_request_bytes_total", [],
            "Bytes of request bodies received.",
            "Traffic from clients.";
        response_bytes: IntCounter, "ringway_response_bytes_total", [],
            "Bytes of response bodies sent.",
            "Traffic to clients.";
        upstream_requests: IntCounterVec, "ringway_upstream_requests_total", ["pool", "node", "outcome"],
            "Attempts at nodes, by outcome.",
            "Finds the node that fails, and how. Alert on outcomes other than `answer`.";
        upstream_server_errors: IntCounterVec, "ringway_upstream_server_errors_total", ["pool", "node"],
            "Responses of nodes with a status from 500 to 599. They are among the outcomes `answer`.",
            "Finds the node whose application fails while its connections work.";
        upstream_duration: HistogramVec, "ringway_upstream_duration_seconds", ["pool", "node"],
            "Time from the start of an attempt to the end of its response.",
            "Finds the slow node; the rest of `ringway_request_duration_seconds` is spent in the proxy and by clients.";
        upstream_retries: IntCounterVec, "ringway_upstream_retries_total", ["pool", "reason"],
            "Attempts after the first one of a request, by the reason of its failure.",
            "Failures that clients did not see. A rise comes before errors do.";
        upstream_retries_denied: IntCounterVec, "ringway_upstream_retries_denied_total", ["pool"],
            "Retries that were not made because the pool's retry budget was spent.",
            "Alert on any lasting rate: so many requests fail that retries would only add load.";
        ring_spills: IntCounterVec, "ringway_ring_spills_total", ["pool", "reason"],
            "Requests that went to another node than the owner of their key, by the reason.",
            "Lost affinity, and with it hits in the nodes' own caches; the reason tells the cause.";
        cache_requests: IntCounterVec, "ringway_cache_requests_total", ["route", "result"],
            "Requests on caching routes, by the result of the cache.",
            "Hit ratio of a route. A fall of `hit` sends its load to the nodes.";
        cache_evictions: IntCounter, "ringway_cache_evictions_total", [],
            "Entries that were evicted from the cache.",
            "A steady rate with a low hit ratio means that `cache.memory` is too small.";
        concurrent_writes: IntCounterVec, "ringway_concurrent_writes_total", ["route"],
            "Stored responses of causal routes that were dropped, as a write is known that neither includes them nor is included.",
            "Clients that write to one group through several proxies at a time. Each costs a fetch.";
        session_tokens: IntCounterVec, "ringway_session_tokens_total", ["result"],
            "Session tokens that could not be used: `bad` (forged, cut or signed by an unknown secret), `expired`, or made under `other_templates`.",
            "A rise of `bad` after a change of `fleet.secret_file`: a proxy signs by a secret that others do not have yet.";
        consistency_requests: IntCounterVec, "ringway_consistency_requests_total", ["route", "result"],
            "Requests on strong routes with `verify: quorum`: reads that were `fresh`, `changed`, `marked` (a write is under way), under `quorum_lost` (also: nodes that have just started, another configuration) or served `unverified`; and `unmarked_write`.",
            "A share of `fresh` below the hit ratio means writes, slow writes (`marked`) or nodes that are away (`quorum_lost`). Alert on `unverified` and `unmarked_write`: they are outside the promise.";
        consistency_config_skew: IntGauge, "ringway_consistency_config_skew", [],
            "1 while proxies with another consistency configuration are alive: strong reads pass to the nodes.",
            "1 for a while after a rollout. Alert when it stays: two configurations are in use.";
        consistency_marked_slots: IntGauge, "ringway_consistency_marked_slots", [],
            "Slots, of 65,537, that writes of this process have marked now.",
            "Reads of these slots pass to the nodes. Long requests keep it up.";
        consistency_marked_seconds: Counter, "ringway_consistency_marked_seconds_total", [],
            "Time for which writes of this process have kept slots marked, in seconds, summed over slots.",
            "Its rate over 65,537 is the share of time in which a slot is marked; write latency and `groups` decide it.";
        cache_purges: IntCounterVec, "ringway_cache_purges_total", ["kind"],
            "Purges of the cache.",
            "Explains a sudden fall of the hit ratio.";
        idempotency_requests: IntCounterVec, "ringway_idempotency_requests_total", ["route", "result"],
            "Requests on routes with idempotency, by result.",
            "Alert on `unknown` (a request may have run, and its response is lost) and on `store_failure`.";
        idempotency_store_duration: HistogramVec, "ringway_idempotency_store_duration_seconds", ["op"],
            "Duration of calls to the idempotency store, until their changes are durable.",
            "Every request with a key waits for it. Alert when it approaches the timeouts of your clients.";
        store_duration: HistogramVec, "ringway_store_duration_seconds", ["store", "op"],
            "Duration of calls to a store: `idempotency` is the idempotency store, others are nodes of `fleet.redis`.",
            "Distinguishes a slow store from a slow node. Compare `op=\"claim\"` with the commits of the engine itself.";
        fleet_events: IntCounterVec, "ringway_fleet_events_total", ["kind", "direction"],
            "Events of the fleet's bus, by kind: `published` by this process, `heard` from others, or `dropped`.",
            "Alert on `dropped`, for the other proxies validate what they have stored, and on `kind=\"malformed\"`.";
        fleet_gaps: IntCounter, "ringway_fleet_gaps_total", [],
            "Gaps in the reading of a node of the bus: it was silent, or has lost events.",
            "A rising rate means an unstable node. Gaps at too many nodes at once have stored responses validated.";
        sagas: IntCounterVec, "ringway_sagas_total", ["route", "outcome"],
            "Sagas that came to an end: `succeeded` or `compensated`; and those that became `stuck`.",
            "Alert on `stuck`, and on a rising share of `compensated`: a service refuses what the others accept.";
        saga_steps: IntCounterVec, "ringway_saga_steps_total", ["route", "step", "outcome"],
            "Attempts of the steps of sagas and of their undos, by what became of them.",
            "Shows which step fails, and how: a lasting rate of unknown outcomes is a service without timely answers.";
        rate_limited: IntCounterVec, "ringway_rate_limited_total", ["route"],
            "Requests refused by the rate limit of their route.",
            "Shows a client with too many requests, or a limit that is too low.";
        access_log_dropped: IntCounter, "ringway_access_log_dropped_total", [],
            "Access log lines lost because their destination was too slow, or failed.",
            "Alert on any rate if you count on the access log.";
        config_reloads: IntCounterVec, "ringway_config_reloads_total", ["result"],
            "Reloads of the configuration.",
            "Alert on `result=\"failure\"`: the old configuration stays in use.";
        upgrades: IntCounterVec, "ringway_upgrades_total", ["result"],
            "Upgrades of the binary; a success is counted by the new process, which continues the counters of the old one.",
            "Alert on `result=\"failure\"`: the old binary stays in use.";
    }
    elsewhere {
        PROCESS_LOG_DROPPED: Counter, "ringway_process_log_dropped_total", [],
            "Lines of the process log lost because stderr was too slow.",
            "Alert on any rate: important lines may be missing.";
        CACHE_ENTRIES: Gauge, "ringway_cache_entries", [],
            "Keys with stored responses in the cache.",
            "Size of the cache; 0 after a restart or a purge of everything.";
        CACHE_BYTES: Gauge, "ringway_cache_bytes", [],
            "Memory of stored responses, with keys and overhead.",
            "Compare with `cache.memory`: a full cache evicts.";
        BUFFERED_BYTES: Gauge, "ringway_buffered_bytes", [],
            "Bytes of buffered bodies, bounded by `limits.buffered_bytes`.",
            "Alert when it approaches `limits.buffered_bytes`: new requests get 503 `buffers-full` then.";
        IDEMPOTENCY_RECORDS: Gauge, "ringway_idempotency_records", [],
            "Records in the idempotency store.",
            "Growth of the store; it levels off after the longest `ttl`.";
        STORE_UP: Gauge, "ringway_store_up", ["store"],
            "1 if a store accepts writes: `idempotency` is the idempotency store, `etcd` that of `fleet.etcd`, others are nodes of `fleet.redis`.",
            "Alert on 0: new keys are refused, or forwarded unprotected, as `on_store_failure` says; or a node of the bus is away.";
        FLEET_MEMBERS: Gauge, "ringway_fleet_members", [],
            "Members of the fleet that are alive, this process among them.",
            "Alert where it is less than the number of proxies that should run.";
        FLEET_EVENT_LAG: Gauge, "ringway_fleet_event_lag_seconds", [],
            "The time that an event of this process takes over the bus, by its last heartbeat.",
            "Alert above a second: a purge takes that long to reach this proxy.";
        LEADER: Gauge, "ringway_leader", ["id"],
            "1 if this process is the leader of the fleet with this id.",
            "Alert where the sum over the proxies of a fleet is not 1 for longer than `fleet.lease`.";
        LEADER_TERM: Gauge, "ringway_leader_term", [],
            "The term of the leader that this process knows: the revision of etcd at its election; 0 without one.",
            "A rise is a change of the leader. Proxies that differ for long see different etcd clusters.";
        FLEET_HEALTH_AGE: Gauge, "ringway_fleet_health_age_seconds", ["pool"],
            "Time since the last sign of life of the leader's checks of a pool with `health: shared`.",
            "Alert above three intervals of the pool: each proxy then checks its nodes for itself.";
        SAGAS_STUCK: Gauge, "ringway_sagas_stuck", [],
            "Sagas in the store that wait for a person, as of the last five seconds; at most 1000 are counted.",
            "Alert above 0: `ringway sagas --state stuck` lists them, and nothing goes on before a person decides.";
        LAST_RELOAD_SUCCESS: Gauge, "ringway_config_last_reload_success", [],
            "1 if the configuration file, as it was read last, is in use.",
            "Alert on 0 for longer than an edit takes.";
        LAST_RELOAD_TIMESTAMP: Gauge, "ringway_config_last_reload_timestamp_seconds", [],
            "Time of the last read of the configuration file.",
            "Shows whether a rollout of the file has arrived everywhere.";
        CERTIFICATE_EXPIRY: Gauge, "ringway_tls_certificate_expiry_seconds", ["name"],
            "Expiry of a certificate, in seconds since 1970, by its first name; the earliest of several with that name.",
            "Alert some weeks before it: `x - time() < 14 * 86400`.";
        NODE_HEALTHY: Gauge, "ringway_node_healthy", ["pool", "node"],
            "1 if a node is healthy: its health checks pass, and it is not ejected.",
            "Alert on 0. `ringway status` shows the reason.";
        NODE_IN_FLIGHT: Gauge, "ringway_node_in_flight", ["pool", "node"],
            "Requests and tunnels in flight to a node.",
            "Load of each node; an outlier is slow, or owns a hot key.";
        RING_SHARE: Gauge, "ringway_ring_share_ratio", ["pool", "node"],
            "The share of the pool's keys that a node owns.",
            "Compare with the share of requests: the difference is hot keys.";
        UPSTREAM_CONNECTIONS: Gauge, "ringway_upstream_connections", ["pool", "node", "state"],
            "Connections to nodes, idle or in use.",
            "Compare with the limits of the nodes.";
        UPSTREAM_QUEUED: Gauge, "ringway_upstream_queued", ["pool"],
            "Requests that wait for a node with room.",
            "Alert on a lasting queue: the pool needs nodes, or a higher limit.";
        RETRY_TOKENS: Gauge, "ringway_upstream_retry_tokens", ["pool"],
            "Retries that the pool's budget allows now.",
            "At 0 further retries are denied; see `ringway_upstream_retries_denied_total`.";
        POOL_PANIC: Gauge, "ringway_pool_panic", ["pool"],
            "1 if so few nodes of the pool are healthy that health is ignored (panic mode).",
            "Alert on 1: requests go to unhealthy nodes.";
    }
}

/// Lost lines of the process log; a static, as lines can be lost before the metrics exist.
pub(super) static PROCESS_LOG_DROPPED: LazyLock<IntCounter> = LazyLock::new(|| {
    let Family { name, help, .. } = elsewhere::PROCESS_LOG_DROPPED;
    IntCounter::new(name, help).expect("metric names are valid")
});

impl Metrics {
    pub(crate) fn new() -> Metrics {
        let metrics = Metrics::registered();
        // Both series exist from the beginning, so that the rate of the first event is visible.
        for result in ["success", "failure"] {
            metrics.config_reloads.with_label_values(&[result]);
            metrics.upgrades.with_label_values(&[result]);
        }
        for reason in Abort::ALL {
            metrics.connections_aborted.with_label_values(&[reason.label()]);
        }
        for kind in ["url", "prefix", "tag", "all"] {
            metrics.cache_purges.with_label_values(&[kind]);
        }
        metrics.build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        register(&metrics.registry, ProcessMetrics::new());
        register(&metrics.registry, PROCESS_LOG_DROPPED.clone());
        metrics
    }

    /// Adds a gauge whose values are read at every scrape, so that absent values have no series.
    pub(crate) fn gauge(&self, family: Family, read: impl Fn(&mut Vec<Sample>) + Send + Sync + 'static) {
        register(&self.registry, ReadGauge::new(family, read));
    }

    /// Removes the series of routes, listeners, pools, nodes and steps that no longer exist, by their labels.
    pub(crate) fn retain(
        &self,
        is_route: impl Fn(&str) -> bool,
        is_listener: impl Fn(&str) -> bool,
        is_pool: impl Fn(&str) -> bool,
        is_node: impl Fn(&str, &str) -> bool,
        is_step: impl Fn(&str, &str) -> bool,
    ) {
        self.retain_series(&|labels| {
            let named = |label| labels.get(label).map(String::as_str);
            named("route").is_none_or(|route| route == "none" || is_route(route))
                && named("listener").is_none_or(&is_listener)
                && match (named("route"), named("step")) {
                    (Some(route), Some(step)) => is_step(route, step),
                    _ => true,
                }
                && match (named("pool"), named("node")) {
                    (Some(pool), Some(node)) => is_node(pool, node),
                    (Some(pool), None) => is_pool(pool),
                    _ => true,
                }
        });
    }

    /// Returns the whole page in the Prometheus text format.
    pub(crate) fn render(&self) -> Vec<u8> {
        let mut page = Vec::with_capacity(16 << 10);
        // Writing to memory cannot fail; a family that cannot be encoded ends the page early.
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut page) {
            tracing::error!(%error, "cannot render the metrics");
        }
        page
    }
}

/// The reasons for which the proxy aborts a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Abort {
    /// The client's address has reached its limit of connections.
    AddressLimit,
    /// The TLS handshake or the PROXY protocol header took too long.
    Handshake,
    /// A request head took too long.
    Head,
    /// A request body stalled, or was slower than the least rate.
    Body,
    /// The client stalled while reading its response.
    Write,
    /// The limit of HTTP/2 glitches was reached.
    Http2Glitches,
}

impl Abort {
    const ALL: [Abort; 6] =
        [Abort::AddressLimit, Abort::Handshake, Abort::Head, Abort::Body, Abort::Write, Abort::Http2Glitches];

    fn label(self) -> &'static str {
        match self {
            Abort::AddressLimit => "address_limit",
            Abort::Handshake => "handshake",
            Abort::Head => "head",
            Abort::Body => "body",
            Abort::Write => "write",
            Abort::Http2Glitches => "http2_glitches",
        }
    }
}

impl Metrics {
    /// Counts an aborted connection.
    pub(crate) fn aborted(&self, reason: Abort) {
        self.connections_aborted.with_label_values(&[reason.label()]).inc();
    }
}

/// Returns the sums of a family's counters by one of its labels.
pub(crate) fn totals(family: &IntCounterVec, label: &str) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for metric in family.collect().iter().flat_map(MetricFamily::get_metric) {
        let value = metric.get_label().iter().find(|pair| pair.name() == label).map_or("", LabelPair::value);
        *sums.entry(value.to_owned()).or_default() += metric.get_counter().get_value() as u64;
    }
    sums
}

/// Returns the label of a method: registered ones by name, all others as `OTHER`, so that clients cannot create series.
pub(crate) fn method_label(method: &http::Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "PATCH" => "PATCH",
        "OPTIONS" => "OPTIONS",
        "CONNECT" => "CONNECT",
        "TRACE" => "TRACE",
        _ => "OTHER",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;

    #[test]
    fn the_reference_lists_every_metric() {
        let mut page = String::from(
            "# Metrics reference\n\nThis page is generated from the table in `src/telemetry/metrics.rs`; do not edit it.\n\n`GET /metrics` on the admin listener, or on the metrics listener, returns these families in the\nPrometheus text format, and the standard ones of a process (`process_*`). Series of routes,\nlisteners, pools, nodes and steps that are no longer configured are removed. `route` is `none` for requests\nwithout a matching route; `method` is `OTHER` for unregistered methods.\n\n| name | type | labels | meaning | what it is for |\n| --- | --- | --- | --- | --- |\n",
        );
        let mut families: Vec<&Family> = FAMILIES.iter().collect();
        families.sort_by_key(|family| family.name);
        for family in families {
            let kind = format!("{:?}", family.kind).to_lowercase();
            let labels: Vec<String> = family.labels.iter().map(|label| format!("`{label}`")).collect();
            let (name, labels) = (family.name, labels.join(", "));
            page += &format!("| `{name}` | {kind} | {labels} | {} | {} |\n", family.help, family.purpose);
        }
        reference::compare("docs/metrics.md", &page);
    }

    /// The removal of series covers every family of the table.
    #[test]
    fn series_of_what_is_no_more_are_removed_from_every_family() {
        let metrics = Metrics::new();
        metrics.touch("gone");
        metrics.retain(|_| true, |_| true, |_| true, |_, _| true, |_, _| true);
        let page = String::from_utf8(metrics.render()).unwrap();
        assert!(
            page.contains("ringway_upstream_requests_total{node=\"gone\",outcome=\"gone\",pool=\"gone\"}"),
            "{page}"
        );
        metrics.retain(|_| false, |_| false, |_| false, |_, _| false, |_, _| false);
        let page = String::from_utf8(metrics.render()).unwrap();
        for line in page.lines().filter(|line| line.contains("gone")) {
            for label in ["route", "listener", "pool", "node", "step"] {
                assert!(!line.contains(&format!("{label}=\"gone\"")), "{line}");
            }
        }
    }

    #[test]
    fn a_request_without_a_route_keeps_its_series() {
        let metrics = Metrics::new();
        metrics.requests.with_label_values(&["none", "GET", "404"]).inc();
        metrics.retain(|_| false, |_| false, |_| false, |_, _| false, |_, _| false);
        assert!(String::from_utf8(metrics.render()).unwrap().contains("route=\"none\""));
    }
}
