//! The contract's table, row by row.

use super::*;
use crate::support::{Origin, eventually};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

#[test]
fn the_first_is_forwarded_with_its_key_and_repetitions_are_replayed() {
    let origin = charging();
    let proxy = payments(&[origin.address], "");
    let first = proxy.ask(charge("/pay?a=1", "\"k 1\"", "amount=5"));
    assert_eq!((first.status, first.text().as_str()), (201, "charge 0"));
    assert_eq!(first.field("idempotent-replayed"), None);
    assert_eq!(origin.last().field("idempotency-key"), Some("\"k 1\""));
    for _ in 0..3 {
        let again = proxy.ask(charge("/pay?a=1", "\"k 1\"", "amount=5"));
        assert!(is_replay(&again));
        assert_eq!(seen(&again), seen(&first), "byte for byte");
    }
    assert_eq!(origin.asked(), 1);
    assert_eq!((proxy.idempotency("first"), proxy.idempotency("replayed")), (1.0, 3.0));
    assert_eq!(proxy.metric("ringway_idempotency_records"), 1.0);
    assert!(proxy.metric("ringway_idempotency_store_duration_seconds_count{op=\"claim\"}") >= 4.0);
}

#[test]
fn a_repetition_while_the_first_runs_gets_409() {
    let (origin, began, gate) = held(|peer| peer.reply(200, "", "late"));
    let proxy = payments(&[origin.address], "");
    let mut first = proxy.connect();
    first.send(charge("/", "k", ""));
    began.wait();
    let second = proxy.ask(charge("/", "k", ""));
    assert_eq!((second.status, second.problem().as_str()), (409, "request-in-progress"));
    assert!(second.field("retry-after").is_some());
    assert_eq!(proxy.records("k")[0]["state"], "running");
    gate.open();
    assert_eq!(first.answer().text(), "late");
    assert!(is_replay(&proxy.ask(charge("/", "k", ""))));
    assert_eq!((origin.asked(), proxy.idempotency("conflict")), (1, 1.0));
}

#[test]
fn with_wait_the_repetition_gets_the_result() {
    let (origin, began, gate) = held(|peer| peer.reply(200, "", "late"));
    let proxy = payments(&[origin.address], "on_concurrent: wait");
    let mut first = proxy.connect();
    first.send(charge("/", "k", ""));
    began.wait();
    let mut others: Vec<Client> = (0..5).map(|_| proxy.connect()).collect();
    for client in &mut others {
        client.send(charge("/", "k", ""));
    }
    assert_eq!(proxy.ask(charge("/", "k", "other")).problem(), "idempotency-key-reused", "who waits must ask the same");
    gate.open();
    let answer = first.answer();
    for client in &mut others {
        let waited = client.answer();
        assert!(is_replay(&waited));
        assert_eq!(seen(&waited), seen(&answer));
    }
    assert_eq!(origin.asked(), 1);
}

#[test]
fn with_wait_it_waits_only_so_long() {
    let gate = Barrier::default();
    let open = gate.clone();
    let origin = Origin::start(move |_, _| open.wait());
    let proxy = payments(&[origin.address], "on_concurrent: wait, wait: 50ms");
    let mut first = proxy.connect();
    first.send(charge("/", "k", ""));
    origin.wait_for(1);
    assert_eq!(proxy.ask(charge("/", "k", "")).problem(), "request-in-progress");
    gate.open();
}

#[test]
fn who_waits_learns_that_the_outcome_is_unknown() {
    let (origin, began, gate) = held(|peer| peer.hang_up());
    let proxy = payments(&[origin.address], "on_concurrent: wait");
    let (mut first, mut waiter) = (proxy.connect(), proxy.connect());
    first.send(charge("/", "k", ""));
    began.wait();
    waiter.send(charge("/", "k", ""));
    eventually("the wait", || proxy.metric("ringway_requests_in_flight") == 2.0);
    gate.open();
    assert_eq!([first.answer().problem(), waiter.answer().problem()], ["outcome-unknown", "outcome-unknown"]);
    assert_eq!(origin.asked(), 1);
}

