//! What one request brings for others: the fields that make it, trailers, and what is said of storing.

use super::{is_hit, settled, status};
use crate::support::http2::Http2;
use crate::support::{Barrier, Origin, Proxy, eventually};

const OVERRIDES: [&str; 8] = [
    "X-HTTP-Host-Override",
    "X-Scheme",
    "Front-End-Https",
    "X-Middleware-Subrequest",
    "X-Host",
    "X-Original-URL",
    "X-Rewrite-URL",
    "X-HTTP-Method-Override",
];

#[test]
fn no_field_that_is_no_part_of_the_key_makes_what_others_get() {
    let origin = Origin::start(|ask, peer| {
        let evil = OVERRIDES.iter().find(|name| ask.field(name).is_some());
        let body = evil.map_or("good", |name| name);
        match ask.method() {
            "HEAD" => peer.send(format!(
                "HTTP/1.1 200 OK\r\ncache-control: max-age=600\r\netag: \"e\"\r\nx-seen: {body}\r\ncontent-length: 4\r\n\r\n"
            )),
            _ => {
                let own = ask.path().to_owned();
                peer.reply(200, &format!("cache-control: max-age=600 | etag: \"e\" | content-location: {own}"), body);
            }
        }
    });
    let proxy = origin.cached("client_directives: honour");
    for (number, name) in OVERRIDES.iter().enumerate() {
        let path = format!("/{number}");
        assert_eq!(proxy.get_with(&path, &format!("host: example.com | {name}: evil")).text(), "good", "{name}");
        // A HEAD that tells the store something.
        settled(&proxy);
        proxy.send("HEAD", &path, &format!("host: example.com | {name}: evil | cache-control: no-cache"));
        settled(&proxy);
        assert_ne!(proxy.get(&path).field("x-seen").as_deref(), Some(*name));
        // A POST whose answer says that reads find it.
        let path = format!("/post/{number}");
        let posted = proxy.send("POST", &path, &format!("host: example.com | {name}: evil | content-length: 0"));
        assert_eq!(posted.text(), *name, "a POST is its client's alone");
        settled(&proxy);
        assert_eq!(proxy.get(&path).text(), "good", "{name}");
    }
    assert_eq!(proxy.send("POST", "/plain", "content-length: 0").text(), "good");
    eventually("a POST that is adopted", || is_hit(&proxy, "/plain", ""));
    // What the operator sets stays.
    let settings = origin
        .configuration("")
        .replace("hash_on: [uri],", "hash_on: [uri], request_headers: { set: { x-scheme: https } },");
    let proxy = Proxy::start(&settings);
    assert_eq!(proxy.get("/set").text(), "X-Scheme");
}

#[test]
fn no_trailers_are_announced_that_do_not_come() {
    let origin = Origin::start(|_, peer| {
        peer.send(
            "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\nx-sum: 9\r\n\r\n",
        );
    });
    let proxy = origin.cached("");
    for _ in 0..2 {
        let mut client = proxy.connect();
        client.send("GET / HTTP/1.1\r\nhost: example.com\r\nte: trailers\r\nconnection: te\r\n\r\n");
        let answer = client.answer();
        assert_eq!((answer.field("trailer"), answer.text().as_str()), (None, "body"));
        settled(&proxy);
    }
    let answer = Http2::connect(proxy.address).ask("GET", "/other", "te: trailers", "").unwrap();
    assert_eq!((answer.field("trailer"), answer.text().as_str()), (None, "body"));
}

#[test]
fn stored_is_said_only_of_what_is_stored() {
    let large = "x".repeat(5000);
    let whole = large.clone();
    let origin = Origin::start(move |ask, peer| {
        match ask.path() {
        "/chunked" => peer.send(format!(
            "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ntransfer-encoding: chunked\r\n\r\n1388\r\n{whole}\r\n0\r\n\r\n"
        )),
        "/large" => peer.reply(200, "cache-control: max-age=60", &whole),
        "/private" => peer.reply(200, "cache-control: private", "x"),
        _ => peer.reply(200, "cache-control: max-age=60", "x"),
    }
    });
    let proxy = origin.cached("max_object: 4KiB");
    for (path, is_stored) in [("/chunked", false), ("/large", false), ("/private", false), ("/small", true)] {
        assert_eq!(status(&proxy, path, "").contains("; stored"), is_stored, "{path}");
        settled(&proxy);
        assert_eq!(is_hit(&proxy, path, ""), is_stored, "{path}");
    }
    // Larger than what is left of memory.
    let large = "x".repeat(3 << 20);
    let origin = Origin::start(move |_, peer| peer.reply(200, "cache-control: max-age=60", &large));
    for limit in ["cache: { memory: 1MiB }", "limits: { buffered_bytes: 1MiB }"] {
        let proxy = Proxy::start(&format!("{limit}\n{}", origin.configuration("")));
        assert_eq!(status(&proxy, "/", ""), "ringway; fwd=uri-miss", "{limit}");
    }
    // A purge in the middle.
    let gate = Barrier::default();
    let open = gate.clone();
    let origin = Origin::start(move |_, peer| {
        open.wait();
        peer.reply(200, "cache-control: max-age=60", "x");
    });
    let proxy = origin.cached("");
    let mut client = proxy.connect();
    client.send("GET / HTTP/1.1\r\nhost: example.com\r\n\r\n");
    origin.wait_for(1);
    proxy.purge(r#"{"all": true}"#);
    gate.open();
    assert_eq!(client.answer().field("cache-status").as_deref(), Some("ringway; fwd=uri-miss"));
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
