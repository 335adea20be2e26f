//! Proxies that are reloaded, upgraded and drained while sagas run.

use super::*;

#[test]
fn a_reload_does_not_change_a_running_saga() {
    let shop = Shop::sqlite();
    let proxy = shop.proxy();
    let gate = Barrier::default();
    shop.inventory.next([Trick::Waits(gate.clone())]);
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
fn an_upgrade_hands_sagas_over_and_no_step_is_sent_twice() {
    let shop = Shop::sqlite();
    let mut proxy = shop.proxy();
    let gate = Barrier::default();
    // Its clients are gone: nothing keeps them with the old process.
    shop.payments.next(std::iter::repeat_n(Trick::Busy, 20));
    for order in 0..5 {
        let mut client = proxy.connect();
        client.send(checkout(&format!("order-{order}")));
        shop.inventory.origin.wait_for(order + 1);
    }
    proxy.upgrade();
    gate.open();
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
fn a_drained_proxy_leaves_its_sagas_to_the_next() {
    let mut shop = Shop::sqlite();
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
    let next = shop.proxy();
    assert_eq!(next.insists("order-1").status, 201);
    assert_eq!((shop.inventory.origin.asked(), shop.shipping.origin.asked()), (1, 1));
    shop.books_balance("order-1");
}
