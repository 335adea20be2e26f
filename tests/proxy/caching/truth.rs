//! What stored responses say of themselves and of one another is true: situations from the bug reports of other caches.

use super::serving::warm;
use crate::support::http2::Http2;
use crate::support::{Barrier, Origin, Proxy, eventually};

fn status(proxy: &Proxy, path: &str, fields: &str) -> String {
    proxy.get_with(path, fields).field("cache-status").unwrap_or_default()
}

fn is_hit(proxy: &Proxy, path: &str, fields: &str) -> bool {
    status(proxy, path, fields).contains("; hit")
}

/// Waits until nothing is being answered or stored.
fn settled(proxy: &Proxy) {
    eventually("the end of all fetches", || proxy.metric("ringway_requests_in_flight") == 0.0);
}

// 1. Vary.

#[test]
fn a_response_that_varies_is_not_given_to_a_request_that_differs() {
    let origin = Origin::start(|ask, peer| {
        let vary = ask.path().trim_start_matches('/').to_owned();
        peer.reply(200, &format!("cache-control: max-age=60 | vary: {vary}"), &format!("#{}", ask.number));
    });
    let proxy = origin.cached("");
    for (field, stored, asked) in [
        ("origin", ",https://shop.example", "https://shop.example"),
        ("x-tenant", "acme,", "acme"),
        ("x-tenant", "a, , b", "a, b"),
        ("x-list", "\"Foo, Bar\"", "\"Foo,Bar\""),
        ("cookie", "a=1,,2", "a=1,2"),
        ("cookie", "a=1, 2", "a=1,2"),
        ("authorization", "Basic a, b", "Basic a,b"),
        ("accept-language", "d e", "de"),
        ("accept-language", "de;q=x", "de"),
        ("accept", "a/b;profile=\"X\"", "a/b;profile=\"x\""),
        ("accept", "a/b;profile=\"a, b\"", "a/b;profile=\"a,b\""),
    ] {
        proxy.purge(r#"{"all": true}"#);
        let path = format!("/{field}");
        let first = proxy.get_with(&path, &format!("{field}: {stored}")).text();
        settled(&proxy);
        assert_ne!(proxy.get_with(&path, &format!("{field}: {asked}")).text(), first, "{field}: {stored} and {asked}");
    }
    for (field, stored, asked) in [
        ("x-list", "1,2", " 1 , 2 "),
        ("x-list", "\"Foo, Bar\",x", "\"Foo, Bar\" , x"),
        ("accept-language", "en, de;q=0.50", "DE; q=0.5,,en"),
        ("accept", "a/b;q=1.0;v=1", "a/b;v=1"),
        ("cookie", "a=1; b=2", "a=1; b=2"),
    ] {
        proxy.purge(r#"{"all": true}"#);
        let path = format!("/{field}");
        let first = proxy.get_with(&path, &format!("{field}: {stored}")).text();
        settled(&proxy);
        assert_eq!(proxy.get_with(&path, &format!("{field}: {asked}")).text(), first, "{field}: {stored} and {asked}");
    }
    // The same over HTTP/2.
    proxy.purge(r#"{"all": true}"#);
    let client = Http2::connect(proxy.address);
    let ask = |value: &str| client.ask("GET", "/x-tenant", &format!("x-tenant: {value}"), "").unwrap().text();
    let first = ask("acme,");
    settled(&proxy);
    assert_ne!(ask("acme"), first);
    assert_eq!(ask("acme,"), first);
}

// 2. HEAD.

#[test]
fn a_head_without_a_validator_changes_nothing() {
    for told in ["", "content-length: 4\r\n"] {
        let origin = Origin::start(move |ask, peer| match ask.method() {
            "HEAD" => peer.send(format!("HTTP/1.1 200 OK\r\ncache-control: max-age=3600\r\n{told}\r\n")),
            _ => peer.reply(200, "cache-control: max-age=1 | etag: \"e\"", &format!("#{:03}", ask.number)),
        });
        let proxy = origin.cached("");
        proxy.get("/");
        settled(&proxy);
        eventually("a HEAD that is forwarded", || {
            proxy.send("HEAD", "/", "");
            origin.last().method() == "HEAD"
        });
        settled(&proxy);
        assert!(!is_hit(&proxy, "/", ""), "a HEAD pins nothing");
    }
}

#[test]
fn a_head_never_undoes_a_purge() {
    for (soft, told) in [(true, ""), (true, "etag: \"e\"\r\n"), (false, "etag: \"e\"\r\n")] {
        let origin = Origin::start(move |ask, peer| match ask.method() {
            "HEAD" => {
                peer.send(format!("HTTP/1.1 200 OK\r\ncache-control: max-age=3600\r\n{told}content-length: 4\r\n\r\n"))
            }
            _ => peer.reply(200, "cache-control: max-age=60 | etag: \"e\"", "body"),
        });
        let proxy = origin.cached("client_directives: honour");
        warm(&proxy, "/");
        proxy.purge(&format!(r#"{{"url": "/", "soft": {soft}}}"#));
        proxy.send("HEAD", "/", "cache-control: no-cache");
        assert_eq!(origin.last().method(), "HEAD");
        settled(&proxy);
        let asked = origin.asked();
        assert!(!is_hit(&proxy, "/", ""), "soft {soft}, {told}");
        assert_eq!(origin.asked(), asked + 1);
    }
}

#[test]
fn a_head_that_differs_marks_stale_and_one_with_a_validator_freshens() {
    for (told, then) in [
        ("etag: \"e\"\r\ncontent-length: 4\r\n", "hit"),
        ("last-modified: Sat, 01 Jan 2000 00:00:00 GMT\r\n", "hit"),
        ("etag: \"other\"\r\ncontent-length: 4\r\n", "stale"),
        ("last-modified: Sat, 01 Jan 2001 00:00:00 GMT\r\netag: \"e\"\r\n", "stale"),
        ("content-length: 5\r\n", "stale"),
        ("content-length: 4\r\n", "hit"),
    ] {
        let origin = Origin::start(move |ask, peer| match ask.method() {
            "HEAD" => {
                peer.send(format!("HTTP/1.1 200 OK\r\ncache-control: max-age=7200\r\nx-from: head\r\n{told}\r\n"))
            }
            _ => peer.reply(
                200,
                "cache-control: max-age=60 | etag: \"e\" | last-modified: Sat, 01 Jan 2000 00:00:00 GMT",
                "body",
            ),
        });
        let proxy = origin.cached("client_directives: honour");
        warm(&proxy, "/");
        proxy.send("HEAD", "/", "cache-control: no-cache");
        settled(&proxy);
        let answer = proxy.get("/");
        assert!(answer.field("cache-status").unwrap().contains(then), "{told}: {answer:?}");
        let is_freshened = told != "content-length: 4\r\n" && then == "hit";
        assert_eq!(answer.field("x-from").is_some(), is_freshened, "{told}: {answer:?}");
    }
}

// 3. What is superseded.

#[test]
fn an_answer_that_cannot_be_stored_ends_the_one_that_it_supersedes() {
    for (code, fields) in [
        (404, ""),
        (410, ""),
        (302, "location: /x"),
        (200, "cache-control: no-store"),
        (200, "cache-control: private, max-age=60"),
        (200, "cache-control: max-age=60 | vary: *"),
        (200, "cache-control: max-age=60 | set-cookie: a=b"),
    ] {
        // In the background.
        let origin = Origin::telling(&[
            (200, "cache-control: max-age=0, stale-while-revalidate=600 | etag: \"e\"", "old"),
            (code, fields, "new"),
        ]);
        let proxy = origin.cached("");
        assert_eq!(proxy.get("/").text(), "old");
        eventually("the newer answer", || proxy.get("/").text() == "new");
        for _ in 0..3 {
            assert_eq!(proxy.get("/").text(), "new", "{code} {fields}");
        }
        // In the foreground; then the node fails.
        let origin = Origin::telling(&[
            (200, "cache-control: max-age=1 | etag: \"e\"", "old"),
            (code, fields, "new"),
            (503, "", "bad"),
        ]);
        let proxy = origin.cached("stale_if_error: 1h");
        assert_eq!(proxy.get("/").text(), "old");
        eventually("the newer answer", || proxy.get("/").text() == "new");
        assert_eq!(proxy.get("/").text(), "bad", "{code} {fields}: what is superseded stands in for nothing");
    }
}

#[test]
fn an_answer_that_is_too_large_ends_the_one_that_it_supersedes() {
    let large = "x".repeat(3000);
    let chunks = format!(
        "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ntransfer-encoding: chunked\r\n\r\nbb8\r\n{large}\r\n0\r\n\r\n"
    );
    for is_chunked in [true, false] {
        let (large, chunks) = (large.clone(), chunks.clone());
        let origin = Origin::start(move |ask, peer| match (ask.number, is_chunked) {
            (0, _) => peer.reply(200, "cache-control: max-age=1 | etag: \"e\"", "old"),
            (1, true) => peer.send(&chunks),
            (1, false) => peer.reply(200, "cache-control: max-age=60", &large),
            _ => peer.reply(503, "", "bad"),
        });
        let proxy = origin.cached("max_object: 2KiB");
        proxy.get("/");
        eventually("the newer answer", || proxy.get("/").text() == large_of(3000));
        settled(&proxy);
        assert_eq!(proxy.get("/").text(), "bad", "chunked: {is_chunked}");
    }
}

fn large_of(length: usize) -> String {
    "x".repeat(length)
}

/// That there is nothing is so for everybody, also where a request with a cookie or credentials has found it out.
#[test]
fn who_asks_with_a_cookie_learns_for_all_that_a_resource_is_gone() {
    for (code, fields) in [(404, ""), (410, ""), (302, "location: /x")] {
        for asks in ["cookie: _ga=1", "authorization: me"] {
            let origin = Origin::telling(&[
                (200, "cache-control: max-age=0, stale-while-revalidate=600 | etag: \"e\"", "old"),
                (code, fields, "new"),
            ]);
            let proxy = origin.cached("");
            assert_eq!(proxy.get("/").text(), "old");
            eventually("the newer answer", || proxy.get_with("/", asks).text() == "new");
            assert_eq!(proxy.get("/").text(), "new", "{code} {asks}");
        }
    }
}

/// Nobody reads what is fetched in the background, so it is not read to its end.
#[test]
fn an_answer_that_is_too_large_ends_the_old_one_in_the_background_too() {
    let large = "x".repeat(60_000);
    let origin = Origin::start(move |ask, peer| match ask.number {
        0 => peer.reply(200, "cache-control: max-age=0, stale-while-revalidate=600 | etag: \"e\"", "old"),
        _ => {
            peer.send("HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ntransfer-encoding: chunked\r\n\r\n");
            for _ in 0..20 {
                peer.send(format!("{:x}\r\n{large}\r\n", large.len()));
            }
            peer.send("0\r\n\r\n");
        }
    });
    let proxy = origin.cached("max_object: 64KiB");
    proxy.get("/");
    settled(&proxy);
    eventually("the newer answer", || proxy.get("/").text() != "old");
    assert_ne!(proxy.get("/").text(), "old");
}

#[test]
fn an_answer_for_other_fields_keeps_no_fetch_from_being_stored() {
    for settings in ["", "key: { headers: [x-tenant] }"] {
        let gate = Barrier::default();
        let open = gate.clone();
        let vary = if settings.is_empty() { "vary: x-tenant\r\n" } else { "" };
        let origin = Origin::start(move |ask, peer| match ask.field("x-tenant") {
            Some("slow") => {
                peer.send(format!("HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\n{vary}content-length: 4\r\n\r\nsl"));
                open.wait();
                peer.send("ow");
            }
            _ => peer.reply(404, "cache-control: no-store | vary: x-tenant", "none"),
        });
        let proxy = origin.cached(settings);
        let mut slow = proxy.connect();
        slow.send("GET / HTTP/1.1\r\nhost: example.com\r\nx-tenant: slow\r\n\r\n");
        assert!(slow.head().contains("; stored"));
        assert_eq!(proxy.get_with("/", "x-tenant: other").text(), "none");
        gate.open();
        assert_eq!(slow.exactly(4), b"slow");
        settled(&proxy);
        assert!(is_hit(&proxy, "/", "x-tenant: slow"), "{settings}");
    }
}

#[test]
fn an_older_fetch_does_not_bring_back_what_was_superseded() {
    let gate = Barrier::default();
    let open = gate.clone();
    let origin = Origin::start(move |ask, peer| match ask.number {
        0 => {
            open.wait();
            peer.reply(200, "cache-control: max-age=60", "old");
        }
        _ => peer.reply(404, "", "gone"),
    });
    let proxy = origin.cached("lock_timeout: 100ms");
    let mut early = proxy.connect();
    early.send("GET / HTTP/1.1\r\nhost: example.com\r\n\r\n");
    origin.wait_for(1);
    assert_eq!(proxy.get("/").text(), "gone");
    gate.open();
    assert_eq!(early.answer().text(), "old");
    settled(&proxy);
    assert_eq!(proxy.get("/").text(), "gone");
}

/// While a validation runs, somebody else learns that the resource is gone, it is purged, or it is changed.
#[test]
fn what_has_ended_meanwhile_does_not_stand_in() {
    for what in ["superseded", "purged", "changed", "nothing"] {
        let (gate, began) = (Barrier::default(), Barrier::default());
        let (open, begin) = (gate.clone(), began.clone());
        let origin = Origin::start(move |ask, peer| match (ask.field("x-who"), ask.method()) {
            (_, "PUT") => peer.reply(204, "", ""),
            (Some("hangs"), _) if ask.field("if-none-match").is_some() => {
                begin.open();
                open.wait();
                peer.reply(503, "", "bad");
            }
            (Some("asks"), _) => peer.reply(404, "", "gone"),
            _ => peer.reply(200, "cache-control: max-age=1 | etag: \"e\"", "old"),
        });
        let proxy = origin.cached("lock_timeout: 100ms, stale_if_error: 1h");
        proxy.get("/");
        settled(&proxy);
        let mut client = proxy.connect();
        eventually("a validation that hangs", || {
            client = proxy.connect();
            client.send("GET / HTTP/1.1\r\nhost: example.com\r\nx-who: hangs\r\nconnection: close\r\n\r\n");
            // No answer comes.
            client.is_open()
        });
        began.wait();
        match what {
            "superseded" => {
                // It asks for itself, with a condition of its own.
                let answer = proxy.get_with("/", "x-who: asks | if-none-match: \"other\"");
                assert_eq!(answer.text(), "gone");
            }
            "purged" => drop(proxy.purge(r#"{"url": "/"}"#)),
            "changed" => drop(proxy.send("PUT", "/", "content-length: 0")),
            _ => {}
        }
        gate.open();
        let expected = if what == "nothing" { "old" } else { "bad" };
        assert_eq!(client.answer().text(), expected, "{what}");
    }
}

#[test]
fn no_client_can_end_a_page_for_all() {
    for (code, fields, asks) in [
        (400, "", ""),
        (405, "", ""),
        (406, "", ""),
        (412, "", ""),
        (416, "", ""),
        (429, "", ""),
        (431, "", ""),
        (401, "", "authorization: bad"),
        (403, "", "cookie: session=bad"),
        (407, "", ""),
        (200, "cache-control: private, max-age=60", "cookie: session=me"),
        (200, "cache-control: private, max-age=60", "authorization: me"),
        (200, "cache-control: max-age=60 | set-cookie: a=b", "cookie: session=me"),
        (200, "cache-control: max-age=60", "authorization: me"),
    ] {
        let fields_of_it = fields.to_owned();
        let origin = Origin::start(move |ask, peer| match (ask.field("x-mine"), ask.field("if-none-match")) {
            (Some(_), _) => peer.reply(code, &fields_of_it, "mine"),
            (None, None) => peer.reply(200, "cache-control: max-age=1 | etag: \"e\"", &format!("#{}", ask.number)),
            (None, Some(_)) => peer.reply(304, "cache-control: max-age=1 | etag: \"e\"", ""),
        });
        let proxy = origin.cached("");
        assert_eq!(proxy.get("/").text(), "#0");
        eventually("the asker's own answer", || proxy.get_with("/", &format!("x-mine: 1 | {asks}")).text() == "mine");
        settled(&proxy);
        let answer = proxy.get("/");
        assert_eq!(answer.text(), "#0", "{code} {fields} {asks}");
        assert!(origin.last().field("if-none-match").is_some(), "it is validated, and not fetched anew");
    }
}

// 4. Errors.

#[test]
fn a_stored_error_stands_in_for_nothing() {
    let origin = Origin::telling(&[
        (503, "cache-control: max-age=1, stale-if-error=600 | etag: \"e\"", "old"),
        (500, "", "newer"),
        (502, "", "newest"),
        (200, "", "well"),
    ]);
    let proxy = origin.cached("");
    assert_eq!(proxy.get("/").text(), "old");
    settled(&proxy);
    eventually("staleness", || proxy.get("/").text() != "old");
    assert_eq!(proxy.get("/").text(), "newest");
    assert_eq!(proxy.get("/").text(), "well", "nobody waits for a node that is well");
}

// 5. Tags.

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

// 7. What is not answered from the store, and what invalidates.

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
fn methods_that_are_registered_as_safe_invalidate_nothing() {
    let origin = Origin::numbering("cache-control: max-age=60 | location: /");
    let proxy = origin.cached("");
    warm(&proxy, "/");
    for method in ["QUERY", "REPORT", "PROPFIND", "SEARCH", "OPTIONS"] {
        assert_eq!(proxy.send(method, "/", "content-length: 0").status, 200);
        assert!(is_hit(&proxy, "/", ""), "{method}");
    }
    for method in ["M-SEARCH", "PROPPATCH", "query"] {
        warm(&proxy, "/");
        proxy.send(method, "/", "content-length: 0");
        assert!(!is_hit(&proxy, "/", ""), "{method}");
    }
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

// 8. Heuristics.

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

// 9. Variants.

#[test]
fn made_up_variants_do_not_empty_a_uri() {
    let origin = Origin::start(|ask, peer| {
        let language = ask.field("accept-language").unwrap_or("none").to_owned();
        peer.reply(200, "cache-control: max-age=60 | vary: accept-language", &language);
    });
    let proxy = origin.cached("");
    let get = |language: &str| proxy.get_with("/", &format!("accept-language: {language}"));
    let used = ["de", "fr", "en"];
    for language in used {
        get(language);
        eventually("a hit", || get(language).field("age").is_some());
    }
    for number in 0..200 {
        get(&format!("x-{number}"));
    }
    settled(&proxy);
    let asked = origin.asked();
    for language in used {
        assert!(get(language).field("age").is_some(), "{language}");
    }
    assert_eq!(origin.asked(), asked);
    // One that is validated each time is used each time.
    let strict = Origin::start(|ask, peer| {
        let fields = "cache-control: no-cache | etag: \"e\" | vary: accept-language";
        match ask.field("if-none-match") {
            None => peer.reply(200, fields, ask.field("accept-language").unwrap()),
            Some(_) => peer.reply(304, fields, ""),
        }
    });
    let before = strict.cached("");
    for _ in 0..3 {
        before.get_with("/", "accept-language: de");
        settled(&before);
    }
    for number in 0..40 {
        before.get_with("/", &format!("accept-language: z-{number}"));
    }
    settled(&before);
    before.get_with("/", "accept-language: de");
    assert!(strict.last().field("if-none-match").is_some());
    // A reload keeps them, and a newer version of one is as much used as the older.
    proxy.reconfigure(&origin.configuration("stale_if_error: 2h"));
    proxy.purge(r#"{"url": "/", "soft": true}"#);
    get("de");
    settled(&proxy);
    for number in 0..100 {
        get(&format!("y-{number}"));
    }
    settled(&proxy);
    assert!(get("de").field("age").is_some());
}

// 10. Invalidations.

#[test]
fn no_invalidation_is_lost_where_keys_have_more_parts() {
    let origin = Origin::start(|ask, peer| match ask.method() {
        "GET" => peer.reply(200, "cache-control: max-age=600", &format!("#{}", ask.number)),
        _ => peer.reply(204, "", ""),
    });
    let proxy = origin.cached("key: { headers: [x-country] }");
    let mut client = proxy.connect();
    let mut ask = |method: &str, path: &str, country: &str| {
        let length = if method == "GET" { "" } else { "content-length: 0\r\n" };
        let request = format!("{method} {path} HTTP/1.1\r\nhost: example.com\r\nx-country: {country}\r\n{length}\r\n");
        client.request(request)
    };
    let paths: Vec<String> = (0..600).map(|number| format!("/{number}")).collect();
    for path in &paths {
        for country in ["de", "fr"] {
            ask("GET", path, country);
        }
    }
    settled(&proxy);
    // All at once, more than any list of rules would hold, from another country.
    for path in &paths {
        assert_eq!(ask("PUT", path, "es").status, 204);
    }
    for path in &paths {
        for country in ["de", "fr"] {
            let answer = ask("GET", path, country);
            assert!(!answer.field("cache-status").unwrap().contains("; hit"), "{path} {country}");
        }
    }
}

#[test]
fn an_invalidation_holds_across_a_change_of_the_key() {
    let origin = Origin::numbering("cache-control: max-age=600");
    let (plain, by_country) = (origin.configuration(""), origin.configuration("key: { headers: [x-country] }"));
    let proxy = Proxy::start(&plain);
    warm(&proxy, "/");
    proxy.reconfigure(&by_country);
    warm(&proxy, "/");
    proxy.send("PUT", "/", "content-length: 0");
    proxy.reconfigure(&plain);
    assert!(!is_hit(&proxy, "/", ""), "what was stored under the earlier key has changed too");
    // The same where the query counts in another way meanwhile.
    warm(&proxy, "/p?utm=1");
    proxy.reconfigure(&origin.configuration("key: { ignore_query: [utm] }"));
    proxy.send("PUT", "/p?utm=1", "content-length: 0");
    proxy.reconfigure(&plain);
    assert!(!is_hit(&proxy, "/p?utm=1", ""));
    // And however the query is spelt.
    warm(&proxy, "/p?a=%c3%a9");
    proxy.send("PUT", "/p?a=%C3%A9", "content-length: 0");
    assert!(!is_hit(&proxy, "/p?a=%c3%a9", ""));
}

#[test]
fn a_flood_of_changes_strikes_nothing_else() {
    let gate = Barrier::default();
    let open = gate.clone();
    let origin = Origin::start(move |ask, peer| {
        if ask.path() == "/slow" && ask.method() == "GET" {
            open.wait();
        }
        peer.reply(200, "cache-control: max-age=600", ask.path());
    });
    let proxy = origin.cached("key: { headers: [x-country] }");
    warm(&proxy, "/kept");
    let mut slow = proxy.connect();
    slow.send("GET /slow HTTP/1.1\r\nhost: example.com\r\n\r\n");
    eventually("the slow fetch", || origin.last().path() == "/slow");
    let mut client = proxy.connect();
    for number in 0..3_000 {
        client.request(format!("POST /{number} HTTP/1.1\r\nhost: example.com\r\ncontent-length: 0\r\n\r\n"));
    }
    let asked = origin.asked();
    assert!(is_hit(&proxy, "/kept", ""));
    gate.open();
    assert_eq!(slow.answer().text(), "/slow");
    settled(&proxy);
    assert!(is_hit(&proxy, "/slow", ""), "nor a fetch that was running");
    assert_eq!(origin.asked(), asked);
}

// 11. Shared fetches, purges by every spelling, trailers, and what is said of storing.

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
fn a_purge_strikes_every_spelling() {
    let origin = Origin::numbering("cache-control: max-age=600");
    let proxy = origin.cached("");
    let spellings = ["/caf%C3%A9", "/caf%c3%a9", "/c%61f%C3%a9", "/caf\u{e9}"];
    for purged in ["/caf\u{e9}", "/caf%C3%A9", "/caf%c3%a9"] {
        for path in spellings {
            warm(&proxy, path);
            for order in [format!(r#"{{"url": "{purged}"}}"#), format!(r#"{{"prefix": "http://example.com{purged}"}}"#)]
            {
                warm(&proxy, path);
                assert_eq!(proxy.purge(&order).status, 200);
                assert!(!is_hit(&proxy, path, ""), "{order} and {path}");
            }
        }
    }
    for path in ["/?x=%C3%A9", "/?x=%c3%a9", "/?%78=%c3%A9"] {
        for purged in ["/?x=\u{e9}", "/?x=%C3%A9", "/?x=%c3%a9"] {
            warm(&proxy, path);
            proxy.purge(&format!(r#"{{"url": "{purged}"}}"#));
            assert!(!is_hit(&proxy, path, ""), "{purged} and {path}");
        }
    }
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

// 12. What users of other caches ask for.

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
