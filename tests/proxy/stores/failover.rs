//! A primary that is lost: with a synchronous standby no key runs twice; with an asynchronous one some do, and the
//! harness sees it.

use super::*;
use crate::engines::{Link, Postgres};
use crate::idempotency::is_replay;
use crate::support::eventually;
use std::sync::atomic::{AtomicBool, Ordering};

/// A primary with a standby, the link over which it streams, and a place that names both.
fn pair(settings: &[&str]) -> Option<(Postgres, Postgres, Link, Place)> {
    let primary = Postgres::start_with(settings)?;
    primary.database("pay");
    let link = Link::to(primary.port);
    let standby = primary.standby("s1", link.port(), &["fsync=off"]);
    let is_streaming = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
    eventually("the standby", || primary.execute("postgres", is_streaming) == "1");
    let place = Place::new(&url_of(&[primary.port, standby.port], "pay"));
    Some((primary, standby, link, place))
}

#[test]
fn no_key_runs_twice_through_a_failover_to_a_synchronous_standby() {
    let Some((mut primary, standby, _link, place)) = pair(&["fsync=off", "synchronous_standby_names=s1"]) else {
        return;
    };
    let node = Counting::start();
    let proxies: Vec<Proxy> = (0..3).map(|_| place.proxy(node.address(), "lease: 4s")).collect();
    for proxy in &proxies {
        eventually("a connection", || is_up(proxy));
    }
    let is_over = AtomicBool::new(false);
    let paid = std::thread::scope(|scope| {
        let paid = scope.spawn(|| pay_through(&proxies, "sync", 6, &is_over));
        eventually("some payments", || node.charged() > 50);
        // Commits wait for a standby that is silent; each wait is cancelled, and its claims are sent again.
        standby.signal("STOP");
        eventually("cancelled waits", || primary.log().contains("canceling wait for synchronous replication"));
        standby.signal("CONT");
        let before = node.charged();
        eventually("payments after that", || node.charged() > before + 50);
        standby.signal("STOP");
        eventually("the silence", || proxies.iter().any(|proxy| !is_up(proxy)));
        primary.kill();
        standby.signal("CONT");
        standby.promote();
        eventually("the new primary", || proxies.iter().all(is_up));
        let before = node.charged();
        eventually("payments there", || node.charged() > before + 50);
        is_over.store(true, Ordering::Relaxed);
        paid.join().unwrap()
    });
    assert!(paid > 100);
    assert_eq!(node.twice(), Vec::<String>::new());
}

#[test]
fn a_result_that_the_standby_may_lack_goes_to_no_client() {
    let Some((primary, standby, _link, place)) = pair(&["fsync=off", "synchronous_standby_names=s1"]) else {
        return;
    };
    let node = Counting::start();
    let proxy = place.proxy(node.address(), "lease: 4s");
    eventually("a connection", || is_up(&proxy));
    for key in ["old", "later"] {
        eventually("a payment", || proxy.ask(pay(key)).status == 201);
    }
    let age = "UPDATE ringway_records SET touched = touched - interval '2 minutes' WHERE key = 'old'";
    primary.execute("pay", age);
    // A later claim shows that the standby has what is as old as that.
    eventually("another payment", || proxy.ask(pay("after")).status == 201);
    standby.signal("STOP");
    // Committed here, and not there.
    primary.execute(
        "pay",
        "SET synchronous_commit = local; UPDATE ringway_records SET touched = now() WHERE key = 'later'",
    );
    assert!(is_replay(&proxy.ask(pay("old"))), "the standby has it");
    let refused = proxy.ask(pay("later"));
    assert_eq!((refused.status, refused.problem().as_str()), (503, "store-unavailable"));
    standby.signal("CONT");
    eventually("the result", || is_replay(&proxy.ask(pay("later"))));
    assert_eq!((node.of("old"), node.of("later")), (1, 1));
}

#[test]
fn with_an_asynchronous_standby_the_harness_sees_keys_run_twice() {
    let Some((mut primary, standby, link, place)) = pair(&["fsync=off"]) else { return };
    let node = Counting::start();
    let proxies: Vec<Proxy> = (0..2).map(|_| place.proxy(node.address(), "lease: 4s")).collect();
    for proxy in &proxies {
        eventually("a connection", || is_up(proxy));
    }
    let promise = proxies[0].admin_get("/api/status").json()["idempotency"]["promise"].to_string();
    assert!(promise.contains("except for claims younger than the replication lag"), "{promise}");
    let arrived = "SELECT count(*) FROM ringway_store";
    eventually("the store, at the standby", || standby.ask("pay", arrived).as_deref() == Some("1"));
    // What is acknowledged here does not arrive there.
    link.hold_replies(true);
    for number in 0..20 {
        let key = format!("async-{number}");
        // A machine that is busy may let a claim wait for too long.
        eventually("a payment", || proxies[number % 2].ask(pay(&key)).status == 201);
    }
    primary.kill();
    link.cut(true);
    standby.promote();
    eventually("the new primary", || proxies.iter().all(is_up));
    for number in 0..20 {
        let key = format!("async-{number}");
        eventually("an answer", || proxies[number % 2].ask(pay(&key)).status == 201);
    }
    assert!(!node.twice().is_empty(), "what the standby had not received runs again");
}
