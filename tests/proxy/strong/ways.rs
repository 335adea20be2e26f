//! Every way in which a stored response can be served goes through the check of the request that it answers.

use super::{Nodes, Shop, is_hit, later, status, warm};
use crate::support::Proxy;
use std::io::Read;

/// Writes through another proxy than the one that has what the test is about.
fn write(proxy: &Proxy) -> String {
    proxy.send("POST", "/tools/add", "content-length: 0").text()
}

#[test]
fn a_waiter_joins_no_fetch_from_before_a_write() {
    let Some(nodes) = Nodes::start(3) else { return };
    let shop = Shop::start();
    let proxies = nodes.proxies(2, &shop, "/tools/list");
    let barrier = shop.hold("read", "/tools/fetched");
    let first = later(&proxies[1], "GET", "/tools/fetched", "");
    shop.waits_for("GET", "/tools/fetched");
    assert_eq!(write(&proxies[0]), "v2");
    // The first fetch has read v1, and is still on its way: this read must not wait for it.
    let second = later(&proxies[1], "GET", "/tools/fetched", "");
    super::eventually("the second fetch", || shop.count("GET", "/tools/fetched") == 2);
    barrier.open();
    assert_eq!(first.join().unwrap().text(), "v1", "its read began before the write ended");
    assert_eq!(second.join().unwrap().text(), "v2");
    warm(&proxies[1], "/tools/fetched");
    assert_eq!(proxies[1].get("/tools/fetched").text(), "v2", "nothing of the first one is stored for long");
}

#[test]
fn a_waiter_joins_a_fetch_that_is_new_enough() {
    let Some(nodes) = Nodes::start(3) else { return };
    let shop = Shop::start();
    let proxies = nodes.proxies(1, &shop, "/tools/list");
    let barrier = shop.hold("read", "/tools/fetched");
    let first = later(&proxies[0], "GET", "/tools/fetched", "");
    shop.waits_for("GET", "/tools/fetched");
    let second = later(&proxies[0], "GET", "/tools/fetched", "");
    // It has asked the nodes once it is counted.
    super::eventually("the check", || super::count(&proxies[0], "changed") >= 3.0);
    barrier.open();
    let answers = [first.join().unwrap(), second.join().unwrap()];
    assert_eq!(answers.map(|answer| answer.text()), ["v1", "v1"]);
    assert_eq!(shop.count("GET", "/tools/fetched"), 1, "one fetch for both");
}

#[test]
fn a_growing_body_from_before_a_write_has_no_new_readers() {
    let Some(nodes) = Nodes::start(3) else { return };
    let shop = Shop::start();
    let proxies = nodes.proxies(2, &shop, "/tools/list");
    let barrier = shop.hold("half", "/tools/growing");
    let mut client = proxies[1].connect();
    client.send("GET /tools/growing HTTP/1.1\r\nhost: example.com\r\nconnection: close\r\n\r\n");
    let head = client.head();
    assert!(head.contains("200"), "{head}");
    assert_eq!(write(&proxies[0]), "v2");
    let reading = later(&proxies[1], "GET", "/tools/growing", "");
    super::eventually("a fetch of its own", || shop.count("GET", "/tools/growing") == 2);
    barrier.open();
    assert!(reading.join().unwrap().text().starts_with("v2 "));
    let mut rest = Vec::new();
    let _ = client.stream.read_to_end(&mut rest);
}

#[test]
fn a_head_makes_no_stored_body_newer() {
    let Some(nodes) = Nodes::start(3) else { return };
    let shop = Shop::start();
    let proxies = nodes.proxies(2, &shop, "/tools/list");
    assert_eq!(write(&proxies[0]), "v2");
    assert_eq!(proxies[1].send("HEAD", "/tools/list", "").status, 200);
    assert_eq!(proxies[1].get("/tools/list").text(), "v2");
    super::eventually("a verified HEAD", || is_hit(&proxies[1].send("HEAD", "/tools/list", "")));
}

#[test]
fn the_answer_to_a_post_is_not_stored_for_reads() {
    let Some(nodes) = Nodes::start(3) else { return };
    let shop = Shop::start();
    let proxies = nodes.proxies(1, &shop, "/tools/list");
    let fields = "content-length: 0 | x-answer: cache-control: max-age=600 & content-location: /tools/list";
    let answer = proxies[0].send("POST", "/tools/list", fields);
    assert_eq!((answer.status, answer.field("content-location").as_deref()), (200, Some("/tools/list")));
    let read = proxies[0].get("/tools/list");
    assert_eq!((is_hit(&read), read.text()), (false, "v2".to_owned()));
}

#[test]
fn a_response_from_before_a_write_stands_in_for_no_error() {
    let Some(nodes) = Nodes::start(3) else { return };
    let mut shop = Shop::start();
    let proxies = nodes.proxies(2, &shop, "/tools/list");
    assert_eq!(write(&proxies[0]), "v2");
    shop.origin.kill();
    let answer = proxies[1].get("/tools/list");
    assert_eq!(answer.status, 502, "{answer:?}");
    // Another shelf has not changed, and is served while the origin is down.
    shop.origin.revive();
    warm(&proxies[1], "/books/list");
    shop.origin.kill();
    super::eventually("a hit", || is_hit(&proxies[1].get("/books/list")));
    shop.origin.revive();
}

#[test]
fn a_request_that_refuses_the_network_gets_what_is_verified() {
    let Some(nodes) = Nodes::start(3) else { return };
    let shop = Shop::start();
    let proxies = nodes.proxies(2, &shop, "/tools/list");
    let only = "cache-control: only-if-cached";
    super::eventually("a hit", || is_hit(&proxies[1].get_with("/tools/list", only)));
    write(&proxies[0]);
    let answer = proxies[1].get_with("/tools/list", "cache-control: only-if-cached");
    assert_eq!((answer.status, status(&answer).as_str()), (504, "ringway; detail=only-if-cached"));
}
