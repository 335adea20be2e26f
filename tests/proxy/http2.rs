//! HTTP/2 with clients: streams, limits and timers, and what must not get through.

use crate::support::http2::{
    DATA, END_STREAM, Frames, GOAWAY, HEADERS, Http2, PING, RST_STREAM, SETTINGS, WINDOW_UPDATE, post_head, status_of,
};
use crate::support::{Authority, Barrier, Client, Does, Origin, Proxy, eventually, have};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

#[test]
fn a_request_goes_to_the_node_as_http1() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    let client = Http2::connect(proxy.address);
    let answer = client.ask("GET", "/a?b=c", "cookie: a=1 | cookie: b=2 | te: trailers", "").unwrap();
    let text = answer.text().to_ascii_lowercase();
    assert_eq!(answer.status, 200);
    for expected in [
        "get /a?b=c http/1.1\r\n",
        "host: example.com",
        "via: 2.0 ringway",
        "x-forwarded-proto: http",
        "cookie: a=1; b=2",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let posted = client.ask("POST", "/", "content-length: 5", "hello").unwrap().text();
    assert!(posted.contains("content-length: 5") && posted.ends_with("hello"), "{posted}");
    let bare = client.ask("DELETE", "/", "", "").unwrap().text();
    assert!(!bare.contains("transfer-encoding"), "{bare}");
    let refused = client.ask("TRACE", "/", "", "").unwrap();
    assert_eq!((refused.status, refused.field("connection")), (405, None));
}

#[test]
fn many_streams_at_a_time() {
    let node = Origin::by_connection(|peer| {
        while let Some(head) = peer.request() {
            let path = head.split(' ').nth(1).unwrap().to_owned();
            peer.answer(&path.repeat(1000));
        }
    });
    let proxy = Proxy::before(&[node.address]);
    let client = Http2::connect(proxy.address);
    let paths: Vec<String> = (0..500).map(|number| format!("/{number}")).collect();
    for (path, answer) in paths.iter().zip(client.get_all(&paths)) {
        assert_eq!(answer.text(), path.repeat(1000));
    }
    assert_eq!(proxy.metric("ringway_connections_total{listener=\"http\"}"), 1.0);
}

#[test]
fn large_bodies_both_ways() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    let client = Http2::connect(proxy.address);
    let body = "0123456789abcdef".repeat(1 << 19);
    let answer = client.ask("POST", "/", "", &body).unwrap();
    assert!(answer.status == 200 && answer.text().ends_with(&body));
}

/// What a connection keeps is not kept by a stream: caches, payments and problems are as they are over HTTP/1.
#[test]
fn everything_else_is_as_over_http1() {
    let origin = Origin::numbering("cache-control: max-age=60");
    let proxy = origin.cached("");
    let client = Http2::connect(proxy.address);
    assert_eq!(client.get("/").text(), "#0");
    let hit = client.get("/");
    assert!(hit.text() == "#0" && hit.field("cache-status").unwrap().starts_with("ringway; hit"), "{hit:?}");
    assert!(proxy.get("/").field("cache-status").unwrap().starts_with("ringway; hit"), "one cache for both");
    let refused = client.ask("GET", "/%zz", "", "").unwrap();
    assert_eq!(
        (refused.status, refused.field("connection"), refused.field("content-type")),
        (400, None, Some("application/problem+json"))
    );
    assert_eq!(client.get("/").text(), "#0", "the connection goes on");
}

#[test]
fn a_client_that_gives_a_stream_up_frees_its_node() {
    let gone = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&gone);
    let node = Origin::by_connection(move |peer| {
        peer.request();
        peer.client.has_ended();
        seen.store(true, Ordering::SeqCst);
    });
    let proxy = Proxy::before(&[node.address]);
    let client = Http2::connect(proxy.address);
    client.give_up("GET", "/", || eventually("the request", || node.requests().len() == 1));
    eventually("the node to be told", || gone.load(Ordering::SeqCst));
}

