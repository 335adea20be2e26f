//! Reload of the configuration: parse, validate, build, one swap.
//!
//! Everything that can fail happens before the swap, on a thread of its own; the swap changes one pointer. State that
//! outlives a configuration (load and state of nodes, kept connections, listening sockets, the access log) is kept
//! beside it and found by name.

use super::fleet::{FleetMember, quorum_rules};
use super::handle::{Handle, Trigger};
use super::log::open_log;
use super::store::StoreUnavailable;
use super::systemd;
use crate::clock;
use crate::config::{Config, FileStamp, Report, Settings, changes};
use crate::control::Event;
use crate::idempotency::Records;
use crate::proxy::{Parts, Snapshot};
use crate::server::listener::open::{self, BindError, Open};
use crate::server::worker::Stage;
use crate::telemetry::access_log::Sink;
use crate::upstream::BadPool;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Triggers that come this close together are one reload.
const QUIET: Duration = Duration::from_millis(50);
/// The longest wait of a forced reload for the file's writer.
const WRITER: Duration = Duration::from_secs(5);
/// The time for which the file must stay as it was read.
const STEADY: Duration = Duration::from_millis(20);
/// The longest time for reading the files.
const READING: Duration = Duration::from_secs(5);
/// The longest time for which further triggers delay a reload.
const PATIENCE: Duration = Duration::from_millis(500);

/// Why a new configuration does not come into force.
#[derive(Debug, thiserror::Error)]
enum ReloadError {
    #[error("{}", .0.first_error().unwrap_or_default())]
    Invalid(Report),
    #[error(transparent)]
    Pool(#[from] BadPool),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("{0}")]
    AccessLog(String),
    #[error(transparent)]
    Store(#[from] StoreUnavailable),
    #[error("the name server tells of no node for the pool `{0}`, which has some")]
    NoNodes(String),
    #[error("the file, or one that it names, takes longer than {READING:?} to be read")]
    Slow,
    #[error("somebody writes the file and has not closed it for {WRITER:?}")]
    Written,
    #[error("the reload ended in a panic")]
    Panic,
}

/// Reloads for as long as a sender of requests to reload is left.
pub(super) async fn run(handle: Arc<Handle>, mut triggers: mpsc::Receiver<Trigger>) {
    loop {
        let first = tokio::select! {
            trigger = triggers.recv() => trigger,
            () = handle.discovered.changed() => {
                adopt_found_nodes(&handle).await;
                continue;
            }
        };
        let Some(first) = first else { return };
        let batch = batch(first, &mut triggers).await;
        if *handle.stage.borrow() >= Stage::Draining {
            // Nothing is opened any more; the requesters see that the channel is closed.
            continue;
        }
        if batch.iter().any(|trigger| matches!(trigger, Trigger::Signal)) {
            // Reopened regardless of the result of the reload, as log rotation waits for it.
            if let Some(log) = &handle.snapshot.load().log {
                log.reopen();
            }
        }
        let is_forced = batch.iter().any(|trigger| !matches!(trigger, Trigger::File));
        let file = handle.snapshot.load().config.file.clone();
        if is_forced {
            // A forced reload is meant for the content that is being written.
            handle.hints.closed(WRITER).await;
        }
        let (read, is_steady) = match handle.hints.is_written() {
            // The content that was read last is complete.
            true if is_forced => (handle.content().map(Ok), true),
            _ => handle.read(&file).await,
        };
        if !is_forced && (handle.hints.is_written() || !is_steady || !handle.is_changed(&read)) {
            continue;
        }
        systemd::reloading();
        let is_asked = batch.iter().any(|trigger| matches!(trigger, Trigger::AdminApi(_)));
        // Without earlier content there is only the one that is being written.
        let parsed = match handle.hints.is_written() && (is_asked || read.is_none()) {
            true => Err(ReloadError::Written),
            false => handle.parse(file, read).await,
        };
        let result = match parsed {
            Err(error) => Err(error),
            Ok((config, report)) => {
                let worker = Arc::clone(&handle);
                // A pool of a thousand nodes takes a while to build, and a name to resolve.
                let result = tokio::task::spawn_blocking(move || reload(&worker, config, &report)).await;
                result.unwrap_or(Err(ReloadError::Panic))
            }
        };
        if result.is_err() {
            handle.retain_series();
            // Stops the lookups of names that are no longer needed.
            handle.discovered.follow(handle.snapshot.load().config.discoveries());
        }
        let told = handle.remember(result);
        systemd::ready(told.as_ref().map_or_else(String::as_str, String::as_str));
        for trigger in batch {
            if let Trigger::AdminApi(answer) = trigger {
                // The requester may be gone.
                let _ = answer.send(told.clone());
            }
        }
    }
}

/// Applies the nodes that name servers have returned.
async fn adopt_found_nodes(handle: &Arc<Handle>) {
    let own = Arc::clone(handle);
    // No request waits for it, but a large ring takes its time.
    match tokio::task::spawn_blocking(move || rebuild(&own)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            handle.retain_series();
            tracing::error!(%error, "the nodes that were found are not in force; the last ones stay");
        }
        Err(_) => tracing::error!("a change of nodes ended in a panic"),
    }
}

/// Returns a trigger with those that follow closely: one reload is for all of them.
async fn batch(first: Trigger, triggers: &mut mpsc::Receiver<Trigger>) -> Vec<Trigger> {
    let mut batch = vec![first];
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while tokio::time::Instant::now() < deadline {
        match tokio::time::timeout(QUIET, triggers.recv()).await {
            Ok(Some(trigger)) => batch.push(trigger),
            Ok(None) | Err(_) => break,
        }
    }
    batch
}

/// A configuration that has come into force.
struct Reloaded {
    /// The parts that differ from the configuration before, in words.
    changes: Vec<String>,
    /// The settings whose change a running process cannot follow.
    needs_restart: Vec<&'static str>,
}

impl fmt::Display for Reloaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.changes.is_empty() {
            true => f.write_str("reloaded; nothing has changed")?,
            false => write!(f, "reloaded; {}", self.changes.join("; "))?,
        }
        match self.needs_restart.is_empty() {
            true => Ok(()),
            false => write!(f, "; a restart is needed for {}", self.needs_restart.join(", ")),
        }
    }
}

