//! Nodes that join, come back or drain: keys move once, and it is seen when a drain is done.

use super::{begin_session, with_sessions};
use crate::support::{Origin, Proxy, eventually};
use std::time::{Duration, Instant};

fn home(proxy: &Proxy, path: &str) -> String {
    proxy.get(path).text()
}

/// Each key goes home once and stays; none moves that is not the node's own.
#[test]
fn keys_come_home_one_by_one() {
    let nodes = Origin::several(2);
    let proxy = Proxy::start(&Proxy::pool(&Origin::addresses(&nodes), "    slow_start: 2s\n"));
    let paths = proxy.paths_of("n0", 60);
    let others = proxy.paths_of("n1", 10);
    assert!(paths.iter().all(|path| home(&proxy, path) == "n0"), "where all nodes are new, none has a ramp");
    proxy.admin_post("/api/pools/app/nodes/n0/down", "");
    assert!(paths.iter().all(|path| home(&proxy, path) == "n1"));

    proxy.admin_post("/api/pools/app/nodes/n0/up", "");
    let began = Instant::now();
    let mut at_home = vec![false; paths.len()];
    let mut seen_between = false;
    while at_home.contains(&false) {
        assert!(began.elapsed() < Duration::from_secs(15), "they should all be home");
        for (path, is_home) in paths.iter().zip(&mut at_home) {
            let now = home(&proxy, path) == "n0";
            assert!(now || !*is_home, "{path} went back");
            *is_home = now;
        }
        let count = at_home.iter().filter(|is_home| **is_home).count();
        seen_between |= count > 5 && count < 55;
        assert!(others.iter().all(|path| home(&proxy, path) == "n1"));
    }
    assert!(seen_between, "they came all at once");
    assert!(began.elapsed() > Duration::from_millis(1500), "{:?}", began.elapsed());
    assert!(proxy.metric("ringway_ring_spills_total{pool=\"app\",reason=\"slow_start\"}") > 0.0);
}

/// A node that a reload adds has a ramp, whose clock the next reload leaves alone.
#[test]
fn a_reload_leaves_the_ramp_alone() {
    let nodes = Origin::several(3);
    let addresses = Origin::addresses(&nodes);
    let proxy = Proxy::start(&Proxy::pool(&addresses[..2], "    slow_start: 1h\n"));
    let text = Proxy::pool(&addresses, "    slow_start: 1h\n");
    proxy.reconfigure(&text);
    let progress = || proxy.node("n2")["slow_start"].as_f64().unwrap();
    assert!(progress() < 0.01 && proxy.node("n0")["slow_start"] == 1.0);
    assert!(proxy.paths_of("n2", 10).iter().all(|path| home(&proxy, path) != "n2"));
    let mut last = progress();
    for _ in 0..3 {
        proxy.reconfigure(&text);
        assert!(progress() >= last, "the ramp began anew");
        last = progress();
    }
    proxy.reconfigure(&text.replace("slow_start: 1h", "slow_start: 1ms"));
    assert!(proxy.paths_of("n2", 10).iter().all(|path| home(&proxy, path) == "n2"), "its keys at last");
}

/// It is seen how far a drain is, and when the last session has left.
#[test]
fn a_drain_tells_when_it_is_done() {
    let nodes = Origin::several(2);
    let (proxy, _folder) = with_sessions(&nodes, "", ", ttl: 3s");
    let path = &proxy.paths_of("n0", 1)[0];
    let cookie = begin_session(&proxy, path);
    proxy.admin_post("/api/pools/app/nodes/n0/drain", "");
    let drain = || proxy.node("n0")["drain"].clone();
    assert_eq!((drain()["done"].as_bool(), drain()["in_flight"].as_u64()), (Some(false), Some(0)));
    assert!(drain()["session_seen_seconds_ago"].is_null());
    assert_eq!(proxy.get(path).text(), "n1", "no new keys");
    assert_eq!(proxy.get_with(path, &format!("cookie: {cookie}")).text(), "n0", "the session stays");
    assert!(drain()["session_seen_seconds_ago"].is_u64() && drain()["last_session_ends_in_seconds"].as_u64() > Some(0));

    let told = std::process::Command::new(env!("CARGO_BIN_EXE_ringway"))
        .args(["drain", "app", "n0", "--wait", "--admin", &format!("http://{}", proxy.admin)])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(
        told.status.success() && text.contains("app/n0: drain") && text.contains("the last session has left"),
        "{text}"
    );
    eventually("the end of the drain", || drain()["done"] == true);
    assert!(proxy.node("n1")["drain"].is_null());
}
