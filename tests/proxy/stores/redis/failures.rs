//! A Redis that is away, wrong, empty, full, slow, read-only or short of replicas: each has a clear answer, and nothing
//! runs twice.

use super::*;
use crate::engines::{Link, Redis, free_port};
use crate::idempotency::{held, is_replay};
use crate::support::eventually;
use std::process::Command;

fn adopt(text: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ringway.yaml");
    std::fs::write(&file, format!("listeners: [{{ name: http, address: \"127.0.0.1:0\" }}]\n{text}")).unwrap();
    let adopted = Command::new(env!("CARGO_BIN_EXE_ringway")).args(["store", "adopt", "--config"]).arg(&file).output();
    let adopted = adopted.unwrap();
    let told = String::from_utf8_lossy(&adopted.stdout).into_owned() + &String::from_utf8_lossy(&adopted.stderr);
    assert!(adopted.status.success(), "{told}");
    told
}

#[test]
fn a_store_that_is_away_at_the_start_refuses_or_forwards_at_once_and_comes_back_by_itself() {
    let Some(server) = Redis::start(&[]) else { return };
    let link = Link::to(server.port);
    link.cut(true);
    let site = Site::new(&[link.port()]);
    let node = Counting::start();
    let proxy = site.proxy(node.address(), "");
    let forwarding = site.proxy(node.address(), "on_store_failure: forward");
    for _ in 0..3 {
        let began = Instant::now();
        let refused = proxy.ask(pay("k"));
        assert_eq!((refused.status, refused.problem().as_str()), (503, "store-unavailable"));
        assert!(refused.field("retry-after").is_some());
        assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
    }
    assert!(!is_up(&proxy));
    assert_eq!(node.charged(), 0);
    assert_eq!(forwarding.ask(pay("f")).status, 201);
    assert_eq!(forwarding.ask(pay("f")).status, 201, "at least once, as configured");
    proxy.logs("the idempotency store cannot be used");
    let told = proxy.log().matches("the idempotency store cannot be used").count();
    assert_eq!(told, 1, "said once");
    assert_eq!(proxy.get("/nothing").status, 201, "other requests are served");
    link.cut(false);
    eventually("its return", || is_up(&proxy) && is_up(&forwarding));
    assert_eq!(proxy.ask(pay("k")).status, 201);
    assert!(is_replay(&proxy.ask(pay("k"))));
}

#[test]
fn a_claim_whose_answer_is_lost_is_sent_again_and_runs_once() {
    let Some(server) = Redis::start(&[]) else { return };
    let link = Link::to(server.port);
    let site = Site::new(&[link.port()]);
    let node = Counting::start();
    let proxy = site.proxy(node.address(), "");
    eventually("a connection", || is_up(&proxy));
    // Broken off in the middle of replies, at every length that a short reply may have.
    for bytes in 0..40 {
        let key = format!("cut-{bytes}");
        link.cut_after(bytes);
        let mut answer = proxy.ask(pay(&key));
        eventually("an answer", || {
            if answer.status == 503 || answer.status == 409 {
                answer = proxy.ask(pay(&key));
            }
            answer.status == 201
        });
        assert_eq!(node.of(&key), 1, "{key}");
    }
    // A reply that never comes: the connection is replaced after a second.
    link.hold_replies(true);
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| proxy.ask(pay("silent")));
        eventually("the claim", || server.execute(&["ZCARD", "ringway:default:ids"]) == "41");
        link.cut(true);
        link.hold_replies(false);
        link.cut(false);
        assert_eq!(asked.join().unwrap().status, 201);
    });
    assert_eq!(node.of("silent"), 1);
}

#[test]
fn a_store_that_answers_slowly_is_waited_for() {
    let Some(server) = Redis::start(&[]) else { return };
    let link = Link::to(server.port);
    let site = Site::new(&[link.port()]);
    let node = Counting::start();
    let proxy = site.proxy(node.address(), "");
    eventually("a connection", || is_up(&proxy));
    link.delay(Duration::from_millis(150));
    assert_eq!(proxy.ask(pay("k")).status, 201);
    assert!(is_replay(&proxy.ask(pay("k"))));
    // Slower than a second, it is no store.
    link.delay(Duration::from_millis(1200));
    assert_eq!(proxy.ask(pay("late")).problem(), "store-unavailable");
    assert!(!is_up(&proxy));
    link.delay(Duration::ZERO);
    eventually("an answer", || proxy.ask(pay("late")).status == 201);
    assert_eq!((node.of("k"), node.of("late")), (1, 1));
}

