//! Watches the configuration file and the files that it names; a change counts once the file is written completely.
//!
//! Notifications of the kernel (inotify) decide that: once the writer has closed the file, or at once after a rename.
//! Where there are none (another file system, a symbolic link in the middle of the path, a replaced folder), a check
//! every second finds the change, which counts after a second without a further one.

use super::handle::{Handle, Trigger};
use crate::config::FileStamp;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);
/// The interval of checks while a change is not complete.
const SOON: Duration = Duration::from_millis(250);
/// The time without a further change after which a change without notification is complete.
const STEADY: Duration = Duration::from_secs(1);
/// The same for a file that its writer has not closed: the writer may be gone.
const UNCLOSED: Duration = Duration::from_secs(30);
/// The time after which a reload that failed for a passing reason is tried again.
const AGAIN: Duration = Duration::from_secs(10);
/// Links that a name may lead through.
const MAX_LINKS: usize = 40;

/// The state between two looks.
struct Follower {
    handle: Arc<Handle>,
    watcher: Option<RecommendedWatcher>,
    watched: BTreeSet<PathBuf>,
    /// The results of the last check: the configuration file, and those that it names.
    last: Vec<FileStamp>,
    steady_since: Instant,
    /// The stamps for which a reload was requested last, and the time.
    tried: Vec<FileStamp>,
    tried_at: Instant,
}

/// The results of one check.
struct Stamps {
    /// The folders that lead to the file, and the names in them.
    folders: BTreeSet<PathBuf>,
    names: BTreeSet<PathBuf>,
    stamps: Vec<FileStamp>,
    /// The stamps of the named files that are in force, or were refused.
    known: Vec<FileStamp>,
}

/// Watches the files for the life of the process. Must be called inside a tokio runtime.
pub(super) async fn run(handle: Arc<Handle>) {
    let hints = Arc::clone(&handle.hints);
    let told = Arc::clone(&hints);
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if let Ok(event) = event {
            told.take(&event);
        }
    });
    let watcher =
        watcher.inspect_err(|error| tracing::warn!(%error, "changes of files are found by a look every second")).ok();
    let mut follower = Follower {
        handle,
        watcher,
        watched: BTreeSet::new(),
        last: Vec::new(),
        steady_since: Instant::now(),
        tried: Vec::new(),
        tried_at: Instant::now(),
    };
    let mut pause = Duration::ZERO;
    loop {
        // A notification counts at once; all other changes wait for the next check.
        let _ = tokio::time::timeout(pause, hints.told.notified()).await;
        pause = if follower.check().await { SOON } else { EVERY };
    }
}

impl Follower {
    /// Checks once, and requests a reload where a change is complete. Returns whether one is not complete yet.
    async fn check(&mut self) -> bool {
        let config = self.handle.snapshot.load();
        let (file, loaded) = (config.config.file.clone(), config.config.secrets.files.clone());
        drop(config);
        let refused = self.handle.refused_files();
        // Each file once: the stamp of the last refused configuration counts.
        let named: BTreeMap<PathBuf, FileStamp> = loaded.into_iter().chain(refused).collect();
        // A remote file system may block the check.
        let Some(found) = self.handle.run_blocking(move || stamps_of(&file, named)).await else { return false };
        self.watch(found.folders, found.names);
        if found.stamps != self.last {
            self.steady_since = Instant::now();
            self.last.clone_from(&found.stamps);
        }
        let (file, named) =
            found.stamps.split_first().map_or((FileStamp::default(), &[][..]), |(file, named)| (*file, named));
        let hints = &self.handle.hints;
        if self.tried_at.elapsed() >= AGAIN && hints.try_again.swap(false, Ordering::AcqRel) {
            self.tried.clear();
        }
        // A writer that has just closed the file may have changed it before the last check, which waited for the close.
        let is_notified = hints.is_whole.swap(false, Ordering::AcqRel);
        let is_file_new = is_notified || self.tried.first() != Some(&file);
        let are_others_new = named != found.known && self.tried.get(1..) != Some(named);
        if !is_file_new && !are_others_new {
            return false;
        }
        let is_steady = self.steady_since.elapsed() >= STEADY;
        let is_whole = match is_file_new {
            _ if is_notified => true,
            true if hints.is_written() => self.steady_since.elapsed() >= UNCLOSED,
            _ => is_steady,
        };
        if !is_whole {
            return true;
        }
        let trigger = if are_others_new && is_steady { Trigger::Secrets } else { Trigger::File };
        if matches!(trigger, Trigger::Secrets) {
            tracing::info!("a file that the configuration names has changed");
        }
        if is_file_new && self.steady_since.elapsed() >= UNCLOSED {
            hints.is_written.store(false, Ordering::Release);
        }
        // If only the configuration file is complete, the other files still have to be tried.
        let tried = match trigger {
            Trigger::Secrets => found.stamps.clone(),
            _ => std::iter::once(file).chain(self.tried.get(1..).unwrap_or_default().iter().copied()).collect(),
        };
        // A full queue has a trigger already; the next check finds out whether it was enough.
        if self.handle.triggers.try_send(trigger).is_ok() {
            (self.tried, self.tried_at) = (tried, Instant::now());
        }
        are_others_new && !is_steady
    }

