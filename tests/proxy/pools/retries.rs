//! What is tried again, and at what cost.

use crate::support::http2::Frames;
use crate::support::{Ask, Does, Origin, Peer, Proxy, eventually};
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const QUIET: &str = "    outlier_ejection: { consecutive_failures: 0 }\n";

fn retries(proxy: &Proxy, reason: &str) -> f64 {
    proxy.metric(&format!("ringway_upstream_retries_total{{pool=\"app\",reason=\"{reason}\"}}"))
}

/// The methods that may run twice move on; the others get what there is.
#[test]
fn what_may_run_twice_is_tried_at_the_next_node() {
    let pool =
        format!("    timeouts: {{ first_byte: 50ms }}\n    retries: {{ on: [reset, timeout, 502, 503] }}\n{QUIET}");
    for (does, status, reason) in [
        (Does::Reset, 502, "terminated"),
        (Does::Hang, 504, "timeout"),
        (Does::Answer(502), 502, "502"),
        (Does::Answer(503), 503, "503"),
    ] {
        let nodes = Origin::several(2);
        let proxy = Proxy::start(&Proxy::pool(&Origin::addresses(&nodes), &pool));
        let path = &proxy.paths_of("n0", 1)[0];
        nodes[0].does(does);
        for (method, moves_on) in [
            ("GET", true),
            ("HEAD", true),
            ("OPTIONS", true),
            ("PUT", true),
            ("DELETE", true),
            ("POST", false),
            ("PATCH", false),
        ] {
            let before = nodes[1].asked();
            let answer = proxy.connect().request(format!(
                "{method} {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello"
            ));
            assert_eq!(answer.status, if moves_on { 200 } else { status }, "{method} {answer:?}");
            assert_eq!(nodes[1].asked() - before, usize::from(moves_on), "{method}");
            if moves_on {
                assert_eq!(nodes[1].last().body, b"hello", "the body came whole");
            }
        }
        assert_eq!(retries(&proxy, reason), 5.0);
        assert_eq!(nodes[0].asked(), 7);
    }
}

/// 500 and 504 are not in `on`, and without a block nothing is that was sent.
#[test]
fn what_is_not_said_is_not_tried_again() {
    for (pool, does, status) in [
        ("    retries: {}\n", Does::Answer(500), 500),
        ("    retries: {}\n", Does::Answer(504), 504),
        ("    retries: { attempts: 0 }\n", Does::Reset, 502),
        ("    retries: { on: [connect_failure] }\n", Does::Reset, 502),
        ("", Does::Reset, 502),
        ("", Does::Answer(503), 503),
    ] {
        let nodes = Origin::several(2);
        let proxy = Proxy::start(&Proxy::pool(&Origin::addresses(&nodes), pool));
        nodes[0].does(does);
        let path = &proxy.paths_of("n0", 1)[0];
        assert_eq!(proxy.get(path).status, status, "{pool}");
        assert_eq!(nodes[1].asked(), 0);
    }
    // Nor where no connection was made, if the file leaves it out.
    let mut nodes = Origin::several(2);
    let proxy = Proxy::start(&Proxy::pool(&Origin::addresses(&nodes), "    retries: { on: [reset] }\n"));
    let path = &proxy.paths_of("n0", 1)[0];
    nodes[0].kill();
    assert_eq!(proxy.get(path).status, 502);
}

#[test]
fn each_attempt_is_at_another_node() {
    let nodes = Origin::several(5);
    let proxy =
        Proxy::start(&Proxy::pool(&Origin::addresses(&nodes), &format!("    retries: {{ attempts: 3 }}\n{QUIET}")));
    nodes.iter().for_each(|node| node.does(Does::Answer(503)));
    let answer = proxy.get("/x");
    let order = proxy.admin_get("/api/pools/app/ring?key=/x").json()["order"].clone();
    assert_eq!((answer.status, answer.text().as_str()), (503, order[3].as_str().unwrap()), "the last one's answer");
    let mut asked: Vec<usize> = nodes.iter().map(Origin::asked).collect();
    asked.sort_unstable();
    assert_eq!(asked, [0, 1, 1, 1, 1]);
}

#[test]
fn with_no_other_node_the_answer_that_is_there_is_given() {
    let node = Origin::named("n0");
    let proxy = Proxy::start(&Proxy::pool(&[node.address], "    retries: {}\n"));
    node.does(Does::Answer(503));
    let answer = proxy.get("/");
    assert_eq!((answer.status, answer.text().as_str(), node.asked()), (503, "n0", 1));
}

