//! The limit on open client connections over all workers; a reload may change it while they are open.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The permits for client connections.
pub(in crate::server) struct ConnectionPermits {
    free: Arc<Semaphore>,
    /// Permits that a smaller limit has removed while they were in use; they are dropped when they are returned.
    debt: AtomicUsize,
}

/// The permit of one connection.
pub(in crate::server) struct ConnectionPermit {
    permits: Arc<ConnectionPermits>,
    permit: Option<OwnedSemaphorePermit>,
}

impl ConnectionPermits {
    pub(in crate::server) fn new(limit: u32) -> Arc<ConnectionPermits> {
        Arc::new(ConnectionPermits { free: Arc::new(Semaphore::new(limit as usize)), debt: AtomicUsize::new(0) })
    }

    pub(in crate::server) fn free(&self) -> usize {
        self.free.available_permits()
    }

    /// Waits for a permit, and takes it.
    pub(in crate::server) async fn take(self: &Arc<Self>) -> Option<ConnectionPermit> {
        let permit = Arc::clone(&self.free).acquire_owned().await.ok()?;
        Some(ConnectionPermit { permits: Arc::clone(self), permit: Some(permit) })
    }

    /// Takes a permit if one is free.
    pub(in crate::server) fn try_take(self: &Arc<Self>) -> Option<ConnectionPermit> {
        let permit = Arc::clone(&self.free).try_acquire_owned().ok()?;
        Some(ConnectionPermit { permits: Arc::clone(self), permit: Some(permit) })
    }

    /// Follows a limit that has changed.
    pub(in crate::server) fn resize(&self, before: u32, after: u32) {
        if after >= before {
            let grown = (after - before) as usize;
            let paid = self.pay(grown);
            self.free.add_permits(grown - paid);
        } else {
            let surplus = (before - after) as usize;
            let missing = surplus - self.free.forget_permits(surplus);
            self.debt.fetch_add(missing, Ordering::Relaxed);
        }
    }

    /// Lowers the debt by at most that much; returns the difference.
    fn pay(&self, most: usize) -> usize {
        let lower = |debt: usize| Some(debt.saturating_sub(most));
        match self.debt.fetch_update(Ordering::Relaxed, Ordering::Relaxed, lower) {
            Ok(debt) | Err(debt) => debt.min(most),
        }
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take()
            && self.permits.pay(1) == 1
        {
            permit.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_limit_holds_through_every_change() {
        let permits = ConnectionPermits::new(3);
        let mut taken = Vec::new();
        for _ in 0..3 {
            taken.push(permits.take().await.unwrap());
        }
        permits.resize(3, 1);
        permits.resize(1, 2);
        // With a limit of two, one of the three permits in use is dropped when it is returned.
        taken.pop();
        assert_eq!(permits.free(), 0);
        taken.pop();
        assert_eq!(permits.free(), 1);
        taken.clear();
        assert_eq!(permits.free(), 2);
        permits.resize(2, 5);
        assert_eq!(permits.free(), 5);
    }
}