#[test]
fn a_body_that_stops_is_not_waited_for() {
    let node = Origin::echo();
    let proxy = Proxy::start(&format!("limits: {{ body_idle_timeout: 300ms }}\n{}", Proxy::pool(&[node.address], "")));
    let mut frames = Frames::connect(proxy.address);
    let head = [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "a")];
    frames.headers(0, 1, &head);
    frames.send(DATA, 0, 1, b"half");
    let started = Instant::now();
    let answer = frames.of_stream(1).unwrap();
    assert_eq!(answer.kind, HEADERS, "408, as its field block would tell");
    assert!(started.elapsed() >= Duration::from_millis(250));
    assert_eq!(proxy.metric("ringway_requests_total{code=\"408\",method=\"POST\",route=\"site\"}"), 1.0);
}

/// A drain lets streams end, and tells clients to go elsewhere.
#[test]
fn a_drain_says_goaway_and_lets_streams_end() {
    let node = Origin::named("n0");
    let mut proxy = Proxy::before(&[node.address]);
    let gate = Barrier::default();
    node.does(Does::Wait(gate.clone()));
    let client = Http2::connect(proxy.address);
    std::thread::scope(|scope| {
        let answer = scope.spawn(|| client.get("/"));
        eventually("the request", || node.asked() == 1);
        proxy.signal("TERM");
        eventually("the listener to close", || std::net::TcpStream::connect(proxy.address).is_err());
        gate.open();
        assert_eq!(answer.join().unwrap().text(), "n0");
    });
    client.ends().unwrap();
    eventually("the end of the proxy", || proxy.has_ended());
}

/// Long connections end after so many requests, over both versions, and lose none of them.
#[test]
fn a_connection_has_only_so_many_requests() {
    let node = Origin::echo();
    let proxy =
        Proxy::start(&format!("limits: {{ requests_per_connection: 3 }}\n{}", Proxy::pool(&[node.address], "")));
    let client = Http2::connect(proxy.address);
    assert!((0..3).all(|_| client.get("/").status == 200));
    client.ends().unwrap();
    let mut client = proxy.connect();
    let get = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let closing: Vec<_> = (0..3).map(|_| client.request(get).field("connection")).collect();
    assert_eq!(closing, [None, None, Some("close".into())]);
    assert!(client.is_closed());
}

#[test]
fn an_idle_connection_ends() {
    let node = Origin::echo();
    let proxy = Proxy::start(&format!(
        "limits: {{ keep_alive_timeout: 300ms, header_timeout: 400ms }}\n{}",
        Proxy::pool(&[node.address], "")
    ));
    let started = Instant::now();
    let client = Http2::connect(proxy.address);
    client.get("/");
    client.ends().unwrap();
    assert!(started.elapsed() >= Duration::from_millis(300) && started.elapsed() < Duration::from_secs(5));
    // One that never asks for anything has as long as a head.
    let mut frames = Frames::connect(proxy.address);
    while frames.next().is_some_and(|frame| frame.kind != GOAWAY) {}
    assert!(frames.next().is_none() || frames.next().is_none());
}

/// A connection that begins byte by byte is understood all the same.
#[test]
fn beginnings_in_pieces() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    let mut client = Client::connect(proxy.address);
    for byte in b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0" {
        client.send([*byte]);
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(client.exactly(9)[3], 4, "SETTINGS");
    let mut client = Client::connect(proxy.address);
    for piece in ["P", "R", "OPFIND / HTTP/1.1\r\nhost: a\r\n\r\n"] {
        client.send(piece);
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(client.answer().status, 200);
}

