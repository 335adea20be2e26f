//! One fetch for all who want the same.

use crate::support::{Barrier, Client, Origin, Proxy, eventually, warm};
use std::io::{Read, Write};
use std::time::{Duration, Instant};

const CROWD: usize = 1_000;

/// Connections that have all sent the same request.
fn crowd(proxy: &Proxy, count: usize, fields: impl Fn(usize) -> String) -> Vec<Client> {
    (0..count)
        .map(|number| {
            let mut client = proxy.connect();
            client.send(format!("GET /hot HTTP/1.1\r\nhost: a\r\n{}\r\n", fields(number)));
            client
        })
        .collect()
}

/// Waits until the proxy is answering that many requests.
fn all_wait(proxy: &Proxy, count: usize) {
    eventually("the arrival of all requests", || proxy.metric("ringway_requests_in_flight") >= count as f64);
}

#[test]
fn a_thousand_clients_make_one_fetch() {
    let gate = Barrier::default();
    let open = gate.clone();
    let origin = Origin::start(move |ask, peer| {
        open.wait();
        peer.reply(200, "cache-control: max-age=60", &format!("#{}", ask.number));
    });
    let proxy = origin.cached("lock_timeout: 1m");
    let mut clients = crowd(&proxy, CROWD, |_| String::new());
    all_wait(&proxy, CROWD);
    gate.open();
    for client in &mut clients {
        let answer = client.answer();
        assert_eq!((answer.status, answer.text().as_str()), (200, "#0"));
        let status = answer.field("cache-status").unwrap();
        assert!(
            ["ringway; fwd=uri-miss; stored", "ringway; fwd=uri-miss; collapsed"].contains(&status.as_str()),
            "{status}"
        );
    }
    assert_eq!(origin.asked(), 1);
    assert_eq!(proxy.metric("ringway_cache_requests_total{result=\"collapsed\",route=\"site\"}"), (CROWD - 1) as f64);
}

#[test]
fn what_cannot_be_shared_releases_all_at_once_and_then_nobody_waits() {
    let (first, rest) = (Barrier::default(), Barrier::default());
    let (open_first, open_rest) = (first.clone(), rest.clone());
    let origin = Origin::start(move |ask, peer| {
        if ask.number == 0 {
            open_first.wait()
        } else {
            open_rest.wait()
        }
        peer.reply(200, "cache-control: private", &format!("#{}", ask.number));
    });
    let settings = origin
        .configuration("lock_timeout: 1m")
        .replace("    nodes:", "    connections: { max_per_node: 5000 }\n    timeouts: { connect: 15s }\n    nodes:");
    let proxy = Proxy::start(&settings);
    let mut clients = crowd(&proxy, CROWD, |_| String::new());
    all_wait(&proxy, CROWD);
    first.open();
    // Nobody of the rest has an answer, and yet all of them have come to the origin.
    origin.wait_for(CROWD);
    let mut late = crowd(&proxy, 1, |_| String::new());
    origin.wait_for(CROWD + 1);
    rest.open();
    let mut bodies: Vec<String> = clients.iter_mut().chain(&mut late).map(|client| client.answer().text()).collect();
    bodies.sort();
    bodies.dedup();
    assert_eq!(bodies.len(), CROWD + 1, "each got its own");
}

#[test]
fn those_that_want_another_variant_go_on_at_once() {
    let gate = Barrier::default();
    let open = gate.clone();
    let origin = Origin::start(move |ask, peer| {
        if ask.number == 0 {
            open.wait();
        }
        peer.reply(200, "cache-control: max-age=60 | vary: x-kind", ask.field("x-kind").unwrap_or("none"));
    });
    let proxy = origin.cached("lock_timeout: 1m");
    let mut clients = crowd(&proxy, 200, |number| format!("x-kind: {}\r\n", number % 4));
    all_wait(&proxy, 200);
    gate.open();
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.answer().text(), (number % 4).to_string());
    }
    assert_eq!(origin.asked(), 4, "one fetch a variant");
}

