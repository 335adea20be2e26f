//! Start and end of a proxy: workers first, then the admin listener; in reverse order at the end.

use super::background::Background;
use super::fleet::{Concerned, FleetMember, publish_numbers, quorum_rules};
use super::follow;
use super::handle::{Handle, LastReload, Trigger};
use super::inherited::{Inherited, Predecessor};
use super::log::{LogError, open_log};
use super::nofile;
use super::reload;
use super::store::{OpenStore, StoreUnavailable};
use super::systemd;
use super::upgrade;
use crate::admin::Reach;
use crate::cache::Cache;
use crate::config::{Config, Settings};
use crate::consistency::Causality;
use crate::control::{Event, Events};
use crate::fleet::ProcessId;
use crate::http::budget::Budget;
use crate::idempotency::Records;
use crate::proxy::{Parts, Snapshot};
use crate::server::balance::Balance;
use crate::server::connection::limit::ConnectionPermits;
use crate::server::control::gauges;
use crate::server::listener::admin_socket::AdminSocket;
use crate::server::listener::open::{self, BindError, Open};
use crate::server::worker::{self, Stage, WorkerShared};
use crate::telemetry;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::observers::Observers;
use crate::upstream::{BadPool, Discovered, Probes, Registry};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustix::process::{Signal, kill_process};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// The longest wait for workers after they were stopped, and for the reader of the access log.
const LAST_MOMENT: Duration = Duration::from_millis(300);

/// The longest wait for the first connection to the bus, and for the first reading of etcd.
const BUS: Duration = Duration::from_millis(500);

/// Triggers of reloads that may wait: they are joined anyway.
const TRIGGERS: usize = 64;

/// Why a proxy does not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Pool(#[from] BadPool),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    AccessLog(#[from] LogError),
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    #[error(transparent)]
    Store(#[from] StoreUnavailable),
    #[error(
        "the idempotency store was `{before}`, and the file says `{now}`: two stores at a time could run a request twice; stop and start instead"
    )]
    AnotherStore { before: String, now: String },
    #[error("the process that started this one does not hand over: {0}")]
    Handover(io::Error),
}

/// A proxy that serves.
pub(crate) struct Running {
    handle: Arc<Handle>,
    threads: Vec<JoinHandle<()>>,
}

/// Binds all addresses and starts to serve. Must be called inside a tokio runtime, which then runs the admin listeners
/// and reloads. Inherited sockets are not bound anew.
pub(crate) async fn start(config: Config, mut inherited: Inherited) -> Result<Running, StartError> {
    let (source, file) = (config.source.clone(), config.file.clone());
    let (handle, waiting) = build(config, &mut inherited).await?;
    // Should it have changed since it was loaded, the first event finds out.
    handle.note(Some(&source));
    tokio::spawn(reload::run(Arc::clone(&handle), waiting));
    if let Some(predecessor) = &mut inherited.predecessor {
        let (states, orders) = predecessor.built().map_err(StartError::Handover)?;
        handle.registry.take_over_orders(&orders);
        handle.registry.take_over(&handle.snapshot.load().pools, &states);
    }
    handle.open_admin();
    if let Some(metrics) = &handle.metrics_listener {
        tracing::info!(address = %metrics.bound, "metrics and probes");
    }
    if let Some(fleet) = &handle.fleet {
        // Responses that are fetched before the first connection to the bus are validated later.
        fleet.ready(BUS).await;
    }
    let threads = start_workers(&handle).map_err(StartError::Thread)?;
    if inherited.predecessor.is_some() {
        // The old process leaves, and its metrics with it: this one is scraped from now on.
        handle.metrics.upgrades.with_label_values(&["success"]).inc_by(inherited.upgrades + 1);
    }
    announce(inherited.predecessor);
    if file.exists() {
        tokio::spawn(follow::run(Arc::clone(&handle)));
    }
    // The file may have changed before the watch began.
    let _ = handle.triggers.try_send(Trigger::File);
    Ok(Running { handle, threads })
}

