//! A pool as one configuration has it: its ring, its nodes, its limits.

use super::node::{NodeRuntime, Registry};
use crate::config::values::NodeAddress;
use crate::config::{self, NodeState, PoolConnections, Timeouts};
use crate::ring::{Member, Ring, Seed};
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;

/// A pool of nodes behind one ring.
pub(crate) struct Pool {
    pub(crate) name: Arc<str>,
    pub(crate) ring: Ring,
    pub(crate) nodes: Vec<Node>,
    pub(crate) timeouts: Timeouts,
    pub(crate) connections: PoolConnections,
}

/// A node as one configuration has it.
pub(crate) struct Node {
    pub(crate) id: Arc<str>,
    pub(crate) address: SocketAddr,
    pub(crate) weight: u32,
    /// As the file has it; what is in force is the runtime's to say.
    pub(crate) state: NodeState,
    pub(crate) runtime: Arc<NodeRuntime>,
}

/// A node's name that does not resolve.
#[derive(Debug, thiserror::Error)]
#[error("the address `{address}` of the node `{node}` in the pool `{pool}` cannot be resolved: {cause}")]
pub(crate) struct Unresolved {
    pool: String,
    node: String,
    address: String,
    cause: String,
}

impl Pool {
    /// Builds the ring and finds the nodes' state. Resolves names, so it belongs off the workers.
    pub(crate) fn build(name: &str, settings: &config::Pool, registry: &Registry) -> Result<Pool, Unresolved> {
        let name: Arc<str> = name.into();
        let mut nodes = Vec::with_capacity(settings.nodes.len());
        for node in &settings.nodes {
            let id: Arc<str> = node.id.as_str().into();
            let address = resolve(&node.address).map_err(|cause| Unresolved {
                pool: name.to_string(),
                node: id.to_string(),
                address: node.address.to_string(),
                cause,
            })?;
            let runtime = registry.node(&name, &id, address);
            nodes.push(Node { id, address, weight: node.weight, state: node.state, runtime });
        }
        Ok(Pool {
            ring: ring_of(settings),
            name,
            nodes,
            timeouts: settings.timeouts.clone(),
            connections: settings.connections.clone(),
        })
    }

    /// The nodes that may take a request with this hash, in the order in which they should.
    pub(crate) fn candidates(&self, hash: u64) -> impl Iterator<Item = &Node> {
        self.ring.walk(hash).map(|member| &self.nodes[member]).filter(|node| node.runtime.state() == NodeState::Up)
    }

    /// Whether any node takes requests at all.
    pub(crate) fn is_usable(&self) -> bool {
        self.nodes.iter().any(|node| node.runtime.state() == NodeState::Up && node.weight > 0)
    }
}

/// The ring that a pool's settings describe; members are in the order of the nodes.
pub(crate) fn ring_of(settings: &config::Pool) -> Ring {
    let members: Vec<Member<'_>> =
        settings.nodes.iter().map(|node| Member { id: node.id.as_str(), weight: node.weight }).collect();
    Ring::build(Seed::new(&settings.ring.seed), settings.ring.virtual_nodes, &members)
}

fn resolve(address: &NodeAddress) -> Result<SocketAddr, String> {
    let mut found = (address.host.as_str(), address.port).to_socket_addrs().map_err(|error| error.to_string())?;
    found.next().ok_or_else(|| "no address".to_owned())
}
