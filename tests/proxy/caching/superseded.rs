//! Newer answers end, mark or freshen the stored response that they supersede: HEAD, answers that cannot be stored,
//! errors.

use super::{is_hit, outlive, settled};
use crate::support::{Barrier, Origin, eventually, warm};

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

/// The older fetch is known to be for some requests only, the newer answer is not yet.
#[test]
fn a_fetch_of_a_variant_does_not_outlive_an_answer_to_a_cookie() {
    let gate = Barrier::default();
    let open = gate.clone();
    let origin = Origin::start(move |ask, peer| match (ask.number, ask.field("cookie")) {
        (0, None) => {
            let head = "cache-control: max-age=60\r\nvary: accept-encoding\r\ncontent-length: 4";
            peer.send(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\nsl"));
            open.wait();
            peer.send("ow");
        }
        (_, Some(_)) => peer.reply(404, "cache-control: no-store", "gone"),
        _ => peer.reply(200, "cache-control: max-age=60", "new"),
    });
    let proxy = origin.cached("");
    let mut slow = proxy.connect();
    slow.send("GET / HTTP/1.1\r\nhost: example.com\r\n\r\n");
    assert!(slow.head().contains("; stored"));
    assert_eq!(proxy.get_with("/", "cookie: a=1").text(), "gone");
    gate.open();
    assert_eq!(slow.exactly(4), b"slow");
    settled(&proxy);
    assert_eq!(proxy.get("/").text(), "new");
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
    eventually("a hit", || is_hit(&proxy, "/", ""));
    gate.open();
    assert_eq!(early.answer().text(), "#0");
    eventually("the end of the fetch", || proxy.metric("ringway_requests_in_flight") == 0.0);
    assert_eq!(proxy.get("/").text(), "#1");
}
