//! What one client, or all together, may hold: connections of an address, bodies that drip, memory.

use crate::support::http2::{DATA, END_STREAM, Frames, Http2};
use crate::support::{Barrier, Origin, Proxy, eventually};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

fn proxy(node: &Origin, limits: &str) -> Proxy {
    Proxy::start(&format!("limits: {{ {limits} }}\n{}", Proxy::pool(&[node.address], "")))
}

fn cut(proxy: &Proxy, reason: &str) -> f64 {
    proxy.metric(&format!("ringway_connections_aborted_total{{reason=\"{reason}\"}}"))
}

const POST: &str = "POST /slow HTTP/1.1\r\nhost: a\r\n";

#[test]
fn an_address_has_only_so_many_connections() {
    let node = Origin::echo();
    let proxy = proxy(&node, "connections_per_address: 3");
    let mut open: Vec<_> = (0..3).map(|_| proxy.connect()).collect();
    for client in &mut open {
        assert_eq!(client.request("GET / HTTP/1.1\r\nhost: a\r\n\r\n").status, 200);
    }
    assert!(proxy.connect().is_closed());
    assert_eq!(cut(&proxy, "address_limit"), 1.0);
    // One that ends makes room; another address has its own.
    open.pop();
    eventually("room for another", || {
        let mut client = proxy.connect();
        let _ = client.stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        matches!(client.stream.read(&mut [0; 9]), Ok(9))
    });
    let from = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    from.bind(&"127.0.0.9:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    from.connect(&proxy.address.into()).unwrap();
    let mut other = crate::support::Client::over(TcpStream::from(from));
    assert_eq!(other.request("GET / HTTP/1.1\r\nhost: a\r\n\r\n").status, 200);
}

#[test]
fn proxies_that_are_trusted_may_have_any_number_of_connections() {
    let node = Origin::echo();
    let text = "limits: { connections_per_address: 1 }\ntrusted_proxies: [127.0.0.0/8]\n";
    let proxy = Proxy::start(&format!("{text}{}", Proxy::pool(&[node.address], "")));
    let mut open: Vec<_> = (0..5).map(|_| proxy.connect()).collect();
    for client in &mut open {
        assert_eq!(client.request("GET / HTTP/1.1\r\nhost: a\r\n\r\n").status, 200);
    }
}

/// Sends a byte every 20 ms until the other side has had enough.
fn drip(stream: &TcpStream, byte: &'static [u8]) -> std::thread::JoinHandle<()> {
    let mut stream = stream.try_clone().unwrap();
    std::thread::spawn(move || {
        while stream.write_all(byte).is_ok() {
            // The client's own pace is what is tested.
            std::thread::sleep(Duration::from_millis(20));
        }
    })
}

#[test]
fn a_body_that_drips_gets_408_and_reaches_no_node() {
    let node = Origin::echo();
    let proxy = proxy(&node, "body_idle_timeout: 200ms, body_min_rate: 500B");
    let mut client = proxy.connect();
    client.send(format!("{POST}content-length: 1000\r\n\r\n"));
    let dripping = drip(&client.stream, b"x");
    let answer = client.answer();
    assert_eq!((answer.status, answer.problem().as_str()), (408, "request-timeout"));
    drop(client);
    dripping.join().unwrap();
    assert_eq!(node.connections(), 0, "it never came so far as to need one");
    assert_eq!(cut(&proxy, "body"), 1.0);
}

#[test]
fn a_stream_of_chunks_that_drips_is_cut_off() {
    let node = Origin::by_connection(|peer| {
        while let Some(head) = peer.request() {
            let _ = head;
            peer.client.exactly_or_less(100_000);
        }
    });
    let proxy = proxy(&node, "body_idle_timeout: 200ms, body_min_rate: 500B");
    let mut client = proxy.connect();
    client.send(format!("{POST}transfer-encoding: chunked\r\n\r\n"));
    let dripping = drip(&client.stream, b"1\r\nx\r\n");
    assert_eq!(client.answer().status, 408);
    drop(client);
    dripping.join().unwrap();
}

#[test]
fn a_dripping_stream_of_http2_is_answered_408() {
    let node = Origin::echo();
    let proxy = proxy(&node, "body_idle_timeout: 200ms, body_min_rate: 500B");
    let mut frames = Frames::connect(proxy.address);
    let head =
        [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "a"), ("content-length", "1000")];
    frames.headers(0, 1, &head);
    let (done, dripping) = (Arc::new(std::sync::atomic::AtomicBool::new(false)), frames.clone_stream());
    let stop = Arc::clone(&done);
    let dripper = std::thread::spawn(move || {
        let mut stream = dripping;
        while !stop.load(std::sync::atomic::Ordering::SeqCst) {
            let _ = stream.write_all(&crate::support::http2::frame(DATA, 0, 1, b"x"));
            // The client's own pace is what is tested.
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let answer = frames.of_stream(1).unwrap();
    done.store(true, std::sync::atomic::Ordering::SeqCst);
    dripper.join().unwrap();
    // Its head says 408: in a static table's literal, or as it is.
    assert_eq!(answer.kind, crate::support::http2::HEADERS);
    assert_eq!(node.connections(), 0);
    assert_eq!(proxy.metric("ringway_requests_total{code=\"408\",method=\"POST\",route=\"site\"}"), 1.0);
}

/// Calls of gRPC may say little for as long as they like.
#[test]
fn a_slow_stream_of_grpc_is_left_alone() {
    let barrier = Arc::new(Barrier::default());
    let held = Arc::clone(&barrier);
    let node = Origin::by_connection(move |peer| {
        while peer.request().is_some() {
            held.wait();
            peer.answer("done");
        }
    });
    let proxy = proxy(&node, "body_idle_timeout: 200ms, body_min_rate: 10KiB");
    let mut client = proxy.connect();
    client.send(format!("{POST}content-type: application/grpc\r\ntransfer-encoding: chunked\r\n\r\n"));
    for _ in 0..40 {
        client.send("1\r\nx\r\n");
        // The client's own pace is what is tested.
        std::thread::sleep(Duration::from_millis(20));
    }
    client.send("0\r\n\r\n");
    barrier.open();
    assert_eq!(client.answer().status, 200);
}

/// A body that is awaited reaches its node as it was, whatever pieces it came in.
#[test]
fn small_bodies_are_awaited_and_large_ones_stream() {
    let node = Origin::echo();
    for limits in ["request_buffer: 64KiB", "request_buffer: 0B", "request_buffer: 16MiB"] {
        let proxy = proxy(&node, limits);
        for length in [1usize, 5_000, 65_536, 300_000] {
            let body: String = (0..length).map(|n| char::from(b'a' + (n % 26) as u8)).collect();
            let mut client = proxy.connect();
            client.send(format!("{POST}content-length: {length}\r\n\r\n"));
            for piece in body.as_bytes().chunks(length.div_ceil(7)) {
                client.send(piece);
            }
            let answer = client.answer();
            assert_eq!(answer.status, 200);
            assert!(answer.text().ends_with(&body), "{limits} {length}");
            assert!(answer.text().to_ascii_lowercase().contains(&format!("content-length: {length}\r\n")));
            let answer = Http2::connect(proxy.address).ask("PUT", "/", "", &body).unwrap();
            assert!(answer.text().ends_with(&body), "{limits} {length}");
        }
        assert_eq!(proxy.metric("ringway_buffered_bytes"), 0.0);
    }
}

#[test]
fn no_node_is_asked_before_a_small_body_is_there() {
    let node = Origin::echo();
    let proxy = proxy(&node, "header_timeout: 10s");
    let mut client = proxy.connect();
    client.send(format!("{POST}content-length: 10\r\n\r\n12345"));
    eventually("the proxy to hold it", || proxy.metric("ringway_requests_in_flight") == 1.0);
    assert_eq!(node.connections(), 0);
    client.send("67890");
    assert!(client.answer().text().ends_with("1234567890"));
}

/// Bodies that HTTP/2 clients have sent, and that nobody has read, count with all others.
#[test]
fn what_http2_clients_send_stays_within_the_budget() {
    let barrier = Arc::new(Barrier::default());
    let held = Arc::clone(&barrier);
    let node = Origin::by_connection(move |peer| {
        // What the kernel holds is not the proxy's.
        socket2::SockRef::from(&peer.client.stream).set_recv_buffer_size(256 << 10).unwrap();
        while let Some(head) = peer.request() {
            held.wait();
            let body = peer.body_of(&head);
            peer.answer(&body.len().to_string());
        }
    });
    let proxy = proxy(&node, "buffered_bytes: 1MiB");
    let length = 12 << 20;
    let clients: Vec<_> = (0..12)
        .map(|_| {
            let address = proxy.address;
            std::thread::spawn(move || {
                let client = Http2::connect(address);
                let told = client.ask("POST", "/", "", &"x".repeat(length)).unwrap().text();
                // One that had to wait is as good as before.
                assert_eq!(client.get("/").text(), "0");
                told
            })
        })
        .collect();
    let most = std::cell::Cell::new(0.0f64);
    eventually("the budget to be spent", || {
        most.set(most.get().max(proxy.metric("ringway_buffered_bytes")));
        most.get() > 900_000.0
    });
    for _ in 0..20 {
        most.set(most.get().max(proxy.metric("ringway_buffered_bytes")));
    }
    assert!(most.get() <= f64::from(1 << 20), "{}", most.get());
    barrier.open();
    for client in clients {
        assert_eq!(client.join().unwrap(), length.to_string());
    }
    eventually("all to be given back", || proxy.metric("ringway_buffered_bytes") == 0.0);
}

/// A body that would be stored is passed on, and not, where the process holds as much as it may.
#[test]
fn fills_stay_within_the_budget() {
    let node = Origin::by_connection(|peer| {
        while let Some(head) = peer.request() {
            let length = if head.contains("/small") { 1000 } else { 3 << 20 };
            peer.send(format!("HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-length: {length}\r\n\r\n"));
            peer.send("x".repeat(length));
        }
    });
    let routes = format!(
        "limits: {{ buffered_bytes: 1MiB }}\npools: {{ app: {{ nodes: [{{ id: n0, address: \"{}\" }}] }} }}\nroutes: [{{ name: site, pool: app, cache: {{}} }}]\n",
        node.address
    );
    let proxy = Proxy::start(&routes);
    for _ in 0..2 {
        let answer = proxy.get("/large");
        assert_eq!((answer.body.len(), answer.truncated), (3 << 20, false));
    }
    assert_eq!(node.requests().len(), 2, "it was too large to be held while it came");
    proxy.get("/small");
    assert!(proxy.get("/small").field("cache-status").unwrap().contains("hit"));
    eventually("all to be given back", || proxy.metric("ringway_buffered_bytes") == 0.0);
}

/// An upload ends although its client was told of the end of the stream only at the last.
#[test]
fn an_upload_over_http2_ends_where_its_stream_does() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    let mut frames = Frames::connect(proxy.address);
    let head = [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "a"), ("content-length", "3")];
    frames.headers(0, 1, &head);
    frames.send(DATA, 0, 1, b"abc");
    frames.send(DATA, END_STREAM, 1, b"");
    assert_eq!(frames.of_stream(1).unwrap().kind, crate::support::http2::HEADERS);
    assert!(node.requests()[0].to_ascii_lowercase().contains("content-length: 3"));
}

/// A client that asks for much over one connection and reads none of it has the proxy hold little of it.
#[test]
fn answers_that_nobody_reads_do_not_pile_up() {
    let node = Origin::by_connection(|peer| {
        while peer.request().is_some() {
            peer.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", 8 << 20));
            peer.send(vec![b'x'; 8 << 20]);
        }
    });
    let proxy = Proxy::before(&[node.address]);
    let before = proxy.memory();
    let mut readers = Vec::new();
    for _ in 0..4 {
        let mut frames = Frames::connect(proxy.address);
        // Windows that are never full: 2^31 - 1.
        frames.send(crate::support::http2::SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]);
        frames.send(crate::support::http2::WINDOW_UPDATE, 0, 0, &[0x7f, 0xfe, 0, 0]);
        for stream in 0..100 {
            let head = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")];
            frames.headers(END_STREAM, 2 * stream + 1, &head);
        }
        readers.push(frames);
    }
    eventually("all to be asked for", || node.requests().len() == 400);
    let mut most = 0;
    for _ in 0..20 {
        most = most.max(proxy.memory());
        // It is the time in which memory would grow that is looked at.
        std::thread::sleep(Duration::from_millis(50));
    }
    // 128 KiB for each of 400 streams would be 50 MiB.
    assert!(most < before + (40 << 20), "{} MiB", (most - before) >> 20);
    // One that reads after all gets all.
    let answer = Http2::connect(proxy.address).get("/");
    assert_eq!(answer.body.len(), 8 << 20);
}
