use super::{Origin, PATIENCE};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// A link between the proxy and a node, as a network that fails would be.
pub struct Wire {
    pub address: SocketAddr,
    state: Arc<WireState>,
    _node: Origin,
}

#[derive(Default)]
struct WireState {
    /// Nothing passes, in either direction; nothing is said about it.
    is_cut: AtomicBool,
    /// Each connection is cut after so many bytes from the node; 0 lets all pass.
    limit: AtomicUsize,
}

impl Wire {
    /// A link to this address.
    pub fn to(target: SocketAddr) -> Wire {
        let state: Arc<WireState> = Arc::default();
        let shared = Arc::clone(&state);
        let node = Origin::by_connection(move |peer| {
            // A connection during the partition is established by the kernel; nothing comes back on it.
            if let Ok(there) = TcpStream::connect(target) {
                let here = peer.client.stream.try_clone().unwrap();
                let (back, forth) = (there.try_clone().unwrap(), here.try_clone().unwrap());
                let towards = Arc::clone(&shared);
                std::thread::spawn(move || towards.pump(here, there, 0));
                shared.pump(back, forth, shared.limit.load(Ordering::SeqCst));
            }
        });
        Wire { address: node.address, state, _node: node }
    }

    /// The network is parted: packets vanish.
    pub fn cut(&self) {
        self.state.is_cut.store(true, Ordering::SeqCst);
    }

    pub fn heal(&self) {
        self.state.is_cut.store(false, Ordering::SeqCst);
    }

    /// Cuts new connections after so many bytes of answers.
    pub fn cut_after(&self, bytes: usize) {
        self.state.limit.store(bytes, Ordering::SeqCst);
    }
}

impl WireState {
    fn pump(&self, mut from: TcpStream, mut to: TcpStream, limit: usize) {
        use std::io::{Read, Write};
        from.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let mut buffer = [0; 16384];
        let mut passed = 0;
        let deadline = std::time::Instant::now() + 10 * PATIENCE;
        while std::time::Instant::now() < deadline {
            if self.is_cut.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            }
            match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => {
                    // What was read as the cut came waits, as a packet that is sent again does.
                    while self.is_cut.load(Ordering::SeqCst) && std::time::Instant::now() < deadline {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    let length = if limit > 0 { length.min(limit - passed) } else { length };
                    passed += length;
                    if to.write_all(&buffer[..length]).is_err() || (limit > 0 && passed >= limit) {
                        break;
                    }
                }
                Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                }
                Err(_) => break,
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}
