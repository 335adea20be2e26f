//! Several proxies on one store: one run for all, one answer for all.

use super::*;
use crate::engines::{PgBouncer, Postgres};
use crate::idempotency::{held, is_replay, seen};
use crate::support::{Barrier, eventually};
use std::sync::atomic::{AtomicUsize, Ordering};

#[test]
fn many_clients_of_three_proxies_run_each_key_once() {
    let Some(server) = Postgres::shared() else { return };
    let Some(pooler) = PgBouncer::before(server) else { return };
    server.database("sharing");
    let (direct, pooled) = (Place::new(&server.url("sharing")), Place::new(&pooler.url("sharing")));
    let node = Counting::start();
    let proxies = [
        direct.proxy(node.address(), "on_concurrent: wait"),
        direct.proxy(node.address(), "on_concurrent: wait"),
        pooled.proxy(node.address(), "on_concurrent: wait"),
    ];
    for proxy in &proxies {
        eventually("a connection", || is_up(proxy));
    }
    let keys: Vec<String> = (0..60).map(|number| format!("key-{number}")).collect();
    let answers = Mutex::new(HashMap::<String, Vec<_>>::new());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                loop {
                    let turn = next.fetch_add(1, Ordering::Relaxed);
                    let Some(key) = keys.get(turn / 6) else { break };
                    let answer = proxies[turn % 3].ask(pay(key));
                    answers.lock().unwrap().entry(key.clone()).or_default().push(seen(&answer));
                }
            });
        }
    });
    for (key, answers) in answers.into_inner().unwrap() {
        assert_eq!(node.of(&key), 1, "{key}");
        assert!(answers[0].0.contains("201"), "{answers:?}");
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{key}: {answers:?}");
    }
}

#[test]
fn a_key_that_runs_elsewhere_is_refused_and_one_that_a_dead_proxy_held_is_unknown() {
    let Some(server) = Postgres::shared() else { return };
    let place = Place::new(&server.database("dead"));
    let (origin, began, gate) = held(|peer| peer.reply(200, "", "late"));
    let mut holder = place.proxy(origin.address, "lease: 1s");
    let other = place.proxy(origin.address, "lease: 1s");
    eventually("both connections", || is_up(&holder) && is_up(&other));
    let mut client = holder.connect();
    client.send(pay("k"));
    began.wait();
    let refused = other.ask(pay("k"));
    assert_eq!((refused.status, refused.problem().as_str()), (409, "request-in-progress"));
    let record = &other.records("k")[0];
    assert_eq!(record["state"], "running");
    let name = record["holder"].as_str().unwrap();
    assert!(name.ends_with(&format!("/{}", holder.pid())), "{name}");
    holder.signal("KILL");
    eventually("the end", || holder.has_ended());
    eventually("the burial", || other.ask(pay("k")).problem() == "outcome-unknown");
    other.logs("the outcome of a request is unknown");
    gate.open();
}

#[test]
fn the_api_of_every_proxy_lists_and_releases_the_records_of_all() {
    let Some(server) = Postgres::shared() else { return };
    let place = Place::new(&server.database("api"));
    let node = Counting::start();
    let [one, other] = [place.proxy(node.address(), ""), place.proxy(node.address(), "")];
    eventually("both connections", || is_up(&one) && is_up(&other));
    assert_eq!(one.ask(pay("k")).status, 201);
    let replayed = other.ask(pay("k"));
    assert!(is_replay(&replayed) && replayed.text() == "charged k as 0");
    let mismatch = other.ask(charge("/pay", "k", "another body"));
    assert_eq!((mismatch.status, mismatch.problem().as_str()), (422, "idempotency-key-reused"));
    for proxy in [&one, &other] {
        eventually("the count", || proxy.metric("ringway_idempotency_records") == 1.0);
    }
    let records = other.records("k");
    assert_eq!((records.len(), &records[0]["state"], &records[0]["status"]), (1, &"done".into(), &201.into()));
    assert!(records[0]["expires_in"].as_f64().unwrap() > 86_000.0);
    let id = records[0]["id"].as_str().unwrap();
    assert_eq!(other.admin_delete(&format!("/api/idempotency/{id}")).status, 200);
    assert!(one.records("k").is_empty());
    assert_eq!(one.ask(pay("k")).text(), "charged k as 1", "as the operator said");
    let promise = one.admin_get("/api/status").json()["idempotency"]["promise"].to_string();
    assert!(promise.contains("replication lag"), "{promise}");
}