#[test]
fn results_are_replayed_while_the_store_can_only_be_read() {
    let Some(server) = Redis::start(&[]) else { return };
    let site = Site::new(&[server.port]);
    let node = Counting::start();
    let proxy = site.proxy(node.address(), "");
    eventually("a connection", || is_up(&proxy));
    assert_eq!(proxy.ask(pay("k")).status, 201);
    server.execute(&["REPLICAOF", "127.0.0.1", "9"]);
    assert_eq!(proxy.ask(pay("new")).problem(), "store-unavailable");
    eventually("the loss", || !is_up(&proxy));
    proxy.logs("READONLY");
    assert!(is_replay(&proxy.ask(pay("k"))));
    server.promote();
    eventually("its return", || is_up(&proxy));
    assert_eq!(proxy.ask(pay("new")).status, 201);
    assert_eq!((node.of("k"), node.of("new")), (1, 1));
}

#[test]
fn another_store_is_refused_until_it_is_adopted() {
    let Some(right) = Redis::start(&[]) else { return };
    let wrong = Redis::start(&[]).unwrap();
    let site = Site::new(&[right.port]);
    let node = Counting::start();
    let proxy = site.proxy(node.address(), "");
    eventually("a connection", || is_up(&proxy));
    assert_eq!(proxy.ask(pay("k")).status, 201);
    // The address leads to another store from now on.
    Site::new(&[wrong.port]).proxy(node.address(), "").logs("takes claims");
    proxy.reconfigure(&site.text_at(&[wrong.port], node.address(), ""));
    eventually("the refusal", || !is_up(&proxy));
    assert_eq!(proxy.ask(pay("new")).problem(), "store-unavailable");
    proxy.logs("ringway store adopt");
    proxy.reconfigure(&site.text(node.address(), ""));
    eventually("its return", || is_up(&proxy));
    assert!(is_replay(&proxy.ask(pay("k"))));
    assert_eq!((node.of("k"), node.of("new")), (1, 0));
}

#[test]
fn a_store_that_has_forgotten_everything_is_refused_until_it_is_adopted() {
    let Some(mut server) = Redis::start(&[]) else { return };
    let site = Site::new(&[server.port]);
    let node = Counting::start();
    let proxy = site.proxy(node.address(), "");
    eventually("a connection", || is_up(&proxy));
    assert_eq!(proxy.ask(pay("k")).status, 201);
    // Emptied under a connection that stays.
    server.execute(&["FLUSHALL"]);
    assert_eq!(proxy.ask(pay("k")).problem(), "store-unavailable");
    eventually("the refusal", || !is_up(&proxy));
    proxy.logs("it was restarted empty");
    server.kill();
    server.run();
    // A process of this machine that starts now refuses it, too.
    let later = site.proxy(node.address(), "");
    later.logs("it was restarted empty");
    assert_eq!(later.ask(pay("k")).problem(), "store-unavailable");
    assert_eq!(node.of("k"), 1);
    assert!(adopt(&site.text(node.address(), "")).contains("in the place of"));
    eventually("the adoption", || is_up(&proxy) && is_up(&later));
    assert_eq!(later.ask(pay("k")).text(), "charged k as 1", "the lost store alone remembered it");
}

#[test]
fn a_server_without_memory_refuses_new_keys_and_stores_what_was_claimed() {
    let Some(server) = Redis::start(&[]) else { return };
    let site = Site::new(&[server.port]);
    let (origin, began, gate) = held(|peer| peer.reply(201, "", "late"));
    let proxy = site.proxy(origin.address, "");
    eventually("a connection", || is_up(&proxy));
    let mut client = proxy.connect();
    client.send(pay("half"));
    began.wait();
    server.execute(&["CONFIG", "SET", "maxmemory", "1mb"]);
    assert!(server.info("used_memory").parse::<u64>().unwrap() > 943_718, "more than nine tenths");
    eventually("the refusal", || proxy.ask(pay("new")).problem() == "store-unavailable" && !is_up(&proxy));
    gate.open();
    assert_eq!(client.answer().text(), "late");
    assert_eq!(proxy.records("half")[0]["state"], "done", "its end is stored beyond the bound");
    assert!(is_replay(&proxy.ask(pay("half"))));
    server.execute(&["CONFIG", "SET", "maxmemory", "100mb"]);
    eventually("room", || proxy.ask(pay("new")).status == 201);
    eventually("the state", || is_up(&proxy));
}

