//! Sagas that wait for a person, and what a person decides.

use super::*;

/// A shop whose sagas are soon stuck, and a saga that is: its id and location.
fn stuck(has_pivot: bool) -> (Shop, Proxy, String, String) {
    let mut shop = Shop::sqlite();
    (shop.times, shop.has_pivot) = ("deadline: 200ms, stuck_after: 1s".to_owned(), has_pivot);
    let proxy = shop.proxy();
    if has_pivot {
        shop.shipping.next(std::iter::repeat_n(Trick::Works(500), 100_000));
    } else {
        shop.shipping.next([Trick::Refuse]);
        shop.inventory.next_undo(std::iter::repeat_n(Trick::Fails(500), 100_000));
    }
    let answer = proxy.checks_out("order-1");
    assert_eq!((answer.status, answer.problem().as_str()), (409, "saga-stuck"), "{answer:?}");
    // No client can tell when a person decides.
    assert_eq!(answer.field("retry-after"), None);
    let found = proxy.sagas("stuck");
    assert_eq!(found.len(), 1);
    let id = found[0]["id"].as_str().unwrap().to_owned();
    (shop, proxy, id, answer.field("location").unwrap())
}

fn decide(proxy: &Proxy, id: &str, word: &str, body: &str) -> Answer {
    proxy.admin_post(&format!("/api/sagas/{id}/{word}"), body)
}

#[test]
fn an_undo_that_fails_for_too_long_waits_for_a_person_and_goes_on() {
    let (shop, proxy, id, location) = stuck(false);
    assert_eq!(proxy.saga(&location, "alice").json()["state"], "stuck");
    proxy.logs("a saga is stuck");
    assert_eq!(proxy.metric("ringway_sagas_total{outcome=\"stuck\",route=\"checkout\"}"), 1.0);
    let undos = shop.inventory.origin.asked();
    assert_eq!(proxy.checks_out("order-1").problem(), "saga-stuck");
    assert_eq!(shop.inventory.origin.asked(), undos, "nothing goes on by itself");
    shop.inventory.undos.lock().unwrap().clear();
    assert_eq!(decide(&proxy, &id, "resolve", "{\"outcome\":\"succeeded\"}").status, 409, "nothing goes forward");
    assert!(!proxy.log().contains("a person has decided"), "{}", proxy.log());
    assert_eq!(decide(&proxy, &id, "retry", "{\"by\":\"ann\"}").status, 200);
    assert_eq!(proxy.insists("order-1").problem(), "saga-compensated");
    assert_eq!(shop.effects("order-1"), [false; 3]);
    assert!(proxy.log().contains("ann"), "it is logged who decided");
    assert_eq!(proxy.log().matches("a person has decided").count(), 1);
    assert_eq!(decide(&proxy, &id, "retry", "").status, 409, "it is over");
    assert_eq!(proxy.log().matches("a person has decided").count(), 1, "{}", proxy.log());
    eventually("the gauge", || proxy.metric("ringway_sagas_stuck") == 0.0);
}

#[test]
fn a_person_undoes_by_hand_what_no_service_undoes() {
    let (_shop, proxy, id, location) = stuck(false);
    assert_eq!(decide(&proxy, &id, "resolve", "{\"outcome\":\"compensated\",\"by\":\"ann\"}").status, 200);
    assert_eq!(proxy.insists("order-1").problem(), "saga-compensated");
    assert_eq!(proxy.saga(&location, "alice").json()["state"], "compensated");
}

#[test]
fn a_person_finds_out_what_became_of_the_pivot() {
    let (shop, proxy, id, _) = stuck(true);
    assert_eq!(decide(&proxy, &id, "resolve", "{\"outcome\":\"succeeded\"}").status, 200);
    let answer = proxy.insists("order-1");
    assert_eq!((answer.status, answer.text()), (201, "{\"shipment\":null,\"paid\":1.50}".to_owned()));
    assert_eq!(shop.effects("order-1"), [true; 3]);

    let (shop, proxy, id, _) = stuck(true);
    assert_eq!(decide(&proxy, &id, "resolve", "{\"outcome\":\"compensated\"}").status, 200);
    let answer = proxy.insists("order-1");
    assert_eq!((answer.problem().as_str(), &answer.json()["step"]), ("saga-compensated", &"ship".into()));
    assert_eq!(shop.effects("order-1")[..2], [false, false], "the steps before it are undone");
}

/// A compensation that fails when its proxy dies; another one goes on with it, whose clock is an hour ahead.
fn an_hour_later(stuck_after: &str) -> (Shop, Proxy) {
    let mut shop = Shop::sqlite();
    shop.times = format!("deadline: 200ms, stuck_after: {stuck_after}");
    let proxy = shop.proxy();
    shop.payments.next([Trick::Refuse]);
    shop.inventory.next_undo(std::iter::repeat_n(Trick::Fails(500), 3));
    let mut client = proxy.connect();
    client.send(checkout("order-1"));
    shop.inventory.origin.wait_for(3);
    proxy.signal("KILL");
    let next = shop.proxy_with(|command| {
        command.env("RINGWAY_CLOCK_OFFSET", "3600");
    });
    (shop, next)
}

#[test]
fn a_compensation_that_has_failed_for_an_hour_works_in_the_end() {
    let (shop, proxy) = an_hour_later("2h");
    assert_eq!(proxy.insists("order-1").problem(), "saga-compensated");
    assert_eq!(shop.effects("order-1"), [false; 3]);
}

#[test]
fn a_compensation_that_has_failed_for_too_long_is_tried_once_more() {
    let (shop, proxy) = an_hour_later("30m");
    shop.inventory.next_undo(std::iter::repeat_n(Trick::Fails(500), 100_000));
    eventually("a stuck saga", || proxy.sagas("stuck").len() == 1);
    assert_eq!(proxy.checks_out("order-1").problem(), "saga-stuck");
    shop.inventory.undos.lock().unwrap().clear();
    let id = proxy.sagas("stuck")[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(decide(&proxy, &id, "retry", "").status, 200);
    assert_eq!(proxy.insists("order-1").problem(), "saga-compensated");
    assert_eq!(shop.effects("order-1"), [false; 3]);
}

/// Of decisions at the same moment one counts, and it is in the log before it is answered.
#[test]
fn one_decision_counts() {
    let (shop, proxy, id, location) = stuck(false);
    shop.inventory.undos.lock().unwrap().clear();
    let accepted = std::thread::scope(|scope| {
        let decide = |word| if word == 0 { ("retry", "") } else { ("resolve", "{\"outcome\":\"compensated\"}") };
        let deciding: Vec<_> = (0..8)
            .map(|number| {
                let (proxy, id) = (&proxy, &id);
                scope.spawn(move || {
                    let (word, body) = decide(number % 2);
                    let answer = self::decide(proxy, id, word, body);
                    if answer.status == 200 {
                        assert!(proxy.sagas("stuck").is_empty(), "it is answered before it is durable");
                    }
                    answer.status
                })
            })
            .collect();
        deciding.into_iter().map(|one| one.join().unwrap()).filter(|status| *status == 200).count()
    });
    assert_eq!(accepted, 1);
    assert_eq!(proxy.insists("order-1").problem(), "saga-compensated");
    assert_eq!(proxy.saga(&location, "alice").json()["state"], "compensated");
}
