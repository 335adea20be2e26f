//! Passive health: nodes that fail their requests are out for a while, and tried before they are back.

use super::with_sessions;
use crate::support::http2::{DATA, END_HEADERS, Frames, HEADERS};
use crate::support::{Client, Does, Origin, Proxy, eventually};
use std::time::{Duration, Instant};

fn ejected(proxy: &Proxy, id: &str) -> Option<f64> {
    proxy.node(id)["ejected_for_seconds"].as_f64()
}

/// What counts: resets, timeouts, connections that fail, answers that are cut, 502 to 504; never 500.
#[test]
fn what_speaks_against_a_node() {
    let timeouts = "    timeouts: { first_byte: 50ms }\n    outlier_ejection: { consecutive_failures: 3 }\n";
    for (does, counts) in [
        (Does::Reset, true),
        (Does::Hang, true),
        (Does::Half, true),
        (Does::Answer(502), true),
        (Does::Answer(503), true),
        (Does::Answer(504), true),
        (Does::Answer(500), false),
        (Does::Answer(501), false),
        (Does::Answer(429), false),
        (Does::Answer(404), false),
    ] {
        let nodes = Origin::several(2);
        let proxy = Proxy::start(&Proxy::pool(&Origin::addresses(&nodes), timeouts));
        nodes[0].does(does);
        for path in proxy.paths_of("n0", 6) {
            proxy.get(&path);
        }
        assert_eq!(ejected(&proxy, "n0").is_some(), counts);
        assert_eq!(nodes[0].asked(), if counts { 3 } else { 6 });
        assert_eq!(
            proxy.metric("ringway_ring_spills_total{pool=\"app\",reason=\"ejected\"}"),
            if counts { 3.0 } else { 0.0 }
        );
    }
}

#[test]
fn a_dead_node_is_out_after_five_and_nobody_sees_it() {
    let mut nodes = Origin::several(2);
    let proxy = Proxy::start(&Proxy::pool(&Origin::addresses(&nodes), ""));
    let paths = proxy.paths_of("n0", 12);
    nodes[0].kill();
    for path in &paths {
        assert_eq!(proxy.get(path).text(), "n1");
    }
    let refused =
        proxy.metric("ringway_upstream_requests_total{node=\"n0\",outcome=\"connection_refused\",pool=\"app\"}");
    assert_eq!(refused, 5.0);
    assert!(ejected(&proxy, "n0").unwrap() > 25.0);
    proxy.logs("its requests fail in a row");
    assert_eq!(proxy.metric("ringway_node_healthy{node=\"n0\",pool=\"app\"}"), 0.0);
}

#[test]
fn success_in_between_begins_the_count_anew() {
    let nodes = Origin::several(2);
    let proxy = Proxy::start(&Proxy::pool(&Origin::addresses(&nodes), ""));
    for (number, path) in proxy.paths_of("n0", 30).iter().enumerate() {
        nodes[0].does(if number % 5 == 4 { Does::Answer(200) } else { Does::Answer(503) });
        proxy.get(path);
    }
    assert_eq!((nodes[0].asked(), ejected(&proxy, "n0")), (30, None));
}

/// When the time is over one request tries the node; the others go elsewhere until it has answered.
#[test]
fn one_request_tries_a_node_that_was_out() {
    let nodes = Origin::several(2);
    let pool = "    outlier_ejection: { consecutive_failures: 1, base_time: 200ms }\n";
    let proxy = Proxy::start(&Proxy::pool(&Origin::addresses(&nodes), pool));
    let paths = proxy.paths_of("n0", 8);
    nodes[0].does(Does::Reset);
    proxy.get(&paths[0]);
    assert!(ejected(&proxy, "n0").is_some());

    // It fails again, and is out for twice as long.
    eventually("the end of the first time", || ejected(&proxy, "n0") == Some(0.0));
    proxy.get(&paths[0]);
    assert!(ejected(&proxy, "n0").unwrap() > 0.2, "{:?}", ejected(&proxy, "n0"));
    assert_eq!(nodes[0].asked(), 2);

    eventually("the end of the second time", || ejected(&proxy, "n0") == Some(0.0));
    let gate = crate::support::Barrier::default();
    nodes[0].does(Does::Wait(gate.clone()));
    let mut trial = proxy.connect();
    trial.send(format!("GET {} HTTP/1.1\r\nhost: a\r\n\r\n", paths[0]));
    eventually("the trial", || nodes[0].asked() == 3);
    for path in &paths[1..] {
        assert_eq!(proxy.get(path).text(), "n1", "somebody else tries it");
    }
    gate.open();
    assert_eq!(trial.answer().text(), "n0");
    assert!(paths.iter().all(|path| proxy.get(path).text() == "n0"), "it is back");
    assert_eq!(ejected(&proxy, "n0"), None);
}

