//! What may be stored and for how long, beyond the examples of RFC 9111: bodies of reads, `Connection`, heuristics,
//! overrides.

use super::{is_hit, settled, status};
use crate::support::http2::Http2;
use crate::support::{Origin, Proxy, eventually, warm};

#[test]
fn a_read_with_a_body_passes_the_store_by() {
    let origin = Origin::start(|ask, peer| {
        let body = String::from_utf8_lossy(&ask.body).into_owned();
        peer.reply(200, "cache-control: max-age=60", &format!("{}{body}", ask.method()));
    });
    let proxy = origin.cached("");
    warm(&proxy, "/");
    for method in ["GET", "HEAD"] {
        let asked = origin.asked();
        let request =
            format!("{method} / HTTP/1.1\r\nhost: example.com\r\nconnection: close\r\ncontent-length: 4\r\n\r\nbody");
        let mut client = proxy.connect();
        client.send(request);
        let answer = if method == "HEAD" { client.answer_to_head() } else { client.answer() };
        assert_eq!(answer.field("cache-status").as_deref(), Some("ringway; fwd=bypass"), "{method}");
        assert_eq!(origin.asked(), asked + 1, "{method}");
    }
    let client = Http2::connect(proxy.address);
    let answer = client.ask("GET", "/", "", "body").unwrap();
    assert_eq!((answer.text().as_str(), answer.field("cache-status")), ("GETbody", Some("ringway; fwd=bypass")));
    assert_eq!(proxy.get("/").text(), "GET", "what is stored stays");
}

