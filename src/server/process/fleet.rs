//! The fleet that the process belongs to: its bus, and the receiver of what arrives there.

use super::leader::{LeaderHost, etcd_settings};
use crate::cache::{Cache, Purge};
use crate::config::read::Field;
use crate::config::{Config, FormerRedis};
use crate::consistency::{Causality, Dot, Write};
use crate::control::{self, Events};
use crate::fleet::quorum::{QuorumRules, Stamper};
use crate::fleet::{self, Bus, Digests, Event, Heard, Leadership, Listener, ProcessId, PurgeBy};
use crate::proxy::Snapshot;
use crate::server::control::purge;
use crate::telemetry::metrics::Metrics;
use crate::upstream::{Probes, Registry};
use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;
#[cfg(feature = "redis")]
use {
    super::store::tls_settings,
    crate::config::{self, FleetNode},
    crate::fleet::quorum::{QuorumSettings, Reach, Spread},
    crate::fleet::{BusControl, BusSettings},
    crate::io::redis::Login,
};

/// The blocks of the configuration in which the proxies of a fleet may differ.
const OWN_BLOCKS: [&str; 7] =
    ["workers", "listeners", "admin", "metrics", "access_log", "process_log", "idempotency_store"];

/// The time between two publications of the numbers of answers.
const NUMBERS: Duration = Duration::from_millis(100);

/// The time that a process which stops has to say good-bye.
const FAREWELL: Duration = Duration::from_millis(300);

/// The process as a member of a fleet.
pub(in crate::server) struct FleetMember {
    pub(in crate::server) process: ProcessId,
    pub(in crate::server) bus: Option<Bus>,
    /// By etcd.
    pub(in crate::server) leadership: Option<Leadership>,
    /// Stamps the slots of purges, where strong routes are verified by a quorum.
    pub(in crate::server) stamper: Stamper,
    #[cfg(feature = "redis")]
    control: Option<BusControl>,
}

/// The parts of the process that events of the fleet concern.
pub(super) struct Concerned<'a> {
    pub(super) snapshot: &'a Arc<ArcSwap<Snapshot>>,
    pub(super) cache: &'a Arc<Cache>,
    pub(super) causality: &'a Arc<Causality>,
    pub(super) metrics: &'a Arc<Metrics>,
    pub(super) events: &'a Arc<Events>,
    pub(super) registry: &'a Arc<Registry>,
    pub(super) probes: &'a Arc<Probes>,
    pub(super) admin: SocketAddr,
}

impl FleetMember {
    /// Joins the fleet of a configuration; `None` where it has none.
    ///
    /// # Errors
    /// No thread can be started.
    pub(super) fn join(
        config: &Config,
        process: ProcessId,
        concerned: &Concerned<'_>,
    ) -> io::Result<Option<FleetMember>> {
        if config.settings.fleet.is_none() {
            return Ok(None);
        }
        let leadership = match etcd_settings(config) {
            Some(settings) => Some(fleet::start_leadership(&settings, process, concerned.host())?),
            None => None,
        };
        Ok(Some(FleetMember { leadership, ..FleetMember::start(config, process, concerned)? }))
    }

    #[cfg(feature = "redis")]
    fn start(config: &Config, process: ProcessId, concerned: &Concerned<'_>) -> io::Result<FleetMember> {
        let stamper = Stamper::default();
        let Some(settings) = bus_settings(config) else {
            return Ok(FleetMember { process, bus: None, leadership: None, stamper, control: None });
        };
        let listener = Arc::new(FleetListener::new(concerned));
        let (bus, control) = fleet::start(&settings, process, listener, concerned.metrics)?;
        if let Some(rules) = quorum_rules(config) {
            stamper.follow(&rules, concerned.metrics);
        }
        Ok(FleetMember { process, bus: Some(bus), leadership: None, stamper, control: Some(control) })
    }

    #[cfg(not(feature = "redis"))]
    fn start(_: &Config, process: ProcessId, _: &Concerned<'_>) -> io::Result<FleetMember> {
        Ok(FleetMember { process, bus: None, leadership: None, stamper: Stamper::default() })
    }

