//! A link that can fail: a TCP proxy of the test process between a Ringway and an engine.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

/// The faults that are on.
#[derive(Default)]
struct Faults {
    /// Connections are reset, and new ones too.
    is_cut: AtomicBool,
    /// Bytes towards the engine are kept back.
    holds_requests: AtomicBool,
    /// Bytes from the engine are kept back.
    holds_replies: AtomicBool,
    /// Milliseconds before each piece is passed on.
    delay: AtomicU64,
    /// Bytes from the engine after which the connection is reset.
    cut_after: AtomicUsize,
    /// The link is gone.
    is_over: AtomicBool,
}

/// A link to an address.
pub(crate) struct Link {
    address: SocketAddr,
    faults: Arc<Faults>,
    /// The ends of the connections, which live as long as their threads.
    connections: Arc<Mutex<Vec<Weak<TcpStream>>>>,
}

impl Link {
    /// Opens a link to a port of this machine.
    pub(crate) fn to(port: u16) -> Link {
        Link::from(SocketAddr::from(([127, 0, 0, 1], 0)), port)
    }

    /// Opens a link from an address to a port of this machine.
    pub(crate) fn from(address: SocketAddr, port: u16) -> Link {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let faults = Arc::new(Faults { cut_after: AtomicUsize::new(usize::MAX), ..Faults::default() });
        let connections: Arc<Mutex<Vec<Weak<TcpStream>>>> = Arc::default();
        let (there, open) = (Arc::clone(&faults), Arc::clone(&connections));
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if there.is_over.load(Ordering::Relaxed) {
                    return;
                }
                if there.is_cut.load(Ordering::Relaxed) {
                    reset(&client);
                    continue;
                }
                let Ok(engine) = TcpStream::connect(("127.0.0.1", port)) else {
                    reset(&client);
                    continue;
                };
                let (client, engine) = (Arc::new(client), Arc::new(engine));
                let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
                open.retain(|stream| stream.strong_count() > 0);
                for stream in [&client, &engine] {
                    let _ = stream.set_nodelay(true);
                    open.push(Arc::downgrade(stream));
                }
                drop(open);
                pump(Arc::clone(&client), Arc::clone(&engine), Arc::clone(&there), true);
                pump(engine, client, Arc::clone(&there), false);
            }
        });
        Link { address, faults, connections }
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Resets all connections, and refuses new ones; or ends that.
    pub(crate) fn cut(&self, is_cut: bool) {
        self.faults.is_cut.store(is_cut, Ordering::Relaxed);
        if is_cut {
            let mut open = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
            for stream in open.drain(..).filter_map(|stream| stream.upgrade()) {
                reset(&stream);
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }

    /// Keeps bytes towards the engine back, or lets them go.
    pub(crate) fn hold_requests(&self, holds: bool) {
        self.faults.holds_requests.store(holds, Ordering::Relaxed);
    }

    /// Keeps bytes from the engine back, or lets them go.
    pub(crate) fn hold_replies(&self, holds: bool) {
        self.faults.holds_replies.store(holds, Ordering::Relaxed);
    }

    /// Passes each piece on after this time.
    pub(crate) fn delay(&self, by: Duration) {
        self.faults.delay.store(u64::try_from(by.as_millis()).unwrap(), Ordering::Relaxed);
    }

    /// Resets the connection in the middle of a reply: after this many more bytes of the engine.
    pub(crate) fn cut_after(&self, bytes: usize) {
        self.faults.cut_after.store(bytes, Ordering::Relaxed);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.cut(true);
        self.faults.is_over.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

/// Passes bytes on in one direction, with the faults that are on.
fn pump(from: Arc<TcpStream>, to: Arc<TcpStream>, faults: Arc<Faults>, is_request: bool) {
    std::thread::spawn(move || {
        let mut buffer = [0; 16 << 10];
        while let Ok(length @ 1..) = (&*from).read(&mut buffer) {
            let holds = if is_request { &faults.holds_requests } else { &faults.holds_replies };
            while holds.load(Ordering::Relaxed) && !faults.is_cut.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
            }
            if faults.is_cut.load(Ordering::Relaxed) {
                break;
            }
            let delay = faults.delay.load(Ordering::Relaxed);
            if delay > 0 {
                std::thread::sleep(Duration::from_millis(delay));
            }
            let mut passed = length;
            if !is_request {
                let left = faults.cut_after.load(Ordering::Relaxed);
                if left < length {
                    faults.cut_after.store(usize::MAX, Ordering::Relaxed);
                    passed = left;
                } else if left != usize::MAX {
                    faults.cut_after.store(left - length, Ordering::Relaxed);
                }
            }
            if (&*to).write_all(&buffer[..passed]).is_err() || passed < length {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    });
}

/// Closes a connection so that its other end hears a reset.
fn reset(stream: &TcpStream) {
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
