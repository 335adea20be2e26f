//! Listening sockets that the process inherits: from its predecessor (a new binary), or from systemd (socket
//! activation).

use super::handover::{HandoverMessage, Line, Listening, Offer, VARIABLE};
use crate::fleet::StateOrder;
use crate::server::listener::open::Open;
use crate::server::listener::socket_set::set_inherited;
use crate::upstream::StateOverride;
use listenfd::ListenFd;
use socket2::SockRef;
use std::io;
use std::net::{SocketAddr, TcpListener};

/// The inherited sockets and states.
#[derive(Default)]
pub(crate) struct Inherited {
    pub(in crate::server) open: Vec<Open>,
    pub(in crate::server) admin: Option<Given>,
    pub(in crate::server) metrics: Option<Given>,
    /// The idempotency store that the predecessor has open.
    pub(in crate::server) store: Option<String>,
    /// The upgrades that had succeeded before this one.
    pub(in crate::server) upgrades: u64,
    pub(in crate::server) predecessor: Option<Predecessor>,
}

/// A listening socket, and the address by which a configuration names it.
pub(in crate::server) struct Given {
    pub(in crate::server) configured: SocketAddr,
    pub(in crate::server) listener: TcpListener,
}

/// The process that this one takes over from.
pub(in crate::server) struct Predecessor(Line);

/// The reasons for which the inheritance is invalid.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InheritError {
    #[error("cannot take over from the process that started this one: {0}")]
    Handover(io::Error),
    #[error("cannot take the sockets that systemd has opened: {0}")]
    Activation(io::Error),
}

impl Inherited {
    /// Returns the inheritance. To be called once, before standard input is read or a file is opened.
    pub(crate) fn take() -> Result<Inherited, InheritError> {
        match std::env::var_os(VARIABLE) {
            Some(_) => from_predecessor().map_err(InheritError::Handover),
            None => from_systemd().map_err(InheritError::Activation),
        }
    }

    /// The socket of the admin listener, or of that for metrics, where it is that of this address.
    pub(in crate::server) fn for_address(
        given: &mut Option<Given>,
        open: &mut Vec<Open>,
        address: SocketAddr,
    ) -> Option<TcpListener> {
        if let Some(given) = given.take_if(|given| given.configured == address) {
            return Some(given.listener);
        }
        // systemd does not name the purpose of its sockets.
        let index = open.iter().position(|open| open.configured == address)?;
        open.swap_remove(index).sockets().first().and_then(|socket| socket.try_clone().ok())
    }
}

fn from_predecessor() -> io::Result<Inherited> {
    let mut line = Line::from_stdin()?;
    let HandoverMessage::Offer(Offer { listeners, admin, metrics, store, upgrades }) = line.receive()? else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it does not begin with an offer"));
    };
    let mut open = Vec::new();
    for Listening { configured, sockets, was_narrowed } in listeners {
        let mut listener = Open::of(configured, line.receive_sockets(sockets)?)?;
        // An older binary may have set other options.
        listener.sockets().iter().try_for_each(|socket| set_inherited(&SockRef::from(socket)))?;
        listener.was_narrowed = was_narrowed;
        open.push(listener);
    }
    let mut given = |listening: Option<Listening>| -> io::Result<Option<Given>> {
        let Some(Listening { configured, sockets, .. }) = listening else { return Ok(None) };
        Ok(line.receive_sockets(sockets)?.pop().map(|listener| Given { configured, listener }))
    };
    let (admin, metrics) = (given(admin)?, given(metrics)?);
    Ok(Inherited { open, admin, metrics, store, upgrades, predecessor: Some(Predecessor(line)) })
}

/// One socket per unit; its address identifies the listener.
fn from_systemd() -> io::Result<Inherited> {
    let mut given = ListenFd::from_env();
    let mut open = Vec::new();
    for index in 0..given.len() {
        if let Some(listener) = given.take_tcp_listener(index)? {
            listener.set_nonblocking(true)?;
            set_inherited(&SockRef::from(&listener))?;
            open.push(Open::of(listener.local_addr()?, vec![listener])?);
        }
    }
    Ok(Inherited { open, ..Inherited::default() })
}

impl Predecessor {
    /// Reports that everything is built. Returns the states of nodes, here and for the fleet, once the predecessor refuses further ones.
    pub(in crate::server) fn built(&mut self) -> io::Result<(Vec<StateOverride>, Vec<StateOrder>)> {
        self.0.send(&HandoverMessage::Ready)?;
        match self.0.receive()? {
            HandoverMessage::Go { nodes, orders } => Ok((nodes, orders)),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Reports that the process accepts connections.
    pub(in crate::server) fn accepting(mut self) -> io::Result<()> {
        self.0.send(&HandoverMessage::Serving)
    }
}
