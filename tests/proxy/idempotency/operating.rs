//! What operators see and do: records, releases, explanations, warnings, a store for two.

use super::*;
use crate::support::{Origin, eventually};
use std::process::Command;

#[test]
fn the_records_of_a_key_are_listed_and_never_their_bodies() {
    let origin = charging();
    let proxy = payments(&[origin.address], "");
    assert_eq!(proxy.records("none"), Vec::<serde_json::Value>::new());
    proxy.ask(charge("/pay", "\"a key\"", "secret-card-number"));
    proxy.ask(charge("/other", "\"a key\"", ""));
    proxy.ask(charge("/pay", "another", ""));
    let page = proxy.admin_get("/api/idempotency?key=a%20key");
    assert!(!page.text().contains("secret-card-number") && !page.text().contains("alice"), "{page:?}");
    let records = proxy.records("a+key");
    assert_eq!(records.len(), 2);
    let record = &records[0];
    for (name, value) in [
        ("namespace", "default"),
        ("method", "POST"),
        ("authority", "example.com"),
        ("path", "/pay"),
        ("key", "a key"),
        ("state", "done"),
    ] {
        assert_eq!(record[name], value, "{record}");
    }
    assert_eq!(record["status"], 201);
    assert!(record["age"].as_f64().unwrap() < 60.0 && record["expires_in"].as_f64().unwrap() > 86_000.0);
    assert_eq!((record["id"].as_str().unwrap().len(), record["fingerprint"].as_str().unwrap().len()), (64, 64));
    assert_eq!(proxy.admin_get("/api/idempotency").status, 400);
    let status = proxy.admin_get("/api/status").json();
    assert_eq!(
        (&status["idempotency"]["records"], &status["idempotency"]["requests"]["first"]),
        (&3.into(), &3.into())
    );
}

#[test]
fn an_operator_releases_what_is_unknown() {
    let origin = Origin::start(|ask, peer| match ask.number {
        0 => peer.hang_up(),
        number => peer.reply(200, "", &format!("#{number}")),
    });
    let proxy = payments(&[origin.address], "");
    assert_eq!(proxy.ask(charge("/", "k", "")).problem(), "outcome-unknown");
    let id = proxy.records("k")[0]["id"].as_str().unwrap().to_owned();
    let unknown = || proxy.admin_get("/api/idempotency?state=unknown").json();
    assert_eq!((&unknown()[0]["id"], &unknown()[0]["state"]), (&id.as_str().into(), &"unknown".into()));
    let path = format!("/api/idempotency/{id}");
    assert_eq!(proxy.admin_delete(&path).status, 200);
    assert_eq!(unknown(), serde_json::json!([]), "it is released");
    let is_told = |line: &str| ["released", &id, "by=127.0.0.1"].iter().all(|part| line.contains(part));
    eventually("the release is told", || proxy.log().lines().any(is_told));
    assert_eq!(proxy.admin_delete(&path).problem(), "no-such-record");
    assert_eq!(proxy.admin_delete("/api/idempotency/nonsense").status, 404);
    assert_eq!(proxy.admin_get(&path).status, 405);
    assert_eq!(proxy.admin_post(&path, "").status, 405);
    assert_eq!(proxy.admin_delete("/api/pools").status, 405);
    assert_eq!(proxy.ask(charge("/", "k", "")).text(), "#1", "it runs a second time, as the operator said");
    assert!(is_replay(&proxy.ask(charge("/", "k", ""))));
    assert_eq!(proxy.admin_delete(&path).status, 200, "what is done can be released, too");
    assert!(!is_replay(&proxy.ask(charge("/", "k", ""))));
}

