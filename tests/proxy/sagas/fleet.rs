//! Proxies that are killed at every boundary of the log, stopped past their lease, and services that fail at random.

use super::*;

/// Kills the first proxy at a boundary of its log, and has another one go on.
fn killed_at(shop: &Shop, boundary: &str, order: &str) {
    let mut proxy = shop.proxy_with(|command| {
        command.env("RINGWAY_SAGA_KILL", boundary);
    });
    let mut client = proxy.connect();
    client.send(checkout(order));
    eventually(&format!("the end of the proxy at {boundary}"), || proxy.has_ended());
    let next = shop.proxy();
    let answer = next.insists(order);
    shop.books_balance(order);
    let effects = shop.effects(order);
    assert_eq!(answer.status == 201, effects == [true; 3], "{boundary}: {answer:?} {effects:?}");
}

fn boundaries(appends: u32) -> impl Iterator<Item = String> {
    (1..=appends).flat_map(|number| [format!("before:{number}"), format!("after:{number}")])
}

#[test]
fn a_proxy_that_is_killed_at_any_boundary_of_the_log_leaves_books_that_balance() {
    let mut shop = Shop::sqlite();
    for has_pivot in [true, false] {
        shop.has_pivot = has_pivot;
        for boundary in boundaries(4) {
            killed_at(&shop, &boundary, &format!("done-{has_pivot}-{}", boundary.replace(':', "-")));
        }
    }
    // On the way back: the turn, and each undo.
    shop.has_pivot = true;
    for boundary in boundaries(6) {
        shop.shipping.next([Trick::Refuse]);
        killed_at(&shop, &boundary, &format!("undone-{}", boundary.replace(':', "-")));
        shop.shipping.steps.lock().unwrap().clear();
    }
}

/// Kills a proxy of a fleet at a boundary of its log, and has the others go on. Returns their answer.
fn killed_in_a_fleet(shop: &Shop, others: &[Proxy; 2], boundary: &str, order: &str) -> Answer {
    let mut proxy = shop.proxy_with(|command| {
        command.env("RINGWAY_SAGA_KILL", boundary);
    });
    let mut client = proxy.connect();
    client.send(checkout(order));
    eventually("a step", || proxy.has_ended() || !shop.inventory.of(order).is_empty());
    // On a machine that stands still for a lease, the saga is taken from it before.
    let is_over = |other: &Proxy| is_final(&other.checks_out(order));
    eventually(&format!("the end of the proxy at {boundary}"), || proxy.has_ended() || is_over(&others[0]));
    let answers = others.each_ref().map(|other| other.insists(order));
    assert_eq!(answers[0].body, answers[1].body, "{boundary}");
    shop.books_balance(order);
    let [answer, _] = answers;
    answer
}

#[test]
fn another_proxy_goes_on_where_one_of_three_is_killed() {
    let Some(shop) = Shop::postgres() else { return };
    let others = [shop.proxy(), shop.proxy()];
    for boundary in boundaries(4) {
        let answer = killed_in_a_fleet(&shop, &others, &boundary, &format!("order-{}", boundary.replace(':', "-")));
        assert_eq!(answer.status, 201, "{boundary}: {answer:?}");
    }
}

#[test]
fn another_proxy_undoes_the_rest_where_one_of_three_is_killed_while_it_undoes() {
    let Some(shop) = Shop::postgres() else { return };
    let others = [shop.proxy(), shop.proxy()];
    let mut undone = 0;
    for boundary in boundaries(6) {
        let order = format!("order-{}", boundary.replace(':', "-"));
        shop.shipping.next([Trick::Refuse]);
        let answer = killed_in_a_fleet(&shop, &others, &boundary, &order);
        // Killed before it was refused, shipping is asked again.
        assert_eq!(answer.status == 201, shop.effects(&order) == [true; 3], "{boundary}: {answer:?}");
        let was_turned = shop.inventory.of(&order)[0].is_undone;
        assert_eq!(was_turned, answer.status == 409, "{boundary}");
        undone += u32::from(was_turned);
        shop.shipping.steps.lock().unwrap().clear();
    }
    assert!(undone >= 5, "from the turn on all is undone: {undone}");
}

