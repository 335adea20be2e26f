//! Many purges: applied in batches, and without a loop of validations.

use super::{Bus, Versions, url};
use crate::support::{Client, eventually};
use std::time::{Duration, Instant};

/// Purges `count` URLs through one connection, without waiting for answers between them.
fn burst(member: &super::Member, count: usize) {
    let mut threads = Vec::new();
    for part in 0..8 {
        let admin = member.proxy.admin;
        threads.push(std::thread::spawn(move || {
            let mut client = Client::connect(admin);
            for number in (part..count).step_by(8) {
                let body = url(&format!("/burst/{number}"));
                let head = format!("POST /api/cache/purge HTTP/1.1\r\nhost: {admin}\r\ncontent-length: {}", body.len());
                assert_eq!(client.request(format!("{head}\r\n\r\n{body}")).status, 200);
            }
        }));
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn a_burst_of_purges_ends_in_no_loop_of_validations() {
    let Some(bus) = Bus::start(1) else { return };
    let versions = Versions::start();
    let members = bus.proxies(2, &versions);
    let stays: Vec<String> = (0..50).map(|number| format!("/stays/{number}")).collect();
    stays.iter().for_each(|path| members[1].warm(path));
    let (doubts, asked) = (members[1].doubts(), versions.origin.asked());
    let began = Instant::now();
    burst(&members[0], 4000);
    let took = began.elapsed();
    let heard = || members[1].proxy.metric("ringway_fleet_events_total{direction=\"heard\",kind=\"purge\"}");
    eventually("all purges", || heard() == 4000.0);
    assert!(began.elapsed() < took + Duration::from_secs(2), "{took:?}");
    // What no purge has named is still served without the origin.
    assert!(stays.iter().all(|path| members[1].get(path).1));
    assert_eq!((members[1].doubts(), versions.origin.asked()), (doubts, asked));
    members[0].purge_everywhere(&url("/x"), 2);
}

#[test]
fn a_store_in_doubt_is_validated_at_a_bounded_rate_and_each_response_once() {
    let Some(bus) = Bus::start(1) else { return };
    let versions = Versions::start();
    let members = bus.proxies(2, &versions);
    let paths: Vec<String> = (0..300).map(|number| format!("/many/{number}")).collect();
    paths.iter().for_each(|path| members[1].warm(path));
    let (doubts, asked) = (members[1].doubts(), versions.origin.asked());
    bus.nodes[0].execute(&["DEL", "ringway:test:bus"]);
    eventually("the doubt", || members[1].doubts() > doubts);
    // Many clients at once: one validation for each response, and the rest from the store.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| paths.iter().for_each(|path| drop(members[1].get(path))));
        }
    });
    let validated = versions.validations();
    assert_eq!(validated, 300);
    assert_eq!(versions.origin.asked() - asked, validated, "nothing passed by");
    assert!(paths.iter().all(|path| members[1].get(path).1));
    assert_eq!(versions.origin.asked() - asked, validated);
}

/// Writes to more targets than the queue of a node takes.
fn overflow(member: &super::Member) {
    for number in 0..320 {
        let path = format!("/long?{number}={}", "x".repeat(58_000));
        assert_eq!(member.proxy.send("POST", &path, "content-length: 0").status, 200);
    }
}

#[test]
fn what_could_not_be_published_is_validated_by_the_others() {
    let Some(bus) = Bus::start(1) else { return };
    let versions = Versions::start();
    let members = bus.proxies(2, &versions);
    let (near, far) = (&members[0], &members[1]);
    far.warm("/a");
    far.warm("/b");
    near.cut(true);
    assert_eq!(near.proxy.send("POST", "/a", "content-length: 0").status, 200);
    overflow(near);
    let dropped = || near.proxy.metric("ringway_fleet_events_total{direction=\"dropped\",kind=\"write\"}");
    assert!(dropped() >= 1.0);
    let doubts = far.doubts();
    near.cut(false);
    eventually("the news that something is missing", || far.doubts() > doubts);
    assert_eq!(far.get("/a").0, "v1");
    assert_eq!(far.get("/b"), ("v0".to_owned(), false), "validated");
}

#[test]
fn a_node_that_is_away_for_long_makes_no_doubt_where_the_others_take_all_events() {
    let Some(bus) = Bus::start(3) else { return };
    let versions = Versions::start();
    let members = bus.proxies(2, &versions);
    let (near, far) = (&members[0], &members[1]);
    far.warm("/a");
    members.iter().for_each(super::Member::reads_on);
    let doubts = far.doubts();
    near.links[2].cut(true);
    assert_eq!(near.proxy.send("POST", "/a", "content-length: 0").status, 200);
    overflow(near);
    eventually("the write", || far.get("/a").0 == "v1");
    near.links[2].cut(false);
    eventually("the bus", || near.works());
    near.purge_everywhere(&url("/b"), 2);
    assert_eq!(far.doubts(), doubts);
    assert_eq!(near.proxy.metric("ringway_fleet_events_total{direction=\"dropped\",kind=\"write\"}"), 0.0);
}
