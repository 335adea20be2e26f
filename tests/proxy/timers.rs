//! Every phase of a connection ends in time, with an answer where a request had begun.

use crate::support::http2::{DATA, END_STREAM, Frames, HEADERS};
use crate::support::{Origin, Proxy, eventually};
use std::io::Write;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

fn proxy(node: &Origin, limits: &str) -> Proxy {
    Proxy::start(&format!("limits: {{ {limits} }}\n{}", Proxy::pool(&[node.address], "")))
}

#[test]
fn a_silent_connection_closes_without_a_word() {
    let node = Origin::echo();
    let proxy = proxy(&node, "header_timeout: 300ms");
    let started = Instant::now();
    assert!(proxy.connect().is_closed());
    assert!(started.elapsed() >= Duration::from_millis(300));
}

#[test]
fn a_head_that_trickles_gets_408() {
    let node = Origin::echo();
    let proxy = proxy(&node, "header_timeout: 500ms");
    let mut client = proxy.connect();
    let mut stream = client.stream.try_clone().unwrap();
    let trickle = std::thread::spawn(move || {
        for byte in b"GET / HTTP/1.1\r\nhost: example.com\r\nx-slow: and slower" {
            if stream.write_all(&[*byte]).is_err() {
                return;
            }
            // The client's own pace is what is tested.
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let started = Instant::now();
    let answer = client.answer();
    assert_eq!((answer.status, answer.problem().as_str()), (408, "request-timeout"));
    assert!(
        (Duration::from_millis(450)..Duration::from_secs(3)).contains(&started.elapsed()),
        "{:?}",
        started.elapsed()
    );
    trickle.join().unwrap();
    assert_eq!(node.requests().len(), 0);
}

#[test]
fn the_second_head_on_a_connection_is_timed_too() {
    let node = Origin::echo();
    let proxy = proxy(&node, "header_timeout: 400ms");
    let mut client = proxy.connect();
    assert_eq!(client.request("GET / HTTP/1.1\r\nhost: a\r\n\r\n").status, 200);
    client.send("GET / HT");
    assert_eq!(client.answer().status, 408);
}

/// The beginning of a second head came with the first request.
#[test]
fn a_head_that_began_behind_another_request_is_timed_too() {
    let node = Origin::echo();
    let proxy = proxy(&node, "header_timeout: 400ms");
    let mut client = proxy.connect();
    assert_eq!(client.request("GET / HTTP/1.1\r\nhost: a\r\n\r\nGET / HT").status, 200);
    assert_eq!(client.answer().status, 408);
}

#[test]
fn a_body_that_stops_gets_408() {
    let node = Origin::echo();
    let proxy = proxy(&node, "body_idle_timeout: 300ms");
    for framing in ["content-length: 10\r\n\r\nhalf", "transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n"] {
        let mut client = proxy.connect();
        let answer = client.request(format!("POST / HTTP/1.1\r\nhost: a\r\n{framing}"));
        assert_eq!((answer.status, answer.problem().as_str()), (408, "request-timeout"));
        assert!(client.is_closed());
    }
}

#[test]
fn an_idle_connection_closes_without_a_word() {
    let node = Origin::echo();
    for idle in ["300ms", "1500ms"] {
        let proxy = proxy(&node, &format!("keep_alive_timeout: {idle}"));
        let mut client = proxy.connect();
        assert_eq!(client.request("GET / HTTP/1.1\r\nhost: a\r\n\r\n").status, 200);
        assert!(client.is_closed());
    }
}

/// A connection that was idle long enough to lose its buffers goes on as if nothing had been.
#[test]
fn a_parked_connection_wakes_up() {
    let node = Origin::echo();
    let proxy = proxy(&node, "keep_alive_timeout: 30s, header_timeout: 1300ms");
    let mut client = proxy.connect();
    for _ in 0..3 {
        assert_eq!(client.request("GET / HTTP/1.1\r\nhost: a\r\n\r\n").status, 200);
        // Longer than the second after which it is parked.
        proxy.header_timeout_passes();
    }
    assert_eq!(client.request("GET / HTTP/1.1\r\nhost: a\r\n\r\n").status, 200);
}

#[test]
fn a_client_that_takes_nothing_is_dropped() {
    let node = Origin::by_connection(|peer| {
        peer.request();
        peer.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", 64 << 20));
        let block = vec![b'x'; 1 << 20];
        for _ in 0..64 {
            peer.send(&block);
        }
    });
    let proxy = proxy(&node, "write_timeout: 500ms");
    let mut client = proxy.connect();
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    crate::support::eventually("the request", || proxy.metric("ringway_requests_in_flight") == 1.0);
    crate::support::eventually("the end of the stalled answer", || proxy.metric("ringway_requests_in_flight") == 0.0);
    assert_eq!(proxy.metric("ringway_connections{listener=\"http\"}"), 0.0);
}

/// The same towards a node of HTTP/2, where another task waits for the body.
#[test]
fn a_body_that_stops_gets_408_before_a_node_of_http2() {
    let node = Origin::http2();
    let pool = Proxy::pool(&[node.address], "    protocol: http2\n");
    let proxy = Proxy::start(&format!("limits: {{ body_idle_timeout: 300ms }}\n{pool}"));
    let mut client = proxy.connect();
    client.send(format!("POST /unary HTTP/1.1\r\nhost: a\r\ncontent-length: 200000\r\n\r\n{}", "x".repeat(70_000)));
    let answer = client.answer();
    assert_eq!((answer.status, answer.problem().as_str()), (408, "request-timeout"));
    assert!(client.is_closed());
}

/// What is read of a body behind its answer is no head: the connection is idle, and closes without a word.
#[test]
fn the_rest_of_a_body_begins_no_head() {
    let go = Arc::new(Barrier::new(2));
    let node = {
        let go = Arc::clone(&go);
        Origin::by_connection(move |peer| {
            peer.request();
            go.wait();
            peer.answer("early");
        })
    };
    let limits = "limits: { header_timeout: 300ms, keep_alive_timeout: 1500ms, request_buffer: 0B }\n";
    let proxy = Proxy::start(&format!("{limits}{}", Proxy::pool(&[node.address], "")));
    let mut client = proxy.connect();
    client.send("POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 10\r\n\r\n");
    eventually("the request at the node", || node.requests().len() == 1);
    // The client does not wait for the 100.
    client.send("0123456789");
    go.wait();
    assert_eq!(client.answer().status, 200);
    assert!(client.is_closed());
}

/// A connection that stops in the middle of what may be HTTP/2 has no more time than any other.
#[test]
fn half_a_preface_has_one_head_timeout() {
    let node = Origin::echo();
    let proxy = proxy(&node, "header_timeout: 1s");
    let mut client = proxy.connect();
    let begin = Instant::now();
    client.send("PRI * HT");
    assert_eq!(client.answer().status, 408);
    assert!(begin.elapsed() < Duration::from_millis(1800), "{:?}", begin.elapsed());
}

/// Once the answer has begun, either direction is a sign of life: a client that listens need not speak.
#[test]
fn a_listening_client_is_not_taken_for_a_stalled_one() {
    for over_http2 in [false, true] {
        let node = Origin::by_connection(|peer| {
            peer.request();
            peer.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
            for _ in 0..10 {
                // Its pieces come more often than a body may pause.
                std::thread::sleep(Duration::from_millis(100));
                peer.send("1\r\na\r\n");
            }
            peer.send("0\r\n\r\n");
            peer.client.is_closed();
        });
        let proxy = proxy(&node, "body_idle_timeout: 300ms");
        if over_http2 {
            let mut frames = Frames::connect(proxy.address);
            let head = [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "a")];
            frames.headers(0, 1, &head);
            frames.send(DATA, 0, 1, b"hi");
            let mut body = Vec::<u8>::new();
            loop {
                let frame = frames.of_stream(1).expect("more of the answer");
                assert!(frame.kind == HEADERS || frame.kind == DATA, "{frame:?} after {body:?}");
                if frame.kind == DATA {
                    body.extend(&frame.payload);
                    if frame.flags & END_STREAM > 0 {
                        break;
                    }
                }
            }
            assert_eq!(body, b"aaaaaaaaaa");
        } else {
            let mut client = proxy.connect();
            client.send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n");
            let answer = client.answer();
            assert_eq!((answer.status, answer.text().as_str()), (200, "aaaaaaaaaa"));
        }
    }
}

/// A body of chunks that was read whole leaves nothing behind that could be taken for the next head's beginning.
#[test]
fn a_head_behind_a_chunked_body_is_timed_too() {
    let node = Origin::by_connection(|peer| {
        while let Some(head) = peer.request() {
            peer.body_of(&head);
            peer.answer("ok");
        }
    });
    let proxy = proxy(&node, "header_timeout: 300ms");
    let mut client = proxy.connect();
    let answer = client.request("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n");
    assert_eq!(answer.status, 200);
    let began = Instant::now();
    client.send("GET / HTTP/1.1\r\nho");
    assert_eq!(client.answer().status, 408);
    assert!(began.elapsed() < Duration::from_millis(900), "{:?}", began.elapsed());
}