    /// Watches the folders on the way to the file, as they are now.
    fn watch(&mut self, folders: BTreeSet<PathBuf>, names: BTreeSet<PathBuf>) {
        *self.handle.hints.names.lock() = names;
        let Some(watcher) = &mut self.watcher else { return };
        for gone in self.watched.difference(&folders) {
            // It may be gone from the disk too.
            let _ = watcher.unwatch(gone);
        }
        // A folder that was replaced has the name of one that is watched no more.
        let watched = folders.iter().filter(|folder| watcher.watch(folder, RecursiveMode::NonRecursive).is_ok());
        self.watched = watched.cloned().collect();
    }
}

fn stamps_of(file: &Path, named: BTreeMap<PathBuf, FileStamp>) -> Stamps {
    let (folders, names) = way_to(file);
    let stamps = std::iter::once(file).chain(named.keys().map(|path| &**path)).map(FileStamp::of).collect();
    Stamps { folders, names, stamps, known: named.into_values().collect() }
}

/// Returns the folders of a path, symbolic link after symbolic link, and the names to watch in each, by their canonical
/// paths as in the kernel's notifications.
fn way_to(file: &Path) -> (BTreeSet<PathBuf>, BTreeSet<PathBuf>) {
    let (mut folders, mut names) = (BTreeSet::new(), BTreeSet::new());
    let mut add = |folder: &Path, name: &std::ffi::OsStr| {
        if let Ok(folder) = folder.canonicalize() {
            names.insert(folder.join(name));
            folders.insert(folder);
        }
    };
    let mut rest = vec![std::path::absolute(file).unwrap_or_else(|_| file.to_owned())];
    let mut links = 0;
    while let Some(path) = rest.pop() {
        let mut way = PathBuf::new();
        for part in path.components() {
            let folder = way.clone();
            way.push(part);
            let Ok(target) = std::fs::read_link(&way) else { continue };
            add(&folder, part.as_os_str());
            links += 1;
            if links <= MAX_LINKS {
                rest.push(folder.join(target));
            }
        }
        if let (Some(folder), Some(name)) = (path.parent(), path.file_name()) {
            add(folder, name);
        }
    }
    (folders, names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn every_link_on_the_way_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().canonicalize().unwrap();
        let at = |name: &str| base.join(name);
        for name in ["data1", "deep"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        std::fs::write(at("data1/ringway.yaml"), "").unwrap();
        symlink("data1", at("data")).unwrap();
        symlink("../data/ringway.yaml", at("deep/link")).unwrap();
        symlink("deep/link", at("ringway.yaml")).unwrap();
        let (folders, names) = way_to(&at("ringway.yaml"));
        for name in ["ringway.yaml", "deep/link", "data", "data1/ringway.yaml"] {
            assert!(names.contains(&at(name)), "{name}: {names:?}");
        }
        assert!(folders.contains(&base) && folders.contains(&at("deep")), "{folders:?}");
        // With a relative path too.
        let (_, relative) = way_to(Path::new("Cargo.toml"));
        assert!(relative.iter().all(|name| name.is_absolute()), "{relative:?}");
        // A circle ends.
        symlink("b", at("a")).unwrap();
        symlink("a", at("b")).unwrap();
        way_to(&at("a"));
    }
}
