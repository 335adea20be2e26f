//! A pool as one configuration has it: its ring, its nodes, its rules, and the choice of a node.

use super::Wanted;
use super::clock::{Millis, millis};
use super::connect::Target;
use super::discovery::Found;
use super::group::Group;
use super::node::{InFlight, NodeRuntime};
use super::pick::{self, Nobody, Nodes, Pick, Rules, Skip};
use super::registry::Registry;
use super::retry::RetryRules;
use crate::config::MAX_POINTS;
use crate::config::values::NodeAddress;
use crate::config::{self, HealthCheck, NodeState, OutlierEjection, PoolConnections, Protocol, Secrets, Timeouts};
use crate::ring::{Member, Ring, Seed};
use rustls::pki_types::ServerName;
use smallvec::SmallVec;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A pool of nodes behind one ring.
pub(crate) struct Pool {
    pub(crate) name: Arc<str>,
    pub(crate) ring: Arc<Ring>,
    /// What the ring was made of, beside the nodes.
    ring_settings: (String, u32),
    pub(crate) nodes: Vec<Node>,
    pub(crate) timeouts: Timeouts,
    pub(crate) connections: PoolConnections,
    pub(crate) health_check: Option<Arc<HealthCheck>>,
    /// A name server tells of nodes, and may not tell of some of them for a while.
    pub(super) is_discovered: bool,
    pub(crate) ejection: OutlierEjection,
    pub(crate) retries: RetryRules,
    pub(crate) slow_start: Duration,
    pub(crate) protocol: Protocol,
    rules: Rules,
    totals: Totals,
    pub(crate) group: Arc<Group>,
}

/// A pool of so many nodes is counted for every request that needs it.
const FEW: usize = 32;

/// What a large pool's nodes have to do, as it was at a moment.
#[derive(Default)]
struct Totals {
    at: AtomicU64,
    load: AtomicU64,
    weight: AtomicU64,
}

/// A node as one configuration has it.
pub(crate) struct Node {
    pub(crate) id: Arc<str>,
    pub(crate) target: Target,
    pub(crate) weight: u32,
    /// As the file has it; what is in force is the runtime's to say.
    pub(crate) state: NodeState,
    pub(crate) runtime: Arc<NodeRuntime>,
    /// The node's address as the file has it; empty for one that was found.
    named: String,
    /// Why the node's name cannot be resolved; it takes no requests then.
    pub(crate) unresolved: Option<String>,
    /// The node's own number among the hashes, for its slow start.
    salt: u64,
}

/// A node that takes a request, and its place there.
pub(crate) struct Picked {
    /// Its place in the pool's list.
    pub(crate) node: usize,
    pub(crate) in_flight: InFlight,
    /// So few nodes are well that all of them are tried.
    pub(crate) in_panic: bool,
}

/// The nodes that a request has tried, by their places in the pool's list.
pub(crate) type Tried = SmallVec<[usize; 4]>;

/// Why a pool cannot be built.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadPool {
    #[error(
        "with the {found} nodes that `discovery` finds, the ring of the pool `{pool}` would have more than {MAX_POINTS} points; lower `virtual_nodes`"
    )]
    TooManyPoints { pool: String, found: usize },
}

impl Node {
    pub(crate) fn address(&self) -> SocketAddr {
        self.target.address
    }
}

/// What an earlier build of a pool is good for.
#[derive(Clone, Copy)]
pub(crate) struct Earlier<'a> {
    pub(crate) pool: &'a Pool,
    /// The settings are the same: names are not resolved again.
    pub(crate) is_same: bool,
}