/// Each malformed request (RFC 9113 8.1.1, 8.2, 8.3) ends its stream or its connection, and reaches no node.
#[test]
fn what_is_malformed_goes_no_further() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    let (method, scheme, path, authority) =
        ((":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a"));
    let plain = [method, scheme, path, authority];
    let with = |more: (&'static str, &'static str)| [&plain[..], &[more]].concat();
    let cases: Vec<(&str, Vec<(&str, &str)>)> = vec![
        ("8.2.1: upper case", with(("X-Upper", "1"))),
        ("8.2.1: a line end in a name", with(("x\r\ny", "1"))),
        ("8.2.1: a line end in a value", with(("x", "1\r\nhost: b"))),
        ("8.2.1: NUL in a value", with(("x", "a\0b"))),
        ("8.2.1: a colon in a name", with(("x:y", "1"))),
        ("8.2.2: connection", with(("connection", "close"))),
        ("8.2.2: transfer-encoding", with(("transfer-encoding", "chunked"))),
        ("8.2.2: keep-alive", with(("keep-alive", "1"))),
        ("8.2.2: upgrade", with(("upgrade", "h2c"))),
        ("8.2.2: proxy-connection", with(("proxy-connection", "close"))),
        ("8.2.2: te", with(("te", "gzip"))),
        ("8.3: an unknown pseudo-field", with((":x", "1"))),
        ("8.3: a field before a pseudo-field", vec![method, scheme, ("x", "1"), path, authority]),
        ("8.3: twice the same", vec![method, scheme, path, path, authority]),
        ("8.3: one of an answer", with((":status", "200"))),
        ("8.3.1: no path", vec![method, scheme, authority]),
        ("8.3.1: an empty path", vec![method, scheme, (":path", ""), authority]),
        ("8.3.1: no method", vec![scheme, path, authority]),
        ("8.3.1: no scheme", vec![method, path, authority]),
        (
            "8.3.1: a path with a request in it",
            vec![method, scheme, (":path", "/ HTTP/1.1\r\nhost: b\r\n\r\n"), authority],
        ),
        ("8.3.1: a path with a space", vec![method, scheme, (":path", "/a b"), authority]),
        ("8.3.1: an authority with a path", vec![method, scheme, path, (":authority", "a/b")]),
        ("8.3.1: an authority with a user", vec![method, scheme, path, (":authority", "u@a")]),
        ("8.3.1: a host that differs", with(("host", "b"))),
        ("8.3.1: two hosts", [&with(("host", "a"))[..], &[("host", "a")]].concat()),
        ("8.3.1: a method with a space", vec![(":method", "GET /"), scheme, path, authority]),
        ("8.1.1: a length that is no number", with(("content-length", "x"))),
        ("8.1.1: two lengths", [&with(("content-length", "0"))[..], &[("content-length", "1")]].concat()),
        ("8.1.1: a length and no body", with(("content-length", "5"))),
    ];
    for (case, fields) in cases {
        let mut frames = Frames::connect(proxy.address);
        frames.headers(END_STREAM, 1, &fields);
        let answer = frames.of_stream(1);
        // Reset, the end of all, or an error answer of ours; nothing that says 200 (a literal, or index 8 of HPACK's
        // table).
        let refused = answer.as_ref().is_none_or(|frame| {
            matches!(frame.kind, RST_STREAM | GOAWAY) || (frame.kind == HEADERS && frame.payload.first() != Some(&0x88))
        });
        assert!(refused, "{case}: {answer:?}");
        assert_eq!(node.requests().len(), 0, "{case} reached the node");
    }
}

/// A body and its announced length must agree (RFC 9113 8.1.1): what does not is never a whole request for a node.
#[test]
fn a_body_must_be_as_long_as_it_says() {
    for data in [&b"abcdefghij"[..], b"abc"] {
        let whole = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&whole);
        let node = Origin::by_connection(move |peer| {
            if let Some(head) = peer.request() {
                let said = head.to_ascii_lowercase().contains("content-length: 5");
                // Waits for five bytes, or the end of the connection.
                if said && peer.client.exactly_or_less(5) == 5 {
                    seen.store(true, Ordering::SeqCst);
                }
            }
        });
        let proxy = Proxy::before(&[node.address]);
        let mut frames = Frames::connect(proxy.address);
        let head =
            [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "a"), ("content-length", "5")];
        frames.headers(0, 1, &head);
        frames.send(DATA, END_STREAM, 1, data);
        let answer = frames.of_stream(1);
        assert!(
            answer.as_ref().is_none_or(|frame| frame.kind != HEADERS || frame.payload.first() != Some(&0x88)),
            "{answer:?}"
        );
        drop(proxy);
        assert!(!whole.load(Ordering::SeqCst), "{data:?}");
    }
}

