//! Builds the pools of a configuration: names are resolved, nodes found again, and rings built or kept.

use super::connect::Endpoint;
use super::discovery::Found;
use super::pick::PickRules;
use super::pool::{Node, Pool, Totals};
use super::registry::Registry;
use super::retry::RetryRules;
use crate::config::MAX_POINTS;
use crate::config::values::NodeAddress;
use crate::config::{self, HealthScope, NodeState, Secrets};
use crate::ring::{Member, Ring, Seed};
use rustls::pki_types::ServerName;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;

/// Why a pool cannot be built.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadPool {
    #[error(
        "with the {found} nodes that `discovery` finds, the ring of the pool `{pool}` would have more than {MAX_POINTS} points; lower `virtual_nodes`"
    )]
    TooManyPoints { pool: String, found: usize },
}

/// An earlier build of a pool, whose parts may be kept.
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
                Some(known) => Location::of(known),
                None => Location::resolve(&node.address, before),
            };
            place.log_resolution((name, &id), before);
            nodes.push((id, place, node.weight, node.state, Some(node.address.host.as_str())));
        }
        // A node that the file names is the file's.
        let listed = nodes.len();
        let found_at = settings.discovery.as_ref().map(|discovery| discovery.dns.host());
        for node in found {
            let id: Arc<str> = node.address.to_string().into();
            if !nodes[..listed].iter().any(|(other, ..): &(Arc<str>, _, _, _, _)| *other == id) {
                nodes.push((id, Location::at(node.address), node.weight, NodeState::Up, found_at));
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
        let endpoint = |address: SocketAddr, others: Arc<[SocketAddr]>, host: Option<&str>| Endpoint {
            address,
            others,
            host: host.map(|host| host.trim_end_matches('.').into()),
            protocol: settings.protocol,
            tls: tls.map(|tls| (Arc::clone(tls), named.clone().unwrap_or_else(|| name_of(host, address)))),
        };
        let nodes = nodes.into_iter().map(|(id, place, weight, state, host)| {
            let Location { address, others, named, unresolved } = place;
            let endpoint = endpoint(address, others, host);
            let runtime = registry.node(&group, &id, &endpoint);
            Node { salt: ring.hash_key(id.as_bytes()), runtime, id, endpoint, weight, state, named, unresolved }
        });
        Ok(Pool {
            nodes: nodes.collect(),
            name: Arc::clone(&group.name),
            ring,
            ring_settings,
            timeouts: settings.timeouts.clone(),
            connections: settings.connections.clone(),
            health_check: settings.health_check.clone().map(Arc::new),
            is_health_shared: settings.health.value == HealthScope::Shared,
            is_discovered: settings.discovery.is_some(),
            ejection: settings.outlier_ejection.clone(),
            retries: RetryRules::of(settings.retries.as_ref()),
            slow_start: settings.slow_start,
            protocol: settings.protocol,
            rules: PickRules {
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

/// Returns the name that a node's certificate must cover: its host, or its address without one.
fn name_of(host: Option<&str>, address: SocketAddr) -> ServerName<'static> {
    let named = host.and_then(|host| ServerName::try_from(host.to_owned()).ok());
    named.unwrap_or_else(|| ServerName::IpAddress(address.ip().into()))
}

/// Where a node is found.
struct Location {
    address: SocketAddr,
    others: Arc<[SocketAddr]>,
    named: String,
    unresolved: Option<String>,
}

impl Location {
    fn at(address: SocketAddr) -> Location {
        Location { address, others: Arc::default(), named: String::new(), unresolved: None }
    }

    fn of(node: &Node) -> Location {
        let Endpoint { address, others, .. } = &node.endpoint;
        Location { address: *address, others: Arc::clone(others), named: node.named.clone(), unresolved: None }
    }

    /// Resolves a node's address. The one that it had before stays the first while its name has it: a name server that
    /// turns its answers round makes no new node.
    fn resolve(address: &NodeAddress, before: Option<&Node>) -> Location {
        let found = (address.host.as_str(), address.port).to_socket_addrs();
        let mut all: Vec<SocketAddr> = match found {
            Ok(found) => found.collect(),
            // A name server that fails removes no node that it has returned before.
            Err(error) => match before.filter(|node| node.unresolved.is_none() && node.named == address.to_string()) {
                Some(known) => return Location::of(known),
                None => return Location { named: address.to_string(), ..Location::unresolved(error.to_string()) },
            },
        };
        if let Some(known) = before.and_then(|node| all.iter().position(|address| *address == node.address())) {
            all[..=known].rotate_right(1);
        }
        let Some((&first, others)) = all.split_first() else { return Location::unresolved("no address".to_owned()) };
        Location { address: first, others: others.into(), named: address.to_string(), unresolved: None }
    }

    fn unresolved(cause: String) -> Location {
        let address = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0);
        Location { address, others: Arc::default(), named: String::new(), unresolved: Some(cause) }
    }

    /// Logs when a name stops or begins to resolve.
    fn log_resolution(&self, (pool, node): (&str, &str), before: Option<&Node>) {
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
        let registry = Registry::new(Arc::new(Metrics::new()), crate::control::Events::new());
        let settings = config.settings.pools.get("p").unwrap();
        Pool::build("p", settings, &[], (&registry, &config.secrets), None).unwrap()
    }

    /// A reload while names cannot be resolved takes no node away whose name could be before.
    #[test]
    fn a_name_that_cannot_be_resolved_any_more_keeps_its_address() {
        let gone = NodeAddress { host: "nowhere.invalid".into(), port: 80 };
        let mut before = built("127.0.0.1:80").nodes.remove(0);
        assert!(Location::resolve(&gone, Some(&before)).unresolved.is_some(), "another name has another address");
        before.named = gone.to_string();
        let place = Location::resolve(&gone, Some(&before));
        assert_eq!((place.address, place.unresolved), (before.address(), None));
        let unresolved = built("nowhere.invalid:80").nodes.remove(0);
        assert!(unresolved.unresolved.is_some());
        assert!(Location::resolve(&gone, Some(&unresolved)).unresolved.is_some());
    }

    /// A name server that turns its answers round makes no new node.
    #[test]
    fn the_address_that_was_first_stays_first() {
        let mut before = built("127.0.0.1:80").nodes.remove(0);
        let localhost = NodeAddress { host: "127.0.0.1".into(), port: 80 };
        assert_eq!(Location::resolve(&localhost, Some(&before)).address, before.address());
        before.endpoint.address = "192.0.2.1:80".parse().unwrap();
        assert_eq!(Location::resolve(&localhost, Some(&before)).address, "127.0.0.1:80".parse().unwrap(), "it is gone");
    }
}
