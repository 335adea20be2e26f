//! A claim that grows old before a byte of its request was sent: others may have buried it, so nothing is sent.

use super::*;
use crate::support::eventually;
use std::io::{Read, Write};
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

/// A node that speaks HTTP/2 and does not say how many streams it allows: more may wait in the connection then.
#[test]
fn a_claim_does_not_grow_old_in_a_connection_that_has_not_said_what_it_takes() {
    let node = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = node.local_addr().unwrap();
    let text =
        configuration(&[address], "lease: 2s", "protocol: http2\n    timeouts: { connect: 30s, first_byte: 30s }");
    let proxy = Proxy::start(&text);
    let mut client = proxy.connect();
    client.send(charge("/", "k", "body"));
    let mut stream = node.accept().unwrap().0;
    let answer = client.answer();
    assert_eq!((answer.status, answer.problem().as_str()), (503, "store-unavailable"));
    eventually("the release", || proxy.records("k").is_empty());
    drop(proxy);
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).unwrap();
    assert_eq!(kinds(&heard), [SETTINGS, WINDOW_UPDATE], "no request was sent");
}

/// The node allows one stream at a time: the second request does not wait behind the first.
#[test]
fn claims_beyond_the_streams_of_a_connection_take_another_one() {
    let (connected, told, answers) = (Barrier::default(), Barrier::default(), Barrier::default());
    let node = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = node.local_addr().unwrap();
    let gates = (connected.clone(), told.clone(), answers.clone());
    std::thread::spawn(move || {
        for (number, stream) in node.incoming().enumerate() {
            let (stream, gates) = (stream.unwrap(), gates.clone());
            std::thread::spawn(move || one_stream(stream, number == 0, &gates));
        }
    });
    let timeouts = "protocol: http2\n    timeouts: { connect: 30s, first_byte: 30s }";
    let proxy = Proxy::start(&configuration(&[address], "lease: 20s", timeouts));
    let (tell, heard) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        for key in ["a", "b"] {
            let (tell, proxy) = (tell.clone(), &proxy);
            scope.spawn(move || tell.send(proxy.ask(charge("/", key, "body")).status));
        }
        connected.wait();
        eventually("both claims", || proxy.records("a").len() + proxy.records("b").len() == 2);
        told.open();
        assert_eq!(heard.recv(), Ok(200), "over another connection");
        answers.open();
        assert_eq!(heard.recv(), Ok(200));
    });
}

/// A node's connection that allows one stream, and answers it. The first connection says so, and answers, when it may.
fn one_stream(mut stream: TcpStream, is_first: bool, (connected, told, answers): &(Barrier, Barrier, Barrier)) {
    if is_first {
        connected.open();
        told.wait();
    }
    stream.write_all(&[0, 0, 6, SETTINGS, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1]).unwrap();
    let (mut heard, mut buffer) = (Vec::new(), [0; 4096]);
    while !kinds(&heard).contains(&HEADERS) {
        let Ok(length @ 1..) = stream.read(&mut buffer) else { return };
        heard.extend_from_slice(&buffer[..length]);
    }
    if is_first {
        answers.wait();
    }
    // The whole answer is `:status: 200`.
    stream.write_all(&[0, 0, 1, HEADERS, 5, 0, 0, 0, 1, 0x88]).unwrap();
    while let Ok(1..) = stream.read(&mut buffer) {}
}

const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;

/// The kinds of the frames behind the preface of a connection.
fn kinds(heard: &[u8]) -> Vec<u8> {
    let mut kinds = Vec::new();
    let mut rest = heard.get(24..).unwrap_or_default();
    while let [a, b, c, kind, ..] = *rest {
        kinds.push(kind);
        rest = rest.get(9 + u32::from_be_bytes([0, a, b, c]) as usize..).unwrap_or_default();
    }
    kinds
}

/// The configuration of another proxy with the same store.
fn store_of(proxy: &Proxy, node: SocketAddr) -> String {
    let path = proxy.folder().join("data/idempotency.db");
    let text = configuration(&[node], "lease: 1s", "timeouts: { connect: 1s }");
    format!("idempotency_store: {{ path: {} }}\n{text}", path.display())
}