impl Pool {
    /// Builds the ring and finds the nodes' state; takes the ring of an earlier build where it is the
    /// same. May resolve names, so it belongs off the workers.
    pub(crate) fn build(
        name: &str,
        settings: &config::Pool,
        found: &[Found],
        (registry, secrets): (&Registry, &Secrets),
        earlier: Option<Earlier<'_>>,
    ) -> Result<Pool, BadPool> {
        let tls = secrets.pool_tls.get(name);
        let group = registry.group(&name.into());
        let mut nodes = Vec::with_capacity(settings.listed().len() + found.len());
        for node in settings.listed() {
            let id: Arc<str> = node.id.as_str().into();
            let before = earlier.and_then(|earlier| earlier.pool.nodes.iter().find(|known| *known.id == *id));
            let is_same = earlier.is_some_and(|earlier| earlier.is_same);
            let place = match before.filter(|known| is_same && known.unresolved.is_none()) {
                Some(known) => Place::of(known),
                None => Place::resolve(&node.address, before),
            };
            place.tell((name, &id), before);
            nodes.push((id, place, node.weight, node.state, Some(node.address.host.as_str())));
        }
        // A node that the file names is the file's.
        let listed = nodes.len();
        let found_at = settings.discovery.as_ref().map(|discovery| discovery.dns.host());
        for node in found {
            let id: Arc<str> = node.address.to_string().into();
            if !nodes[..listed].iter().any(|(other, ..): &(Arc<str>, _, _, _, _)| *other == id) {
                nodes.push((id, Place::at(node.address), node.weight, NodeState::Up, found_at));
            }
        }
        let weight: u64 = nodes.iter().map(|(_, _, weight, ..)| u64::from(*weight)).sum();
        if weight * u64::from(settings.ring.virtual_nodes) > MAX_POINTS {
            return Err(BadPool::TooManyPoints { pool: name.to_owned(), found: found.len() });
        }
        let members: Vec<Member<'_>> = nodes.iter().map(|(id, _, weight, ..)| Member { id, weight: *weight }).collect();
        let ring_settings = (seed_of(name, settings, secrets).to_owned(), settings.ring.virtual_nodes);
        let ring = match earlier.map(|earlier| earlier.pool) {
            Some(earlier) if earlier.ring_settings == ring_settings && earlier.has(&members) => {
                Arc::clone(&earlier.ring)
            }
            _ => Arc::new(Ring::build(Seed::new(&ring_settings.0), ring_settings.1, &members)),
        };
        let named = settings.tls.as_ref().and_then(|tls| tls.server_name.as_ref()).map(|name| name.value.0.clone());
        let target = |address: SocketAddr, others: Arc<[SocketAddr]>, host: Option<&str>| Target {
            address,
            others,
            host: host.map(|host| host.trim_end_matches('.').into()),
            protocol: settings.protocol,
            tls: tls.map(|tls| (Arc::clone(tls), named.clone().unwrap_or_else(|| name_of(host, address)))),
        };
        let nodes = nodes.into_iter().map(|(id, place, weight, state, host)| {
            let Place { address, others, named, unresolved } = place;
            let target = target(address, others, host);
            let runtime = registry.node(&group, &id, &target);
            Node { salt: ring.hash_key(id.as_bytes()), runtime, id, target, weight, state, named, unresolved }
        });
        Ok(Pool {
            nodes: nodes.collect(),
            name: Arc::clone(&group.name),
            ring,
            ring_settings,
            timeouts: settings.timeouts.clone(),
            connections: settings.connections.clone(),
            health_check: settings.health_check.clone().map(Arc::new),
            is_discovered: settings.discovery.is_some(),
            ejection: settings.outlier_ejection.clone(),
            retries: RetryRules::of(settings.retries.as_ref()),
            slow_start: settings.slow_start,
            protocol: settings.protocol,
            rules: Rules {
                max_per_node: settings.connections.max_per_node,
                bounded_load: settings.ring.bounded_load.map(config::values::Factor::thousandths),
                panic_threshold: settings.panic_threshold.ratio(),
            },
            totals: Totals::default(),
            group,
        })
    }