#[test]
fn servers_that_evict_and_clusters_are_refused() {
    let Some(server) = Redis::start(&["maxmemory 100mb", "maxmemory-policy allkeys-lru"]) else { return };
    let site = Site::new(&[server.port]);
    let node = Counting::start();
    let proxy = site.proxy(node.address(), "");
    proxy.logs("`maxmemory-policy` is `allkeys-lru`");
    assert_eq!(proxy.ask(pay("k")).problem(), "store-unavailable");
    server.execute(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    eventually("its return", || is_up(&proxy));
    assert_eq!(proxy.ask(pay("k")).status, 201);
    // A policy that changes while the store is used.
    server.execute(&["CONFIG", "SET", "maxmemory-policy", "volatile-ttl"]);
    eventually("the refusal", || {
        let _ = proxy.ask(pay("other"));
        !is_up(&proxy)
    });
    // Its bus would take the port 10,000 above its own, which may be in use.
    let bus = format!("cluster-port {}", free_port());
    let cluster = Redis::start(&["cluster-enabled yes", &bus]).unwrap();
    let refused = Site::new(&[cluster.port]).proxy(node.address(), "");
    refused.logs("cluster mode");
    assert_eq!(refused.ask(pay("c")).problem(), "store-unavailable");
    assert_eq!((node.of("k"), node.of("c")), (1, 0));
}

#[test]
fn a_result_that_the_replicas_may_lack_goes_to_no_client() {
    let Some(primary) = Redis::start(&[]) else { return };
    let replica = primary.replica(&[]);
    let site = Site::with(&[primary.port], ", durability: { replicas: 1 }");
    let node = Counting::start();
    let proxy = site.proxy(node.address(), "lease: 4s");
    eventually("a connection", || is_up(&proxy));
    for key in ["old", "later"] {
        eventually("a payment", || proxy.ask(pay(key)).status == 201);
    }
    replica.signal("STOP");
    assert!(is_replay(&proxy.ask(pay("old"))), "a later claim shows that the replica has it");
    // As if it had been written now, which the replica does not hear.
    let write = "for _, key in ipairs(redis.call('KEYS', '*:r:*')) do \
                 if redis.call('HGET', key, 'k') == 'later' then redis.call('HSET', key, 'u', '9000000000000000') end end";
    primary.execute(&["EVAL", write, "0"]);
    let refused = proxy.ask(pay("later"));
    assert_eq!((refused.status, refused.problem().as_str()), (503, "store-unavailable"));
    replica.signal("CONT");
    eventually("the result", || is_replay(&proxy.ask(pay("later"))));
    assert_eq!((node.of("old"), node.of("later")), (1, 1));
}

#[test]
fn claims_wait_for_their_replicas_and_are_refused_without_them() {
    let Some(primary) = Redis::start(&[]) else { return };
    let mut replica = primary.replica(&[]);
    let site = Site::with(&[primary.port], ", durability: { replicas: 1 }");
    let node = Counting::start();
    let proxy = site.proxy(node.address(), "lease: 4s");
    eventually("a connection", || is_up(&proxy));
    assert_eq!(proxy.ask(pay("k")).status, 201);
    assert!(promise(&proxy).contains("A claim waits for every connected replica"), "{}", promise(&proxy));
    replica.signal("STOP");
    let refused = proxy.ask(pay("silent"));
    assert_eq!((refused.status, refused.problem().as_str()), (503, "store-unavailable"));
    assert_eq!(node.of("silent"), 0, "what no replica has acknowledged is not sent");
    replica.signal("CONT");
    eventually("an answer", || proxy.ask(pay("silent")).status == 201);
    assert_eq!(node.of("silent"), 1);
    replica.kill();
    eventually("the refusal", || proxy.ask(pay("new")).problem() == "store-unavailable" && !is_up(&proxy));
    proxy.logs("connected replicas: 0, and `durability.replicas` asks for 1");
    assert!(is_replay(&proxy.ask(pay("k"))), "what is known is replayed");
    assert_eq!(node.of("new"), 0);
    eventually("the promise", || promise(&proxy).contains("is 1, and connected are 0"));
    let _other = primary.replica(&[]);
    eventually("its return", || proxy.ask(pay("new")).status == 201);
    eventually("the state", || is_up(&proxy));
    assert_eq!((node.of("k"), node.of("new")), (1, 1));
}
