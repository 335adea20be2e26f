//! Nodes that are discovered by DNS: look-ups at intervals, on the thread of the admin listener.
//!
//! Results are kept by the settings of their look-up. An answer that fails or is empty changes nothing, so that a name
//! server that fails removes no node.

use crate::config::values::DnsName;
use crate::config::{AddressFamily, Discovery};
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{RData, RecordType};
use hickory_resolver::{Resolver, TokioResolver};
use parking_lot::{Mutex, MutexGuard};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};

/// The largest weight, as in the file.
const MAX_WEIGHT: u32 = 1000;
/// The interval of look-ups of a name without any node yet, if `refresh` is longer.
const SOON: Duration = Duration::from_secs(1);

/// The period at which a name of the file is tried that could not be resolved.
const AGAIN: Duration = Duration::from_secs(2);

/// The longest wait of a start, or a reload, for all name servers together.
const PREPARING: Duration = Duration::from_secs(5);

/// A node that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) address: SocketAddr,
    pub(crate) weight: u32,
}

/// All look-ups, and their results.
pub(crate) struct Discovered {
    runtime: Handle,
    changed: Arc<Notify>,
    targets: Mutex<Vec<Subscription>>,
    /// Looks again for names of the file that cannot be resolved.
    resolving: Mutex<Option<AbortHandle>>,
}

/// One look-up, for as long as a configuration has it.
struct Subscription {
    settings: Discovery,
    state: Arc<Mutex<SubscriptionState>>,
    task: AbortHandle,
}

/// Its latest results.
#[derive(Clone, Debug, Default)]
struct SubscriptionState {
    nodes: Vec<Found>,
    /// Why the last answer changed nothing.
    failure: Option<String>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Discovered {
    /// Returns a table whose look-ups run on this runtime.
    pub(crate) fn new(runtime: Handle) -> Discovered {
        Discovered { runtime, changed: Arc::default(), targets: Mutex::default(), resolving: Mutex::default() }
    }

    /// Resolves names of the current configuration that could not be resolved, every few seconds;
    /// [`Discovered::changed`] notifies when one can.
    pub(crate) fn resolve_later(&self, names: Vec<(String, u16)>) {
        let changed = Arc::clone(&self.changed);
        let again = (!names.is_empty())
            .then(|| self.runtime.spawn(resolve_later(names, (AGAIN, resolves), changed)).abort_handle());
        if let Some(before) = std::mem::replace(&mut *self.resolving.lock(), again) {
            before.abort();
        }
    }

    /// Runs the look-ups without results yet, all at once; their results are there afterwards. Those that take too long
    /// are repeated later.
    pub(crate) async fn prepare(&self, wanted: impl Iterator<Item = &Discovery>) {
        let mut askers: Vec<Resolving> = Vec::new();
        for settings in wanted {
            let is_known = self.targets().iter().any(|target| target.settings == *settings);
            if is_known || askers.iter().any(|asker| asker.settings == *settings) {
                continue;
            }
            // A look-up with other settings begins with the results of the earlier one.
            let known = self.targets().iter().find(|target| target.settings.dns == settings.dns).map(|target| {
                let SubscriptionState { nodes, .. } = target.state.lock().clone();
                SubscriptionState { nodes, failure: None }
            });
            askers
                .push(Resolving { settings: settings.clone(), state: Arc::new(Mutex::new(known.unwrap_or_default())) });
        }
        let mut first_questions = JoinSet::new();
        for asker in askers {
            first_questions.spawn_on(
                async move {
                    let answered = tokio::time::timeout(PREPARING, asker.look_up_once()).await.is_ok();
                    if !answered {
                        asker.fail(format!("no answer within {PREPARING:?}"));
                    }
                    asker
                },
                &self.runtime,
            );
        }
        while let Some(asked) = first_questions.join_next().await {
            let Ok(asker) = asked else { continue };
            let (settings, state) = (asker.settings.clone(), Arc::clone(&asker.state));
            let task = self.runtime.spawn(asker.run(Arc::clone(&self.changed))).abort_handle();
            self.targets().push(Subscription { settings, state, task });
        }
    }

    /// Ends the look-ups that no configuration has any more.
    pub(crate) fn follow<'a>(&self, wanted: impl Iterator<Item = &'a Discovery> + Clone) {
        self.targets().retain(|target| wanted.clone().any(|settings| *settings == target.settings));
    }

    /// The nodes that were found last.
    pub(crate) fn nodes(&self, settings: &Discovery) -> Vec<Found> {
        self.state(settings).nodes
    }

    /// Why the last answer changed nothing, if it did not.
    pub(crate) fn failure(&self, settings: &Discovery) -> Option<String> {
        self.state(settings).failure
    }

