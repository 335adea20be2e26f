//! Several proxies on one Redis: one run for all, one answer for all.

use super::*;
use crate::engines::Redis;
use crate::idempotency::{held, is_replay, seen};
use crate::support::eventually;
use std::sync::atomic::AtomicUsize;

#[test]
fn many_clients_of_three_proxies_run_each_key_once() {
    let Some(server) = Redis::start(&[]) else { return };
    let site = Site::new(&[server.port]);
    let node = Counting::start();
    let proxies: Vec<Proxy> = (0..3).map(|_| site.proxy(node.address(), "on_concurrent: wait")).collect();
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
    assert_eq!(server.execute(&["ZCARD", "ringway:default:ids"]), "60");
}

#[test]
fn a_key_that_runs_elsewhere_is_refused_and_one_that_a_dead_proxy_held_is_unknown() {
    let Some(server) = Redis::start(&[]) else { return };
    let site = Site::new(&[server.port]);
    let (origin, began, gate) = held(|peer| peer.reply(200, "", "late"));
    let mut holder = site.proxy(origin.address, "lease: 1s");
    let other = site.proxy(origin.address, "lease: 1s");
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
    let Some(server) = Redis::start(&[]) else { return };
    let site = Site::new(&[server.port]);
    let node = Counting::start();
    let [one, other] = [site.proxy(node.address(), ""), site.proxy(node.address(), "")];
    eventually("both connections", || is_up(&one) && is_up(&other));
    assert_eq!(one.ask(pay("k")).status, 201);
    let replayed = other.ask(pay("k"));
    assert!(is_replay(&replayed) && replayed.text() == "charged k as 0");
    let mismatch = other.ask(charge("/pay", "k", "another body"));
    assert_eq!((mismatch.status, mismatch.problem().as_str()), (422, "idempotency-key-reused"));
    let records = other.records("k");
    assert_eq!((records.len(), &records[0]["state"], &records[0]["status"]), (1, &"done".into(), &201.into()));
    assert!(records[0]["expires_in"].as_f64().unwrap() > 86_000.0);
    let id = records[0]["id"].as_str().unwrap();
    assert_eq!(other.admin_delete(&format!("/api/idempotency/{id}")).status, 200);
    assert!(one.records("k").is_empty());
    assert_eq!(one.ask(pay("k")).text(), "charged k as 1", "as the operator said");
}

#[test]
fn results_expire_by_the_clock_of_the_server() {
    let Some(server) = Redis::start(&[]) else { return };
    let site = Site::new(&[server.port]);
    let node = Counting::start();
    let proxy = site.proxy(node.address(), "ttl: 1h");
    eventually("a connection", || is_up(&proxy));
    assert_eq!(proxy.ask(pay("k")).status, 201);
    let (hours, prefix) = (2 * 3_600_000, "ringway:default:");
    server.pass(prefix, hours);
    assert_eq!(proxy.ask(pay("k")).text(), "charged k as 1");
    server.pass(prefix, hours);
    eventually("upkeep", || server.execute(&["ZCARD", "ringway:default:ids"]) == "0");
    assert!(!server.execute(&["KEYS", "*"]).contains(":r:"), "no record is left");
}