#[test]
fn results_expire_by_the_clock_of_the_server() {
    let Some(server) = Postgres::shared() else { return };
    let place = Place::new(&server.database("expiry"));
    let node = Counting::start();
    let proxy = place.proxy(node.address(), "ttl: 1h");
    eventually("a connection", || is_up(&proxy));
    assert_eq!(proxy.ask(pay("k")).status, 201);
    server.execute("expiry", "UPDATE ringway_records SET expires = expires - interval '2 hours'");
    assert_eq!(proxy.ask(pay("k")).text(), "charged k as 1");
    server.execute("expiry", "UPDATE ringway_records SET expires = expires - interval '2 hours'");
    eventually("upkeep", || server.execute("expiry", "SELECT count(*) FROM ringway_records") == "0");
}

#[test]
fn a_large_result_is_kept_whole_for_every_proxy() {
    let Some(server) = Postgres::shared() else { return };
    let place = Place::new(&server.database("large"));
    let body = "0123456789abcdef".repeat(12 << 16);
    let node = Origin::start({
        let body = body.clone();
        move |_, peer| peer.reply(200, "", &body)
    });
    let [one, other] = [(); 2].map(|()| place.proxy(node.address, "max_response: 16MiB"));
    eventually("both connections", || is_up(&one) && is_up(&other));
    let first = one.ask(pay("k"));
    assert_eq!((first.status, first.body.len()), (200, body.len()));
    let replayed = other.ask(pay("k"));
    assert!(is_replay(&replayed) && replayed.body == body.as_bytes());
    assert_eq!(node.asked(), 1);
}

#[test]
fn proxies_whose_clocks_disagree_by_days_agree_on_every_record() {
    let Some(server) = Postgres::shared() else { return };
    let place = Place::new(&server.database("clocks"));
    let gate = Barrier::default();
    let node = Counting::start_with(gate.clone());
    let proxies = [86_400, 0, -86_400].map(|off| place.proxy_off_by(off, node.address(), "ttl: 1h, lease: 1s"));
    let times = proxies.each_ref().map(|proxy| {
        eventually("a connection", || is_up(proxy));
        proxy.admin_get("/api/status").json()["last_reload"]["time"].as_str().unwrap()[..10].to_owned()
    });
    assert!(times[0] > times[1] && times[1] > times[2], "the clocks do not disagree: {times:?}");

    // Each key runs at one of them, whose answer all of them tell.
    let keys: Vec<String> = (0..12).map(|number| format!("key-{number}")).collect();
    let replayed = |first: usize, key: &str, is_first: bool| {
        let answers: Vec<_> = (first..first + 3).map(|turn| proxies[turn % 3].ask(pay(key))).collect();
        assert!(answers.iter().all(|answer| seen(answer) == seen(&answers[0])), "{key}");
        assert_eq!(answers[0].status, 201, "{key}: {}", answers[0].text());
        assert_eq!(answers.iter().filter(|answer| is_replay(answer)).count(), 3 - usize::from(is_first), "{key}");
        assert_eq!(node.of(key), 1, "{key}");
    };
    keys.iter().enumerate().for_each(|(turn, key)| replayed(turn, key, true));
    for proxy in &proxies {
        let left = proxy.records("key-0")[0]["expires_in"].as_f64().unwrap();
        assert!((3500.0..=3660.0).contains(&left), "{left}");
    }
    server.execute("clocks", "UPDATE ringway_records SET expires = expires - interval '50 minutes'");

    // Each of them runs a key for several leases, during which all of them look for dead holders and for expired
    // records.
    let slow = ["slow-0", "slow-1", "slow-2"];
    let mut clients = [0, 1, 2].map(|turn| {
        let mut client = proxies[turn].connect();
        client.send(pay(slow[turn]));
        client
    });
    eventually("the runs", || slow.iter().all(|key| node.of(key) == 1));
    let beats = "SELECT count(*) FROM ringway_holders WHERE beat >
                 (SELECT max(touched) FROM ringway_records WHERE state = 0) + interval '2500 milliseconds'";
    eventually("the heartbeats", || server.execute("clocks", beats) == "3");
    for proxy in &proxies {
        for key in slow {
            let refused = proxy.ask(pay(key));
            assert_eq!((refused.status, refused.problem().as_str()), (409, "request-in-progress"), "{key}");
        }
    }
    gate.open();
    for client in &mut clients {
        assert_eq!(client.answer().status, 201);
    }
    keys.iter().map(String::as_str).chain(slow).enumerate().for_each(|(turn, key)| replayed(turn, key, false));

    // The end of a record is the same for all of them, too.
    server.execute("clocks", "UPDATE ringway_records SET expires = expires - interval '2 hours'");
    for (turn, key) in keys.iter().enumerate() {
        let answers: Vec<_> = (turn..turn + 3).map(|turn| proxies[turn % 3].ask(pay(key))).collect();
        assert!(answers.iter().all(|answer| seen(answer) == seen(&answers[0])), "{key}");
        assert_eq!(node.of(key), 2, "{key}");
    }
}
