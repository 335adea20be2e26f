//! Networks that fail: a partition that heals, connections that are cut in the middle.

use crate::support::{Origin, Proxy, Wire, eventually};

/// Packets to one node vanish and come again: clients see nothing of it, neither then nor after.
#[test]
fn a_partition_heals() {
    let nodes = Origin::several(2);
    let wire = Wire::to(nodes[0].address);
    let pool = "    timeouts: { first_byte: 200ms }\n    retries: { on: [connect_failure, reset, timeout] }\n    outlier_ejection: { consecutive_failures: 2, base_time: 100ms }\n    health_check: { interval: 50ms, timeout: 50ms, unhealthy_after: 2, healthy_after: 1 }\n";
    let proxy = Proxy::start(&Proxy::pool(&[wire.address, nodes[1].address], pool));
    let paths = proxy.paths_of("n0", 6);
    assert!(paths.iter().all(|path| proxy.get(path).text() == "n0"));
    wire.cut();
    for path in paths.iter().cycle().take(30) {
        assert_eq!(proxy.get(path).text(), "n1");
    }
    eventually("the checks to notice", || proxy.node("n0")["healthy"] == false);
    wire.heal();
    eventually("its keys to come home", || paths.iter().all(|path| proxy.get(path).text() == "n0"));
}

/// A connection that is cut in the middle of a body: the client hears of it, nothing is stored, and a
/// node behind such a link is out.
#[test]
fn connections_are_cut_in_the_middle() {
    let body = "x".repeat(100_000);
    let far =
        Origin::saying(format!("HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-length: 100000\r\n\r\n{body}"));
    let near = Origin::saying("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nnear");
    let wire = Wire::to(far.address);
    wire.cut_after(30_000);
    let text = Proxy::pool(&[wire.address, near.address], "    outlier_ejection: { consecutive_failures: 3 }\n")
        .replace("hash_on: [uri] }", "hash_on: [uri], cache: {} }");
    let proxy = Proxy::start(&text);
    let paths = proxy.paths_of("n0", 6);
    for path in &paths[..3] {
        let answer = proxy.get(path);
        assert!(answer.truncated && answer.body.len() < 30_000, "{answer:?}");
    }
    assert_eq!(proxy.metric("ringway_cache_entries"), 0.0, "a part is not the whole");
    eventually("the node to be out", || proxy.node("n0")["ejected_for_seconds"].is_number());
    for path in &paths {
        assert_eq!(proxy.get(path).text(), "near");
    }
    assert_eq!(proxy.metric("ringway_upstream_requests_total{node=\"n0\",outcome=\"incomplete\",pool=\"app\"}"), 3.0);
}
