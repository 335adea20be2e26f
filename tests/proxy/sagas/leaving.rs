//! Proxies that are reloaded, upgraded and drained while sagas run.

use super::*;

#[test]
fn a_reload_does_not_change_a_running_saga() {
    let shop = Shop::sqlite();
    let proxy = shop.proxy();
    let gate = shop.inventory.next_waits();
    std::thread::scope(|scope| {
        let first = scope.spawn(|| proxy.checks_out("order-1"));
        shop.inventory.origin.wait_for(1);
        proxy.reconfigure(&shop.text().replace("/charges", "/elsewhere").replace("status: 201", "status: 200"));
        gate.open();
        assert_eq!(first.join().unwrap().status, 201);
        assert_eq!(shop.payments.last().path(), "/charges");
        assert_eq!(proxy.checks_out("order-2").status, 200);
        assert_eq!(shop.payments.last().path(), "/elsewhere");
    });
}

#[test]
fn a_repetition_has_the_answer_of_its_record_although_a_reload_asks_for_other_values() {
    let shop = Shop::sqlite();
    let proxy = shop.proxy();
    let done = proxy.checks_out("done");
    assert_eq!(done.status, 201, "{done:?}");
    let gate = shop.inventory.next_waits();
    std::thread::scope(|scope| {
        let first = scope.spawn(|| proxy.checks_out("running"));
        shop.inventory.origin.wait_for(2);
        proxy.reconfigure(&shop.text().replace("${request.body.amount}", "${request.body.price}"));
        let again = proxy.checks_out("done");
        assert_eq!((again.status, &again.body), (201, &done.body), "{again:?}");
        assert_eq!(again.field("idempotent-replayed").as_deref(), Some("true"));
        let again = proxy.checks_out("running");
        assert_eq!((again.status, again.problem().as_str()), (409, "saga-running"), "{again:?}");
        assert!(again.field("location").is_some());
        let other = proxy.connect().request(by("alice", "done", "{\"order\":\"other\",\"amount\":2}"));
        assert_eq!(other.problem(), "idempotency-key-reused");
        let new = proxy.checks_out("new");
        assert_eq!((new.status, new.problem().as_str()), (400, "saga-input"), "{new:?}");
        gate.open();
        assert_eq!(first.join().unwrap().status, 201, "it goes on as it began");
    });
    assert_eq!(shop.inventory.origin.asked(), 2);
}

#[test]
fn a_repetition_waits_for_its_record_although_a_reload_asks_for_other_values() {
    let mut shop = Shop::sqlite();
    shop.keys = "lease: 1s, on_concurrent: wait, wait: 10s";
    let proxy = shop.proxy();
    let gate = shop.inventory.next_waits();
    std::thread::scope(|scope| {
        let first = scope.spawn(|| proxy.checks_out("order-1"));
        shop.inventory.origin.wait_for(1);
        proxy.reconfigure(&shop.text().replace("${request.body.amount}", "${request.body.price}"));
        let again = scope.spawn(|| proxy.checks_out("order-1"));
        eventually("a look-up", || {
            proxy.metric("ringway_store_duration_seconds_count{op=\"look_up\",store=\"idempotency\"}") >= 2.0
        });
        gate.open();
        let (first, again) = (first.join().unwrap(), again.join().unwrap());
        assert_eq!((first.status, again.status), (201, 201), "{again:?}");
        assert_eq!(again.field("idempotent-replayed").as_deref(), Some("true"));
    });
}

#[test]
fn an_upgrade_hands_sagas_over_and_no_step_is_sent_twice() {
    hands_over_at_an_upgrade(Shop::sqlite());
}

#[test]
fn an_upgrade_hands_sagas_in_a_shared_store_over_and_no_step_is_sent_twice() {
    let Some(shop) = Shop::postgres() else { return };
    hands_over_at_an_upgrade(shop);
}

fn hands_over_at_an_upgrade(mut shop: Shop) {
    shop.keys = "lease: 5s";
    let mut proxy = shop.proxy();
    // Its clients are gone: nothing keeps them with the old process.
    shop.payments.next(std::iter::repeat_n(Trick::Busy, 20));
    for order in 0..5 {
        let mut client = proxy.connect();
        client.send(checkout(&format!("order-{order}")));
        shop.inventory.origin.wait_for(order + 1);
    }
    proxy.upgrade();
    for order in 0..5 {
        let order = format!("order-{order}");
        let answer = proxy.insists(&order);
        assert_eq!(answer.status, 201, "{answer:?}");
        shop.books_balance(&order);
    }
    assert_eq!(shop.inventory.origin.asked(), 5, "no reservation was sent twice");
    assert_eq!(shop.shipping.origin.asked(), 5);
}

#[test]
fn a_saga_of_a_later_version_is_left_alone_and_logged_once() {
    let shop = Shop::sqlite();
    let mut proxy = shop.proxy();
    shop.payments.next(std::iter::repeat_n(Trick::Busy, 200));
    let mut client = proxy.connect();
    client.send(checkout("order-1"));
    shop.payments.origin.wait_for(1);
    drop(client);
    proxy.signal("TERM");
    eventually("the end of the proxy", || proxy.has_ended());
    let Store::Sqlite(folder) = &shop.store else { unreachable!() };
    let store = rusqlite::Connection::open(folder.path().join("store.db")).unwrap();
    store.execute("UPDATE sagas SET definition = '{\"version\":99}'", []).unwrap();
    let next = shop.proxy();
    next.logs("a saga cannot be taken over");
    let looks = || next.metric("ringway_store_duration_seconds_count{op=\"sagas\",store=\"idempotency\"}");
    let before = looks();
    eventually("more looks", || looks() >= before + 5.0);
    assert_eq!(next.log().matches("a saga cannot be taken over").count(), 1, "{}", next.log());
    assert_eq!(next.checks_out("order-1").problem(), "saga-running");
}

#[test]
fn a_drained_proxy_leaves_its_sagas_to_the_next() {
    let shop = Shop::sqlite();
    leaves_to_the_next(shop, |shop| shop.proxy());
}

/// The next one is there already, and has not to wait until the lease of the one that leaves is over.
#[test]
fn a_drained_proxy_leaves_its_sagas_to_another_of_the_fleet() {
    let Some(mut shop) = Shop::postgres() else { return };
    shop.keys = "lease: 10m";
    let other = shop.proxy();
    leaves_to_the_next(shop, |_| other);
}

fn leaves_to_the_next(mut shop: Shop, next: impl FnOnce(&Shop) -> Proxy) {
    shop.times = "deadline: 60s, stuck_after: 1h".to_owned();
    let mut proxy = shop.proxy();
    shop.payments.next(std::iter::repeat_n(Trick::Busy, 200));
    let mut client = proxy.connect();
    client.send(checkout("order-1"));
    shop.payments.origin.wait_for(2);
    drop(client);
    proxy.signal("TERM");
    eventually("the end of the proxy", || proxy.has_ended());
    shop.payments.steps.lock().unwrap().clear();
    let next = next(&shop);
    assert_eq!(next.insists("order-1").status, 201);
    assert_eq!((shop.inventory.origin.asked(), shop.shipping.origin.asked()), (1, 1));
    shop.books_balance("order-1");
}
