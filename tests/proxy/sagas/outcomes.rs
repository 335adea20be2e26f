//! What becomes of a saga whose services do as they should, or not.

use super::*;

#[test]
fn a_checkout_is_done_by_three_services_and_replayed_byte_for_byte() {
    let shop = Shop::sqlite();
    let proxy = shop.proxy();
    let answer = proxy.checks_out("order-1");
    assert_eq!(answer.status, 201, "{answer:?}");
    let key = shop.shipping.last().field("idempotency-key").unwrap().to_owned();
    assert_eq!(answer.text(), format!("{{\"shipment\":\"shipping-{}\",\"paid\":1.50}}", &key[..8]));
    assert_eq!(answer.field("idempotent-replayed"), None);
    let again = proxy.checks_out("order-1");
    assert_eq!((again.status, again.body.clone()), (201, answer.body.clone()));
    assert_eq!(again.field("date"), answer.field("date"));
    assert_eq!(again.field("idempotent-replayed").as_deref(), Some("true"));
    assert_eq!(shop.effects("order-1"), [true; 3]);
    shop.books_balance("order-1");
    // The steps have keys of their own, and their templates.
    let reserve = shop.inventory.last();
    assert_eq!(reserve.body, b"{\"order\":\"order-1\"}");
    let charge = shop.payments.last();
    assert_eq!(charge.body, b"{\"order\":\"order-1\",\"amount\":1.50}");
    assert_eq!(charge.field("x-token"), std::env::var("HOME").ok().as_deref());
    let keys = [&reserve, &charge].map(|ask| ask.field("idempotency-key").unwrap().to_owned());
    assert!(keys[0] != keys[1] && keys.iter().all(|key| key.len() == 64 && key != "order-1"));
    let ship: serde_json::Value = serde_json::from_slice(&shop.shipping.last().body).unwrap();
    assert_eq!(ship["reservation"], format!("inventory-{}", &keys[0][..8]));
    assert_eq!(shop.services().map(|service| service.origin.asked()), [1, 1, 1]);
    assert_eq!(proxy.metric("ringway_sagas_total{outcome=\"succeeded\",route=\"checkout\"}"), 1.0);
    assert_eq!(proxy.sagas("succeeded").len(), 1);
    let log = proxy.log();
    assert!(!log.contains("order-1") && !log.contains("1.50"), "no body is in a log: {log}");
}

#[test]
fn n_steps_take_n_and_two_commits() {
    let shop = Shop::sqlite();
    let proxy = shop.proxy();
    assert_eq!(proxy.checks_out("one").status, 201);
    let count =
        |op: &str| proxy.metric(&format!("ringway_store_duration_seconds_count{{op=\"{op}\",store=\"idempotency\"}}"));
    assert_eq!((count("claim"), count("append")), (1.0, 4.0));
}

#[test]
fn a_refused_charge_releases_the_reservation() {
    let shop = Shop::sqlite();
    let proxy = shop.proxy();
    shop.payments.next([Trick::Fails(402)]);
    let answer = proxy.checks_out("order-1");
    assert_eq!((answer.status, answer.problem().as_str()), (409, "saga-compensated"), "{answer:?}");
    assert_eq!((&answer.json()["step"], &answer.json()["step_status"]), (&"charge".into(), &402.into()));
    assert_eq!(shop.effects("order-1"), [false; 3]);
    assert_eq!(shop.inventory.of("order-1")[0].done, 1, "it was reserved, and released");
    assert!(shop.inventory.of("order-1")[0].is_undone);
    assert_eq!((shop.payments.origin.asked(), shop.shipping.origin.asked()), (1, 0), "what was refused is not undone");
    let again = proxy.checks_out("order-1");
    assert_eq!(again.body, answer.body);
    assert_eq!(again.field("idempotent-replayed").as_deref(), Some("true"));
    assert_eq!(shop.inventory.origin.asked(), 2, "once there, and once back");
    proxy.logs("a saga was compensated");
    assert_eq!(proxy.metric("ringway_sagas_total{outcome=\"compensated\",route=\"checkout\"}"), 1.0);
}

#[test]
fn what_may_have_been_done_is_asked_again_with_the_same_key() {
    let tricks = [
        Trick::Works(500),
        Trick::Works(503),
        Trick::WorksSilently,
        Trick::AnswersHalf,
        Trick::HangsUp,
        Trick::Busy,
        Trick::Fails(500),
        Trick::Works(302),
    ];
    let shop = Shop::sqlite();
    let proxy = shop.proxy();
    for (number, trick) in tricks.into_iter().enumerate() {
        for (at, service) in shop.services().into_iter().enumerate() {
            let order = format!("order-{number}-{at}");
            service.next([trick.clone()]);
            let answer = proxy.checks_out(&order);
            assert_eq!(answer.status, 201, "{order}: {answer:?}");
            assert_eq!(shop.effects(&order), [true; 3], "{order}");
            shop.books_balance(&order);
        }
    }
}

