//! A primary that is lost: with `WAIT` and an append-only file no key runs twice; without, some do, and the harness
//! sees it.

use super::*;
use crate::engines::{Link, Redis};
use crate::support::eventually;

const AOF: &[&str] = &["appendonly yes", "appendfsync always"];

fn start(site: &Site, node: &Counting, count: usize) -> Vec<Proxy> {
    let proxies: Vec<Proxy> = (0..count).map(|_| site.proxy(node.address(), "lease: 4s")).collect();
    for proxy in &proxies {
        eventually("a connection", || is_up(proxy));
    }
    proxies
}

#[test]
fn no_key_runs_twice_through_the_promotion_of_a_replica_that_claims_wait_for() {
    let Some(mut primary) = Redis::start(AOF) else { return };
    let replica = primary.replica(AOF);
    let site = Site::with(&[primary.port, replica.port], ", durability: { replicas: 1 }");
    let node = Counting::start();
    let proxies = start(&site, &node, 3);
    let is_over = AtomicBool::new(false);
    let paid = std::thread::scope(|scope| {
        let paid = scope.spawn(|| pay_through(&proxies, "sync", 6, &is_over));
        eventually("some payments", || node.charged() > 50);
        // Claims that the replica does not acknowledge are sent again.
        replica.signal("STOP");
        assert_eq!(proxies[0].ask(pay("silent")).problem(), "store-unavailable");
        replica.signal("CONT");
        let before = node.charged();
        eventually("payments after that", || node.charged() > before + 50);
        primary.kill();
        replica.promote();
        // The new primary has no replica: nothing is granted until it has.
        eventually("the loss", || proxies.iter().all(|proxy| !is_up(proxy)));
        let _next = replica.replica(AOF);
        eventually("the new primary", || proxies.iter().all(is_up));
        let before = node.charged();
        eventually("payments there", || node.charged() > before + 50);
        is_over.store(true, Ordering::Relaxed);
        paid.join().unwrap()
    });
    assert!(paid > 100);
    assert_eq!(node.twice(), Vec::<String>::new());
    proxies[0].logs("the idempotency store has moved to another server");
}

#[test]
fn without_waiting_for_a_replica_the_harness_sees_keys_run_twice() {
    let Some(mut primary) = Redis::start(AOF) else { return };
    let link = Link::to(primary.port);
    let replica = primary.replica_through(link.port(), AOF);
    let site = Site::new(&[primary.port, replica.port]);
    let node = Counting::start();
    let proxies = start(&site, &node, 2);
    assert!(promise(&proxies[0]).contains("except through a failover"), "{}", promise(&proxies[0]));
    eventually("the store, at the replica", || !replica.execute(&["KEYS", "*:store"]).is_empty());
    // What is acknowledged here does not arrive there.
    link.hold_replies(true);
    for number in 0..20 {
        let key = format!("async-{number}");
        // A machine that is busy may let a claim wait for too long.
        eventually("a payment", || proxies[number % 2].ask(pay(&key)).status == 201);
    }
    primary.kill();
    link.cut(true);
    replica.promote();
    eventually("the new primary", || proxies.iter().all(is_up));
    for number in 0..20 {
        let key = format!("async-{number}");
        eventually("an answer", || proxies[number % 2].ask(pay(&key)).status == 201);
    }
    assert!(!node.twice().is_empty(), "what the replica had not received runs again");
}

#[test]
fn no_key_runs_twice_where_the_server_is_killed_and_has_an_append_only_file() {
    let Some(mut server) = Redis::start(AOF) else { return };
    let site = Site::new(&[server.port]);
    let node = Counting::start();
    let proxies = start(&site, &node, 2);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let paid = scope.spawn(|| pay_through(&proxies, "killed", 4, &is_over));
        for round in 1..4 {
            eventually("payments", || node.charged() > 40 * round);
            server.kill();
            server.run();
        }
        eventually("payments after that", || node.charged() > 200);
        is_over.store(true, Ordering::Relaxed);
        paid.join().unwrap();
    });
    assert_eq!(node.twice(), Vec::<String>::new());
}

#[test]
fn an_old_primary_that_comes_back_is_not_written_to() {
    let Some(mut primary) = Redis::start(AOF) else { return };
    let replica = primary.replica(AOF);
    let site = Site::new(&[primary.port, replica.port]);
    let node = Counting::start();
    let proxies = start(&site, &node, 1);
    assert_eq!(proxies[0].ask(pay("k")).status, 201);
    // A server that lacks even the store's identity would be refused as another store.
    replica.catch_up_with(&primary);
    primary.kill();
    replica.promote();
    eventually("the new primary", || proxies[0].ask(pay("there")).status == 201);
    // Both take writes now; the one that was promoted knows the other's history.
    primary.run();
    let later = start(&site, &node, 1);
    assert_eq!(later[0].ask(pay("there")).text(), "charged there as 1");
    assert!(promise(&later[0]).contains(&format!("127.0.0.1:{}", replica.port)), "{}", promise(&later[0]));
    assert_eq!((node.of("k"), node.of("there")), (1, 1));
}
