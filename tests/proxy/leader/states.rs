//! States of nodes for the fleet: a drain on one proxy is a drain on all.

use super::{Fleet, Member, leader_of};
use crate::support::{Barrier, Does, eventually};
use std::time::{Duration, Instant};

fn all_are(members: &[Member], node: &str, state: &str) -> bool {
    members.iter().all(|member| member.state(node) == state)
}

#[test]
fn a_drain_for_the_fleet_is_in_force_on_all_proxies_when_the_command_returns() {
    let Some(fleet) = Fleet::start(1) else { return };
    let members = fleet.proxies(3);
    let paths = members[0].proxy.paths_of("n0", 10);
    assert!(paths.iter().all(|path| members[1].proxy.get(path).text() == "n0"));

    let told = members[1].run(&["drain", "app", "n0", "--fleet"]);
    assert_eq!(String::from_utf8_lossy(&told.stdout), "app/n0: drain on 3 of 3 proxies\n");
    assert!(told.status.success());
    let before = fleet.nodes[0].asked();
    for member in &members {
        assert!(paths.iter().all(|path| member.proxy.get(path).text() == "n1"), "no new key");
    }
    assert_eq!(fleet.nodes[0].asked(), before);

    // It is shown, with who and when, and kept over a reload.
    let state = members[2].leader()["states"][0].clone();
    assert!(state["by"].as_str().unwrap().contains("127.0.0.1:"), "{state}");
    assert!(state["at"].as_u64().unwrap() > 1_700_000_000 && state["file"] == "up");
    let ports: Vec<u16> = members[2].links.iter().map(crate::engines::Link::port).collect();
    members[2].proxy.reconfigure(&(fleet.configuration(&ports) + "limits: { headers: 77 }\n"));
    assert_eq!(members[2].state("n0"), "drain");
    // One that starts later reads it, before it serves.
    let late = fleet.proxy();
    assert_eq!(late.state("n0"), "drain");
    assert_eq!(late.proxy.get(&paths[0]).text(), "n1");

    let told = members[0].run(&["node", "app", "n0", "up", "--fleet"]);
    assert_eq!(String::from_utf8_lossy(&told.stdout), "app/n0: up on 4 of 4 proxies\n");
    assert!(all_are(&members, "n0", "up") && late.state("n0") == "up");
    assert_eq!(members[0].set("n9", "up").problem(), "no-such-node");
}

#[test]
fn a_state_holds_while_the_state_in_the_file_stands_and_the_later_order_counts() {
    let Some(fleet) = Fleet::start(1) else { return };
    let members = fleet.proxies(2);
    let ports: Vec<u16> = members[0].links.iter().map(crate::engines::Link::port).collect();
    let text = fleet.configuration(&ports);
    let with = |state: &str| text.replacen("id: n0,", &format!("id: n0, state: {state},"), 1);
    assert_eq!(members[1].set("n0", "drain").status, 200);
    members[0].proxy.reconfigure(&with("down"));
    assert_eq!((members[0].state("n0"), members[1].state("n0")), ("down".to_owned(), "drain".to_owned()));
    members[0].proxy.reconfigure(&text);
    assert!(all_are(&members, "n0", "drain"), "the state that it overrides is back");

    // An order for one proxy counts there, until a later one for the fleet.
    assert_eq!(members[0].proxy.admin_post("/api/pools/app/nodes/n0/up", "").status, 200);
    assert_eq!((members[0].state("n0"), members[1].state("n0")), ("up".to_owned(), "drain".to_owned()));
    members[0].cut(true);
    members[0].cut(false);
    assert_eq!(members[1].set("n1", "drain").json()["applied_by"]["complete"], true, "all was read anew");
    assert_eq!(members[0].state("n0"), "up", "the order for the fleet is older");
    assert_eq!(members[1].set("n0", "down").json()["applied_by"]["complete"], true);
    assert!(all_are(&members, "n0", "down"));
}