#[test]
fn who_waits_runs_when_the_first_is_released_with_all_its_time() {
    let (gate, began) = (Barrier::default(), Barrier::default());
    let (open, begin) = (gate.clone(), began.clone());
    let origin = Origin::start(move |ask, peer| match ask.number {
        0 => {
            begin.open();
            open.wait();
            peer.reply(429, "", "later");
        }
        _ => peer.reply(200, "", "ran"),
    });
    let text = configuration(&[origin.address], "on_concurrent: wait", "timeouts: { total: 1s }");
    let proxy = Proxy::start(&format!("limits: {{ header_timeout: 800ms }}\n{text}"));
    let (mut first, mut waiter) = (proxy.connect(), proxy.connect());
    first.send(charge("/", "k", ""));
    began.wait();
    waiter.send(charge("/", "k", ""));
    eventually("the wait", || proxy.metric("ringway_requests_in_flight") == 2.0);
    proxy.header_timeout_passes();
    gate.open();
    assert_eq!(first.answer().status, 429);
    // A second after it came, and it has not run for that long: the time is the node's.
    assert_eq!(waiter.answer().text(), "ran");
}

#[test]
fn the_same_key_for_another_request_gets_422() {
    let origin = charging();
    let proxy = payments(&[origin.address], "");
    let with = |query: &str, content_type: &str, body: &str| {
        let lines = format!("authorization: Bearer alice\r\nidempotency-key: k\r\n{content_type}");
        proxy.ask(request("POST", &format!("/pay{query}"), &lines, body))
    };
    let json = "content-type: application/json\r\n";
    assert_eq!(with("?a=1", json, "{\"n\":1}").status, 201);
    for (query, content_type, body) in [
        ("?a=2", json, "{\"n\":1}"),
        ("", json, "{\"n\":1}"),
        ("?a=1", json, "{\"n\":2}"),
        ("?a=1", json, ""),
        ("?a=1", "content-type: application/json;charset=utf-8\r\n", "{\"n\":1}"),
        ("?a=1", "", "{\"n\":1}"),
    ] {
        let answer = with(query, content_type, body);
        assert_eq!((answer.status, answer.problem().as_str()), (422, "idempotency-key-reused"), "{query} {body}");
        assert_eq!(answer.field("retry-after"), None);
    }
    assert!(is_replay(&with("?a=1", json, "{\"n\":1}")));
    assert_eq!((origin.asked(), proxy.idempotency("mismatch")), (1, 6.0));
}

#[test]
fn a_missing_key_is_refused_only_where_it_is_required() {
    let origin = charging();
    let keyless = || request("POST", "/", "authorization: Bearer alice\r\n", "x");
    let proxy = payments(&[origin.address], "required: true");
    let answer = proxy.ask(keyless());
    assert_eq!((answer.status, answer.problem().as_str()), (400, "idempotency-key-missing"));
    assert_eq!((origin.asked(), proxy.idempotency("missing")), (0, 1.0));
    assert_eq!(proxy.get("/").status, 201, "other methods are not concerned");
    let lenient = payments(&[origin.address], "");
    assert_eq!([lenient.ask(keyless()).text(), lenient.ask(keyless()).text()], ["charge 1", "charge 2"]);
}

#[test]
fn fields_that_are_no_key_are_refused() {
    let origin = charging();
    let proxy = payments(&[origin.address], "");
    let long = format!("idempotency-key: {}\r\n", "k".repeat(256));
    for lines in [
        "idempotency-key:\r\n",
        "idempotency-key: \"\"\r\n",
        "idempotency-key: a b\r\n",
        "idempotency-key: a;b=1\r\n",
        "idempotency-key: \"a\";b=1\r\n",
        "idempotency-key: a, b\r\n",
        "idempotency-key: \"a\r\n",
        "idempotency-key: a\r\nidempotency-key: a\r\n",
        &long,
    ] {
        let answer = proxy.ask(request("POST", "/", &format!("authorization: Bearer alice\r\n{lines}"), ""));
        assert_eq!((answer.status, answer.problem().as_str()), (400, "idempotency-key-invalid"), "{lines}");
    }
    let hidden = "authorization: Bearer alice\r\nidempotency-key: k\r\nconnection: idempotency-key\r\n";
    assert_eq!(proxy.ask(request("POST", "/", hidden, "")).status, 400, "a key is not about the connection");
    assert_eq!((origin.asked(), proxy.idempotency("invalid")), (0, 9.0));
}

