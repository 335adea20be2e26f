//! Notices that the configuration file has changed, however that is done: written in place, renamed
//! over by an editor, or behind a symbolic link that is swapped, as Kubernetes does it.

use super::reload::Trigger;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;

/// Watches the folders that the file's name leads through, for a file that is replaced is another
/// file. Every event is only a hint: the content decides. The watch lasts as long as what is given.
pub(super) fn watch(file: &Path, triggers: mpsc::Sender<Trigger>) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // A full queue holds a trigger already, and that one will see this change.
        if event.is_ok_and(|event| !event.kind.is_access()) {
            let _ = triggers.try_send(Trigger::File);
        }
    })?;
    for folder in folders(file) {
        watcher.watch(&folder, RecursiveMode::NonRecursive)?;
    }
    Ok(watcher)
}

/// The folder of the file, and that of what it is a link to.
fn folders(file: &Path) -> Vec<PathBuf> {
    let parent = |path: &Path| match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let mut folders = vec![parent(file)];
    if let Ok(target) = file.canonicalize()
        && let Ok(own) = folders[0].canonicalize()
        && parent(&target) != own
    {
        folders.push(parent(&target));
    }
    folders
}