/// A body that is larger than what is held goes out once.
#[test]
fn a_large_body_is_not_sent_again() {
    let nodes = Origin::several(2);
    let pool = format!("    retries: {{ max_body: 1KiB, on: [connect_failure, 503] }}\n{QUIET}");
    let proxy = Proxy::start(&Proxy::pool(&Origin::addresses(&nodes), &pool));
    let path = &proxy.paths_of("n0", 1)[0];
    nodes[0].does(Does::Answer(503));
    let put = |head: &str, body: &str| {
        proxy
            .connect()
            .request(format!("PUT {path} HTTP/1.1\r\nhost: a\r\n{head}connection: close\r\n\r\n{body}"))
            .status
    };
    let (small, large) = ("x".repeat(1024), "x".repeat(1025));
    assert_eq!(put("content-length: 1024\r\n", &small), 200);
    assert_eq!(put("content-length: 1025\r\n", &large), 503);
    let chunked = |body: &str| format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    assert_eq!(put("transfer-encoding: chunked\r\n", &chunked(&small)), 200);
    assert_eq!(put("transfer-encoding: chunked\r\n", &chunked(&large)), 503);
    let xs = |ask: Ask| ask.body.iter().filter(|byte| **byte == b'x').count();
    let sent: Vec<usize> = nodes[1].asks().into_iter().map(xs).collect();
    assert_eq!(sent, [1024, 1024], "whole each time");

    // What may be held is bounded for the whole process.
    proxy.reconfigure(&format!(
        "limits: {{ buffered_bytes: 1MiB }}\n{}",
        Proxy::pool(&Origin::addresses(&nodes), &format!("    retries: {{ max_body: 4MiB }}\n{QUIET}"))
    ));
    assert_eq!(put(&format!("content-length: {}\r\n", 2 << 20), &"x".repeat(2 << 20)), 503);
    assert_eq!(put("content-length: 1024\r\n", &small), 200);
    assert_eq!(proxy.metric("ringway_buffered_bytes"), 0.0);
}

/// Ten clients insist on a pool that is down: its nodes see a fifth more than what was asked, not a
/// multiple of it.
#[test]
fn an_outage_is_not_multiplied() {
    let nodes = Origin::several(4);
    let proxy =
        Proxy::start(&Proxy::pool(&Origin::addresses(&nodes), &format!("    retries: {{ attempts: 3 }}\n{QUIET}")));
    nodes.iter().for_each(|node| node.does(Does::Answer(503)));
    let started = Instant::now();
    std::thread::scope(|scope| {
        for client in 0..10 {
            let proxy = &proxy;
            scope.spawn(move || {
                let mut connection = proxy.connect();
                for number in 0..100 {
                    let answer = connection.request(format!("GET /{client}/{number} HTTP/1.1\r\nhost: a\r\n\r\n"));
                    assert_eq!(answer.status, 503);
                }
            });
        }
    });
    let attempts: usize = nodes.iter().map(Origin::asked).sum();
    let allowed = 1000.0 * 1.2 + 10.0 + started.elapsed().as_secs_f64() + 1.0;
    assert!(attempts as f64 <= allowed, "{attempts} attempts for 1000 requests, {allowed} allowed");
    assert!(attempts > 1150, "and the budget was used: {attempts}");
    assert!(proxy.metric("ringway_upstream_retries_denied_total{pool=\"app\"}") > 100.0);
}

/// The whole request has its time, retries included.
#[test]
fn the_deadline_is_for_all_attempts() {
    let nodes = Origin::several(3);
    let pool = format!(
        "    timeouts: {{ first_byte: 150ms, total: 400ms }}\n    retries: {{ attempts: 10, on: [timeout] }}\n{QUIET}"
    );
    let proxy = Proxy::start(&Proxy::pool(&Origin::addresses(&nodes), &pool));
    nodes.iter().for_each(|node| node.does(Does::Hang));
    let started = Instant::now();
    let answer = proxy.get("/");
    assert_eq!((answer.status, answer.problem().as_str()), (504, "upstream-timeout"));
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(400) && took < Duration::from_millis(1500), "{took:?}");
}

