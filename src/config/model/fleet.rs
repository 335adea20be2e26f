//! The block `fleet`: the proxies that belong together, and the engines that they share.

use super::{FleetEtcd, PoolTls};
use crate::config::read::{Spanned, settings};
use crate::config::values::NodeAddress;
use std::time::Duration;

settings! {
    /// Proxies that belong together.
    Fleet {
        /// The name of the fleet, equal on all its proxies; a part of every key in shared engines. A change needs a
        /// restart.
        id: Spanned<String> = "default";
        /// A file with the secrets that sign session tokens, one a line, the newest first; the others still verify. All
        /// proxies of the fleet need the same.
        secret_file: Option<Spanned<String>> = absent;
        /// The time for which a silent proxy may be believed alive; heartbeats go out every third of it. A change needs
        /// a restart.
        lease: Duration = "10s" within "300ms" to "1h";
        /// The nodes of the bus, which carries purges and invalidations to every proxy.
        redis: Option<FleetRedis> = absent;
        /// The etcd cluster by which the fleet has one leader, shared health, and states of nodes for all proxies.
        etcd: Option<FleetEtcd> = absent;
    }
}

settings! {
    /// The Redis or Valkey nodes of a fleet. They are independent of each other: no replicas, no cluster.
    FleetRedis {
        /// The nodes, each with an identity and an address.
        nodes: Vec<FleetNode> = required;
        /// N: the number of nodes that hold the stream; by default all, at most three. With more nodes than that,
        /// Ringway's ring chooses. A change needs a restart.
        replicas: Option<Spanned<u32>> = absent;
        /// W: the number of nodes that must have an event before it counts as published; by default the majority of N.
        /// A change needs a restart.
        write: Option<Spanned<u32>> = absent;
        /// R: the number of nodes that must have been read without a gap; by default N + 1 - W. A change needs a
        /// restart.
        read: Option<Spanned<u32>> = absent;
        /// The user of the servers' access control lists; without the key the default one.
        username: Option<Spanned<String>> = absent;
        /// A file with the password.
        password_file: Option<Spanned<String>> = absent;
        /// TLS to the nodes. Off without the block; `tls: {}` trusts the system's authorities.
        tls: Option<PoolTls> = absent;
    }
}

settings! {
    /// A Redis or Valkey node of a fleet.
    FleetNode {
        /// The identity of the node; its address may change. Another set of identities needs a restart.
        id: Spanned<String> = required;
        /// IP address or host name, and port. A name is resolved at each connection.
        address: Spanned<NodeAddress> = required;
    }
}

/// The numbers of nodes that hold an event, that must have it, and that must be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quorum {
    /// N.
    pub(crate) replicas: usize,
    /// W.
    pub(crate) write: usize,
    /// R.
    pub(crate) read: usize,
}

impl FleetRedis {
    /// Returns N, W and R, defaults filled in.
    pub(crate) fn quorum(&self) -> Quorum {
        let given = |value: &Option<Spanned<u32>>| value.as_ref().map(|value| value.value as usize);
        let replicas = given(&self.replicas).unwrap_or(self.nodes.len().clamp(1, 3));
        let write = given(&self.write).unwrap_or(replicas / 2 + 1);
        let read = given(&self.read).unwrap_or((replicas + 1).saturating_sub(write).max(1));
        Quorum { replicas, write, read }
    }
}
