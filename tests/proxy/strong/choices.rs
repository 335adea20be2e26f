//! Consistency or availability: what becomes of reads and writes while one node is down, and while two are.

use super::{Nodes, Shop, count, is_hit, status, timed, warm};
use crate::support::{Answer, Proxy, eventually};

/// The longest time of an answer with two nodes down, on a machine with nothing else to do: the bound of 250 ms, and the
/// answer itself. Tests run beside each other, so that some more is allowed.
const BOUND: u128 = 900;

/// Two of three nodes are gone, once a path is warm.
fn two_down(more: &str) -> Option<(Nodes, Shop, Proxy)> {
    let mut nodes = Nodes::start(3)?;
    let shop = Shop::start();
    let proxy = nodes.proxy(&shop, more);
    warm(&proxy, "/tools/list");
    nodes.nodes[1].kill();
    nodes.nodes[2].kill();
    Some((nodes, shop, proxy))
}

fn read(proxy: &Proxy) -> Answer {
    let (answer, time) = timed(|| proxy.get("/tools/list"));
    assert!(time < BOUND, "{time} ms: {answer:?}");
    answer
}

fn write(proxy: &Proxy) -> Answer {
    let (answer, time) = timed(|| proxy.send("POST", "/tools/add", "content-length: 0"));
    assert!(time < BOUND, "{time} ms: {answer:?}");
    answer
}

#[test]
fn reads_and_writes_go_on_with_one_of_three_nodes_down() {
    let Some(mut nodes) = Nodes::start(3) else { return };
    let shop = Shop::start();
    let proxies = nodes.proxies(2, &shop, "/tools/list");
    nodes.nodes[0].kill();
    let first = proxies[1].get("/tools/list");
    assert_eq!(first.text(), "v1");
    let (mut failed, mut hits) = (0, 0);
    for round in 0..300 {
        let written = proxies[round % 2].send("POST", "/tools/add", "content-length: 0");
        failed += u32::from(written.status != 200);
        for proxy in &proxies {
            let answer = proxy.get("/tools/list");
            failed += u32::from(answer.status != 200);
            assert_eq!(answer.text(), shop.version("/tools"), "{answer:?}");
        }
        hits += u32::from(is_hit(&proxies[0].get("/tools/list")));
    }
    assert_eq!(failed, 0, "of 900 requests");
    // A node that is slow for a moment costs a validation.
    assert!(hits > 240, "hits go on: {hits} of 300");
}

#[test]
fn reads_without_a_quorum_go_to_the_origin() {
    let Some((_nodes, shop, proxy)) = two_down("") else { return };
    for _ in 0..3 {
        let answer = read(&proxy);
        assert_eq!((answer.status, status(&answer).as_str()), (200, "ringway; fwd=request; detail=unverifiable"));
        assert_eq!(answer.text(), shop.version("/tools"));
    }
    assert!(count(&proxy, "quorum_lost") >= 3.0);
}

#[test]
fn reads_without_a_quorum_are_refused() {
    let Some((mut nodes, shop, proxy)) = two_down("on_quorum_loss: reject") else { return };
    let asked = shop.origin.asked();
    let answer = read(&proxy);
    assert_eq!((answer.status, answer.problem().as_str()), (503, "consistency-unavailable"));
    assert_eq!(answer.field("retry-after").as_deref(), Some("1"));
    assert_eq!(shop.origin.asked(), asked, "nothing is forwarded");
    nodes.nodes[1].run();
    eventually("an answer", || proxy.get("/tools/list").status == 200);
    assert_eq!(status(&proxy.get("/tools/list")), "ringway; fwd=request; detail=unverifiable", "the node is young");
    warm(&proxy, "/tools/list");
}

#[test]
fn reads_without_a_quorum_are_served_unverified() {
    let Some((_nodes, shop, proxy)) = two_down("on_quorum_loss: stale") else { return };
    let asked = shop.origin.asked();
    let answer = read(&proxy);
    assert_eq!((answer.status, answer.text()), (200, "v1".to_owned()));
    assert!(status(&answer).starts_with("ringway; hit; ttl="), "{answer:?}");
    assert!(status(&answer).ends_with("; detail=unverified"), "{answer:?}");
    assert_eq!((shop.origin.asked(), count(&proxy, "unverified")), (asked, 1.0));
    // It stays the choice once the bus, on the same nodes, is known to have a gap: also with the origin away.
    eventually("the gap", || proxy.admin_get("/api/fleet").json()["bus"]["open_gap"] == true);
    let answer = read(&proxy);
    assert!(status(&answer).ends_with("; detail=unverified"), "{answer:?}");
    assert_eq!(shop.origin.asked(), asked);
    // A response that is not stored comes from the origin.
    assert_eq!(proxy.get("/tools/other").status, 200);
}

#[test]
fn writes_without_a_quorum_are_refused() {
    let Some((_nodes, shop, proxy)) = two_down("") else { return };
    let asked = shop.origin.asked();
    for fields in ["content-length: 0", "content-length: 2 | expect: 100-continue"] {
        let mut client = proxy.connect();
        let (answer, time) = timed(|| {
            let lines = fields.replace(" | ", "\r\n");
            client.request(format!(
                "POST /tools/add HTTP/1.1\r\nhost: example.com\r\nconnection: close\r\n{lines}\r\n\r\n"
            ))
        });
        assert!(time < BOUND, "{time} ms");
        assert_eq!((answer.status, answer.problem().as_str()), (503, "consistency-unavailable"));
        assert_eq!(answer.field("retry-after").as_deref(), Some("1"));
    }
    assert_eq!(shop.origin.asked(), asked, "nothing is forwarded");
}

#[test]
fn writes_without_a_quorum_are_forwarded_and_stamped_later() {
    let Some(nodes) = Nodes::start(3) else { return };
    let shop = Shop::start();
    let settings = "on_write_quorum_loss: forward, on_quorum_loss: stale";
    let proxies = [nodes.proxy(&shop, settings), nodes.proxy(&shop, settings)];
    proxies.iter().for_each(|proxy| warm(proxy, "/tools/list"));
    nodes.nodes[1].signal("STOP");
    nodes.nodes[2].signal("STOP");
    let answer = write(&proxies[0]);
    assert_eq!((answer.status, answer.text()), (200, "v2".to_owned()));
    assert_eq!(count(&proxies[0], "unmarked_write"), 1.0);
    assert_eq!(proxies[1].get("/tools/list").text(), "v1", "unverified, and so outdated");
    nodes.nodes[1].signal("CONT");
    nodes.nodes[2].signal("CONT");
    eventually("the new version", || proxies[1].get("/tools/list").text() == "v2");
    warm(&proxies[1], "/tools/list");
    assert_eq!(proxies[1].get("/tools/list").text(), "v2");
}