#[test]
fn where_nothing_was_sent_the_key_is_released() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = closed.local_addr().unwrap();
    drop(closed);
    let proxy = payments(&[address], "");
    for _ in 0..2 {
        let answer = proxy.ask(charge("/", "k", ""));
        assert_eq!((answer.status, answer.problem().as_str()), (502, "upstream-failed"));
    }
    assert!(proxy.records("k").is_empty());
    assert_eq!(proxy.idempotency("first"), 2.0);
}

#[test]
fn a_node_that_refuses_is_followed_by_the_next() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = closed.local_addr().unwrap();
    drop(closed);
    let origin = charging();
    let proxy = payments(&[address, origin.address], "");
    for number in 0..8 {
        let answer = proxy.ask(charge(&format!("/{number}"), "k", ""));
        assert_eq!(answer.status, 201);
        assert_eq!(seen(&proxy.ask(charge(&format!("/{number}"), "k", ""))), seen(&answer));
    }
    assert_eq!(origin.asked(), 8);
}

#[test]
fn statuses_that_say_that_nothing_was_done_release_the_key() {
    for (status, settings, stored) in [
        (425, "", false),
        (429, "", false),
        (503, "", true),
        (503, "release_on: [503]", false),
        (502, "release_on: [502]", false),
        (429, "release_on: []", true),
    ] {
        let origin = Origin::start(move |ask, peer| peer.reply(status, "retry-after: 7", &format!("#{}", ask.number)));
        let proxy = payments(&[origin.address], settings);
        let answers = [proxy.ask(charge("/", "k", "")), proxy.ask(charge("/", "k", ""))];
        let last = if stored { "#0" } else { "#1" };
        assert_eq!(answers.each_ref().map(|answer| answer.status), [status, status]);
        assert_eq!(answers.each_ref().map(|answer| answer.text()), ["#0", last], "{status} {settings}");
        assert_eq!(answers[1].field("retry-after").as_deref(), Some("7"));
        assert_eq!(proxy.records("k").len(), usize::from(stored));
    }
}

#[test]
fn a_408_before_the_whole_request_was_written_releases_the_key() {
    // It answers by the head alone, and takes no more: the body is more than the kernel holds.
    let node = Origin::by_connection(|peer| {
        socket2::SockRef::from(&peer.client.stream).set_recv_buffer_size(4096).unwrap();
        peer.request();
        peer.reply(408, "connection: close", "too slow");
        std::thread::park_timeout(crate::support::PATIENCE);
    });
    let proxy = payments(&[node.address], "max_request: 64MiB");
    let body = "x".repeat(32 << 20);
    let answer = proxy.ask(charge("/", "k", &body));
    assert_eq!((answer.status, answer.text().as_str()), (408, "too slow"));
    assert!(proxy.records("k").is_empty());

    let origin = Origin::start(|_, peer| peer.reply(408, "", "whole"));
    let proxy = payments(&[origin.address], "");
    assert_eq!(proxy.ask(charge("/", "k", "body")).status, 408);
    assert!(is_replay(&proxy.ask(charge("/", "k", "body"))), "after the whole request it is an answer like others");
}

#[test]
fn any_other_answer_is_stored() {
    for status in [200, 201, 204, 301, 303, 400, 401, 403, 404, 409, 422, 500, 501, 503] {
        let origin = Origin::start(move |ask, peer| peer.reply(status, "x-a: b", &format!("#{}", ask.number)));
        let proxy = payments(&[origin.address], "");
        let first = proxy.ask(charge("/", "k", "body"));
        let again = proxy.ask(charge("/", "k", "body"));
        assert!(is_replay(&again), "{status}");
        assert_eq!((first.status, seen(&again)), (status, seen(&first)));
        assert_eq!(origin.asked(), 1);
    }
}

