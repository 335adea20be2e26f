//! Messages with two meanings, by their CVE or RFC section, as bytes and as frames, from clients and from nodes.
//! Each is refused, or goes on in one form that nobody can misread; and a connection of which the rest cannot
//! be trusted ends. `malformed.rs` has the plainly malformed requests, `http2.rs` those of HTTP/2.

use crate::support::http2::{DATA, END_STREAM, Frames, HEADERS, Http2};
use crate::support::{Client, Origin, Proxy, eventually};

/// What a node got, however many requests it takes them for.
fn seen(node: &Origin) -> String {
    node.requests().join("\n---\n").to_ascii_lowercase()
}

/// A request from a client, whether the node may see it, and what must then not be in what it saw.
struct Case {
    name: &'static str,
    bytes: &'static str,
    /// 0 where the connection may just end.
    status: u16,
    forbidden: &'static [&'static str],
}

const fn case(name: &'static str, bytes: &'static str, status: u16, forbidden: &'static [&'static str]) -> Case {
    Case { name, bytes, status, forbidden }
}

const FROM_CLIENTS: &[Case] = &[
    case(
        "RFC 9112 6.1: length and chunks",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n",
        200,
        &["/smuggled", "content-length"],
    ),
    case(
        "CVE-2019-18277 (HAProxy): a coding that is nearly chunked",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 6\r\ntransfer-encoding:\x0bchunked\r\n\r\n0\r\n\r\nX",
        400,
        &["transfer-encoding"],
    ),
    case(
        "CVE-2021-40346 (HAProxy): a length behind a very long name",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length0aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa:\r\ncontent-length: 23\r\n\r\nGET /smuggled HTTP/1.1\r",
        200,
        &["/smuggled"],
    ),
    case(
        "CVE-2022-32213 (Node.js): two codings",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n",
        501,
        &["transfer-encoding"],
    ),
    case(
        "CVE-2022-32215 (Node.js): a coding over two lines",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
        400,
        &["chunked"],
    ),
    case(
        "CVE-2023-25690 (httpd): a target with a request in it",
        "GET /a%20HTTP/1.1%0d%0ahost:%20b%0d%0a%0d%0aGET%20/smuggled HTTP/1.1\r\nhost: a\r\n\r\n",
        200,
        &["\nget /smuggled", "\nhost: b"],
    ),
    case("RFC 9112 2.2: a bare line feed ends a line of the head", "GET / HTTP/1.1\nhost: a\nx: 1\n\n", 200, &[]),
    case(
        "RFC 9112 5.1: white space before the colon",
        "GET / HTTP/1.1\r\nhost: a\r\ncontent-length : 5\r\n\r\nhello",
        400,
        &["hello"],
    ),
    case(
        "RFC 9110 7.6.1: what the proxy says about the client cannot be named away",
        "GET / HTTP/1.1\r\nhost: a\r\nconnection: close, x-forwarded-for\r\n\r\n",
        400,
        &["get /"],
    ),
    case(
        "RFC 9110 7.6.1: another field may be, and so is",
        "GET / HTTP/1.1\r\nhost: a\r\nx-real-ip: 6.6.6.6\r\nconnection: close, x-real-ip\r\n\r\n",
        200,
        &["6.6.6.6", "x-real-ip"],
    ),
    case(
        "RFC 9112 6.1: HTTP/1.0 knows no chunks",
        "POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        400,
        &["hello"],
    ),
    case(
        "RFC 9112 7.1.1: a chunk size that overflows",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n10000000000000000\r\nGET /smuggled HTTP/1.1\r\n",
        400,
        &["/smuggled"],
    ),
    case(
        "CVE-2023-46589's kind (Tomcat), RFC 9112 7.1.2: a trailer that is a length",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\ncontent-length: 40\r\n\r\n",
        200,
        &["content-length: 40"],
    ),
    case(
        "RFC 9110 7.8: a pipelined request behind an upgrade that the node refuses",
        "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nGET /second HTTP/1.1\r\nhost: a\r\n\r\n",
        200,
        &[],
    ),
    case("RFC 9112 3.2: two hosts", "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400, &["get /"]),
    case(
        "RFC 9112 3.2.2: the target's host goes before Host",
        "GET http://b/ HTTP/1.1\r\nhost: a\r\n\r\n",
        200,
        &["host: a\r"],
    ),
    case(
        "RFC 9112 2.3: an upgrade to h2c goes no further",
        "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n",
        200,
        &["h2c", "http2-settings"],
    ),
];

#[test]
fn from_clients_over_http1() {
    for Case { name, bytes, status, forbidden } in FROM_CLIENTS {
        let node = Origin::echo();
        let proxy = Proxy::before(&[node.address]);
        let mut client = Client::connect(proxy.address);
        client.send(bytes);
        let answer = client.answer();
        assert_eq!(answer.status, *status, "{name}: {answer:?}");
        if *status >= 400 {
            assert!(client.is_closed(), "{name}: the rest is not to be trusted");
        }
        let seen = seen(&node);
        for text in *forbidden {
            assert!(!seen.contains(text), "{name}: the node saw {text:?} in {seen:?}");
        }
    }
}

/// What becomes of HTTP/2 in HTTP/1: one request each, whatever stands in it.
#[test]
fn from_clients_over_http2() {
    let plain = [(":method", "POST"), (":scheme", "http"), (":authority", "a")];
    for (name, fields, data, must_not) in [
        (
            "RFC 9113 10.3, CVE-2021-33193 (httpd): a path with a line in it",
            vec![(":path", "/%0d%0ahost: b"), ("x", "1")],
            "",
            "\nhost: b",
        ),
        (
            "PortSwigger H2.CL: a body that is a request",
            vec![(":path", "/"), ("content-length", "40")],
            "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\nxxxx",
            "\nget /smuggled",
        ),
        (
            "PortSwigger H2.TE: a body that is chunks and a request",
            vec![(":path", "/")],
            "0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n",
            "\nget /smuggled",
        ),
        ("RFC 9113 8.3.1: an absolute target in the path", vec![(":path", "http://b/smuggled")], "", "host: b"),
    ] {
        let node = Origin::echo();
        let proxy = Proxy::before(&[node.address]);
        let mut frames = Frames::connect(proxy.address);
        let all = [&plain[..], &fields[..]].concat();
        frames.headers(if data.is_empty() { END_STREAM } else { 0 }, 1, &all);
        if !data.is_empty() {
            frames.send(DATA, END_STREAM, 1, data.as_bytes());
        }
        frames.of_stream(1);
        // A second request must be the node's second, not something that the first one left behind.
        let client = Http2::connect(proxy.address);
        assert!(client.get("/after").text().starts_with("GET /after "), "{name}");
        let requests = node.requests();
        assert!(requests.len() <= 2, "{name}: {requests:?}");
        assert!(!seen(&node).contains(must_not), "{name}: {:?}", seen(&node));
    }
}

/// Bytes that a node says out of turn, or in two ways: they are nobody's answer.
#[test]
fn from_nodes() {
    for (name, answer, status) in [
        (
            "RFC 9112 9.2: surplus bytes",
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil",
            200,
        ),
        (
            "RFC 9112 6.3: length and chunks",
            "HTTP/1.1 200 OK\r\ncontent-length: 100\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            200,
        ),
        ("RFC 9112 6.3: two lengths", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 4\r\n\r\nokevil", 502),
        ("RFC 9110 8.6: equal lengths in a list", "HTTP/1.1 200 OK\r\ncontent-length: 2, 2\r\n\r\nok", 200),
        (
            "RFC 9110 8.6: equal lengths in lines",
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nok",
            200,
        ),
        ("RFC 9112 6.3: a length with a sign", "HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\nok", 502),
        (
            "RFC 9112 6.1: a coding that is not chunked",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            502,
        ),
        (
            "RFC 9112 7.1: a bare line feed in a trailer",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx: 1\n\r\n",
            502,
        ),
        (
            "RFC 9112 7.1.1: NUL in an extension",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2;a=\0\r\nok\r\n0\r\n\r\n",
            502,
        ),
        (
            "RFC 9112 7.1.1: an empty extension",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2;\r\nok\r\n0\r\n\r\n",
            502,
        ),
        (
            "RFC 9112 7.1: extensions and a trailer",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2;a=b\r\nok\r\n0;c\r\nx: 1\r\n\r\n",
            200,
        ),
        ("RFC 9112 6.3: a 204 with a body", "HTTP/1.1 204 No\r\ncontent-length: 4\r\n\r\nevil", 204),
        ("RFC 9112 6.3: a 304 with a body", "HTTP/1.1 304 No\r\ncontent-length: 4\r\n\r\nevil", 304),
        (
            "RFC 9110 15.2.2: a 101 that nobody asked for",
            "HTTP/1.1 101 Switch\r\nconnection: upgrade\r\nupgrade: evil\r\n\r\nevil",
            502,
        ),
        ("RFC 9112 5.2: a folded line", "HTTP/1.1 200 OK\r\nx: 1\r\n evil: 2\r\ncontent-length: 2\r\n\r\nok", 502),
        ("RFC 9110 5.5: NUL in a value", "HTTP/1.1 200 OK\r\nx: a\0b\r\ncontent-length: 2\r\n\r\nok", 502),
        ("RFC 9112 5.1: white space before the colon", "HTTP/1.1 200 OK\r\ncontent-length : 2\r\n\r\nok", 502),
        ("RFC 9112 4: a status of two digits", "HTTP/1.1 20 OK\r\ncontent-length: 2\r\n\r\nok", 502),
        ("RFC 9112 2.3: another protocol", "ICY 200 OK\r\ncontent-length: 2\r\n\r\nok", 502),
        (
            "RFC 9110 7.6.1: a length that is named away",
            "HTTP/1.1 200 OK\r\nconnection: content-length\r\ncontent-length: 2\r\n\r\nok",
            200,
        ),
    ] {
        let node = Origin::by_connection(move |peer| {
            while let Some(head) = peer.request() {
                match head.contains("/after") {
                    true => peer.answer("after"),
                    false => peer.send(answer),
                }
            }
        });
        let proxy = Proxy::start(&format!(
            "workers: 1\n{}",
            Proxy::pool(&[node.address], "    outlier_ejection: { consecutive_failures: 0 }\n")
        ));
        for version in ["HTTP/1.1", "HTTP/2"] {
            let (found, text) = match version {
                "HTTP/1.1" => {
                    let answer = proxy.get("/");
                    (answer.status, format!("{}{}", answer.head, answer.text()))
                }
                _ => {
                    let answer = Http2::connect(proxy.address).get("/");
                    (answer.status, answer.text())
                }
            };
            assert_eq!(found, status, "{name} over {version}: {text}");
            assert!(!text.contains("evil"), "{name} over {version}: {text}");
            assert_eq!(proxy.get("/after").text(), "after", "{name}: the next one gets its own answer");
        }
    }
}

/// What a client says behind its upgrade belongs to the tunnel, once there is one, and to nobody before.
#[test]
fn bytes_behind_an_upgrade_wait_for_the_101() {
    let gate = crate::support::Barrier::default();
    let held = gate.clone();
    let node = Origin::by_connection(move |peer| {
        peer.request();
        held.wait();
        peer.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n");
        let bytes = peer.client.exactly(5);
        peer.send(bytes);
    });
    let proxy = Proxy::before(&[node.address]);
    let mut client = proxy.connect();
    client.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nearly");
    eventually("the request", || node.requests().len() == 1);
    assert!(!node.requests()[0].contains("early"));
    gate.open();
    assert!(client.head().starts_with("HTTP/1.1 101"));
    assert_eq!(client.exactly(5), b"early");
}

/// HTTP/2 frames that are not what they should be end the connection, and what was well goes on elsewhere.
#[test]
fn frames_out_of_turn() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    let head = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")];
    for (name, kind, flags, stream, payload) in [
        ("RFC 9113 6.1: DATA on stream 0", DATA, 0, 0, &b"x"[..]),
        ("RFC 9113 5.1.1: an even stream", HEADERS, END_STREAM | 4, 2, b"\x82\x86\x84"),
        ("RFC 9113 6.10: CONTINUATION without HEADERS", 9, 4, 1, b"\x82"),
        ("RFC 9113 6.5: SETTINGS of a wrong length", 4, 0, 0, b"\0"),
        ("RFC 9113 6.9: a window of 0", 8, 0, 0, b"\0\0\0\0"),
        ("RFC 9113 6.7: PING of a wrong length", 6, 0, 0, b"\0"),
        ("RFC 9113 4.3: a field block that is no HPACK", HEADERS, END_STREAM | 4, 1, b"\xff\xff\xff\xff\xff\xff"),
    ] {
        let mut frames = Frames::connect(proxy.address);
        frames.send(kind, flags, stream, payload);
        while let Some(frame) = frames.next() {
            assert!(frame.kind != HEADERS, "{name}: {frame:?}");
        }
    }
    let mut frames = Frames::connect(proxy.address);
    frames.headers(END_STREAM, 1, &head);
    assert_eq!(frames.of_stream(1).unwrap().kind, HEADERS);
}

#[test]
fn a_length_that_is_none_is_named() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    for lengths in
        ["content-length: x", "content-length: -1", "content-length: 2, 3", "content-length: 2\r\ncontent-length: 3"]
    {
        let answer = proxy.connect().request(format!("POST / HTTP/1.1\r\nhost: a\r\n{lengths}\r\n\r\nab"));
        assert_eq!((answer.status, answer.problem().as_str()), (400, "bad-content-length"), "{lengths}");
    }
}

/// Equal lengths are one also where no body follows, and a 204 has none.
#[test]
fn lengths_without_a_body() {
    let node = Origin::by_connection(|peer| {
        while let Some(head) = peer.request() {
            match head.contains("/none") {
                true => peer.send("HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n"),
                false if head.contains("/lines") => {
                    peer.send("HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\n");
                }
                false => peer.send("HTTP/1.1 200 OK\r\ncontent-length: 5, 5\r\n\r\n"),
            }
        }
    });
    let proxy = Proxy::before(&[node.address]);
    for path in ["/list", "/lines"] {
        let mut client = proxy.connect();
        client.send(format!("HEAD {path} HTTP/1.1\r\nhost: a\r\n\r\n"));
        let answer = client.answer_to_head();
        assert_eq!((answer.status, answer.field("content-length").as_deref()), (200, Some("5")), "{path} {answer:?}");
        let answer = Http2::connect(proxy.address).ask("HEAD", path, "", "").unwrap();
        assert_eq!((answer.status, answer.field("content-length")), (200, Some("5")), "{path}");
    }
    let answer = proxy.get("/none");
    assert_eq!((answer.status, answer.field("content-length")), (204, None));
}
