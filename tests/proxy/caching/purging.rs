//! Purges win over everything that began before them.

use super::is_hit;
use crate::support::{Barrier, Client, Origin, eventually, warm};
use std::process::Command;

#[test]
fn purges_strike_what_they_name() {
    let origin = Origin::start(|ask, peer| {
        let tags = if ask.path().starts_with("/news") {
            "cache-tag: news, all-news | surrogate-key: front page"
        } else {
            "x: y"
        };
        peer.reply(200, &format!("cache-control: max-age=60 | vary: x-kind | {tags}"), &format!("#{}", ask.number));
    });
    let proxy = origin.cached("key: { ignore_query: [utm] }");
    let paths = ["/news/a", "/news/b?x=1", "/shop"];
    let warm_all = || {
        for path in paths {
            for kind in ["x-kind: 1", "x-kind: 2"] {
                eventually("a hit", || is_hit(&proxy, path, kind));
            }
        }
    };
    for (order, gone) in [
        (r#"{"url": "http://example.com/news/a"}"#, [true, false, false]),
        (r#"{"url": "https://EXAMPLE.com:443/news/%61"}"#, [true, false, false]),
        (r#"{"url": "http://example.com/news/b?x=1&utm=5"}"#, [false, true, false]),
        (r#"{"url": "http://example.com/news/b"}"#, [false, false, false]),
        (r#"{"url": "/shop"}"#, [false, false, true]),
        (r#"{"url": "http://example.org/shop"}"#, [false, false, false]),
        (r#"{"prefix": "http://example.com/news/"}"#, [true, true, false]),
        (r#"{"prefix": "/s"}"#, [false, false, true]),
        (r#"{"tag": "news"}"#, [true, true, false]),
        (r#"{"tag": "page"}"#, [true, true, false]),
        (r#"{"tag": "new"}"#, [false, false, false]),
        (r#"{"all": true}"#, [true, true, true]),
    ] {
        warm_all();
        let answer = proxy.purge(order);
        assert_eq!(answer.status, 200, "{order}: {answer:?}");
        for (path, gone) in paths.iter().zip(gone) {
            // Every variant at once.
            assert_eq!(is_hit(&proxy, path, "x-kind: 1"), !gone, "{order}: {path}");
            assert_eq!(is_hit(&proxy, path, "x-kind: 2"), !gone, "{order}: {path}");
        }
    }
    assert_eq!(proxy.metric("ringway_cache_purges_total{kind=\"tag\"}"), 3.0);
    assert_eq!(proxy.metric("ringway_cache_purges_total{kind=\"all\"}"), 1.0);
}

#[test]
fn a_soft_purge_has_it_validated() {
    let origin = Origin::start(|ask, peer| match ask.field("if-none-match") {
        None => peer.reply(200, "cache-control: max-age=60 | etag: \"e\"", "body"),
        Some(_) => peer.reply(304, "cache-control: max-age=60 | etag: \"e\"", ""),
    });
    let proxy = origin.cached("");
    warm(&proxy, "/");
    assert_eq!(proxy.purge(r#"{"all": true, "soft": true}"#).status, 200);
    let answer = proxy.get("/");
    assert_eq!(answer.field("cache-status").as_deref(), Some("ringway; fwd=stale; fwd-status=304"));
    assert_eq!(answer.text(), "body");
    assert!(is_hit(&proxy, "/", ""), "it is fresh again");
}

#[test]
fn a_softly_purged_response_stands_in_for_a_node_that_fails() {
    let origin = Origin::telling(&[(200, "cache-control: max-age=60 | etag: \"e\"", "body"), (503, "", "")]);
    let proxy = origin.cached("");
    warm(&proxy, "/");
    proxy.purge(r#"{"url": "/", "soft": true}"#);
    let answer = proxy.get("/");
    assert_eq!(answer.text(), "body");
    let status = answer.field("cache-status").unwrap();
    assert_eq!(status, "ringway; hit; ttl=-1; detail=stale-if-error", "it is not told as fresh");
}

#[test]
fn a_purge_beats_a_fetch_that_began_before_it() {
    for (what, before_the_head) in [("before its head", true), ("while its body arrives", false)] {
        for order in [r#"{"url": "http://a/hot"}"#, r#"{"prefix": "/h"}"#, r#"{"tag": "t"}"#, r#"{"all": true}"#] {
            let (gate, began) = (Barrier::default(), Barrier::default());
            let (open, begin) = (gate.clone(), began.clone());
            let origin = Origin::start(move |ask, peer| {
                let head = "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncache-tag: t\r\ncontent-length: 3\r\n\r\n";
                if ask.number > 0 {
                    return peer.send(format!("{head}new"));
                }
                if !before_the_head {
                    peer.send(format!("{head}o"));
                }
                begin.open();
                open.wait();
                peer.send(if before_the_head { format!("{head}old") } else { "ld".to_owned() });
            });
            let proxy = origin.cached("lock_timeout: 1m");
            let mut early = proxy.connect();
            early.send("GET /hot HTTP/1.1\r\nhost: a\r\n\r\n");
            began.wait();
            if !before_the_head {
                early.head();
            }
            assert_eq!(proxy.purge(order).status, 200);
            let label = format!("{order} {what}");
            assert_eq!(proxy.send("GET", "/hot", "host: a").text(), "new", "{label}: nobody joins it any more");
            gate.open();
            let body = if before_the_head { early.answer().body } else { early.exactly(3) };
            assert_eq!(body, b"old", "{label}: its client gets it");
            for _ in 0..3 {
                assert_eq!(proxy.send("GET", "/hot", "host: a").text(), "new", "{label}: it is not stored");
            }
        }
    }
}

#[test]
fn a_304_does_not_revive_what_was_purged() {
    for background in [false, true] {
        let (gate, began) = (Barrier::default(), Barrier::default());
        let (open, begin) = (gate.clone(), began.clone());
        let origin = Origin::start(move |ask, peer| match ask.field("if-none-match") {
            Some(_) => {
                begin.open();
                open.wait();
                peer.reply(304, "cache-control: max-age=60 | etag: \"e\"", "");
            }
            None if ask.number == 0 && background => {
                peer.reply(200, "cache-control: max-age=0, stale-while-revalidate=60 | etag: \"e\"", "old")
            }
            None if ask.number == 0 => peer.reply(200, "cache-control: no-cache | etag: \"e\"", "old"),
            None => peer.reply(200, "cache-control: max-age=60 | etag: \"f\"", "new"),
        });
        let proxy = origin.cached("lock_timeout: 1m");
        proxy.send("GET", "/hot", "host: a");
        let mut client = proxy.connect();
        eventually("a validation", || {
            client = proxy.connect();
            client.send("GET /hot HTTP/1.1\r\nhost: a\r\n\r\n");
            if background {
                assert_eq!(client.answer().text(), "old");
            }
            eventually("the next request", || origin.asked() >= 2);
            origin.last().field("if-none-match").is_some()
        });
        began.wait();
        assert_eq!(proxy.purge(r#"{"url": "http://a/hot"}"#).status, 200);
        gate.open();
        if !background {
            assert_eq!(client.answer().text(), "old", "its client gets what was confirmed");
        }
        for _ in 0..3 {
            assert_eq!(proxy.send("GET", "/hot", "host: a").text(), "new", "background: {background}");
        }
    }
}

#[test]
fn thousands_of_tagged_objects_go_at_once_and_their_memory_later() {
    const OBJECTS: usize = 5_000;
    let origin = Origin::start(|ask, peer| {
        peer.reply(200, "cache-control: max-age=600 | cache-tag: a, all-of-them", &"x".repeat(100 + ask.number % 100));
    });
    let proxy = origin.cached("");
    let mut client = proxy.connect();
    for number in 0..OBJECTS {
        client.request(format!("GET /{number} HTTP/1.1\r\nhost: a\r\n\r\n"));
    }
    assert!(proxy.metric("ringway_cache_entries") >= OBJECTS as f64);
    // A body of 150 bytes, fields of 100, a URI of 15 and two tags, and what is kept beside them.
    let each = proxy.metric("ringway_cache_bytes") / OBJECTS as f64;
    assert!(each < 265.0 + 16.0 + 500.0, "{each} bytes an object");
    assert_eq!(proxy.purge(r#"{"tag": "all-of-them"}"#).status, 200);
    assert!(client.request("GET /7 HTTP/1.1\r\nhost: a\r\n\r\n").field("age").is_none());
    eventually("the sweep", || proxy.metric("ringway_cache_entries") < 10.0);
}

#[test]
fn a_purge_that_makes_no_sense_is_refused() {
    let origin = Origin::numbering("cache-control: max-age=60");
    let proxy = origin.cached("");
    for order in [
        "",
        "{}",
        "[]",
        r#"{"url": "example.com"}"#,
        r#"{"url": "ftp://a/"}"#,
        r#"{"all": true, "tag": "x"}"#,
        r#"{"urls": []}"#,
    ] {
        let answer = proxy.purge(order);
        assert_eq!((answer.status, answer.problem().as_str()), (400, "bad-purge"), "{order}");
    }
    assert_eq!(proxy.admin_get("/api/cache/purge").status, 405);
    assert_eq!(proxy.purge(&"x".repeat(100_000)).status, 413);
}

#[test]
fn other_sites_cannot_purge() {
    let origin = Origin::numbering("cache-control: max-age=60");
    let proxy = origin.cached("");
    warm(&proxy, "/");
    let body = r#"{"all": true}"#;
    let post = |host: String, more: &str| {
        let length = body.len();
        Client::connect(proxy.admin).request(format!(
            "POST /api/cache/purge HTTP/1.1\r\nhost: {host}\r\n{more}content-length: {length}\r\nconnection: close\r\n\r\n{body}"
        ))
    };
    assert_eq!(post(proxy.admin.to_string(), "origin: http://evil.example\r\n").status, 403);
    assert_eq!(post("evil.example".to_owned(), "").status, 421);
    assert!(is_hit(&proxy, "/", ""));
}

#[test]
fn the_command_line_purges_too() {
    let origin = Origin::numbering("cache-control: max-age=60 | cache-tag: t");
    let proxy = origin.cached("");
    let ringway = |arguments: &[&str]| {
        let admin = format!("http://{}", proxy.admin);
        let output =
            Command::new(env!("CARGO_BIN_EXE_ringway")).arg("purge").args(arguments).args(["--admin", &admin]).output();
        let output = output.unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr),
        )
    };
    for (arguments, purged) in [
        (&["--url", "http://example.com/"][..], "the URL `http://example.com/`: 1 stored response"),
        (&["--prefix", "/"], "the prefix `/`: 2 stored responses"),
        (&["--tag", "t"], "the tag `t`: 2 stored responses"),
        (&["--tag", "other"], "the tag `other`: 0 stored responses"),
        (&["--all"], "everything: 2 stored responses"),
    ] {
        warm(&proxy, "/");
        warm(&proxy, "/2");
        assert_eq!(ringway(arguments), (Some(0), format!("purged {purged}\n")));
        if purged.contains(": 0") {
            continue;
        }
        assert!(!is_hit(&proxy, "/", ""), "{arguments:?}");
    }
    warm(&proxy, "/");
    assert_eq!(ringway(&["--all", "--soft"]).1, "purged everything, soft: 1 stored response\n");
    proxy.logs("the cache was purged: everything, soft responses=1");
    assert!(proxy.get("/").field("cache-status").unwrap().contains("fwd=stale"));
    let (code, said) = ringway(&["--url", "nonsense"]);
    assert!(code == Some(1) && said.contains("expected a URL"), "{said}");
    assert_eq!(ringway(&[]).0, Some(2));
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
