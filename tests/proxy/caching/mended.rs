//! Bugs that were found by reading, as users would have met them.

use super::serving::warm;
use crate::support::{Barrier, Client, Origin, Proxy, eventually};

fn hits(proxy: &Proxy, path: &str, fields: &str) -> bool {
    proxy.get_with(path, fields).field("cache-status").unwrap().contains("; hit")
}

/// Waits until a path's stored response is stale: until a request goes to the origin.
fn outlive(origin: &Origin, proxy: &Proxy, path: &str) {
    let asked = origin.asked();
    eventually("staleness", || {
        proxy.get(path);
        origin.asked() > asked
    });
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
fn fields_named_in_connection_count_for_nothing() {
    let origin = Origin::start(|ask, peer| {
        let language = ask.field("accept-language").unwrap_or("none");
        peer.reply(200, "cache-control: max-age=60 | vary: accept-language", language);
    });
    let proxy = origin.cached("");
    let sly =
        "GET / HTTP/1.1\r\nhost: example.com\r\naccept-language: de\r\nconnection: close, accept-language\r\n\r\n";
    assert_eq!(proxy.connect().request(sly).text(), "none");
    eventually("a hit", || hits(&proxy, "/", ""));
    assert_eq!(proxy.get_with("/", "accept-language: de").text(), "de");
    // What is refused on a miss is refused on a hit.
    let refused = proxy.connect().request("GET / HTTP/1.1\r\nhost: example.com\r\nconnection: host\r\n\r\n");
    assert_eq!((refused.status, refused.problem().as_str()), (400, "bad-connection-option"));
}

#[test]
fn what_a_cookie_brought_without_freshness_is_nobody_elses() {
    let origin = Origin::start(|ask, peer| match ask.field("cookie") {
        Some(cookie) => peer.reply(200, "etag: \"e\"", cookie),
        None => peer.reply(500, "", "broken"),
    });
    let proxy = origin.cached("stale_while_revalidate: 1h");
    for _ in 0..3 {
        assert_eq!(proxy.get_with("/", "cookie: sid=alice").text(), "sid=alice");
    }
    assert_eq!(proxy.get("/").text(), "broken");
}

#[test]
fn routes_that_part_by_a_field_share_nothing() {
    let (beta, site) = (
        Origin::numbering("cache-control: max-age=60 | x-from: beta"),
        Origin::numbering("cache-control: max-age=60 | x-from: site"),
    );
    let pools = format!(
        "pools:\n  beta: {{ nodes: [{{ id: b, address: \"{}\" }}] }}\n  site: {{ nodes: [{{ id: s, address: \"{}\" }}] }}\n",
        beta.address(),
        site.address()
    );
    let proxy = Proxy::start(&format!(
        "{pools}routes:\n  - {{ name: beta, path_prefix: /, headers: {{ x-beta: \"1\" }}, pool: beta, cache: {{}} }}\n  - {{ name: site, path_prefix: /, pool: site, cache: {{}} }}\n"
    ));
    for _ in 0..2 {
        assert_eq!(proxy.get_with("/", "x-beta: 1").field("x-from").as_deref(), Some("beta"));
        assert_eq!(proxy.get("/").field("x-from").as_deref(), Some("site"));
    }
    eventually("a hit", || hits(&proxy, "/", "x-beta: 1") && hits(&proxy, "/", ""));
    proxy.purge(r#"{"url": "/"}"#);
    assert!(!hits(&proxy, "/", "x-beta: 1") && !hits(&proxy, "/", ""), "a purge strikes both");
    eventually("a hit", || hits(&proxy, "/", "x-beta: 1"));
    proxy.send("POST", "/", "content-length: 0");
    assert!(!hits(&proxy, "/", "x-beta: 1"), "a change too");
}

#[test]
fn a_head_by_other_means_teaches_nothing() {
    let origin = Origin::start(|ask, peer| match (ask.method(), ask.field("x-original-url")) {
        ("HEAD", Some(_)) => peer.send("HTTP/1.1 200 OK\r\ncache-control: max-age=9999\r\nx-evil: 1\r\n\r\n"),
        ("HEAD", None) => peer.send("HTTP/1.1 200 OK\r\ncache-control: max-age=1\r\n\r\n"),
        _ => peer.reply(200, "cache-control: max-age=1 | etag: \"e\"", "body"),
    });
    let proxy = origin.cached("");
    proxy.get("/");
    let asked = origin.asked();
    eventually("a HEAD that is forwarded", || {
        proxy.send("HEAD", "/", "x-original-url: /evil");
        origin.asked() > asked
    });
    assert_eq!(origin.last().field("x-original-url"), None);
    assert_eq!(proxy.get("/").field("x-evil"), None);
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

#[test]
fn changes_do_not_pile_up_while_a_fetch_hangs() {
    let gate = Barrier::default();
    let open = gate.clone();
    let origin = Origin::start(move |ask, peer| {
        if ask.path() == "/hangs" {
            open.wait();
        }
        peer.reply(200, "cache-control: max-age=60", "");
    });
    let proxy = origin.cached("");
    let mut hanging = proxy.connect();
    hanging.send("GET /hangs HTTP/1.1\r\nhost: example.com\r\n\r\n");
    origin.wait_for(1);
    warm(&proxy, "/kept");
    let mut client = proxy.connect();
    for number in 0..2_000 {
        client.request(format!("POST /{number} HTTP/1.1\r\nhost: example.com\r\ncontent-length: 0\r\n\r\n"));
    }
    assert!(hits(&proxy, "/kept", ""));
    client.request("POST /hangs HTTP/1.1\r\nhost: example.com\r\ncontent-length: 0\r\n\r\n".replace("/hangs", "/kept"));
    assert!(!hits(&proxy, "/kept", ""));
    gate.open();
    assert_eq!(hanging.answer().status, 200);
}

#[test]
fn a_change_beats_the_fetch_that_began_before_it() {
    let gate = Barrier::default();
    let open = gate.clone();
    let origin = Origin::start(move |ask, peer| match (ask.method(), ask.number) {
        ("GET", 0) => {
            open.wait();
            peer.reply(200, "cache-control: max-age=60", "old");
        }
        ("GET", _) => peer.reply(200, "cache-control: max-age=60", "new"),
        _ => peer.reply(204, "", ""),
    });
    let proxy = origin.cached("");
    let mut early = proxy.connect();
    early.send("GET / HTTP/1.1\r\nhost: example.com\r\n\r\n");
    origin.wait_for(1);
    assert_eq!(proxy.send("PUT", "/", "content-length: 0").status, 204);
    assert_eq!(proxy.get("/").text(), "new", "whoever comes after the change does not wait for what is older");
    gate.open();
    assert_eq!(early.answer().text(), "old");
    assert_eq!(proxy.get("/").text(), "new");
}

#[test]
fn a_purge_beats_what_a_post_brings() {
    let gate = Barrier::default();
    let open = gate.clone();
    let origin = Origin::start(move |ask, peer| match ask.method() {
        "POST" => {
            open.wait();
            peer.reply(200, "cache-control: max-age=60 | content-location: /", "posted");
        }
        _ => peer.reply(200, "cache-control: max-age=60", "read"),
    });
    let proxy = origin.cached("");
    let mut client = proxy.connect();
    client.send("POST / HTTP/1.1\r\nhost: example.com\r\ncontent-length: 0\r\n\r\n");
    origin.wait_for(1);
    proxy.purge(r#"{"all": true}"#);
    gate.open();
    assert_eq!(client.answer().text(), "posted");
    assert_eq!(proxy.get("/").text(), "read");
}

#[test]
fn a_failing_node_is_left_alone_while_stale_is_good_enough() {
    let origin = Origin::start(|ask, peer| match ask.number {
        0 => {
            peer.reply(200, "cache-control: max-age=0, stale-while-revalidate=60, stale-if-error=0 | etag: \"e\"", "x")
        }
        _ => peer.reply(503, "", ""),
    });
    let proxy = origin.cached("");
    proxy.get("/");
    eventually("a failed validation", || {
        proxy.get("/");
        origin.asked() == 2
    });
    eventually("the end of the validation", || proxy.metric("ringway_requests_in_flight") == 0.0);
    for _ in 0..100 {
        assert_eq!(proxy.get("/").text(), "x");
    }
    assert!(origin.asked() <= 8, "{} requests", origin.asked());
}

#[test]
fn a_304_that_forbids_storing_ends_it() {
    for told in ["cache-control: no-store", "cache-control: private", "cache-control: max-age=60 | vary: *"] {
        let fields = told.to_owned();
        let origin = Origin::start(move |ask, peer| match ask.field("if-none-match") {
            None => peer.reply(
                200,
                "cache-control: max-age=1, stale-while-revalidate=0 | etag: \"e\"",
                &format!("#{}", ask.number),
            ),
            Some(_) => peer.reply(304, &format!("{fields} | etag: \"e\""), ""),
        });
        let proxy = origin.cached("");
        proxy.get("/");
        outlive(&origin, &proxy, "/");
        eventually("a fetch of the whole", || proxy.get("/").text() != "#0");
    }
}

#[test]
fn a_304_with_other_tags_does_not_revive_what_was_purged() {
    let (gate, began) = (Barrier::default(), Barrier::default());
    let (open, begin) = (gate.clone(), began.clone());
    let origin = Origin::start(move |ask, peer| match ask.field("if-none-match") {
        None if ask.number == 0 => peer.reply(200, "cache-control: no-cache | etag: \"e\" | cache-tag: a", "old"),
        None => peer.reply(200, "cache-control: max-age=60", "new"),
        Some(_) => {
            begin.open();
            open.wait();
            peer.reply(304, "cache-control: max-age=60 | etag: \"e\" | cache-tag: b", "");
        }
    });
    let proxy = origin.cached("");
    proxy.get("/");
    eventually("the end of the fetch", || proxy.metric("ringway_requests_in_flight") == 0.0);
    let mut client = proxy.connect();
    eventually("a validation", || {
        client = Client::connect(proxy.address);
        client.send("GET / HTTP/1.1\r\nhost: example.com\r\n\r\n");
        eventually("the next request", || origin.asked() >= 2);
        origin.last().field("if-none-match").is_some()
    });
    began.wait();
    proxy.purge(r#"{"tag": "a"}"#);
    gate.open();
    client.answer();
    assert_eq!(proxy.get("/").text(), "new");
}

#[test]
fn a_request_without_a_host_changes_nothing_elsewhere() {
    let origin = Origin::numbering("cache-control: max-age=60");
    let proxy = origin.cached("key: { headers: [x-country] }");
    warm(&proxy, "/");
    let answer = proxy.connect().request("POST / HTTP/1.0\r\ncontent-length: 0\r\n\r\n");
    assert_eq!(answer.status, 200);
    assert!(hits(&proxy, "/", ""));
}

#[test]
fn a_head_of_nothing_has_no_length() {
    let origin = Origin::telling(&[(204, "cache-control: max-age=60", "")]);
    let proxy = origin.cached("");
    warm(&proxy, "/");
    assert_eq!(proxy.send("HEAD", "/", "").field("content-length"), None);
}

#[test]
fn a_late_older_response_does_not_replace_a_newer_one() {
    let gate = Barrier::default();
    let open = gate.clone();
    let origin = Origin::start(move |ask, peer| {
        if ask.number == 0 {
            open.wait();
        }
        peer.reply(200, "cache-control: max-age=60", &format!("#{}", ask.number));
    });
    let proxy = origin.cached("lock_timeout: 100ms");
    let mut early = proxy.connect();
    early.send("GET / HTTP/1.1\r\nhost: example.com\r\n\r\n");
    origin.wait_for(1);
    assert_eq!(proxy.get("/").text(), "#1");
    eventually("a hit", || hits(&proxy, "/", ""));
    gate.open();
    assert_eq!(early.answer().text(), "#0");
    eventually("the end of the fetch", || proxy.metric("ringway_requests_in_flight") == 0.0);
    assert_eq!(proxy.get("/").text(), "#1");
}

#[test]
fn what_a_validation_tells_one_caller_is_not_told_to_all() {
    let origin = Origin::start(|ask, peer| match (ask.field("if-none-match"), ask.field("authorization")) {
        (None, _) => peer.reply(200, "cache-control: max-age=1 | etag: \"e\"", "body"),
        (Some(_), Some(who)) => {
            peer.reply(304, &format!("cache-control: max-age=60 | etag: \"e\" | x-user: {who}"), "")
        }
        (Some(_), None) => peer.reply(304, "cache-control: max-age=60 | etag: \"e\"", ""),
    });
    let proxy = origin.cached("");
    proxy.get("/");
    eventually("a validation", || proxy.get_with("/", "authorization: alice").field("x-user").is_some());
    let other = proxy.get("/");
    assert_eq!((other.field("x-user"), other.text().as_str()), (None, "body"));
    assert!(other.field("cache-status").unwrap().contains("fwd-status=304"), "{other:?}");
}

#[test]
fn many_changes_do_not_empty_the_cache() {
    let origin = Origin::numbering("cache-control: max-age=60");
    let proxy = origin.cached("key: { headers: [x-country] }");
    warm(&proxy, "/kept");
    let mut client = proxy.connect();
    for number in 0..5_000 {
        client.request(format!("POST /{number} HTTP/1.1\r\nhost: example.com\r\ncontent-length: 0\r\n\r\n"));
    }
    assert!(hits(&proxy, "/kept", ""));
}
