//! The background work of the process, on a thread with its own runtime: tasks that no request and no operator waits
//! for (probes, name servers, upkeep of the cache and of the store).

use parking_lot::Mutex;
use std::io;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// The owner of the thread. Work ends with it.
pub(in crate::server) struct Background {
    runtime: Handle,
    /// The thread ends when this is dropped.
    running: Mutex<Option<(oneshot::Sender<()>, JoinHandle<()>)>>,
}

impl Background {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system has no room for a thread or a runtime.
    pub(in crate::server) fn start() -> io::Result<Background> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name("background".to_owned()).spawn(move || {
            // Nothing is sent: the sender is dropped.
            let _ = runtime.block_on(stopped);
            // A name that is being looked up is not waited for.
            runtime.shutdown_background();
        })?;
        Ok(Background { runtime: handle, running: Mutex::new(Some((stop, thread))) })
    }

    /// Returns the runtime, for work that starts and ends with the configuration.
    pub(in crate::server) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Begins work that goes on for as long as the process. Its end in a panic is logged with its name.
    pub(in crate::server) fn spawn(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let task = self.runtime.spawn(work);
        self.runtime.spawn(async move {
            if task.await.is_err_and(|error| error.is_panic()) {
                tracing::error!(name, "work in the background has ended in a panic");
            }
        });
    }

    /// Ends all work, and waits for the thread for so long.
    pub(in crate::server) fn end(&self, patience: Duration) {
        let Some((stop, thread)) = self.running.lock().take() else { return };
        drop(stop);
        let deadline = Instant::now() + patience;
        while !thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        if !thread.is_finished() {
            tracing::warn!("the thread of the background does not end; the process ends without it");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::mpsc;

    #[test]
    fn work_runs_until_its_end_and_leaves_nothing_behind() {
        let background = Background::start().unwrap();
        let (sender, receiver) = mpsc::channel();
        let held = Arc::new(());
        let with_it = Arc::clone(&held);
        background.spawn("a test", async move {
            sender.send(std::thread::current().name().map(str::to_owned)).unwrap();
            std::future::pending::<()>().await;
            drop(with_it);
        });
        assert_eq!(receiver.recv().unwrap().as_deref(), Some("background"));
        background.end(Duration::from_secs(10));
        assert_eq!(Arc::strong_count(&held), 1);
        // A second end finds nothing to do.
        background.end(Duration::ZERO);
    }

    #[test]
    fn one_panic_does_not_end_other_work() {
        let background = Background::start().unwrap();
        let (sender, receiver) = mpsc::channel();
        background.spawn("a panic", async { panic!("on purpose") });
        background.spawn("other work", async move { sender.send(()).unwrap() });
        receiver.recv().unwrap();
    }
}
