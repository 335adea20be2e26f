//! Histories of sessions that go to any of three proxies, without a bus and with one that is cut off half of the time,
//! and their checker: a session reads its own writes, and never goes back. `RINGWAY_HISTORIES=N` runs that many of 500
//! operations of each kind.

use super::bus::Heard;
use super::{Proxies, Session};
use crate::engines::Link;
use crate::support::{Proxy, Random};
use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const SESSIONS: usize = 6;
const RESOURCES: u64 = 3;

/// An operation of a session, with the version that its answer had.
#[derive(Clone, Copy, Debug)]
struct Operation {
    resource: u64,
    is_write: bool,
    version: u64,
}

/// Returns the operations of a session that break its guarantees, in words.
fn violations(operations: &[Operation]) -> Vec<String> {
    let mut seen: HashMap<u64, (u64, bool)> = HashMap::new();
    let mut found = Vec::new();
    for (at, operation) in operations.iter().enumerate() {
        let (last, was_write) = seen.get(&operation.resource).copied().unwrap_or_default();
        if operation.version < last {
            let kind = match (operation.is_write, was_write) {
                (false, true) => "it does not read its own write",
                (false, false) => "its reads are not monotonic",
                (true, _) => "its write does not follow its reads",
            };
            found.push(format!("operation {at}: {operation:?} after version {last}: {kind}"));
        }
        seen.insert(operation.resource, (operation.version.max(last), operation.is_write));
    }
    found
}

#[test]
fn the_checker_finds_each_violation() {
    let read = |version| Operation { resource: 1, is_write: false, version };
    let write = |version| Operation { resource: 1, is_write: true, version };
    assert!(violations(&[read(1), write(2), read(2), read(3)]).is_empty());
    assert!(violations(&[write(2), read(1)])[0].contains("own write"));
    assert!(violations(&[read(2), read(1)])[0].contains("monotonic"));
    assert!(violations(&[read(3), write(2)])[0].contains("follow"));
    let other = Operation { resource: 2, is_write: false, version: 1 };
    assert!(violations(&[read(2), other]).is_empty(), "another group");
}

/// Runs the operations of one session, on any proxy each.
fn session(proxies: &[Proxy], random: &mut Random, operations: usize, prefix: u64) -> Vec<Operation> {
    let mut session = Session::default();
    let mut done = Vec::new();
    for _ in 0..operations {
        let proxy = &proxies[random.below(proxies.len() as u64) as usize];
        let (resource, is_write) = (random.below(RESOURCES), random.below(4) == 0);
        let more = if random.below(2) == 0 { "" } else { "/comments" };
        let path = format!("/h{prefix:x}/{resource}{more}");
        let answer = session.send(proxy, if is_write { "POST" } else { "GET" }, &path);
        // The node may close an idle connection: what came of a write is unknown then, and its answer says nothing.
        let version = answer.text().strip_prefix('v').and_then(|version| version.parse().ok());
        let Some(version) = version.filter(|_| answer.status == 200) else {
            assert_eq!(answer.status, 502, "{answer:?}");
            continue;
        };
        done.push(Operation { resource, is_write, version });
    }
    assert!(2 * done.len() > operations, "{} of {operations} operations were answered", done.len());
    done
}

/// Purges now and then, forgets everything that is stored, and cuts proxies off the bus half of the time.
fn disturb(proxies: &[Proxy], links: &[Link], random: &mut Random, is_over: &AtomicBool) {
    while !is_over.load(Ordering::Relaxed) {
        let proxy = &proxies[random.below(proxies.len() as u64) as usize];
        let soft = random.below(2) == 0;
        proxy.purge(&format!("{{\"all\": true, \"soft\": {soft}}}"));
        for link in links {
            link.cut(random.below(2) == 0);
        }
        std::thread::park_timeout(Duration::from_millis(5 + random.below(40)));
    }
}

fn history(proxies: &[Proxy], links: &[Link], seed: u64, operations: usize) -> Vec<String> {
    let is_over = AtomicBool::new(false);
    let found = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let sessions: Vec<_> = (0..SESSIONS as u64)
            .map(|number| {
                let found = &found;
                scope.spawn(move || {
                    let mut random = Random::new(seed ^ (number << 32));
                    let done = session(proxies, &mut random, operations / SESSIONS, seed);
                    found.lock().unwrap().extend(violations(&done));
                })
            })
            .collect();
        let disturber = scope.spawn(|| disturb(proxies, links, &mut Random::new(!seed), &is_over));
        let results: Vec<_> = sessions.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        is_over.store(true, Ordering::Relaxed);
        disturber.join().unwrap();
        results.into_iter().for_each(|result| result.unwrap());
    });
    found.into_inner().unwrap().into_iter().map(|violation| format!("seed {seed:x}: {violation}")).collect()
}

fn histories(proxies: &[Proxy], links: &[Link]) {
    let (count, operations) = match std::env::var("RINGWAY_HISTORIES") {
        Ok(count) => (count.parse().expect("RINGWAY_HISTORIES is a number"), 500),
        Err(_) => (20, 120),
    };
    let mut found = Vec::new();
    for number in 0..count {
        found.extend(history(proxies, links, getrandom::u64().unwrap() >> 16, operations));
        if number % 100 == 99 {
            eprintln!("{} histories, {} violations", number + 1, found.len());
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn no_session_goes_back_in_histories_over_three_proxies() {
    histories(&Proxies::causal(3).proxies, &[]);
}

#[test]
fn no_session_goes_back_in_histories_with_a_bus_that_is_cut() {
    let Some(fleet) = Heard::start(3) else { return };
    histories(&fleet.proxies, &fleet.links);
}
