//! Purges and invalidations on every proxy of a healthy fleet.

use super::{Bus, Versions, url};
use crate::support::eventually;
use std::process::Command;

#[test]
fn every_kind_of_purge_is_in_force_on_all_proxies_when_the_answer_says_so() {
    let Some(bus) = Bus::start(1) else { return };
    let versions = Versions::start();
    let members = bus.proxies(2, &versions);
    let mut purges = 0.0;
    for (order, gone) in [
        (url("/a/1?x=1"), true),
        (r#"{"prefix": "http://example.com/a/"}"#.to_owned(), true),
        (r#"{"tag": "all-tags"}"#.to_owned(), true),
        (r#"{"all": true}"#.to_owned(), true),
        (r#"{"tag": "all-tags", "soft": true}"#.to_owned(), true),
        (url("/other"), false),
    ] {
        members.iter().for_each(|member| member.warm("/a/1?x=1"));
        purges += members[0].purge_everywhere(&order, 2);
        for member in &members {
            assert_eq!(member.get("/a/1?x=1").1, !gone, "{order}");
        }
    }
    // A soft purge leaves what a 304 confirms.
    assert!(versions.validations() >= 2);
    let heard = members[1].proxy.metric("ringway_fleet_events_total{direction=\"heard\",kind=\"purge\"}");
    assert_eq!(heard, purges);
    assert!(members[1].proxy.metric("ringway_cache_purges_total{kind=\"tag\"}") >= 2.0);
}

#[test]
fn three_nodes_carry_each_purge_once() {
    let Some(bus) = Bus::start(3) else { return };
    let versions = Versions::start();
    let members = bus.proxies(3, &versions);
    let mut purges = [0.0; 3];
    for number in 0..20 {
        let path = format!("/{number}");
        members.iter().for_each(|member| member.warm(&path));
        purges[number % 3] += members[number % 3].purge_everywhere(&url(&path), 3);
        assert!(members.iter().all(|member| !member.get(&path).1));
    }
    // One node away: W of N are enough.
    members.iter().for_each(|member| member.links[1].cut(true));
    members.iter().for_each(|member| member.warm("/x"));
    purges[0] += members[0].purge_everywhere(&url("/x"), 3);
    assert!(members.iter().all(|member| !member.get("/x").1));
    for (member, own) in members.iter().zip(purges) {
        // Each of the others' once, whatever the number of nodes that bring it.
        let heard = member.proxy.metric("ringway_fleet_events_total{direction=\"heard\",kind=\"purge\"}");
        assert_eq!(heard, purges.iter().sum::<f64>() - own);
        assert_eq!(member.proxy.metric("ringway_store_up{store=\"r0\"}"), 1.0);
    }
    eventually("the metric of the node that is away", || {
        members[0].proxy.metric("ringway_store_up{store=\"r1\"}") == 0.0
    });
    assert_eq!(members[0].proxy.metric("ringway_fleet_members"), 3.0);
}

#[test]
fn a_purge_that_is_heard_beats_a_fetch_that_began_before() {
    let Some(bus) = Bus::start(1) else { return };
    let versions = Versions::start();
    let members = bus.proxies(2, &versions);
    std::thread::scope(|scope| {
        let early = scope.spawn(|| members[1].get("/slow/a"));
        eventually("the fetch", || versions.origin.asks().iter().any(|ask| ask.path() == "/slow/a"));
        let new = versions.change("/slow/a");
        members[0].purge_everywhere(&url("/slow/a"), 2);
        versions.barrier.open();
        assert_eq!(early.join().unwrap().0, "v0", "the client that asked before");
        // What that fetch brought is not stored.
        assert_eq!(members[1].get("/slow/a").0, new);
    });
}

#[test]
fn a_write_on_one_proxy_invalidates_on_the_others() {
    let Some(bus) = Bus::start(1) else { return };
    let versions = Versions::start();
    let members = bus.proxies(2, &versions);
    let paths = ["/doc?b=1", "/list", "/feed", "/other"];
    for member in &members {
        paths.iter().for_each(|path| member.warm(path));
    }
    versions.change("/list");
    versions.change("/feed");
    versions.change("/other");
    let fields = "content-length: 0 | x-answer: location: /list";
    assert_eq!(members[0].proxy.send("POST", "/doc?b=1", fields).status, 200);
    let fields = "content-length: 0 | x-answer: content-location: /feed";
    assert_eq!(members[0].proxy.send("PUT", "/doc?b=1", fields).status, 200);
    for (path, body) in [("/doc?b=1", "v2"), ("/list", "v1"), ("/feed", "v1")] {
        eventually(path, || members[1].get(path).0 == body);
    }
    assert_eq!(members[1].get("/other"), ("v0".to_owned(), true), "nothing has named it");
}

#[test]
fn a_write_to_a_very_long_target_travels_like_any_other() {
    let Some(bus) = Bus::start(1) else { return };
    let versions = Versions::start();
    let members = bus.proxies(2, &versions);
    let path = format!("/long?{}", "\u{e9}".repeat(15_000).replace('\u{e9}', "%c3%a9"))[..60_000].to_owned();
    members.iter().for_each(|member| member.warm(&path));
    members.iter().for_each(|member| member.warm("/other"));
    let doubts = members[1].doubts();
    assert_eq!(members[0].proxy.send("POST", &path, "content-length: 0").status, 200);
    eventually("the new version", || members[1].get(&path).0 == "v1");
    assert_eq!(members[1].doubts(), doubts, "it is published as it is");
    assert!(members[1].get("/other").1);
}

#[test]
fn the_command_says_who_has_heard_and_fails_where_one_has_not() {
    let Some(bus) = Bus::start(1) else { return };
    let versions = Versions::start();
    let members = bus.proxies(2, &versions);
    let purge = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringway"));
        command.args(["purge", "--all", "--admin", &format!("http://{}", members[0].proxy.admin)]);
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    let (mut success, mut text) = purge();
    eventually("a purge that all have heard", || {
        (success, text) = purge();
        success
    });
    assert!(success && text.contains("heard by 2 of 2 proxies"), "{text}");
    members[1].cut(true);
    let (success, text) = purge();
    let missing =
        format!("heard by 1 of 2 proxies; missing: {}", members[1].fleet()["members"][0]["name"].as_str().unwrap());
    assert!(!success && text.contains(&missing) && text.contains(&members[1].process()), "{text}");
}

#[test]
fn without_a_bus_nothing_is_said_of_a_fleet() {
    let versions = Versions::start();
    let proxy = versions.origin.cached("");
    assert!(proxy.purge(r#"{"all": true}"#).json().get("heard_by").is_none());
    assert_eq!(proxy.admin_get("/api/fleet").status, 404);
    let alone = crate::support::Proxy::start(&format!("fleet: {{ id: a }}\n{}", versions.origin.configuration("")));
    assert!(alone.purge(r#"{"all": true}"#).json().get("heard_by").is_none());
    let fleet = alone.admin_get("/api/fleet").json();
    assert!(fleet["bus"].is_null() && fleet["members"][0]["state"] == "self", "{fleet}");
}