    fn has(&self, members: &[Member<'_>]) -> bool {
        let same = |(node, member): (&Node, &Member<'_>)| *node.id == *member.id && node.weight == member.weight;
        self.nodes.len() == members.len() && self.nodes.iter().zip(members).all(same)
    }

    /// Chooses the node that takes a request, and takes a place there. Those that were tried are passed
    /// over.
    pub(crate) fn pick(&self, wanted: &Wanted, tried: &[usize], now: Instant) -> Result<Picked, Nobody> {
        let moment = Moment { pool: self, hash: wanted.hash, now: millis(now) };
        let mut lost: Tried = SmallVec::new();
        let mut spilled = None;
        if let Some(node) = wanted.pinned.filter(|node| !tried.contains(node)) {
            match pick::pick_pinned(node, &moment, &self.rules) {
                Ok(pick) => match self.take(pick, moment.now) {
                    Some(picked) => return Ok(picked),
                    None => spilled = Some(Skip::Full),
                },
                Err(skip) => spilled = Some(skip),
            }
            if !wanted.may_leave {
                return Err(if spilled == Some(Skip::Full) { Nobody::Full } else { Nobody::Unavailable });
            }
        } else if wanted.pinned.is_some() && !wanted.may_leave {
            return Err(Nobody::Unavailable);
        }
        loop {
            let passed = |node: &usize| tried.contains(node) || lost.contains(node) || wanted.pinned == Some(*node);
            let order = self.ring.walk(wanted.hash).filter(|node| !passed(node));
            let pick = match pick::pick(order, &moment, &self.rules) {
                Ok(pick) => pick,
                Err(Nobody::Unavailable) if !lost.is_empty() || spilled == Some(Skip::Full) => {
                    return Err(Nobody::Full);
                }
                Err(nobody) => return Err(nobody),
            };
            if let Some(picked) = self.take(pick, moment.now) {
                // What is tried again has been counted as that.
                if tried.is_empty()
                    && let Some(skip) = spilled.or(pick.spilled)
                {
                    self.group.spilled(skip);
                }
                return Ok(picked);
            }
            // Somebody was faster.
            lost.push(pick.node);
            spilled = spilled.or(pick.spilled).or(Some(Skip::Full));
        }
    }

    fn take(&self, pick: Pick, now: Millis) -> Option<Picked> {
        let in_flight = self.nodes[pick.node].runtime.begin(self.rules.max_per_node, pick.is_trial, now)?;
        Some(Picked { node: pick.node, in_flight, in_panic: pick.in_panic })
    }

    /// Returns the node that a key would meet now.
    pub(crate) fn taker(&self, hash: u64, now: Instant) -> Option<&Node> {
        let moment = Moment { pool: self, hash, now: millis(now) };
        let pick = pick::pick(self.ring.walk(hash), &moment, &self.rules).ok()?;
        Some(&self.nodes[pick.node])
    }

    /// Returns how many requests wait for room.
    pub(crate) fn queued(&self) -> u32 {
        self.group.queue.waiting() + self.nodes.iter().map(|node| node.runtime.queue.waiting()).sum::<u32>()
    }

    /// Returns whether any node takes requests at all.
    pub(crate) fn is_usable(&self, now: Instant) -> bool {
        let now = millis(now);
        let takes =
            |node: &&Node| node.runtime.state() == NodeState::Up && node.weight > 0 && node.unresolved.is_none();
        let mut up = self.nodes.iter().filter(takes).peekable();
        let any_up = up.peek().is_some();
        up.any(|node| node.runtime.fitness(now).is_ok()) || (any_up && self.is_panic(now))
    }

    /// Returns whether so few nodes are well that health is ignored.
    pub(crate) fn is_panic(&self, now: Millis) -> bool {
        pick::is_panic(&Moment { pool: self, hash: 0, now }, self.rules.panic_threshold)
    }
}

/// A pool's nodes as a key finds them.
struct Moment<'a> {
    pool: &'a Pool,
    hash: u64,
    now: Millis,
}

impl Nodes for Moment<'_> {
    fn count(&self) -> usize {
        self.pool.nodes.len()
    }

    fn state(&self, node: usize) -> NodeState {
        let node = &self.pool.nodes[node];
        if node.unresolved.is_some() { NodeState::Down } else { node.runtime.state() }
    }

    fn fitness(&self, node: usize) -> Result<bool, Skip> {
        self.pool.nodes[node].runtime.fitness(self.now)
    }

    fn load(&self, node: usize) -> u32 {
        self.pool.nodes[node].runtime.in_flight()
    }

    fn weight(&self, node: usize) -> u32 {
        self.pool.nodes[node].weight
    }

    /// In a large pool what was true a millisecond ago is good enough.
    fn totals(&self, in_panic: bool) -> (u64, u64) {
        if self.pool.nodes.len() <= FEW {
            return self.count_totals(in_panic);
        }
        let Totals { at, load, weight } = &self.pool.totals;
        // Several may find it old at a time; each of them is right.
        if at.swap(self.now, Ordering::Relaxed) != self.now {
            let (now_load, now_weight) = self.count_totals(in_panic);
            load.store(now_load, Ordering::Relaxed);
            weight.store(now_weight, Ordering::Relaxed);
        }
        (load.load(Ordering::Relaxed), weight.load(Ordering::Relaxed))
    }

    fn has_reached_key(&self, node: usize) -> bool {
        let length = self.pool.slow_start;
        let node = &self.pool.nodes[node];
        length.is_zero() || node.runtime.ramp.has_reached(self.hash, node.salt, self.now, length)
    }
}

/// Returns the ring that a pool's settings describe; members are in the order of the nodes.
pub(crate) fn ring_of(name: &str, settings: &config::Pool, secrets: &Secrets) -> Ring {
    let members: Vec<Member<'_>> =
        settings.listed().iter().map(|node| Member { id: node.id.as_str(), weight: node.weight }).collect();
    Ring::build(Seed::new(seed_of(name, settings, secrets)), settings.ring.virtual_nodes, &members)
}

/// Returns the seed of a pool's ring.
pub(crate) fn seed_of<'a>(name: &str, settings: &'a config::Pool, secrets: &'a Secrets) -> &'a str {
    secrets.ring_seeds.get(name).unwrap_or(&settings.ring.seed.0)
}