    /// Says good-bye to the other members.
    pub(super) fn leave(&self) {
        if let Some(bus) = &self.bus {
            bus.leave(FAREWELL);
        }
        if let Some(leadership) = &self.leadership {
            leadership.leave(FAREWELL);
        }
    }

    /// Returns once the bus works and the states of nodes were read, or after so long.
    pub(super) async fn ready(&self, patience: Duration) {
        let bus = async {
            if let Some(bus) = &self.bus {
                bus.ready(patience).await;
            }
        };
        let states = async {
            if let Some(leadership) = &self.leadership {
                leadership.ready(patience).await;
            }
        };
        tokio::join!(bus, states);
    }

    /// Returns whether another configuration has another etcd, which this process cannot follow.
    fn has_another_etcd(&self, config: &Config) -> bool {
        match (&self.leadership, etcd_settings(config)) {
            (None, None) => false,
            (Some(leadership), Some(settings)) => leadership.is_another(&settings),
            _ => true,
        }
    }

    /// Lets the leader's room go on under a new configuration: with other endpoints, or with another login.
    fn reconfigure_etcd(&self, config: &Config) {
        if let (Some(leadership), Some(settings)) = (&self.leadership, etcd_settings(config))
            && !leadership.is_another(&settings)
        {
            leadership.reconfigure(&settings);
        }
    }

    /// Returns the part of another configuration that this process cannot follow.
    #[cfg(feature = "redis")]
    pub(super) fn needs_restart(
        member: Option<&FleetMember>,
        former: &Option<FormerRedis>,
        config: &Config,
    ) -> Option<&'static str> {
        if member.is_some() != config.settings.fleet.is_some() {
            return Some("fleet");
        }
        if member.is_some_and(|member| member.has_another_etcd(config)) {
            return Some("fleet.etcd");
        }
        let control = member.and_then(|member| member.control.as_ref());
        if former != &config.settings.fleet.as_ref().and_then(|fleet| fleet.redis.as_ref()?.former.clone()) {
            return Some("fleet.redis.former");
        }
        match (control, bus_settings(config)) {
            (None, None) => None,
            (Some(control), Some(settings)) => control.changed_block(&settings),
            _ => Some("fleet.redis"),
        }
    }

    #[cfg(not(feature = "redis"))]
    pub(super) fn needs_restart(
        member: Option<&FleetMember>,
        _: &Option<FormerRedis>,
        config: &Config,
    ) -> Option<&'static str> {
        if member.is_some_and(|member| member.has_another_etcd(config)) {
            return Some("fleet.etcd");
        }
        (member.is_some() != config.settings.fleet.is_some()).then_some("fleet")
    }

    /// Lets the bus go on under a new configuration: at other addresses of the same nodes, or with another login.
    #[cfg(feature = "redis")]
    pub(super) fn reconfigure(&self, config: &Config, metrics: &Arc<Metrics>) {
        self.reconfigure_etcd(config);
        match quorum_rules(config) {
            Some(rules) => self.stamper.follow(&rules, metrics),
            None => self.stamper.rest(),
        }
        if let (Some(control), Some(settings)) = (&self.control, bus_settings(config))
            && !control.is_another(&settings)
        {
            control.reconfigure(&settings);
        }
    }

    #[cfg(not(feature = "redis"))]
    pub(super) fn reconfigure(&self, config: &Config, _: &Arc<Metrics>) {
        self.reconfigure_etcd(config);
    }
}

impl Concerned<'_> {
    fn host(&self) -> Arc<LeaderHost> {
        Arc::new(LeaderHost {
            snapshot: Arc::clone(self.snapshot),
            probes: Arc::clone(self.probes),
            registry: Arc::clone(self.registry),
            events: Arc::clone(self.events),
            admin: self.admin,
        })
    }
}

/// Tells the other members of the last number that this process has given out, ten times a second at most: what they
/// fetch from then on includes the answers up to it.
pub(super) async fn publish_numbers(bus: Bus, causality: Arc<Causality>) {
    let mut interval = tokio::time::interval(NUMBERS);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut published = 0;
    loop {
        interval.tick().await;
        let number = causality.clock.now().number;
        if number > published {
            published = number;
            bus.publish(Event::Fills { number });
        }
    }
}