#[test]
fn nobody_releases_a_record_through_a_page_or_the_metrics_listener() {
    let origin = Origin::start(|_, peer| peer.hang_up());
    let text = configuration(&[origin.address], "", "timeouts: { idle: 10s }");
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let metrics = free.local_addr().unwrap();
    drop(free);
    let proxy = Proxy::start(&format!("metrics: {{ address: \"{metrics}\" }}\n{text}"));
    let listeners = proxy.admin_get("/api/status").json()["listeners"].clone();
    let http: SocketAddr = listeners[0]["address"].as_str().unwrap().parse().unwrap();
    let pay = || Client::connect(http).request(charge("/", "k", "")).problem();
    assert_eq!(pay(), "outcome-unknown");
    let id = proxy.records("k")[0]["id"].as_str().unwrap().to_owned();
    let delete = |address: SocketAddr, origin: &str| {
        let head = format!("DELETE /api/idempotency/{id} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n");
        Client::connect(address).request(format!("{head}{origin}\r\n")).status
    };
    assert_eq!(delete(proxy.admin, "origin: http://evil.example\r\n"), 403);
    assert_eq!(delete(metrics, ""), 404);
    assert_eq!(pay(), "outcome-unknown");
    assert_eq!(delete(proxy.admin, ""), 200);
}

#[test]
fn what_runs_cannot_be_released() {
    let gate = Barrier::default();
    let open = gate.clone();
    let origin = Origin::start(move |_, peer| {
        open.wait();
        peer.reply(200, "", "done");
    });
    let proxy = payments(&[origin.address], "");
    let mut client = proxy.connect();
    client.send(charge("/", "k", ""));
    origin.wait_for(1);
    let id = proxy.records("k")[0]["id"].as_str().unwrap().to_owned();
    let answer = proxy.admin_delete(&format!("/api/idempotency/{id}"));
    assert_eq!((answer.status, answer.problem().as_str()), (409, "record-running"));
    gate.open();
    assert_eq!(client.answer().text(), "done");
}