    /// Resolves when the results have changed.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    fn state(&self, settings: &Discovery) -> SubscriptionState {
        let targets = self.targets();
        let target = targets.iter().find(|target| target.settings == *settings);
        target.map(|target| target.state.lock().clone()).unwrap_or_default()
    }

    fn targets(&self) -> MutexGuard<'_, Vec<Subscription>> {
        self.targets.lock()
    }
}

/// Ends when one of these names can be resolved.
async fn resolve_later(
    names: Vec<(String, u16)>,
    (every, resolves): (Duration, impl Fn(&(String, u16)) -> bool + Copy + Send + 'static),
    changed: Arc<Notify>,
) {
    loop {
        tokio::time::sleep(every.mul_f64(0.9 + fastrand::f64() / 10.0)).await;
        let asked = names.clone();
        // The system's resolver waits.
        let found = tokio::task::spawn_blocking(move || asked.iter().any(resolves)).await;
        if found.unwrap_or(false) {
            changed.notify_one();
            return;
        }
    }
}

fn resolves(name: &(String, u16)) -> bool {
    (name.0.as_str(), name.1).to_socket_addrs().is_ok_and(|mut found| found.next().is_some())
}

/// The task of one look-up.
struct Resolving {
    settings: Discovery,
    state: Arc<Mutex<SubscriptionState>>,
}

impl Resolving {
    async fn run(self, changed: Arc<Notify>) {
        loop {
            // Without any node the next look-up follows soon.
            let refresh = match self.state.lock().nodes.is_empty() {
                true => self.settings.refresh.min(SOON),
                false => self.settings.refresh,
            };
            // Not all proxies at once.
            tokio::time::sleep(refresh.mul_f64(0.9 + fastrand::f64() / 10.0)).await;
            if self.look_up_once().await {
                changed.notify_one();
            }
        }
    }

    /// Looks up once; returns whether the results have changed.
    async fn look_up_once(&self) -> bool {
        let name = &self.settings.dns.value;
        let answer = tokio::time::timeout(self.settings.timeout, look_up(&self.settings)).await;
        let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {:?}", self.settings.timeout)));
        let mut state = self.state.lock();
        let failure = match answer {
            Ok((mut nodes, missing)) if !nodes.is_empty() || missing.is_some() => {
                // The nodes of one family stay while its look-up fails.
                let kept =
                    state.nodes.iter().filter(|node| missing.is_some_and(|family| family.has(node.address.ip())));
                nodes.extend(kept);
                let nodes = sorted(nodes.iter().map(|node| (node.address, node.weight)));
                if state.failure.take().is_some() {
                    tracing::info!(%name, "the name server tells of nodes again");
                }
                let is_new = state.nodes != nodes;
                if is_new {
                    let nodes: Vec<String> = nodes.iter().map(|node| node.address.to_string()).collect();
                    tracing::info!(%name, nodes = nodes.join(" "), "the name server tells of other nodes");
                }
                state.nodes = nodes;
                return is_new;
            }
            Ok(_) => "the answer is empty".to_owned(),
            Err(failure) => failure,
        };
        drop(state);
        self.fail(failure);
        false
    }

    /// Records a failure, which changes nothing, and logs it once.
    fn fail(&self, failure: String) {
        let (name, mut state) = (&self.settings.dns.value, self.state.lock());
        if state.failure.as_ref() != Some(&failure) {
            let kept = state.nodes.len();
            tracing::warn!(%name, failure, kept, "the name server tells of no nodes; the last ones stay");
        }
        state.failure = Some(failure);
    }
}

/// One of the families of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn has(self, address: IpAddr) -> bool {
        address.is_ipv4() == (self == Family::V4)
    }
}

/// Returns the nodes of an answer, in the order of their addresses, and the family whose look-up failed.
async fn look_up(settings: &Discovery) -> Result<(Vec<Found>, Option<Family>), String> {
    // Made anew each time: the servers of `/etc/resolv.conf` may have changed, and nothing is cached.
    let resolver = resolver(settings).map_err(|error| error.to_string())?;
    match &settings.dns.value {
        DnsName::Addresses(target) => {
            let (addresses, missing) = addresses(&resolver, &target.host, settings).await?;
            Ok((sorted(addresses.into_iter().map(|ip| (SocketAddr::new(ip, target.port), 1))), missing))
        }
        DnsName::Service(name) => {
            let records = records(&resolver, name, RecordType::SRV).await?;
            let services: Vec<_> = records
                .iter()
                .filter_map(|data| match data {
                    RData::SRV(service) => Some(service),
                    _ => None,
                })
                .collect();
            // Only the lowest priority is used; the others are fallbacks (RFC 2782).
            let first = services.iter().map(|service| service.priority).min();
            let (mut found, mut all_missing) = (Vec::new(), None);
            for service in services.into_iter().filter(|service| Some(service.priority) == first) {
                let (addresses, missing) = addresses(&resolver, &service.target.to_utf8(), settings).await?;
                all_missing = all_missing.or(missing);
                for ip in addresses {
                    found.push((SocketAddr::new(ip, service.port), bounded(service.weight)));
                }
            }
            Ok((sorted(found.into_iter()), all_missing))
        }
    }
}