/// A POST that no node got moves on, whatever comes of it; one that a node got does not.
#[test]
fn a_post_is_never_run_twice() {
    let mut nodes = Origin::several(3);
    let proxy =
        Proxy::start(&Proxy::pool(&Origin::addresses(&nodes), &format!("    retries: {{ attempts: 5 }}\n{QUIET}")));
    let path = &proxy.paths_of("n0", 1)[0];
    let post = || proxy.connect().request(format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\npay"));
    // A kept connection that has died since is no reason to fail.
    assert_eq!(post().text(), "n0");
    nodes[0].kill();
    assert_eq!(post().status, 200);
    nodes[0].revive();
    nodes[0].does(Does::Reset);
    let others = || nodes[1].asked() + nodes[2].asked();
    let before = others();
    assert_eq!(post().status, 502);
    assert_eq!((others(), nodes[0].asked()), (before, 2));
}

/// Requests that must run once are not tried again after they were sent, whatever the pool says.
#[test]
fn an_idempotency_key_goes_before_retries() {
    let nodes = Origin::several(2);
    let text = Proxy::pool(
        &Origin::addresses(&nodes),
        &format!("    retries: {{ on: [connect_failure, reset, 503] }}\n{QUIET}"),
    )
    .replace("hash_on: [uri] }", "hash_on: [path], idempotency: { methods: [PUT], scope: [] } }");
    let proxy = Proxy::start(&format!("idempotency_store: {{ kind: memory }}\n{text}"));
    nodes.iter().for_each(|node| node.does(Does::Reset));
    let put = |key: &str| {
        proxy
            .connect()
            .request(format!("PUT / HTTP/1.1\r\nhost: a\r\nidempotency-key: {key}\r\ncontent-length: 0\r\n\r\n"))
    };
    assert_eq!(put("k1").problem(), "outcome-unknown");
    nodes.iter().for_each(|node| node.does(Does::Answer(503)));
    assert_eq!(put("k2").status, 503);
    assert_eq!(nodes[0].asked() + nodes[1].asked(), 2);
}

/// A fill of the cache is a GET like any other.
#[test]
fn the_cache_is_filled_by_the_next_node() {
    let nodes = Origin::several(2);
    let text = Proxy::pool(&Origin::addresses(&nodes), "    retries: {}\n")
        .replace("hash_on: [uri] }", "hash_on: [uri], cache: { default_ttl: 1m } }");
    let proxy = Proxy::start(&text);
    let path = &proxy.paths_of("n0", 1)[0];
    nodes[0].does(Does::Reset);
    assert_eq!(proxy.get(path).text(), "n1");
    assert_eq!(proxy.get(path).field("cache-status").unwrap().split(';').nth(1).unwrap().trim(), "hit");
    assert_eq!((nodes[0].asked(), nodes[1].asked()), (1, 1));
}

/// A connection that is never established costs `timeouts.connect`, and then the next node is asked.
#[test]
fn a_node_that_does_not_accept_is_passed() {
    // A full queue of connections: the kernel answers no further ones.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    socket.listen(0).unwrap();
    let listener: TcpListener = socket.into();
    let address = listener.local_addr().unwrap();
    let fill: Vec<_> = (0..4)
        .map(|_| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            let _ = socket.connect(&address.into());
            socket
        })
        .collect();
    let node = Origin::echo();
    let pool = "    timeouts: { connect: 100ms }\n";
    let proxy = Proxy::start(&Proxy::pool(&[address, node.address], pool));
    let paths = proxy.paths_of("n0", 8);
    for path in &paths {
        assert_eq!(proxy.get(path).status, 200);
    }
    assert_eq!(retries(&proxy, "connect_timeout"), 5.0);
    eventually("the node to be out", || proxy.node("n0")["ejected_for_seconds"].is_number());
    drop((fill, listener));
}

/// What a node does with one connection after another.
fn in_turn(scripts: Vec<fn(&mut Peer)>) -> Origin {
    let number = AtomicUsize::new(0);
    Origin::by_connection(move |peer| scripts[number.fetch_add(1, Ordering::SeqCst).min(scripts.len() - 1)](peer))
}

/// One request is answered; the next one is read, and the connection ends without a word.
fn closes_after_one(peer: &mut Peer) {
    peer.request().unwrap();
    peer.answer("first");
    peer.request();
}

fn goes_on(peer: &mut Peer) {
    while let Some(head) = peer.request() {
        peer.body_of(&head);
        peer.answer("again");
    }
}

/// Kept connections are a worker's own.
fn one_worker(rest: &str) -> Proxy {
    Proxy::start(&format!("workers: 1\n{rest}"))
}

