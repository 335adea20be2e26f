//! A TCP socket that joins the reactor only when something has to wait for it. A connection that is accepted together
//! with its one request is read, answered and closed without that.

use socket2::SockRef;
use std::cell::RefCell;
use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// Up to this size, copying the pieces together is cheaper than what the kernel spends on a
/// vectored write.
const GATHER: usize = 4 << 10;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(Vec::with_capacity(GATHER));
}

/// A TCP socket, non-blocking.
pub(crate) enum Socket {
    /// The reactor does not know it. `None` where joining the reactor has failed.
    Apart(Option<std::net::TcpStream>),
    Joined(TcpStream),
}

impl Socket {
    /// Returns the socket as the reactor knows it, which it does from here on.
    pub(crate) fn joined(&mut self) -> io::Result<&mut TcpStream> {
        if let Socket::Apart(socket) = self {
            let socket = socket.take().ok_or(io::ErrorKind::NotConnected)?;
            *self = Socket::Joined(TcpStream::from_std(socket)?);
        }
        match self {
            Socket::Joined(socket) => Ok(socket),
            Socket::Apart(_) => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Returns the socket as the reactor knows it.
    pub(crate) fn into_joined(mut self) -> io::Result<TcpStream> {
        self.joined()?;
        match self {
            Socket::Joined(socket) => Ok(socket),
            Socket::Apart(_) => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Reads what has arrived at a socket that the reactor does not know; `None` where that is nothing, or the reactor
    /// has to be asked.
    pub(super) fn read_apart<'a>(&self, buffer: &'a mut [MaybeUninit<u8>]) -> Option<io::Result<&'a [u8]>> {
        let Socket::Apart(Some(socket)) = self else { return None };
        let read = rustix::net::recv(socket, buffer, rustix::net::RecvFlags::empty());
        at_once(read.map(|((bytes, _), _)| &*bytes).map_err(io::Error::from))
    }

    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.joined()?).poll_read(cx, buf)
    }

    /// Returns the number of bytes that a peek finds, 0 at the end; `None` where the reactor has heard of nothing since
    /// the last read. Costs no system call then, and no waker.
    pub(super) fn peek_at_once(&mut self) -> Option<io::Result<usize>> {
        let socket = match self.joined() {
            Ok(socket) => socket,
            Err(error) => return Some(Err(error)),
        };
        let peek = || rustix::net::recv(socket.as_fd(), &mut [0], rustix::net::RecvFlags::PEEK);
        at_once(socket.try_io(Interest::READABLE, || Ok(peek().map(|(_, length)| length)?)))
    }

    pub(super) fn poll_peek(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<usize>> {
        self.joined()?.poll_peek(cx, buf)
    }

    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if let Socket::Apart(Some(socket)) = self
            && let Some(written) = at_once((&*socket).write(buf))
        {
            return Poll::Ready(written);
        }
        Pin::new(self.joined()?).poll_write(cx, buf)
    }

    /// Writes several pieces, small ones as one.
    pub(super) fn poll_write_vectored(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match pieces {
            [only] => self.poll_write(cx, only),
            _ if pieces.iter().map(|piece| piece.len()).sum::<usize>() > GATHER => self.poll_write_pieces(cx, pieces),
            _ => SCRATCH.with_borrow_mut(|scratch| {
                scratch.clear();
                for piece in pieces {
                    scratch.extend_from_slice(piece);
                }
                self.poll_write(cx, scratch)
            }),
        }
    }

    /// Writes several pieces. After a part of them another write may find room at once: the kernel processes the
    /// client's acknowledgements between two writes.
    fn poll_write_pieces(&mut self, cx: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if let Socket::Apart(Some(socket)) = self
            && let Some(written) = at_once((&*socket).write_vectored(pieces))
        {
            return Poll::Ready(written);
        }
        Pin::new(self.joined()?).poll_write_vectored(cx, pieces)
    }

    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Socket::Apart(Some(socket)) => Poll::Ready(socket.shutdown(Shutdown::Write)),
            _ => Pin::new(self.joined()?).poll_shutdown(cx),
        }
    }

    pub(super) fn allow_unsent(&self, bytes: u32) -> io::Result<()> {
        match self {
            Socket::Apart(Some(socket)) => SockRef::from(socket).set_tcp_notsent_lowat(bytes),
            Socket::Apart(None) => Ok(()),
            Socket::Joined(socket) => SockRef::from(socket).set_tcp_notsent_lowat(bytes),
        }
    }

    pub(super) fn reset_at_end(&self) -> io::Result<()> {
        match self {
            Socket::Apart(Some(socket)) => reset_at_end(socket),
            Socket::Apart(None) => Ok(()),
            Socket::Joined(socket) => reset_at_end(socket),
        }
    }
}

/// Has the end of a connection be a reset.
pub(super) fn reset_at_end(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_linger(Some(Duration::ZERO))
}

/// Returns the result of a system call; `None` where it has to be made again, when the reactor says so.
fn at_once<T>(result: io::Result<T>) -> Option<io::Result<T>> {
    match result {
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => None,
        done => Some(done),
    }
}