/// Returns the state of a process that has bound its sockets, and the triggers of its reloads.
async fn build(
    config: Config,
    inherited: &mut Inherited,
) -> Result<(Arc<Handle>, mpsc::Receiver<Trigger>), StartError> {
    let settings = config.settings.clone();
    let metrics = Arc::new(Metrics::new());
    let events = Events::new();
    let registry = Arc::new(Registry::new(Arc::clone(&metrics), Arc::clone(&events)));
    let workers = match settings.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        given => given as usize,
    };
    nofile::raise(settings.limits.connections);
    let log = open_log(&config, &metrics)?;
    let records = OpenStore::default();
    let opened = open_store(&records, &config, (&metrics, &events), inherited)?;
    let background = Background::start().map_err(StartError::Thread)?;
    let runtime = background.runtime();
    let (probes, discovered) = (Arc::new(Probes::new(runtime.clone())), Arc::new(Discovered::new(runtime.clone())));
    discovered.prepare(config.discoveries()).await;
    let parts = Parts {
        registry: &registry,
        metrics: &metrics,
        discovered: &discovered,
        log,
        records: opened.as_ref(),
        quorum: quorum_rules(&config),
        earlier: None,
        is_same: false,
    };
    let built = Snapshot::build(config, parts)?;
    records.adopt(opened, &events, &background);
    registry.adopt(&built.pools);
    probes.follow(&built.pools);
    discovered.resolve_later(built.unresolved());
    let snapshot = Arc::new(ArcSwap::from_pointee(built));
    let (cache, budget) = start_cache(&settings, &metrics, &background);
    let last_reload = Arc::new(Mutex::new(LastReload::first()));
    let (admin, metrics_listener) = bind_admin(&settings, inherited)?;
    let open = bind_listeners(&settings, inherited, workers)?;
    let process = ProcessId::random().map_err(StartError::Thread)?;
    let causality = Arc::new(Causality::new(process.0));
    let concerned = Concerned {
        snapshot: &snapshot,
        cache: &cache,
        causality: &causality,
        metrics: &metrics,
        events: &events,
        registry: &registry,
        probes: &probes,
        admin: admin.bound,
    };
    let fleet = FleetMember::join(&snapshot.load().config, process, &concerned).map_err(StartError::Thread)?;
    if let Some(bus) = fleet.as_ref().and_then(|fleet| fleet.bus.clone()) {
        background.spawn("the numbers of answers", publish_numbers(bus, Arc::clone(&causality)));
    }
    let (triggers, waiting) = mpsc::channel(TRIGGERS);
    let (stage, _) = watch::channel(Stage::Serving);
    let handle = Arc::new(Handle {
        snapshot,
        metrics,
        events,
        observers: Observers::new(),
        history: Arc::default(),
        background,
        registry,
        probes,
        discovered,
        cache,
        budget,
        records,
        causality,
        fleet,
        stage,
        open,
        triggers,
        last_reload,
        content: Mutex::default(),
        hints: Arc::default(),
        is_reading: Arc::default(),
        planning: Arc::default(),
        checking: Arc::default(),
        refused: Mutex::default(),
        started: Instant::now(),
        workers,
        permits: ConnectionPermits::new(settings.limits.connections),
        drain_requested: tokio::sync::Notify::new(),
        admin,
        metrics_listener,
        runtime: tokio::runtime::Handle::current(),
        is_upgrading: AtomicBool::new(false),
        starting: Mutex::default(),
        is_replaced: AtomicBool::new(false),
        states_given: Mutex::new(false),
        replaced: tokio::sync::Notify::new(),
    });
    register_gauges(&handle);
    observe(&handle);
    handle.certificates_in_force(None);
    Ok((handle, waiting))
}

/// Begins to sample the history, and to tend the counters of the hottest names.
fn observe(handle: &Handle) {
    let (history, metrics) = (Arc::clone(&handle.history), Arc::clone(&handle.metrics));
    handle.background.spawn("history", async move {
        let mut interval = tokio::time::interval(telemetry::history::INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            history.sample(&metrics);
        }
    });
    let observers = Arc::clone(&handle.observers);
    handle.background.spawn("hottest names", async move {
        loop {
            tokio::time::sleep(telemetry::top::UPKEEP).await;
            observers.top.tend(Instant::now());
        }
    });
}