fn reload(handle: &Handle, config: Config, report: &Report) -> Result<Reloaded, ReloadError> {
    if report.warnings() > 0 {
        tracing::warn!("{report}");
    }
    let old = handle.snapshot.load_full();
    let mut needs_restart = needs_restart(&old.config.settings, &config.settings);
    let log = match old.config.settings.access_log == config.settings.access_log {
        true => old.log.clone(),
        false => open_log(&config, &handle.metrics).map_err(|error| ReloadError::AccessLog(error.to_string()))?,
    };
    let now: Vec<Open> = handle.open.borrow().clone();
    let records = handle.records.open_for(&config, &handle.metrics, &handle.events)?;
    if handle.records.is_another(&config) {
        needs_restart.push("idempotency_store");
    }
    let former = old.config.settings.fleet.as_ref().and_then(|fleet| fleet.redis.as_ref()?.former.clone());
    needs_restart.extend(FleetMember::needs_restart(handle.fleet.as_ref(), &former, &config));
    tokio::runtime::Handle::current().block_on(handle.discovered.prepare(config.discoveries()));
    if let Some(pool) = emptied(handle, &config, &old) {
        return Err(ReloadError::NoNodes(pool));
    }
    let changes = changes(&old.config, &config);
    let snapshot = handle.build(config, log, records.as_ref(), &old, false)?;
    let next = open::diff(&now, &snapshot.config.settings.listeners, handle.workers)?;

    // Nothing fails from here on.
    handle.records.adopt(records, &handle.events, &handle.background);
    handle.records.reconfigure(&snapshot.config);
    if let Some(fleet) = &handle.fleet {
        fleet.reconfigure(&snapshot.config, &handle.metrics);
    }
    handle.adopt(snapshot);
    for gone in now.iter().filter(|open| !next.iter().any(|other| other.is(open))) {
        tracing::info!(listener = &*gone.name, address = %gone.bound, "not listening any more");
    }
    for new in next.iter().filter(|open| !now.iter().any(|other| other.is(open))) {
        tracing::info!(listener = &*new.name, address = %new.bound, "listening");
    }
    handle.open.send_replace(next);
    Ok(Reloaded { changes, needs_restart })
}