#[test]
fn an_append_whose_confirmation_is_lost_is_recognised_and_no_step_is_sent_again() {
    let Some((mut shop, link, database)) = Shop::postgres_behind_a_link() else { return };
    (shop.keys, shop.timeout) = ("lease: 10s", "5s");
    let server = crate::engines::Postgres::shared().unwrap();
    let proxy = shop.proxy();
    eventually("a connection", || proxy.checks_out("first").status == 201);
    let torn = |order: &str, asked: &dyn Fn(), gate: Barrier, appends: u32| {
        std::thread::scope(|scope| {
            let first = scope.spawn(|| proxy.checks_out(order));
            asked();
            // What is written from here on is committed, and its confirmation lost.
            link.hold_replies(true);
            gate.open();
            let sequence = "SELECT sequence FROM ringway_sagas ORDER BY created DESC LIMIT 1";
            eventually(&format!("append {appends}"), || server.execute(&database, sequence) == appends.to_string());
            link.cut(true);
            link.hold_replies(false);
            link.cut(false);
            first.join().unwrap()
        })
    };
    let asked_before = shop.services().map(|service| service.origin.asked());
    for (at, service) in shop.services().into_iter().enumerate() {
        let order = format!("order-{at}");
        let before = service.origin.asked();
        let gate = service.next_waits();
        let answer = torn(&order, &|| service.origin.wait_for(before + 1), gate, at as u32 + 2);
        assert_eq!(answer.status, 201, "{order}: {answer:?}");
        shop.books_balance(&order);
    }
    let asked = shop.services().map(|service| service.origin.asked());
    assert_eq!([0, 1, 2].map(|at| asked[at] - asked_before[at]), [3, 3, 3], "no step was sent again");
    // On the way back: the turn is the fourth append, the first undo the fifth.
    shop.shipping.next([Trick::Refuse]);
    let before = shop.payments.origin.asked();
    let gate = shop.payments.next_undo_waits();
    let answer = torn("order-3", &|| shop.payments.origin.wait_for(before + 2), gate, 5);
    assert_eq!(answer.problem(), "saga-compensated", "{answer:?}");
    assert_eq!(shop.effects("order-3"), [false; 3]);
    assert_eq!(shop.payments.origin.asked(), before + 2, "no undo was sent again");
    // Each entry is there once.
    let logs = server.execute(&database, "SELECT log FROM ringway_sagas ORDER BY created");
    let entries = logs.matches("\"what\":\"started\"").count();
    assert_eq!(entries, 5 * 3, "{logs}");
    assert_eq!(logs.matches("\"what\":\"undone\"").count(), 2, "{logs}");
}

#[test]
fn an_owner_that_was_stopped_past_its_lease_sends_nothing_more() {
    let Some(shop) = Shop::postgres() else { return };
    let (owner, other) = (shop.proxy(), shop.proxy());
    let gate = shop.payments.next_waits();
    let mut client = owner.connect();
    client.send(checkout("order-1"));
    shop.payments.origin.wait_for(1);
    owner.signal("STOP");
    gate.open();
    let answer = other.insists("order-1");
    assert_eq!(answer.status, 201, "{answer:?}");
    let asked = shop.services().map(|service| service.origin.asked());
    owner.signal("CONT");
    assert_eq!(owner.insists("order-1").body, answer.body);
    assert_eq!(other.checks_out("order-2").status, 201);
    assert_eq!(owner.checks_out("order-3").status, 201, "it works as before");
    let after = shop.services().map(|service| service.origin.asked());
    let more = [0, 1, 2].map(|at| after[at] - asked[at]);
    assert_eq!(more, [2, 2, 2], "the stopped owner has sent nothing of the first order");
    shop.books_balance("order-1");
}

