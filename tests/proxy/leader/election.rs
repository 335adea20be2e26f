//! The election: leaders that stop, vanish, or hand over.

use super::{Fleet, Member, leader_of, turn};
use crate::support::{Barrier, Does, Origin, Proxy, eventually};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Looks through all publications: each is of the term in force, and none follows a later one. Returns their number.
fn publications_are_fenced(fleet: &Fleet) -> usize {
    let (mut term, mut newest, mut count, mut number) = (None, 0, 0, None);
    for change in fleet.etcd.history("ringway/t/") {
        let name = change.key.strip_prefix("ringway/t/").unwrap().to_owned();
        if name == "leader" {
            term = change.value.as_ref().map(|_| change.created);
        } else if name == "beat" || name.starts_with("health/") {
            let value: serde_json::Value = serde_json::from_str(change.value.as_ref().unwrap()).unwrap();
            let of = value["term"].as_u64().unwrap();
            assert_eq!(Some(of), term, "{name} at {} is of the term {of}", change.revision);
            assert!(of >= newest, "{name} at {}: {of} after {newest}", change.revision);
            if name == "beat" {
                let now = (of, value["number"].as_u64().unwrap());
                assert!(number < Some(now), "{name} at {}: {now:?} after {number:?}", change.revision);
                number = Some(now);
            }
            (newest, count) = (of, count + 1);
        }
    }
    count
}

/// The leader is stopped past its lease, in the middle of whatever it does, while the nodes change; then it goes on.
fn stopped_leaders_publish_nothing_stale(runs: usize) {
    let Some(fleet) = Fleet::start(1) else { return };
    let members = fleet.proxies(2);
    for run in 0..runs {
        let stopped = leader_of(&members);
        let other = &members[1 - stopped];
        std::thread::sleep(Duration::from_micros(fastrand::u64(..600_000)));
        turn(&fleet.nodes[0], run % 2 == 1);
        members[stopped].proxy.signal("STOP");
        eventually("another leader", || other.leads());
        eventually("its verdict", || other.is_healthy("n0") == (run % 2 == 1));
        members[stopped].proxy.signal("CONT");
        eventually("the old leader to follow", || !members[stopped].leads() && members[stopped].prober() == "leader");
        eventually("the same verdict", || members[stopped].is_healthy("n0") == (run % 2 == 1));
        assert!(other.leads());
    }
    let count = publications_are_fenced(&fleet);
    assert!(count > 2 * runs, "{count} publications");
}

#[test]
fn a_leader_that_was_stopped_past_its_lease_publishes_nothing_stale() {
    stopped_leaders_publish_nothing_stale(3);
}

/// `RINGWAY_LEADER_RUNS=500 cargo test --test proxy -- --ignored leader::election`
#[test]
#[ignore = "takes twenty minutes"]
fn many_leaders_that_were_stopped_publish_nothing_stale() {
    let runs = std::env::var("RINGWAY_LEADER_RUNS").ok().and_then(|runs| runs.parse().ok());
    stopped_leaders_publish_nothing_stale(runs.unwrap_or(500));
}

/// With a lease of an hour, only a hand-over makes another leader.
#[test]
fn a_leader_that_ends_hands_over_at_once() {
    let Some(mut fleet) = Fleet::start(1) else { return };
    fleet.lease = "1h";
    let mut members = fleet.proxies(3);
    let mut gone = members.remove(leader_of(&members));
    let process = gone.process();
    // A request that is not answered yet keeps the process.
    let barrier = Barrier::default();
    fleet.nodes.iter().for_each(|node| node.does(Does::Wait(barrier.clone())));
    let mut open = gone.proxy.connect();
    open.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("the request", || fleet.nodes.iter().map(Origin::asked).sum::<usize>() == 1);
    gone.proxy.signal("TERM");
    leader_of(&members);
    assert!(!gone.proxy.has_ended());
    barrier.open();
    assert_eq!(open.answer().status, 200);
    eventually("its end", || gone.proxy.has_ended());
    // It has left: it is no member that is missed.
    eventually("the members that are left", || {
        let all = members[0].leader()["members"].clone();
        all.as_array().unwrap().iter().all(|member| member["process"] != *process) && members[0].knows(2)
    });
}

#[test]
fn an_upgrade_hands_over_at_once() {
    let Some(mut fleet) = Fleet::start(1) else { return };
    fleet.lease = "1h";
    let mut members = fleet.proxies(2);
    let leader = leader_of(&members);
    assert_eq!(members[leader].set("n0", "drain").status, 200);
    let before = members[leader].process();
    let barrier = Barrier::default();
    fleet.nodes.iter().for_each(|node| node.does(Does::Wait(barrier.clone())));
    let mut open = members[leader].proxy.connect();
    open.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("the request", || fleet.nodes.iter().map(Origin::asked).sum::<usize>() == 1);
    let old = members[leader].proxy.pid();
    members[leader].proxy.signal("USR2");
    members[leader].proxy.wait_for_successor(old);
    leader_of(&members);
    assert!(!members[leader].proxy.process_ended(old));
    barrier.open();
    assert_eq!(open.answer().status, 200);
    let holder = members[leader].leader()["process"].as_str().unwrap().to_owned();
    assert!(holder != before && members.iter().any(|member| member.process() == holder), "{holder}");
    assert_eq!(members[leader].state("n0"), "drain", "the new process has it");
    eventually("the old process to leave", || members[leader].knows(2));
}

