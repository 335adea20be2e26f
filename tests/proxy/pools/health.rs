//! Active checks: what they ask, what they find, and what a reload leaves alone.

use crate::support::{Does, Origin, Proxy, eventually};
use std::time::{Duration, Instant};

/// Checks that decide quickly.
const QUICK: &str = "    health_check: { interval: 50ms, timeout: 200ms, healthy_after: 2, unhealthy_after: 3 }\n    outlier_ejection: { consecutive_failures: 0 }\n";

fn healthy(proxy: &Proxy, id: &str) -> bool {
    proxy.node(id)["healthy"] == true
}

fn becomes(proxy: &Proxy, id: &str, well: bool) {
    eventually(&format!("{id} being {}", if well { "well" } else { "sick" }), || healthy(proxy, id) == well);
}

#[test]
fn a_node_whose_checks_fail_takes_nothing_until_they_pass() {
    let nodes = Origin::several(2);
    let proxy = Proxy::start(&Proxy::pool(&Origin::addresses(&nodes), QUICK));
    let paths = proxy.paths_of("n0", 20);
    eventually("checks of both", || nodes.iter().all(|node| node.checked() > 2));

    nodes[0].answers_checks(Does::Answer(500));
    becomes(&proxy, "n0", false);
    assert_eq!(proxy.metric("ringway_node_healthy{node=\"n0\",pool=\"app\"}"), 0.0);
    assert_eq!(proxy.node("n0")["health_check"]["error"], "the status is 500");
    let before = nodes[0].asked();
    for path in &paths {
        assert_eq!(proxy.get(path).text(), "n1");
    }
    assert_eq!(nodes[0].asked(), before, "a sick node was asked");
    assert_eq!(proxy.metric("ringway_ring_spills_total{pool=\"app\",reason=\"unhealthy\"}"), 20.0);

    nodes[0].answers_checks(Does::Answer(204));
    becomes(&proxy, "n0", true);
    assert!(paths.iter().all(|path| proxy.get(path).text() == "n0"), "its keys come home");
    assert_eq!(proxy.metric("ringway_node_healthy{node=\"n0\",pool=\"app\"}"), 1.0);
}

/// It answers its checks and fails its requests, or the reverse: each is found by its own means.
#[test]
fn a_node_that_lies_to_its_checks_is_found_by_its_requests() {
    let nodes = Origin::several(2);
    let pool = "    health_check: { interval: 50ms }\n    retries: {}\n";
    let proxy = Proxy::start(&Proxy::pool(&Origin::addresses(&nodes), pool));
    nodes[0].does(Does::Answer(503));
    for path in proxy.paths_of("n0", 10) {
        assert_eq!(proxy.get(&path).text(), "n1", "the client does not see it");
    }
    assert_eq!(nodes[0].asked(), 5, "it is out after five failures");
    let checked = nodes[0].checked();
    eventually("more checks", || nodes[0].checked() > checked + 5);
    assert!(proxy.node("n0")["ejected_for_seconds"].as_f64().unwrap() > 20.0, "checks that pass do not bring it back");

    // Of one node that is left none may be out: it is asked again, and its answer is given.
    nodes[1].answers_checks(Does::Hang);
    eventually("the other node to be asked again", || proxy.get("/1").field("x-node").as_deref() == Some("n0"));
    assert_eq!(proxy.get("/").status, 503);
}

/// All nodes down is 503, and one that answers is taken at once.
#[test]
fn an_outage_of_all_ends_with_the_first_check_that_passes() {
    let mut nodes = Origin::several(2);
    let pool = "    health_check: { interval: 100ms, timeout: 50ms, healthy_after: 50, unhealthy_after: 2 }\n";
    let proxy = Proxy::start(&Proxy::pool(&Origin::addresses(&nodes), pool));
    nodes.iter_mut().for_each(Origin::kill);
    becomes(&proxy, "n0", false);
    becomes(&proxy, "n1", false);
    let answer = proxy.get("/");
    assert_eq!((answer.status, answer.problem().as_str()), (503, "no-healthy-node"));
    assert!(answer.field("retry-after").is_some());
    assert_eq!(answer.field("proxy-status").as_deref(), Some("ringway; error=destination_unavailable"));
    assert_eq!(proxy.admin_get("/readyz").status, 503);

    nodes[1].revive();
    eventually("recovery", || proxy.get("/").status == 200);
    assert_eq!(proxy.admin_get("/readyz").status, 200);
    assert!(!healthy(&proxy, "n0"), "the other one is still away");
}

