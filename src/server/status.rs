//! What a running proxy tells of itself.

use super::purge;
use super::reload::{LastReload, Trigger};
use super::run::Handle;
use super::worker::Stage;
use crate::cache::{Cache, Purge};
use crate::config::{self, NodeState};
use crate::control::{Access, Asked, Control, PurgeOrder, PurgeTarget, Release};
use crate::http::budget::Budget;
use crate::idempotency::{Authorised, Id, Listed, Records};
use crate::proxy::Snapshot;
use crate::telemetry::metrics::{Metrics, Sample, totals};
use crate::upstream::{Node, Pool};
use arc_swap::ArcSwap;
use serde_json::{Value as Json, json};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::oneshot;

impl Control for Handle {
    fn is_ready(&self) -> bool {
        *self.stage.borrow() == Stage::Serving && self.snapshot.load().is_usable()
    }

    fn access(&self) -> Access {
        let snapshot = self.snapshot.load();
        Access {
            token: snapshot.config.secrets.admin_token.clone(),
            allowed_hosts: snapshot.config.settings.admin.allowed_hosts.clone(),
        }
    }

    fn metrics(&self) -> Vec<u8> {
        self.metrics.render()
    }

    fn status(&self) -> Json {
        let snapshot = self.snapshot.load();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "ready": self.is_ready(),
            "draining": *self.stage.borrow() != Stage::Serving,
            "workers": self.workers,
            "listeners": self.open.borrow().iter().map(|open| json!({ "name": &*open.name, "address": open.bound.to_string() })).collect::<Vec<_>>(),
            "connections": { "limit": snapshot.config.settings.limits.connections, "free": self.places.free() },
            "cache": cache_status(&self.cache, &self.metrics),
            "idempotency": self.records.get().map(|records| json!({
                "store": records.kind.to_string(),
                "records": records.count(),
                "requests": counts(&self.metrics.idempotency_requests, "result"),
            })),
            "config": { "file": snapshot.config.file, "routes": snapshot.routes.len(), "pools": snapshot.pools.len() },
            "last_reload": self.last_reload.lock().unwrap_or_else(PoisonError::into_inner).status(),
        })
    }

    fn config(&self) -> Json {
        config::effective(&self.snapshot.load().config.settings)
    }

    fn pools(&self) -> Json {
        self.snapshot.load().pools.iter().map(|pool| pool_status(pool)).collect()
    }

    fn set_node_state(&self, pool: &str, id: &str, state: NodeState) -> bool {
        let snapshot = self.snapshot.load();
        let found = snapshot.pools.iter().find(|candidate| &*candidate.name == pool);
        let set = found.is_some_and(|pool| self.registry.set_state(pool, id, state));
        if set {
            tracing::info!(pool, node = id, state = state.word(), "the state of a node was set");
        }
        set
    }

    fn reload(&self) -> Pin<Box<dyn Future<Output = Result<String, String>> + Send + '_>> {
        Box::pin(async {
            let (answer, told) = oneshot::channel();
            let gone = |_| "the proxy is stopping".to_owned();
            self.triggers.send(Trigger::Asked(answer)).await.map_err(|_| gone(()))?;
            told.await.unwrap_or_else(|_| Err(gone(())))
        })
    }

    fn purge(&self, order: PurgeOrder) -> Result<(), String> {
        let PurgeOrder { what, soft } = order;
        let purge = match what {
            PurgeTarget::All => Purge::All,
            PurgeTarget::Tag(tag) => Purge::Tag(tag),
            PurgeTarget::Prefix(prefix) => Purge::Prefix(purge::prefix(&prefix)?),
            PurgeTarget::Url(url) => Purge::Url(purge::urls(&self.snapshot.load(), &url)?),
        };
        tracing::info!(?purge, soft, "the cache was purged");
        self.metrics.cache_purges.with_label_values(&[purge.kind()]).inc();
        self.cache.purge(&purge, soft);
        Ok(())
    }

    fn idempotency<'a>(&'a self, key: &'a str) -> Asked<'a, Json> {
        Box::pin(async move {
            let Some(records) = self.records.get() else { return Ok(json!([])) };
            let found = records.find(key).await.map_err(|error| error.to_string())?;
            Ok(found.iter().map(|listed| record_status(records, listed)).collect())
        })
    }

    fn release<'a>(&'a self, id: &'a str, by: SocketAddr) -> Asked<'a, Release> {
        Box::pin(async move {
            let (Some(records), Some(id)) = (self.records.get(), Id::parse(id)) else { return Ok(Release::Absent) };
            // Said before, for the store may carry it out when nobody waits for it any more.
            tracing::warn!(%id, %by, "an operator asks for the release of an idempotency record");
            let authorised = records.authorise(id).await.map_err(|error| error.to_string())?;
            Ok(match authorised {
                Authorised::Released => {
                    tracing::warn!(%id, %by, "an idempotency record was released: the next request with its key runs");
                    Release::Released
                }
                Authorised::Running => Release::Running,
                Authorised::Absent => Release::Absent,
            })
        })
    }

    fn drain(&self) {
        self.drain_asked.notify_one();
    }

    fn owners(&self, pool: &str, key: &str) -> Option<Json> {
        let snapshot = self.snapshot.load();
        let pool = snapshot.pools.iter().find(|candidate| &*candidate.name == pool)?;
        let hash = pool.ring.hash_key(key.as_bytes());
        let order: Vec<&str> = pool.ring.walk(hash).map(|member| &*pool.nodes[member].id).collect();
        let takes: Option<&str> = pool.candidates(hash).next().map(|node| &*node.id);
        Some(
            json!({ "pool": &*pool.name, "key": key, "hash": format!("{hash:016x}"), "owner": order.first(), "order": order, "takes": takes }),
        )
    }
}

