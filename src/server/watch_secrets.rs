//! Follows the files that the configuration names: a certificate that was renewed is used, and a secret
//! that was rotated, without anybody asking for it.

use super::reload::Trigger;
use super::run::Handle;
use crate::config::FileStamp;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How often they are looked at.
const EVERY: Duration = Duration::from_secs(1);

/// Looks at the files for as long as the process lives. What has changed must be as it is for two looks
/// in a row, so that a pair of files is read when both are there; what was tried once is not tried again.
pub(super) async fn run(handle: Arc<Handle>) {
    let (mut last, mut tried) = (Vec::new(), Vec::new());
    loop {
        tokio::time::sleep(EVERY).await;
        let loaded = handle.snapshot.load().config.secrets.files.clone();
        if loaded.is_empty() {
            continue;
        }
        // Whoever keeps files elsewhere may keep us waiting.
        let Ok((loaded, now)) = tokio::task::spawn_blocking(move || look(loaded)).await else { continue };
        let has_changed = loaded.iter().map(|(_, stamp)| stamp).ne(&now);
        if has_changed && now == last && now != tried {
            tracing::info!("a file that the configuration names has changed");
            tried.clone_from(&now);
            // A full queue holds a trigger already; the next look finds out whether it was enough.
            if handle.triggers.try_send(Trigger::Secrets).is_err() {
                tried.clear();
            }
        }
        last = now;
    }
}

type Files = Vec<(PathBuf, FileStamp)>;

fn look(files: Files) -> (Files, Vec<FileStamp>) {
    let now = files.iter().map(|(path, _)| FileStamp::of(path)).collect();
    (files, now)
}