/// Returns the pool that would lose all its nodes because its name server returns none.
fn emptied(handle: &Handle, config: &Config, old: &Snapshot) -> Option<String> {
    let is_empty = |pool: &crate::config::Pool| {
        let found = pool.discovery.as_ref().map(|wanted| handle.discovered.nodes(wanted));
        pool.listed().is_empty() && found.is_some_and(|found| found.is_empty())
    };
    let had_nodes = |name: &str| old.pools.iter().any(|pool| *pool.name == *name && !pool.nodes.is_empty());
    let mut pools = config.settings.pools.iter();
    pools.find(|(name, pool)| is_empty(pool) && had_nodes(name)).map(|(name, _)| name.value.clone())
}

/// Rebuilds the same configuration with the nodes that name servers return now.
fn rebuild(handle: &Handle) -> Result<(), BadPool> {
    let old = handle.snapshot.load_full();
    handle.adopt(handle.build(old.config.clone(), old.log.clone(), handle.records.get(), &old, true)?);
    Ok(())
}

/// Settings whose change a running process cannot follow.
pub(in crate::server) fn needs_restart(old: &Settings, new: &Settings) -> Vec<&'static str> {
    let metrics = |settings: &Settings| settings.metrics.as_ref().map(|metrics| metrics.address.value);
    let mut names = Vec::new();
    if old.workers != new.workers {
        names.push("workers");
    }
    if old.admin.address.value != new.admin.address.value {
        names.push("admin.address");
    }
    if old.cache.memory != new.cache.memory {
        names.push("cache.memory");
    }
    if metrics(old) != metrics(new) {
        names.push("metrics.address");
    }
    if old.process_log != new.process_log {
        names.push("process_log");
    }
    names
}

/// Set while files are read.
struct Reading(Arc<AtomicBool>);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Handle {
    fn build(
        &self,
        config: Config,
        log: Option<Arc<Sink>>,
        records: Option<&Arc<Records>>,
        earlier: &Snapshot,
        is_same: bool,
    ) -> Result<Snapshot, BadPool> {
        let (registry, metrics, discovered) = (&self.registry, &*self.metrics, &*self.discovered);
        let (quorum, earlier) = (quorum_rules(&config), Some(earlier));
        Snapshot::build(config, Parts { registry, metrics, discovered, log, records, quorum, earlier, is_same })
    }

    /// Records the result of a reload; returns the reply to its requester.
    fn remember(&self, result: Result<Reloaded, ReloadError>) -> Result<String, String> {
        let mut last = self.last_reload.lock();
        last.at = clock::wall();
        last.count += 1;
        let refused = match &result {
            Err(ReloadError::Invalid(report)) => Some(report.files().to_vec()),
            Ok(_) => Some(Vec::new()),
            Err(_) => None,
        };
        if let Some(refused) = refused {
            *self.refused.lock() = refused;
        }
        if matches!(result, Err(ReloadError::Slow | ReloadError::NoNodes(_))) {
            // Neither says anything about the content of the file.
            self.note(None);
            self.hints.try_again();
        }
        match result {
            Ok(reloaded) => {
                self.metrics.config_reloads.with_label_values(&["success"]).inc();
                last.error = None;
                let said = reloaded.to_string();
                tracing::info!("{said}");
                self.reloaded(None, &reloaded.needs_restart);
                last.needs_restart = reloaded.needs_restart;
                Ok(said)
            }
            Err(error) => {
                self.metrics.config_reloads.with_label_values(&["failure"]).inc();
                last.failures += 1;
                let said = error.to_string();
                match &error {
                    ReloadError::Invalid(report) => {
                        tracing::error!("not reloaded, the old configuration serves on:\n{report}")
                    }
                    _ => tracing::error!("not reloaded, the old configuration serves on: {said}"),
                }
                self.reloaded(Some(&error), &[]);
                last.error = Some(said.clone());
                Err(said)
            }
        }
    }

