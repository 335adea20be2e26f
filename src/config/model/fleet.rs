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
        /// The nodes and numbers before a change of them, while proxies with the block before are still alive: strong
        /// writes are marked by both, and strong reads pass to the pool's nodes. A change needs a restart.
        former: Option<FormerRedis> = absent;
    }
}

settings! {
    /// The nodes and numbers of `fleet.redis` before a change.
    FormerRedis {
        /// As they were.
        nodes: Vec<FleetNode> = required;
        /// As it was.
        replicas: Option<Spanned<u32>> = absent;
        /// As it was.
        write: Option<Spanned<u32>> = absent;
        /// As it was.
        read: Option<Spanned<u32>> = absent;
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

impl Quorum {
    fn given(nodes: usize, numbers: [&Option<Spanned<u32>>; 3]) -> Quorum {
        let [replicas, write, read] = numbers.map(|value| value.as_ref().map(|value| value.value as usize));
        let replicas = replicas.unwrap_or(nodes.clamp(1, 3));
        let write = write.unwrap_or(replicas / 2 + 1);
        let read = read.unwrap_or((replicas + 1).saturating_sub(write).max(1));
        Quorum { replicas, write, read }
    }

    /// Returns what these numbers tolerate and lose on strong routes, in words.
    pub(crate) fn tolerance(self) -> String {
        let Quorum { replicas, write, read } = self;
        let without = |spare: usize, what: &str| match spare {
            0 => format!("{what} stop while any node is away"),
            1 => format!("{what} go on with one node away"),
            spare => format!("{what} go on with {spare} nodes away"),
        };
        let (hits, writes) = (without(replicas - read, "hits"), without(replicas - write, "writes"));
        let lost = match replicas - read {
            0 => "; so do hits until a node that was restarted counts again",
            _ => "",
        };
        format!("N={replicas} W={write} R={read}: {hits}{lost}, {writes}")
    }

    /// Returns whether each set of R nodes has one in common with each set of W.
    pub(crate) fn overlaps(self) -> bool {
        self.write + self.read > self.replicas
    }
}

impl FleetRedis {
    /// Returns N, W and R, defaults filled in.
    pub(crate) fn quorum(&self) -> Quorum {
        Quorum::given(self.nodes.len(), [&self.replicas, &self.write, &self.read])
    }
}

impl FormerRedis {
    /// Returns N, W and R, defaults filled in.
    pub(crate) fn quorum(&self) -> Quorum {
        Quorum::given(self.nodes.len(), [&self.replicas, &self.write, &self.read])
    }
}
