//! Whatever a node answers, a repetition gets it again as it was.

use super::*;
use crate::support::{Barrier, Origin, eventually};

fn twice(node: &Origin, request: &str) -> (Answer, Answer) {
    let proxy = payments(&[node.address], "");
    let final_answer = |client: &mut Client| {
        let mut answer = client.answer();
        while answer.status < 200 {
            answer = client.answer();
        }
        answer
    };
    let answers = [0, 1].map(|_| final_answer(proxy.connect().send(request)));
    assert_eq!(node.requests().len(), 1, "{request}");
    let [first, again] = answers;
    assert!(is_replay(&again), "{again:?}");
    (first, again)
}

#[test]
fn answers_of_every_form_come_back_as_they_were() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nplain",
        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 204 No Content\r\nx-a: b\r\n\r\n",
        "HTTP/1.1 205 Reset Content\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n",
        "HTTP/1.1 201 Created\r\nlocation: /charges/1\r\nset-cookie: a=1\r\nset-cookie: b=2; Path=/\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-type: application/json\r\ncontent-length: 4\r\n\r\n\x1f\x00\x01\x02",
        "HTTP/1.1 200 OK\r\nX-Mixed-Case: Kept Value\r\nx-empty:\r\ncontent-length: 1\r\n\r\nx",
        "HTTP/1.1 200 OK\r\ndate: Mon, 01 Jan 2024 00:00:00 GMT\r\ncontent-length: 1\r\n\r\nx",
        "HTTP/1.1 299 Odd\r\ncontent-length: 1\r\n\r\nx",
        "HTTP/1.1 303 See Other\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n",
    ] {
        let node = Origin::saying(answer);
        let (first, again) = twice(&node, &charge("/", "k", "amount=5"));
        assert_eq!(seen(&again), seen(&first), "{answer}");
        assert!(first.field("date").is_some(), "{answer}");
    }
}

#[test]
fn a_client_of_another_version_gets_the_same_result() {
    let node = Origin::saying("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n0\r\n\r\n");
    let proxy = payments(&[node.address], "");
    let old = charge("/", "k", "x").replace("HTTP/1.1", "HTTP/1.0");
    let (first, again) = (proxy.ask(&old), proxy.ask(charge("/", "k", "x")));
    assert_eq!((first.status, first.text()), (200, "one".to_owned()));
    assert_eq!((is_replay(&again), again.text()), (true, "one".to_owned()));
    assert_eq!(proxy.ask(&old).text(), "one");
}

#[test]
fn a_body_that_ends_with_the_connection_comes_back_whole() {
    let node = Origin::by_connection(|peer| {
        if let Some(head) = peer.request() {
            peer.body_of(&head);
            peer.send("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nuntil the end");
        }
    });
    let (first, again) = twice(&node, &charge("/", "k", ""));
    assert_eq!((first.text().as_str(), seen(&again)), ("until the end", seen(&first)));
}

#[test]
fn fields_after_the_body_come_back() {
    let node = Origin::saying(
        "HTTP/1.1 200 OK\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\nx-sum: 9\r\n\r\n",
    );
    let lines = "authorization: a\r\nidempotency-key: k\r\nte: trailers\r\nconnection: te\r\n";
    let (first, again) = twice(&node, &request("POST", "/", lines, "x"));
    assert_eq!((first.text().as_str(), first.trailers.as_str()), ("body", "x-sum: 9\n"));
    assert_eq!(seen(&again), seen(&first));
}

#[test]
fn interim_answers_reach_the_first_client() {
    let node = Origin::saying(
        "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
    );
    let proxy = payments(&[node.address], "");
    let mut client = proxy.connect();
    client.send(charge("/", "k", ""));
    let hints = client.answer();
    assert_eq!((hints.status, hints.field("link").as_deref()), (103, Some("</a.css>")));
    let first = client.answer();
    let again = proxy.ask(charge("/", "k", ""));
    assert_eq!((again.status, seen(&again)), (200, seen(&first)), "the repetition gets the answer alone");
}

#[test]
fn interim_answers_do_not_wait_for_the_end_of_the_run() {
    let gate = Barrier::default();
    let open = gate.clone();
    let node = Origin::by_connection(move |peer| {
        while let Some(head) = peer.request() {
            peer.body_of(&head);
            peer.send("HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n");
            open.wait();
            peer.answer("ok");
        }
    });
    let cached = Proxy::start(&Proxy::pool(&[node.address], "").replace("hash_on: [uri] }", "cache: {} }"));
    let keyed = payments(&[node.address], "");
    let mut reading = cached.connect();
    let mut paying = keyed.connect();
    reading.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    paying.send(charge("/", "k", ""));
    assert_eq!([reading.answer().status, paying.answer().status], [103, 103]);
    gate.open();
    assert_eq!([reading.answer().status, paying.answer().status], [200, 200]);
}