#[test]
fn a_member_that_is_cut_off_is_named_until_it_has_applied_the_state() {
    let Some(fleet) = Fleet::start(1) else { return };
    let mut members = fleet.proxies(3);
    let lost = (leader_of(&members) + 1) % 3;
    let teller = (lost + 1) % 3;
    let process = members[lost].process();
    members[lost].cut(true);
    let told = members[teller].run(&["drain", "app", "n0", "--fleet"]);
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(text.starts_with("app/n0: drain on 2 of 3 proxies; missing: ") && text.contains(&process), "{text}");
    assert_eq!(told.status.code(), Some(1));
    // It counts after its lease, too.
    let member_state = |members: &[Member]| {
        let all = members[teller].leader()["members"].clone();
        let all = all.as_array().unwrap();
        let found = all.iter().find(|member| member["process"] == *process);
        found.map(|member| member["state"].as_str().unwrap().to_owned())
    };
    eventually("its lease to end", || member_state(&members).as_deref() == Some("missed"));
    let answer = members[teller].set("n0", "drain").json();
    assert_eq!(answer["applied_by"]["of"], 3, "{answer}");
    members[lost].cut(false);
    eventually("the state", || members[lost].state("n0") == "drain");
    eventually("its return", || member_state(&members).as_deref() == Some("live"));
    assert_eq!(members[teller].set("n0", "drain").json()["applied_by"]["complete"], true);

    // One that is gone for good is forgotten.
    members[lost].proxy.signal("KILL");
    eventually("its lease to end", || member_state(&members).as_deref() == Some("missed"));
    // Its key gets the lease after which etcd forgets it.
    let key = format!("ringway/t/member/{process}");
    eventually("a lease of its key", || {
        let found: serde_json::Value = serde_json::from_str(&fleet.etcd.execute(&["get", &key, "-w", "json"])).unwrap();
        found["kvs"][0]["lease"].as_u64().is_some_and(|lease| lease > 0)
    });
    let forgotten = members[teller].run(&["fleet", "forget", &process]);
    assert!(forgotten.status.success(), "{forgotten:?}");
    let answer = members[teller].set("n0", "up").json();
    assert_eq!((&answer["applied_by"]["of"], &answer["applied_by"]["complete"]), (&2.into(), &true.into()), "{answer}");
    drop(members.remove(lost));
}

/// One that is alive and was removed by mistake comes back by itself.
#[test]
fn a_living_member_cannot_be_forgotten() {
    let Some(fleet) = Fleet::start(1) else { return };
    let members = fleet.proxies(2);
    let process = members[1].process();
    assert!(members[0].run(&["fleet", "forget", &process]).status.success());
    eventually("its key", || !fleet.etcd.get(&format!("ringway/t/member/{process}")).is_empty());
    assert_eq!(members[0].set("n0", "drain").json()["applied_by"]["of"], 2);
}

#[test]
fn a_drain_waits_for_the_last_request_on_all_proxies() {
    let Some(fleet) = Fleet::start(1) else { return };
    let members = fleet.proxies(2);
    let path = members[0].proxy.paths_of("n0", 1).remove(0);
    let barrier = Barrier::default();
    fleet.nodes[0].does(Does::Wait(barrier.clone()));
    let mut open = members[1].proxy.connect();
    open.send(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n"));
    eventually("the request", || fleet.nodes[0].asked() == 1);
    let (address, process) = (members[0].proxy.admin, members[1].process());
    let waiting = std::thread::spawn(move || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ringway"));
        let admin = format!("http://{address}");
        command.args(["drain", "app", "n0", "--fleet", "--wait", "--admin", &admin]).output().unwrap()
    });
    eventually("the other proxy to be waited for", || {
        let draining = members[0].leader()["states"][0]["draining"].clone();
        draining.as_array().is_some_and(|all| all.len() == 1 && all[0].as_str().unwrap().contains(&process))
    });
    assert!(!waiting.is_finished());
    barrier.open();
    assert_eq!(open.answer().status, 200);
    let told = waiting.join().unwrap();
    let text = String::from_utf8_lossy(&told.stdout);
    assert!(told.status.success() && text.ends_with("app/n0: the last session has left all proxies\n"), "{text}");
}

/// `cargo test --test proxy -- --ignored --nocapture leader::states`
#[test]
#[ignore = "measures times"]
fn a_drain_reaches_eight_proxies_within_300_ms() {
    let Some(fleet) = Fleet::start(3) else { return };
    let members = fleet.proxies(8);
    let mut times: Vec<Duration> = (0..200)
        .map(|number| {
            let began = Instant::now();
            let answer = members[number % 8].set("n0", if number % 2 == 0 { "drain" } else { "up" }).json();
            assert_eq!(answer["applied_by"]["members"], 8, "{answer}");
            began.elapsed()
        })
        .collect();
    times.sort();
    println!("median {:?}, p99 {:?}, longest {:?}", times[100], times[198], times[199]);
    assert!(times[198] < Duration::from_millis(300));
}