    /// Records the result of a reload.
    fn reloaded(&self, error: Option<&ReloadError>, needs_restart: &[&str]) {
        let place = match error {
            Some(ReloadError::Invalid(report)) => report.first_place(),
            _ => None,
        };
        let (line, column) = place.and_then(|(_, at)| at).unzip();
        self.events.record(Event::Reload {
            success: error.is_none(),
            error: error.map(ToString::to_string),
            file: place.map(|(file, _)| file.display().to_string()),
            line,
            column,
            needs_restart: needs_restart.iter().map(|name| (*name).to_owned()).collect(),
        });
    }

    /// Runs blocking work on files, on another thread; `None` where it takes too long, or an earlier one still runs.
    pub(super) async fn run_blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        if self.is_reading.swap(true, Ordering::AcqRel) {
            return None;
        }
        let reading = Reading(Arc::clone(&self.is_reading));
        let done = tokio::task::spawn_blocking(move || {
            let _until_it_is_done = reading;
            work()
        });
        tokio::time::timeout(READING, done).await.ok()?.ok()
    }

    /// Runs such work after an earlier one has ended.
    pub(in crate::server) async fn run_after_earlier<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let deadline = Instant::now() + READING;
        while self.is_reading.load(Ordering::Acquire) && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.run_blocking(work).await
    }

    /// Reads the file; `None` where that takes too long. Returns also whether it stayed the same meanwhile.
    async fn read(&self, file: &Path) -> (Option<Result<String, Report>>, bool) {
        let file = file.to_owned();
        let read = self.run_after_earlier(move || {
            let before = FileStamp::of(&file);
            let read = Config::read(&file);
            // There may be a writer without a notification yet.
            std::thread::sleep(STEADY);
            (read, before == FileStamp::of(&file))
        });
        match read.await {
            Some((read, is_steady)) => (Some(read), is_steady),
            None => (None, true),
        }
    }

    /// Returns the content of the file when it was last read.
    fn content(&self) -> Option<String> {
        self.content.lock().clone()
    }

    /// Validates the content, and reads the files that it names.
    async fn parse(
        &self,
        file: PathBuf,
        read: Option<Result<String, Report>>,
    ) -> Result<(Config, Report), ReloadError> {
        let Some(read) = read else { return Err(ReloadError::Slow) };
        // The content is recorded now, as the file may be replaced meanwhile.
        self.note(read.as_deref().ok());
        let text = read.map_err(ReloadError::Invalid)?;
        let parsed = self.run_after_earlier(move || Config::of(&file, &text)).await;
        parsed.ok_or(ReloadError::Slow)?.map_err(ReloadError::Invalid)
    }

    /// Returns whether the content differs from the last one.
    fn is_changed(&self, read: &Option<Result<String, Report>>) -> bool {
        let now = read.as_ref().and_then(|read| read.as_deref().ok());
        self.content.lock().as_deref() != now
    }

    /// Returns the files that a refused configuration names, with their state at that time.
    pub(super) fn refused_files(&self) -> Vec<(PathBuf, FileStamp)> {
        self.refused.lock().clone()
    }

    /// Records the content of the file.
    pub(super) fn note(&self, text: Option<&str>) {
        *self.content.lock() = text.map(str::to_owned);
    }
}
