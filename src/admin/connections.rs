//! The connections of an admin listener. There is always room for another one: where there are many, the one goes whose
//! client has been waited for longest.

use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// Connections at a time; administrators and scrapers are few.
const MAX_CONNECTIONS: usize = 256;
/// Connections at a time that read a stream of events.
const MAX_READERS: usize = 32;

/// The connections of one listener; those first whose clients have been waited for longest.
#[derive(Default)]
pub(super) struct AdminConnections {
    all: Mutex<VecDeque<Arc<State>>>,
    readers: Readers,
}

/// The permits of connections that read a stream.
struct Readers(Arc<Semaphore>);

impl Default for Readers {
    fn default() -> Readers {
        Readers(Arc::new(Semaphore::new(MAX_READERS)))
    }
}

/// The state of one connection.
#[derive(Default)]
pub(super) struct State {
    /// The proxy works on its request: its client is not waited for.
    is_working: AtomicBool,
    /// It reads a stream.
    is_reading: Arc<AtomicBool>,
    /// Notified when the connection must close.
    leave: Arc<Notify>,
}

/// One connection of the listener; dropped at its end.
pub(super) struct AdminConnection {
    connections: Arc<AdminConnections>,
    state: Arc<State>,
}

impl AdminConnections {
    /// Returns the entry of a new connection. Above the limit another one is closed.
    pub(super) fn take(connections: &Arc<AdminConnections>) -> AdminConnection {
        let state: Arc<State> = Arc::default();
        let mut all = connections.all.lock();
        if all.len() >= MAX_CONNECTIONS {
            let waits = |state: &Arc<State>| !state.is_working.load(Ordering::Relaxed);
            if let Some(gone) = all.iter().position(waits).and_then(|at| all.remove(at)) {
                gone.leave.notify_one();
            }
        }
        all.push_back(Arc::clone(&state));
        drop(all);
        AdminConnection { connections: Arc::clone(connections), state }
    }
}

impl AdminConnection {
    /// Keeps the connection while the proxy works on its request.
    pub(super) async fn working<T>(&self, work: impl Future<Output = T>) -> T {
        self.state.is_working.store(true, Ordering::Relaxed);
        let done = work.await;
        self.await_client();
        done
    }

    /// Lets the connection read a stream; `None` where there are too many readers.
    pub(super) fn read(self: &Arc<Self>) -> Option<Reading> {
        let permit = Arc::clone(&self.connections.readers.0).try_acquire_owned().ok()?;
        self.state.is_working.store(true, Ordering::Relaxed);
        self.state.is_reading.store(true, Ordering::Relaxed);
        Some(Reading { connection: Arc::clone(self), _permit: permit })
    }

    /// Returns the flag that tells whether the connection reads a stream.
    pub(super) fn is_reading(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.state.is_reading)
    }

    /// Waits for the client from now on.
    fn await_client(&self) {
        let mut all = self.connections.all.lock();
        // From now on its client is waited for, if it still has its connection.
        if let Some(at) = all.iter().position(|state| Arc::ptr_eq(state, &self.state)) {
            all.remove(at);
            all.push_back(Arc::clone(&self.state));
        }
        self.state.is_working.store(false, Ordering::Relaxed);
    }

    /// Returns what is notified when the connection must close.
    pub(super) fn closing(&self) -> Arc<Notify> {
        Arc::clone(&self.state.leave)
    }
}

/// A connection that reads a stream, until this is dropped.
pub(super) struct Reading {
    connection: Arc<AdminConnection>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.connection.state.is_reading.store(false, Ordering::Relaxed);
        self.connection.await_client();
    }
}

impl Drop for AdminConnection {
    fn drop(&mut self) {
        let mut all = self.connections.all.lock();
        all.retain(|state| !Arc::ptr_eq(state, &self.state));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn readers_are_bounded_and_stay() {
        let connections: Arc<AdminConnections> = Arc::default();
        let all: Vec<Arc<AdminConnection>> =
            (0..MAX_CONNECTIONS).map(|_| Arc::new(AdminConnections::take(&connections))).collect();
        let readers: Vec<Reading> = all.iter().filter_map(AdminConnection::read).collect();
        assert_eq!(readers.len(), MAX_READERS);
        let another = AdminConnections::take(&connections);
        all[MAX_READERS].closing().notified().await;
        drop((readers, another));
        assert!(all[0].read().is_some());
    }

    #[tokio::test]
    async fn the_oldest_goes_whose_client_is_waited_for() {
        let connections: Arc<AdminConnections> = Arc::default();
        let all: Vec<AdminConnection> = (0..MAX_CONNECTIONS).map(|_| AdminConnections::take(&connections)).collect();
        all[0].state.is_working.store(true, Ordering::Relaxed);
        let another = AdminConnections::take(&connections);
        all[1].closing().notified().await;
        assert_eq!(connections.all.lock().len(), MAX_CONNECTIONS);
        drop((all, another));
        assert!(connections.all.lock().is_empty());
    }
    /// Its client is waited for again from the end of the work.
    #[tokio::test]
    async fn one_that_was_worked_for_goes_last() {
        let connections: Arc<AdminConnections> = Arc::default();
        let all: Vec<AdminConnection> = (0..MAX_CONNECTIONS).map(|_| AdminConnections::take(&connections)).collect();
        all[0].working(async {}).await;
        let another = AdminConnections::take(&connections);
        let must_go = async |connection: &AdminConnection| {
            let closing = connection.closing();
            tokio::time::timeout(Duration::ZERO, closing.notified()).await.is_ok()
        };
        assert_eq!((must_go(&all[0]).await, must_go(&all[1]).await), (false, true));
        drop(another);
    }
}
