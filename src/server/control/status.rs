//! The status of a running proxy, for the admin API and the command line.

use super::{fleet, plan, purge, sagas};
use crate::cache::{Cache, Purge};
use crate::clock::{self, steady_millis};
use crate::config::{self, NodeState};
use crate::control::{
    Access, CacheStatus, CheckStatus, ConfigStatus, ConnectionsStatus, Control, Decided, DiscoveryStatus, DrainStatus,
    EffectiveConfig, Event, Events, FleetState, FleetStatus, Forgotten, GroupStatus, HealthCheckStatus, HistoryStatus,
    IdempotencyStatus, KeyOwners, ListenerStatus, NodeStatus, PlanOrder, PlanStatus, PoolStatus, PurgeOrder,
    PurgeTarget, Purged, QuorumStatus, RecordStatus, Release, Reply, RingKey, RingSlices, SagaDecision, SagaStatus,
    Status,
};
use crate::idempotency::{Authorised, Id, Listed};
use crate::proxy::Snapshot;
use crate::server::listener::open::Open;
use crate::server::process::handle::{Handle, Trigger, certificates};
use crate::server::worker::Stage;
use crate::telemetry::metrics::{Metrics, totals};
use crate::telemetry::observers::Observers;
use crate::upstream::{Node, Pool};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// The longest time that a check of the file takes, and that it waits for an earlier one.
const CHECKING: Duration = Duration::from_secs(5);

impl Control for Handle {
    fn is_ready(&self) -> bool {
        // After another process has taken over, new requests reach that one.
        let is_welcome = *self.stage.borrow() == Stage::Serving || self.is_replaced.load(Ordering::SeqCst);
        is_welcome && self.snapshot.load().is_usable()
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

    fn status(&self) -> Status {
        let snapshot = self.snapshot.load();
        let listener = |open: &Open| ListenerStatus { name: open.name.to_string(), address: open.bound.to_string() };
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            ready: self.is_ready(),
            draining: *self.stage.borrow() != Stage::Serving,
            workers: self.workers,
            listeners: self.open.borrow().iter().map(listener).collect(),
            connections: ConnectionsStatus {
                limit: snapshot.config.settings.limits.connections,
                free: self.permits.free(),
            },
            cache: cache_status(&self.cache, &self.metrics),
            idempotency: self.records.get().map(|records| IdempotencyStatus {
                store: records.kind.to_string(),
                up: records.is_up(),
                promise: records.promise(),
                records: records.count(),
                requests: totals(&self.metrics.idempotency_requests, "result"),
            }),
            quorum: quorum(&snapshot),
            config: ConfigStatus {
                file: snapshot.config.file.display().to_string(),
                routes: snapshot.config.settings.routes.len(),
                pools: snapshot.pools.len(),
            },
            last_reload: self.last_reload.lock().status(),
            reloads: self.events.reloads(),
            certificates: certificates(&snapshot).into_iter().collect(),
        }
    }

    fn config(&self) -> EffectiveConfig {
        EffectiveConfig(config::effective(&self.snapshot.load().config))
    }

    fn pools(&self) -> Vec<PoolStatus> {
        let snapshot = self.snapshot.load();
        let status = |pool: &Arc<Pool>| {
            let wanted = snapshot.config.settings.pools.get(&pool.name).and_then(|pool| pool.discovery.as_ref());
            let discovery = wanted.map(|wanted| {
                let error = self.discovered.failure(wanted);
                DiscoveryStatus { success: error.is_none(), error }
            });
            pool_status(pool, discovery)
        };
        snapshot.pools.iter().map(status).collect()
    }

    fn set_node_state(&self, pool: &str, id: &str, state: NodeState) -> Option<bool> {
        let given = self.states_given.lock();
        if *given {
            return None;
        }
        let snapshot = self.snapshot.load();
        let found = snapshot.pools.iter().find(|candidate| &*candidate.name == pool);
        let set = found.is_some_and(|pool| self.registry.set_state(pool, id, state));
        if set {
            tracing::info!(pool, node = id, state = state.word(), "the state of a node was set");
            self.events.record(Event::NodeState { pool: pool.to_owned(), node: id.to_owned(), state, by: None });
        }
        Some(set)
    }

