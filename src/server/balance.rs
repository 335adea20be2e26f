//! The spread of connections over the workers.
//!
//! The kernel gives a connection to one of the workers' sockets by a hash of its addresses: many come out even, but of
//! few long ones all may land on one worker while the others have nothing to do. So a worker that accepts a connection
//! while another one has clearly fewer hands it over. It hands over a few in each tick at most: where very many
//! come, the hash spreads them well enough, and to hand over costs a wake-up.

use super::connection::context::Handshake;
use super::connection::limit::ConnectionPermit;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::mpsc;

/// The connections that a worker hands over in a tick at most.
pub(super) const HANDED_A_TICK: u32 = 8;

/// The open connections of all workers, and the ways to hand one over.
pub(super) struct Balance(Box<[Seat]>);

struct Seat {
    open: AtomicUsize,
    handed: mpsc::UnboundedSender<Handed>,
}

/// A connection that a worker has accepted and not read from.
pub(super) struct Accepted {
    pub(super) listener: Arc<str>,
    /// The listener's handshake, for the worker that serves the connection may find it removed.
    pub(super) handshake: Handshake,
    pub(super) stream: TcpStream,
    pub(super) peer: SocketAddr,
    pub(super) permit: ConnectionPermit,
}

/// A connection that another worker has accepted, and its place here.
pub(super) struct Handed {
    pub(super) accepted: Accepted,
    pub(super) place: Place,
}

/// A connection's place among those of its worker.
pub(super) struct Place {
    balance: Arc<Balance>,
    worker: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.balance.0[self.worker].open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Balance {
    /// Returns the balance of so many workers, and for each worker where it gets connections from the others.
    pub(super) fn new(workers: usize) -> (Arc<Balance>, Vec<mpsc::UnboundedReceiver<Handed>>) {
        let (seats, receivers) = (0..workers)
            .map(|_| {
                let (handed, receiver) = mpsc::unbounded_channel();
                (Seat { open: AtomicUsize::new(0), handed }, receiver)
            })
            .unzip::<_, _, Vec<_>, _>();
        (Arc::new(Balance(seats.into())), receivers)
    }

    /// Takes a place for a connection of a worker.
    pub(super) fn enter(self: &Arc<Balance>, worker: usize) -> Place {
        self.0[worker].open.fetch_add(1, Ordering::Relaxed);
        Place { balance: Arc::clone(self), worker }
    }

    /// Returns the worker that a connection had better go to, where it is another one than its own.
    pub(super) fn better(&self, own: usize) -> Option<usize> {
        lighter(self.0.iter().map(|seat| seat.open.load(Ordering::Relaxed)), own)
    }

    /// Hands a connection over to a worker.
    ///
    /// # Errors
    /// The connection, where the worker has ended.
    pub(super) fn hand_over(self: &Arc<Balance>, worker: usize, accepted: Accepted) -> Result<(), Accepted> {
        let handed = Handed { accepted, place: self.enter(worker) };
        self.0[worker].handed.send(handed).map_err(|back| back.0.accepted)
    }
}

/// Returns the worker with the fewest connections, where it has clearly fewer than one's own: so that one more here
/// would leave them apart by more than one, and by more than a quarter.
fn lighter(open: impl Iterator<Item = usize> + Clone, own: usize) -> Option<usize> {
    let here = open.clone().nth(own)?;
    let (worker, least) = open.enumerate().min_by_key(|&(_, open)| open)?;
    (here > least + least / 4).then_some(worker)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_hands_over_where_another_has_clearly_fewer() {
        for (open, own, better) in [
            (&[0, 0][..], 0, None),
            (&[1, 0], 0, Some(1)),
            (&[1, 0], 1, None),
            (&[1, 1], 0, None),
            (&[5, 4], 0, None),
            (&[6, 4], 0, Some(1)),
            (&[120, 100], 0, None),
            (&[126, 100], 0, Some(1)),
            (&[7, 3, 9, 2], 1, Some(3)),
            (&[7, 2, 9, 2], 1, None),
            (&[3], 0, None),
        ] {
            assert_eq!(lighter(open.iter().copied(), own), better, "{open:?}");
        }
    }
}
