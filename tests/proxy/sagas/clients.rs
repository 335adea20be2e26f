//! What clients see: keys, callers, and answers while there is no final one.

use super::*;
use std::time::Instant;

#[test]
fn a_request_that_no_saga_can_run_with_is_refused_before_anything_is_sent() {
    let shop = Shop::sqlite();
    let proxy = shop.proxy();
    let without_key = "POST /checkout HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\nauthorization: x\r\n\r\n{}";
    assert_eq!(proxy.connect().request(without_key).problem(), "idempotency-key-missing");
    let ask = |body: &str| proxy.connect().request(by("alice", "key", body));
    let answer = ask("no JSON");
    assert_eq!((answer.status, answer.problem().as_str()), (400, "saga-input"));
    let answer = ask("{\"order\":\"a\"}");
    assert_eq!(answer.problem(), "saga-input");
    assert!(answer.json()["detail"].as_str().unwrap().contains("amount"), "{answer:?}");
    let large = format!("{{\"order\":\"{}\",\"amount\":1}}", "x".repeat(70_000));
    let answer = ask(&large);
    assert_eq!((answer.status, answer.problem().as_str()), (413, "saga-input-too-large"));
    assert_eq!(shop.inventory.origin.asked(), 0);
    assert_eq!(proxy.checks_out("key").status, 201, "the key is still free");
    assert_eq!(ask("{\"order\":\"b\",\"amount\":1}").problem(), "idempotency-key-reused");
}

#[test]
fn a_repetition_is_told_to_wait_and_where_to_look() {
    let shop = Shop::sqlite();
    let proxy = shop.proxy();
    let gate = shop.inventory.next_waits();
    std::thread::scope(|scope| {
        let first = scope.spawn(|| proxy.checks_out("order-1"));
        shop.inventory.origin.wait_for(1);
        let again = proxy.checks_out("order-1");
        assert_eq!((again.status, again.problem().as_str()), (409, "saga-running"), "{again:?}");
        assert_eq!(again.field("retry-after").as_deref(), Some("1"));
        let location = again.field("location").unwrap();
        assert!(location.starts_with("/.ringway/sagas/"), "{location}");
        let state = proxy.saga(&location, "alice");
        assert_eq!(state.status, 200, "{state:?}");
        assert_eq!((&state.json()["state"], &state.json()["route"]), (&"running".into(), &"checkout".into()));
        assert_eq!(state.json()["steps"][0]["state"], "started");
        assert_eq!(state.json()["steps"][1]["state"], "untouched");
        // Another caller learns nothing.
        assert_eq!(proxy.saga(&location, "mallory").problem(), "no-such-saga");
        let written = proxy.send("DELETE", &location, "host: shop.example | authorization: Bearer alice");
        assert_eq!((written.status, written.field("allow").as_deref()), (405, Some("GET, HEAD")));
        assert_eq!(proxy.saga(&format!("/.ringway/sagas/{}", "0".repeat(64)), "alice").problem(), "no-such-saga");
        assert_eq!(proxy.saga("/.ringway/sagas/x", "alice").status, 404);
        gate.open();
        assert_eq!(first.join().unwrap().status, 201);
        let state = proxy.saga(&location, "alice").json();
        assert_eq!((&state["state"], &state["steps"][2]["state"]), (&"succeeded".into(), &"done".into()));
        assert!(state["ended"].is_string());
    });
}

#[test]
fn a_repetition_may_wait_for_the_answer() {
    let mut shop = Shop::sqlite();
    shop.keys = "lease: 1s, on_concurrent: wait, wait: 10s";
    let proxy = shop.proxy();
    let gate = shop.inventory.next_waits();
    std::thread::scope(|scope| {
        let first = scope.spawn(|| proxy.checks_out("order-1"));
        shop.inventory.origin.wait_for(1);
        let second = scope.spawn(|| proxy.checks_out("order-1"));
        eventually("a claim that waits", || {
            proxy.metric("ringway_store_duration_seconds_count{op=\"claim\",store=\"idempotency\"}") >= 2.0
        });
        gate.open();
        let (first, second) = (first.join().unwrap(), second.join().unwrap());
        assert_eq!((first.status, second.status), (201, 201), "{second:?}");
        assert_eq!(first.body, second.body);
        assert_eq!(second.field("idempotent-replayed").as_deref(), Some("true"));
    });
    shop.books_balance("order-1");
}

#[test]
fn a_client_that_leaves_does_not_end_its_saga() {
    let shop = Shop::sqlite();
    let proxy = shop.proxy();
    let gate = shop.payments.next_waits();
    let mut client = proxy.connect();
    client.send(checkout("order-1"));
    shop.payments.origin.wait_for(1);
    drop(client);
    gate.open();
    let answer = proxy.insists("order-1");
    assert_eq!(answer.status, 201, "{answer:?}");
    assert_eq!(answer.field("idempotent-replayed").as_deref(), Some("true"));
    shop.books_balance("order-1");
}

#[test]
fn an_answer_comes_five_seconds_after_the_deadline_at_the_latest() {
    let mut shop = Shop::sqlite();
    shop.times = "deadline: 200ms, stuck_after: 1h".to_owned();
    let proxy = shop.proxy();
    shop.payments.next([Trick::Refuse]);
    shop.inventory.next_undo(std::iter::repeat_n(Trick::Fails(500), 1000));
    let began = Instant::now();
    let answer = proxy.checks_out("order-1");
    let took = began.elapsed();
    assert_eq!((answer.status, answer.problem().as_str()), (409, "saga-compensating"), "{answer:?}");
    assert!(took >= Duration::from_secs(5) && took < Duration::from_secs(12), "{took:?}");
    let location = answer.field("location").unwrap();
    let state = proxy.saga(&location, "alice").json();
    assert_eq!((&state["state"], &state["failed"]["step"]), (&"compensating".into(), &"charge".into()));
    assert_eq!((&state["failed"]["status"], &state["failed"]["cause"]), (&422.into(), &"refused".into()));
    assert_eq!(proxy.checks_out("order-1").problem(), "saga-compensating");
    shop.inventory.undos.lock().unwrap().clear();
    assert_eq!(proxy.insists("order-1").problem(), "saga-compensated");
    assert_eq!(shop.effects("order-1"), [false; 3]);
}

#[test]
fn nothing_is_undone_while_the_pivot_may_have_been_done() {
    let mut shop = Shop::sqlite();
    shop.times = "deadline: 200ms, stuck_after: 1h".to_owned();
    let proxy = shop.proxy();
    shop.shipping.next(std::iter::repeat_n(Trick::Works(500), 1000));
    let answer = proxy.checks_out("order-1");
    assert_eq!((answer.status, answer.problem().as_str()), (409, "saga-running"), "{answer:?}");
    let state = proxy.saga(&answer.field("location").unwrap(), "alice").json();
    assert_eq!((&state["state"], &state["steps"][2]["state"]), (&"running".into(), &"started".into()));
    assert_eq!(shop.effects("order-1"), [true; 3]);
    shop.shipping.steps.lock().unwrap().clear();
    assert_eq!(proxy.insists("order-1").status, 201);
    shop.books_balance("order-1");
}
