//! A claim that grows old before a byte of its request was sent: others may have buried it, so nothing is sent.

use super::*;
use crate::support::eventually;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

/// A node that accepts no connection until it is told to: its queue is full.
struct Deaf {
    listener: TcpListener,
    _queued: Vec<TcpStream>,
}

impl Deaf {
    fn start() -> Deaf {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket.listen(0).unwrap();
        let listener = TcpListener::from(socket);
        let address = listener.local_addr().unwrap();
        let moment = Duration::from_millis(50);
        let connect = |_| TcpStream::connect_timeout(&address, moment).ok();
        let queued = (0..8).map_while(connect).collect();
        Deaf { listener, _queued: queued }
    }

    fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    /// Accepts connections until one brings something or has ended; returns what the last one has brought.
    fn hear_all(self, until: impl Fn() -> bool) -> Vec<u8> {
        self.listener.set_nonblocking(true).unwrap();
        let (mut heard, mut accepted) = (Vec::new(), Vec::new());
        eventually("the answer", || {
            if let Ok((stream, _)) = self.listener.accept() {
                stream.set_nonblocking(true).unwrap();
                accepted.push(stream);
            }
            for stream in &mut accepted {
                let mut buffer = [0; 4096];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    heard.extend_from_slice(&buffer[..length]);
                }
            }
            until()
        });
        heard
    }
}

fn deaf(lease: &str) -> (Deaf, Proxy) {
    let node = Deaf::start();
    let settings = format!("lease: {lease}");
    let text = configuration(&[node.address()], &settings, "timeouts: { connect: 30s, first_byte: 30s }");
    let proxy = Proxy::start(&text);
    (node, proxy)
}

#[test]
fn a_claim_that_has_waited_too_long_for_a_connection_is_released_and_not_sent() {
    let (node, proxy) = deaf("1s");
    let mut client = proxy.connect();
    client.send(charge("/", "k", "body"));
    let age = || proxy.records("k").first().and_then(|record| record["age"].as_f64()).unwrap_or_default();
    eventually("half of the lease", || age() > 0.5);
    let heard = node.hear_all(|| proxy.records("k").is_empty());
    assert_eq!(String::from_utf8_lossy(&heard), "");
    let answer = client.answer();
    assert_eq!((answer.status, answer.problem().as_str()), (503, "store-unavailable"));
}

#[test]
fn a_process_that_was_stopped_before_it_sent_does_not_send_after_its_claim_was_let_run_again() {
    let (node, proxy) = deaf("1s");
    let mut client = proxy.connect();
    client.send(charge("/", "k", "body"));
    eventually("the claim", || proxy.records("k").first().is_some_and(|record| record["state"] == "running"));
    proxy.signal("STOP");
    // Another process of this machine takes it for dead, and an operator lets the request run again.
    let origin = charging();
    let other = Proxy::start(&store_of(&proxy, origin.address));
    eventually("the burial", || other.records("k").first().is_some_and(|record| record["state"] == "unknown"));
    let id = other.records("k")[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(other.admin_delete(&format!("/api/idempotency/{id}")).status, 200);
    assert_eq!(other.ask(charge("/", "k", "body")).text(), "charge 0");
    proxy.signal("CONT");
    let ended = || proxy.idempotency("first") == 1.0 && proxy.metric("ringway_requests_in_flight") == 0.0;
    let heard = node.hear_all(ended);
    assert_eq!(String::from_utf8_lossy(&heard), "", "a second run");
    assert_eq!(client.answer().status, 503);
    assert_eq!(other.records("k")[0]["state"], "done");
}

/// The configuration of another proxy with the same store.
fn store_of(proxy: &Proxy, node: SocketAddr) -> String {
    let path = proxy.folder().join("data/idempotency.db");
    let text = configuration(&[node], "lease: 1s", "timeouts: { connect: 1s }");
    format!("idempotency_store: {{ path: {} }}\n{text}", path.display())
}
