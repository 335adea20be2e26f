//! The listening sockets of an address: one set, one socket a worker, fixed when the address is
//! first bound.
//!
//! The kernel spreads new connections over the members of a SO_REUSEPORT group. A member that
//! closes resets the connections in its queue, and one that no worker accepts from swallows its
//! share: so a set lives and ends as a whole.

use rustix::io::Errno;
use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, Type};
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};

const BACKLOG: i32 = 4096;
/// What the kernel holds of an answer that its client does not take; without a bound megabytes of it go there at
/// once, for hundreds of slow readers one after another, while everybody else waits.
const UNSENT: u32 = 128 << 10;

/// The sockets of one address.
pub(in crate::server) struct SocketSet {
    pub(in crate::server) address: SocketAddr,
    pub(in crate::server) sockets: Vec<TcpListener>,
}

impl SocketSet {
    /// Binds an address as many times as there are workers. Port 0 takes a free port, the same for
    /// all of them. `beside` are sockets of this process that may share the port.
    pub(in crate::server) fn bind(address: SocketAddr, workers: usize, beside: Beside) -> io::Result<SocketSet> {
        // Sharing a port with a stranger would not fail but lose a part of the connections.
        match listening_socket(address, false, beside.is_v6_only) {
            Ok(free) => drop(free),
            Err(error) if error.kind() == ErrorKind::AddrInUse && beside.has_own => {}
            Err(error) => return Err(error),
        }
        let first = listening_socket(address, true, beside.is_v6_only)?;
        let address = first.local_addr()?;
        let mut sockets = vec![first];
        for _ in 1..workers {
            sockets.push(listening_socket(address, true, beside.is_v6_only)?);
        }
        Ok(SocketSet { address, sockets })
    }
}

/// The other listeners that share an address's port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::server) struct Beside {
    /// This process has sockets on the same port, which may be on their way out.
    pub(in crate::server) has_own: bool,
    /// Another listener takes what comes by IPv4.
    pub(in crate::server) is_v6_only: bool,
}

fn listening_socket(address: SocketAddr, share: bool, is_v6_only: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(share)?;
    if is_v6_only {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    bound_unsent(&SockRef::from(&socket))?;
    Ok(socket.into())
}

/// Has a listening socket take no new connections, while it finishes the handshakes that have begun: a client's SYN is
/// dropped, and sent again a second later, to whichever socket has the address then.
pub(in crate::server) fn refuse_syns(socket: &SockRef<'_>) -> io::Result<()> {
    const FLAGS: u32 = 13;
    const SYN: u32 = 2;
    const LOAD_BYTE: u16 = 0x30;
    const JUMP_IF_SET: u16 = 0x45;
    const RETURN: u16 = 0x06;
    // The bytes of a packet that are kept: none of a SYN, all of others.
    socket.attach_filter(&[
        SockFilter::new(LOAD_BYTE, 0, 0, FLAGS),
        SockFilter::new(JUMP_IF_SET, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ])
}

/// Bounds what the kernel holds of answers; the connections of a listening socket have it from there.
pub(in crate::server) fn bound_unsent(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_notsent_lowat(UNSENT)
}

/// Returns whether accepting failed for want of descriptors or memory, which passes.
pub(in crate::server) fn is_exhaustion(error: &io::Error) -> bool {
    let code = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(code, Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM))
}