/// What a node does to a request that it has read, or not.
fn misbehaviours() -> Vec<(&'static str, Origin)> {
    vec![
        (
            "resets before it reads the body",
            Origin::by_connection(|peer| {
                peer.request();
                peer.reset();
            }),
        ),
        (
            "resets after it has read all",
            Origin::by_connection(|peer| {
                let head = peer.request().unwrap_or_default();
                peer.body_of(&head);
                peer.reset();
            }),
        ),
        (
            "closes without an answer",
            Origin::by_connection(|peer| {
                let head = peer.request().unwrap_or_default();
                peer.body_of(&head);
            }),
        ),
        (
            "answers half a head",
            Origin::by_connection(|peer| {
                let head = peer.request().unwrap_or_default();
                peer.body_of(&head);
                peer.send("HTTP/1.1 200 OK\r\ncontent-le");
            }),
        ),
        (
            "answers half a body",
            Origin::by_connection(|peer| {
                let head = peer.request().unwrap_or_default();
                peer.body_of(&head);
                peer.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf");
            }),
        ),
        (
            "ends its chunks early",
            Origin::by_connection(|peer| {
                let head = peer.request().unwrap_or_default();
                peer.body_of(&head);
                peer.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n");
            }),
        ),
        ("answers nonsense", Origin::saying("HTTP/1.1 2000 no\r\n\r\n")),
        ("switches protocols", Origin::saying("HTTP/1.1 101 S\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n")),
        ("is a gateway that has no answer", Origin::saying("HTTP/1.1 502 X\r\ncontent-length: 3\r\n\r\nbad")),
        ("is a gateway that had no time", Origin::saying("HTTP/1.1 504 X\r\ncontent-length: 3\r\n\r\nlate")),
        (
            "never answers",
            Origin::by_connection(|peer| {
                let head = peer.request().unwrap_or_default();
                peer.body_of(&head);
                peer.request();
            }),
        ),
        (
            "says that it goes on, and does not",
            Origin::by_connection(|peer| {
                peer.request();
                peer.send("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n");
            }),
        ),
    ]
}

#[test]
fn without_a_whole_answer_the_outcome_is_unknown_and_stays_so() {
    for (what, node) in misbehaviours() {
        let text = configuration(&[node.address], "", "timeouts: { first_byte: 300ms, idle: 300ms }");
        let proxy = Proxy::start(&text);
        for _ in 0..3 {
            let mut client = proxy.connect();
            client.send(charge("/", "k", "amount=5"));
            let mut answer = client.answer();
            while answer.status < 200 {
                answer = client.answer();
            }
            assert_eq!((answer.status, answer.problem().as_str()), (409, "outcome-unknown"), "{what}");
            assert_eq!(answer.field("retry-after"), None, "{what}: it will not be different later");
        }
        assert_eq!(node.requests().len(), 1, "{what}: it is never run again");
        assert_eq!(proxy.records("k")[0]["state"], "unknown", "{what}");
        assert_eq!((proxy.idempotency("first"), proxy.idempotency("unknown")), (1.0, 3.0), "{what}");
        proxy.logs("the outcome of a request is unknown");
    }
}

#[test]
fn with_retry_what_is_unknown_runs_again_with_its_key() {
    let origin = Origin::start(|ask, peer| match ask.number {
        0 => peer.hang_up(),
        number => peer.reply(200, "", &format!("#{number}")),
    });
    let proxy = payments(&[origin.address], "on_unknown: retry");
    let first = proxy.ask(charge("/", "k", ""));
    assert_eq!((first.status, first.problem().as_str()), (409, "outcome-unknown"));
    assert!(first.field("retry-after").is_some(), "it will be forwarded again");
    assert_eq!(proxy.ask(charge("/", "k", "other")).problem(), "idempotency-key-reused");
    assert_eq!(proxy.ask(charge("/", "k", "")).text(), "#1");
    assert_eq!(origin.last().field("idempotency-key"), Some("k"));
    assert!(is_replay(&proxy.ask(charge("/", "k", ""))));
    assert_eq!(origin.asked(), 2);
}

/// A repetition that is released says nothing of the first run: its outcome is unknown again.
#[test]
fn a_repetition_that_is_released_leaves_the_outcome_unknown() {
    for store in ["memory", "sqlite"] {
        for is_dead in [false, true] {
            let origin = Origin::start(|ask, peer| match ask.number {
                0 => peer.hang_up(),
                _ => peer.reply(429, "", "later"),
            });
            let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let text = |address: std::net::SocketAddr, rule: &str| {
                let route = format!("hash_on: [uri], idempotency: {{ scope: [], on_unknown: {rule} }} }}");
                format!("idempotency_store: {{ kind: {store}, path: records.db }}\n{}", Proxy::pool(&[address], ""))
                    .replace("hash_on: [uri] }", &route)
            };
            let proxy = Proxy::start(&text(origin.address, "retry"));
            assert_eq!(proxy.ask(charge("/", "k", "")).problem(), "outcome-unknown");
            if is_dead {
                proxy.reconfigure(&text(dead, "retry"));
            }
            let repeated = proxy.ask(charge("/", "k", ""));
            assert_eq!(repeated.status, if is_dead { 502 } else { 429 }, "{store} {repeated:?}");
            assert_eq!(proxy.records("k")[0]["state"], "unknown", "{store}");
            assert_eq!(proxy.ask(charge("/", "k", "other")).problem(), "idempotency-key-reused", "{store}");
            proxy.reconfigure(&text(origin.address, "reject"));
            assert_eq!(proxy.ask(charge("/", "k", "")).problem(), "outcome-unknown", "{store}: it does not run again");
            assert_eq!(origin.asked(), if is_dead { 1 } else { 2 });
        }
    }
}

