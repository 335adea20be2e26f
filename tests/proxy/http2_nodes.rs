//! Nodes that speak HTTP/2: shared connections, trailers both ways, and what happens when they fail.

use crate::support::http2::{Frames, HEADERS, Http2, RST_STREAM};
use crate::support::{Authority, Client, Front, Nginx, Origin, Proxy, eventually};
use bytes::Bytes;
use http_body_util::BodyExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const HTTP2: &str = "    protocol: http2\n";

fn ask(proxy: &Proxy, method: &str, path: &str, body: &str) -> crate::support::Answer {
    proxy.connect().request(format!(
        "{method} {path} HTTP/1.1\r\nhost: shop.example\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    ))
}

#[test]
fn clients_of_either_version_share_connections() {
    let node = Origin::http2();
    let proxy = Proxy::start(&format!("workers: 1\n{}", Proxy::pool(&[node.address], HTTP2)));
    let answer = ask(&proxy, "POST", "/echo?a=b", "hello");
    assert_eq!((answer.status, answer.text().as_str(), answer.field("x-node").as_deref()), (200, "hello", Some("two")));
    let head = node.requests()[0].to_ascii_lowercase();
    assert!(head.starts_with("post http://shop.example/echo?a=b"), "{head}");
    for (field, expected) in [
        ("\"via\": \"1.1 ringway\"", true),
        ("\"content-length\": \"5\"", true),
        ("\"connection\"", false),
        ("\"host\"", false),
        ("transfer-encoding", false),
    ] {
        assert_eq!(head.contains(field), expected, "{field}: {head}");
    }
    let large = "0123456789abcdef".repeat(1 << 18);
    assert_eq!(ask(&proxy, "PUT", "/echo", &large).text(), large);
    // Chunked, as HTTP/1 has it where no length is known.
    let chunked = proxy
        .connect()
        .request("POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
    assert_eq!(chunked.text(), "abc");
    let client = Http2::connect(proxy.address);
    let paths: Vec<String> = (0..200).map(|number| format!("/{number}")).collect();
    assert!(client.get_all(&paths).iter().all(|answer| answer.status == 200));
    assert!(node.connections() <= 3, "{} connections", node.connections());
    assert!(proxy.metric("ringway_upstream_connections{node=\"n0\",pool=\"app\",state=\"idle\"}") >= 1.0);
}

/// As gRPC needs it: `te: trailers` there, trailers back, and pieces as they come in both directions.
#[test]
fn grpc_passes_both_ways() {
    let node = Origin::http2();
    let proxy = Proxy::before(&[node.address]);
    drop(proxy);
    let proxy = Proxy::start(&Proxy::pool(&[node.address], HTTP2));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(proxy.address).await.unwrap();
        let builder = hyper::client::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
        let (mut sender, connection) = builder.handshake(hyper_util::rt::TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        for path in ["/unary", "/stream"] {
            let (feed, body) = crate::support::http2::pieces();
            let request = http::Request::post(format!("http://shop.example{path}"))
                .header("te", "trailers")
                .header("content-type", "application/grpc")
                .body(body)
                .unwrap();
            feed.send(Bytes::from_static(b"one")).unwrap();
            let asked = sender.send_request(request);
            if path == "/unary" {
                drop(feed);
                let whole = asked.await.unwrap().into_body().collect().await.unwrap();
                assert_eq!(whole.trailers().unwrap()["grpc-status"], "0");
                assert_eq!(whole.to_bytes(), "one");
                continue;
            }
            let mut answer = asked.await.unwrap().into_body();
            for piece in ["one", "two", "three"] {
                let frame = answer.frame().await.unwrap().unwrap();
                assert_eq!(frame.into_data().unwrap(), piece, "it came before the next one was sent");
                match piece {
                    "one" => feed.send(Bytes::from_static(b"two")).unwrap(),
                    "two" => feed.send(Bytes::from_static(b"three")).unwrap(),
                    _ => {}
                }
            }
            drop(feed);
            let trailers = answer.frame().await.unwrap().unwrap().into_trailers().unwrap();
            assert_eq!(trailers["grpc-status"], "0");
        }
    });
    assert!(node.requests().iter().all(|head| head.contains("\"te\": \"trailers\"")), "{:?}", node.requests());
}

#[test]
fn failures_are_judged_as_over_http1() {
    let (node, other) = (Origin::http2(), Origin::http2());
    let pool = format!(
        "{HTTP2}    timeouts: {{ first_byte: 200ms }}\n    retries: {{}}\n    outlier_ejection: {{ consecutive_failures: 0 }}\n"
    );
    let proxy = Proxy::start(&Proxy::pool(&[node.address], &pool));
    let started = Instant::now();
    assert_eq!(ask(&proxy, "GET", "/hang", "").status, 504);
    assert!(started.elapsed() >= Duration::from_millis(200) && started.elapsed() < Duration::from_secs(5));
    let reset = ask(&proxy, "POST", "/reset", "x");
    assert_eq!(
        (reset.status, reset.field("proxy-status").as_deref()),
        (502, Some("ringway; error=connection_terminated"))
    );
    assert_eq!(ask(&proxy, "GET", "/503", "").status, 503);
    assert_eq!(ask(&proxy, "GET", "/fine", "").status, 200, "the connection goes on");
    // What may run twice is tried at the next node; what may not is not.
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let proxy = Proxy::start(&Proxy::pool(&[dead, node.address, other.address], &pool));
    for path in proxy.paths_of("n0", 5) {
        assert_eq!(ask(&proxy, "POST", &path, "x").text(), "x");
    }
    let asked = || node.requests().len() + other.requests().len();
    let proxy = Proxy::start(&Proxy::pool(&[node.address, other.address], &pool));
    let before = asked();
    assert_eq!(ask(&proxy, "GET", "/reset", "").status, 502);
    assert_eq!(asked() - before, 2);
    assert_eq!(ask(&proxy, "POST", "/reset", "x").status, 502);
    assert_eq!(asked() - before, 3);
}

#[test]
fn checks_and_tls_speak_http2_too() {
    let (authority, node) = (Authority::new(), Origin::http2());
    let checks = "    health_check: { interval: 50ms, expect_body: well }\n";
    let proxy = Proxy::start(&Proxy::pool(&[node.address], &format!("{HTTP2}{checks}")));
    eventually("checks", || node.checked() > 3);
    assert_eq!(proxy.node("n0")["healthy"], true);
    assert!(proxy.node("n0")["health_check"]["error"].is_null());

    // A front that knows nothing of ALPN is no HTTP/2.
    let front = Front::before(node.address, &authority.issue("node", &["app.internal"]), None);
    let tls = format!("    tls: {{ ca_file: \"{}\", server_name: app.internal }}\n", authority.file().display());
    let proxy = Proxy::start(&Proxy::pool(&[front.address], &format!("{HTTP2}{tls}")));
    let answer = proxy.get("/");
    assert_eq!(
        (answer.status, answer.field("proxy-status").as_deref()),
        (502, Some("ringway; error=tls_protocol_error"))
    );
    let front = Front::speaking(b"h2", node.address, &authority.issue("node", &["app.internal"]), None);
    let proxy = Proxy::start(&Proxy::pool(&[front.address], &format!("{HTTP2}{tls}")));
    assert_eq!(ask(&proxy, "POST", "/", "over TLS").text(), "over TLS");
    assert!(node.requests().iter().any(|head| head.contains("https://shop.example/")));
}

#[test]
fn nginx_as_a_node_in_the_clear() {
    let Some(nginx) = Nginx::start("http2", "location / { return 200 \"nginx $server_protocol $request_uri\"; }")
    else {
        return;
    };
    let proxy = Proxy::start(&Proxy::pool(&[nginx.address], HTTP2));
    let mut client = Client::connect(proxy.address);
    for number in 0..1200 {
        // Past the number of requests after which nginx ends a connection.
        let answer = client.request(format!("GET /{number} HTTP/1.1\r\nhost: a\r\n\r\n"));
        assert_eq!(answer.text(), format!("nginx HTTP/2.0 /{number}"));
    }
}

/// What clients do to their own bodies says nothing of a node.
#[test]
fn a_body_that_breaks_is_its_clients_fault() {
    let node = Origin::http2();
    let other = Origin::http2();
    let pool = format!("{HTTP2}    outlier_ejection: {{ consecutive_failures: 1 }}\n");
    let proxy = Proxy::start(&format!(
        "limits: {{ request_body: 1KiB }}\n{}",
        Proxy::pool(&[node.address, other.address], &pool)
    ));
    let path = &proxy.paths_of("n0", 1)[0];
    for _ in 0..3 {
        let chunk = format!("800\r\n{}\r\n0\r\n\r\n", "x".repeat(0x800));
        let answer = proxy
            .connect()
            .request(format!("POST {path} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{chunk}"));
        assert_eq!(answer.status, 413, "{answer:?}");
    }
    assert!(proxy.node("n0")["ejected_for_seconds"].is_null());
}

/// What was settled in another way is not used any more: connections from before a change of TLS are left behind.
#[test]
fn a_reload_that_changes_tls_leaves_old_connections_behind() {
    let (authority, node) = (Authority::new(), Origin::http2());
    let front = Front::speaking(b"h2", node.address, &authority.issue("node", &["app.internal"]), None);
    let verified =
        format!("{HTTP2}    tls: {{ ca_file: \"{}\", server_name: app.internal }}\n", authority.file().display());
    let proxy = Proxy::start(&format!(
        "workers: 1\n{}",
        Proxy::pool(&[front.address], &format!("{HTTP2}    tls: {{ verify: false }}\n"))
    ));
    assert_eq!(ask(&proxy, "GET", "/", "").status, 200);
    assert_eq!(ask(&proxy, "GET", "/", "").status, 200);
    assert_eq!(front.connections(), 1);
    proxy.reconfigure(&format!("workers: 1\n{}", Proxy::pool(&[front.address], &verified)));
    assert_eq!(ask(&proxy, "GET", "/", "").status, 200);
    assert_eq!(front.connections(), 2);
    proxy.reconfigure(&format!(
        "workers: 1\n{}",
        Proxy::pool(&[front.address], &verified.replace("app.internal", "other.internal"))
    ));
    assert_eq!(ask(&proxy, "GET", "/", "").status, 502);
}

/// A client that leaves has its request cancelled, which is no error of anybody's.
#[test]
fn a_client_that_leaves_cancels_its_stream() {
    let reasons: Arc<Mutex<Vec<u32>>> = Arc::default();
    let told = Arc::clone(&reasons);
    let node = Origin::by_connection(move |peer| {
        let mut frames = Frames::accept(peer);
        while let Some(frame) = frames.next() {
            match frame.kind {
                HEADERS => peer.note("asked"),
                RST_STREAM => told.lock().unwrap().push(u32::from_be_bytes(frame.payload[..4].try_into().unwrap())),
                _ => {}
            }
        }
    });
    let proxy = Proxy::start(&Proxy::pool(&[node.address], HTTP2));
    for (number, body) in ["", "2\r\nhi\r\n"].into_iter().enumerate() {
        let mut client = proxy.connect();
        client.send(format!("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{body}"));
        eventually("the request", || node.requests().len() == number + 1);
        drop(client);
        eventually("the reset", || reasons.lock().unwrap().len() == number + 1);
    }
    assert_eq!(*reasons.lock().unwrap(), [8, 8], "CANCEL");
}

/// A node that answers early, takes no more of the body and does not reset the stream keeps a place on its connection,
/// and nothing else.
#[test]
fn what_a_node_leaves_unread_keeps_no_request() {
    let node = Origin::by_connection(|peer| {
        let mut frames = Frames::accept(peer);
        while let Some(stream) = frames.request() {
            peer.note("asked");
            frames.answer(stream);
        }
    });
    let proxy = Proxy::start(&format!("workers: 1\n{}", Proxy::pool(&[node.address], HTTP2)));
    for _ in 0..80 {
        let mut client = proxy.connect();
        // More than a stream's first window, and than is awaited before a node is asked.
        client.send(format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 200000\r\n\r\n{}", "x".repeat(200_000)));
        assert_eq!(client.answer().status, 204);
    }
    eventually("their end", || proxy.metric("ringway_requests_in_flight") == 0.0);
    assert_eq!(proxy.get("/").status, 204, "there is room for others");
    assert!(node.connections() >= 2, "a connection whose places are taken is not taken for a free one");
}

/// Many requests on a connection that ends share the next one, and do not make one each.
#[test]
fn requests_of_a_stale_connection_share_the_next_one() {
    let first = AtomicBool::new(true);
    let node = Origin::by_connection(move |peer| {
        let mut frames = Frames::accept(peer);
        let is_first = first.swap(false, Ordering::SeqCst);
        let mut asked = 0;
        while let Some(stream) = frames.request() {
            asked += 1;
            match is_first && asked > 1 {
                true if asked < 11 => {}
                // All of them are here: it ends without a word.
                true => return,
                false => frames.answer(stream),
            }
        }
    });
    let proxy = Proxy::start(&format!("workers: 1\n{}", Proxy::pool(&[node.address], HTTP2)));
    assert_eq!(proxy.get("/").status, 204);
    let mut clients: Vec<Client> = (0..10).map(|_| proxy.connect()).collect();
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    }
    let answers: Vec<_> = clients.iter_mut().map(Client::answer).collect();
    assert!(answers.iter().all(|answer| answer.status == 204), "{answers:?}");
    assert!(node.connections() <= 3, "{} connections", node.connections());
}

/// What a node may not say in trailers does not reset its client's stream.
#[test]
fn trailers_about_the_connection_do_not_hurt_clients_of_http2() {
    for trailer in ["Connection: close", "Transfer-Encoding: chunked", "Keep-Alive: 1"] {
        let text = format!(
            "HTTP/1.1 200 OK\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n{trailer}\r\nX-Sum: 9\r\n\r\n"
        );
        let node = Origin::saying(text);
        let answer = Http2::connect(Proxy::before(&[node.address]).address).get("/");
        assert_eq!((answer.status, answer.text().as_str()), (200, "ok"), "{trailer}");
    }
}