/// A publication whose reply was lost is sent again; its first copy arrives after later publications.
#[test]
fn a_publication_whose_copy_comes_late_changes_nothing() {
    let Some(fleet) = Fleet::start(1) else { return };
    let tape = Tape::to(fleet.etcd.ports()[0]);
    let member = Member { proxy: Proxy::start(&fleet.configuration(&[tape.port])), links: Vec::new() };
    leader_of(std::slice::from_ref(&member));
    let is_failing = || fleet.etcd.get("ringway/t/health/app").contains("failure");
    turn(&fleet.nodes[0], false);
    eventually("the first verdict", is_failing);
    let copy = tape.last_with("ringway/t/health/app");
    turn(&fleet.nodes[0], true);
    eventually("the second verdict", || !is_failing());
    let reply = tape.replay(&copy);
    assert!(reply.contains("HTTP/1.1 200") && !reply.contains("\"succeeded\":true"), "{reply}");
    assert!(!is_failing());
    publications_are_fenced(&fleet);
}

/// A way to etcd that remembers the requests.
struct Tape {
    engine: u16,
    port: u16,
    requests: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Tape {
    fn to(engine: u16) -> Tape {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let own = Arc::clone(&requests);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(("127.0.0.1", engine)) else { continue };
                let (mut replies, mut back) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut replies, &mut back);
                    let _ = back.shutdown(Shutdown::Both);
                });
                let own = Arc::clone(&own);
                std::thread::spawn(move || remember(client, server, &own));
            }
        });
        Tape { engine, port, requests }
    }

    /// The last request with a key.
    fn last_with(&self, key: &str) -> Vec<u8> {
        let key = BASE64.encode(key);
        let requests = self.requests.lock().unwrap();
        let found = requests.iter().rev().find(|request| String::from_utf8_lossy(request).contains(&key));
        found.unwrap().clone()
    }

    /// Sends a request once more. Returns the response.
    fn replay(&self, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.engine)).unwrap();
        stream.write_all(request).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let (mut response, mut buffer) = (Vec::new(), [0; 4096]);
        while !response.ends_with(b"}") {
            match stream.read(&mut buffer) {
                Ok(length @ 1..) => response.extend_from_slice(&buffer[..length]),
                _ => break,
            }
        }
        String::from_utf8(response).unwrap()
    }
}

/// Passes requests on, and remembers each: a head that begins with `POST`, and what follows.
fn remember(mut client: TcpStream, mut server: TcpStream, requests: &Mutex<Vec<Vec<u8>>>) {
    let mut buffer = [0; 16 << 10];
    let mut at = None;
    while let Ok(length @ 1..) = client.read(&mut buffer) {
        let mut all = requests.lock().unwrap();
        match at.filter(|_| !buffer.starts_with(b"POST ")) {
            Some(at) => Vec::extend_from_slice(&mut all[at], &buffer[..length]),
            None => {
                at = Some(all.len());
                all.push(buffer[..length].to_vec());
            }
        }
        drop(all);
        if server.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = server.shutdown(Shutdown::Both);
}

/// The table of a leader that hangs is not believed for as long as its lease.
#[test]
fn a_leader_that_hangs_within_its_lease_is_believed_for_three_intervals() {
    let Some(mut fleet) = Fleet::start(1) else { return };
    fleet.lease = "1h";
    let members = fleet.proxies(2);
    let hung = leader_of(&members);
    let other = &members[1 - hung];
    eventually("checks by the leader", || other.prober() == "leader");
    members[hung].proxy.signal("STOP");
    eventually("checks of its own", || other.prober() == "local");
    // The watch is made anew, and finds the same beat.
    let age = || other.proxy.metric("ringway_fleet_health_age_seconds{pool=\"app\"}");
    eventually("more than one new watch", || {
        assert_eq!(other.prober(), "local");
        age() > 7.0
    });
    turn(&fleet.nodes[0], false);
    eventually("its own verdict", || !other.is_healthy("n0"));
    members[hung].proxy.signal("CONT");
    eventually("checks by the leader", || other.prober() == "leader");
}

#[test]
fn a_leader_that_vanishes_is_replaced_and_a_leader_without_etcd_steps_down() {
    let Some(fleet) = Fleet::start(1) else { return };
    let mut members = fleet.proxies(3);
    let cut = leader_of(&members);
    let metric = |member: &Member| member.proxy.metric("ringway_leader{id=\"t\"}");
    assert_eq!(members.iter().map(metric).sum::<f64>(), 1.0);
    let term = members[cut].proxy.metric("ringway_leader_term");
    members[cut].cut(true);
    let one = members.remove(cut);
    eventually("it to step down", || !one.leads());
    let next = leader_of(&members);
    assert!(members[next].proxy.metric("ringway_leader_term") > term);
    assert_eq!(metric(&one), 0.0);
    one.cut(false);
    eventually("it to follow", || one.knows(3) && one.leader()["term"] == members[next].leader()["term"]);

    members[next].proxy.signal("KILL");
    drop(members.remove(next));
    members.push(one);
    leader_of(&members);
    publications_are_fenced(&fleet);
}