/// The name that a node must show: its host's, or its address where that is all there is.
fn name_of(host: Option<&str>, address: SocketAddr) -> ServerName<'static> {
    let named = host.and_then(|host| ServerName::try_from(host.to_owned()).ok());
    named.unwrap_or_else(|| ServerName::IpAddress(address.ip().into()))
}

/// Where a node is found.
struct Place {
    address: SocketAddr,
    others: Arc<[SocketAddr]>,
    named: String,
    unresolved: Option<String>,
}

impl Place {
    fn at(address: SocketAddr) -> Place {
        Place { address, others: Arc::default(), named: String::new(), unresolved: None }
    }

    fn of(node: &Node) -> Place {
        let Target { address, others, .. } = &node.target;
        Place { address: *address, others: Arc::clone(others), named: node.named.clone(), unresolved: None }
    }

    /// Resolves a node's address. The one that it had before stays the first while its name has it: a name server that
    /// turns its answers round makes no new node.
    fn resolve(address: &NodeAddress, before: Option<&Node>) -> Place {
        let found = (address.host.as_str(), address.port).to_socket_addrs();
        let mut all: Vec<SocketAddr> = match found {
            Ok(found) => found.collect(),
            // A name server that is out of order takes no node away that it has told of.
            Err(error) => match before.filter(|node| node.unresolved.is_none() && node.named == address.to_string()) {
                Some(known) => return Place::of(known),
                None => return Place { named: address.to_string(), ..Place::unresolved(error.to_string()) },
            },
        };
        if let Some(known) = before.and_then(|node| all.iter().position(|address| *address == node.address())) {
            all[..=known].rotate_right(1);
        }
        let Some((&first, others)) = all.split_first() else { return Place::unresolved("no address".to_owned()) };
        Place { address: first, others: others.into(), named: address.to_string(), unresolved: None }
    }

    fn unresolved(cause: String) -> Place {
        let address = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0);
        Place { address, others: Arc::default(), named: String::new(), unresolved: Some(cause) }
    }

    /// Says in the log when a name stops or begins to resolve.
    fn tell(&self, (pool, node): (&str, &str), before: Option<&Node>) {
        let was_unresolved = before.map(|known| known.unresolved.is_some());
        match &self.unresolved {
            Some(cause) if was_unresolved != Some(true) => {
                tracing::warn!(
                    pool,
                    node,
                    cause,
                    "the node's name cannot be resolved: it takes no requests until it can"
                );
            }
            None if was_unresolved == Some(true) => {
                tracing::info!(pool, node, address = %self.address, "the node's name can be resolved");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::telemetry::metrics::Metrics;
    use std::path::Path;

    fn built(address: &str) -> Pool {
        let text = format!(
            "listeners: [{{ name: l, address: 127.0.0.1:1 }}]\npools: {{ p: {{ nodes: [{{ id: n, address: \"{address}\" }}] }} }}\nroutes: []"
        );
        let (config, _) = Config::parse(Path::new("t.yaml"), &text, &|_| None).unwrap();
        let registry = Registry::new(Arc::new(Metrics::new()));
        let settings = config.settings.pools.get("p").unwrap();
        Pool::build("p", settings, &[], (&registry, &config.secrets), None).unwrap()
    }

    /// A reload while names cannot be resolved takes no node away whose name could be before.
    #[test]
    fn a_name_that_cannot_be_resolved_any_more_keeps_its_address() {
        let gone = NodeAddress { host: "nowhere.invalid".into(), port: 80 };
        let mut before = built("127.0.0.1:80").nodes.remove(0);
        assert!(Place::resolve(&gone, Some(&before)).unresolved.is_some(), "another name has another address");
        before.named = gone.to_string();
        let place = Place::resolve(&gone, Some(&before));
        assert_eq!((place.address, place.unresolved), (before.address(), None));
        let unresolved = built("nowhere.invalid:80").nodes.remove(0);
        assert!(unresolved.unresolved.is_some());
        assert!(Place::resolve(&gone, Some(&unresolved)).unresolved.is_some());
    }

    /// A name server that turns its answers round makes no new node.
    #[test]
    fn the_address_that_was_first_stays_first() {
        let mut before = built("127.0.0.1:80").nodes.remove(0);
        let localhost = NodeAddress { host: "127.0.0.1".into(), port: 80 };
        assert_eq!(Place::resolve(&localhost, Some(&before)).address, before.address());
        before.target.address = "192.0.2.1:80".parse().unwrap();
        assert_eq!(Place::resolve(&localhost, Some(&before)).address, "127.0.0.1:80".parse().unwrap(), "it is gone");
    }
}