/// A client that goes away in the middle of a trial leaves the node to the next one.
#[test]
fn a_trial_that_nobody_waits_for_is_no_verdict() {
    let nodes = Origin::several(2);
    let pool = "    outlier_ejection: { consecutive_failures: 1, base_time: 50ms }\n";
    let proxy = Proxy::start(&Proxy::pool(&Origin::addresses(&nodes), pool));
    let path = &proxy.paths_of("n0", 1)[0];
    nodes[0].does(Does::Reset);
    proxy.get(path);
    eventually("the end of its time", || ejected(&proxy, "n0") == Some(0.0));
    nodes[0].does(Does::Hang);
    let mut trial = proxy.connect();
    trial.send(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n"));
    eventually("the trial", || nodes[0].asked() == 2);
    drop(trial);
    nodes[0].does(Does::Answer(200));
    eventually("another trial", || proxy.get(path).text() == "n0");
}

#[test]
fn only_a_share_of_the_nodes_may_be_out() {
    let mut nodes = Origin::several(4);
    let proxy =
        Proxy::start(&Proxy::pool(&Origin::addresses(&nodes), "    outlier_ejection: { consecutive_failures: 1 }\n"));
    nodes.iter_mut().for_each(Origin::kill);
    for number in 0..40 {
        assert_eq!(proxy.get(&format!("/{number}")).status, 502);
    }
    let out = (0..4).filter(|number| ejected(&proxy, &format!("n{number}")).is_some()).count();
    assert_eq!(out, 2, "half of four");
    nodes[0].revive();
    nodes[1].revive();
    nodes[2].revive();
    eventually("an answer", || proxy.get("/1").status == 200);
}

#[test]
fn a_lone_node_is_never_out() {
    let node = Origin::named("n0");
    let proxy = Proxy::start(&Proxy::pool(&[node.address], ""));
    node.does(Does::Answer(503));
    for _ in 0..10 {
        assert_eq!(proxy.get("/").status, 503);
    }
    assert_eq!(node.asked(), 10);
    assert_eq!(proxy.admin_get("/readyz").status, 200);
}

/// A client cannot have a node taken out by being slow itself.
#[test]
fn slow_clients_are_not_the_nodes_fault() {
    let nodes = Origin::several(2);
    let pool = "    timeouts: { total: 100ms, first_byte: 50ms }\n    outlier_ejection: { consecutive_failures: 1 }\n";
    let proxy = Proxy::start(&Proxy::pool(&Origin::addresses(&nodes), pool));
    let path = &proxy.paths_of("n0", 1)[0];
    for _ in 0..3 {
        let mut client = proxy.connect();
        client.send(format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhalf"));
        assert_eq!(client.answer().status, 408, "a small body is awaited before a node is asked");
        let mut client = proxy.connect();
        client.send(format!("POST {path} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n"));
        assert_eq!(client.answer().status, 504);
    }
    // One that leaves in the middle says nothing either.
    let mut client = proxy.connect();
    client.send(format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhalf"));
    drop(client);
    assert_eq!(proxy.get(path).text(), "n0");
    assert_eq!(ejected(&proxy, "n0"), None);
}

/// A reload changes neither what is known of a node nor how long it is out.
#[test]
fn a_reload_keeps_who_is_out() {
    let mut nodes = Origin::several(2);
    let text = Proxy::pool(&Origin::addresses(&nodes), "    outlier_ejection: { consecutive_failures: 2 }\n");
    let proxy = Proxy::start(&text);
    let paths = proxy.paths_of("n0", 3);
    nodes[0].kill();
    proxy.get(&paths[0]);
    assert_eq!(proxy.node("n0")["failures_in_a_row"], 1);
    proxy.reconfigure(&text.replace("hash_on: [uri]", "hash_on: [path]"));
    assert_eq!(proxy.node("n0")["failures_in_a_row"], 1, "the count stays");
    proxy.get(&paths[0]);
    let before = ejected(&proxy, "n0").unwrap();
    proxy.reconfigure(&text);
    let after = ejected(&proxy, "n0").unwrap();
    assert!(after <= before && after > before - 10.0, "{before} and {after}");
}

/// In panic health counts for nothing: all nodes that are up are tried.
#[test]
fn in_panic_all_nodes_that_are_up_are_tried() {
    let mut nodes = Origin::several(4);
    let pool = "    panic_threshold: 50%\n    outlier_ejection: { consecutive_failures: 0 }\n    health_check: { interval: 50ms, unhealthy_after: 1, healthy_after: 1 }\n";
    let proxy = Proxy::start(&Proxy::pool(&Origin::addresses(&nodes), pool));
    for node in &nodes {
        node.answers_checks(Does::Answer(500));
    }
    for number in 0..4 {
        eventually("no node well", || proxy.node(&format!("n{number}"))["healthy"] == false);
    }
    assert_eq!(proxy.metric("ringway_pool_panic{pool=\"app\"}"), 1.0);
    let path = &proxy.paths_of("n0", 1)[0];
    assert_eq!(proxy.get(path).text(), "n0", "its owner takes it, whatever its checks say");
    assert_eq!(proxy.admin_get("/readyz").status, 200);

    // All but the last of the key's order are dead: without panic one retry would be all.
    let order = proxy.admin_get(&format!("/api/pools/app/ring?key={path}")).json()["order"].clone();
    let order: Vec<usize> =
        order.as_array().unwrap().iter().map(|id| id.as_str().unwrap()[1..].parse().unwrap()).collect();
    order[..3].iter().for_each(|&node| nodes[node].kill());
    assert_eq!(proxy.get(path).text(), format!("n{}", order[3]));
    nodes[order[3]].does(Does::Answer(503));
    let last = proxy.get(path);
    assert_eq!((last.status, last.text()), (503, format!("n{}", order[3])), "the last attempt's answer is given");
}

/// Strict sessions of a node that is out: refused, or moved, as the route says.
#[test]
fn strict_sessions_of_a_node_that_is_out() {
    for (on_gone, status) in [("reject", 503), ("next", 200)] {
        let mut nodes = Origin::several(2);
        let checks = "    health_check: { interval: 50ms, unhealthy_after: 1 }\n";
        let (proxy, _folder) = with_sessions(&nodes, checks, &format!(", on_gone: {on_gone}"));
        let first = proxy.get("/");
        let cookie = first.field("set-cookie").unwrap().split(';').next().unwrap().to_owned();
        let home: usize = first.text()[1..].parse().unwrap();
        nodes[home].kill();
        eventually("its checks to fail", || proxy.node(&format!("n{home}"))["healthy"] == false);
        let answer = proxy.get_with("/", &format!("cookie: {cookie}"));
        assert_eq!(answer.status, status, "{answer:?}");
        match status {
            503 => assert_eq!(answer.problem(), "session-node-down"),
            _ => assert!(answer.field("set-cookie").is_some() && answer.text() != format!("n{home}")),
        }
    }
}

/// Whatever fails, the proxy's own part of an answer stays quick.
#[test]
fn half_open_connections_are_left_behind() {
    let nodes = Origin::several(2);
    let pool = "    timeouts: { first_byte: 100ms }\n    retries: { on: [connect_failure, timeout] }\n    outlier_ejection: { consecutive_failures: 2 }\n";
    let proxy = Proxy::start(&Proxy::pool(&Origin::addresses(&nodes), pool));
    let paths = proxy.paths_of("n0", 20);
    proxy.get(&paths[0]);
    nodes[0].does(Does::Hang);
    let started = Instant::now();
    let mut client = Client::connect(proxy.address);
    for path in &paths {
        let answer = client.request(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n"));
        assert_eq!(answer.text(), "n1");
    }
    assert!(started.elapsed() < Duration::from_secs(2), "two of them waited: {:?}", started.elapsed());
}

/// A request that has no time left, or whose client is slow to read, says nothing of its node.
#[test]
fn the_end_of_a_requests_own_time_is_not_the_nodes_fault() {
    let nodes = Origin::several(2);
    let pool = "    timeouts: { total: 150ms, first_byte: 10s, idle: 0s }\n    outlier_ejection: { consecutive_failures: 1 }\n";
    let proxy = Proxy::start(&Proxy::pool(&Origin::addresses(&nodes), pool));
    let path = &proxy.paths_of("n0", 1)[0];
    nodes[0].does(Does::Late(Duration::from_millis(400)));
    assert_eq!(proxy.get(path).status, 504);
    assert_eq!(ejected(&proxy, "n0"), None);
}

/// Failures are in a row only if nothing went well in between, and a tunnel that opens went well.
#[test]
fn tunnels_count_as_success() {
    let node = Origin::by_connection(|peer| {
        while let Some(head) = peer.request() {
            if head.contains("upgrade: websocket") {
                peer.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n");
                peer.client.has_ended();
                return;
            }
            peer.send("HTTP/1.1 503 X\r\ncontent-length: 0\r\n\r\n");
        }
    });
    let other = Origin::named("n1");
    let proxy = Proxy::start(&Proxy::pool(
        &[node.address, other.address],
        "    outlier_ejection: { consecutive_failures: 2 }\n",
    ));
    let path = &proxy.paths_of("n0", 1)[0];
    for _ in 0..4 {
        assert_eq!(proxy.get(path).status, 503);
        let mut client = proxy.connect();
        client.send(format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"));
        assert!(client.head().starts_with("HTTP/1.1 101"));
    }
    assert_eq!(ejected(&proxy, "n0"), None);
}

/// To turn ejection off brings everybody back.
#[test]
fn a_reload_without_ejection_brings_nodes_back() {
    let mut nodes = Origin::several(2);
    let text = Proxy::pool(&Origin::addresses(&nodes), "    outlier_ejection: { consecutive_failures: 1 }\n");
    let proxy = Proxy::start(&text);
    let path = &proxy.paths_of("n0", 1)[0];
    nodes[0].kill();
    proxy.get(path);
    assert!(ejected(&proxy, "n0").is_some());
    nodes[0].revive();
    proxy.reconfigure(&text.replace("consecutive_failures: 1", "consecutive_failures: 0"));
    assert_eq!(ejected(&proxy, "n0"), None);
    assert_eq!(proxy.get(path).text(), "n0");
}

/// A node that answers before it has the body, and then says no more.
fn early(protocol: &str) -> Origin {
    match protocol {
        "http1" => Origin::by_connection(|peer| {
            peer.request();
            peer.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n");
            while !peer.client.has_ended() {
                let waiting = peer.client.exactly_or_less(4096);
                peer.client.exactly(waiting);
            }
        }),
        _ => Origin::by_connection(|peer| {
            let mut frames = Frames::accept(peer);
            while let Some(frame) = frames.next() {
                if frame.kind == HEADERS {
                    // `:status 200`, and a first piece.
                    frames.send(HEADERS, END_HEADERS, frame.stream, &[0x88]);
                    frames.send(DATA, 0, frame.stream, b"a");
                }
            }
        }),
    }
}

/// What becomes of an exchange after its client has failed says nothing of the node.
#[test]
fn clients_cannot_eject_nodes() {
    for protocol in ["http1", "http2"] {
        for fault in ["stalls", "sends a bad chunk", "sends too much", "leaves"] {
            let node = early(protocol);
            let pool = format!("    protocol: {protocol}\n    outlier_ejection: {{ consecutive_failures: 1 }}\n");
            let proxy = Proxy::start(&format!(
                "limits: {{ body_idle_timeout: 200ms, request_body: 1KiB }}\n{}",
                Proxy::pool(&[node.address], &pool)
            ));
            let mut client = proxy.connect();
            client.send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n");
            assert!(client.head().starts_with("HTTP/1.1 200"), "{protocol} {fault}");
            match fault {
                "sends a bad chunk" => drop(client.send("nonsense\r\n")),
                "sends too much" => drop(client.send(format!("800\r\n{}\r\n", "x".repeat(0x800)))),
                "leaves" => drop(client),
                _ => {}
            }
            eventually("the end of the request", || proxy.metric("ringway_requests_in_flight") == 0.0);
            assert_eq!(ejected(&proxy, "n0"), None, "{protocol} {fault}");
            let cut = |outcome: &str| {
                proxy.metric(&format!(
                    "ringway_upstream_requests_total{{node=\"n0\",outcome=\"{outcome}\",pool=\"app\"}}"
                ))
            };
            assert_eq!(cut("incomplete") + cut("stalled"), 0.0, "{protocol} {fault}");
        }
    }
}

/// Streams on which neither side says anything end, and whose fault that is nobody knows.
#[test]
fn idle_calls_do_not_eject_their_node() {
    let node = early("http2");
    let pool =
        "    protocol: http2\n    timeouts: { idle: 200ms }\n    outlier_ejection: { consecutive_failures: 1 }\n";
    let proxy = Proxy::start(&Proxy::pool(&[node.address], pool));
    let mut frames = Frames::connect(proxy.address);
    for stream in [1, 3, 5, 7, 9] {
        let head = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/call"),
            (":authority", "a"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ];
        frames.headers(0, stream, &head);
        frames.send(DATA, 0, stream, b"hi");
    }
    let outcome = "ringway_upstream_requests_total{node=\"n0\",outcome=\"request_body\",pool=\"app\"}";
    eventually("the end of all calls", || proxy.metric(outcome) == 5.0);
    assert_eq!(ejected(&proxy, "n0"), None);
}

/// The bound on how many may be out holds also where there are fewer nodes than when they were taken out.
#[test]
fn a_node_that_is_out_comes_back_where_no_other_is_left() {
    for way in ["down", "drain", "removed", "unhealthy"] {
        let nodes = Origin::several(2);
        let checks = if way == "unhealthy" {
            "    health_check: { interval: 50ms, timeout: 40ms, unhealthy_after: 1 }\n"
        } else {
            ""
        };
        let more = format!("    outlier_ejection: {{ consecutive_failures: 2, base_time: 60s }}\n{checks}");
        let proxy = Proxy::start(&Proxy::pool(&Origin::addresses(&nodes), &more));
        eventually("nodes that are well", || {
            proxy.node("n0")["healthy"] == true && proxy.node("n1")["healthy"] == true
        });
        let paths = proxy.paths_of("n0", 3);
        nodes[0].does(Does::Answer(503));
        for path in &paths {
            proxy.get(path);
        }
        assert!(ejected(&proxy, "n0").is_some(), "{way}");
        nodes[0].does(Does::Answer(200));
        match way {
            "down" | "drain" => {
                assert_eq!(proxy.admin_post(&format!("/api/pools/app/nodes/n1/{way}"), "").status, 200);
            }
            "removed" => proxy.reconfigure(&Proxy::pool(&Origin::addresses(&nodes)[..1], &more)),
            _ => nodes[1].answers_checks(Does::Hang),
        }
        eventually("the node to be back", || ejected(&proxy, "n0").is_none());
        eventually("its answer", || proxy.get(&paths[0]).text() == "n0");
        assert_eq!(proxy.admin_get("/readyz").status, 200, "{way}");
    }
}