/// Registers the gauges that are read at scrape time.
fn register_gauges(handle: &Handle) {
    let metrics = &handle.metrics;
    gauges::state(metrics, &handle.last_reload);
    gauges::nodes(metrics, &handle.snapshot);
    gauges::certificates(metrics, &handle.snapshot);
    gauges::cache(metrics, &handle.cache);
    gauges::budget(metrics, &handle.budget);
    let bus = handle.fleet.as_ref().and_then(|fleet| fleet.bus.clone());
    gauges::fleet(metrics, bus.as_ref(), handle.leadership());
    gauges::leader(metrics, handle.leadership());
    handle.records.gauges(metrics, bus, handle.leadership().cloned());
}

/// Opens the idempotency store, where a route uses one: the same as the process before had.
fn open_store(
    records: &OpenStore,
    config: &Config,
    (metrics, events): (&Metrics, &Arc<Events>),
    inherited: &Inherited,
) -> Result<Option<Arc<Records>>, StartError> {
    let opened = records.open_for(config, metrics, events)?;
    if let (Some(records), Some(before)) = (&opened, &inherited.store)
        && records.kind.name() != *before
    {
        return Err(StartError::AnotherStore { before: before.clone(), now: records.kind.name() });
    }
    Ok(opened)
}

/// Returns the cache, whose expired responses a task removes, and the budget for the buffers of the process.
fn start_cache(settings: &Settings, metrics: &Metrics, background: &Background) -> (Arc<Cache>, Arc<Budget>) {
    let evictions = metrics.cache_evictions.clone();
    let budget = Budget::new(settings.limits.buffered_bytes.0);
    let cache = Arc::new(Cache::new(settings.cache.memory.0, &budget, move || evictions.inc()));
    background.spawn("upkeep of the cache", Arc::clone(&cache).keep_clean());
    (cache, budget)
}

/// Binds the admin listener, and the metrics listener where it is configured.
fn bind_admin(
    settings: &Settings,
    inherited: &mut Inherited,
) -> Result<(AdminSocket, Option<AdminSocket>), StartError> {
    let address = settings.admin.address.value;
    let given = Inherited::for_address(&mut inherited.admin, &mut inherited.open, address);
    let admin = AdminSocket::bind("admin", address, Reach::Everything, given)?;
    let metrics_listener = match &settings.metrics {
        Some(metrics) => {
            let address = metrics.address.value;
            let given = Inherited::for_address(&mut inherited.metrics, &mut inherited.open, address);
            Some(AdminSocket::bind("metrics", address, Reach::ReadOnly, given)?)
        }
        None => None,
    };
    Ok((admin, metrics_listener))
}

/// Binds the sockets of the listeners. Inherited ones that no listener is for are closed.
fn bind_listeners(
    settings: &Settings,
    inherited: &mut Inherited,
    workers: usize,
) -> Result<watch::Sender<Vec<Open>>, StartError> {
    let (open, _) = watch::channel(open::diff(&inherited.open, &settings.listeners, workers)?);
    for unused in
        inherited.open.iter().filter(|open| !settings.listeners.iter().any(|it| it.address.value == open.configured))
    {
        tracing::warn!(address = %unused.bound, "a socket was handed over that no listener of the file is for");
    }
    inherited.open.clear();
    Ok(open)
}

/// Tells that this process serves: its predecessor, which passes it on to the service manager, or the manager itself.
fn announce(predecessor: Option<Predecessor>) {
    match predecessor {
        // If the predecessor has ended meanwhile, this process notifies the service manager.
        Some(predecessor) => {
            if let Err(error) = predecessor.accepting() {
                tracing::warn!(%error, "the old process does not hear that this one serves");
                systemd::ready("serving");
            }
        }
        None => systemd::ready("serving"),
    }
}