fn record_status(records: &Records, listed: &Listed) -> Json {
    json!({
        "id": listed.id.to_string(),
        "namespace": listed.subject.namespace,
        "method": listed.subject.method,
        "authority": listed.subject.authority,
        "path": listed.subject.path,
        "key": listed.subject.key,
        "state": listed.record.state.word(),
        "status": listed.status,
        "age": records.age(listed),
        "expires_in": records.remaining(listed),
        "fingerprint": listed.record.fingerprint.to_string(),
    })
}

fn cache_status(cache: &Cache, metrics: &Metrics) -> Json {
    let (entries, bytes) = cache.extent();
    json!({
        "memory": cache.memory(),
        "bytes": bytes,
        "entries": entries,
        "evictions": metrics.cache_evictions.get(),
        "requests": counts(&metrics.cache_requests, "result"),
        "purges": counts(&metrics.cache_purges, "kind"),
    })
}

/// The sums of a family's counters by one of its labels.
fn counts(family: &prometheus::IntCounterVec, label: &str) -> Json {
    totals(family, label).into_iter().map(|(value, count)| (value, Json::from(count))).collect()
}

fn pool_status(pool: &Pool) -> Json {
    let shares = pool.ring.shares();
    let nodes = pool.nodes.iter().zip(shares).map(|(node, share)| {
        json!({
            "id": &*node.id,
            "address": node.address.to_string(),
            "weight": node.weight,
            "state": node.runtime.state().word(),
            "file_state": node.state.word(),
            "share": share,
            "in_flight": node.runtime.in_flight(),
            "idle_connections": node.runtime.idle(),
        })
    });
    json!({ "name": &*pool.name, "points": pool.ring.points(), "nodes": nodes.collect::<Vec<_>>() })
}

/// Gauges of what the cache holds.
pub(super) fn mirror_cache(metrics: &Metrics, cache: &Arc<Cache>) {
    let mirror = |name, help, read: fn((u64, u64)) -> u64| {
        let cache = Arc::clone(cache);
        metrics.mirror(name, help, &[], move |samples| {
            samples.push(Sample { labels: Vec::new(), value: read(cache.extent()) as f64 });
        });
    };
    mirror("ringway_cache_entries", "URIs that the cache has something for.", |(entries, _)| entries);
    mirror("ringway_cache_bytes", "Memory that stored responses take, keys and overhead included.", |(_, bytes)| bytes);
}

/// What is held back of bodies.
pub(super) fn mirror_budget(metrics: &Metrics, budget: &Arc<Budget>) {
    let budget = Arc::clone(budget);
    let help = "Bytes of bodies that are held back, as `limits.buffered_bytes` bounds them.";
    metrics.mirror("ringway_buffered_bytes", help, &[], move |samples| {
        samples.push(Sample { labels: Vec::new(), value: budget.held() as f64 });
    });
}

/// Reads a node and its share of the keys; is handed a function that adds a value, with more labels.
type ReadNode = fn(&Node, f64, &mut dyn FnMut(&[&str], f64));

/// Gauges that show what is in force as it is when somebody asks.
pub(super) fn mirror_state(metrics: &Metrics, snapshot: &Arc<ArcSwap<Snapshot>>, reloads: &Arc<Mutex<LastReload>>) {
    let last = |read: fn(&LastReload) -> f64| {
        let reloads = Arc::clone(reloads);
        move |samples: &mut Vec<Sample>| {
            let value = read(&reloads.lock().unwrap_or_else(PoisonError::into_inner));
            samples.push(Sample { labels: Vec::new(), value });
        }
    };
    metrics.mirror(
        "ringway_config_last_reload_success",
        "Whether the configuration file, as it was read last, is in force.",
        &[],
        last(|reload| f64::from(u8::from(reload.succeeded()))),
    );
    metrics.mirror(
        "ringway_config_last_reload_timestamp_seconds",
        "When the configuration file was read last.",
        &[],
        last(LastReload::timestamp),
    );
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
    metrics.mirror(
        "ringway_node_in_flight",
        "Requests and tunnels that a node is working on.",
        &["pool", "node"],
        each_node(|node, _, add| add(&[], f64::from(node.runtime.in_flight()))),
    );
    metrics.mirror(
        "ringway_ring_share_ratio",
        "The part of the pool's keys that a node owns.",
        &["pool", "node"],
        each_node(|_, share, add| add(&[], share)),
    );
    metrics.mirror(
        "ringway_upstream_connections",
        "Connections to nodes, by whether a request is on them.",
        &["pool", "node", "state"],
        each_node(|node, _, add| {
            add(&["active"], f64::from(node.runtime.in_flight()));
            add(&["idle"], f64::from(node.runtime.idle()));
        }),
    );
}
