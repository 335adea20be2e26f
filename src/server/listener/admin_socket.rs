//! The sockets of the admin listener and of the metrics listener, kept apart from their accept loops, so that they can
//! be handed to a new binary, and reopened where that fails.

use super::open::BindError;
use crate::admin::{self, Reach};
use crate::control::Control;
use crate::server::process::handover::Listening;
use parking_lot::Mutex;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::sync::watch;

/// One of these listeners.
pub(in crate::server) struct AdminSocket {
    configured: SocketAddr,
    pub(in crate::server) bound: SocketAddr,
    reach: Reach,
    socket: TcpListener,
    /// Tells the thread that answers to pause; `None` while no thread answers.
    answering: Mutex<Option<watch::Sender<bool>>>,
}

impl AdminSocket {
    /// Binds the address, unless its socket is here already.
    pub(in crate::server) fn bind(
        name: &str,
        address: SocketAddr,
        reach: Reach,
        given: Option<TcpListener>,
    ) -> Result<AdminSocket, BindError> {
        let open = || -> io::Result<AdminSocket> {
            let socket = given.map_or_else(|| admin::bind(address), Ok)?;
            socket.set_nonblocking(true)?;
            let bound = socket.local_addr()?;
            Ok(AdminSocket { configured: address, bound, reach, socket, answering: Mutex::default() })
        };
        open().map_err(|cause| BindError { name: name.to_owned(), address, cause })
    }

    pub(in crate::server) fn socket(&self) -> &TcpListener {
        &self.socket
    }

    pub(in crate::server) fn listening(&self) -> Listening {
        Listening { configured: self.configured, sockets: 1, was_narrowed: false }
    }

    /// Serves, in this runtime, until the listener is paused.
    pub(in crate::server) fn serve(&self, runtime: &Handle, control: Arc<dyn Control>) -> io::Result<()> {
        let mut answering = self.answering.lock();
        if answering.is_none() {
            let socket = self.socket.try_clone()?;
            let _inside = runtime.enter();
            let listener = tokio::net::TcpListener::from_std(socket)?;
            let (pause, paused) = watch::channel(false);
            runtime.spawn(admin::serve(listener, control, self.reach, paused));
            *answering = Some(pause);
        }
        Ok(())
    }

    /// Stops accepting; requests in flight are answered, and their connections close.
    pub(in crate::server) fn pause(&self) {
        if let Some(pause) = self.answering.lock().take() {
            pause.send_replace(true);
        }
    }
}
