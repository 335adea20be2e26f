//! The handle of a running proxy: the state that outlives a configuration, and the signals between its parts.

use super::background::Background;
use super::fleet::FleetMember;
use super::hints::Hints;
use super::store::OpenStore;
use crate::cache::Cache;
use crate::clock;
use crate::config::FileStamp;
use crate::consistency::Causality;
use crate::control::{CertificateStatus, Control, Event, Events, ReloadStatus};
use crate::fleet::Leadership;
use crate::http::budget::Budget;
use crate::proxy::Snapshot;
use crate::server::connection::limit::ConnectionPermits;
use crate::server::listener::admin_socket::AdminSocket;
use crate::server::listener::open::Open;
use crate::server::worker::Stage;
use crate::telemetry::history::History;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::observers::Observers;
use crate::tls::Certificate;
use crate::upstream::{Discovered, Probes, Registry, StateOverride};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustix::process::Pid;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot, watch};

/// The handle of a running proxy: the state that outlives a configuration.
pub(in crate::server) struct Handle {
    pub(in crate::server) snapshot: Arc<ArcSwap<Snapshot>>,
    pub(in crate::server) metrics: Arc<Metrics>,
    pub(in crate::server) events: Arc<Events>,
    pub(in crate::server) observers: Arc<Observers>,
    pub(in crate::server) history: Arc<History>,
    pub(in crate::server) background: Background,
    pub(in crate::server) registry: Arc<Registry>,
    pub(in crate::server) probes: Arc<Probes>,
    pub(in crate::server) discovered: Arc<Discovered>,
    pub(in crate::server) cache: Arc<Cache>,
    pub(in crate::server) budget: Arc<Budget>,
    pub(in crate::server) records: OpenStore,
    /// The order of answers on causal routes, as far as the process knows it.
    pub(in crate::server) causality: Arc<Causality>,
    /// The process as a member of a fleet, where it is one.
    pub(in crate::server) fleet: Option<FleetMember>,
    pub(in crate::server) stage: watch::Sender<Stage>,
    pub(in crate::server) open: watch::Sender<Vec<Open>>,
    pub(in crate::server) triggers: mpsc::Sender<Trigger>,
    pub(in crate::server) last_reload: Arc<Mutex<LastReload>>,
    /// The text of the configuration file when it was last read.
    pub(in crate::server) content: Mutex<Option<String>>,
    /// The kernel's events about the configuration file.
    pub(in crate::server) hints: Arc<Hints>,
    /// A file is being read, and takes its time.
    pub(in crate::server) is_reading: Arc<AtomicBool>,
    /// The turns of plans, and of checks of the file, by the admin API.
    pub(in crate::server) planning: Arc<tokio::sync::Mutex<()>>,
    pub(in crate::server) checking: Arc<tokio::sync::Mutex<()>>,
    /// The files that a configuration names which was refused.
    pub(in crate::server) refused: Mutex<Vec<(PathBuf, FileStamp)>>,
    pub(in crate::server) started: Instant,
    pub(in crate::server) workers: usize,
    pub(in crate::server) permits: Arc<ConnectionPermits>,
    /// Notified when the admin API requests a drain.
    pub(in crate::server) drain_requested: tokio::sync::Notify,
    pub(in crate::server) admin: AdminSocket,
    pub(in crate::server) metrics_listener: Option<AdminSocket>,
    /// The runtime of the admin listeners.
    pub(in crate::server) runtime: tokio::runtime::Handle,
    /// A new binary is being started.
    pub(in crate::server) is_upgrading: AtomicBool,
    /// Its process, while it has not taken over.
    pub(in crate::server) starting: Mutex<Option<Pid>>,
    /// A new process has taken over, and its notification.
    pub(in crate::server) is_replaced: AtomicBool,
    pub(in crate::server) replaced: tokio::sync::Notify,
    /// The states of nodes were handed to the new process.
    pub(in crate::server) states_given: Mutex<bool>,
}

impl Handle {
    /// Answers on the admin listeners.
    pub(in crate::server) fn open_admin(self: &Arc<Self>) {
        for socket in std::iter::once(&self.admin).chain(&self.metrics_listener) {
            if let Err(error) = socket.serve(&self.runtime, Arc::clone(self) as Arc<dyn Control>) {
                tracing::error!(%error, address = %socket.bound, "cannot answer on an admin listener");
            }
        }
    }

    /// Returns the states of nodes that were set by the API, for the new process; further changes are refused here.
    pub(in crate::server) fn take_states(&self) -> Vec<StateOverride> {
        let mut given = self.states_given.lock();
        *given = true;
        self.registry.state_overrides()
    }

