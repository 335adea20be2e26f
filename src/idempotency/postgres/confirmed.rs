//! The results that standbys have: a result goes to a client only once it cannot be lost with the server.
//!
//! Standbys get all writes in one order. So those that have a write have whatever the server showed before that write
//! was sent, and what was committed before.

use std::cell::RefCell;
use std::time::{Duration, Instant};

/// The longest time between the time that a result carries, the start of its transaction, and its commit.
const LONGEST: Duration = Duration::from_secs(60);

/// The last write that the standbys of a server have confirmed.
#[derive(Default)]
pub(super) struct Confirmed(RefCell<Option<(String, Instant)>>);

impl Confirmed {
    /// Notes that the standbys of a server have confirmed a write that was sent at a time.
    pub(super) fn note(&self, host: &str, at: Instant) {
        let mut last = self.0.borrow_mut();
        match &mut *last {
            Some((known, before)) if known == host => *before = at.max(*before),
            last => *last = Some((host.to_owned(), at)),
        }
    }

    /// Forgets it: the connection that follows may lead to another server of the same name.
    pub(super) fn forget(&self) {
        self.0.borrow_mut().take();
    }

    /// Returns whether the standbys of a server have what was written there so long ago.
    pub(super) fn has(&self, host: &str, age: Duration) -> bool {
        let last = self.0.borrow();
        let Some((_, at)) = last.as_ref().filter(|(known, _)| known == host) else { return false };
        age >= at.elapsed() + LONGEST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_older_than_a_confirmed_write_is_on_the_standbys_of_that_server() {
        let confirmed = Confirmed::default();
        let (old, young) = (Duration::from_secs(70), Duration::from_secs(50));
        assert!(!confirmed.has("a", old), "nothing is known");
        confirmed.note("a", Instant::now());
        assert!(confirmed.has("a", old));
        assert!(!confirmed.has("a", young), "its commit may have come after the write");
        assert!(!confirmed.has("b", old), "another server");
        let Some(before) = Instant::now().checked_sub(Duration::from_secs(20)) else { return };
        confirmed.forget();
        confirmed.note("a", before);
        assert!(!confirmed.has("a", old), "written after the write that was confirmed");
    }
}
