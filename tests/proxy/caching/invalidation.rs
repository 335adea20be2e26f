//! Changes of a resource end what is stored of it, and nothing else (RFC 9111 4.4).

use super::{is_hit, settled};
use crate::support::http2::Http2;
use crate::support::{Barrier, Origin, Proxy, eventually, warm};

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

/// The node has done what the client no longer waits for.
#[test]
fn a_change_whose_client_has_left_is_a_change() {
    for is_http2 in [false, true] {
        let gate = Barrier::default();
        let open = gate.clone();
        let origin = Origin::start(move |ask, peer| match ask.method() {
            "PUT" => {
                open.wait();
                peer.reply(204, "", "");
            }
            _ => peer.reply(200, "cache-control: max-age=600", "x"),
        });
        let proxy = origin.cached("");
        warm(&proxy, "/");
        let asked = origin.asked();
        if is_http2 {
            Http2::connect(proxy.address).give_up("PUT", "/", || origin.wait_for(asked + 1));
        } else {
            let mut client = proxy.connect();
            client.send("PUT / HTTP/1.1\r\nhost: example.com\r\ncontent-length: 0\r\n\r\n");
            origin.wait_for(asked + 1);
        }
        eventually("the end of the connection", || proxy.metric("ringway_connections{listener=\"http\"}") == 0.0);
        gate.open();
        eventually("the end of the change", || !is_hit(&proxy, "/", ""));
    }
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
    assert!(is_hit(&proxy, "/kept", ""));
    client.request("POST /hangs HTTP/1.1\r\nhost: example.com\r\ncontent-length: 0\r\n\r\n".replace("/hangs", "/kept"));
    assert!(!is_hit(&proxy, "/kept", ""));
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
fn a_request_without_a_host_changes_nothing_elsewhere() {
    let origin = Origin::numbering("cache-control: max-age=60");
    let proxy = origin.cached("key: { headers: [x-country] }");
    warm(&proxy, "/");
    let answer = proxy.connect().request("POST / HTTP/1.0\r\ncontent-length: 0\r\n\r\n");
    assert_eq!(answer.status, 200);
    assert!(is_hit(&proxy, "/", ""));
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
    assert!(is_hit(&proxy, "/kept", ""));
}