    /// Hands leadership of the fleet over, for good.
    pub(in crate::server) fn retire(&self) {
        if let Some(leadership) = self.leadership() {
            leadership.retire();
        }
    }

    /// Returns the process as a member of a fleet with etcd.
    pub(in crate::server) fn leadership(&self) -> Option<&Leadership> {
        self.fleet.as_ref()?.leadership.as_ref()
    }

    /// Takes no more connections there.
    pub(in crate::server) fn close_admin(&self) {
        std::iter::once(&self.admin).chain(&self.metrics_listener).for_each(AdminSocket::pause);
    }

    /// Puts a configuration in force.
    pub(in crate::server) fn adopt(&self, snapshot: Snapshot) {
        self.registry.adopt(&snapshot.pools);
        let old = self.snapshot.swap(Arc::new(snapshot));
        let new = self.snapshot.load();
        self.certificates_in_force(Some(&old));
        self.probes.follow(&new.pools);
        self.discovered.follow(new.config.discoveries());
        self.discovered.resolve_later(new.unresolved());
        let (before, after) = (old.config.settings.limits.connections, new.config.settings.limits.connections);
        self.permits.resize(before, after);
        self.budget.set_limit(new.config.settings.limits.buffered_bytes.0);
        self.retain_series();
    }

    /// Records the certificates that the configuration in force has and an earlier one had not.
    pub(in crate::server) fn certificates_in_force(&self, earlier: Option<&Snapshot>) {
        let (new, old) = (certificates(&self.snapshot.load()), earlier.map(certificates).unwrap_or_default());
        for CertificateStatus { name, file, expires } in new.difference(&old).cloned() {
            self.events.record(Event::Certificate { name, file, expires });
        }
    }

    /// Removes the series of routes, listeners, pools, nodes and steps that the configuration in force does not have.
    pub(in crate::server) fn retain_series(&self) {
        let new = self.snapshot.load();
        self.metrics.retain(
            |route| new.routes.iter().any(|known| &*known.label.name == route),
            |listener| new.config.settings.listeners.iter().any(|known| known.name.as_str() == listener),
            |pool| new.pools.iter().any(|known| &*known.name == pool),
            |pool, node| {
                let pool = new.pools.iter().find(|known| &*known.name == pool);
                pool.is_some_and(|pool| pool.nodes.iter().any(|known| &*known.id == node))
            },
            |route, step| {
                let route = new.config.settings.routes.iter().find(|known| known.name.as_str() == route);
                let saga = route.and_then(|route| route.saga.as_ref());
                saga.is_some_and(|saga| saga.steps.iter().any(|known| known.name.as_str() == step))
            },
        );
    }
}

/// The cause of a reload.
pub(in crate::server) enum Trigger {
    /// The file may have changed.
    File,
    /// A file that the configuration names has changed.
    Secrets,
    /// SIGHUP; files of logs are opened anew.
    Signal,
    /// A request of the admin API, which waits for the result.
    AdminApi(oneshot::Sender<Result<String, String>>),
}

/// Returns the certificates of a configuration's listeners.
pub(in crate::server) fn certificates(snapshot: &Snapshot) -> BTreeSet<CertificateStatus> {
    let certificates = snapshot.config.secrets.tls.values().flat_map(|tls| tls.certificates());
    let status = |it: &Arc<Certificate>| CertificateStatus {
        name: it.names.dns.first().unwrap_or(&it.file).clone(),
        file: it.file.clone(),
        expires: it.expiry,
    };
    certificates.map(status).collect()
}

/// The result of the last reload.
#[derive(Clone, Debug)]
pub(in crate::server) struct LastReload {
    pub(in crate::server) at: SystemTime,
    pub(in crate::server) count: u64,
    pub(in crate::server) failures: u64,
    /// The error with its place, where it failed.
    pub(in crate::server) error: Option<String>,
    /// Settings that changed and take effect only at a restart.
    pub(in crate::server) needs_restart: Vec<&'static str>,
}

impl LastReload {
    pub(in crate::server) fn first() -> LastReload {
        LastReload { at: clock::wall(), count: 0, failures: 0, error: None, needs_restart: Vec::new() }
    }

    pub(in crate::server) fn status(&self) -> ReloadStatus {
        ReloadStatus {
            time: humane(self.at),
            success: self.succeeded(),
            error: self.error.clone(),
            reloads: self.count,
            failures: self.failures,
            needs_restart: self.needs_restart.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    pub(in crate::server) fn succeeded(&self) -> bool {
        self.error.is_none()
    }

    pub(in crate::server) fn timestamp(&self) -> f64 {
        self.at.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
    }
}

fn humane(at: SystemTime) -> String {
    let format = time::macros::format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");
    time::OffsetDateTime::from(at).format(&format).unwrap_or_default()
}