/// Services that do something else than they should in one of a few requests.
fn unreliable(shop: &Shop, random: &mut fastrand::Rng, count: usize) {
    let steps = [
        Trick::Refuse,
        Trick::Busy,
        Trick::Works(500),
        Trick::Fails(500),
        Trick::WorksSilently,
        Trick::AnswersHalf,
        Trick::HangsUp,
    ];
    let undos = [Trick::Fails(500), Trick::Works(500), Trick::WorksSilently, Trick::HangsUp];
    for service in shop.services() {
        let pick = |random: &mut fastrand::Rng, tricks: &[Trick]| match random.u32(..100) {
            0..70 => Trick::Honours,
            _ => tricks[random.usize(..tricks.len())].clone(),
        };
        let planned: Vec<Trick> = (0..count * 4).map(|_| pick(random, &steps)).collect();
        service.next(planned);
        let planned: Vec<Trick> = (0..count * 4).map(|_| pick(random, &undos)).collect();
        service.next_undo(planned);
    }
}

/// Many sagas at three proxies, of which one is killed now and then, before services that fail at random.
///
/// `RINGWAY_SAGAS=1000 cargo test --test proxy sagas::fleet::the_books -- --nocapture` runs it for longer.
#[test]
fn the_books_balance_whatever_fails() {
    let count: usize = std::env::var("RINGWAY_SAGAS").map_or(40, |count| count.parse().unwrap());
    let Some(mut shop) = Shop::postgres() else { return };
    (shop.times, shop.has_pivot) = ("deadline: 2s, stuck_after: 1h".to_owned(), true);
    let seed = std::env::var("RINGWAY_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("RINGWAY_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    unreliable(&shop, &mut random, count);
    let proxies = Mutex::new([shop.proxy(), shop.proxy(), shop.proxy()]);
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let next = AtomicU32::new(0);
    let addresses = || proxies.lock().unwrap().each_ref().map(|proxy| proxy.address);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8)
            .map(|client: usize| {
                let (addresses, next) = (&addresses, &next);
                scope.spawn(move || {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed) as usize;
                        if number >= count {
                            return;
                        }
                        let order = format!("order-{number}");
                        let at = std::cell::Cell::new(client);
                        eventually(&format!("the end of {order}"), || {
                            at.set(at.get() + 1);
                            let answer = attempt(addresses()[at.get() % 3], &order);
                            let is_final = answer.is_some_and(|answer| {
                                answer.starts_with("HTTP/1.1 201") || answer.contains("saga-compensated")
                            });
                            is_final || {
                                std::thread::sleep(Duration::from_millis(10));
                                false
                            }
                        });
                    }
                })
            })
            .collect();
        let killer = scope.spawn(|| {
            let mut random = fastrand::Rng::with_seed(seed);
            while !is_over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(random.u64(500..1500)));
                let at = random.usize(..3);
                let fresh = shop.proxy();
                let mut proxies = proxies.lock().unwrap();
                proxies[at].signal("KILL");
                proxies[at] = fresh;
            }
        });
        clients.into_iter().for_each(|client| client.join().unwrap());
        is_over.store(true, Ordering::Relaxed);
        killer.join().unwrap();
    });
    let mut done = 0;
    for number in 0..count {
        let order = format!("order-{number}");
        shop.books_balance(&order);
        done += usize::from(shop.effects(&order) == [true; 3]);
    }
    println!("{count} sagas: {done} done, {} undone", count - done);
    assert!(done > 0 && done < count, "the faults are as meant");
}

/// One checkout; nothing where the proxy is gone.
fn attempt(address: std::net::SocketAddr, order: &str) -> Option<String> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
    let request = checkout(order).replacen("host:", "connection: close\r\nhost:", 1);
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.contains("\r\n\r\n").then_some(answer)
}
