//! The open listening sockets, by address: bound once, handed to every worker, and closed only when no configuration
//! names the address any more.

use super::socket_set::{Beside, SocketSet};
use crate::config::Listener;
use socket2::SockRef;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Weak};

/// One open listener.
#[derive(Clone)]
pub(in crate::server) struct Open {
    pub(in crate::server) name: Arc<str>,
    /// As in the file; with port 0 the bound one differs.
    pub(in crate::server) configured: SocketAddr,
    pub(in crate::server) bound: SocketAddr,
    /// It was bound for IPv6 alone, beside another listener for IPv4.
    pub(in crate::server) was_narrowed: bool,
    /// A socket a worker, where this process has bound them.
    sockets: Arc<Vec<TcpListener>>,
}

impl Open {
    /// Returns the listener for sockets that another process has opened; the configuration has its name.
    pub(in crate::server) fn of(configured: SocketAddr, sockets: Vec<TcpListener>) -> io::Result<Open> {
        let first = sockets.first().ok_or(io::ErrorKind::InvalidInput)?;
        let bound = first.local_addr()?;
        Ok(Open { name: "".into(), configured, bound, was_narrowed: false, sockets: Arc::new(sockets) })
    }

    pub(in crate::server) fn sockets(&self) -> &[TcpListener] {
        &self.sockets
    }

    /// Returns the sockets of a worker: one member of the set; several, where the set is larger; a shared one, where it
    /// is smaller.
    pub(in crate::server) fn sockets_of(&self, worker: usize, workers: usize) -> Vec<io::Result<TcpListener>> {
        share(self.sockets.len(), worker, workers).map(|index| self.sockets[index].try_clone()).collect()
    }

    /// Returns the count of the users of its sockets.
    pub(in crate::server) fn uses(&self) -> Uses {
        Uses(Arc::downgrade(&self.sockets))
    }

    /// Returns whether it does not accept IPv4.
    fn is_v6_only(&self) -> bool {
        self.sockets.first().is_some_and(|socket| SockRef::from(socket).only_v6().unwrap_or(false))
    }

    /// Returns whether another listener has the same set of sockets.
    pub(in crate::server) fn is(&self, other: &Open) -> bool {
        Arc::ptr_eq(&self.sockets, &other.sockets)
    }
}

/// The uses of a set of sockets: the configuration in force, and each worker that accepts from it.
pub(in crate::server) struct Uses(Weak<Vec<TcpListener>>);

impl Uses {
    /// Returns whether one of these listeners has the sockets.
    pub(in crate::server) fn are_in_force(&self, listeners: &[Open]) -> bool {
        listeners.iter().any(|open| Weak::ptr_eq(&self.0, &Arc::downgrade(&open.sockets)))
    }

    /// Returns whether other threads still use the sockets.
    pub(in crate::server) fn are_left(&self) -> bool {
        self.0.strong_count() > 0
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

/// Returns the listeners of a new configuration: open addresses keep their sockets, the others are bound. On an error
/// nothing has changed.
pub(in crate::server) fn diff(now: &[Open], wanted: &[Listener], workers: usize) -> Result<Vec<Open>, BindError> {
    let mut unclaimed: Vec<&Open> = now.iter().collect();
    // `[::]:80` accepts IPv4 too, unless there is `0.0.0.0:80`.
    let takes_v4 = |port| {
        let addresses = wanted.iter().map(|listener| listener.address.value);
        addresses.filter(|address| address.port() == port).any(|address| address.ip() == Ipv4Addr::UNSPECIFIED)
    };
    let mut next = Vec::with_capacity(wanted.len());
    for listener in wanted {
        let (name, configured) = (listener.name.as_str(), listener.address.value);
        let is_all_v6 = configured.ip() == Ipv6Addr::UNSPECIFIED && configured.port() != 0;
        let is_v6_only = is_all_v6 && takes_v4(configured.port());
        let is_kept = |open: &&Open| {
            let fits = if is_v6_only { open.is_v6_only() } else { !open.was_narrowed };
            open.configured == configured && fits
        };
        let kept = unclaimed.iter().position(is_kept);
        next.push(match kept.map(|index| unclaimed.remove(index)) {
            Some(open) => Open { name: name.into(), ..open.clone() },
            None => {
                let is_any = |address: SocketAddr| address.ip().is_unspecified();
                let overlap = |bound: SocketAddr| {
                    bound.port() == configured.port()
                        && (bound.ip() == configured.ip() || is_any(bound) || is_any(configured))
                };
                let has_own = configured.port() != 0 && now.iter().chain(&next).any(|open: &Open| overlap(open.bound));
                let beside = Beside { has_own, is_v6_only };
                let set = SocketSet::bind(configured, workers, beside).map_err(|cause| BindError {
                    name: name.to_owned(),
                    address: configured,
                    cause,
                })?;
                let sockets = Arc::new(set.sockets);
                Open { name: name.into(), configured, bound: set.address, was_narrowed: is_v6_only, sockets }
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
