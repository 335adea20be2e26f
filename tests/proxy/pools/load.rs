//! Limits, queues and bounded load.

use super::{begin_session, with_sessions};
use crate::support::{Barrier, Client, Does, Origin, Proxy, eventually};
use std::time::{Duration, Instant};

fn asks(proxy: &Proxy, path: &str) -> Client {
    let mut client = proxy.connect();
    client.send(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n"));
    client
}

/// A node that is full is passed over as long as any has room.
#[test]
fn a_full_node_is_passed_over_while_any_has_room() {
    let nodes = Origin::several(2);
    let proxy = Proxy::start(&format!(
        "workers: 4\n{}",
        Proxy::pool(&Origin::addresses(&nodes), "    connections: { max_per_node: 3 }\n")
    ));
    let gate = Barrier::default();
    nodes.iter().for_each(|node| node.does(Does::Wait(gate.clone())));
    let path = &proxy.paths_of("n0", 1)[0];
    let mut waiting: Vec<Client> = (0..6).map(|_| asks(&proxy, path)).collect();
    eventually("six in flight", || nodes.iter().all(|node| node.at_once() == 3));
    let answer = proxy.get(path);
    assert_eq!((answer.status, answer.problem().as_str()), (503, "connection-limit-reached"));
    assert_eq!(answer.field("proxy-status").as_deref(), Some("ringway; error=connection_limit_reached"));
    assert!(answer.field("retry-after").is_some());
    gate.open();
    assert!(waiting.iter_mut().all(|client| client.answer().status == 200));
    assert!(nodes.iter().all(|node| node.most_at_once() == 3), "over all workers");
    assert_eq!(proxy.metric("ringway_ring_spills_total{pool=\"app\",reason=\"connection_limit\"}"), 3.0);
}

/// With a queue, those who come too many wait their turn, the first one first, and only so many, and
/// only so long.
#[test]
fn a_queue_is_bounded_in_length_and_time() {
    let nodes = Origin::several(1);
    let pool = "    connections: { max_per_node: 1, max_queued: 2, queue_timeout: 20s }\n";
    let text = format!("workers: 2\n{}", Proxy::pool(&Origin::addresses(&nodes), pool));
    let proxy = Proxy::start(&text);
    let gate = Barrier::default();
    nodes[0].does(Does::Wait(gate.clone()));
    let mut first = asks(&proxy, "/");
    eventually("one in flight", || nodes[0].at_once() == 1);
    let queued = || proxy.metric("ringway_upstream_queued{pool=\"app\"}");
    let mut second = asks(&proxy, "/2");
    eventually("one that waits", || queued() == 1.0);
    let mut third = asks(&proxy, "/3");
    eventually("two that wait", || queued() == 2.0);
    let started = Instant::now();
    assert_eq!(proxy.get("/4").problem(), "connection-limit-reached", "the queue is full");
    assert!(started.elapsed() < Duration::from_secs(10), "and says so at once");
    gate.open();
    assert_eq!(first.answer().status, 200);
    assert_eq!((second.answer().status, third.answer().status), (200, 200));
    assert_eq!((nodes[0].most_at_once(), queued()), (1, 0.0));

    let gate = Barrier::default();
    nodes[0].does(Does::Wait(gate.clone()));
    let mut first = asks(&proxy, "/");
    eventually("one in flight", || nodes[0].at_once() == 1);
    // A client that goes away frees its place.
    let leaves = asks(&proxy, "/");
    eventually("one that waits", || queued() == 1.0);
    drop(leaves);
    eventually("an empty queue", || queued() == 0.0);
    proxy.reconfigure(&text.replace("queue_timeout: 20s", "queue_timeout: 200ms"));
    let started = Instant::now();
    assert_eq!(proxy.get("/").status, 503);
    assert!(started.elapsed() >= Duration::from_millis(200), "after its time");
    gate.open();
    assert_eq!(first.answer().status, 200);
}

/// Many more than fit, through a queue over several workers: all are served, and none too many at once.
#[test]
fn a_crowd_goes_through_the_queue() {
    let nodes = Origin::several(2);
    let pool = "    connections: { max_per_node: 2, max_queued: 100, queue_timeout: 20s }\n";
    let proxy = Proxy::start(&format!("workers: 3\n{}", Proxy::pool(&Origin::addresses(&nodes), pool)));
    nodes.iter().for_each(|node| node.does(Does::Late(Duration::from_millis(2))));
    std::thread::scope(|scope| {
        for client in 0..20 {
            let proxy = &proxy;
            scope.spawn(move || {
                let mut connection = proxy.connect();
                for number in 0..20 {
                    let answer = connection.request(format!("GET /{client}/{number} HTTP/1.1\r\nhost: a\r\n\r\n"));
                    assert_eq!(answer.status, 200, "{answer:?}");
                }
            });
        }
    });
    assert!(nodes.iter().all(|node| node.most_at_once() <= 2));
    assert_eq!(nodes.iter().map(Origin::asked).sum::<usize>(), 400);
}

/// A strict session waits for its own node, and not for another.
#[test]
fn a_session_waits_for_its_own_node() {
    let nodes = Origin::several(2);
    let pool = "    connections: { max_per_node: 1, max_queued: 10, queue_timeout: 10s }\n";
    let (proxy, _folder) = with_sessions(&nodes, pool, "");
    let path = &proxy.paths_of("n0", 1)[0];
    let cookie = begin_session(&proxy, path);
    let gate = Barrier::default();
    nodes[0].does(Does::Wait(gate.clone()));
    let mut first = asks(&proxy, path);
    eventually("one in flight", || nodes[0].at_once() == 1);
    let mut session = proxy.connect();
    session.send(format!("GET {path} HTTP/1.1\r\nhost: a\r\ncookie: {cookie}\r\n\r\n"));
    eventually("one that waits", || proxy.metric("ringway_upstream_queued{pool=\"app\"}") == 1.0);
    assert_eq!(proxy.get(path).text(), "n1", "others have another node");
    gate.open();
    assert_eq!(first.answer().text(), "n0");
    assert_eq!(session.answer().text(), "n0");
}

/// One key only: without a bound its node takes all, with it no more than its part.
#[test]
fn a_hot_key_spills_over_its_nodes_bound() {
    for (ring, most) in [("", 12), ("    ring: { bounded_load: 1.25 }\n", 4)] {
        let nodes = Origin::several(4);
        let proxy = Proxy::start(&format!("workers: 2\n{}", Proxy::pool(&Origin::addresses(&nodes), ring)));
        let gate = Barrier::default();
        nodes.iter().for_each(|node| node.does(Does::Wait(gate.clone())));
        let path = &proxy.paths_of("n0", 1)[0];
        let mut waiting = Vec::new();
        for number in 1..=12 {
            waiting.push(asks(&proxy, path));
            eventually("it to arrive", || nodes.iter().map(Origin::at_once).sum::<usize>() == number);
        }
        // ceil(1.25 * 12 / 4) of twelve.
        let load: Vec<usize> = nodes.iter().map(Origin::at_once).collect();
        assert_eq!((load[0], load.iter().max()), (most, Some(&most)), "{load:?}");
        let spills = proxy.metric("ringway_ring_spills_total{pool=\"app\",reason=\"bounded_load\"}");
        assert_eq!(spills, (12 - most) as f64);
        gate.open();
        assert!(waiting.iter_mut().all(|client| client.answer().status == 200));
        assert_eq!(proxy.get(path).text(), "n0", "when it is quiet the key is its owner's again");
    }
}

/// A thousand nodes, most of them away: a key finds the first that is there.
#[test]
fn a_thousand_nodes() {
    let nodes = Origin::several(3);
    let list: Vec<String> = (0..1000)
        .map(|number| {
            let state = if number % 100 == 7 { "up" } else { "down" };
            format!("      - {{ id: n{number}, address: \"{}\", state: {state} }}\n", nodes[number % 3].address)
        })
        .collect();
    let proxy = Proxy::start(&format!(
        "pools:\n  app:\n    health_check: {{ interval: 1s }}\n    ring: {{ bounded_load: 2 }}\n    slow_start: 1s\n    nodes:\n{}routes:\n  - {{ name: site, pool: app, hash_on: [uri] }}\n",
        list.concat()
    ));
    for number in 0..200 {
        assert_eq!(proxy.get(&format!("/{number}")).status, 200);
    }
    eventually("checks of all", || nodes.iter().map(Origin::checked).sum::<usize>() >= 1000);
    let spills = proxy.metric("ringway_ring_spills_total{pool=\"app\",reason=\"down\"}");
    assert!(spills > 150.0, "{spills}");
}

/// Who waits is not overtaken by who comes later.
#[test]
fn nobody_overtakes_those_who_wait() {
    let nodes = Origin::several(1);
    let pool = "    connections: { max_per_node: 1, max_queued: 50, queue_timeout: 20s }\n";
    let proxy = Proxy::start(&format!("workers: 2\n{}", Proxy::pool(&Origin::addresses(&nodes), pool)));
    let gate = Barrier::default();
    nodes[0].does(Does::Wait(gate.clone()));
    let queued = || proxy.metric("ringway_upstream_queued{pool=\"app\"}");
    let mut waiting = vec![asks(&proxy, "/0")];
    eventually("one in flight", || nodes[0].at_once() == 1);
    for number in 1..8 {
        waiting.push(asks(&proxy, &format!("/{number}")));
        eventually("one more that waits", || queued() == f64::from(number));
    }
    gate.open();
    assert!(waiting.iter_mut().all(|client| client.answer().status == 200));
    let order: Vec<String> =
        nodes[0].requests().iter().map(|head| head.split(' ').nth(1).unwrap().to_owned()).collect();
    assert_eq!(order, (0..8).map(|number| format!("/{number}")).collect::<Vec<_>>());
}

/// A strict session that meets its node full is served elsewhere, and is not moved for it.
#[test]
fn a_session_is_not_moved_because_its_node_was_full() {
    let nodes = Origin::several(2);
    let (proxy, _folder) = with_sessions(&nodes, "    connections: { max_per_node: 1 }\n", ", on_gone: next");
    let path = &proxy.paths_of("n0", 1)[0];
    let cookie = begin_session(&proxy, path);
    let gate = Barrier::default();
    nodes[0].does(Does::Wait(gate.clone()));
    let mut first = asks(&proxy, path);
    eventually("one in flight", || nodes[0].at_once() == 1);
    let answer = proxy.get_with(path, &format!("cookie: {cookie}"));
    assert_eq!((answer.text().as_str(), answer.field("set-cookie")), ("n1", None));
    gate.open();
    first.answer();
    assert_eq!(proxy.get_with(path, &format!("cookie: {cookie}")).text(), "n0");
}
