//! Which requests a stored response answers (RFC 9110 12.5.5), and how many variants of a URI are kept.

use super::{is_hit, settled};
use crate::support::http2::Http2;
use crate::support::{Origin, eventually};

#[test]
fn a_response_that_varies_is_not_given_to_a_request_that_differs() {
    let origin = Origin::start(|ask, peer| {
        let vary = ask.path().trim_start_matches('/').to_owned();
        peer.reply(200, &format!("cache-control: max-age=60 | vary: {vary}"), &format!("#{}", ask.number));
    });
    let proxy = origin.cached("");
    for (field, stored, asked, is_same) in [
        ("origin", ",https://shop.example", "https://shop.example", false),
        ("x-tenant", "acme,", "acme", false),
        ("x-tenant", "a, , b", "a, b", false),
        ("x-list", "\"Foo, Bar\"", "\"Foo,Bar\"", false),
        ("cookie", "a=1,,2", "a=1,2", false),
        ("cookie", "a=1, 2", "a=1,2", false),
        ("authorization", "Basic a, b", "Basic a,b", false),
        ("accept-language", "d e", "de", false),
        ("accept-language", "de;q=x", "de", false),
        ("accept", "a/b;profile=\"X\"", "a/b;profile=\"x\"", false),
        ("accept", "a/b;profile=\"a, b\"", "a/b;profile=\"a,b\"", false),
        ("x-list", "1,2", " 1 , 2 ", true),
        ("x-list", "\"Foo, Bar\",x", "\"Foo, Bar\" , x", true),
        ("accept-language", "en, de;q=0.50", "DE; q=0.5,,en", true),
        ("accept", "a/b;q=1.0;v=1", "a/b;v=1", true),
        ("cookie", "a=1; b=2", "a=1; b=2", true),
    ] {
        proxy.purge(r#"{"all": true}"#);
        let path = format!("/{field}");
        let first = proxy.get_with(&path, &format!("{field}: {stored}")).text();
        settled(&proxy);
        let second = proxy.get_with(&path, &format!("{field}: {asked}")).text();
        assert_eq!(second == first, is_same, "{field}: {stored} and {asked}");
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
    eventually("a hit", || is_hit(&proxy, "/", ""));
    assert_eq!(proxy.get_with("/", "accept-language: de").text(), "de");
    // What is refused on a miss is refused on a hit.
    let refused = proxy.connect().request("GET / HTTP/1.1\r\nhost: example.com\r\nconnection: host\r\n\r\n");
    assert_eq!((refused.status, refused.problem().as_str()), (400, "bad-connection-option"));
}
