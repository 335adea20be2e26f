//! What clients get from the store: age, status, conditions, staleness, variants, keys, limits.

use crate::support::{Barrier, Origin, Proxy, eventually, warm};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

#[test]
fn a_hit_tells_its_age_and_what_the_cache_did() {
    let origin = Origin::numbering("cache-control: max-age=100 | age: 30 | content-type: text/plain");
    let proxy = origin.cached("");
    let first = proxy.get("/a");
    assert_eq!(first.field("cache-status").as_deref(), Some("ringway; fwd=uri-miss; stored"));
    assert_eq!(first.field("age").as_deref(), Some("30"));
    warm(&proxy, "/a");
    let hit = proxy.get("/a");
    assert_eq!(hit.text(), "#0");
    assert_eq!(hit.field("content-type").as_deref(), Some("text/plain"));
    let (age, status) = (hit.field("age").unwrap(), hit.field("cache-status").unwrap());
    assert!(["30", "31", "32", "33"].contains(&age.as_str()), "{age}");
    assert!(
        ["ringway; hit; ttl=70", "ringway; hit; ttl=69", "ringway; hit; ttl=68"].contains(&status.as_str()),
        "{status}"
    );
    assert_eq!(origin.asked(), 1);
    assert!(proxy.metric("ringway_cache_requests_total{result=\"hit\",route=\"site\"}") >= 1.0);
    assert_eq!(proxy.metric("ringway_cache_requests_total{result=\"miss\",route=\"site\"}"), 1.0);
    assert!(proxy.metric("ringway_cache_entries") >= 1.0 && proxy.metric("ringway_cache_bytes") > 100.0);
}

#[test]
fn the_upstream_cache_status_is_kept_on_a_miss_only() {
    let origin = Origin::numbering("cache-control: max-age=60 | cache-status: inner; hit");
    let proxy = origin.cached("");
    assert_eq!(proxy.get("/").field("cache-status").as_deref(), Some("inner; hit|ringway; fwd=uri-miss; stored"));
    warm(&proxy, "/");
    assert!(proxy.get("/").field("cache-status").unwrap().starts_with("ringway; hit"));
}

#[test]
fn conditions_are_answered_from_the_store() {
    let origin = Origin::numbering(
        "cache-control: max-age=60 | etag: W/\"e\" | last-modified: Sun, 06 Nov 1994 08:49:37 GMT | content-type: text/plain",
    );
    let proxy = origin.cached("");
    warm(&proxy, "/");
    for (clause, condition, status) in [
        ("9110 13.1.2 weak comparison", "if-none-match: \"e\"", 304),
        ("9110 13.1.2 a list", "if-none-match: \"x\", W/\"e\", \"y\"", 304),
        ("9110 13.1.2 two lines", "if-none-match: \"x\" | if-none-match: \"e\"", 304),
        ("9110 13.1.2 any", "if-none-match: *", 304),
        ("9110 13.1.2 another", "if-none-match: \"x\"", 200),
        (
            "9110 13.2.2 before If-Modified-Since",
            "if-none-match: \"x\" | if-modified-since: Sun, 06 Nov 1994 08:49:37 GMT",
            200,
        ),
        ("9110 13.1.3 the same", "if-modified-since: Sun, 06 Nov 1994 08:49:37 GMT", 304),
        ("9110 13.1.3 another format", "if-modified-since: Sunday, 06-Nov-94 08:49:37 GMT", 304),
        ("9110 13.1.3 later", "if-modified-since: Mon, 07 Nov 1994 08:49:37 GMT", 304),
        ("9110 13.1.3 earlier", "if-modified-since: Sat, 05 Nov 1994 08:49:37 GMT", 200),
        ("9110 13.1.3 no date", "if-modified-since: yesterday", 200),
        ("9111 4.3.2 If-Match is the origin's", "if-match: \"x\"", 200),
        ("9111 4.3.2 If-Unmodified-Since too", "if-unmodified-since: Sat, 05 Nov 1994 08:49:37 GMT", 200),
    ] {
        let answer = proxy.get_with("/", condition);
        assert_eq!(answer.status, status, "{clause}");
        assert_eq!(answer.field("etag").as_deref(), Some("W/\"e\""), "{clause}");
        assert_eq!(answer.field("content-type").is_some(), status == 200, "9110 15.4.5 {clause}");
    }
    assert_eq!(origin.asked(), 1);
}

