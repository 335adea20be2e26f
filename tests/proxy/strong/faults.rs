//! Writers that are killed or stopped, and nodes that forget: no read is older than a finished write, or than another
//! read before it.

use super::{Nodes, Shop, is_hit, later, status, warm};
use crate::support::eventually;
use std::time::Duration;

#[test]
fn a_writer_that_is_killed_leaves_its_mark() {
    let Some(nodes) = Nodes::start(3) else { return };
    let shop = Shop::start();
    let mut proxies = nodes.proxies(2, &shop, "/tools/list");
    let reader = proxies.pop().unwrap();
    let barrier = shop.hold("before", "/tools/add");
    let writer = proxies.pop().unwrap();
    let mut client = writer.connect();
    client.send("POST /tools/add HTTP/1.1\r\nhost: example.com\r\ncontent-length: 0\r\n\r\n");
    shop.waits_for("POST", "/tools/add");
    writer.signal("KILL");
    let answer = reader.get("/tools/list");
    assert!(status(&answer).contains("detail=marked") && answer.text() == "v1", "{answer:?}");
    // The origin carries the request out all the same.
    barrier.open();
    eventually("the write", || shop.version("/tools") == "v2");
    assert_eq!(reader.get("/tools/list").text(), "v2");
    // The mark ends by itself, and what was stored before it is not served.
    eventually("an end of the mark", || {
        let answer = reader.get("/tools/list");
        assert_eq!(answer.text(), "v2", "{answer:?}");
        is_hit(&answer)
    });
}

#[test]
fn a_writer_that_was_stopped_sends_nothing_after_its_lease() {
    let Some(nodes) = Nodes::start(3) else { return };
    let shop = Shop::start();
    let proxies = nodes.proxies(2, &shop, "/tools/list");
    let mut client = proxies[0].connect();
    // More than is buffered before a node gets the request.
    client.send("POST /tools/add HTTP/1.1\r\nhost: example.com\r\ncontent-length: 200000\r\n\r\n");
    client.send(vec![b'x'; 1000]);
    shop.waits_for("POST", "/tools/add");
    assert!(status(&proxies[1].get("/tools/list")).contains("detail=marked"));
    proxies[0].signal("STOP");
    // Its mark ends, and what is read now is stored.
    warm(&proxies[1], "/tools/list");
    proxies[0].signal("CONT");
    client.send(vec![b'x'; 199_000]);
    let answer = client.answer();
    // A part of it was sent: a client that repeats it by itself could run it twice.
    assert_eq!((answer.status, answer.problem().as_str()), (409, "outcome-unknown"), "{answer:?}");
    assert_eq!(answer.field("retry-after"), None);
    let read = proxies[1].get("/tools/list");
    assert_eq!((read.text(), shop.version("/tools")), ("v1".to_owned(), "v1".to_owned()), "the rest was not sent");
}

#[test]
fn a_node_that_restarts_empty_counts_only_later() {
    let Some(mut nodes) = Nodes::start(3) else { return };
    let shop = Shop::start();
    let proxies = nodes.proxies(2, &shop, "/tools/list");
    let barrier = shop.hold("before", "/tools/add");
    let writing = later(&proxies[0], "POST", "/tools/add", "content-length: 0");
    shop.waits_for("POST", "/tools/add");
    for restarted in 0..2 {
        nodes.nodes[restarted].lose();
        nodes.nodes[restarted].run();
        for _ in 0..30 {
            let answer = proxies[1].get("/tools/list");
            assert!(!is_hit(&answer), "served beside a write: {answer:?}");
            assert_eq!(answer.text(), "v1");
        }
        // The writer puts its mark there again.
        let marks = |node: usize| nodes.nodes[node].execute(&["KEYS", "ringway:test:strong:marks:*"]);
        eventually("the mark", || !marks(restarted).is_empty());
        let old = std::time::Instant::now();
        while old.elapsed() < Duration::from_millis(4200) {
            let answer = proxies[1].get("/tools/list");
            assert!(!is_hit(&answer), "served beside a write: {answer:?}");
        }
    }
    barrier.open();
    assert_eq!(writing.join().unwrap().text(), "v2");
    eventually("a hit", || {
        let answer = proxies[1].get("/tools/list");
        assert_eq!(answer.text(), "v2", "{answer:?}");
        is_hit(&answer)
    });
}

