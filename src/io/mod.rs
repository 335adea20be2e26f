//! Sockets, for both ends of the proxy.

pub(crate) mod chunks;
mod messages;
mod stream;

pub(crate) use messages::{Framing, Malformed, Messages};
pub(crate) use stream::{Seen, Stream};

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;

/// Up to this size, copying the pieces together is cheaper than what the kernel spends on a
/// vectored write.
const GATHER: usize = 4 << 10;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(Vec::with_capacity(GATHER));
}

/// Writes several pieces, small ones as one.
pub(crate) fn poll_write_gathered(
    stream: Pin<&mut TcpStream>,
    cx: &mut Context<'_>,
    pieces: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    let length: usize = pieces.iter().map(|piece| piece.len()).sum();
    match pieces {
        [only] => stream.poll_write(cx, only),
        _ if length > GATHER => stream.poll_write_vectored(cx, pieces),
        _ => SCRATCH.with_borrow_mut(|scratch| {
            scratch.clear();
            for piece in pieces {
                scratch.extend_from_slice(piece);
            }
            stream.poll_write(cx, scratch)
        }),
    }
}

/// Runs futures on the thread that they were made on, for hyper's HTTP/2.
#[derive(Clone, Copy)]
pub(crate) struct OnThisThread;

impl<F: Future + 'static> hyper::rt::Executor<F> for OnThisThread {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move { drop(future.await) });
    }
}