    fn reload(&self) -> Pin<Box<dyn Future<Output = Result<String, String>> + Send + '_>> {
        Box::pin(async {
            let (answer, told) = oneshot::channel();
            let gone = |_| "the proxy is stopping".to_owned();
            self.triggers.send(Trigger::AdminApi(answer)).await.map_err(|_| gone(()))?;
            told.await.unwrap_or_else(|_| Err(gone(())))
        })
    }

    fn purge(&self, order: PurgeOrder) -> Reply<'_, Purged> {
        Box::pin(async move {
            let (by, value) = match &order.what {
                PurgeTarget::All => ("all", None),
                PurgeTarget::Tag(value) => ("tag", Some(value)),
                PurgeTarget::Prefix(value) => ("prefix", Some(value)),
                PurgeTarget::Url(value) => ("url", Some(value)),
            };
            let purge = match &order.what {
                PurgeTarget::All => Purge::All,
                PurgeTarget::Tag(tag) => Purge::Tag(tag.clone()),
                PurgeTarget::Prefix(prefix) => Purge::Prefix(purge::prefix(prefix)?),
                PurgeTarget::Url(url) => Purge::Url(purge::urls(&self.snapshot.load(), url)?),
            };
            self.metrics.cache_purges.with_label_values(&[purge.kind()]).inc();
            let count = self.cache.purge(&purge, order.soft);
            // A scan of a large table takes a while; here it is in force already. It is recorded, also where the client
            // does not wait for the answer.
            let (by, value, events) = (by.to_owned(), value.cloned(), Arc::clone(&self.events));
            let (words, soft) = (order.to_string(), order.soft);
            let counted = tokio::task::spawn_blocking(move || {
                let responses = count();
                events.record(Event::Purge { by, value, soft, responses });
                tracing::info!(responses, "the cache was purged: {words}");
                responses
            });
            let (responses, heard_by, stamped) =
                tokio::join!(counted, fleet::purge(self, &order), fleet::stamp(self, &purge));
            let unmarked = stamped.map(|stamped| !stamped);
            Ok(Purged { responses: responses.unwrap_or_default(), heard_by, unmarked })
        })
    }

    fn fleet(&self) -> Option<FleetStatus> {
        fleet::status(self)
    }

    fn group(&self, group: &str) -> GroupStatus {
        fleet::group(self, group)
    }

    fn forget_member<'a>(&'a self, process: &'a str) -> Reply<'a, Forgotten> {
        Box::pin(fleet::forget(self, process))
    }

    fn set_fleet_state<'a>(&'a self, node: (&'a str, &'a str), state: NodeState, by: &'a str) -> Reply<'a, FleetState> {
        Box::pin(fleet::set_state(self, node, state, by))
    }

    fn idempotency<'a>(&'a self, key: &'a str) -> Reply<'a, Vec<RecordStatus>> {
        Box::pin(async move {
            let Some(records) = self.records.get() else { return Ok(Vec::new()) };
            let found = records.find(key).await.map_err(|error| error.to_string())?;
            Ok(found.iter().map(record_status).collect())
        })
    }

    fn unknown(&self) -> Reply<'_, Vec<RecordStatus>> {
        Box::pin(async move {
            let Some(records) = self.records.get() else { return Ok(Vec::new()) };
            let found = records.unknown().await.map_err(|error| error.to_string())?;
            Ok(found.iter().map(record_status).collect())
        })
    }

    fn release<'a>(&'a self, id: &'a str, by: SocketAddr) -> Reply<'a, Release> {
        Box::pin(async move {
            let (Some(records), Some(id)) = (self.records.get(), Id::parse(id)) else { return Ok(Release::Absent) };
            // Logged before, as the store may carry it out after the request has been abandoned.
            tracing::warn!(%id, %by, "an operator asks for the release of an idempotency record");
            let authorised = records.authorise(id).await.map_err(|error| error.to_string())?;
            Ok(match authorised {
                Authorised::Released => {
                    tracing::warn!(%id, %by, "an idempotency record was released: the next request with its key runs");
                    self.events.record(Event::RecordReleased { id: id.to_string(), by: by.to_string() });
                    Release::Released
                }
                Authorised::Running => Release::Running,
                Authorised::Absent => Release::Absent,
            })
        })
    }

    fn sagas<'a>(&'a self, state: Option<&'a str>) -> Reply<'a, Vec<SagaStatus>> {
        Box::pin(async move {
            let Some(records) = self.records.get() else { return Ok(Vec::new()) };
            sagas::listed(records, state).await
        })
    }

    fn decide<'a>(&'a self, id: &'a str, decision: SagaDecision, by: &'a str) -> Reply<'a, Decided> {
        Box::pin(async move {
            let Some(records) = self.records.get() else { return Ok(Decided::Absent) };
            let snapshot = self.snapshot.load_full();
            sagas::decide((records, &snapshot), &self.events, id, decision, by).await
        })
    }

    fn events(&self) -> Arc<Events> {
        Arc::clone(&self.events)
    }

    fn drain(&self) {
        self.drain_requested.notify_one();
    }

    fn owners(&self, pool: &str, key: RingKey<'_>) -> Option<KeyOwners> {
        let snapshot = self.snapshot.load();
        let pool = snapshot.pools.iter().find(|candidate| &*candidate.name == pool)?;
        let (hash, key) = match key {
            RingKey::Text(key) => (pool.ring.hash_key(key.as_bytes()), Some(key.to_owned())),
            RingKey::Place(hash) => (hash, None),
        };
        let order: Vec<String> = pool.ring.walk(hash).map(|member| pool.nodes[member].id.to_string()).collect();
        Some(KeyOwners {
            pool: pool.name.to_string(),
            key,
            hash: format!("{hash:016x}"),
            owner: order.first().cloned(),
            order,
            takes: pool.taker(hash, Instant::now()).map(|node| node.id.to_string()),
        })
    }

    fn slices(&self, pool: &str, count: usize) -> Option<RingSlices> {
        let snapshot = self.snapshot.load();
        let pool = snapshot.pools.iter().find(|candidate| &*candidate.name == pool)?;
        let width = u64::MAX / count.max(1) as u64;
        let owner = |slice: usize| pool.ring.owner(slice as u64 * width + width / 2);
        Some(RingSlices {
            pool: pool.name.to_string(),
            nodes: pool.nodes.iter().map(|node| node.id.to_string()).collect(),
            slices: (0..count).map(owner).collect(),
        })
    }

    fn places(&self, key: &str) -> Vec<u64> {
        let snapshot = self.snapshot.load();
        let mut places: Vec<u64> = snapshot.pools.iter().map(|pool| pool.ring.hash_key(key.as_bytes())).collect();
        places.sort_unstable();
        places.dedup();
        places
    }

    fn observers(&self) -> Arc<Observers> {
        Arc::clone(&self.observers)
    }

    fn history(&self, after: u64) -> HistoryStatus {
        self.history.after(after)
    }

    fn plan(&self, order: PlanOrder) -> Reply<'_, PlanStatus> {
        Box::pin(async move {
            // A ring of a thousand nodes takes a while to build: one after the other, and each to its end.
            let turn = Arc::clone(&self.planning).lock_owned().await;
            let (snapshot, history) = (self.snapshot.load_full(), self.history.after(0));
            let planned = tokio::task::spawn_blocking(move || {
                let _until_it_is_done = turn;
                plan::plan(&snapshot, &history, &order)
            });
            let planned = planned.await;
            planned.unwrap_or_else(|_| Err("the plan ended in a panic".to_owned()))
        })
    }

    fn check(&self) -> Reply<'_, CheckStatus> {
        Box::pin(async move {
            // Not by the turn of reloads, which a file that takes long must not wait behind.
            let slow = || "the file, or one that it names, takes long to be read; ask again".to_owned();
            let turn = tokio::time::timeout(CHECKING, Arc::clone(&self.checking).lock_owned()).await;
            let turn = turn.map_err(|_| slow())?;
            let snapshot = self.snapshot.load_full();
            let checked = tokio::task::spawn_blocking(move || {
                let _until_it_is_done = turn;
                plan::check(&snapshot.config)
            });
            tokio::time::timeout(CHECKING, checked).await.ok().and_then(Result::ok).ok_or_else(slow)
        })
    }
}

