//! Bodies, framing and interim answers, both ways.

use crate::support::{Origin, Proxy, eventually};
use std::sync::mpsc::channel;

#[test]
fn a_connection_is_kept_on_both_sides() {
    let node = Origin::echo();
    let proxy = Proxy::start(&format!("workers: 1\n{}", Proxy::pool(&[node.address], "")));
    let mut client = proxy.connect();
    for n in 0..5 {
        let answer = client.request(format!("GET /{n} HTTP/1.1\r\nhost: a\r\n\r\n"));
        assert_eq!(answer.status, 200);
    }
    assert!(client.is_open());
    assert_eq!(node.connections(), 1);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    let mut client = proxy.connect();
    client
        .send("GET /1 HTTP/1.1\r\nhost: a\r\n\r\nGET /2 HTTP/1.1\r\nhost: a\r\n\r\nGET /3 HTTP/1.1\r\nhost: a\r\n\r\n");
    for n in 1..=3 {
        assert!(client.answer().text().starts_with(&format!("GET /{n} ")));
    }
}

#[test]
fn bodies_go_up_as_they_are() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    let mut client = proxy.connect();
    let sized = client.request("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello");
    assert!(sized.text().contains("content-length: 5") && sized.text().ends_with("hello"));
    let chunked = client.request(
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
    );
    assert!(chunked.text().contains("transfer-encoding: chunked") && chunked.text().ends_with("hello world"));
    let empty = client.request("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n");
    assert!(empty.text().contains("content-length: 0"), "{}", empty.text());
    let get = client.request("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    assert!(!get.text().contains("content-length") && !get.text().contains("transfer-encoding"), "{}", get.text());
}

#[test]
fn trailers_go_both_ways() {
    let node = Origin::by_connection(|peer| {
        while let Some(head) = peer.request() {
            let body = String::from_utf8(peer.body_of(&head)).unwrap();
            assert_eq!(body, "hellox-sum: 1\n");
            peer.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-check\r\n\r\n3\r\nabc\r\n0\r\nx-check: 2\r\n\r\n");
        }
    });
    let proxy = Proxy::before(&[node.address]);
    let answer = proxy.connect().request(
        "POST / HTTP/1.1\r\nhost: a\r\nte: trailers\r\nconnection: te\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n",
    );
    assert_eq!((answer.text().as_str(), answer.trailers.as_str()), ("abc", "x-check: 2\n"));
    assert!(node.requests()[0].contains("te: trailers"));
}

#[test]
fn answers_without_a_body_have_none() {
    for (status, lines) in [
        ("204 No Content", ""),
        ("304 Not Modified", "etag: \"1\"\r\n"),
        ("304 Not Modified", "content-length: 77\r\n"),
    ] {
        let node = Origin::saying(format!("HTTP/1.1 {status}\r\n{lines}\r\n"));
        let proxy = Proxy::before(&[node.address]);
        let mut client = proxy.connect();
        for _ in 0..2 {
            let answer = client.request("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
            assert!(status.starts_with(&answer.status.to_string()));
            assert_eq!(answer.field("transfer-encoding"), None, "{answer:?}");
        }
        assert!(client.is_open());
    }
}

#[test]
fn head_keeps_the_length_and_has_no_body() {
    let node = Origin::saying("HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n");
    let proxy = Proxy::before(&[node.address]);
    let mut client = proxy.connect();
    for _ in 0..2 {
        let answer = client.request("HEAD / HTTP/1.1\r\nhost: a\r\n\r\n");
        assert_eq!(answer.field("content-length").as_deref(), Some("1234"));
    }
    assert!(client.is_open());
    assert_eq!(node.connections(), 1);
}

#[test]
fn a_close_delimited_answer_is_reframed() {
    let node = Origin::by_connection(|peer| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\n\r\nuntil the end");
    });
    let proxy = Proxy::before(&[node.address]);
    let mut client = proxy.connect();
    let answer = client.request("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!(
        (answer.text().as_str(), answer.field("transfer-encoding").as_deref()),
        ("until the end", Some("chunked"))
    );
    assert!(client.is_open());
}

#[test]
fn an_http_1_0_client_gets_no_chunks_and_no_interim_answer() {
    let node = Origin::saying(
        "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    );
    let proxy = Proxy::before(&[node.address]);
    let mut client = proxy.connect();
    let answer = client.request("GET / HTTP/1.0\r\n\r\n");
    assert_eq!((answer.status, answer.text().as_str(), answer.field("transfer-encoding")), (200, "abc", None));
    assert!(client.is_closed());
    let head = &node.requests()[0];
    assert!(
        head.starts_with("GET / HTTP/1.1") && head.contains("via: 1.0 ringway") && head.contains("host: 127.0.0.1:"),
        "{head}"
    );
}

#[test]
fn an_http_1_0_client_may_keep_its_connection() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    let mut client = proxy.connect();
    for _ in 0..2 {
        let answer = client.request("GET / HTTP/1.0\r\nhost: a\r\nconnection: keep-alive\r\n\r\n");
        assert_eq!((answer.status, answer.field("connection").as_deref()), (200, Some("keep-alive")));
    }
}