/// Returns the place of the bus; `None` where the configuration has none.
#[cfg(feature = "redis")]
pub(crate) fn bus_settings(config: &Config) -> Option<BusSettings> {
    let fleet = config.settings.fleet.as_ref()?;
    let redis = fleet.redis.as_ref()?;
    let tls = config.secrets.fleet_tls.as_ref().map(|tls| tls_settings(tls, redis.tls.as_ref()));
    Some(BusSettings {
        fleet: fleet.id.value.clone(),
        lease: fleet.lease,
        quorum: redis.quorum(),
        nodes: redis.nodes.iter().map(|node| (node.id.value.clone(), node.address.to_string())).collect(),
        login: Login {
            username: redis.username.as_ref().map(|username| username.value.clone()),
            password: config.secrets.fleet_password.clone(),
            tls,
        },
    })
}

/// Returns the rules by which strong reads are verified; `None` where no route needs them.
#[cfg(feature = "redis")]
pub(crate) fn quorum_rules(config: &Config) -> Option<Arc<QuorumRules>> {
    let bus = bus_settings(config)?;
    let redis = config.settings.fleet.as_ref()?.redis.as_ref()?;
    let strong = || config.settings.routes.iter().filter_map(|route| Some((route, route.consistency.as_ref()?)));
    let strong = || strong().filter(|(_, rules)| rules.is_by_quorum());
    let settle = strong().map(|(_, rules)| rules.settle()).max()?;
    let mut nodes = bus.nodes;
    let current = Spread { nodes: (0..nodes.len() as u8).collect(), quorum: bus.quorum };
    let former = redis.former.as_ref().map(|former| {
        let place = |node: &FleetNode| {
            nodes.iter().position(|(id, _)| *id == node.id.value).unwrap_or_else(|| {
                nodes.push((node.id.value.clone(), node.address.to_string()));
                nodes.len() - 1
            })
        };
        Spread { nodes: former.nodes.iter().map(place).map(|place| place as u8).collect(), quorum: former.quorum() }
    });
    let (ids, addresses) = nodes.into_iter().unzip();
    let mut routes: Vec<String> = strong().map(|(route, rules)| marked_part(route, rules)).collect();
    routes.sort_unstable();
    Some(Arc::new(QuorumRules::new(QuorumSettings {
        fleet: bus.fleet,
        lease: bus.lease,
        settle,
        ids,
        reach: Reach { addresses, login: bus.login },
        current,
        former,
        routes: routes.join("\n"),
    })))
}

#[cfg(not(feature = "redis"))]
pub(crate) fn quorum_rules(_: &Config) -> Option<Arc<QuorumRules>> {
    None
}

/// Returns the part of a strong route that all proxies must have alike: what it matches, its groups and its `settle`.
#[cfg(feature = "redis")]
fn marked_part(route: &config::Route, rules: &config::Consistency) -> String {
    let mut shown = route.show();
    if let Some(parts) = shown.as_object_mut() {
        parts.retain(|name, _| ["hosts", "path", "path_prefix"].contains(&name.as_str()));
    }
    let groups: Vec<String> = rules.groups.iter().map(|group| group.value.to_string()).collect();
    format!("{shown} {groups:?} {}", rules.settle().as_millis())
}

/// The receiver of the events of other members: it applies them to the cache.
struct FleetListener {
    snapshot: Arc<ArcSwap<Snapshot>>,
    cache: Arc<Cache>,
    causality: Arc<Causality>,
    metrics: Arc<Metrics>,
    events: Arc<Events>,
    admin: SocketAddr,
    /// The digests of the configuration that was in force last.
    digests: Mutex<(Weak<Snapshot>, Digests)>,
}

impl FleetListener {
    fn new(concerned: &Concerned<'_>) -> FleetListener {
        FleetListener {
            snapshot: Arc::clone(concerned.snapshot),
            cache: Arc::clone(concerned.cache),
            causality: Arc::clone(concerned.causality),
            metrics: Arc::clone(concerned.metrics),
            events: Arc::clone(concerned.events),
            admin: concerned.admin,
            digests: Mutex::default(),
        }
    }

