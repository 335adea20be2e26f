//! The limit of open files, which bounds connections before `limits.connections` does.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Raises the soft limit to the hard one and warns where even that is too low: a connection may
/// need a second one to a node.
pub(super) fn raise(connections: u32) {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!(%error, "cannot raise the limit of open files");
            limit = getrlimit(Resource::Nofile);
        }
    }
    let wanted = 2 * u64::from(connections) + 100;
    if let Some(files) = limit.current
        && files < wanted
    {
        tracing::warn!(
            open_files = files,
            connections,
            "`limits.connections` may need {wanted} open files; raise the limit (`ulimit -n`, LimitNOFILE=) or lower the setting"
        );
    }
}