/// Programs that people use, over TLS and in the clear.
#[test]
fn curl_and_h2load_agree() {
    if !have("curl", "curl") || !have("h2load", "nghttp2-client") {
        return;
    }
    let (authority, node) = (Authority::new(), Origin::echo());
    let pair = authority.issue("edge", &["edge.example"]);
    let rest = format!("access_log: {{ format: \"off\" }}\n{}", Proxy::pool(&[node.address], ""));
    let proxy = Proxy::start_both(&pair, &rest);
    let clear = proxy.address_of("http");
    let port = proxy.address.port();
    let secure = format!("https://edge.example:{port}/from-curl");
    for (version, url, protocol) in [
        ("--http2", secure.as_str(), "2"),
        ("--http1.1", secure.as_str(), "1.1"),
        ("--http2-prior-knowledge", &format!("http://{clear}/from-curl"), "2"),
    ] {
        let told = Command::new("curl")
            .args(["-sS", "--max-time", "20", version, "-w", "%{http_version}", "-d", "amount=1", "--cacert"])
            .arg(authority.file())
            .args(["--resolve", &format!("edge.example:{port}:127.0.0.1"), url])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&told.stdout).into_owned();
        assert!(said.contains("POST /from-curl") && said.ends_with(&format!("amount=1{protocol}")), "{said} {told:?}");
    }
    let told = Command::new("h2load")
        .args(["-n", "2000", "-c", "4", "-m", "32", &format!("http://{clear}/")])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(said.contains("2000 succeeded, 0 failed, 0 errored"), "{said}");
}

/// A WebSocket over a stream (RFC 8441): the node sees the handshake of HTTP/1.1, and bytes pass both ways.
#[test]
fn a_websocket_is_a_stream() {
    let node = Origin::by_connection(|peer| {
        let head = peer.request().unwrap();
        if head.contains("/plain") {
            peer.answer("no socket");
            return;
        }
        if head.contains("/refused") {
            peer.send("HTTP/1.1 403 X\r\ncontent-length: 2\r\n\r\nno");
            return;
        }
        peer.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: x\r\nsec-websocket-protocol: chat\r\n\r\nhello");
        let bytes = peer.client.exactly(4);
        peer.send(bytes);
        peer.client.has_ended();
    });
    let proxy = Proxy::before(&[node.address]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(proxy.address).await.unwrap();
        let builder = hyper::client::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
        let (mut sender, connection) = builder.handshake(hyper_util::rt::TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let connect = |path: &str| {
            http::Request::connect(format!("http://shop.example{path}"))
                .header("sec-websocket-version", "13")
                .header("sec-websocket-protocol", "chat")
                .extension(hyper::ext::Protocol::from_static("websocket"))
                .body(http_body_util::Empty::<bytes::Bytes>::new())
                .unwrap()
        };
        // The server's settings say that it may be asked for; they are here after one plain request.
        let plain = http::Request::get("http://shop.example/refused").body(Default::default()).unwrap();
        assert_eq!(sender.send_request(plain).await.unwrap().status(), 403);
        assert_eq!(sender.send_request(connect("/refused")).await.unwrap().status(), 403);
        // A success that is no switch would tell the browser that the socket is open.
        let refused = sender.send_request(connect("/plain")).await.unwrap();
        assert_eq!(refused.status(), 502);
        assert_eq!(refused.headers()["content-type"], "application/problem+json");
        assert_eq!(refused.headers()["proxy-status"], "ringway; error=http_upgrade_failed");
        let mut answer = sender.send_request(connect("/chat")).await.unwrap();
        assert_eq!((answer.status(), answer.headers().get("upgrade")), (http::StatusCode::OK, None));
        assert_eq!(answer.headers()["sec-websocket-protocol"], "chat");
        let upgraded = hyper::upgrade::on(&mut answer).await.unwrap();
        let mut io = hyper_util::rt::TokioIo::new(upgraded);
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        io.write_all(b"ping").await.unwrap();
        let mut bytes = [0; 9];
        io.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"helloping");
    });
    let head = node.requests().last().unwrap().to_ascii_lowercase();
    for expected in
        ["get /chat http/1.1", "upgrade: websocket", "connection: upgrade", "sec-websocket-key: ", "host: shop.example"]
    {
        assert!(head.contains(expected), "{expected}: {head}");
    }
    drop(runtime);
    // The metrics have the status that the client got.
    assert_eq!(proxy.metric("ringway_requests_total{code=\"502\",method=\"GET\",route=\"site\"}"), 1.0);
    eventually("the tunnel to end", || proxy.metric("ringway_node_in_flight{node=\"n0\",pool=\"app\"}") == 0.0);
    // A CONNECT that is none of these makes no tunnel.
    let client = Http2::connect(proxy.address);
    let plain = http::Request::connect("shop.example:443").body(http_body_util::Full::default()).unwrap();
    assert_eq!(client.send(plain).unwrap().status, 405);
}

