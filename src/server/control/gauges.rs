//! Gauges of the state in force: read at each scrape, so that a removed node or pool has no series.

use crate::cache::Cache;
use crate::http::budget::Budget;
use crate::proxy::Snapshot;
use crate::server::process::handle::LastReload;
use crate::telemetry::metrics::{Metrics, Sample};
use crate::upstream::{Node, Pool, millis};
use arc_swap::ArcSwap;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Gauges of what the cache holds.
pub(in crate::server) fn cache(metrics: &Metrics, cache: &Arc<Cache>) {
    let gauge = |name, help, read: fn((u64, u64)) -> u64| {
        let cache = Arc::clone(cache);
        metrics.gauge(name, help, &[], move |samples| {
            samples.push(Sample { labels: Vec::new(), value: read(cache.extent()) as f64 });
        });
    };
    gauge("ringway_cache_entries", "URIs that the cache has something for.", |(entries, _)| entries);
    gauge("ringway_cache_bytes", "Memory that stored responses take, keys and overhead included.", |(_, bytes)| bytes);
}

/// Registers the gauge of buffered bytes.
pub(in crate::server) fn budget(metrics: &Metrics, budget: &Arc<Budget>) {
    let budget = Arc::clone(budget);
    let help = "Bytes of bodies that are held back, as `limits.buffered_bytes` bounds them.";
    metrics.gauge("ringway_buffered_bytes", help, &[], move |samples| {
        samples.push(Sample { labels: Vec::new(), value: budget.held() as f64 });
    });
}

/// Registers the gauges of the last reload.
pub(in crate::server) fn state(metrics: &Metrics, reloads: &Arc<Mutex<LastReload>>) {
    let last = |read: fn(&LastReload) -> f64| {
        let reloads = Arc::clone(reloads);
        move |samples: &mut Vec<Sample>| {
            let value = read(&reloads.lock().unwrap_or_else(PoisonError::into_inner));
            samples.push(Sample { labels: Vec::new(), value });
        }
    };
    metrics.gauge(
        "ringway_config_last_reload_success",
        "Whether the configuration file, as it was read last, is in force.",
        &[],
        last(|reload| f64::from(u8::from(reload.succeeded()))),
    );
    metrics.gauge(
        "ringway_config_last_reload_timestamp_seconds",
        "When the configuration file was read last.",
        &[],
        last(LastReload::timestamp),
    );
}

/// When certificates end.
pub(in crate::server) fn certificates(metrics: &Metrics, snapshot: &Arc<ArcSwap<Snapshot>>) {
    let snapshot = Arc::clone(snapshot);
    let help =
        "When a certificate ends, in seconds since 1970, by its first name; of several with that name the earliest.";
    metrics.gauge("ringway_tls_certificate_expiry_seconds", help, &["name"], move |samples| {
        let mut ends: BTreeMap<String, i64> = BTreeMap::new();
        for certificate in snapshot.load().config.secrets.tls.values().flat_map(|tls| tls.certificates()) {
            let name = certificate.names.dns.first().unwrap_or(&certificate.file).clone();
            let end = ends.entry(name).or_insert(certificate.expiry);
            *end = certificate.expiry.min(*end);
        }
        samples.extend(ends.into_iter().map(|(name, end)| Sample { labels: vec![name], value: end as f64 }));
    });
}

/// Reads a node and its share of the keys; is handed a function that adds a value, with more labels.
type ReadNode = fn(&Node, f64, &mut dyn FnMut(&[&str], f64));

/// Health, load and shares of nodes, and what their pools have.
pub(in crate::server) fn nodes(metrics: &Metrics, snapshot: &Arc<ArcSwap<Snapshot>>) {
    let each_node = |read: ReadNode| {
        let snapshot = Arc::clone(snapshot);
        move |samples: &mut Vec<Sample>| {
            for pool in &snapshot.load().pools {
                let shares = pool.ring.shares();
                for (node, share) in pool.nodes.iter().zip(shares) {
                    read(node, share, &mut |more, value| {
                        let labels =
                            [&*pool.name, &*node.id].iter().chain(more).map(|label| (*label).to_owned()).collect();
                        samples.push(Sample { labels, value });
                    });
                }
            }
        }
    };
    metrics.gauge(
        "ringway_node_healthy",
        "Whether a node is well: its health checks pass, and it is not ejected.",
        &["pool", "node"],
        each_node(|node, _, add| add(&[], f64::from(u8::from(node.runtime.is_healthy(millis(Instant::now())))))),
    );
    metrics.gauge(
        "ringway_node_in_flight",
        "Requests and tunnels that a node is working on.",
        &["pool", "node"],
        each_node(|node, _, add| add(&[], f64::from(node.runtime.in_flight()))),
    );
    metrics.gauge(
        "ringway_ring_share_ratio",
        "The part of the pool's keys that a node owns.",
        &["pool", "node"],
        each_node(|_, share, add| add(&[], share)),
    );
    metrics.gauge(
        "ringway_upstream_connections",
        "Connections to nodes, by whether a request is on them.",
        &["pool", "node", "state"],
        each_node(|node, _, add| {
            add(&["active"], f64::from(node.runtime.in_flight()));
            add(&["idle"], f64::from(node.runtime.idle()));
        }),
    );
    let each_pool = |read: fn(&Pool) -> f64| {
        let snapshot = Arc::clone(snapshot);
        move |samples: &mut Vec<Sample>| {
            let snapshot = snapshot.load();
            let sample = |pool: &Arc<Pool>| Sample { labels: vec![pool.name.to_string()], value: read(pool) };
            samples.extend(snapshot.pools.iter().map(sample));
        }
    };
    metrics.gauge(
        "ringway_upstream_queued",
        "Requests that wait for a node with room.",
        &["pool"],
        each_pool(|pool| f64::from(pool.queued())),
    );
    metrics.gauge(
        "ringway_upstream_retry_tokens",
        "Retries that the pool's budget would pay for now.",
        &["pool"],
        each_pool(|pool| pool.group.budget.tokens(millis(Instant::now()))),
    );
    metrics.gauge(
        "ringway_pool_panic",
        "Whether so few nodes of the pool are well that health is ignored.",
        &["pool"],
        each_pool(|pool| f64::from(u8::from(pool.is_panic(millis(Instant::now()))))),
    );
}
