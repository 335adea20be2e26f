//! Starting a proxy, and ending it: workers first, then the admin listener; on the way out the
//! other way round.

use super::listen::SocketSet;
use super::nofile;
use super::status::mirror_pools;
use super::worker::{self, Shared, Socket, Stage};
use crate::admin;
use crate::config::{Config, LogFormat};
use crate::control::Control;
use crate::proxy::Snapshot;
use crate::telemetry::access_log::{Format, Sink};
use crate::telemetry::metrics::Metrics;
use crate::upstream::{Registry, Unresolved};
use arc_swap::ArcSwap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, watch};

/// Why a proxy does not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Unresolved(#[from] Unresolved),
    #[error("cannot listen on {address} ({name}): {cause}")]
    Bind { name: String, address: SocketAddr, cause: io::Error },
    #[error("cannot open the access log `{path}`: {cause}")]
    AccessLog { path: String, cause: io::Error },
    #[error("cannot start a worker: {0}")]
    Thread(io::Error),
}

/// The handle on a running proxy.
pub(super) struct Handle {
    pub(super) snapshot: Arc<ArcSwap<Snapshot>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) stage: watch::Sender<Stage>,
    pub(super) started: Instant,
    pub(super) workers: usize,
    pub(super) listeners: Vec<(String, SocketAddr)>,
    pub(super) connections: Arc<Semaphore>,
}

/// A proxy that serves.
pub(crate) struct Running {
    handle: Arc<Handle>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Where the admin listener is.
    pub(crate) admin: SocketAddr,
}

/// Binds everything and starts to serve. Must be called inside a tokio runtime, which then carries
/// the admin listeners.
pub(crate) async fn start(config: Config) -> Result<Running, StartError> {
    let settings = config.settings.clone();
    let metrics = Arc::new(Metrics::new());
    let registry = Registry::new(Arc::clone(&metrics));
    let workers = match settings.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        given => given as usize,
    };
    nofile::raise(settings.limits.connections);

    let token = config.admin_token.clone();
    let log = open_log(&config, &metrics)?;
    let snapshot = Arc::new(ArcSwap::from_pointee(Snapshot::build(config, &registry, &metrics)?));
    mirror_pools(&metrics, &snapshot);
    let mut sets = Vec::new();
    for listener in &settings.listeners {
        let address = listener.address.value;
        let name = listener.name.value.clone();
        let set = SocketSet::bind(address, workers).map_err(|cause| StartError::Bind {
            name: name.clone(),
            address,
            cause,
        })?;
        sets.push((name, set));
    }

    let (stage, _) = watch::channel(Stage::Serving);
    let shared = Arc::new(Shared {
        snapshot: Arc::clone(&snapshot),
        metrics: Arc::clone(&metrics),
        log,
        connections: Arc::new(Semaphore::new(settings.limits.connections as usize)),
        draining: Arc::default(),
    });
    let handle = Arc::new(Handle {
        snapshot,
        metrics,
        stage,
        started: Instant::now(),
        workers,
        listeners: sets.iter().map(|(name, set)| (name.clone(), set.address)).collect(),
        connections: Arc::clone(&shared.connections),
    });

    let access = admin::Access { token, allowed_hosts: settings.admin.allowed_hosts.clone() };
    let bind_admin = |name: &str, address: SocketAddr| {
        let name = name.to_owned();
        async move { admin::bind(address).await.map_err(|cause| StartError::Bind { name, address, cause }) }
    };
    let (admin_listener, admin_address) = bind_admin("admin", settings.admin.address.value).await?;
    let metrics_listener = match &settings.metrics {
        Some(metrics) => Some(bind_admin("metrics", metrics.address.value).await?),
        None => None,
    };
    let control: Arc<dyn Control> = Arc::clone(&handle) as Arc<dyn Control>;
    tokio::spawn(admin::serve(admin_listener, Arc::clone(&control), admin::Reach::Everything(access)));
    if let Some((listener, address)) = metrics_listener {
        tracing::info!(%address, "metrics and probes");
        tokio::spawn(admin::serve(listener, control, admin::Reach::ReadOnly));
    }

    let threads = start_workers(&handle, &shared, sets).map_err(StartError::Thread)?;
    Ok(Running { handle, shared, threads, admin: admin_address })
}

fn open_log(config: &Config, metrics: &Metrics) -> Result<Option<Arc<Sink>>, StartError> {
    let settings = &config.settings.access_log;
    let format = match settings.format {
        LogFormat::Off => return Ok(None),
        LogFormat::Json => Format::Json,
        LogFormat::Common => Format::Common,
    };
    let path = match settings.path.as_str() {
        standard @ ("stdout" | "stderr") => standard.into(),
        file => config.path(file),
    };
    let sink = Sink::open(format, &path, metrics.access_log_dropped.clone());
    sink.map(|sink| Some(Arc::new(sink)))
        .map_err(|cause| StartError::AccessLog { path: path.display().to_string(), cause })
}

fn start_workers(
    handle: &Handle,
    shared: &Arc<Shared>,
    sets: Vec<(String, SocketSet)>,
) -> io::Result<Vec<JoinHandle<()>>> {
    let mut portions: Vec<Vec<Socket>> = (0..handle.workers).map(|_| Vec::new()).collect();
    for (name, set) in sets {
        let name: Arc<str> = name.into();
        for (portion, listener) in portions.iter_mut().zip(set.sockets) {
            portion.push(Socket { name: Arc::clone(&name), listener });
        }
    }
    let spawn = |(number, sockets): (usize, Vec<Socket>)| {
        let (shared, stage) = (Arc::clone(shared), handle.stage.subscribe());
        std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || worker::run(&shared, sockets, stage))
    };
    portions.into_iter().enumerate().map(spawn).collect()
}

impl Running {
    /// The addresses that clients connect to, by the listeners' names.
    pub(crate) fn listeners(&self) -> &[(String, SocketAddr)] {
        &self.handle.listeners
    }

    pub(crate) fn workers(&self) -> usize {
        self.handle.workers
    }

    /// Stops taking requests, lets those in flight end, and returns when all is quiet or
    /// `drain_timeout` is over. Gives whether everything had ended by then.
    pub(crate) async fn drain(mut self) -> bool {
        let limits = self.handle.snapshot.load().config.settings.limits.clone();
        self.handle.stage.send_replace(Stage::Leaving);
        if !limits.drain_delay.is_zero() {
            tracing::info!(delay = ?limits.drain_delay, "not ready any more; still serving");
            tokio::time::sleep(limits.drain_delay).await;
        }
        tracing::info!(timeout = ?limits.drain_timeout, "draining");
        self.shared.set_draining();
        self.handle.stage.send_replace(Stage::Draining);
        let deadline = Instant::now() + limits.drain_timeout;
        while !self.threads.iter().all(JoinHandle::is_finished) && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let quiet = self.threads.iter().all(JoinHandle::is_finished);
        self.stop();
        quiet
    }

    /// Drops what is in flight.
    pub(crate) fn stop(&mut self) {
        self.handle.stage.send_replace(Stage::Stopped);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a worker ended in a panic");
            }
        }
    }
}