#[test]
fn a_large_answer_is_passed_on_and_its_repetitions_get_409() {
    for framing in ["content-length: 3000\r\n\r\n", "transfer-encoding: chunked\r\n\r\n"] {
        let body = "x".repeat(3000);
        let sent = if framing.starts_with("content") { body.clone() } else { format!("bb8\r\n{body}\r\n0\r\n\r\n") };
        let node = Origin::saying(format!("HTTP/1.1 200 OK\r\nx-a: b\r\n{framing}{sent}"));
        let proxy = payments(&[node.address], "max_response: 2999B");
        let first = proxy.ask(charge("/", "k", ""));
        assert_eq!((first.status, first.text()), (200, body), "{framing}");
        assert_eq!(first.field("x-a").as_deref(), Some("b"));
        for _ in 0..2 {
            let again = proxy.ask(charge("/", "k", ""));
            assert_eq!((again.status, again.problem().as_str()), (409, "result-too-large"));
            assert_eq!(again.field("retry-after"), None);
        }
        assert_eq!((node.requests().len(), proxy.idempotency("too_large")), (1, 3.0));
        assert_eq!(proxy.records("k")[0]["state"], "done_without_body");
    }
    let exact = Origin::saying(format!("HTTP/1.1 200 OK\r\ncontent-length: 3000\r\n\r\n{}", "x".repeat(3000)));
    let proxy = payments(&[exact.address], "max_response: 3000B");
    proxy.ask(charge("/", "k", ""));
    assert!(is_replay(&proxy.ask(charge("/", "k", ""))));
}

#[test]
fn a_large_request_is_refused_before_anything_is_forwarded() {
    let origin = charging();
    let proxy = payments(&[origin.address], "max_request: 10B");
    assert_eq!(proxy.ask(charge("/", "k", "0123456789")).status, 201);
    assert_eq!(proxy.ask(charge("/", "l", "0123456789a")).problem(), "content-too-large");
    let chunked =
        "POST / HTTP/1.1\r\nhost: a\r\nauthorization: x\r\nidempotency-key: m\r\ntransfer-encoding: chunked\r\n\r\n";
    let answer = proxy.ask(format!("{chunked}6\r\n012345\r\n6\r\n012345\r\n0\r\n\r\n"));
    assert_eq!((answer.status, answer.problem().as_str()), (413, "content-too-large"));
    assert_eq!(origin.asked(), 1);
}

#[test]
fn a_kept_connection_is_used_only_within_a_second() {
    let origin = charging();
    let text = configuration(&[origin.address], "", "timeouts: { idle: 10s }");
    let proxy = Proxy::start(&format!("workers: 1\nlimits: {{ header_timeout: 1100ms }}\n{text}"));
    let connections = || proxy.metric("ringway_upstream_connections{node=\"n0\",pool=\"app\",state=\"idle\"}");
    let mut keys = 0..;
    let mut pay = || proxy.ask(charge("/", &keys.next().unwrap().to_string(), ""));
    // A machine may be slow: what counts is a pair that followed within the second.
    let quick = (0..50).find_map(|_| {
        let began = std::time::Instant::now();
        pay();
        let before = connections();
        pay();
        (began.elapsed() < std::time::Duration::from_millis(500)).then(|| (before, connections()))
    });
    let (before, within) = quick.unwrap();
    assert_eq!(within, before);
    // A node may close what has been idle at any moment; one that just answered is alive.
    proxy.header_timeout_passes();
    pay();
    assert_eq!(connections(), within + 1.0);
    assert_eq!(proxy.get("/").status, 201);
    assert_eq!(connections(), within + 1.0, "other requests take what there is");
}