fn record_status(listed: &Listed) -> RecordStatus {
    let subject = listed.subject.clone();
    RecordStatus {
        id: listed.id.to_string(),
        namespace: subject.namespace,
        method: subject.method,
        authority: subject.authority,
        path: subject.path,
        key: subject.key,
        state: listed.record.state.word().to_owned(),
        status: listed.status,
        age: listed.age.as_secs_f64(),
        expires_in: listed.expires_in.map(|left| left.as_secs_f64()),
        holder: listed.holder_name.clone().unwrap_or_else(|| format!("{:016x}", listed.record.token.holder)),
        fingerprint: listed.record.fingerprint.to_string(),
    }
}

/// Returns the numbers by which strong reads are verified, where a route's are.
fn quorum(snapshot: &Snapshot) -> Option<QuorumStatus> {
    let numbers = snapshot.strong.as_ref()?.rules.settings.current.quorum;
    let is_by_quorum =
        |route: &&config::Route| route.consistency.as_ref().is_some_and(config::Consistency::is_by_quorum);
    let routes = snapshot.config.settings.routes.iter().filter(is_by_quorum);
    Some(QuorumStatus {
        replicas: numbers.replicas,
        write: numbers.write,
        read: numbers.read,
        tolerance: numbers.tolerance(),
        routes: routes.map(|route| route.name.to_string()).collect(),
    })
}

