//! What no client may do to the others: bypass, fill or split the cache by what is not in the key.

use super::is_hit;
use crate::support::{Origin, Proxy, eventually, warm};

/// An origin that shows everything that it was told, before a proxy; a stranger asks first, then
/// somebody else. Gives what the second one got.
fn after_a_stranger(request: &str) -> String {
    let origin = Origin::start(|ask, peer| {
        let shown = format!("{}\n{}", ask.head, String::from_utf8_lossy(&ask.body));
        peer.reply(200, "cache-control: public, max-age=60", &shown);
    });
    let proxy = origin.cached("");
    assert!(proxy.connect().request(request).status < 500, "{request}");
    proxy.get("/page").text()
}

#[test]
fn nothing_outside_the_key_reaches_what_others_get() {
    let get =
        |fields: &str| format!("GET /page HTTP/1.1\r\nhost: example.com\r\nconnection: close\r\n{fields}\r\n\r\n");
    for (case, request) in [
        ("unkeyed host", get("x-forwarded-host: evil.example")),
        ("unkeyed host", get("x-host: evil.example")),
        ("unkeyed host", get("x-original-host: evil.example")),
        ("unkeyed host", get("forwarded: host=evil.example")),
        ("unkeyed port", get("x-forwarded-port: evil")),
        ("unkeyed scheme", get("x-forwarded-proto: evil")),
        ("unkeyed scheme", get("x-forwarded-scheme: evil")),
        ("unkeyed path", get("x-original-url: /evil")),
        ("unkeyed path", get("x-rewrite-url: /evil")),
        ("method override", get("x-http-method-override: evil")),
        ("method override", get("x-http-method: evil")),
        ("method override", get("x-method-override: evil")),
        ("fat GET", get("content-length: 4\r\n\r\nevil").trim_end().to_owned()),
        ("another host", get("").replace("example.com", "evil.example")),
        ("another port", get("").replace("example.com", "example.com:666")),
        ("range", get("range: bytes=0-3\r\nx-evil: 1")),
    ] {
        let seen = after_a_stranger(&request);
        let evil = seen.lines().filter(|line| !line.starts_with("x-evil")).any(|line| line.contains("evil"));
        assert!(!evil && !seen.is_empty(), "{case}: {request:?} left {seen}");
    }
}

#[test]
fn an_oversized_field_cannot_store_its_error() {
    let origin = Origin::start(|ask, peer| match ask.head.len() > 6_000 {
        true => peer.reply(400, "cache-control: max-age=60", "too large"),
        false => peer.reply(200, "cache-control: max-age=60", "good"),
    });
    let proxy = origin.cached("");
    for _ in 0..2 {
        assert_eq!(proxy.get_with("/", &format!("x-large: {}", "x".repeat(6_000))).status, 400);
    }
    assert_eq!(proxy.get("/").text(), "good");
    warm(&proxy, "/");
    assert_eq!(proxy.get_with("/", &format!("x-large: {}", "x".repeat(6_000))).text(), "good");
}

#[test]
fn a_cookie_that_is_not_in_the_key_stores_nothing_by_default() {
    let origin = Origin::start(|ask, peer| {
        peer.reply(200, "last-modified: Sat, 01 Jan 2000 00:00:00 GMT", ask.field("cookie").unwrap_or("none"));
    });
    let proxy = origin.cached("default_ttl: 60s");
    assert_eq!(proxy.get_with("/", "cookie: evil=1").text(), "evil=1");
    assert_eq!(proxy.get("/").text(), "none");
}

#[test]
fn every_value_of_a_cookie_in_the_key_counts() {
    let origin = Origin::start(|ask, peer| {
        peer.reply(200, "cache-control: max-age=60", ask.field("cookie").unwrap_or("none"));
    });
    let proxy = origin.cached("key: { cookies: [lang] }");
    for cookie in ["lang=de; lang=evil", "lang=evil; lang=de", "lang=evil"] {
        proxy.get_with("/", &format!("cookie: {cookie}"));
    }
    assert_eq!(proxy.get_with("/", "cookie: lang=de").text(), "lang=de");
}

