//! The listening sockets of an address: one set, one socket per worker, fixed when the address is first bound.
//!
//! The kernel distributes new connections over the members of a SO_REUSEPORT group. A member that is closed resets the
//! connections in its queue, and connections to one that no worker accepts from are lost: so the set is opened and
//! closed as a whole.

use rustix::io::Errno;
use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, Type};
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};

const BACKLOG: i32 = 4096;
/// The bound of a socket's send buffer. Without it the kernel copies megabytes of a response at once, for hundreds of
/// slow readers one after another, while all other connections wait. A connection may raise it for a fast reader.
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
        // Sharing a port with another program would not fail, but lose a part of the connections.
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

/// The other listeners on the same port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::server) struct Beside {
    /// This process has sockets on the same port, which may be about to close.
    pub(in crate::server) has_own: bool,
    /// Another listener accepts IPv4.
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
    set_inherited(&SockRef::from(&socket))?;
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
    // The number of bytes of a packet to keep: none of a SYN, all of others.
    socket.attach_filter(&[
        SockFilter::new(LOAD_BYTE, 0, 0, FLAGS),
        SockFilter::new(JUMP_IF_SET, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ])
}

/// Sets the options that connections have from their listening socket: the bound on the
/// send buffer, and no delay of small segments, as responses are written in large pieces.
pub(in crate::server) fn set_inherited(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_notsent_lowat(UNSENT)?;
    socket.set_tcp_nodelay(true)
}

/// Returns whether accepting failed for a lack of descriptors or memory, which is temporary.
pub(in crate::server) fn is_exhaustion(error: &io::Error) -> bool {
    let code = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(code, Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM))
}
