//! RFC 9111, 9110, 5861 and 9213, a row a clause: what the origin says, what comes next, and whether
//! the second request reaches the origin.

use super::settled;
use crate::support::{Origin, eventually};

/// What a second request is expected to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Second {
    /// Answered from the store.
    Hit,
    /// Answered by the origin.
    Miss,
    /// The origin is asked whether the stored response still holds.
    Validated,
}

use Second::{Hit, Miss, Validated};

/// One row: where it stands, the first request's fields, the response, the second request's fields.
type Row = (&'static str, &'static str, u16, &'static str, &'static str, Second);

fn check(rows: &[Row], settings: &str) {
    let table: Vec<(u16, &'static str)> = rows.iter().map(|row| (row.2, row.3)).collect();
    let origin = Origin::start(move |ask, peer| {
        let row: usize = ask.path().trim_start_matches('/').parse().unwrap();
        let (status, fields) = table[row];
        match ask.field("if-none-match").is_some() || ask.field("if-modified-since").is_some() {
            true => peer.reply(304, fields, ""),
            false => peer.reply(status, fields, "body"),
        }
    });
    let proxy = origin.cached(settings);
    for (row, (clause, first, status, said, second, expected)) in rows.iter().enumerate() {
        let path = format!("/{row}");
        let before = origin.asked();
        assert_eq!(proxy.get_with(&path, first).status, *status, "{clause}: the first answer");
        settled(&proxy);
        assert_eq!(origin.asked(), before + 1, "{clause}");
        let answer = proxy.get_with(&path, second);
        let seen = match origin.asked() - before {
            1 => Hit,
            2 if origin.last().field("if-none-match").or(origin.last().field("if-modified-since")).is_some() => {
                Validated
            }
            _ => Miss,
        };
        assert_eq!(seen, *expected, "{clause}: {said}; then {second}: {answer:?}");
        assert_eq!(answer.status, *status, "{clause}");
        assert!(answer.field("cache-status").is_some(), "{clause}");
    }
}

#[test]
fn responses_are_stored_only_where_rfc_9111_allows_it() {
    check(
        &[
            ("9111 3 explicit freshness", "", 200, "cache-control: max-age=60", "", Hit),
            ("9111 3 an unknown final status", "", 299, "cache-control: max-age=60", "", Hit),
            ("9111 3 an error", "", 500, "cache-control: max-age=60", "", Hit),
            ("9111 3 a redirection", "", 302, "cache-control: max-age=60", "", Hit),
            ("9111 3 nothing said", "", 200, "x: y", "", Miss),
            (
                "9111 3.3 a part is no whole",
                "",
                206,
                "cache-control: max-age=60 | content-range: bytes 0-3/9",
                "",
                Miss,
            ),
            ("9111 3.5 Authorization", "authorization: a", 200, "cache-control: max-age=60", "authorization: a", Miss),
            ("9111 3.5 public", "authorization: a", 200, "cache-control: public, max-age=60", "", Hit),
            ("9111 3.5 s-maxage", "authorization: a", 200, "cache-control: s-maxage=60", "", Hit),
            (
                "9111 3.5 must-revalidate",
                "authorization: a",
                200,
                "cache-control: must-revalidate, max-age=60",
                "",
                Hit,
            ),
            ("9111 5.2.2.1 max-age", "", 200, "cache-control: max-age=60", "", Hit),
            ("9111 5.2.2.2 must-revalidate, fresh", "", 200, "cache-control: max-age=60, must-revalidate", "", Hit),
            ("9111 5.2.2.3 must-understand", "", 299, "cache-control: max-age=60, must-understand, no-store", "", Miss),
            ("9111 5.2.2.3 understood", "", 200, "cache-control: max-age=60, must-understand, no-store", "", Hit),
            ("9111 5.2.2.4 no-cache", "", 200, "cache-control: max-age=60, no-cache | etag: \"x\"", "", Validated),
            ("9111 5.2.2.5 no-store", "", 200, "cache-control: max-age=60, no-store", "", Miss),
            ("9111 5.2.2.7 private", "", 200, "cache-control: max-age=60, private", "", Miss),
            (
                "9111 5.2.1.5 no-store of the request",
                "cache-control: no-store",
                200,
                "cache-control: max-age=60",
                "",
                Miss,
            ),
            ("9111 5.2 quoted arguments", "", 200, "cache-control: max-age=\"60\"", "", Hit),
            ("9111 5.2 names in any case", "", 200, "cache-control: MAX-AGE=60, No-Store", "", Miss),
            ("9111 5.3 Expires", "", 200, "expires: Sun, 21 Nov 2286 04:46:39 GMT", "", Hit),
            ("9111 5.3 an invalid Expires", "", 200, "expires: 0 | etag: \"x\"", "", Validated),
            ("9111 4.2.1 not s-maxage but max-age", "", 200, "cache-control: max-age=0, s-maxage=60", "", Hit),
            ("9111 4.2.1 an invalid max-age", "", 200, "cache-control: max-age=x | etag: \"x\"", "", Validated),
            ("9111 4.2.3 Age", "", 200, "cache-control: max-age=60 | age: 61 | etag: \"x\"", "", Validated),
            ("9111 5.1 an invalid Age", "", 200, "cache-control: max-age=60 | age: x61", "", Hit),
            ("9111 4.2.2 heuristics", "", 200, "last-modified: Sat, 01 Jan 2000 00:00:00 GMT", "", Hit),
            ("9111 4.2.2 not for 302", "", 302, "last-modified: Sat, 01 Jan 2000 00:00:00 GMT", "", Miss),
            (
                "9111 4.2.2 unless public",
                "",
                302,
                "cache-control: public | last-modified: Sat, 01 Jan 2000 00:00:00 GMT",
                "",
                Hit,
            ),
            ("heuristics and a Cookie", "cookie: a=b", 200, "last-modified: Sat, 01 Jan 2000 00:00:00 GMT", "", Miss),
            ("9111 4.1 Vary *", "", 200, "cache-control: max-age=60 | vary: *", "", Miss),
            ("9111 4.1 Vary, the same", "foo: 1", 200, "cache-control: max-age=60 | vary: Foo", "foo: 1", Hit),
            ("9111 4.1 Vary, another", "foo: 1", 200, "cache-control: max-age=60 | vary: Foo", "foo: 2", Miss),
            ("9111 4.1 Vary, absent", "foo: 1", 200, "cache-control: max-age=60 | vary: Foo", "", Miss),
            ("9213 2.2 CDN-Cache-Control", "", 200, "cdn-cache-control: max-age=60 | cache-control: no-store", "", Hit),
            ("9213 2.2 in place of Expires", "", 200, "cdn-cache-control: max-age=60 | expires: 0", "", Hit),
            (
                "9213 2.2 one that does not parse",
                "",
                200,
                "cdn-cache-control: max-age=60, &&& | cache-control: no-store",
                "",
                Miss,
            ),
            ("9213 2.2 no-store", "", 200, "cdn-cache-control: no-store | cache-control: max-age=60", "", Miss),
            ("9213 2.2 private", "", 200, "cdn-cache-control: private | cache-control: max-age=60", "", Miss),
            (
                "9213 2 this cache's own field first",
                "",
                200,
                "ringway-cache-control: max-age=60 | cdn-cache-control: no-store",
                "",
                Hit,
            ),
            ("7.3 Set-Cookie", "", 200, "cache-control: max-age=60 | set-cookie: a=b", "", Miss),
        ],
        "",
    );
}

#[test]
fn requests_cannot_talk_a_hit_away_unless_the_route_honours_it() {
    let rows = |expected: Second| -> Vec<Row> {
        ["no-cache", "max-age=0", "min-fresh=100"]
            .into_iter()
            .map(|said| match said {
                "no-cache" => "cache-control: no-cache",
                "max-age=0" => "cache-control: max-age=0",
                _ => "cache-control: min-fresh=100",
            })
            .chain(["pragma: no-cache"])
            .map(|asks| ("9111 5.2.1", "", 200, "cache-control: max-age=60 | age: 5 | etag: \"x\"", asks, expected))
            .collect()
    };
    check(&rows(Hit), "");
    check(&rows(Validated), "client_directives: honour");
    let no_store: Row = ("9111 5.2.1.5 no-store", "", 200, "cache-control: max-age=60", "cache-control: no-store", Hit);
    let only: Row =
        ("9111 5.2.1.7 only-if-cached", "", 200, "cache-control: max-age=60", "cache-control: only-if-cached", Hit);
    check(&[no_store, only], "");
}

#[test]
fn only_if_cached_goes_no_further() {
    let origin = Origin::numbering("cache-control: max-age=60");
    let proxy = origin.cached("");
    let answer = proxy.get_with("/", "cache-control: only-if-cached");
    assert_eq!((answer.status, answer.problem().as_str(), origin.asked()), (504, "not-cached", 0));
    assert_eq!(answer.field("cache-status").as_deref(), Some("ringway; detail=only-if-cached"));
}

#[test]
fn configured_lifetimes_stand_in() {
    let origin = Origin::start(|ask, peer| peer.reply(if ask.path() == "/gone" { 404 } else { 200 }, "", "x"));
    let proxy = origin.cached("default_ttl: 60s, negative_ttl: 60s");
    for path in ["/there", "/gone"] {
        let status = proxy.get(path).status;
        eventually("a hit", || proxy.get(path).field("cache-status").is_some_and(|status| status.contains("; hit")));
        assert_eq!(proxy.get(path).status, status);
    }
    let with_cookie = proxy.get_with("/mine", "cookie: a=b");
    assert_eq!(with_cookie.field("cache-status").as_deref(), Some("ringway; fwd=uri-miss"));
    assert_eq!(proxy.get_with("/mine", "cookie: a=b").field("cache-status").as_deref(), Some("ringway; fwd=uri-miss"));
}

#[test]
fn a_change_invalidates_what_it_touches() {
    let origin = Origin::start(|ask, peer| match (ask.method(), ask.path()) {
        ("GET", _) => peer.reply(200, "cache-control: max-age=60", &format!("#{}", ask.number)),
        (_, "/fails") => peer.reply(500, "", ""),
        _ => peer.reply(200, "location: /other | content-location: http://example.com/third", ""),
    });
    let proxy = origin.cached("");
    let warm = |path: &str| {
        proxy.get(path);
        eventually("a hit", || proxy.get(path).field("cache-status").is_some_and(|status| status.contains("; hit")));
    };
    let is_hit = |path: &str| proxy.get(path).field("cache-status").unwrap().contains("; hit");
    for (clause, method, path, gone) in [
        ("9111 4.4 POST", "POST", "/a", true),
        ("9111 4.4 PUT", "PUT", "/b", true),
        ("9111 4.4 DELETE", "DELETE", "/c", true),
        ("9111 4.4 an unknown method", "M-SEARCH", "/d", true),
        ("9111 4.4 one that fails", "POST", "/fails", false),
        ("9110 9.2.1 a safe method", "OPTIONS", "/e", false),
    ] {
        for each in [path, "/other", "/third", "/untouched"] {
            warm(each);
        }
        let answer = proxy.send(method, path, "content-length: 0");
        assert_eq!(answer.field("cache-status").as_deref(), Some("ringway; fwd=method"), "{clause}");
        assert_eq!(is_hit(path), !gone, "{clause}");
        assert_eq!(is_hit("/other"), !gone, "{clause}: Location");
        assert_eq!(is_hit("/third"), !gone, "{clause}: Content-Location");
        assert!(is_hit("/untouched"), "{clause}");
    }
}

#[test]
fn a_post_may_tell_what_reads_find() {
    let origin = Origin::start(|ask, peer| {
        let fields = match ask.path() {
            "/own" => "cache-control: max-age=60 | content-location: /own",
            "/other" => "cache-control: max-age=60 | content-location: /elsewhere",
            _ => "content-location: /implied | last-modified: Sat, 01 Jan 2000 00:00:00 GMT",
        };
        peer.reply(200, fields, &format!("{} #{}", ask.method(), ask.number));
    });
    let proxy = origin.cached("");
    for path in ["/own", "/other", "/implied"] {
        let posted = proxy.send("POST", path, "content-length: 0");
        assert!(posted.text().starts_with("POST"), "{posted:?}");
    }
    eventually("a hit", || proxy.get("/own").field("cache-status").is_some_and(|status| status.contains("; hit")));
    assert_eq!(proxy.get("/own").text(), "POST #0");
    assert!(proxy.get("/other").text().starts_with("GET") && proxy.get("/implied").text().starts_with("GET"));
}

#[test]
fn a_304_updates_what_is_stored() {
    let origin = Origin::start(|ask, peer| match ask.field("if-none-match") {
        None => peer.reply(
            200,
            "cache-control: no-cache | etag: \"v1\" | x-a: 1 | x-b: 1 | content-encoding: identity",
            "body",
        ),
        Some(_) => peer.reply(304, "cache-control: max-age=60 | etag: \"v1\" | x-a: 2 | content-encoding: gzip", ""),
    });
    let proxy = origin.cached("");
    proxy.get("/");
    eventually("validation", || {
        proxy.get("/").field("cache-status").is_some_and(|status| status.contains("fwd-status=304"))
    });
    let hit = proxy.get("/");
    assert_eq!(hit.field("cache-status").unwrap().split(';').nth(1), Some(" hit"), "9111 4.3.4 fresh again");
    let fields = ["x-a", "x-b", "content-encoding"].map(|name| hit.field(name).unwrap());
    assert_eq!(fields, ["2", "1", "identity"], "9111 3.2");
    assert_eq!(hit.text(), "body");
}

#[test]
fn a_304_about_something_else_is_not_believed() {
    let origin = Origin::start(|ask, peer| match ask.field("if-none-match") {
        None => peer.reply(
            200,
            &format!("cache-control: no-cache | etag: \"v{}\"", ask.number),
            &format!("#{}", ask.number),
        ),
        Some(_) => peer.reply(304, "etag: \"other\"", ""),
    });
    let proxy = origin.cached("");
    proxy.get("/");
    eventually("a validation that fails", || proxy.get("/").text() != "#0");
    assert!(origin.last().field("if-none-match").is_none(), "9111 4.3.4: asked for the whole");
}

#[test]
fn stored_fields_are_those_that_belong_to_the_response() {
    let origin = Origin::telling(&[(
        200,
        "cache-control: max-age=60, no-cache=\"x-once\" | connection: x-hop | x-hop: 1 | keep-alive: 1 | proxy-authenticate: x | x-once: 1 | x-kept: 1",
        "b",
    )]);
    let proxy = origin.cached("");
    let first = proxy.get("/");
    assert_eq!((first.field("x-once").as_deref(), first.field("x-hop")), (Some("1"), None));
    eventually("a hit", || proxy.get("/").field("age").is_some());
    let hit = proxy.get("/");
    for (clause, name, expected) in [
        ("9111 3.1 Connection", "x-hop", None),
        ("9111 3.1 hop by hop", "keep-alive", None),
        ("9111 3.1 proxy fields", "proxy-authenticate", None),
        ("9111 5.2.2.4 no-cache with names", "x-once", None),
        ("9111 3.1 all others", "x-kept", Some("1")),
    ] {
        assert_eq!(hit.field(name).as_deref(), expected, "{clause}");
    }
    assert!(hit.field("date").is_some(), "9110 6.6.1");
}

#[test]
fn a_head_is_served_from_a_get_and_tells_of_one() {
    let origin = Origin::start(|ask, peer| match ask.method() {
        "HEAD" => peer
            .send("HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\nx-v: 2\r\netag: \"e\"\r\ncontent-length: 4\r\n\r\n"),
        _ => peer.reply(200, "cache-control: max-age=3 | x-v: 1 | etag: \"e\"", "body"),
    });
    let proxy = origin.cached("");
    proxy.get("/");
    eventually("a hit", || proxy.get("/").field("age").is_some());
    let head = proxy.send("HEAD", "/", "");
    assert_eq!((head.status, head.field("content-length").as_deref()), (200, Some("4")), "9110 9.3.2");
    assert!(head.field("cache-status").unwrap().contains("; hit"));
    // When it has become stale, a HEAD goes to the origin and freshens it (9111 4.3.5).
    eventually("a HEAD that is forwarded", || proxy.send("HEAD", "/", "").field("x-v").as_deref() == Some("2"));
    let hit = proxy.get("/");
    assert_eq!((hit.field("x-v").as_deref(), hit.text().as_str()), (Some("2"), "body"), "{hit:?}");
    assert!(hit.field("cache-status").unwrap().contains("; hit"));
}

#[test]
fn a_head_alone_stores_nothing() {
    let origin = Origin::start(|ask, peer| match ask.method() {
        "HEAD" => peer.send("HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-length: 4\r\n\r\n"),
        _ => peer.reply(200, "cache-control: max-age=60", "body"),
    });
    let proxy = origin.cached("");
    assert_eq!(proxy.send("HEAD", "/", "").status, 200);
    assert_eq!(proxy.get("/").text(), "body");
}
