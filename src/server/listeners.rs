//! The listening sockets in force, by address: bound once, handed to every worker, and let go of
//! only when the configuration no longer names the address.

use super::listen::SocketSet;
use crate::config::Listener;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

/// One listener as the workers see it.
#[derive(Clone)]
pub(super) struct Open {
    pub(super) name: Arc<str>,
    /// As the file has it; what was bound may have another port where that is 0.
    pub(super) configured: SocketAddr,
    pub(super) bound: SocketAddr,
    /// A socket a worker.
    sockets: Arc<Vec<TcpListener>>,
}

impl Open {
    /// A worker's own member of the set.
    pub(super) fn socket(&self, worker: usize) -> io::Result<TcpListener> {
        self.sockets[worker].try_clone()
    }

    /// Whether another one is the same set of sockets.
    pub(super) fn is(&self, other: &Open) -> bool {
        Arc::ptr_eq(&self.sockets, &other.sockets)
    }
}

/// An address that cannot be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} ({name}): {cause}")]
pub(crate) struct BindError {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    pub(crate) cause: io::Error,
}

/// The listeners of a new configuration: those whose address is open already keep their sockets,
/// the others are bound. Where one cannot be, nothing has changed.
pub(super) fn diff(now: &[Open], wanted: &[Listener], workers: usize) -> Result<Vec<Open>, BindError> {
    let mut unclaimed: Vec<&Open> = now.iter().collect();
    let mut next = Vec::with_capacity(wanted.len());
    for listener in wanted {
        let (name, configured) = (listener.name.as_str(), listener.address.value);
        let kept = unclaimed.iter().position(|open| open.configured == configured);
        next.push(match kept.map(|index| unclaimed.remove(index)) {
            Some(open) => Open { name: name.into(), ..open.clone() },
            None => {
                let set = SocketSet::bind(configured, workers).map_err(|cause| BindError {
                    name: name.to_owned(),
                    address: configured,
                    cause,
                })?;
                Open { name: name.into(), configured, bound: set.address, sockets: Arc::new(set.sockets) }
            }
        });
    }
    Ok(next)
}
