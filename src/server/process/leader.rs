//! The process as seen from the leader's room: its pools, their health, and the states of their nodes.

use crate::clock;
use crate::config::Config;
use crate::control::{self, Events};
use crate::fleet::{Endpoint, EtcdLogin, EtcdSettings, Host, NodeVerdict, SharedPool, StateOrder};
use crate::proxy::Snapshot;
use crate::upstream::{Probes, Registry};
use arc_swap::ArcSwap;
use std::net::SocketAddr;
use std::sync::Arc;

/// Returns the place of etcd; `None` where the configuration has none.
pub(crate) fn etcd_settings(config: &Config) -> Option<EtcdSettings> {
    let fleet = config.settings.fleet.as_ref()?;
    let etcd = fleet.etcd.as_ref()?;
    let endpoints = etcd.endpoints.iter().map(|endpoint| Endpoint {
        url: endpoint.value.to_string(),
        host: endpoint.value.address.host.clone(),
        port: endpoint.value.address.port,
        is_tls: endpoint.value.is_tls,
    });
    let password = config.secrets.etcd_password.clone();
    let user = etcd.username.as_ref().map(|name| name.value.clone()).zip(password);
    let server_name = etcd.tls.as_ref().and_then(|tls| Some(tls.server_name.as_ref()?.value.0.clone()));
    Some(EtcdSettings {
        fleet: fleet.id.value.clone(),
        lease: fleet.lease,
        endpoints: endpoints.collect(),
        login: EtcdLogin { user, tls: config.secrets.etcd_tls.clone(), server_name },
    })
}

/// The process around the leader's room.
pub(super) struct LeaderHost {
    pub(super) snapshot: Arc<ArcSwap<Snapshot>>,
    pub(super) probes: Arc<Probes>,
    pub(super) registry: Arc<Registry>,
    pub(super) events: Arc<Events>,
    pub(super) admin: SocketAddr,
}

impl Host for LeaderHost {
    fn shared_pools(&self) -> Vec<SharedPool> {
        let snapshot = self.snapshot.load();
        let shared = snapshot.pools.iter().filter(|pool| pool.is_health_shared);
        let pool = |pool: &Arc<crate::upstream::Pool>| {
            let interval = pool.health_check.as_ref()?.interval;
            Some(SharedPool { name: pool.name.to_string(), interval })
        };
        shared.filter_map(pool).collect()
    }

    fn verdicts(&self, pool: &str) -> Vec<NodeVerdict> {
        self.probes.verdicts(pool)
    }

    fn follow(&self, pool: &str, verdicts: Option<&[NodeVerdict]>) {
        self.probes.follow_verdicts(pool, verdicts);
    }

    fn apply(&self, orders: &[StateOrder]) {
        for order in self.registry.apply_orders(orders) {
            let StateOrder { pool, node, state, by, .. } = order;
            tracing::info!(pool, node, state = state.word(), by, "the state of a node was set for the fleet");
            self.events.record(control::Event::NodeState { pool, node, state, by: Some(by) });
        }
    }

    fn is_drained(&self, pool: &str, node: &str) -> bool {
        let snapshot = self.snapshot.load();
        let pool = snapshot.pools.iter().find(|known| &*known.name == pool);
        let node = pool.and_then(|pool| pool.nodes.iter().find(|known| &*known.id == node));
        // A node that this proxy does not have has nothing left here.
        node.is_none_or(|node| node.runtime.in_flight() == 0 && node.runtime.sessions.left(clock::unix_seconds()) == 0)
    }

    fn changed(&self, error: Option<String>) {
        let (store, working) = ("etcd of the fleet".to_owned(), error.is_none());
        self.events.record(control::Event::Store { store, working, error });
    }

    fn address(&self) -> String {
        self.admin.to_string()
    }
}
