//! `GET /api/tap` and `ringway tap`.

use crate::support::{Client, Does, EventReader, Origin, Proxy, eventually};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

fn tap(proxy: &Proxy, query: &str) -> EventReader {
    let mut reader = EventReader::open(proxy, &format!("/api/tap{query}"), None);
    // The first comment has arrived once requests are recorded.
    reader.comment();
    reader
}

/// The head of the answer: a stream that should have been refused would have no end.
fn head(proxy: &Proxy, query: &str) -> String {
    let mut client = Client::connect(proxy.admin);
    client.send(format!("GET /api/tap{query} HTTP/1.1\r\nhost: {}\r\n\r\n", proxy.admin));
    client.head()
}

#[test]
fn a_reader_sees_requests_as_the_access_log_does() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    let mut reader = tap(&proxy, "");
    proxy.get_with("/a?b=1", "user-agent: test");
    let seen = reader.find("request");
    for (name, value) in [
        ("client", "127.0.0.1"),
        ("method", "GET"),
        ("host", "example.com"),
        ("uri", "/a?b=1"),
        ("route", "site"),
        ("pool", "app"),
        ("node", "n0"),
        ("user_agent", "test"),
        ("ended_by", "completed"),
    ] {
        assert_eq!(seen[name], value, "{name} in {seen}");
    }
    for timer in ["duration", "connect", "first_byte"] {
        assert!(seen[timer].as_f64().is_some_and(|seconds| (0.0..10.0).contains(&seconds)), "{timer} in {seen}");
    }
    let owners = proxy.admin_get("/api/pools/app/ring?key=/a?b=1").json();
    assert_eq!(seen["key_hash"], owners["hash"]);
    let place = owners["hash"].as_str().unwrap();
    let by_place = proxy.admin_get(&format!("/api/pools/app/ring?key_hash={place}")).json();
    assert_eq!((&by_place["order"], &by_place["key"]), (&owners["order"], &Value::Null));
}

