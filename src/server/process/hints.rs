//! The kernel's events about the configuration file.

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind, RenameMode};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// The kernel's events about the configuration file, summed up.
#[derive(Default)]
pub(in crate::server) struct Hints {
    /// The names on the way to it, in folders that are watched.
    pub(super) names: Mutex<BTreeSet<PathBuf>>,
    /// A writer has the file open.
    pub(super) is_written: AtomicBool,
    /// The last event was the writer's close, or a rename.
    pub(super) is_whole: AtomicBool,
    /// A reload has failed for a reason that passes.
    pub(super) try_again: AtomicBool,
    pub(super) told: Notify,
}

impl Hints {
    /// Returns whether a writer has begun to write the file and not closed it.
    pub(in crate::server) fn is_written(&self) -> bool {
        self.is_written.load(Ordering::Acquire)
    }

    /// Retries the last trigger after a while.
    pub(in crate::server) fn try_again(&self) {
        self.try_again.store(true, Ordering::Release);
    }

    /// Waits until the writer has closed the file, but not longer than `within`.
    pub(in crate::server) async fn closed(&self, within: Duration) {
        let deadline = Instant::now() + within;
        while self.is_written() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Takes an event in.
    pub(super) fn take(&self, event: &notify::Event) {
        let names = self.names.lock();
        if !event.paths.iter().any(|path| names.contains(path)) {
            return;
        }
        match event.kind {
            // The file may be gone; another one in its place causes a notification too.
            EventKind::Modify(ModifyKind::Name(RenameMode::From | RenameMode::Both)) => {}
            EventKind::Access(AccessKind::Close(AccessMode::Write)) | EventKind::Modify(ModifyKind::Name(_)) => {
                self.is_written.store(false, Ordering::Release);
                self.is_whole.store(true, Ordering::Release);
            }
            EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Any) => {
                self.is_written.store(true, Ordering::Release);
                self.is_whole.store(false, Ordering::Release);
            }
            EventKind::Create(_) | EventKind::Remove(_) => {}
            _ => return,
        }
        self.told.notify_one();
    }
}