#[test]
fn a_purge_of_the_cache_leaves_records_alone() {
    let origin = charging();
    let proxy = payments(&[origin.address], "");
    proxy.ask(charge("/", "k", ""));
    proxy.purge(r#"{"all": true}"#);
    assert!(is_replay(&proxy.ask(charge("/", "k", ""))));
}

#[test]
fn two_proxies_share_a_file() {
    let (gate, began) = (Barrier::default(), Barrier::default());
    let (open, begin) = (gate.clone(), began.clone());
    let origin = Origin::start(move |ask, peer| {
        if ask.path() == "/slow" {
            begin.open();
            open.wait();
        }
        peer.reply(200, "", &format!("#{}", ask.number));
    });
    let folder = tempfile::tempdir().unwrap();
    let store = format!("idempotency_store: {{ path: {}/s.db }}\n", folder.path().display());
    let pool = "timeouts: { first_byte: 1m }";
    let text = |settings: &str| format!("{store}{}", configuration(&[origin.address], settings, pool));
    let (one, two) = (Proxy::start(&text("")), Proxy::start(&text("")));
    let waiting = Proxy::start(&text("on_concurrent: wait, wait: 20s"));
    let first = one.ask(charge("/fast", "k", ""));
    assert_eq!(seen(&two.ask(charge("/fast", "k", ""))), seen(&first));

    let mut client = one.connect();
    client.send(charge("/slow", "k", ""));
    began.wait();
    assert_eq!(two.ask(charge("/slow", "k", "")).problem(), "request-in-progress");
    let mut waiter = waiting.connect();
    waiter.send(charge("/slow", "k", ""));
    gate.open();
    let answer = client.answer();
    assert_eq!(seen(&waiter.answer()), seen(&answer));
    assert_eq!(origin.asked(), 2);

    let id = two.records("k")[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(two.admin_delete(&format!("/api/idempotency/{id}")).status, 200);
    assert!(!is_replay(&one.ask(charge("/fast", "k", ""))), "what one releases is released for all");
}

#[test]
fn a_proxy_that_died_is_noticed_by_the_other_at_once() {
    let gate = Barrier::default();
    let open = gate.clone();
    let origin = Origin::start(move |_, _| open.wait());
    let folder = tempfile::tempdir().unwrap();
    let store = format!("idempotency_store: {{ path: {}/s.db }}\n", folder.path().display());
    let text = format!("{store}{}", configuration(&[origin.address], "lease: 1h", "timeouts: { first_byte: 1m }"));
    let (one, two) = (Proxy::start(&text), Proxy::start(&text));
    let mut client = one.connect();
    client.send(charge("/", "k", ""));
    origin.wait_for(1);
    assert_eq!(two.ask(charge("/", "k", "")).problem(), "request-in-progress");
    drop(one);
    assert_eq!(two.ask(charge("/", "k", "")).problem(), "outcome-unknown");
    gate.open();
    assert_eq!(origin.asked(), 1);
}

#[test]
fn a_proxy_that_is_stopped_is_silent_and_its_late_result_counts() {
    let gate = Barrier::default();
    let open = gate.clone();
    let origin = Origin::start(move |_, peer| {
        open.wait();
        peer.reply(200, "", "late");
    });
    let folder = tempfile::tempdir().unwrap();
    let store = format!("idempotency_store: {{ path: {}/s.db }}\n", folder.path().display());
    let text = format!("{store}{}", configuration(&[origin.address], "lease: 2s", "timeouts: { first_byte: 1m }"));
    let (one, two) = (Proxy::start(&text), Proxy::start(&text));
    let mut client = one.connect();
    client.send(charge("/", "k", ""));
    origin.wait_for(1);
    // Its heart beats: however long the node works, the claim lives.
    let began = std::time::Instant::now();
    while began.elapsed() < std::time::Duration::from_millis(4500) {
        assert_eq!(two.ask(charge("/", "k", "")).problem(), "request-in-progress");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    // Stopped in the middle of a commit it holds the file, and nobody learns anything: stop it again.
    eventually("the end of the lease", || {
        one.signal("STOP");
        let began = std::time::Instant::now();
        let silent = std::iter::repeat_with(|| two.ask(charge("/", "k", "")).problem())
            .inspect(|_| std::thread::sleep(std::time::Duration::from_millis(50)))
            .take_while(|_| began.elapsed() < std::time::Duration::from_secs(6))
            .any(|problem| problem == "outcome-unknown");
        one.signal("CONT");
        silent
    });
    gate.open();
    let answer = client.answer();
    assert_eq!(answer.text(), "late");
    let again = two.ask(charge("/", "k", ""));
    assert_eq!((is_replay(&again), seen(&again), origin.asked()), (true, seen(&answer), 1));
}

#[test]
fn what_is_held_back_is_bounded() {
    let node = Origin::echo();
    let text = configuration(&[node.address], "max_request: 8MiB, max_response: 8MiB", "timeouts: { idle: 10s }");
    let proxy = Proxy::start(&format!("limits: {{ buffered_bytes: 1MiB }}\n{text}"));
    let answer = proxy.ask(charge("/", "k", &"x".repeat(1 << 20)));
    assert_eq!((answer.status, answer.problem().as_str()), (503, "buffers-full"));
    assert!(answer.field("retry-after").is_some());
    let chunked =
        "POST / HTTP/1.1\r\nhost: a\r\nauthorization: x\r\nidempotency-key: m\r\ntransfer-encoding: chunked\r\n\r\n";
    let piece = format!("40000\r\n{}\r\n", "x".repeat(0x40000));
    let answer = proxy.ask(format!("{chunked}{}", piece.repeat(4)));
    assert_eq!(answer.problem(), "buffers-full");
    assert!(node.requests().is_empty());
    let half = proxy.ask(charge("/", "l", &"x".repeat(300 << 10)));
    assert_eq!(half.status, 200);
    let large = proxy.ask(charge("/", "n", &"x".repeat(600 << 10)));
    assert!(large.status == 200 && large.body.len() > 600 << 10 && !large.truncated, "it is passed on");
    assert_eq!(proxy.ask(charge("/", "n", &"x".repeat(600 << 10))).problem(), "result-too-large");
    eventually("the release of the buffers", || proxy.metric("ringway_buffered_bytes") == 0.0);
}

#[test]
fn an_answer_is_held_back_until_its_client_has_taken_it() {
    let node = Origin::saying(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{}", 8 << 20, "x".repeat(8 << 20)));
    let proxy = payments(&[node.address], "max_response: 8MiB");
    assert_eq!(proxy.ask(charge("/", "k", "")).status, 200);
    eventually("the release of the buffers", || proxy.metric("ringway_buffered_bytes") == 0.0);
    let mut slow = proxy.connect();
    socket2::SockRef::from(&slow.stream).set_recv_buffer_size(64 << 10).unwrap();
    slow.send(charge("/", "k", ""));
    slow.head();
    assert_eq!(proxy.metric("ringway_buffered_bytes"), f64::from(8 << 20));
    assert_eq!(slow.exactly(8 << 20).len(), 8 << 20);
    eventually("the release of the buffers", || proxy.metric("ringway_buffered_bytes") == 0.0);
}

#[test]
fn an_announced_body_takes_no_room_before_it_comes() {
    let origin = charging();
    let text = configuration(&[origin.address], "max_request: 64MiB", "timeouts: { idle: 10s }");
    let proxy = Proxy::start(&format!("limits: {{ buffered_bytes: 8MiB }}\n{text}"));
    let slow: Vec<Client> = (0..20)
        .map(|_| {
            let mut client = proxy.connect();
            let lines = "authorization: x\r\nidempotency-key: slow\r\n";
            client.send(format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 8000000\r\n{lines}\r\nx"));
            client
        })
        .collect();
    eventually("their heads", || proxy.metric("ringway_requests_in_flight") == 20.0);
    assert_eq!(proxy.ask(charge("/", "k", "")).status, 201);
    drop(slow);
}

#[test]
fn the_memory_works_and_forgets() {
    let origin = charging();
    let text = configuration(&[origin.address], "", "timeouts: { idle: 10s }");
    let text = format!("idempotency_store: {{ kind: memory }}\n{text}");
    let proxy = Proxy::start(&text);
    let first = proxy.ask(charge("/", "k", ""));
    assert_eq!(seen(&proxy.ask(charge("/", "k", ""))), seen(&first));
    assert_eq!(proxy.records("k").len(), 1);
    assert!(!proxy.folder().join("data").exists());
    drop(proxy);
    assert!(!is_replay(&Proxy::start(&text).ask(charge("/", "k", ""))));
}

#[test]
fn a_store_opens_only_where_a_route_uses_it() {
    let origin = charging();
    let proxy = Proxy::start(&Proxy::pool(&[origin.address], ""));
    assert!(!proxy.folder().join("data").exists());
    assert_eq!(proxy.admin_get("/api/status").json()["idempotency"], serde_json::Value::Null);
    assert_eq!(proxy.records("k"), Vec::<serde_json::Value>::new());
    let file = proxy.folder().join("ringway.yaml");
    let plain = std::fs::read_to_string(&file).unwrap();
    let with = plain.replace("hash_on: [uri] }", "hash_on: [uri], idempotency: {} }");
    std::fs::write(&file, &with).unwrap();
    assert_eq!(proxy.admin_post("/api/reload", "").status, 200);
    assert_eq!(proxy.ask(charge("/", "k", "")).status, 201);
    assert!(is_replay(&proxy.ask(charge("/", "k", ""))));
    // Another store needs a restart, and says so; the one that is open serves on.
    std::fs::write(&file, format!("idempotency_store: {{ path: other.db }}\n{with}")).unwrap();
    assert!(proxy.admin_post("/api/reload", "").text().contains("a restart is needed for idempotency_store"));
    assert!(is_replay(&proxy.ask(charge("/", "k", ""))));
}

fn run(arguments: &[&str], text: &str) -> (bool, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ringway.yaml");
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringway"));
    let output = command.arg(arguments[0]).arg("--config").arg(&file).args(&arguments[1..]).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

fn file(store: &str, rules: &str) -> String {
    format!(
        "listeners: [{{ name: http, address: \"127.0.0.1:0\" }}]\n{store}pools:\n  app:\n    nodes: [{{ id: a, address: \"127.0.0.1:9\" }}]\nroutes:\n  - {{ name: pay, path_prefix: /, pool: app, idempotency: {{ {rules} }} }}\n"
    )
}

#[test]
fn check_says_what_is_wrong_and_what_is_risky() {
    for (store, rules, expected) in [
        ("", "scope: [uri]", "it does not tell callers apart"),
        ("", "scope: [authorization]", "expected one of cookie:NAME"),
        ("", "methods: [GET]", "expected methods that change something"),
        ("", "scope: [\"header:idempotency-key\"]", "does not tell callers apart"),
        ("", "release_on: [200]", "it would run again"),
        ("", "namespace: \"\"", "expected a namespace"),
        ("", "on_unknown: again", "expected"),
        ("", "leaase: 1s", "did you mean `lease`?"),
        ("idempotency_store: { kind: mysql }\n", "", "expected"),
        ("idempotency_store: { kind: redis }\n", "", "needs `address`"),
    ] {
        let (valid, said) = run(&["check"], &file(store, rules));
        assert!(!valid && said.contains(expected), "{rules}: {said}");
    }
    for (store, rules, expected) in [
        ("idempotency_store: { kind: memory }\n", "", "a restart forgets"),
        ("", "scope: []", "all callers are one"),
        ("", "max_request: 100MiB", "`limits.request_body` allows no more"),
        ("", "methods: []", "for no method at all"),
        ("", "release_on: [502]", "a request may run twice"),
    ] {
        let (valid, said) = run(&["check"], &file(store, rules));
        assert!(valid && said.contains(expected), "{rules}: {said}");
    }
    let (valid, said) = run(&["check"], &file("", ""));
    assert!(valid && !said.contains("warning"), "{said}");
    let keyless = file("", "").replace("pool: app, ", "pool: app, request_headers: { remove: [Idempotency-Key] }, ");
    assert!(run(&["check"], &keyless).1.contains("the node must get the `idempotency-key`"));
    let fixed = file("", "").replace("pool: app, ", "respond: { body: x }, ");
    assert!(run(&["check"], &fixed).1.contains("`idempotency` needs a `pool`"));
}

#[test]
fn explain_shows_the_rules_that_apply() {
    let text = file("", "required: true, on_concurrent: wait");
    let explain = |fields: &[&str]| {
        let mut arguments = vec!["explain", "POST", "http://shop.example/pay"];
        fields.iter().for_each(|field| arguments.extend(["-H", field]));
        run(&arguments, &text).1
    };
    let said = explain(&["Authorization: x", "Idempotency-Key: \"k\""]);
    for expected in ["key `k`", "namespace default", "header:authorization", "waits up to 10s", "kept for 1d"] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    assert!(explain(&["Authorization: x"]).contains("400 idempotency-key-missing"));
    assert!(explain(&["Idempotency-Key: k"]).contains("400 scope-missing"));
    assert!(explain(&["Authorization: x", "Idempotency-Key: a;b"]).contains("400 idempotency-key-invalid"));
    let get = run(&["explain", "GET", "http://shop.example/pay"], &text).1;
    assert!(get.contains("idempotency not for GET") || get.contains("not for GET"), "{get}");
}

#[test]
fn the_access_log_tells_what_became_of_the_key() {
    let origin = charging();
    let text = configuration(&[origin.address], "", "timeouts: { idle: 10s }");
    let proxy = Proxy::start(&format!("access_log: {{ format: json }}\n{text}"));
    proxy.ask(charge("/", "k", ""));
    proxy.ask(charge("/", "k", ""));
    proxy.ask(charge("/", "k", "x"));
    eventually("the lines", || proxy.output().lines().count() == 3);
    let output = proxy.output();
    let mut results: Vec<String> = output
        .lines()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["idempotency"].as_str().unwrap().to_owned()
        })
        .collect();
    results.sort();
    assert_eq!(results, ["first", "mismatch", "replayed"]);
}