#[test]
fn what_a_connection_names_still_says_what_may_be_stored() {
    for fields in [
        "connection: cache-control | cache-control: private, max-age=60",
        "connection: Cache-Control | cache-control: no-store",
        "connection: vary | vary: * | cache-control: max-age=60",
        "connection: set-cookie | set-cookie: a=b | cache-control: max-age=60",
        "connection: cdn-cache-control | cdn-cache-control: no-store | cache-control: max-age=60",
    ] {
        let origin = Origin::numbering(fields.to_owned().leak());
        let proxy = origin.cached("default_ttl: 60s");
        let first = proxy.get("/");
        settled(&proxy);
        assert_ne!(proxy.get("/").text(), first.text(), "{fields}");
        let name = fields.split([' ', '|']).nth(1).unwrap();
        assert_eq!(first.field(name), None, "{name} goes no further");
    }
    // By a field that is named a response still varies, and by a tag it is purged.
    let origin = Origin::start(|ask, peer| {
        let kind = ask.field("x-kind").unwrap_or("none");
        let fields = "connection: vary, cache-tag | vary: x-kind | cache-tag: t | cache-control: max-age=60";
        peer.reply(200, fields, kind);
    });
    let proxy = origin.cached("");
    warm(&proxy, "/");
    let hit = proxy.get("/");
    assert_eq!((hit.field("vary"), hit.field("cache-tag"), hit.text().as_str()), (None, None, "none"));
    assert_eq!(proxy.get_with("/", "x-kind: a").text(), "a");
    proxy.purge(r#"{"tag": "t"}"#);
    assert!(!is_hit(&proxy, "/", ""));
    // What a 304 says so holds too.
    let origin = Origin::start(|ask, peer| match ask.field("if-none-match") {
        None => peer.reply(200, "cache-control: max-age=1 | etag: \"e\"", &format!("#{}", ask.number)),
        Some(_) => peer.reply(304, "connection: cache-control | cache-control: no-store | etag: \"e\"", ""),
    });
    let proxy = origin.cached("");
    proxy.get("/");
    eventually("a fetch of the whole", || proxy.get("/").text() != "#0");
}

#[test]
fn freshness_that_is_guessed_has_a_bound() {
    let origin = Origin::numbering("last-modified: Thu, 01 Jan 1970 00:00:01 GMT");
    let ttl = |proxy: &Proxy| {
        warm(proxy, "/");
        let status = status(proxy, "/", "");
        status.rsplit("ttl=").next().unwrap().parse::<i64>().unwrap()
    };
    let proxy = origin.cached("");
    assert!((86_300..=86_400).contains(&ttl(&proxy)));
    proxy.reconfigure(&origin.configuration("heuristic_max: 10m"));
    proxy.purge(r#"{"all": true}"#);
    assert!((500..=600).contains(&ttl(&proxy)));
    proxy.reconfigure(&origin.configuration("heuristic_max: 0s"));
    proxy.purge(r#"{"all": true}"#);
    for _ in 0..3 {
        assert!(!is_hit(&proxy, "/", ""));
        settled(&proxy);
    }
    proxy.reconfigure(&origin.configuration("heuristic_max: 0s, default_ttl: 100s"));
    assert!((1..=100).contains(&ttl(&proxy)));
}

#[test]
fn a_weak_match_makes_no_tag_strong() {
    let origin = Origin::start(|ask, peer| {
        match ask.field("if-none-match") {
        None => peer.reply(
            200,
            "cache-control: no-cache | etag: W/\"e\" | content-encoding: gzip | last-modified: Sat, 01 Jan 2000 00:00:00 GMT",
            "zipped bytes",
        ),
        Some(_) => peer.reply(304, "cache-control: max-age=60 | etag: \"e\" | x-updated: 1", ""),
    }
    });
    let proxy = origin.cached("");
    proxy.get("/");
    settled(&proxy);
    eventually("a hit", || is_hit(&proxy, "/", ""));
    let hit = proxy.get("/");
    assert_eq!((hit.field("etag").as_deref(), hit.field("x-updated").as_deref()), (Some("W/\"e\""), Some("1")));
    for condition in ["\"e\"", "W/\"e\"", "Sat, 01 Jan 2000 00:00:00 GMT"] {
        let part = proxy.get_with("/", &format!("range: bytes=7- | if-range: {condition}"));
        assert_eq!((part.status, part.text().as_str()), (200, "zipped bytes"), "{condition}");
    }
    assert_eq!(
        proxy.get_with("/", "range: bytes=7-").status,
        206,
        "a range without a condition is one of what is here"
    );
}

#[test]
fn s_maxage_may_be_served_stale_where_the_route_says_so() {
    let fields = "cache-control: s-maxage=0, stale-while-revalidate=600 | etag: \"e\"";
    for allows in [true, false] {
        let origin = Origin::numbering(fields);
        let proxy = origin.cached(&format!("allow_stale_with_s_maxage: {allows}"));
        proxy.get("/");
        settled(&proxy);
        assert_eq!(is_hit(&proxy, "/", ""), allows);
    }
    let origin = Origin::numbering("cache-control: s-maxage=0 | etag: \"e\"");
    let proxy = origin.cached("allow_stale_with_s_maxage: true, stale_while_revalidate: 1h");
    proxy.get("/");
    settled(&proxy);
    assert!(!is_hit(&proxy, "/", ""), "only what the response says itself");
}

#[test]
fn cookies_may_have_a_request_pass_the_store_by() {
    let origin = Origin::numbering("cache-control: max-age=60");
    let proxy = origin.cached("bypass_cookies: [session, \"wp_*\"]");
    warm(&proxy, "/");
    for cookie in ["session=1", "a=1; session=2", "session", "wp_user=3", "a=b | cookie: session=1"] {
        let asked = origin.asked();
        let answer = proxy.get_with("/", &format!("cookie: {cookie}"));
        assert_eq!(answer.field("cache-status").as_deref(), Some("ringway; fwd=bypass"), "{cookie}");
        assert_eq!(origin.asked(), asked + 1);
    }
    let kept = proxy.get("/").text();
    for cookie in ["sessions=1", "a=session", "xwp_user=1"] {
        assert_eq!(proxy.get_with("/", &format!("cookie: {cookie}")).text(), kept, "{cookie}");
    }
    // It stores nothing either, whatever its method.
    proxy.get_with("/new", "cookie: session=1");
    settled(&proxy);
    assert!(!is_hit(&proxy, "/new", ""));
    let posted = Origin::numbering("cache-control: max-age=60 | content-location: /me");
    let proxy = posted.cached("bypass_cookies: [session]");
    proxy.send("POST", "/me", "cookie: session=1 | content-length: 0");
    settled(&proxy);
    assert!(!is_hit(&proxy, "/me", ""));
}

#[test]
fn an_operator_may_know_better_than_a_response() {
    let of = |fields: &'static str, settings: &str, asks: &str| {
        let origin = Origin::numbering(fields);
        let proxy = origin.cached(settings);
        proxy.get_with("/", asks);
        settled(&proxy);
        is_hit(&proxy, "/", asks)
    };
    assert!(of("cache-control: private, max-age=60", "override: { ignore: [private] }", ""));
    assert!(of("cache-control: no-cache, max-age=60", "override: { ignore: [no-cache] }", ""));
    assert!(of("cache-control: no-store, max-age=60", "override: { ignore: [no-store] }", ""));
    assert!(of("cache-control: max-age=0", "override: { ttl: 60s }", ""));
    assert!(of("", "override: { ttl: 60s }", ""));
    assert!(!of("cache-control: private, max-age=60", "override: { ttl: 60s }", ""));
    assert!(!of("cache-control: private, max-age=60", "override: { ttl: 60s, ignore: [no-cache] }", ""));
    assert!(!of("cache-control: max-age=60 | set-cookie: a=b", "override: { ttl: 60s, ignore: [private] }", ""));
    assert!(!of("cache-control: private", "override: { ttl: 60s, ignore: [private] }", "authorization: a"));
    let posted = Origin::numbering("content-location: /cart");
    let proxy = posted.cached("override: { ttl: 60s }");
    proxy.send("POST", "/cart", "content-length: 0");
    settled(&proxy);
    assert!(!is_hit(&proxy, "/cart", ""), "the answer to a POST must say itself that reads may have it");
    assert!(of("surrogate-control: max-age=60 | cache-control: no-store", "", ""));
    assert!(!of("surrogate-control: max-age=60, private", "", ""));
    assert!(!of("surrogate-control: no-store | cache-control: max-age=60", "", ""));
}