#[test]
fn early_hints_arrive_before_the_answer() {
    let (go, wait) = channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let node = Origin::by_connection(move |peer| {
        peer.request();
        peer.send(
            "HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\nconnection: x-hop\r\nx-hop: 1\r\n\r\n",
        );
        wait.lock().unwrap().recv().unwrap();
        peer.answer("done");
    });
    let proxy = Proxy::before(&[node.address]);
    let mut client = proxy.connect();
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    let hints = client.head();
    assert!(hints.starts_with("HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload"), "{hints}");
    assert!(!hints.contains("x-hop"), "{hints}");
    go.send(()).unwrap();
    let answer = client.answer();
    assert_eq!((answer.status, answer.text().as_str()), (200, "done"));
    assert!(client.is_open());
}

/// The client's body is asked for only when the node asks.
#[test]
fn continue_comes_from_the_node() {
    let node = Origin::by_connection(|peer| {
        let head = peer.request().unwrap();
        assert!(head.contains("expect: 100-continue"), "{head}");
        peer.send("HTTP/1.1 100 Continue\r\n\r\n");
        assert_eq!(peer.body_of(&head), b"hello");
        peer.answer("thanks");
    });
    let proxy = Proxy::before(&[node.address]);
    let mut client = proxy.connect();
    client.send("POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n");
    assert_eq!(client.head(), "HTTP/1.1 100 Continue");
    client.send("hello");
    assert_eq!(client.answer().text(), "thanks");
}

#[test]
fn a_final_answer_spares_the_client_its_body() {
    let node = Origin::by_connection(|peer| {
        peer.request();
        peer.send("HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno");
        peer.client.has_ended();
    });
    let proxy = Proxy::before(&[node.address]);
    let mut client = proxy.connect();
    let answer = client.request("POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n");
    assert_eq!((answer.status, answer.text().as_str()), (403, "no"));
    assert!(client.is_closed());
}

#[test]
fn a_node_that_ignores_the_expectation_gets_the_body_anyway() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    let mut client = proxy.connect();
    client.send("POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n");
    assert_eq!(client.head(), "HTTP/1.1 100 Continue");
    client.send("hello");
    assert!(client.answer().text().ends_with("hello"));
}

/// A slow node holds a fast client back; a slow client holds a fast node back.
#[test]
fn back_pressure_goes_both_ways() {
    let (_held, never) = channel::<()>();
    let never = std::sync::Mutex::new(never);
    let node = Origin::by_connection(move |peer| {
        let head = peer.request().unwrap();
        if head.starts_with("GET") {
            let block = vec![b'x'; 1 << 20];
            peer.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", 64 << 20));
            for _ in 0..64 {
                peer.send(&block);
            }
        }
        // Reads nothing until the test is over.
        let _ = never.lock().unwrap().recv();
    });
    let proxy = Proxy::before(&[node.address]);
    let before = proxy.memory();
    let mut reader = proxy.connect();
    reader.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    reader.head();
    let mut writer = proxy.connect();
    writer.send(format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", 60 << 20));
    writer.stream.set_nonblocking(true).unwrap();
    let block = vec![b'x'; 1 << 20];
    let mut sent = 0;
    // The kernel's buffers take some megabytes; the proxy must not take the rest.
    let mut last = std::time::Instant::now();
    while last.elapsed().as_millis() < 500 {
        if let Ok(length) = std::io::Write::write(&mut writer.stream, &block) {
            sent += length;
            last = std::time::Instant::now();
        }
    }
    assert!(sent < 30 << 20, "{sent} bytes went into a node that reads nothing");
    let grown = proxy.memory().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes more memory");
}

#[test]
fn a_client_that_leaves_ends_the_request_at_the_node() {
    let (told, ended) = channel();
    let told = std::sync::Mutex::new(told);
    let node = Origin::by_connection(move |peer| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\npart");
        let _ = told.lock().unwrap().send(peer.client.has_ended());
    });
    let proxy = Proxy::before(&[node.address]);
    let mut client = proxy.connect();
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    client.head();
    drop(client);
    assert!(ended.recv_timeout(crate::support::PATIENCE).unwrap());
    eventually("the request's end", || proxy.metric("ringway_requests_in_flight") == 0.0);
    assert_eq!(proxy.metric("ringway_node_in_flight{node=\"n0\",pool=\"app\"}"), 0.0);
}

#[test]
fn options_asterisk_and_max_forwards() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    let mut client = proxy.connect();
    let last = client.request("OPTIONS / HTTP/1.1\r\nhost: a\r\nmax-forwards: 0\r\n\r\n");
    assert_eq!(last.status, 204);
    let next = client.request("OPTIONS / HTTP/1.1\r\nhost: a\r\nmax-forwards: 7\r\n\r\n");
    assert!(next.text().contains("max-forwards: 6"), "{}", next.text());
    assert_eq!(node.requests().len(), 1);
}

/// Whatever the method: what a request brings goes to the node.
#[test]
fn a_get_with_a_body_keeps_it() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    let mut client = proxy.connect();
    let sized = client.request("GET /_search HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nquery");
    assert!(sized.text().ends_with("query"), "{sized:?}");
    let chunked =
        client.request("GET /_search HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nquery\r\n0\r\n\r\n");
    assert!(chunked.text().ends_with("query"), "{chunked:?}");
}