#[test]
fn a_step_that_hangs_is_given_up_and_asked_again() {
    let shop = Shop::sqlite();
    let proxy = shop.proxy();
    let gate = shop.payments.next_waits();
    let answer = proxy.checks_out("order-1");
    assert_eq!(answer.status, 201, "{answer:?}");
    gate.open();
    shop.payments.origin.wait_for(2);
    shop.books_balance("order-1");
}

#[test]
fn a_refusal_after_an_unknown_outcome_is_not_believed() {
    let mut shop = Shop::sqlite();
    shop.times = "deadline: 1s, stuck_after: 1h".to_owned();
    let proxy = shop.proxy();
    // It has charged, and calls every repetition a duplicate.
    shop.payments.next([Trick::Works(500)]);
    shop.payments.next(std::iter::repeat_n(Trick::Works(422), 1000));
    let answer = proxy.checks_out("order-1");
    assert_eq!((answer.status, answer.problem().as_str()), (409, "saga-compensated"), "{answer:?}");
    assert_eq!(shop.payments.of("order-1")[0].done, 1);
    assert_eq!(shop.effects("order-1"), [false; 3], "the charge is refunded");
}

#[test]
fn what_is_not_done_by_the_deadline_is_undone_also_where_it_never_came() {
    let mut shop = Shop::sqlite();
    (shop.times, shop.has_pivot) = ("deadline: 1s, stuck_after: 1h".to_owned(), false);
    let proxy = shop.proxy();
    shop.shipping.next(std::iter::repeat_n(Trick::HangsUp, 1000));
    let answer = proxy.checks_out("order-1");
    assert_eq!((answer.status, answer.problem().as_str()), (409, "saga-compensated"), "{answer:?}");
    assert_eq!(answer.json()["step"], "ship");
    assert_eq!(shop.effects("order-1"), [false; 3]);
    let undos = |service: &Service| service.origin.asks().iter().filter(|ask| ask.path().starts_with("/undo/")).count();
    assert_eq!(shop.services().map(undos), [1, 1, 1], "the shipment perhaps was");
    shop.books_balance("order-1");
}

#[test]
fn a_step_that_arrives_after_its_undo_is_refused_by_the_service() {
    let mut shop = Shop::sqlite();
    (shop.times, shop.has_pivot) = ("deadline: 1s, stuck_after: 1h".to_owned(), false);
    let proxy = shop.proxy();
    let gate = Barrier::default();
    shop.shipping.next(std::iter::repeat_n(Trick::Waits(gate.clone()), 1000));
    let answer = proxy.checks_out("order-1");
    assert_eq!(answer.problem(), "saga-compensated", "{answer:?}");
    gate.open();
    eventually("the late step", || shop.shipping.of("order-1").iter().any(|entry| entry.late > 0));
    assert_eq!(shop.effects("order-1"), [false; 3]);
    shop.books_balance("order-1");
}

#[test]
fn a_pool_without_a_node_is_tried_until_it_has_one() {
    let mut shop = Shop::sqlite();
    let proxy = shop.proxy();
    shop.payments.origin.kill();
    let waiting = std::thread::scope(|scope| {
        let asked = scope.spawn(|| proxy.checks_out("order-1"));
        shop.inventory.origin.wait_for(1);
        eventually("an attempt", || {
            proxy.metric("ringway_saga_steps_total{outcome=\"not_sent\",route=\"checkout\",step=\"charge\"}") >= 1.0
        });
        asked.join()
    });
    // The saga has waited for the deadline: nothing was sent, and the reservation is released.
    let answer = waiting.unwrap();
    assert_eq!(answer.problem(), "saga-compensated", "{answer:?}");
    assert_eq!(shop.effects("order-1"), [false; 3]);
    shop.payments.origin.revive();
    assert_eq!(proxy.checks_out("order-2").status, 201);
}

#[test]
fn an_answer_that_is_too_large_for_its_saga_is_not_stored() {
    let shop = Shop::sqlite();
    let proxy = shop.proxy();
    shop.inventory.next([Trick::AnswersMuch]);
    let answer = proxy.checks_out("order-1");
    assert_eq!((answer.status, answer.problem().as_str()), (409, "saga-compensated"), "{answer:?}");
    assert_eq!(answer.json()["step"], "ship", "it needs a part of that answer");
    assert_eq!(shop.effects("order-1"), [false; 3]);
    proxy.logs("an answer is too large for its saga");
    let Store::Sqlite(folder) = &shop.store else { unreachable!() };
    let store = rusqlite::Connection::open(folder.path().join("store.db")).unwrap();
    let length: i64 = store.query_row("SELECT max(length(log)) FROM sagas", [], |row| row.get(0)).unwrap();
    assert!(length < 4096, "{length} bytes of log");
}

#[test]
fn a_temporary_refusal_is_counted_as_one() {
    let shop = Shop::sqlite();
    let proxy = shop.proxy();
    shop.payments.next([Trick::Busy]);
    assert_eq!(proxy.checks_out("order-1").status, 201);
    let count = |outcome: &str| {
        proxy.metric(&format!("ringway_saga_steps_total{{outcome=\"{outcome}\",route=\"checkout\",step=\"charge\"}}"))
    };
    assert_eq!((count("postponed"), count("refused"), count("done")), (1.0, 0.0, 1.0));
}