#[test]
fn filters_choose_requests() {
    let nodes = Origin::several(2);
    let settings = "    outlier_ejection: { consecutive_failures: 1000 }\n    retries: { attempts: 0 }\n";
    let proxy = Proxy::start(&Proxy::pool(&Origin::addresses(&nodes), settings));
    nodes[1].does(Does::Answer(503));
    let (well, ill) = (proxy.paths_of("n0", 3), proxy.paths_of("n1", 2));
    let mut of_status = tap(&proxy, "?status=5xx");
    let mut of_node = tap(&proxy, "?node=n0");
    let mut of_key = tap(&proxy, &format!("?key={}", well[2]));
    let mut of_client = tap(&proxy, "?client=10.0.0.0/8");
    for path in [&well[0], &ill[0], &well[1], &ill[1], &well[2]] {
        proxy.get(path);
    }
    let uris = |reader: &mut EventReader, count: usize| -> Vec<String> {
        (0..count).map(|_| reader.find("request")["uri"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(uris(&mut of_status, 2), ill);
    assert_eq!(uris(&mut of_node, 3), well);
    assert_eq!(uris(&mut of_key, 1), well[2..]);
    // Its first request comes from a trusted network's client: none did so far.
    proxy.signal("TERM");
    assert!(of_client.next().is_none());
    let proxy = Proxy::before(&[nodes[0].address]);
    let many = format!("?status={}", vec!["200"; 33].join(","));
    for bad in [&*many, "?nod=n0", "?status=5", "?min=7", "?sample=2", "?rate=0", "?client=x"] {
        assert!(head(&proxy, bad).starts_with("HTTP/1.1 400 "), "{bad}");
    }
    assert_eq!(proxy.admin_get("/api/tap?nod=n0").problem(), "bad-filter");
}

/// Neither fields with secrets nor hash keys stand in a record, and of the values of a query only beginnings.
#[test]
fn secrets_do_not_appear() {
    let node = Origin::echo();
    let pool = Proxy::pool(&[node.address], "").replace("hash_on: [uri]", "hash_on: [\"header:x-session\"]");
    let proxy = Proxy::start(&pool);
    let mut reader = tap(&proxy, "");
    proxy.admin_get("/api/top?by=key");
    let secret = "0123456789secret";
    proxy.get_with(
        &format!("/a?token={secret}"),
        &format!(
            "authorization: Bearer {secret} | cookie: a={secret} | x-session: {secret} | idempotency-key: {secret}"
        ),
    );
    let seen = reader.find("request").to_string();
    assert!(!seen.contains("secret") && seen.contains("/a?token=0123\u{2026}"), "{seen}");
    let mut top = String::new();
    eventually("the request is counted", || {
        top = proxy.admin_get("/api/top?by=key").text();
        top.contains("\"app ")
    });
    top += &proxy.admin_get("/api/top?by=url").text();
    assert!(!top.contains("secret") && !top.contains("0123456789"), "{top}");
}

#[test]
fn readers_are_bounded_and_a_slow_one_is_told_what_it_lost() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    let mut readers: Vec<EventReader> = (0..16).map(|_| tap(&proxy, "?rate=10")).collect();
    let refused = head(&proxy, "");
    assert!(refused.starts_with("HTTP/1.1 503 ") && refused.contains("retry-after: "), "{refused}");
    assert_eq!(proxy.admin_get("/api/tap").problem(), "too-many-readers");
    let mut client = proxy.connect();
    for _ in 0..200 {
        client.request("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    }
    let (mut seen, mut left_out) = (0, 0);
    while seen + left_out < 200 {
        let event = readers[0].next().unwrap();
        match readers[0].name.as_str() {
            "request" => seen += 1,
            _ => left_out += event["requests"].as_u64().unwrap(),
        }
    }
    assert!(seen + left_out == 200 && seen > 0 && left_out > 0, "{seen} seen, {left_out} left out");
    readers.clear();
    eventually("there is room for a reader", || head(&proxy, "").starts_with("HTTP/1.1 200 "));
}

/// Sixteen readers that read nothing take only the records of one turn.
#[test]
fn readers_that_read_nothing_take_no_memory() {
    let node = Origin::saying("HTTP/1.1 204 No Content\r\n\r\n");
    let proxy = Proxy::before(&[node.address]);
    let _readers: Vec<EventReader> = (0..16).map(|_| tap(&proxy, "?rate=5000")).collect();
    let mut client = proxy.connect();
    let long = "x".repeat(900);
    let request = format!("GET /{long} HTTP/1.1\r\nhost: a\r\n\r\n");
    let mut send = |count: usize| (0..count).for_each(|_| drop(client.request(&request)));
    send(500);
    let before = proxy.memory();
    send(5_000);
    let grown = proxy.memory().saturating_sub(before);
    // All records would be 16 times 5,000 times 1.4 KiB: 109 MiB. A turn, and what a socket takes, are far less.
    assert!(grown < 48 << 20, "{grown} bytes more");
}

#[test]
fn the_command_prints_lines_or_json() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    let run = |arguments: &[&str]| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ringway"))
            .args(["tap", "--admin", &format!("http://{}", proxy.admin), "--count", "1"])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // It has no line before it reads: a request that is too early is not seen, so there are several.
        let line = std::thread::spawn(move || lines.next().unwrap().unwrap());
        eventually("a line", || {
            proxy.get("/seen");
            line.is_finished()
        });
        assert!(child.wait().unwrap().success());
        line.join().unwrap()
    };
    let line = run(&["--path", "/se", "--status", "200"]);
    assert!(line.contains("  200  ") && line.contains("GET example.com/seen  site -> app/n0"), "{line}");
    let json: Value = serde_json::from_str(&run(&["--json"])).unwrap();
    assert_eq!(json["uri"], "/seen");
    let refused = Command::new(env!("CARGO_BIN_EXE_ringway"))
        .args(["tap", "--admin", &format!("http://{}", proxy.admin), "--min", "soon"])
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("for `min`, found `soon`"));
}