fn cache_status(cache: &Cache, metrics: &Metrics) -> CacheStatus {
    let (entries, bytes) = cache.extent();
    CacheStatus {
        memory: cache.memory(),
        bytes,
        entries,
        evictions: metrics.cache_evictions.get(),
        requests: totals(&metrics.cache_requests, "result"),
        purges: totals(&metrics.cache_purges, "kind"),
    }
}

fn pool_status(pool: &Pool, discovery: Option<DiscoveryStatus>) -> PoolStatus {
    let (now, shares) = (Instant::now(), pool.ring.shares());
    let nodes = pool.nodes.iter().zip(shares).map(|(node, share)| node_status(pool, node, share, steady_millis(now)));
    PoolStatus {
        name: pool.name.to_string(),
        points: pool.ring.points(),
        usable: pool.is_usable(now),
        panic: pool.is_panic(steady_millis(now)),
        queued: pool.queued(),
        retry_tokens: pool.group.budget.tokens(steady_millis(now)),
        nodes: nodes.collect(),
        discovery,
    }
}

fn node_status(pool: &Pool, node: &Node, share: f64, now: u64) -> NodeStatus {
    let runtime = &node.runtime;
    let seconds = |milliseconds: u64| milliseconds as f64 / 1000.0;
    let (failures, out) = runtime.ejection(now);
    let health_check = pool.health_check.is_some().then(|| {
        let checks = runtime.checks();
        HealthCheckStatus {
            passed_in_a_row: checks.passed,
            failed_in_a_row: checks.failed,
            error: checks.failure,
            seconds_ago: checks.at.map(|at| seconds(now.saturating_sub(at))),
        }
    });
    let drain = (runtime.state() == NodeState::Drain).then(|| {
        let wall = clock::unix_seconds();
        let left = runtime.sessions.left(wall);
        DrainStatus {
            done: runtime.in_flight() == 0 && left == 0,
            in_flight: runtime.in_flight(),
            last_session_ends_in_seconds: left,
            session_seen_seconds_ago: runtime.sessions.last_seen(wall),
        }
    });
    NodeStatus {
        id: node.id.to_string(),
        address: node.unresolved.is_none().then(|| node.address().to_string()),
        unresolved: node.unresolved.clone(),
        weight: node.weight,
        state: runtime.state(),
        file_state: node.state,
        share,
        in_flight: runtime.in_flight(),
        idle_connections: runtime.idle(),
        healthy: runtime.is_healthy(now),
        failures_in_a_row: failures,
        ejected_for_seconds: out.map(seconds),
        slow_start: runtime.ramp_progress(now, pool.slow_start),
        health_check,
        drain,
    }
}