#[test]
fn a_leader_that_leaves_does_not_end_the_fetch() {
    for after_the_head in [false, true] {
        let gate = Barrier::default();
        let open = gate.clone();
        let origin = Origin::start(move |_, peer| {
            let head = "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-length: 10\r\n\r\n";
            if after_the_head {
                peer.send(head);
                peer.send("01234");
                open.wait();
                peer.send("56789");
            } else {
                open.wait();
                peer.send(format!("{head}0123456789"));
            }
        });
        let proxy = origin.cached("lock_timeout: 1m");
        let mut leader = proxy.connect();
        leader.send("GET /hot HTTP/1.1\r\nhost: a\r\n\r\n");
        origin.wait_for(1);
        let mut follower = proxy.connect();
        follower.send("GET /hot HTTP/1.1\r\nhost: a\r\n\r\n");
        if after_the_head {
            leader.head();
        }
        drop(leader);
        eventually("the end of the leader", || proxy.metric("ringway_connections{listener=\"http\"}") <= 1.0);
        gate.open();
        assert_eq!(follower.answer().text(), "0123456789");
        eventually("a hit", || proxy.send("GET", "/hot", "host: a").field("age").is_some());
        assert_eq!(origin.asked(), 1);
    }
}

#[test]
fn a_body_that_ends_short_is_not_stored_and_all_see_it() {
    let gate = Barrier::default();
    let open = gate.clone();
    let node = Origin::by_connection(move |peer| {
        if peer.request().is_some() {
            peer.send("HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-length: 10\r\n\r\n01234");
            open.wait();
        }
    });
    let proxy = Proxy::start(
        &Proxy::pool(&[node.address], "").replace("hash_on: [uri] }", "hash_on: [uri], cache: { lock_timeout: 1m } }"),
    );
    let mut clients = crowd(&proxy, 20, |_| String::new());
    for client in &mut clients {
        assert!(client.head().starts_with("HTTP/1.1 200"));
        assert_eq!(client.exactly(5), b"01234", "bytes come as they arrive");
    }
    gate.open();
    for client in &mut clients {
        assert!(client.is_closed(), "the truncation is seen");
    }
    assert_eq!(proxy.metric("ringway_cache_entries"), 0.0);
    assert!(proxy.send("GET", "/hot", "host: a").truncated);
}

#[test]
fn a_slow_reader_holds_nobody_up() {
    let body = "x".repeat(6 << 20);
    let whole = body.clone();
    let origin = Origin::start(move |_, peer| peer.reply(200, "cache-control: max-age=60", &whole));
    let proxy = origin.cached("");
    let mut slow = proxy.connect();
    slow.send("GET / HTTP/1.1\r\nhost: example.com\r\n\r\n");
    slow.head();
    // It reads nothing more; the others have all of it, and it is stored.
    assert!(proxy.get("/").text() == body);
    eventually("a hit", || proxy.get("/").field("age").is_some());
    assert_eq!(origin.asked(), 1);
    assert!(slow.exactly(body.len()) == body.as_bytes());
}

#[test]
fn a_wait_ends_with_its_time() {
    let gate = Barrier::default();
    let open = gate.clone();
    let origin = Origin::start(move |ask, peer| {
        if ask.number == 0 {
            open.wait();
        }
        peer.reply(200, "cache-control: max-age=60", &format!("#{}", ask.number));
    });
    let proxy = origin.cached("lock_timeout: 200ms");
    let mut leader = proxy.connect();
    leader.send("GET / HTTP/1.1\r\nhost: example.com\r\n\r\n");
    origin.wait_for(1);
    let started = Instant::now();
    assert_eq!(proxy.get("/").text(), "#1");
    assert!(started.elapsed() >= Duration::from_millis(200));
    gate.open();
    assert_eq!(leader.answer().text(), "#0");
}

#[test]
fn a_failure_is_told_to_all_who_waited() {
    let origin = Origin::start(|_, peer| peer.hang_up());
    let proxy = origin.cached("");
    for client in &mut crowd(&proxy, 20, |_| String::new()) {
        let answer = client.answer();
        assert_eq!((answer.status, answer.problem().as_str()), (502, "upstream-failed"));
        assert_eq!(answer.field("cache-status").as_deref(), Some("ringway; fwd=uri-miss"));
    }
}