#[test]
fn a_condition_on_a_miss_fetches_the_whole_for_everybody() {
    let origin = Origin::numbering("cache-control: max-age=60 | etag: \"e\"");
    let proxy = origin.cached("");
    assert_eq!(proxy.get_with("/", "if-none-match: \"e\"").status, 304);
    assert!(origin.last().field("if-none-match").is_none());
    eventually("a hit", || proxy.get("/").field("age").is_some());
    assert_eq!((proxy.get("/").text().as_str(), origin.asked()), ("#0", 1));
}

#[test]
fn a_stale_response_is_served_while_one_request_validates_it() {
    let (gate, validating) = (Barrier::default(), Barrier::default());
    let (open, began) = (gate.clone(), validating.clone());
    let origin = Origin::start(move |ask, peer| match ask.field("if-none-match") {
        None => peer.reply(200, "cache-control: max-age=0, stale-while-revalidate=60 | etag: \"e\"", "old"),
        Some(_) => {
            began.open();
            open.wait();
            peer.reply(200, "cache-control: max-age=60 | etag: \"f\"", "new");
        }
    });
    let proxy = origin.cached("");
    proxy.get("/");
    eventually("a stale answer", || proxy.get("/").field("age").is_some());
    validating.wait();
    for _ in 0..20 {
        let stale = proxy.get("/");
        assert_eq!(stale.text(), "old");
        assert!(stale.field("cache-status").unwrap().starts_with("ringway; hit; ttl=-"), "{stale:?}");
    }
    assert_eq!(origin.asked(), 2, "one validation at a time");
    gate.open();
    eventually("the new response", || proxy.get("/").text() == "new");
    assert_eq!(origin.asked(), 2);
    assert!(proxy.metric("ringway_cache_requests_total{result=\"stale\",route=\"site\"}") >= 20.0);
}

#[test]
fn a_stale_response_stands_in_for_a_node_that_fails() {
    for (what, fails) in [("500", 500), ("503", 503), ("a closed connection", 0)] {
        let origin = Origin::start(move |ask, peer| match (ask.number, fails) {
            (0, _) => peer.reply(200, "cache-control: max-age=1 | etag: \"e\"", "good"),
            (_, 0) => peer.hang_up(),
            (_, status) => peer.reply(status, "", "bad"),
        });
        let proxy = origin.cached("");
        proxy.get("/");
        eventually("a stand-in", || {
            let answer = proxy.get("/");
            assert_eq!((answer.status, answer.text().as_str()), (200, "good"), "{what}");
            answer.field("cache-status").unwrap().contains("detail=stale-if-error")
        });
        // The failing node is not asked for every request.
        let asked = origin.asked();
        for _ in 0..50 {
            assert_eq!(proxy.get("/").text(), "good", "{what}");
        }
        assert!(origin.asked() <= asked + 4, "{what}: {} more", origin.asked() - asked);
    }
}

#[test]
fn a_stale_response_stands_in_for_a_node_that_is_silent_or_gone() {
    let gate = Barrier::default();
    let open = gate.clone();
    let origin = Origin::start(move |ask, peer| match ask.number {
        0 => {
            peer.reply(200, "cache-control: max-age=1 | etag: \"e\" | connection: close", "good");
            peer.hang_up();
        }
        _ => {
            open.wait();
            peer.hang_up();
        }
    });
    let text = origin.configuration("").replace("    nodes:", "    timeouts: { first_byte: 200ms }\n    nodes:");
    let proxy = Proxy::start(&text);
    let stands_in = || {
        let answer = proxy.get("/");
        assert_eq!((answer.status, answer.text().as_str()), (200, "good"));
        answer.field("cache-status").unwrap().contains("detail=stale-if-error")
    };
    proxy.get("/");
    eventually("a stand-in for a node that times out", stands_in);
    gate.open();
    let address = origin.address;
    drop(origin);
    eventually("the end of the node", || std::net::TcpStream::connect(address).is_err());
    let refused = "ringway_upstream_requests_total{node=\"n0\",outcome=\"connection_refused\",pool=\"app\"}";
    eventually("a stand-in for a node that refuses", || stands_in() && proxy.metric(refused) >= 1.0);
}

