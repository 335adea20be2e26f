//! Prometheus metrics. Counters on the request's way are relaxed atomics behind handles that are
//! looked up once; gauges of other state are read at each scrape.

use prometheus::core::{Collector, Desc, MetricVec, MetricVecBuilder};
use prometheus::proto::{Gauge, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};
use std::collections::BTreeMap;

/// From half a millisecond to a minute: a proxy's own time and a slow node's both fall inside.
const DURATION_BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0];

/// All metrics of the process.
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) requests: IntCounterVec,
    pub(crate) request_duration: HistogramVec,
    pub(crate) requests_in_flight: IntGauge,
    pub(crate) connections: IntGaugeVec,
    pub(crate) connections_total: IntCounterVec,
    pub(crate) tls_handshakes: IntCounterVec,
    pub(crate) http2_glitches: IntCounterVec,
    pub(crate) connections_aborted: IntCounterVec,
    pub(crate) request_bytes: IntCounter,
    pub(crate) response_bytes: IntCounter,
    pub(crate) upstream_requests: IntCounterVec,
    pub(crate) upstream_duration: HistogramVec,
    pub(crate) upstream_retries: IntCounterVec,
    pub(crate) upstream_retries_denied: IntCounterVec,
    pub(crate) ring_spills: IntCounterVec,
    pub(crate) cache_requests: IntCounterVec,
    pub(crate) cache_evictions: IntCounter,
    pub(crate) cache_purges: IntCounterVec,
    pub(crate) idempotency_requests: IntCounterVec,
    pub(crate) idempotency_store_duration: HistogramVec,
    pub(crate) rate_limited: IntCounterVec,
    pub(crate) access_log_dropped: IntCounter,
    pub(crate) config_reloads: IntCounterVec,
    pub(crate) upgrades: IntCounterVec,
}

impl Metrics {
    pub(crate) fn new() -> Metrics {
        let registry = Registry::new();
        let metrics = Metrics {
            requests: counters(&registry, "ringway_requests_total", "Requests answered.", &["route", "method", "code"]),
            request_duration: histograms(
                &registry,
                "ringway_request_duration_seconds",
                "Time from a request's head to the end of its answer.",
                &["route"],
            ),
            requests_in_flight: gauge(&registry, "ringway_requests_in_flight", "Requests that are being answered."),
            connections: gauges(&registry, "ringway_connections", "Open client connections.", &["listener"]),
            connections_total: counters(
                &registry,
                "ringway_connections_total",
                "Client connections accepted.",
                &["listener"],
            ),
            tls_handshakes: counters(
                &registry,
                "ringway_tls_handshakes_total",
                "TLS handshakes with clients.",
                &["listener", "result"],
            ),
            http2_glitches: counters(
                &registry,
                "ringway_http2_glitches_total",
                "What honest clients seldom do, as it adds to the score of their connection.",
                &["kind"],
            ),
            connections_aborted: counters(
                &registry,
                "ringway_connections_aborted_total",
                "Client connections, and requests over HTTP/2, that the proxy ended for their own doing.",
                &["reason"],
            ),
            request_bytes: counter(&registry, "ringway_request_bytes_total", "Bytes of request bodies received."),
            response_bytes: counter(&registry, "ringway_response_bytes_total", "Bytes of response bodies sent."),
            upstream_requests: counters(
                &registry,
                "ringway_upstream_requests_total",
                "Attempts at nodes, by what became of them.",
                &["pool", "node", "outcome"],
            ),
            upstream_duration: histograms(
                &registry,
                "ringway_upstream_duration_seconds",
                "Time from the start of an attempt to the end of its answer.",
                &["pool", "node"],
            ),
            upstream_retries: counters(
                &registry,
                "ringway_upstream_retries_total",
                "Attempts after the first one of a request, by why it failed.",
                &["pool", "reason"],
            ),
            upstream_retries_denied: counters(
                &registry,
                "ringway_upstream_retries_denied_total",
                "Attempts that were not made because the pool's retry budget was spent.",
                &["pool"],
            ),
            ring_spills: counters(
                &registry,
                "ringway_ring_spills_total",
                "Requests that met another node than their key's owner, by why the owner was passed over.",
                &["pool", "reason"],
            ),
            cache_requests: counters(
                &registry,
                "ringway_cache_requests_total",
                "Requests on caching routes, by what the cache did.",
                &["route", "result"],
            ),
            cache_evictions: counter(
                &registry,
                "ringway_cache_evictions_total",
                "Entries of the cache that made room for others.",
            ),
            cache_purges: counters(&registry, "ringway_cache_purges_total", "Purges of the cache.", &["kind"]),
            idempotency_requests: counters(
                &registry,
                "ringway_idempotency_requests_total",
                "Requests on routes with idempotency, by what became of them.",
                &["route", "result"],
            ),
            idempotency_store_duration: histograms(
                &registry,
                "ringway_idempotency_store_duration_seconds",
                "Time that calls to the idempotency store take, until what they changed is durable.",
                &["op"],
            ),
            rate_limited: counters(
                &registry,
                "ringway_rate_limited_total",
                "Requests that were too many for the rate limit of their route.",
                &["route"],
            ),
            access_log_dropped: counter(
                &registry,
                "ringway_access_log_dropped_total",
                "Access log lines lost because their destination was too slow, or failed.",
            ),
            config_reloads: counters(
                &registry,
                "ringway_config_reloads_total",
                "Reloads of the configuration.",
                &["result"],
            ),
            upgrades: counters(
                &registry,
                "ringway_upgrades_total",
                "New binaries that were to take over; one that did counts in the process that has ended.",
                &["result"],
            ),
            registry,
        };
        // Both results are there from the beginning, so that a rate can be taken of the first one.
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
        let info = gauges(&metrics.registry, "ringway_build_info", "The version that runs.", &["version"]);
        info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        register(&metrics.registry, prometheus::process_collector::ProcessCollector::for_self());
        register(&metrics.registry, super::process_log::DROPPED.clone());
        metrics
    }

