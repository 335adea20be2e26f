//! Sockets, for both ends of the proxy.

pub(crate) mod chunks;
mod messages;
#[cfg(feature = "redis")]
pub(crate) mod redis;
pub(crate) mod silence;
mod socket;
mod stream;

pub(crate) use messages::{Framing, Malformed, Messages};
pub(crate) use socket::Socket;
pub(crate) use stream::{Seen, Stream};

/// Runs futures on the thread that they were made on, for hyper's HTTP/2.
#[derive(Clone, Copy)]
pub(crate) struct OnThisThread;

impl<F: Future + 'static> hyper::rt::Executor<F> for OnThisThread {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move { drop(future.await) });
    }
}