#[test]
fn nothing_stands_in_where_it_is_forbidden() {
    for said in
        ["max-age=1, must-revalidate", "max-age=1, proxy-revalidate", "s-maxage=1", "max-age=1, stale-if-error=0"]
    {
        let fields = format!("cache-control: {said} | etag: \"e\"");
        let origin = Origin::telling(&[(200, &fields, "good"), (503, "", "bad")]);
        let proxy = origin.cached("");
        proxy.get("/");
        eventually("the failure", || proxy.get("/").status == 503);
        assert_eq!(proxy.get("/").text(), "bad", "9111 4.2.4 {said}");
    }
    let origin = Origin::telling(&[(200, "cache-control: no-cache | etag: \"e\"", "good"), (503, "", "bad")]);
    let proxy = origin.cached("");
    proxy.get("/");
    eventually("the failure", || proxy.get("/").status == 503);
}

#[test]
fn variants_live_side_by_side_and_are_bounded() {
    let origin = Origin::start(|ask, peer| {
        let language = ask.field("accept-language").unwrap_or("none").to_owned();
        peer.reply(200, "cache-control: max-age=60 | vary: accept-language", &language);
    });
    let proxy = origin.cached("");
    let get = |language: &str| proxy.get_with("/", &format!("accept-language: {language}"));
    for language in ["de", "fr", "en, de"] {
        assert_eq!(get(language).text(), language);
    }
    for language in ["de", "fr", "DE ,  en"] {
        eventually("a hit", || get(language).field("age").is_some());
    }
    assert_eq!(get("es").field("cache-status").as_deref(), Some("ringway; fwd=vary-miss; stored"));
    for number in 0..100 {
        get(&format!("x-{number}"));
    }
    eventually("a hit on the newest", || get("x-99").field("age").is_some());
    assert!(get("x-0").field("age").is_none(), "variants that nobody has asked for again have gone");
    assert!(proxy.metric("ringway_cache_entries") < 10.0);
}

#[test]
fn keys_are_what_the_route_says() {
    let origin = Origin::start(|ask, peer| peer.reply(200, "cache-control: max-age=60", ask.path()));
    let proxy = origin
        .cached("key: { ignore_query: [\"utm_*\", ref], sort_query: true, headers: [x-country], cookies: [lang] }");
    let first = proxy.get("/a?utm_source=x&b=1&c=2");
    assert_eq!(first.text(), "/a?utm_source=x&b=1&c=2", "ignored parameters are still forwarded");
    warm(&proxy, "/a?utm_source=x&b=1&c=2");
    let asked = origin.asked();
    for same in ["/a?b=1&c=2", "/a?c=2&b=1&utm_id=7", "/%61?ref=9&c=2&b=1", "/x/../a?b=1&c=2"] {
        assert!(proxy.get(same).field("age").is_some(), "{same}");
    }
    assert!(proxy.get_with("/a?b=1&c=2", "host: EXAMPLE.com.:80").field("age").is_some());
    assert!(proxy.get_with("/a?b=1&c=2", "cookie: other=1").field("age").is_some());
    assert_eq!(origin.asked(), asked);
    for (path, fields) in [
        ("/a?b=1&c=3", ""),
        ("/a?b=1", ""),
        ("/a", ""),
        ("/a?b=1&c=2", "host: example.org"),
        ("/a?b=1&c=2", "host: example.com:8080"),
        ("/a?b=1&c=2", "x-country: de"),
        ("/a?b=1&c=2", "cookie: lang=de"),
    ] {
        assert!(proxy.get_with(path, fields).field("age").is_none(), "{path} {fields}");
    }
}