    /// Adds a gauge whose values are read at every scrape: what is gone has no series any more.
    pub(crate) fn gauge(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
        read: impl Fn(&mut Vec<Sample>) + Send + Sync + 'static,
    ) {
        let names = labels.iter().map(|label| (*label).to_owned()).collect();
        let desc =
            Desc::new(name.to_owned(), help.to_owned(), names, Default::default()).expect("metric names are valid");
        register(&self.registry, Mirror { desc, name, help, labels, read: Box::new(read) });
    }

    /// Removes the series of routes, listeners, pools and nodes that are no more.
    pub(crate) fn retain(
        &self,
        is_route: impl Fn(&str) -> bool,
        is_listener: impl Fn(&str) -> bool,
        is_pool: impl Fn(&str) -> bool,
        is_node: impl Fn(&str, &str) -> bool,
    ) {
        let route = |labels: &Labels| labels.get("route").is_none_or(|route| route == "none" || is_route(route));
        let listener = |labels: &Labels| labels.get("listener").is_none_or(|name| is_listener(name));
        let pool = |labels: &Labels| labels.get("pool").is_none_or(|pool| is_pool(pool));
        let node = |labels: &Labels| match (labels.get("pool"), labels.get("node")) {
            (Some(pool), Some(node)) => is_node(pool, node),
            _ => true,
        };
        retain(&self.requests, &["route", "method", "code"], route);
        retain(&self.request_duration, &["route"], route);
        retain(&self.cache_requests, &["route", "result"], route);
        retain(&self.idempotency_requests, &["route", "result"], route);
        retain(&self.rate_limited, &["route"], route);
        retain(&self.connections, &["listener"], listener);
        retain(&self.connections_total, &["listener"], listener);
        retain(&self.tls_handshakes, &["listener", "result"], listener);
        retain(&self.upstream_retries, &["pool", "reason"], pool);
        retain(&self.upstream_retries_denied, &["pool"], pool);
        retain(&self.ring_spills, &["pool", "reason"], pool);
        retain(&self.upstream_requests, &["pool", "node", "outcome"], node);
        retain(&self.upstream_duration, &["pool", "node"], node);
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

/// Why the proxy ends a connection that does nothing forbidden by the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Abort {
    /// Its address has as many connections as one may have.
    AddressLimit,
    /// Its TLS handshake, or its PROXY protocol header, did not come in time.
    Handshake,
    /// A head did not come in time.
    Head,
    /// A body stopped arriving, or came too slowly.
    Body,
    /// The client took nothing of its answer.
    Write,
    /// It did too much of what honest clients seldom do over HTTP/2.
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
    /// Counts a connection that is ended.
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

type Labels = BTreeMap<String, String>;

/// Removes the children of a vector whose labels are not to be kept.
fn retain<B: MetricVecBuilder>(family: &MetricVec<B>, names: &[&str], keep: impl Fn(&Labels) -> bool) {
    for metric in family.collect().iter().flat_map(MetricFamily::get_metric) {
        let labels: Labels =
            metric.get_label().iter().map(|pair| (pair.name().to_owned(), pair.value().to_owned())).collect();
        if !keep(&labels) {
            let values: Vec<&str> = names.iter().map(|name| labels.get(*name).map_or("", String::as_str)).collect();
            // Somebody else may have removed it meanwhile, which is as well.
            let _ = family.remove_label_values(&values);
        }
    }
}

/// One value of a mirrored gauge and its labels' values.
pub(crate) struct Sample {
    pub(crate) labels: Vec<String>,
    pub(crate) value: f64,
}

type Read = Box<dyn Fn(&mut Vec<Sample>) + Send + Sync>;

struct Mirror {
    desc: Desc,
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
    read: Read,
}

impl Collector for Mirror {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut samples = Vec::new();
        (self.read)(&mut samples);
        if samples.is_empty() {
            return Vec::new();
        }
        let metrics = samples.into_iter().map(|sample| {
            let mut gauge = Gauge::default();
            gauge.set_value(sample.value);
            let pairs = self.labels.iter().zip(sample.labels).map(|(name, value)| {
                let mut pair = LabelPair::default();
                pair.set_name((*name).to_owned());
                pair.set_value(value);
                pair
            });
            let mut pairs: Vec<LabelPair> = pairs.collect();
            pairs.sort_by(|a, b| a.name().cmp(b.name()));
            let mut metric = Metric::from_label(pairs);
            metric.set_gauge(gauge);
            metric
        });
        let mut family = MetricFamily::default();
        family.set_name(self.name.to_owned());
        family.set_help(self.help.to_owned());
        family.set_field_type(MetricType::GAUGE);
        family.set_metric(metrics.collect());
        vec![family]
    }
}

fn register<C: Collector + 'static>(registry: &Registry, collector: C) {
    registry.register(Box::new(collector)).expect("every metric is registered once");
}

fn added<C: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> C {
    let collector = made.expect("metric names are valid");
    register(registry, collector.clone());
    collector
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    added(registry, IntCounter::new(name, help))
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    added(registry, IntCounterVec::new(Opts::new(name, help), labels))
}

fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    added(registry, IntGauge::new(name, help))
}

fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    added(registry, IntGaugeVec::new(Opts::new(name, help), labels))
}

fn histograms(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
    let options = HistogramOpts::new(name, help).buckets(DURATION_BUCKETS.to_vec());
    added(registry, HistogramVec::new(options, labels))
}

/// Returns the label of a method: the registered ones by name, every other as `OTHER`, so that a client
/// cannot make series.
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