#[test]
fn a_dead_kept_connection_does_not_make_a_payment_unknown() {
    // Answers one request a connection, and closes it without saying so.
    let closed = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&closed);
    let node = Origin::by_connection(move |peer| {
        if let Some(head) = peer.request() {
            peer.body_of(&head);
            peer.answer("ok");
            peer.hang_up();
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    let proxy = payments(&[node.address], "");
    for number in 0..50 {
        eventually("the end of the last connection", || closed.load(Ordering::SeqCst) == node.connections());
        let answer = proxy.ask(charge("/", &format!("k{number}"), ""));
        assert!(answer.status == 200 || answer.status == 409, "{answer:?}");
    }
    // What was on its way at the very moment may be unknown, but it is rare, and nothing is sent twice.
    let unknown = proxy.idempotency("unknown");
    assert!(unknown < 10.0, "{unknown} of 50");
    assert_eq!(node.requests().len() as f64, 50.0 - unknown);
}

#[test]
fn a_canonical_fingerprint_takes_what_means_the_same_for_the_same() {
    let ask = |proxy: &Proxy, key: &str, content_type: &str, body: &str| {
        let lines = format!("authorization: a\r\nidempotency-key: {key}\r\ncontent-type: {content_type}\r\n");
        proxy.ask(request("POST", "/", &lines, body))
    };
    let part = |boundary: &str, amount: &str| {
        let head = "Content-Disposition: form-data; name=\"amount\"";
        format!("--{boundary}\r\n{head}\r\n\r\n{amount}\r\n--{boundary}--\r\n")
    };
    for is_canonical in [true, false] {
        let origin = charging();
        let proxy = payments(&[origin.address], if is_canonical { "fingerprint: canonical" } else { "" });
        let json = "application/json";
        assert_eq!(ask(&proxy, "a", json, r#"{"amount":5,"to":{"x":1,"y":2}}"#).status, 201);
        let again = ask(&proxy, "a", json, "{ \"to\": {\"y\":2, \"x\":1},\n \"amount\": 5 }");
        assert_eq!(ask(&proxy, "b", "multipart/form-data; boundary=one", &part("one", "5")).status, 201);
        let multipart = ask(&proxy, "b", "multipart/form-data; boundary=other", &part("other", "5"));
        for again in [again, multipart] {
            match is_canonical {
                true => assert!(is_replay(&again), "{again:?}"),
                false => assert_eq!((again.status, again.problem().as_str()), (422, "idempotency-key-reused")),
            }
        }
        for (key, content_type, body) in [
            ("a", json, r#"{"amount":6,"to":{"x":1,"y":2}}"#.to_owned()),
            ("a", json, r#"{"amount":5.0,"to":{"x":1,"y":2}}"#.to_owned()),
            ("b", "multipart/form-data; boundary=other", part("other", "6")),
        ] {
            assert_eq!(ask(&proxy, key, content_type, &body).status, 422, "{body}");
        }
        assert_eq!(origin.asked(), 2);
    }
}

#[test]
fn the_key_may_stand_in_another_field() {
    let origin = charging();
    let proxy = payments(&[origin.address], "key_header: x-request-key, required: true");
    let ask = |lines: &str| proxy.ask(request("POST", "/", &format!("authorization: a\r\n{lines}"), ""));
    assert_eq!(ask("x-request-key: k\r\n").status, 201);
    assert_eq!(origin.last().field("x-request-key"), Some("k"));
    assert!(is_replay(&ask("X-Request-Key: \"k\"\r\n")));
    let missing = ask("idempotency-key: k\r\n");
    assert_eq!((missing.status, missing.problem().as_str()), (400, "idempotency-key-missing"));
    assert!(missing.text().contains("x-request-key"), "{missing:?}");
    // It cannot be named away.
    let named = ask("x-request-key: k\r\nconnection: x-request-key\r\n");
    assert_eq!((named.status, named.problem().as_str()), (400, "bad-connection-option"));
    let invalid = ask("x-request-key: a;b\r\n");
    assert_eq!((invalid.status, invalid.problem().as_str()), (400, "idempotency-key-invalid"));
    assert!(invalid.text().contains("x-request-key"), "{invalid:?}");
    assert_eq!(origin.asked(), 1);
}
