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
    /// A socket a worker, where this process has bound them.
    sockets: Arc<Vec<TcpListener>>,
}

impl Open {
    /// Sockets of an address that were opened by somebody else; its name is the configuration's to say.
    pub(super) fn of(configured: SocketAddr, sockets: Vec<TcpListener>) -> io::Result<Open> {
        let first = sockets.first().ok_or(io::ErrorKind::InvalidInput)?;
        let bound = first.local_addr()?;
        Ok(Open { name: "".into(), configured, bound, sockets: Arc::new(sockets) })
    }

    pub(super) fn sockets(&self) -> &[TcpListener] {
        &self.sockets
    }

    /// What one of so many workers accepts from: its own member of the set; several, where the set is larger; one
    /// together with others, where it is smaller.
    pub(super) fn sockets_of(&self, worker: usize, workers: usize) -> Vec<io::Result<TcpListener>> {
        share(self.sockets.len(), worker, workers).map(|index| self.sockets[index].try_clone()).collect()
    }

    /// Whether another one is the same set of sockets.
    pub(super) fn is(&self, other: &Open) -> bool {
        Arc::ptr_eq(&self.sockets, &other.sockets)
    }
}

/// Which of the sockets of a set one of several workers accepts from.
fn share(sockets: usize, worker: usize, workers: usize) -> impl Iterator<Item = usize> {
    (worker % sockets..sockets).step_by(workers)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_socket_is_left_alone_and_no_worker_without_one() {
        for (sockets, workers) in [(1, 1), (4, 4), (1, 4), (3, 4), (4, 3), (8, 2), (5, 2)] {
            let shares: Vec<Vec<usize>> =
                (0..workers).map(|worker| share(sockets, worker, workers).collect()).collect();
            assert!((0..sockets).all(|socket| shares.iter().flatten().any(|&index| index == socket)), "{shares:?}");
            assert!(shares.iter().all(|share| !share.is_empty()), "{shares:?}");
            let all = shares.iter().map(Vec::len).sum::<usize>();
            assert_eq!(all, sockets.max(workers), "{shares:?}");
        }
    }
}