fn start_workers(handle: &Handle) -> io::Result<Vec<JoinHandle<()>>> {
    let (balance, handed) = Balance::new(handle.workers);
    let shared = WorkerShared {
        workers: handle.workers,
        balance,
        snapshot: Arc::clone(&handle.snapshot),
        metrics: Arc::clone(&handle.metrics),
        observers: Arc::clone(&handle.observers),
        cache: Arc::clone(&handle.cache),
        causality: Arc::clone(&handle.causality),
        bus: handle.fleet.as_ref().and_then(|fleet| fleet.bus.clone()),
        budget: Arc::clone(&handle.budget),
        permits: Arc::clone(&handle.permits),
        addresses: Arc::default(),
        stage: handle.stage.subscribe(),
        open: handle.open.subscribe(),
    };
    let spawn = |(number, handed)| {
        let shared = shared.clone();
        let worker = std::thread::Builder::new().name(format!("worker-{number}"));
        worker.spawn(move || worker::run(number, shared, handed))
    };
    handed.into_iter().enumerate().map(spawn).collect()
}

impl Running {
    /// Returns the addresses that clients connect to, by the listeners' names.
    pub(crate) fn listeners(&self) -> Vec<(Arc<str>, SocketAddr)> {
        self.handle.open.borrow().iter().map(|open| (Arc::clone(&open.name), open.bound)).collect()
    }

    /// Where the admin listener is.
    pub(crate) fn admin(&self) -> SocketAddr {
        self.handle.admin.bound
    }

    pub(crate) fn workers(&self) -> usize {
        self.handle.workers
    }

    /// Reloads as after SIGHUP.
    pub(crate) fn reload(&self) {
        // A full queue has a trigger already.
        let _ = self.handle.triggers.try_send(Trigger::Signal);
    }

    /// Starts the binary anew that this process was started from, to take over.
    pub(crate) fn upgrade(&self) {
        tokio::spawn(upgrade::run(Arc::clone(&self.handle)));
    }

    /// Waits until a new binary has taken over.
    pub(crate) async fn replaced(&self) {
        self.handle.replaced.notified().await;
    }

    /// Waits until the admin API requests a drain.
    pub(crate) async fn drain_requested(&self) {
        self.handle.drain_requested.notified().await;
    }

    /// Stops accepting requests, and waits until those in flight have ended or `drain_timeout` is over. Returns whether
    /// all have ended.
    pub(crate) async fn drain(mut self) -> bool {
        let limits = self.handle.snapshot.load().config.settings.limits.clone();
        self.handle.retire();
        self.handle.stage.send_replace(Stage::Leaving);
        self.handle.events.record(Event::Drain { timeout_seconds: limits.drain_timeout.as_secs_f64() });
        // If another process serves already, there is no need to wait for load balancers.
        let is_replaced = self.handle.is_replaced.load(Ordering::SeqCst);
        if !is_replaced {
            systemd::stopping();
        }
        if !is_replaced && !limits.drain_delay.is_zero() {
            tracing::info!(delay = ?limits.drain_delay, "not ready any more; still serving");
            tokio::time::sleep(limits.drain_delay).await;
        }
        tracing::info!(timeout = ?limits.drain_timeout, "draining");
        self.handle.stage.send_replace(Stage::Draining);
        // The workers accept the queued connections, and then close their part of the sockets.
        self.handle.open.send_replace(Vec::new());
        let deadline = Instant::now() + limits.drain_timeout;
        while !self.threads.iter().all(JoinHandle::is_finished) && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let quiet = self.threads.iter().all(JoinHandle::is_finished);
        self.stop();
        quiet
    }

    /// Aborts the requests in flight.
    pub(crate) fn stop(&mut self) {
        self.handle.stage.send_replace(Stage::Stopped);
        let deadline = Instant::now() + LAST_MOMENT;
        for thread in self.threads.drain(..) {
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(2));
            }
            match thread.is_finished() {
                // The end of the process ends it.
                false => tracing::error!("a worker does not end; the process ends without it"),
                true if thread.join().is_err() => tracing::error!("a worker ended in a panic"),
                true => {}
            }
        }
        if let Some(fleet) = &self.handle.fleet {
            fleet.leave();
        }
        self.handle.records.wait_for_claims();
        self.handle.background.end(LAST_MOMENT);
        if let Some(log) = &self.handle.snapshot.load().log {
            log.flush(LAST_MOMENT);
        }
        // One that has not taken over has nothing to do once this process ends.
        if let Some(pid) = self.handle.starting.lock().take() {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}
