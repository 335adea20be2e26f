//! Purges that race fills while links are cut and nodes lose what they hold: no proxy serves what was struck once the
//! answer named every member, and after healing none does at all.

use super::{Bus, Member, Versions, url};
use crate::support::eventually;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Runs purges against fills on three proxies, while `faults` goes on with each round.
fn race(nodes: usize, rounds: usize, mut faults: impl FnMut(&mut Bus, &[Member], usize)) {
    let Some(mut bus) = Bus::start(nodes) else { return };
    let versions = Versions::start();
    let members = bus.proxies(3, &versions);
    let is_over = AtomicBool::new(false);
    let version = |text: &str| text.trim_start_matches('v').parse::<u64>().unwrap();
    let complete = std::thread::scope(|scope| {
        for member in &members {
            let is_over = &is_over;
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    member.get("/a");
                }
            });
        }
        let mut complete = 0;
        for round in 0..rounds {
            faults(&mut bus, &members, round);
            let new = version(&versions.change("/a"));
            let heard = members[round % 3].purge(&url("/a"));
            if heard.complete {
                complete += 1;
                for member in &members {
                    let found = version(&member.get("/a").0);
                    assert!(found >= new, "round {round}: v{found} after all had heard of v{new}");
                }
            }
        }
        is_over.store(true, Ordering::Relaxed);
        complete
    });
    members.iter().for_each(|member| member.cut(false));
    for link in members.iter().flat_map(|member| &member.links) {
        link.hold_replies(false);
        link.hold_requests(false);
    }
    eventually("the bus", || members.iter().all(Member::works));
    members.iter().for_each(Member::reads_on);
    for member in &members {
        let now = member.proxy.send("GET", "/a", "cache-control: no-cache").text();
        let found = member.get("/a").0;
        assert!(version(&found) >= rounds as u64, "after healing: {found}, and a validation says {now}");
    }
    assert!(complete > 0, "no purge was heard by all");
}

#[test]
fn a_healthy_fleet() {
    race(1, 100, |_, _, _| ());
}

#[test]
fn links_that_are_cut_and_half_open() {
    race(1, 60, |_, members, round| {
        let link = &members[(round / 7) % 3].links[0];
        match round % 7 {
            1 => link.cut(true),
            3 => link.cut(false),
            4 => link.hold_replies(true),
            6 => {
                link.hold_replies(false);
                link.cut(true);
                link.cut(false);
            }
            _ => {}
        }
    });
}

#[test]
fn streams_that_are_lost() {
    race(3, 60, |bus, members, round| {
        let node = &mut bus.nodes[(round / 5) % 3];
        match round % 5 {
            0 => drop(node.execute(&["DEL", "ringway:test:bus"])),
            1 => drop(node.execute(&["XTRIM", "ringway:test:bus", "MAXLEN", "0"])),
            2 => drop(node.execute(&["FLUSHALL"])),
            3 => {
                node.lose();
                node.run();
            }
            _ => members[round % 3].links[round % 2].cut(round % 10 == 4),
        }
    });
}

#[test]
fn a_proxy_that_was_stopped_for_longer_than_its_lease() {
    let Some(mut bus) = Bus::start(1) else { return };
    bus.lease = "300ms";
    let versions = Versions::start();
    let members = bus.proxies(2, &versions);
    members.iter().for_each(|member| member.warm("/a"));
    members[1].proxy.signal("STOP");
    eventually("the lease", || members[0].knows(1));
    let new = versions.change("/a");
    let heard = members[0].purge(&url("/a"));
    assert_eq!((heard.members, heard.of, heard.complete), (1, 2, false), "{heard:?}");
    // What it has not read is gone before it goes on.
    bus.nodes[0].execute(&["XTRIM", "ringway:test:bus", "MAXLEN", "0"]);
    members[1].proxy.signal("CONT");
    let began = Instant::now();
    eventually("the new version", || members[1].get("/a").0 == new);
    assert!(began.elapsed() < Duration::from_secs(5));
    eventually("a purge that all have heard", || members[0].purge(&url("/a")).complete);
}
