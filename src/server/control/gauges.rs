//! Gauges of the state in force: read at each scrape, so that a removed node or pool has no series.

use crate::cache::Cache;
use crate::clock::steady_millis;
use crate::fleet::{Bus, Leadership};
use crate::http::budget::Budget;
use crate::proxy::Snapshot;
use crate::server::process::handle::LastReload;
use crate::telemetry::metrics::{Metrics, Sample, elsewhere};
use crate::upstream::{Node, Pool};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Registers the gauges of the cache.
pub(in crate::server) fn cache(metrics: &Metrics, cache: &Arc<Cache>) {
    let gauge = |family, read: fn((u64, u64)) -> u64| {
        let cache = Arc::clone(cache);
        metrics.gauge(family, move |samples| {
            samples.push(Sample { labels: Vec::new(), value: read(cache.extent()) as f64 });
        });
    };
    gauge(elsewhere::CACHE_ENTRIES, |(entries, _)| entries);
    gauge(elsewhere::CACHE_BYTES, |(_, bytes)| bytes);
}

/// Registers the gauges of the fleet, where the process has a bus or etcd.
pub(in crate::server) fn fleet(metrics: &Metrics, bus: Option<&Bus>, leadership: Option<&Leadership>) {
    let gauge = |family, read: fn(&Bus) -> f64| {
        let bus = bus.cloned();
        metrics.gauge(family, move |samples| {
            samples.extend(bus.iter().map(|bus| Sample { labels: Vec::new(), value: read(bus) }));
        });
    };
    let (by_bus, by_etcd) = (bus.cloned(), leadership.cloned());
    metrics.gauge(elsewhere::FLEET_MEMBERS, move |samples| {
        let by_etcd = || by_etcd.as_ref().map(Leadership::members);
        let members = by_bus.as_ref().map(Bus::members).or_else(by_etcd);
        samples.extend(members.map(|members| Sample { labels: Vec::new(), value: members as f64 }));
    });
    gauge(elsewhere::FLEET_EVENT_LAG, |bus| bus.lag().as_secs_f64());
}

/// Registers the gauges of the leader, and of shared health, where the process has etcd.
pub(in crate::server) fn leader(metrics: &Metrics, leadership: Option<&Leadership>) {
    let Some(leadership) = leadership else { return };
    let own = leadership.clone();
    metrics.gauge(elsewhere::LEADER, move |samples| {
        let labels = vec![own.fleet().to_owned()];
        samples.push(Sample { labels, value: f64::from(u8::from(own.is_leader())) });
    });
    let own = leadership.clone();
    metrics.gauge(elsewhere::LEADER_TERM, move |samples| {
        samples.push(Sample { labels: Vec::new(), value: own.term() as f64 });
    });
    let own = leadership.clone();
    metrics.gauge(elsewhere::FLEET_HEALTH_AGE, move |samples| {
        let sample = |(pool, age): (String, Duration)| Sample { labels: vec![pool], value: age.as_secs_f64() };
        samples.extend(own.ages().into_iter().map(sample));
    });
}

/// Registers the gauge of buffered bytes.
pub(in crate::server) fn budget(metrics: &Metrics, budget: &Arc<Budget>) {
    let budget = Arc::clone(budget);
    metrics.gauge(elsewhere::BUFFERED_BYTES, move |samples| {
        samples.push(Sample { labels: Vec::new(), value: budget.held() as f64 });
    });
}

/// Registers the gauges of the last reload.
pub(in crate::server) fn state(metrics: &Metrics, reloads: &Arc<Mutex<LastReload>>) {
    let last = |read: fn(&LastReload) -> f64| {
        let reloads = Arc::clone(reloads);
        move |samples: &mut Vec<Sample>| {
            let value = read(&reloads.lock());
            samples.push(Sample { labels: Vec::new(), value });
        }
    };
    metrics.gauge(elsewhere::LAST_RELOAD_SUCCESS, last(|reload| f64::from(u8::from(reload.succeeded()))));
    metrics.gauge(elsewhere::LAST_RELOAD_TIMESTAMP, last(LastReload::timestamp));
}

/// When certificates end.
pub(in crate::server) fn certificates(metrics: &Metrics, snapshot: &Arc<ArcSwap<Snapshot>>) {
    let snapshot = Arc::clone(snapshot);
    metrics.gauge(elsewhere::CERTIFICATE_EXPIRY, move |samples| {
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

/// Registers the gauges of nodes (health, load, shares) and of their pools.
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
        elsewhere::NODE_HEALTHY,
        each_node(|node, _, add| add(&[], f64::from(u8::from(node.runtime.is_healthy(steady_millis(Instant::now())))))),
    );
    metrics.gauge(elsewhere::NODE_IN_FLIGHT, each_node(|node, _, add| add(&[], f64::from(node.runtime.in_flight()))));
    metrics.gauge(elsewhere::RING_SHARE, each_node(|_, share, add| add(&[], share)));
    metrics.gauge(
        elsewhere::UPSTREAM_CONNECTIONS,
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
    metrics.gauge(elsewhere::UPSTREAM_QUEUED, each_pool(|pool| f64::from(pool.queued())));
    metrics.gauge(elsewhere::RETRY_TOKENS, each_pool(|pool| pool.group.budget.tokens(steady_millis(Instant::now()))));
    metrics.gauge(
        elsewhere::POOL_PANIC,
        each_pool(|pool| f64::from(u8::from(pool.is_panic(steady_millis(Instant::now()))))),
    );
}