    /// Notes the number and the groups of a write or a purge.
    fn hear(&self, heard: &Heard, causal: Option<&Bytes>) {
        let Some(bytes) = causal else { return };
        match Write::decode(bytes) {
            // The number is its publisher's own.
            Some(write) if write.dot.process == heard.from.0 => self.causality.hear(&write),
            Some(_) => {}
            // It may be of groups that this process has responses of.
            None => self.missed(),
        }
    }
}

impl Listener for FleetListener {
    fn apply(&self, batch: &[Heard]) {
        let snapshot = self.snapshot.load();
        let mut purges = Vec::new();
        for heard in batch {
            match &heard.event {
                Event::Purge(ordered) => {
                    let by = match ordered.by {
                        PurgeBy::All => Ok(Purge::All),
                        PurgeBy::Tag => Ok(Purge::Tag(ordered.value.clone())),
                        PurgeBy::Prefix => purge::prefix(&ordered.value).map(Purge::Prefix),
                        PurgeBy::Url => purge::urls(&snapshot, &ordered.value).map(Purge::Url),
                    };
                    // A purge that this version cannot read purges everything: too much rather than too little.
                    let by = by.unwrap_or(Purge::All);
                    self.metrics.cache_purges.with_label_values(&[by.kind()]).inc();
                    tracing::debug!(from = %heard.from, purge = ?by, soft = ordered.soft, "a purge of another proxy");
                    purges.push((by, ordered.soft));
                    self.hear(heard, ordered.causal.as_ref());
                }
                Event::Write { uris, causal } => {
                    uris.iter().for_each(|uri| self.cache.invalidate_uri(uri));
                    self.hear(heard, causal.as_ref());
                }
                Event::Fills { number } => {
                    self.causality.hear_number(Dot { process: heard.from.0, number: *number });
                }
                _ => {}
            }
        }
        self.cache.purge_many(&purges);
        if !purges.is_empty() {
            tracing::info!(purges = purges.len(), "purges of other proxies were applied");
        }
    }

    fn missed(&self) {
        self.cache.doubt();
    }

    fn changed(&self, working: bool) {
        let error = (!working).then(|| "too many nodes are away: purges of other proxies may be missed".to_owned());
        self.events.record(control::Event::Store { store: "bus of the fleet".to_owned(), working, error });
    }

    fn digests(&self) -> Digests {
        let snapshot = self.snapshot.load_full();
        let mut known = self.digests.lock();
        if !std::ptr::eq(known.0.as_ptr(), Arc::as_ptr(&snapshot)) {
            *known = (Arc::downgrade(&snapshot), digests(&snapshot, self.admin));
        }
        known.1.clone()
    }
}

/// Returns the digests of a configuration: of what must be equal on all members.
fn digests(snapshot: &Snapshot, admin: SocketAddr) -> Digests {
    let mut shown = snapshot.config.settings.show();
    if let Some(blocks) = shown.as_object_mut() {
        blocks.retain(|name, _| !OWN_BLOCKS.contains(&name.as_str()));
    }
    // Each proxy may reach the nodes of the bus by other addresses, and with a login of its own.
    if let Some(redis) = shown.pointer_mut("/fleet/redis").and_then(|redis| redis.as_object_mut()) {
        redis.retain(|name, _| !["username", "password_file", "tls"].contains(&name.as_str()));
        for node in redis.get_mut("nodes").and_then(|nodes| nodes.as_array_mut()).into_iter().flatten() {
            node.as_object_mut().map(|node| node.remove("address"));
        }
    }
    if let Some(etcd) = shown.pointer_mut("/fleet/etcd").and_then(|etcd| etcd.as_object_mut()) {
        etcd.clear();
    }
    let digest = Sha256::digest(shown.to_string().as_bytes());
    let mut config = [0; 8];
    config.copy_from_slice(&digest[..8]);
    let ring = |pool: &Arc<crate::upstream::Pool>| {
        (pool.name.to_string(), pool.ring.digest(|member| pool.nodes.get(member).map_or("", |node| &*node.id)))
    };
    Digests {
        config: u64::from_be_bytes(config),
        rings: snapshot.pools.iter().map(ring).collect(),
        address: admin.to_string(),
    }
}