#[test]
fn a_kept_connection_that_ends_costs_no_request() {
    for (settings, on_the_next) in [("", "again"), ("    retries: {}\n", "again")] {
        for (method, body) in [("GET", ""), ("HEAD", ""), ("OPTIONS", ""), ("PUT", "hello"), ("DELETE", "")] {
            let node = in_turn(vec![closes_after_one, goes_on]);
            let proxy = one_worker(&Proxy::pool(
                &[node.address],
                &format!("    outlier_ejection: {{ consecutive_failures: 1 }}\n{settings}"),
            ));
            assert_eq!(proxy.get("/").text(), "first");
            let mut client = proxy.connect();
            client.send(format!(
                "{method} /x HTTP/1.1\r\nhost: a\r\nx-mine: 1\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            ));
            let answer = if method == "HEAD" { client.answer_to_head() } else { client.answer() };
            assert_eq!(answer.status, 200, "{method}: {answer:?}");
            assert!(method == "HEAD" || answer.text() == on_the_next, "{method}: {answer:?}");
            let heads = node.requests();
            assert_eq!(heads.len(), 3, "once more, and on a new connection: {heads:?}");
            assert_eq!(heads[1], heads[2], "the same request");
            assert_eq!(retries(&proxy, "stale_connection"), 1.0);
        }
    }
}

#[test]
fn what_may_not_run_twice_is_not_sent_again_on_a_stale_connection() {
    for (settings, method) in [("", "POST"), ("", "PATCH"), ("    retries: { attempts: 0 }\n", "GET")] {
        let node = in_turn(vec![closes_after_one, goes_on]);
        let proxy = one_worker(&Proxy::pool(&[node.address], &format!("{QUIET}{settings}")));
        assert_eq!(proxy.get("/").text(), "first");
        let answer = proxy.send(method, "/", "content-length: 0\r\n");
        assert_eq!(answer.status, 502, "{method} {answer:?}");
        assert_eq!((node.requests().len(), retries(&proxy, "stale_connection")), (2, 0.0));
    }
}

#[test]
fn a_new_connection_that_ends_is_no_stale_one() {
    let node = in_turn(vec![|peer| drop(peer.request())]);
    let proxy = one_worker(&Proxy::pool(&[node.address], QUIET));
    assert_eq!(proxy.get("/").status, 502);
    assert_eq!(node.requests().len(), 1);
}

/// A node of HTTP/2 that refuses every stream.
fn refuses(peer: &mut Peer) {
    let mut frames = Frames::accept(peer);
    while let Some(stream) = frames.request() {
        peer.note("refused");
        frames.reset(stream, 7);
    }
}

#[test]
fn streams_that_a_node_refuses_are_sent_again_within_attempts() {
    for cache in ["", "cache: {}, "] {
        let node = in_turn(vec![refuses]);
        let pool = format!("    protocol: http2\n    retries: {{ attempts: 3, on: [connect_failure] }}\n{QUIET}");
        let text = Proxy::pool(&[node.address], &pool).replace("hash_on", &format!("{cache}hash_on"));
        let proxy = Proxy::start(&text);
        assert_eq!(proxy.get("/").status, 502);
        assert_eq!(node.requests().len(), 4, "the first one, and three more");
        assert_eq!(retries(&proxy, "unprocessed_stream"), 3.0);
    }
}

/// A node of HTTP/2 that does not begin with the first stream, in one of two ways.
fn refuses_once(peer: &mut Peer) {
    let mut frames = Frames::accept(peer);
    let first = frames.request().unwrap();
    frames.reset(first, 7);
    while let Some(stream) = frames.request() {
        peer.note("again");
        frames.answer(stream);
    }
}

fn goes_away(peer: &mut Peer) {
    let mut frames = Frames::accept(peer);
    frames.request();
    frames.go_away(0);
    while frames.next().is_some() {}
}

fn answers(peer: &mut Peer) {
    let mut frames = Frames::accept(peer);
    while let Some(stream) = frames.request() {
        peer.note("again");
        frames.answer(stream);
    }
}

#[test]
fn what_a_node_has_not_begun_with_is_sent_again_whatever_its_method() {
    for scripts in [vec![refuses_once as fn(&mut Peer)], vec![goes_away, answers]] {
        for (method, fields, body) in [
            ("GET", "", ""),
            ("POST", "", "hello"),
            ("POST", "content-type: application/grpc\r\nte: trailers\r\n", "hello"),
            ("POST", "idempotency-key: k\r\nauthorization: a\r\n", "hello"),
        ] {
            let node = in_turn(scripts.clone());
            let text = Proxy::pool(&[node.address], &format!("    protocol: http2\n{QUIET}"))
                .replace("hash_on", "idempotency: {}, hash_on");
            let proxy = Proxy::start(&format!("idempotency_store: {{ kind: memory }}\n{text}"));
            let answer = proxy.connect().request(format!(
                "{method} / HTTP/1.1\r\nhost: a\r\n{fields}content-length: {}\r\n\r\n{body}",
                body.len()
            ));
            assert_eq!(answer.status, 204, "{method} {fields}: {answer:?}");
            assert_eq!((node.requests().len(), retries(&proxy, "unprocessed_stream")), (1, 1.0));
        }
    }
}

#[test]
fn a_client_that_leaves_ends_the_attempts() {
    let node = in_turn(vec![refuses]);
    let pool = format!("    protocol: http2\n    retries: {{ attempts: 5 }}\n{QUIET}");
    let text = Proxy::pool(&[node.address], &pool).replace("hash_on", "cache: {}, hash_on");
    let proxy = Proxy::start(&text);
    let mut client = proxy.connect();
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    drop(client);
    eventually("the attempts", || node.requests().len() == 6);
    assert_eq!(proxy.get("/other").status, 502);
    assert_eq!(node.requests().len(), 12, "no more than six for each");
}