/// A socket that says much in small pieces is no flood, and what it has said is held by nobody.
#[test]
fn a_websocket_may_say_much_in_small_pieces() {
    let node = Origin::by_connection(|peer| {
        peer.request().unwrap();
        peer.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n");
        for _ in 0..100 {
            let said = peer.client.exactly(300);
            peer.send(said);
        }
        peer.client.has_ended();
    });
    let proxy = Proxy::before(&[node.address]);
    let mut frames = Frames::connect(proxy.address);
    let connect = [
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "http"),
        (":path", "/chat"),
        (":authority", "a"),
    ];
    frames.headers(0, 1, &connect);
    assert_eq!(frames.of_stream(1).unwrap().kind, HEADERS);
    for _ in 0..100 {
        (0..100).for_each(|_| frames.send(DATA, 0, 1, b"hi!"));
        let mut told = 0;
        while told < 300 {
            let frame = frames.of_stream(1).unwrap();
            match frame.kind {
                DATA => told += frame.payload.len(),
                kind => assert_eq!(kind, WINDOW_UPDATE),
            }
        }
    }
    // It was read long ago, whatever its client was told of it.
    eventually("all to be given back", || proxy.metric("ringway_buffered_bytes") == 0.0);
}

/// A client that opens no window for its answer does not hold its node for ever; its other streams go on.
#[test]
fn a_stream_whose_client_takes_nothing_is_reset() {
    let large = Origin::saying(format!("HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n{}", "x".repeat(1_000_000)));
    let proxy = Proxy::start(&format!("limits: {{ write_timeout: 300ms }}\n{}", Proxy::pool(&[large.address], "")));
    let mut frames = Frames::connect(proxy.address);
    // SETTINGS_INITIAL_WINDOW_SIZE: 0.
    frames.send(4, 0, 0, &[0, 4, 0, 0, 0, 0]);
    let head = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")];
    frames.headers(END_STREAM, 1, &head);
    assert_eq!(frames.of_stream(1).unwrap().kind, HEADERS);
    assert_eq!(frames.of_stream(1).unwrap().kind, RST_STREAM);
    eventually("the node to be free", || proxy.metric("ringway_node_in_flight{node=\"n0\",pool=\"app\"}") == 0.0);
    // The connection is as good as before.
    let other = [(":method", "TRACE"), (":scheme", "http"), (":path", "/"), (":authority", "a")];
    frames.headers(END_STREAM, 3, &other);
    assert_eq!(frames.of_stream(3).unwrap().kind, HEADERS);
}

/// The proxy's own answers to HEAD have no body either.
#[test]
fn an_answer_to_head_has_no_data() {
    let proxy = Proxy::start("routes: [{ name: fixed, path: /, respond: { status: 200, body: hello } }]\n");
    for (path, status) in [("/", 200), ("/nowhere", 404)] {
        let mut frames = Frames::connect(proxy.address);
        frames.headers(
            END_STREAM,
            1,
            &[(":method", "HEAD"), (":scheme", "http"), (":path", path), (":authority", "a")],
        );
        let head = frames.of_stream(1).unwrap();
        assert_eq!((head.kind, head.flags & END_STREAM), (HEADERS, END_STREAM), "{path}: {head:?}");
        let answer = Http2::connect(proxy.address).ask("HEAD", path, "", "").unwrap();
        assert_eq!((answer.status, answer.body.len()), (status, 0));
    }
}

