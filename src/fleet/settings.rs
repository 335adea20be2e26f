//! The place of the bus: nodes, login, and the numbers that a running process cannot change.

use crate::config::Quorum;
use crate::io::redis::Login;
use crate::ring::{Member, Ring, Seed};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// The place of the bus, and the secrets to reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BusSettings {
    pub(crate) fleet: String,
    pub(crate) lease: Duration,
    pub(crate) quorum: Quorum,
    /// The identity and the address of each node.
    pub(crate) nodes: Vec<(String, String)>,
    pub(crate) login: Login,
}

impl BusSettings {
    /// Returns whether a running process cannot follow a change to other settings: all but addresses and the login.
    pub(crate) fn is_another(&self, other: &BusSettings) -> bool {
        let ids = |settings: &BusSettings| settings.nodes.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>();
        (&self.fleet, self.lease, self.quorum) != (&other.fleet, other.lease, other.quorum) || ids(self) != ids(other)
    }

    /// Returns the block of the configuration that such a change is in.
    pub(crate) fn changed_block(&self, other: &BusSettings) -> Option<&'static str> {
        let is_another_fleet = (&self.fleet, self.lease) != (&other.fleet, other.lease);
        self.is_another(other).then_some(if is_another_fleet { "fleet" } else { "fleet.redis" })
    }

    /// Returns the nodes that hold the stream.
    pub(super) fn chosen(&self) -> Vec<(String, String)> {
        if self.nodes.len() <= self.quorum.replicas {
            return self.nodes.clone();
        }
        let members: Vec<Member<'_>> = self.nodes.iter().map(|(id, _)| Member { id, weight: 1 }).collect();
        let ring = Ring::build(Seed::new("ringway fleet"), 256, &members);
        ring.walk(ring.hash_key(b"bus")).take(self.quorum.replicas).map(|at| self.nodes[at].clone()).collect()
    }
}

/// The control of the thread's settings.
#[derive(Clone)]
pub(crate) struct BusControl(pub(super) Arc<watch::Sender<BusSettings>>);

impl BusControl {
    /// Lets the bus go on at other addresses, or with another login.
    pub(crate) fn reconfigure(&self, settings: &BusSettings) {
        self.0.send_if_modified(|now| {
            let differs = now != settings;
            settings.clone_into(now);
            differs
        });
    }

    /// Returns whether other settings need a restart.
    pub(crate) fn is_another(&self, settings: &BusSettings) -> bool {
        self.0.borrow().is_another(settings)
    }

    /// Returns the block of the configuration whose change it cannot follow.
    pub(crate) fn changed_block(&self, settings: &BusSettings) -> Option<&'static str> {
        self.0.borrow().changed_block(settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_nodes_than_replicas_share_by_the_ring() {
        let nodes = |order: &[u8]| order.iter().map(|id| (format!("r{id}"), format!("10.0.0.{id}:1"))).collect();
        let settings = |order: &[u8]| BusSettings {
            fleet: "f".to_owned(),
            lease: Duration::from_secs(10),
            quorum: Quorum { replicas: 3, write: 2, read: 2 },
            nodes: nodes(order),
            login: Login::default(),
        };
        let chosen = |order: &[u8]| -> Vec<String> { settings(order).chosen().into_iter().map(|(id, _)| id).collect() };
        assert_eq!(chosen(&[1, 2, 3, 4, 5]).len(), 3);
        assert_eq!(chosen(&[1, 2, 3, 4, 5]), chosen(&[5, 4, 3, 2, 1]), "in any order of the file");
        let mut moved = settings(&[1, 2, 3]);
        moved.nodes[0].1 = "10.9.9.9:1".to_owned();
        assert!(!moved.is_another(&settings(&[1, 2, 3])));
        assert_eq!(settings(&[1, 2, 4]).changed_block(&settings(&[1, 2, 3])), Some("fleet.redis"));
        let renamed = BusSettings { fleet: "g".to_owned(), ..settings(&[1, 2, 3]) };
        assert_eq!(renamed.changed_block(&settings(&[1, 2, 3])), Some("fleet"));
    }
}
