//! Random histories: clients that repeat keys at several proxies, while proxies crash and stop, and links to the engine
//! are cut, slow, silent or late. What clients saw and what the node ran is judged by `checker`.
//!
//! `RINGWAY_HISTORIES=2000 cargo test --test proxy histories` runs that many of 500 operations over each engine;
//! `RINGWAY_SEED` repeats the one that a failure names.

mod checker;
mod faults;

use super::redis::Site;
use super::*;
use crate::engines::{Link, Postgres, Redis};
use crate::support::{Member, Random, ask_once};
use checker::{Operation, Seen, violations};
use std::sync::Barrier;

const PROXIES: usize = 3;
const CLIENTS: usize = 4;
/// Short: what is stopped for longer is taken for dead.
const LEASE: Duration = Duration::from_millis(300);

/// How many histories of how many operations.
fn extent() -> (u64, usize) {
    match std::env::var("RINGWAY_HISTORIES") {
        Ok(count) => (count.parse().expect("RINGWAY_HISTORIES is a number"), 500),
        Err(_) => (10, 60),
    }
}

/// One request, as a client without patience sends it.
fn ask(address: SocketAddr, key: &str) -> Seen {
    let Some((head, body)) = ask_once(address, &pay(key)) else { return Seen::Nothing };
    let body = String::from_utf8_lossy(&body).into_owned();
    match head.get(9..12) {
        Some("201") if body.starts_with("charged") => Seen::Result(body),
        Some("409") if body.contains("outcome-unknown") => Seen::Unknown,
        Some(status @ ("409" | "503")) => Seen::Refused(status.parse().unwrap()),
        _ if body.is_empty() => Seen::Nothing,
        _ => panic!("no answer of this harness: {head}\n\n{body}"),
    }
}

/// Runs a history. Returns its violations.
fn history(members: &mut [Member], node: &Counting, seed: u64, operations: usize) -> Vec<String> {
    let mut random = Random::new(seed);
    let (is_over, begin) = (AtomicBool::new(false), Barrier::new(CLIENTS + 1));
    let addresses: Vec<_> = members.iter().map(Member::address).collect();
    let seeds: Vec<u64> = (0..CLIENTS).map(|_| random.below(u64::MAX)).collect();
    let seen = std::thread::scope(|scope| {
        let (begin, addresses) = (&begin, &addresses);
        let clients: Vec<_> = seeds
            .iter()
            .map(|&own| {
                scope.spawn(move || {
                    let mut random = Random::new(own);
                    begin.wait();
                    let one = |number: usize| {
                        // Most operations repeat a key, many at the same time as another client.
                        let first = number * CLIENTS / 6;
                        let key = format!("{seed:x}-{}", first as u64 + random.below(8));
                        let address = *addresses[random.below(PROXIES as u64) as usize].lock().unwrap();
                        Operation { seen: ask(address, &key), key }
                    };
                    (0..operations / CLIENTS).map(one).collect::<Vec<_>>()
                })
            })
            .collect();
        let faults = scope.spawn(|| {
            begin.wait();
            faults::happen(members, &mut random, &is_over);
        });
        let seen: Vec<Operation> = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
        is_over.store(true, Ordering::Relaxed);
        faults.join().unwrap();
        seen
    });
    violations(&seen, |key| node.of(key))
}

/// Runs histories over a store, whose proxies reach it each by a link of its own.
fn histories(port: u16, text: impl Fn(u16, SocketAddr) -> String) -> (usize, Vec<String>) {
    let (count, operations) = extent();
    let node = Counting::start();
    let mut members: Vec<Member> = (0..PROXIES)
        .map(|_| Link::to(port))
        .map(|link| Member::start(text(link.port(), node.address()), vec![link]))
        .collect();
    let only = std::env::var("RINGWAY_SEED").ok().map(|seed| u64::from_str_radix(&seed, 16).expect("hexadecimal"));
    let seeds: Vec<u64> =
        only.map_or_else(|| (0..count).map(|_| getrandom::u64().unwrap() >> 16).collect(), |it| vec![it]);
    let mut found = Vec::new();
    for (number, seed) in seeds.into_iter().enumerate() {
        let violations = history(&mut members, &node, seed, operations);
        found.extend(violations.into_iter().map(|violation| format!("RINGWAY_SEED={seed:x}: {violation}")));
        if number % 100 == 99 {
            eprintln!("{} histories, {} keys run, {} violations", number + 1, node.charged(), found.len());
        }
    }
    (node.charged(), found)
}

/// The settings of the route.
fn settings(more: &str) -> String {
    format!("lease: {}ms, on_concurrent: wait, wait: 500ms{more}", LEASE.as_millis())
}

#[test]
fn no_key_runs_twice_in_histories_over_postgresql() {
    let Some(server) = Postgres::shared() else { return };
    server.database("histories");
    let place = Place::new("");
    let (charged, found) = histories(server.port, |port, node| {
        // All have the same identity file, and each a link of its own.
        let url = place.url_file().with_extension(port.to_string());
        let text = place
            .text(node, &settings(""))
            .replace(&place.url_file().display().to_string(), &url.display().to_string());
        write_url(&url, &url_of(&[port], "histories"));
        text
    });
    assert_eq!(found, Vec::<String>::new());
    assert!(charged > 0);
}

fn write_url(file: &std::path::Path, url: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(file, url).unwrap();
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn no_key_runs_twice_in_histories_over_redis() {
    let Some(server) = Redis::start(&["appendonly yes", "appendfsync always"]) else { return };
    let _replica = server.replica(&[]);
    let site = Site::with(&[server.port], ", durability: { replicas: 1 }");
    let (charged, found) = histories(server.port, |port, node| site.text_at(&[port], node, &settings("")));
    assert_eq!(found, Vec::<String>::new());
    assert!(charged > 0);
}

#[test]
fn histories_show_keys_that_run_twice_where_the_configuration_allows_it() {
    let Some(server) = Redis::start(&[]) else { return };
    let site = Site::new(&[server.port]);
    let forward = settings(", on_store_failure: forward");
    let (_, found) = histories(server.port, |port, node| site.text_at(&[port], node, &forward));
    assert!(found.iter().any(|violation| violation.contains("ran")), "{found:?}");
}