fn resolver(settings: &Discovery) -> Result<TokioResolver, NetError> {
    let mut builder = match settings.server {
        None => Resolver::builder_tokio()?,
        Some(server) => {
            let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
                connection.port = server.port();
                connection
            });
            let server = NameServerConfig::new(server.ip(), true, connections.into());
            let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
            Resolver::builder_with_config(config, TokioRuntimeProvider::default())
        }
    };
    let options: &mut ResolverOpts = builder.options_mut();
    options.cache_size = 0;
    // A lost query is repeated within the timeout.
    options.timeout = settings.timeout / 3;
    builder.build()
}

/// Returns all addresses of a name. One family of two is enough; the other one is returned if its look-up fails.
async fn addresses(
    resolver: &TokioResolver,
    name: &str,
    settings: &Discovery,
) -> Result<(Vec<IpAddr>, Option<Family>), String> {
    if let Ok(ip) = name.parse() {
        return Ok((vec![ip], None));
    }
    let of = |found: &[RData]| found.iter().filter_map(RData::ip_addr).collect();
    // A family without an answer must not make the other one time out.
    let within = settings.timeout.mul_f64(0.7);
    let ask = async |kind| match tokio::time::timeout(within, records(resolver, name, kind)).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {within:?}")),
    };
    let (v4, v6) = match settings.family {
        AddressFamily::Ipv4 => return Ok((of(&records(resolver, name, RecordType::A).await?), None)),
        AddressFamily::Ipv6 => return Ok((of(&records(resolver, name, RecordType::AAAA).await?), None)),
        AddressFamily::Any => {
            tokio::join!(ask(RecordType::A), ask(RecordType::AAAA))
        }
    };
    match (v4, v6) {
        (Ok(v4), Ok(v6)) => Ok((of(&[v4, v6].concat()), None)),
        (Ok(v4), Err(_)) if !v4.is_empty() => Ok((of(&v4), Some(Family::V6))),
        (Err(_), Ok(v6)) if !v6.is_empty() => Ok((of(&v6), Some(Family::V4))),
        (Err(failure), _) | (_, Err(failure)) => Err(failure),
    }
}

/// Returns the records of one type; none where there are none.
async fn records(resolver: &TokioResolver, name: &str, kind: RecordType) -> Result<Vec<RData>, String> {
    match resolver.lookup(name, kind).await {
        Ok(found) => Ok(found.answers().iter().map(|record| record.data.clone()).collect()),
        Err(error) if error.is_no_records_found() || error.is_nx_domain() => Ok(Vec::new()),
        Err(error) => Err(error.to_string()),
    }
}

/// Each address once, in order.
fn sorted(found: impl Iterator<Item = (SocketAddr, u32)>) -> Vec<Found> {
    let unique: BTreeMap<SocketAddr, u32> = found.collect();
    unique.into_iter().map(|(address, weight)| Found { address, weight }).collect()
}

/// Returns a weight for the ring, limited to the range of the file. It does not depend on the weights of other nodes,
/// as otherwise keys of unchanged nodes would move.
fn bounded(weight: u16) -> u32 {
    u32::from(weight).clamp(1, MAX_WEIGHT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn a_name_is_looked_for_until_it_can_be_resolved() {
        static ASKED: AtomicU32 = AtomicU32::new(0);
        let third = |_: &(String, u16)| ASKED.fetch_add(1, Ordering::SeqCst) == 2;
        let changed: Arc<Notify> = Arc::default();
        resolve_later(vec![("later.example".to_owned(), 80)], (Duration::from_millis(1), third), Arc::clone(&changed))
            .await;
        changed.notified().await;
        assert_eq!(ASKED.load(Ordering::SeqCst), 3);
    }

    #[test]
    fn weights_are_taken_as_they_are() {
        for (given, expected) in [(0, 1), (1, 1), (10, 10), (1000, 1000), (2000, 1000), (65_535, 1000)] {
            assert_eq!(bounded(given), expected, "{given}");
        }
    }
}