#[test]
fn the_node_gets_the_body_as_it_was() {
    let node = Origin::echo();
    let proxy = payments(&[node.address], "");
    let chunked =
        "POST / HTTP/1.1\r\nhost: a\r\nauthorization: x\r\nidempotency-key: chunked\r\ntransfer-encoding: chunked\r\n";
    let answer = proxy.ask(format!("{chunked}\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"));
    assert!(answer.text().ends_with("\n\nonetwo"), "{answer:?}");
    assert!(answer.text().contains("\ncontent-length: 6"), "it is whole, and says how long it is: {answer:?}");
    let answer = proxy.ask(
        format!("{chunked}trailer: x-sum\r\n\r\n3\r\none\r\n0\r\nx-sum: 1\r\n\r\n")
            .replace("chunked\r\ntransfer", "trailers\r\ntransfer"),
    );
    assert!(answer.text().contains("onex-sum: 1"), "{answer:?}");
    let answer = proxy.ask(charge("/", "empty", ""));
    assert!(answer.text().ends_with("\n\n"), "{answer:?}");

    let mut waiting = proxy.connect();
    let head = charge("/", "expects", "1234").replace("host:", "expect: 100-continue\r\nhost:");
    let (head, body) = head.split_at(head.len() - 4);
    waiting.send(head);
    assert_eq!(waiting.answer().status, 100);
    let answer = waiting.send(body).answer();
    assert!(answer.text().ends_with("\n\n1234") && !answer.text().contains("expect:"), "{answer:?}");
}

#[test]
fn a_large_body_within_the_bound_goes_both_ways() {
    let node = Origin::by_connection(|peer| {
        while let Some(head) = peer.request() {
            let body = peer.body_of(&head);
            peer.answer(&String::from_utf8(body).unwrap());
        }
    });
    let proxy = payments(&[node.address], "");
    let body: String = (0..1 << 20).map(|n: u32| char::from(b'a' + (n % 23) as u8)).collect();
    let first = proxy.ask(charge("/", "k", &body));
    assert_eq!(first.body.len(), 1 << 20);
    let again = proxy.ask(charge("/", "k", &body));
    assert!(is_replay(&again) && again.text() == body);
    eventually("the release of the buffers", || proxy.metric("ringway_buffered_bytes") == 0.0);
}

#[test]
fn a_connection_goes_on_after_every_kind_of_answer() {
    let origin = charging();
    let proxy = payments(&[origin.address], "");
    let mut client = proxy.connect();
    assert_eq!(client.request(charge("/", "k", "a")).status, 201);
    assert_eq!(client.request(charge("/", "k", "a")).status, 201);
    assert_eq!(client.request(charge("/", "k", "b")).status, 422);
    assert_eq!(client.request("GET / HTTP/1.1\r\nhost: a\r\n\r\n").status, 201);
}

#[test]
fn the_routes_fields_are_applied_once_and_the_session_cookie_never_stored() {
    let origin = Origin::start(|_, peer| peer.reply(200, "server: node | set-cookie: own=1", "ok"));
    let rules = "hash_on: [path], idempotency: {}, affinity_cookie: { mode: strict, secret_file: affinity.key },
      response_headers: { set: { x-edge: \"1\" }, remove: [server] } }";
    let text = Proxy::pool(&[origin.address], "").replace("hash_on: [uri] }", rules);
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("affinity.key");
    std::fs::write(&secret, "0123456789abcdef0123456789abcdef").unwrap();
    let proxy = Proxy::start(&text.replace("affinity.key", secret.to_str().unwrap()));
    let first = proxy.ask(charge("/", "k", ""));
    let again = proxy.ask(charge("/", "k", ""));
    assert!(first.field("set-cookie").unwrap().contains("own=1|ringway="), "{first:?}");
    assert_eq!(again.field("set-cookie").as_deref(), Some("own=1"));
    for answer in [&first, &again] {
        assert_eq!((answer.field("x-edge").as_deref(), answer.field("server")), (Some("1"), None));
    }
}

#[test]
fn a_payment_makes_what_is_cached_untrue_once() {
    let origin = Origin::start(|ask, peer| {
        peer.reply(200, "cache-control: max-age=60", &format!("#{}", ask.number));
    });
    let rules = "hash_on: [path], cache: {}, idempotency: {} }";
    let proxy = Proxy::start(&Proxy::pool(&[origin.address], "").replace("hash_on: [uri] }", rules));
    let read = || proxy.get("/").text();
    assert_eq!(read(), "#0");
    eventually("a hit", || proxy.get("/").field("cache-status").unwrap().contains("; hit"));
    let first = proxy.ask(charge("/", "k", ""));
    assert_eq!(first.field("cache-status").as_deref(), Some("ringway; fwd=method"));
    assert_eq!(read(), "#2");
    eventually("a hit", || proxy.get("/").field("cache-status").unwrap().contains("; hit"));
    assert!(is_replay(&proxy.ask(charge("/", "k", ""))));
    assert_eq!(read(), "#2", "a replay changes nothing");
}