#[test]
fn a_dead_node_is_out_within_its_checks() {
    let mut nodes = Origin::several(2);
    let pool = "    health_check: { interval: 200ms, unhealthy_after: 3 }\n";
    let proxy = Proxy::start(&Proxy::pool(&Origin::addresses(&nodes), pool));
    eventually("checks", || nodes[0].checked() > 1);
    nodes[0].kill();
    let died = Instant::now();
    becomes(&proxy, "n0", false);
    // Three intervals, and what this test needs to look.
    assert!(died.elapsed() < Duration::from_millis(600 + 400), "{:?}", died.elapsed());
}

#[test]
fn what_is_asked_and_expected() {
    let node = Origin::named("n0");
    let pool =
        "    health_check: { interval: 50ms, expect_status: [204, 300-302], unhealthy_after: 1, healthy_after: 1 }\n";
    let proxy = Proxy::start(&Proxy::pool(&[node.address], pool));
    for (status, well) in [(204, true), (200, false), (301, true), (303, false), (300, true), (503, false)] {
        node.answers_checks(Does::Answer(status));
        becomes(&proxy, "n0", well);
    }
    drop(proxy);

    // The body that the service gives is its name.
    for (expected, well) in [("n0", true), ("n1", false)] {
        node.answers_checks(Does::Answer(200));
        let pool = format!("    health_check: {{ interval: 50ms, expect_body: {expected}, unhealthy_after: 1 }}\n");
        let proxy = Proxy::start(&Proxy::pool(&[node.address], &pool));
        eventually("a check", || !proxy.node("n0")["health_check"]["seconds_ago"].is_null());
        becomes(&proxy, "n0", well);
    }
}

