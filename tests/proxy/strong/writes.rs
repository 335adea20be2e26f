//! Every write marks, whatever its way; its mark holds for as long as it may change something, and for nothing else.

use super::{Nodes, Shop, count, is_hit, later, routes, routes_before, status, warm};
use crate::support::{Origin, Proxy, eventually};

/// A write is known to another proxy by its stamps, whatever the route, the method and the key.
#[test]
fn a_write_marks_through_any_route_and_with_or_without_a_key() {
    let Some(nodes) = Nodes::start(3) else { return };
    let shop = Shop::start();
    let strong = routes(&shop, "");
    let others = "routes:
  - { name: puts, methods: [PUT], path_prefix: /, pool: app, hash_on: [uri] }
  - { name: keyed, methods: [PATCH], path_prefix: /, pool: app, hash_on: [uri], idempotency: { required: true, scope: [] } }
  - { name: fields, headers: { x-beta: \"1\" }, path_prefix: /, pool: app, hash_on: [uri], cache: {} }
";
    let text = nodes.block() + "idempotency_store: { kind: memory }\n" + &strong.replace("routes:\n", others);
    let (writer, reader) = (Proxy::start(&text), nodes.proxy(&shop, ""));
    // The readers' configuration is the same as far as strong routes go.
    warm(&reader, "/tools/list");
    for (method, fields) in [
        ("POST", "content-length: 0"),
        ("DELETE", ""),
        ("PUT", "content-length: 0"),
        ("PATCH", "content-length: 0 | idempotency-key: \"a\""),
        ("POST", "content-length: 0 | x-beta: 1"),
        ("BREW", "content-length: 0"),
    ] {
        warm(&reader, "/tools/list");
        let before = count(&reader, "changed");
        let answer = writer.send(method, "/tools/add", fields);
        assert_eq!(answer.status, 200, "{method} {answer:?}");
        assert_eq!(reader.get("/tools/list").text(), shop.version("/tools"), "{method} {fields}");
        assert!(count(&reader, "changed") > before, "{method} {fields}");
    }
    // A repetition that is replayed changes nothing, and marks nothing.
    let stamps = || nodes.nodes[0].execute(&["HGETALL", "ringway:test:strong:stamps"]);
    let before = stamps();
    assert_eq!(writer.send("PATCH", "/tools/add", "content-length: 0 | idempotency-key: \"a\"").status, 200);
    assert_eq!(stamps(), before);
}

#[test]
fn a_slow_write_holds_up_its_own_slots_alone() {
    let Some(nodes) = Nodes::start(3) else { return };
    let shop = Shop::start();
    let proxies = nodes.proxies(2, &shop, "/tools/list");
    proxies.iter().for_each(|proxy| warm(proxy, "/books/list"));
    let barrier = shop.hold("before", "/tools/add");
    let writing = later(&proxies[0], "POST", "/tools/add", "content-length: 0");
    shop.waits_for("POST", "/tools/add");
    assert_eq!(proxies[0].metric("ringway_consistency_marked_slots"), 2.0, "of the shelf and of the URI");
    // Longer than a lease and `settle`: the mark is renewed.
    let (mut all, mut hits) = (0, 0);
    let began = std::time::Instant::now();
    while began.elapsed() < std::time::Duration::from_secs(5) {
        for proxy in &proxies {
            let marked = proxy.get("/tools/list");
            assert_eq!(
                (status(&marked).as_str(), marked.text()),
                ("ringway; fwd=request; detail=marked", "v1".to_owned())
            );
            let neighbour = proxy.get("/books/list");
            assert!(!status(&neighbour).contains("marked"), "{neighbour:?}");
            (all, hits) = (all + 1, hits + u32::from(is_hit(&neighbour)));
        }
    }
    // A node that is slow for a moment costs a validation.
    assert!(hits * 10 > all * 8, "{hits} hits of {all}");
    assert!(count(&proxies[1], "marked") > 1.0);
    barrier.open();
    assert_eq!(writing.join().unwrap().text(), "v2");
    for proxy in &proxies {
        assert_eq!(proxy.get("/tools/list").text(), "v2");
        warm(proxy, "/tools/list");
    }
    assert_eq!(proxies[0].metric("ringway_consistency_marked_slots"), 0.0);
    assert!(proxies[0].metric("ringway_consistency_marked_seconds_total") > 9.0);
}

/// An answer that does not tell what has become of the write leaves the mark for `settle`.
#[test]
fn an_unknown_outcome_leaves_the_mark_for_a_while() {
    let Some(nodes) = Nodes::start(3) else { return };
    let shop = Shop::start();
    let proxies = nodes.proxies(2, &shop, "/tools/list");
    assert_eq!(proxies[0].send("POST", "/tools/add", "content-length: 0 | x-status: 504").status, 504);
    let answer = proxies[1].get("/tools/list");
    assert!(status(&answer).contains("detail=marked"), "{answer:?}");
    warm(&proxies[1], "/tools/list");
    assert_eq!(proxies[1].get("/tools/list").text(), "v2");
    // A refusal is an answer.
    assert_eq!(proxies[0].send("POST", "/tools/add", "content-length: 0 | x-status: 422").status, 422);
    assert!(!status(&proxies[1].get("/tools/list")).contains("marked"));
}

/// A body that is sent to its end leaves no mark, be it buffered, streamed or chunked.
#[test]
fn a_write_with_a_body_ends_with_its_answer() {
    let Some(nodes) = Nodes::start(3) else { return };
    let shop = Shop::start();
    let proxies = nodes.proxies(2, &shop, "/tools/list");
    let chunked = "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".to_owned();
    let with = |length: usize| format!("content-length: {length}\r\n\r\n{}", "x".repeat(length));
    for rest in [with(5), with(200_000), chunked] {
        let mut client = proxies[0].connect();
        let answer = client.request(format!("POST /tools/add HTTP/1.1\r\nhost: example.com\r\n{rest}"));
        assert_eq!(answer.status, 200, "{answer:?}");
        let read = proxies[1].get("/tools/list");
        assert_eq!((read.text(), status(&read).contains("marked")), (answer.text(), false), "{read:?}");
    }
}

/// The mark of a write grows old while its first attempt is under way, on a connection that then turns out to be stale.
#[test]
fn a_write_that_was_sent_is_not_said_to_be_refused() {
    let Some(nodes) = Nodes::start(3) else { return };
    let origin = Origin::start(|ask, peer| match ask.method() {
        "PUT" => {
            // More than half a lease: nothing may be sent any more.
            std::thread::sleep(std::time::Duration::from_millis(1800));
            peer.hang_up();
        }
        _ => peer.reply(200, "cache-control: max-age=600 | etag: \"1\"", "v1"),
    });
    let proxy = Proxy::start(&("workers: 1\n".to_owned() + &nodes.block() + &routes_before(&origin, "")));
    warm(&proxy, "/tools/list");
    proxy.get("/tools/other");
    let answer = proxy.send("PUT", "/tools/list", "content-length: 0");
    assert_eq!((answer.status, answer.problem().as_str()), (409, "outcome-unknown"), "{answer:?}");
    assert!(answer.text().contains("may have run"), "{answer:?}");
    assert!(status(&proxy.get("/tools/list")).contains("detail=marked"), "it may still take effect");
}

/// The client of a write leaves: the write goes on under its mark, or its mark stays for a while.
#[test]
fn a_client_that_leaves_takes_no_mark_with_it() {
    let Some(nodes) = Nodes::start(3) else { return };
    let shop = Shop::start();
    let proxies = nodes.proxies(2, &shop, "/tools/list");
    let barrier = shop.hold("before", "/tools/add");
    let mut client = proxies[0].connect();
    client.send("POST /tools/add HTTP/1.1\r\nhost: example.com\r\ncontent-length: 0\r\n\r\n");
    shop.waits_for("POST", "/tools/add");
    drop(client);
    let marked = proxies[1].get("/tools/list");
    assert!(status(&marked).contains("detail=marked"), "{marked:?}");
    barrier.open();
    eventually("the write", || shop.version("/tools") == "v2");
    assert_eq!(proxies[1].get("/tools/list").text(), "v2");
    warm(&proxies[1], "/tools/list");
    assert_eq!(proxies[1].get("/tools/list").text(), "v2");
}

/// A purge is stamped at the nodes, so that no other proxy serves what was stored before it.
#[test]
fn a_purge_is_stamped() {
    let Some(mut nodes) = Nodes::start(3) else { return };
    let shop = Shop::start();
    let proxies = nodes.proxies(2, &shop, "/tools/list");
    let stamps = |nodes: &Nodes| nodes.nodes[0].execute(&["HGETALL", "ringway:test:strong:stamps"]);
    let everything = |nodes: &Nodes| nodes.nodes[0].execute(&["HGET", "ringway:test:strong:stamps", "65536"]);
    let (before, all) = (stamps(&nodes), everything(&nodes));
    let purged = proxies[0].purge(r#"{"url": "http://example.com/tools/list"}"#).json();
    assert_eq!(purged["unmarked"], false, "{purged}");
    assert_ne!(stamps(&nodes), before);
    assert_eq!(everything(&nodes), all, "a URL has the slot of its own");
    for order in [r#"{"tag": "x"}"#, r#"{"prefix": "http://example.com/tools"}"#, r#"{"all": true}"#] {
        let before = everything(&nodes);
        assert_eq!(proxies[0].purge(order).json()["unmarked"], false);
        assert_ne!(everything(&nodes), before, "{order}");
    }
    // Without a quorum it is in force where the bus carries it, and stamped later.
    let before = everything(&nodes);
    nodes.nodes[1].kill();
    nodes.nodes[2].kill();
    let purged = proxies[0].purge(r#"{"all": true}"#);
    assert_eq!((purged.status, purged.json()["unmarked"].clone()), (200, true.into()));
    nodes.nodes[1].run();
    nodes.nodes[2].run();
    eventually("the stamp", || {
        // The nodes have come back empty, and no read asks for it.
        let stamp = |node: usize| nodes.nodes[node].execute(&["HGET", "ringway:test:strong:stamps", "65536"]);
        !stamp(1).is_empty() && !stamp(2).is_empty()
    });
    assert_ne!(everything(&nodes), before);
}

/// The groups that a saga changes are marked from its first step to its end.
#[test]
fn a_saga_marks_what_it_changes() {
    let Some(nodes) = Nodes::start(3) else { return };
    let shop = Shop::start();
    let folder = tempfile::tempdir().unwrap();
    let saga = format!(
        "idempotency_store: {{ path: \"{}\" }}\n{}",
        folder.path().join("ringway.db").display(),
        routes(&shop, "").replace(
            "routes:\n",
            "routes:
  - name: checkout
    path: /checkout
    methods: [POST]
    idempotency: { required: true, scope: [] }
    saga:
      changes: [\"example.com/tools\"]
      steps:
        - name: reserve
          request: { pool: app, method: POST, path: /tools/reserve }
          compensate: none
      respond: { status: 201, body: { done: true } }
"
        )
    );
    let (writer, reader) = (Proxy::start(&(nodes.block() + &saga)), nodes.proxy(&shop, ""));
    warm(&reader, "/tools/list");
    let barrier = shop.hold("before", "/tools/reserve");
    let running = later(&writer, "POST", "/checkout", "content-length: 0 | idempotency-key: \"a\"");
    shop.waits_for("POST", "/tools/reserve");
    assert!(status(&reader.get("/tools/list")).contains("detail=marked"));
    barrier.open();
    let answer = running.join().unwrap();
    assert_eq!(answer.status, 201, "{answer:?}");
    let answer = reader.get("/tools/list");
    assert_eq!((answer.text(), status(&answer).contains("marked")), ("v2".to_owned(), false), "{answer:?}");
}