/// A client that waits for `100 Continue` gets it when its body is read, and not when it is not.
#[test]
fn an_expectation_is_answered_over_http2() {
    let node = Origin::echo();
    let proxy = Proxy::start(&format!(
        "idempotency_store: {{ kind: memory }}\npools: {{ app: {{ nodes: [{{ id: n, address: \"{}\" }}] }} }}\nroutes:\n  - {{ name: keyed, headers: {{ idempotency-key: \"*\" }}, pool: app, idempotency: {{ scope: [] }} }}\n  - {{ name: refused, headers: {{ x-no: \"1\" }}, respond: {{ status: 404 }} }}\n  - {{ name: all, pool: app }}\n",
        node.address
    ));
    for (more, continues) in [(("x-a", "b"), true), (("idempotency-key", "k"), true), (("x-no", "1"), false)] {
        let mut frames = Frames::connect(proxy.address);
        frames.headers(0, 1, &post_head(&[("expect", "100-continue"), ("content-length", "2"), more]));
        let first = frames.of_stream(1).unwrap();
        assert_eq!(first.kind, HEADERS, "{more:?}");
        if !continues {
            assert_eq!(status_of(&first.payload), "404");
            continue;
        }
        assert_eq!(&*first.payload, b"\x08\x03100", "{more:?}");
        frames.send(DATA, END_STREAM, 1, b"hi");
        let answer = frames.of_stream(1).unwrap();
        assert_eq!((answer.kind, status_of(&answer.payload)), (HEADERS, "200"), "{more:?}");
    }
}

/// After the answer has begun there is no interim one.
#[test]
fn an_expectation_comes_too_late_behind_the_answer() {
    let node = Origin::by_connection(|peer| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n");
        peer.client.has_ended();
        peer.send("0\r\n\r\n");
    });
    let proxy = Proxy::before(&[node.address]);
    let mut frames = Frames::connect(proxy.address);
    frames.headers(0, 1, &post_head(&[("expect", "100-continue")]));
    let head = frames.of_stream(1).unwrap();
    assert_eq!((head.kind, status_of(&head.payload)), (HEADERS, "200"));
    assert_eq!(frames.of_stream(1).unwrap().kind, DATA);
    // The time after which a body is asked for on the proxy's own account.
    std::thread::sleep(Duration::from_millis(1300));
    frames.send(PING, 0, 0, &[7; 8]);
    loop {
        let frame = frames.next().unwrap();
        assert_ne!(frame.kind, HEADERS, "{frame:?}");
        if frame.kind == PING {
            break;
        }
    }
}

/// No connection ends without a word, whatever hyper makes of a request.
#[test]
fn a_connect_with_a_length_is_told_so() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    let mut frames = Frames::connect(proxy.address);
    frames.headers(0, 1, &[(":method", "CONNECT"), (":authority", "a:443"), ("content-length", "5")]);
    let told = frames.of_stream(1).expect("a frame");
    assert!(told.kind == RST_STREAM || told.kind == GOAWAY || told.kind == HEADERS, "{told:?}");
}

/// A client that asks for another table of fields is told of it in front of the next block (RFC 7541 4.2), which is
/// hyper's to say: no interim answer comes before that.
#[test]
fn an_interim_answer_does_not_come_before_the_size_of_the_table() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    let mut frames = Frames::connect(proxy.address);
    frames.send(SETTINGS, 0, 0, &[0, 1, 0, 0, 0, 0]);
    frames.headers(0, 1, &post_head(&[("expect", "100-continue"), ("content-length", "2")]));
    frames.send(DATA, END_STREAM, 1, b"hi");
    let head = frames.of_stream(1).unwrap();
    assert_eq!((head.kind, head.payload[0]), (HEADERS, 0x20), "the size of the table: {head:?}");
}

/// A client that goes away is not told of an error.
#[test]
fn a_goaway_of_the_client_is_no_error() {
    let proxy = Proxy::start("routes: [{ name: fixed, respond: { status: 200, body: hello } }]\n");
    let mut frames = Frames::connect(proxy.address);
    frames.headers(END_STREAM, 1, &[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")]);
    frames.go_away(0);
    while let Some(frame) = frames.next() {
        let reason = (frame.kind == GOAWAY).then(|| frame.payload[4..8].to_vec());
        assert!(reason.is_none_or(|reason| reason == [0; 4]), "{frame:?}");
    }
}