#[test]
fn what_is_too_large_streams_through_unstored() {
    let big = "x".repeat(200_000);
    let (known, unknown) = (big.clone(), big.clone());
    let origin = Origin::start(move |ask, peer| {
        match ask.path() {
        "/known" => peer.reply(200, "cache-control: max-age=60", &known),
        _ => peer.send(format!(
            "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{unknown}\r\n0\r\n\r\n",
            unknown.len()
        )),
    }
    });
    let proxy = origin.cached("max_object: 100KiB");
    for path in ["/known", "/unknown"] {
        for _ in 0..3 {
            let answer = proxy.get(path);
            assert!(answer.text() == big && !answer.truncated, "{path}");
            assert!(answer.field("age").is_none(), "{path}");
        }
    }
    assert_eq!(origin.asked(), 6);
}

#[test]
fn the_affinity_cookie_never_enters_the_store() {
    let origin = Origin::numbering("cache-control: max-age=60");
    let settings = origin.configuration("").replace("hash_on: [uri],", "affinity_cookie: { name: session },");
    let proxy = Proxy::start(&settings);
    assert_eq!(proxy.get("/").field("set-cookie"), None);
    warm(&proxy, "/");
    assert_eq!(proxy.get("/").field("set-cookie"), None);
}

#[test]
fn set_cookie_is_stored_where_the_route_says_so() {
    let origin = Origin::numbering("cache-control: max-age=60 | set-cookie: a=b");
    let proxy = origin.cached("store_set_cookie: true");
    warm(&proxy, "/");
    assert_eq!(proxy.get("/").field("set-cookie").as_deref(), Some("a=b"));
}

#[test]
fn fields_of_the_route_are_set_on_hits_too() {
    let origin = Origin::numbering("cache-control: max-age=60 | server: x");
    let settings = origin
        .configuration("")
        .replace("hash_on: [uri],", "hash_on: [uri], response_headers: { set: { x-edge: \"1\" }, remove: [server] },");
    let proxy = Proxy::start(&settings);
    warm(&proxy, "/");
    let hit = proxy.get("/");
    assert_eq!((hit.field("x-edge").as_deref(), hit.field("server")), (Some("1"), None));
}

#[test]
fn the_contents_survive_a_reload() {
    let origin = Origin::numbering("cache-control: max-age=60");
    let proxy = origin.cached("");
    warm(&proxy, "/");
    let file = proxy.folder().join("ringway.yaml");
    let text = std::fs::read_to_string(&file).unwrap().replace("cache: {  }", "cache: { default_ttl: 5s }");
    std::fs::write(&file, text).unwrap();
    eventually("the reload", || proxy.admin_get("/api/config").text().contains("\"default_ttl\": \"5s\""));
    assert!(proxy.get("/").field("age").is_some());
    assert_eq!(origin.asked(), 1);
}

#[test]
fn another_size_of_memory_waits_for_a_restart() {
    let origin = Origin::numbering("cache-control: max-age=60");
    let proxy = origin.cached("");
    warm(&proxy, "/");
    let file = proxy.folder().join("ringway.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("cache: {{ memory: 1GiB }}\n{text}")).unwrap();
    let wanted = serde_json::json!(["cache.memory"]);
    eventually("the reload", || proxy.admin_get("/api/status").json()["last_reload"]["needs_restart"] == wanted);
    assert!(proxy.get("/").field("age").is_some());
}

#[test]
fn memory_holds_under_a_churn_of_mixed_sizes() {
    let served = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&served);
    let node = Origin::by_connection(move |peer| {
        while let Some(head) = peer.request() {
            let number: usize = head.split(' ').nth(1).unwrap()[1..].parse().unwrap();
            let size = [100, 3_000, 40_000, 900_000][number % 4];
            counter.fetch_add(size, Ordering::SeqCst);
            peer.reply(200, "cache-control: max-age=600", &"x".repeat(size));
        }
    });
    let memory = 32 << 20;
    let text = Proxy::pool(&[node.address], "").replace("hash_on: [uri] }", "hash_on: [uri], cache: {} }");
    let proxy = Proxy::start(&format!("cache: {{ memory: 32MiB }}\n{text}"));
    proxy.get("/0");
    let before = proxy.memory();
    let mut client = proxy.connect();
    for number in 0..1_600 {
        client.request(format!("GET /{number} HTTP/1.1\r\nhost: a\r\n\r\n"));
        if number % 100 == 99 {
            let bytes = proxy.metric("ringway_cache_bytes");
            assert!(bytes <= f64::from(memory) * 1.1, "{bytes} bytes after {number}");
        }
    }
    assert!(served.load(Ordering::SeqCst) > 300 << 20);
    assert!(proxy.metric("ringway_cache_bytes") > f64::from(memory) * 0.8);
    assert!(proxy.metric("ringway_cache_evictions_total") > 100.0);
    let grown = proxy.memory().saturating_sub(before);
    assert!(grown < (memory as u64) * 3 / 2, "{} MiB more", grown >> 20);
}