#[test]
fn one_validation_serves_all_who_came_meanwhile() {
    let gate = Barrier::default();
    let open = gate.clone();
    let origin = Origin::start(move |ask, peer| match ask.field("if-none-match") {
        None => peer.reply(200, "cache-control: max-age=1 | etag: \"e\"", "body"),
        Some(_) => {
            open.wait();
            peer.reply(304, "cache-control: max-age=60 | etag: \"e\"", "");
        }
    });
    let proxy = origin.cached("lock_timeout: 1m");
    proxy.send("GET", "/hot", "host: a");
    // Stale when a request goes to the origin again; that one leads.
    let mut first = proxy.connect();
    eventually("staleness", || {
        let head = proxy.metric("ringway_cache_requests_total{result=\"hit\",route=\"site\"}");
        first = proxy.connect();
        first.send("GET /hot HTTP/1.1\r\nhost: a\r\n\r\n");
        eventually("an answer or a validation", || {
            origin.asked() > 1 || proxy.metric("ringway_cache_requests_total{result=\"hit\",route=\"site\"}") > head
        });
        origin.asked() > 1
    });
    let mut clients = crowd(&proxy, 100, |_| String::new());
    all_wait(&proxy, 101);
    gate.open();
    for client in clients.iter_mut().chain([&mut first]) {
        let answer = client.answer();
        assert_eq!(answer.text(), "body");
        assert!(answer.field("cache-status").unwrap().starts_with("ringway; fwd=stale; fwd-status=304"), "{answer:?}");
    }
    assert_eq!(origin.asked(), 2);
}

#[test]
fn interim_answers_reach_the_client_that_had_it_fetched() {
    let origin = Origin::start(|_, peer| {
        peer.send("HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n");
        peer.reply(200, "cache-control: max-age=60", "body");
    });
    let proxy = origin.cached("");
    let mut client = proxy.connect();
    client.send("GET / HTTP/1.1\r\nhost: example.com\r\n\r\n");
    let hints = client.head();
    assert!(hints.starts_with("HTTP/1.1 103") && hints.contains("rel=preload"), "{hints}");
    assert_eq!(client.answer().text(), "body");
    warm(&proxy, "/");
}

#[test]
fn a_connection_is_reused_after_a_hit_and_after_a_miss() {
    let origin = Origin::numbering("cache-control: max-age=60");
    let proxy = origin.cached("");
    let mut client = proxy.connect();
    for _ in 0..3 {
        assert_eq!(client.request("GET / HTTP/1.1\r\nhost: a\r\n\r\n").text(), "#0");
        assert_eq!(client.request("HEAD / HTTP/1.1\r\nhost: a\r\n\r\n").status, 200);
    }
    client.stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
    let mut rest = String::new();
    client.stream.read_to_string(&mut rest).unwrap();
    assert!(rest.ends_with("#0"));
}

#[test]
fn a_response_that_begins_to_vary_does_not_hang_those_who_wait() {
    let gate = Barrier::default();
    let open = gate.clone();
    let origin = Origin::start(move |ask, peer| match (ask.number, ask.field("x-kind")) {
        (0, _) => peer.reply(200, "cache-control: max-age=1", "plain"),
        (1, Some("slow")) => {
            peer.send("HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\nvary: x-kind\r\ncontent-length: 4\r\n\r\nsl");
            open.wait();
            peer.send("ow");
        }
        (_, kind) => peer.reply(200, "cache-control: max-age=60 | vary: x-kind", kind.unwrap_or("none")),
    });
    let proxy = origin.cached("lock_timeout: 1m");
    proxy.get("/");
    let mut leader = proxy.connect();
    eventually("a fetch by the leader", || {
        leader = proxy.connect();
        leader.send("GET / HTTP/1.1\r\nhost: example.com\r\nx-kind: slow\r\n\r\n");
        leader.head().contains("x-kind")
    });
    for kind in ["b", "c", "b"] {
        assert_eq!(proxy.get_with("/", &format!("x-kind: {kind}")).text(), kind);
    }
    assert_eq!(proxy.get("/elsewhere").status, 200, "the worker serves on");
    gate.open();
    assert_eq!(leader.exactly(4), b"slow");
}

#[test]
fn a_body_that_has_become_stale_while_it_arrives_is_not_joined() {
    let gate = Barrier::default();
    let open = gate.clone();
    let origin = Origin::start(move |ask, peer| {
        if ask.number > 0 {
            return peer.reply(200, "cache-control: max-age=60", "second");
        }
        peer.send("HTTP/1.1 200 OK\r\ncache-control: max-age=1, must-revalidate\r\ncontent-length: 5\r\n\r\nfi");
        open.wait();
        peer.send("rst");
    });
    let proxy = origin.cached("");
    let mut early = proxy.connect();
    early.send("GET / HTTP/1.1\r\nhost: example.com\r\n\r\n");
    early.head();
    eventually("a fetch of its own", || {
        let mut late = proxy.connect();
        late.send("GET / HTTP/1.1\r\nhost: example.com\r\n\r\n");
        late.head();
        late.exactly(2) == b"se"
    });
    gate.open();
    assert_eq!(early.exactly(5), b"first");
}
