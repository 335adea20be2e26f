//! The protocol of the handover from one process to the next when the binary is replaced.
//!
//! The messages go through a pair of sockets, one end of which is the new process's standard input:
//!
//! ```text
//! old: Offer, and the listening sockets (SCM_RIGHTS)
//! new: Ready       it has read its configuration and built everything that it needs
//! old: Go          the states of nodes that the API has set; the old one refuses further ones
//! new: Serving     it accepts; the old one drains
//! ```
//!
//! If either process ends before that, nothing has changed: the sockets are open in both.

use crate::fleet::StateOrder;
use crate::upstream::StateOverride;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Tells a process that its standard input is a predecessor.
pub(in crate::server) const VARIABLE: &str = "RINGWAY_HANDOVER";

/// The time that each process may take for its part.
pub(in crate::server) const PATIENCE: Duration = Duration::from_secs(30);

/// Sockets in one message; the kernel takes 253.
const BATCH: usize = 64;
/// No message is longer.
const MOST: u32 = 64 << 20;

/// The messages. Their form must be stable, as the next version reads the messages of this one; fields may be added.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::server) enum HandoverMessage {
    Offer(Offer),
    Ready,
    Go {
        nodes: Vec<StateOverride>,
        /// The states for the whole fleet.
        #[serde(default)]
        orders: Vec<StateOrder>,
    },
    Serving,
}

/// The listeners whose sockets follow, in this order.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(in crate::server) struct Offer {
    pub(in crate::server) listeners: Vec<Listening>,
    pub(in crate::server) admin: Option<Listening>,
    pub(in crate::server) metrics: Option<Listening>,
    /// The idempotency store, where one is open: the next process must have the same.
    pub(in crate::server) store: Option<String>,
    /// The upgrades that have succeeded so far: the next process counts on from there.
    #[serde(default)]
    pub(in crate::server) upgrades: u64,
}

/// The sockets of one address.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::server) struct Listening {
    /// As the configuration has it.
    pub(in crate::server) configured: SocketAddr,
    pub(in crate::server) sockets: usize,
    /// They were bound for IPv6 alone, beside another listener for IPv4.
    #[serde(default)]
    pub(in crate::server) was_narrowed: bool,
}

/// One end of the talk.
pub(in crate::server) struct Line(UnixStream);

impl Line {
    /// A pair of ends; the second one is for the new process.
    pub(in crate::server) fn pair() -> io::Result<(Line, OwnedFd)> {
        let (own, other) = UnixStream::pair()?;
        Ok((Line::over(own)?, other.into()))
    }

    /// Takes the standard input, and leaves an empty one.
    pub(in crate::server) fn from_stdin() -> io::Result<Line> {
        let line = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
        rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
        Line::over(UnixStream::from(line))
    }

    fn over(stream: UnixStream) -> io::Result<Line> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Line(stream))
    }

    pub(in crate::server) fn send(&mut self, said: &HandoverMessage) -> io::Result<()> {
        let text = serde_json::to_vec(said)?;
        let length = u32::try_from(text.len()).map_err(|_| io::ErrorKind::InvalidData)?;
        self.0.write_all(&length.to_be_bytes())?;
        self.0.write_all(&text)
    }

    pub(in crate::server) fn receive(&mut self) -> io::Result<HandoverMessage> {
        let mut length = [0; 4];
        self.0.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length);
        if length > MOST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut text = vec![0; length as usize];
        self.0.read_exact(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    }

    /// Hands over sockets, which stay open here as well.
    pub(in crate::server) fn send_sockets(&mut self, sockets: &[TcpListener]) -> io::Result<()> {
        for batch in sockets.chunks(BATCH) {
            let borrowed: Vec<BorrowedFd<'_>> = batch.iter().map(AsFd::as_fd).collect();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            // The space is for as many as a batch has.
            if !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            // Descriptors travel with a byte.
            sendmsg(&self.0, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL)?;
        }
        Ok(())
    }

    /// Returns the received sockets.
    pub(in crate::server) fn receive_sockets(&mut self, count: usize) -> io::Result<Vec<TcpListener>> {
        let mut taken = Vec::new();
        while taken.len() < count {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut byte = [0];
            let told = recvmsg(&self.0, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
            if told.bytes == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                    taken.extend(descriptors.map(TcpListener::from));
                }
            }
        }
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_arrive_in_their_order() {
        let (mut own, other) = Line::pair().unwrap();
        let mut other = Line::over(other.into()).unwrap();
        let sockets: Vec<TcpListener> = (0..150).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let addresses = |sockets: &[TcpListener]| -> Vec<SocketAddr> {
            sockets.iter().map(|socket| socket.local_addr().unwrap()).collect()
        };
        let expected = addresses(&sockets);
        let configured = "127.0.0.1:80".parse().unwrap();
        let offer =
            Offer { listeners: vec![Listening { configured, sockets: 150, was_narrowed: false }], ..Offer::default() };
        own.send(&HandoverMessage::Offer(offer)).unwrap();
        own.send_sockets(&sockets).unwrap();
        own.send(&HandoverMessage::Ready).unwrap();
        drop(sockets);
        let HandoverMessage::Offer(offer) = other.receive().unwrap() else { panic!() };
        assert_eq!((offer.listeners[0].configured, offer.listeners[0].sockets), (configured, 150));
        let taken = other.receive_sockets(150).unwrap();
        assert_eq!(addresses(&taken), expected);
        assert!(matches!(other.receive().unwrap(), HandoverMessage::Ready));
        drop(own);
        assert!(other.receive().is_err() && other.receive_sockets(1).is_err());
    }
}