#[test]
fn status_tells_of_the_cache() {
    let origin = Origin::numbering("cache-control: max-age=60");
    let proxy = origin.cached("");
    warm(&proxy, "/");
    proxy.purge(r#"{"tag": "x"}"#);
    let cache = proxy.admin_get("/api/status").json()["cache"].clone();
    assert_eq!((&cache["memory"], &cache["evictions"]), (&(512 << 20).into(), &0.into()));
    assert!(cache["bytes"].as_u64() > Some(100) && cache["entries"].as_u64() >= Some(1), "{cache}");
    assert!(cache["requests"]["hit"].as_u64() >= Some(1) && cache["requests"]["miss"] == 1, "{cache}");
    assert_eq!(cache["purges"]["tag"], 1);
    let admin = format!("http://{}", proxy.admin);
    let status = std::process::Command::new(env!("CARGO_BIN_EXE_ringway")).args(["status", "--admin", &admin]).output();
    let said = String::from_utf8_lossy(&status.unwrap().stdout).into_owned();
    assert!(said.contains("cache   ") && said.contains("of 512 MiB"), "{said}");
    assert_eq!(proxy.admin_get("/api/config").json()["routes"][0]["cache"]["lock_timeout"], "5s");
}

#[test]
fn explain_shows_the_rules_of_the_cache() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ringway.yaml");
    let cache = "cache: { key: { ignore_query: [\"utm_*\"], headers: [x-country] }, default_ttl: 5s } }";
    let text = Proxy::pool(&["127.0.0.1:1".parse().unwrap()], "")
        .replace("hash_on: [uri] }", &format!("hash_on: [uri], {cache}"));
    std::fs::write(&file, format!("listeners: [{{ name: http, address: \"127.0.0.1:8080\" }}]\n{text}")).unwrap();
    let explain = |arguments: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_ringway"))
            .args(["explain", "--config"])
            .arg(&file)
            .args(arguments)
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let said = explain(&["GET", "http://A.example:80/x?utm_a=1&b=2", "-H", "Cookie: a=b"]);
    for expected in [
        "cache        http://a.example/x?b=2, field x-country, then by Vary",
        "bodies up to 8MiB; the request's Cache-Control is ignored",
        "fresh 5s, negative 0s, stale-while-revalidate 0s, stale-if-error 1h",
        "has a Cookie: stored only with a freshness of its own",
    ] {
        assert!(said.contains(expected), "missing: {expected}\nin: {said}");
    }
    assert!(explain(&["POST", "http://a.example/x"]).contains("cache        not for POST; if it succeeds"));
}

#[test]
fn the_log_tells_what_the_cache_did() {
    let origin = Origin::numbering("cache-control: max-age=60");
    let proxy = Proxy::start(&format!("access_log: {{ format: json }}\n{}", origin.configuration("")));
    warm(&proxy, "/");
    proxy.send("POST", "/other", "content-length: 0");
    for result in ["\"cache\":\"miss\"", "\"cache\":\"hit\"", "\"cache\":\"bypass\""] {
        eventually(result, || proxy.output().contains(result));
    }
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
fn a_head_of_nothing_has_no_length() {
    let origin = Origin::telling(&[(204, "cache-control: max-age=60", "")]);
    let proxy = origin.cached("");
    warm(&proxy, "/");
    assert_eq!(proxy.send("HEAD", "/", "").field("content-length"), None);
}