#[test]
fn a_hit_stays_a_hit_whatever_the_request_says() {
    let origin = Origin::numbering("cache-control: max-age=60");
    let proxy = origin.cached("key: { ignore_query: [\"utm_*\"] }");
    warm(&proxy, "/a");
    for (path, fields) in [
        ("/a", "cache-control: no-cache"),
        ("/a", "cache-control: no-store"),
        ("/a", "cache-control: max-age=0"),
        ("/a", "pragma: no-cache"),
        ("/a", "authorization: Basic eA=="),
        ("/a", "cookie: a=b"),
        ("/a", "range: bytes=0-0"),
        ("/a", "if-match: \"x\""),
        ("/a", "expect: 100-continue"),
        ("/a", "connection: upgrade | upgrade: websocket"),
        ("/a", "x-http-method-override: DELETE"),
        ("/a", "x-anything: 1"),
        ("/a?utm_x=1", ""),
        ("/a?%75tm_x=1", ""),
        ("/./a", ""),
        ("/%61", ""),
        ("/a", "host: EXAMPLE.COM."),
        ("/a", "accept: */*"),
    ] {
        let answer = proxy.get_with(path, fields);
        assert!(answer.field("cache-status").unwrap().starts_with("ringway; hit"), "{path} {fields}: {answer:?}");
    }
    assert_eq!(origin.asked(), 1);
}

#[test]
fn credentials_of_one_do_not_hold_up_or_spoil_the_others() {
    // To a request with credentials it is private, to all others it is not.
    let origin = Origin::numbering("cache-control: max-age=60");
    let proxy = origin.cached("");
    for _ in 0..3 {
        proxy.get_with("/", "authorization: Basic eA==");
    }
    proxy.get("/");
    warm(&proxy, "/");
    let answer = proxy.get("/");
    assert_eq!(answer.text(), "#3", "{answer:?}");
}

#[test]
fn hosts_share_nothing() {
    let origin = Origin::start(|ask, peer| peer.reply(200, "cache-control: max-age=60", ask.field("host").unwrap()));
    let proxy = Proxy::start(&origin.configuration(""));
    for host in ["a.example", "b.example", "a.example:8080"] {
        for _ in 0..2 {
            assert_eq!(proxy.get_with("/", &format!("host: {host}")).text(), host);
        }
    }
}

#[test]
fn routes_that_part_by_a_field_share_nothing() {
    let (beta, site) = (
        Origin::numbering("cache-control: max-age=60 | x-from: beta"),
        Origin::numbering("cache-control: max-age=60 | x-from: site"),
    );
    let pools = format!(
        "pools:\n  beta: {{ nodes: [{{ id: b, address: \"{}\" }}] }}\n  site: {{ nodes: [{{ id: s, address: \"{}\" }}] }}\n",
        beta.address, site.address
    );
    let proxy = Proxy::start(&format!(
        "{pools}routes:\n  - {{ name: beta, path_prefix: /, headers: {{ x-beta: \"1\" }}, pool: beta, cache: {{}} }}\n  - {{ name: site, path_prefix: /, pool: site, cache: {{}} }}\n"
    ));
    for _ in 0..2 {
        assert_eq!(proxy.get_with("/", "x-beta: 1").field("x-from").as_deref(), Some("beta"));
        assert_eq!(proxy.get("/").field("x-from").as_deref(), Some("site"));
    }
    eventually("a hit", || is_hit(&proxy, "/", "x-beta: 1") && is_hit(&proxy, "/", ""));
    proxy.purge(r#"{"url": "/"}"#);
    assert!(!is_hit(&proxy, "/", "x-beta: 1") && !is_hit(&proxy, "/", ""), "a purge strikes both");
    eventually("a hit", || is_hit(&proxy, "/", "x-beta: 1"));
    proxy.send("POST", "/", "content-length: 0");
    assert!(!is_hit(&proxy, "/", "x-beta: 1"), "a change too");
}
