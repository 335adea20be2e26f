use super::PATIENCE;
use std::sync::{Arc, Condvar, Mutex};

/// Holds threads back until the test lets them go.
#[derive(Clone, Default)]
pub struct Barrier(Arc<(Mutex<bool>, Condvar)>);

impl Barrier {
    pub fn wait(&self) {
        let (open, changed) = &*self.0;
        let guard = open.lock().unwrap();
        let (guard, late) = changed.wait_timeout_while(guard, PATIENCE, |open| !*open).unwrap();
        drop(guard);
        assert!(!late.timed_out(), "the barrier was not opened");
    }

    pub fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }
}