#[test]
fn a_check_looks_like_one() {
    let seen = Origin::saying("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    let pool = "    health_check: { interval: 50ms, path: \"/up?deep=1\", host: check.example }\n";
    let proxy = Proxy::start(&Proxy::pool(&[seen.address], pool));
    eventually("a check", || !seen.checks().is_empty());
    let head = seen.checks()[0].to_ascii_lowercase();
    assert!(head.starts_with("get /up?deep=1 http/1.1\r\n"), "{head}");
    assert!(head.contains("host: check.example") && head.contains("user-agent: ringway/"), "{head}");
    assert!(head.contains("connection: close"), "{head}");
    drop(proxy);
}

#[test]
fn connections_alone_may_be_checked_and_at_another_port() {
    let (mut node, mut other) = (Origin::named("n0"), Origin::named("health"));
    node.answers_checks(Does::Hang);
    let pool = "    health_check: { kind: tcp, interval: 50ms, unhealthy_after: 1, healthy_after: 1 }\n";
    let proxy = Proxy::start(&Proxy::pool(&[node.address], pool));
    eventually("a check", || !proxy.node("n0")["health_check"]["seconds_ago"].is_null());
    assert!(healthy(&proxy, "n0"));
    node.kill();
    becomes(&proxy, "n0", false);
    node.revive();
    becomes(&proxy, "n0", true);
    drop(proxy);

    let pool = format!(
        "    health_check: {{ interval: 50ms, port: {}, unhealthy_after: 1, healthy_after: 1 }}\n",
        other.address.port()
    );
    let proxy = Proxy::start(&Proxy::pool(&[node.address], &pool));
    eventually("a check", || other.checked() > 0);
    assert!(healthy(&proxy, "n0"));
    other.kill();
    becomes(&proxy, "n0", false);
}

#[test]
fn a_new_node_may_have_to_pass_first() {
    let nodes = Origin::several(2);
    nodes[1].answers_checks(Does::Hang);
    let pool = "    health_check: { interval: 50ms, timeout: 5s, initially: down }\n";
    let proxy = Proxy::start(&Proxy::pool(&Origin::addresses(&nodes), pool));
    becomes(&proxy, "n0", true);
    assert!(!healthy(&proxy, "n1"), "nothing is known of it");
    for path in proxy.paths_of("n1", 5) {
        assert_eq!(proxy.get(&path).text(), "n0");
    }
    nodes[1].answers_checks(Does::Answer(200));
    becomes(&proxy, "n1", true);
}

/// One prober a process, however many workers; and a node that hangs is not asked twice at a time.
#[test]
fn one_prober_asks() {
    let node = Origin::named("n0");
    let text = Proxy::pool(&[node.address], "    health_check: { interval: 100ms }\n");
    let started = Instant::now();
    let proxy = Proxy::start(&format!("workers: 8\n{text}"));
    eventually("ten checks", || node.checked() >= 10);
    // From 90 ms on each, and the first one soon.
    let most = started.elapsed().as_millis() / 90 + 2;
    assert!(node.checked() as u128 <= most, "{} checks in {:?}", node.checked(), started.elapsed());
    drop(proxy);
}

/// Verdicts, counts and rhythm are the node's own; only a new address begins anew.
#[test]
fn a_reload_keeps_what_is_known() {
    let nodes = Origin::several(2);
    let pool = "    health_check: { interval: 100ms, unhealthy_after: 2, healthy_after: 30 }\n";
    let text = Proxy::pool(&Origin::addresses(&nodes), pool);
    let proxy = Proxy::start(&text);
    nodes[0].answers_checks(Does::Answer(500));
    becomes(&proxy, "n0", false);
    nodes[0].answers_checks(Does::Answer(200));
    let passed = || proxy.node("n0")["health_check"]["passed_in_a_row"].as_u64().unwrap();
    eventually("a check that passes", || passed() > 0);
    // Every reload comes while checks are on their way: none of them is a failure.
    nodes[1].answers_checks(Does::Late(Duration::from_millis(30)));
    let mut last = passed();
    for number in 0..15 {
        proxy.reconfigure(&format!("{text}  - {{ name: more{number}, path: /more, respond: {{ status: 204 }} }}\n"));
        let now = passed();
        assert!(now >= last && !healthy(&proxy, "n0"), "the count went back from {last} to {now}");
        last = now;
    }
    assert!(healthy(&proxy, "n1"));
    assert_eq!(proxy.node("n1")["health_check"]["failed_in_a_row"], 0);

    let moved = Origin::named("n0");
    proxy.reconfigure(&Proxy::pool(&[moved.address, nodes[1].address], pool));
    assert!(healthy(&proxy, "n0"), "the same id elsewhere is a new node");
    proxy.reconfigure(&Proxy::pool(&[nodes[0].address, nodes[1].address], ""));
    assert!(healthy(&proxy, "n0") && proxy.node("n0")["health_check"].is_null(), "nobody checks any more");
    assert!(proxy.admin_get("/metrics").text().contains("ringway_node_healthy{node=\"n0\",pool=\"app\"} 1"));
}

/// Up and down all the time: requests never see it.
#[test]
fn a_node_that_flaps_is_nobodys_business() {
    let mut nodes = Origin::several(3);
    let pool = "    health_check: { interval: 20ms, unhealthy_after: 1, healthy_after: 1 }\n    retries: {}\n    outlier_ejection: { base_time: 50ms }\n";
    let proxy = Proxy::start(&Proxy::pool(&Origin::addresses(&nodes), pool));
    let paths = proxy.paths_of("n0", 10);
    let mut client = proxy.connect();
    for round in 0..10 {
        match round % 2 {
            0 => nodes[0].kill(),
            _ => nodes[0].revive(),
        }
        for path in &paths {
            let answer = client.request(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n"));
            assert_eq!(answer.status, 200, "{answer:?}");
        }
    }
    assert!(nodes[1].asked() + nodes[2].asked() > 0);
}

#[test]
fn a_check_asks_by_the_configured_name_and_with_more_fields() {
    let seen = Origin::saying("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    let pool = "    health_check: { interval: 50ms, headers: { x-check: \"1\", authorization: \"Bearer t\" } }\n";
    let named = Proxy::pool(&[seen.address], pool).replace("127.0.0.1", "localhost");
    let proxy = Proxy::start(&named);
    eventually("a check", || !seen.checks().is_empty());
    let head = seen.checks()[0].to_ascii_lowercase();
    let host = format!("host: localhost:{}", seen.address.port());
    for expected in [host.as_str(), "x-check: 1", "authorization: bearer t"] {
        assert!(head.contains(expected), "{expected}: {head}");
    }
    drop(proxy);
}

/// The health service of gRPC: of a whole node, of one of its services, of one that it does not know.
#[test]
fn grpc_nodes_are_asked_in_their_own_way() {
    let node = Origin::http2();
    for (service, well, why) in [
        ("", true, ""),
        ("sick", false, "the service is not serving (status 2)"),
        ("unknown", false, "the call ends with the status 5"),
    ] {
        let pool = format!(
            "    protocol: http2\n    health_check: {{ interval: 50ms, unhealthy_after: 1, grpc: {{ service: \"{service}\" }} }}\n"
        );
        let proxy = Proxy::start(&Proxy::pool(&[node.address], &pool));
        eventually("a check", || !proxy.node("n0")["health_check"]["seconds_ago"].is_null());
        becomes(&proxy, "n0", well);
        let told = proxy.node("n0").to_string();
        assert!(told.contains(why), "{service}: {told}");
    }
    assert!(node.checks()[0].starts_with("POST http://127.0.0.1"), "{:?}", node.checks()[0]);
}
