//! The processes that are alive: each holds a lock on a file of its own while it runs, however it ends, and increments
//! its heartbeat in the store.

use crate::idempotency::record::Holder;
use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The processes that share a store, as one of them sees them.
pub(super) struct Holders {
    folder: PathBuf,
    pub(super) own: Holder,
    /// Locked until this process ends.
    _lock: File,
    /// The last heartbeat of the others, and the time since when they have been silent.
    beats: HashMap<Holder, (u64, Instant)>,
}

impl Holders {
    /// Registers this process, with a number that no other process has.
    pub(super) fn enter(store: &Path, own: Holder) -> io::Result<Holders> {
        let mut folder = store.as_os_str().to_owned();
        folder.push("-holders");
        let folder = PathBuf::from(folder);
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let lock = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file_of(&folder, own))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::Error(error) => error,
            TryLockError::WouldBlock => io::ErrorKind::WouldBlock.into(),
        })?;
        Ok(Holders { folder, own, _lock: lock, beats: HashMap::new() })
    }

    /// Returns the time for which another process has been silent whose heartbeat is `beat`; `None` where it is dead.
    /// An idle process may be silent: its silence counts from the time at which it has claims.
    pub(super) fn silence(&mut self, holder: Holder, beat: u64, is_idle: bool) -> Option<Duration> {
        if holder == self.own {
            return Some(Duration::ZERO);
        }
        if self.is_unlocked(holder) {
            self.beats.remove(&holder);
            return None;
        }
        let now = Instant::now();
        let (seen, since) = self.beats.entry(holder).or_insert((beat, now));
        if *seen != beat || is_idle {
            (*seen, *since) = (beat, now);
        }
        Some(now.duration_since(*since))
    }

    fn is_unlocked(&self, holder: Holder) -> bool {
        let path = file_of(&self.folder, holder);
        let unlocked = match OpenOptions::new().write(true).open(&path) {
            Ok(file) => file.try_lock().is_ok(),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        if unlocked {
            // Another process may have removed it already.
            let _ = fs::remove_file(&path);
        }
        unlocked
    }
}

impl Drop for Holders {
    fn drop(&mut self) {
        // No other process needs the file; one that looks for it takes its absence for the death of this process.
        let _ = fs::remove_file(file_of(&self.folder, self.own));
    }
}

/// Returns whether a process has the store open.
pub(super) fn is_in_use(store: &Path) -> bool {
    let mut folder = store.as_os_str().to_owned();
    folder.push("-holders");
    let locks = fs::read_dir(folder).into_iter().flatten().flatten();
    locks.into_iter().any(|lock| {
        let opened = OpenOptions::new().write(true).open(lock.path());
        opened.is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
    })
}

fn file_of(folder: &Path, holder: Holder) -> PathBuf {
    folder.join(format!("{holder:016x}.lock"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_is_gone_is_a_process_that_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("s.db");
        let mut mine = Holders::enter(&store, 1).unwrap();
        let other = Holders::enter(&store, 2).unwrap();
        let pause = Duration::from_millis(20);
        assert_eq!(mine.silence(1, 0, false), Some(Duration::ZERO));
        assert_eq!(mine.silence(2, 0, false), Some(Duration::ZERO));
        std::thread::sleep(pause);
        assert!(mine.silence(2, 0, false).unwrap() >= pause);
        assert_eq!(mine.silence(2, 1, false), Some(Duration::ZERO), "its heart beats again");
        std::thread::sleep(pause);
        assert_eq!(mine.silence(2, 1, true), Some(Duration::ZERO), "it has nothing to do");
        assert_eq!(mine.silence(3, 0, false), None, "nobody has seen it");
        drop(other);
        assert_eq!(mine.silence(2, 1, false), None);
    }
}