/// The mark is on two of three nodes. One of them forgets it, and the reader cannot reach the other one.
#[test]
fn a_forgotten_mark_is_believed_to_be_there() {
    let Some(mut nodes) = Nodes::start(3) else { return };
    let shop = Shop::start();
    let ((writer, of_writer), (reader, of_reader)) = (nodes.linked(&shop), nodes.linked(&shop));
    [&writer, &reader].iter().for_each(|proxy| warm(proxy, "/tools/list"));
    of_writer[2].cut(true);
    eventually("a lost node", || writer.send("POST", "/books/add", "content-length: 0").status == 200);
    let barrier = shop.hold("before", "/tools/add");
    let writing = later(&writer, "POST", "/tools/add", "content-length: 0");
    shop.waits_for("POST", "/tools/add");
    of_reader[1].cut(true);
    assert!(status(&reader.get("/tools/list")).contains("detail=marked"));
    // Its renewals are kept from the node that forgets, for a while.
    of_writer[0].hold_requests(true);
    nodes.nodes[0].lose();
    nodes.nodes[0].run();
    let mut answered = 0;
    eventually("answers of the node that has forgotten", || {
        let answer = reader.get("/tools/list");
        assert!(!is_hit(&answer), "served beside a write: {answer:?}");
        answered += u32::from(!status(&answer).contains("detail=marked"));
        answered > 50
    });
    of_writer[0].hold_requests(false);
    barrier.open();
    let answer = writing.join().unwrap();
    let read = reader.get("/tools/list");
    assert!(answer.status == 409 || read.text() == "v2", "{answer:?} {read:?}");
}

/// Nobody waits for nodes that are gone before he learns that the outcome of his write is unknown.
#[test]
fn a_write_without_nodes_is_answered_when_its_mark_lapses() {
    let Some(mut nodes) = Nodes::start(3) else { return };
    let shop = Shop::start();
    let proxy = nodes.proxy(&shop, "");
    warm(&proxy, "/tools/list");
    let barrier = shop.hold("before", "/tools/add");
    let writing = later(&proxy, "POST", "/tools/add", "content-length: 0");
    shop.waits_for("POST", "/tools/add");
    let lost = std::time::Instant::now();
    (0..2).for_each(|node| nodes.nodes[node].lose());
    let answer = writing.join().unwrap();
    assert_eq!((answer.status, answer.problem().as_str()), (409, "outcome-unknown"), "{answer:?}");
    // A lease is 3 s; the wait for the end would be another one.
    assert!(lost.elapsed() < Duration::from_millis(5500), "{:?}", lost.elapsed());
    barrier.open();
}

#[test]
fn hits_go_on_while_a_node_has_just_restarted() {
    let Some(mut nodes) = Nodes::start(3) else { return };
    let shop = Shop::start();
    let proxies = nodes.proxies(1, &shop, "/tools/list");
    nodes.nodes[2].lose();
    warm(&proxies[0], "/tools/list");
    nodes.nodes[2].run();
    let hits = (0..50).filter(|_| is_hit(&proxies[0].get("/tools/list"))).count();
    assert!(hits > 40, "{hits} of 50");
}

#[test]
fn a_node_whose_data_is_removed_is_young() {
    let Some(nodes) = Nodes::start(3) else { return };
    let shop = Shop::start();
    let proxies = nodes.proxies(2, &shop, "/tools/list");
    // Two of three: no hit until one of them counts again, and nothing is refused.
    nodes.nodes[0].execute(&["FLUSHALL"]);
    nodes.nodes[1].execute(&["FLUSHALL"]);
    let answer = proxies[1].get("/tools/list");
    assert_eq!(status(&answer), "ringway; fwd=request; detail=unverifiable");
    assert_eq!(proxies[0].send("POST", "/tools/add", "content-length: 0").status, 200, "W counts young nodes");
    eventually("a hit", || {
        let answer = proxies[1].get("/tools/list");
        assert_eq!(answer.text(), "v2", "{answer:?}");
        is_hit(&answer)
    });
}
