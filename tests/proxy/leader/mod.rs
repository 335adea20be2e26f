//! Proxies with one leader by etcd: shared health and states of nodes, whatever happens to proxies, etcd and links.

mod election;
mod engine;
mod health;
mod links;
mod login;
mod states;

use crate::engines::{Etcd, Link};
use crate::support::{Answer, Does, Origin, Proxy, eventually};
use serde_json::Value as Json;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Checks that decide quickly.
const QUICK: &str = "interval: 200ms, timeout: 200ms, healthy_after: 1, unhealthy_after: 2";

/// A fleet of tests: its etcd, its nodes, and what the configuration says.
pub struct Fleet {
    pub etcd: Etcd,
    pub nodes: Vec<Origin>,
    pub lease: &'static str,
    /// The settings of the health checks.
    pub checks: String,
    /// More settings of the route.
    pub route: String,
}

impl Fleet {
    /// Starts etcd with so many members, and two nodes; `None` where etcd is not installed.
    pub fn start(members: usize) -> Option<Fleet> {
        let etcd = Etcd::start(members)?;
        let (checks, route) = (QUICK.to_owned(), String::new());
        Some(Fleet { etcd, nodes: Origin::several(2), lease: "2s", checks, route })
    }

    /// The configuration of a proxy that reaches etcd at these ports.
    pub fn configuration(&self, ports: &[u16]) -> String {
        let endpoints: Vec<String> = ports.iter().map(|port| format!("\"http://127.0.0.1:{port}\"")).collect();
        let nodes: Vec<String> = self.nodes.iter().enumerate().map(node).collect();
        format!(
            "workers: 1\nfleet: {{ id: t, lease: {}, etcd: {{ endpoints: [{}] }} }}\npools:\n  app:\n    health: shared\n    health_check: {{ {} }}\n    nodes: [{}]\nroutes:\n  - {{ name: site, path_prefix: /, pool: app, hash_on: [uri]{} }}\n",
            self.lease,
            endpoints.join(", "),
            self.checks,
            nodes.join(", "),
            self.route
        )
    }

    /// Starts a proxy, with a link to each member of etcd.
    pub fn proxy(&self) -> Member {
        let links: Vec<Link> = self.etcd.ports().into_iter().map(Link::to).collect();
        let ports: Vec<u16> = links.iter().map(Link::port).collect();
        Member { proxy: Proxy::start(&self.configuration(&ports)), links }
    }

    /// Starts proxies, and waits until one leads and all know each other.
    pub fn proxies(&self, count: usize) -> Vec<Member> {
        let members: Vec<Member> = (0..count).map(|_| self.proxy()).collect();
        eventually("all members", || members.iter().all(|member| member.knows(count)));
        leader_of(&members);
        members
    }
}

fn node((at, origin): (usize, &Origin)) -> String {
    format!("{{ id: n{at}, address: \"{}\" }}", origin.address)
}

/// Waits for a leader that all of them know. Returns its place.
pub fn leader_of(members: &[Member]) -> usize {
    let mut found = None;
    eventually("one leader", || {
        let all: Vec<Json> = members.iter().map(Member::leader).collect();
        let leaders: Vec<usize> = (0..all.len()).filter(|at| all[*at]["leads"] == true).collect();
        let agree = all.iter().all(|one| one["term"] == all[0]["term"]);
        found = leaders.first().copied().filter(|_| leaders.len() == 1 && agree);
        found.is_some()
    });
    found.unwrap()
}

/// A proxy of the fleet, with its links to etcd.
pub struct Member {
    pub proxy: Proxy,
    pub links: Vec<Link>,
}

impl Member {
    pub fn fleet(&self) -> Json {
        self.proxy.admin_get("/api/fleet").json()
    }

    /// Its status by etcd.
    pub fn leader(&self) -> Json {
        self.fleet()["leader"].clone()
    }

    pub fn leads(&self) -> bool {
        self.leader()["leads"] == true
    }

    pub fn process(&self) -> String {
        self.fleet()["process"].as_str().unwrap().to_owned()
    }

    /// Returns whether etcd works, and so many members are alive.
    pub fn knows(&self, count: usize) -> bool {
        let leader = self.leader();
        let alive = |member: &&Json| member["state"] != "missed";
        leader["up"] == true && leader["members"].as_array().unwrap().iter().filter(alive).count() == count
    }

    /// The prober of the pool: `self`, `leader` or `local`.
    pub fn prober(&self) -> String {
        self.leader()["pools"][0]["prober"].as_str().unwrap_or_default().to_owned()
    }

    /// The state of a node in force.
    pub fn state(&self, node: &str) -> String {
        self.proxy.node(node)["state"].as_str().unwrap().to_owned()
    }

    pub fn is_healthy(&self, node: &str) -> bool {
        self.proxy.node(node)["healthy"] == true
    }

    pub fn cut(&self, is_cut: bool) {
        self.links.iter().for_each(|link| link.cut(is_cut));
    }

    /// Sets the state of a node for the fleet by the API.
    pub fn set(&self, node: &str, state: &str) -> Answer {
        self.proxy.admin_post(&format!("/api/pools/app/nodes/{node}/{state}?scope=fleet"), r#"{"by": "ann"}"#)
    }

    /// Runs a command for this proxy.
    pub fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringway"));
        command.args(arguments).args(["--admin", &format!("http://{}", self.proxy.admin)]);
        command.output().unwrap()
    }
}

/// Requests that go on, one after the other at each proxy, until this is stopped.
pub struct Traffic {
    is_over: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<Vec<String>>>,
}

impl Traffic {
    pub fn to(members: &[Member]) -> Traffic {
        let (is_over, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let thread = |member: &Member| {
            let (address, is_over, answered) = (member.proxy.address, Arc::clone(&is_over), Arc::clone(&answered));
            std::thread::spawn(move || {
                let mut failed = Vec::new();
                for number in 0.. {
                    if is_over.load(Ordering::Relaxed) {
                        break;
                    }
                    let request = format!("GET /{number} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
                    let answer = crate::support::Client::connect(address).request(request);
                    match answer.status {
                        200 => drop(answered.fetch_add(1, Ordering::Relaxed)),
                        _ => failed.push(format!("{answer:?}")),
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
                failed
            })
        };
        let threads = members.iter().map(thread).collect();
        Traffic { is_over, answered, threads }
    }

    /// Waits until so many more requests were answered.
    pub fn goes_on(&self, count: usize) {
        let before = self.answered.load(Ordering::Relaxed);
        eventually("traffic", || self.answered.load(Ordering::Relaxed) >= before + count);
    }

    /// Ends it. None may have failed.
    pub fn stop(self) {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads {
            assert_eq!(thread.join().unwrap(), Vec::<String>::new());
        }
    }
}

/// Has the checks of a node pass, or fail.
pub fn turn(origin: &Origin, well: bool) {
    origin.answers_checks(Does::Answer(if well { 200 } else { 500 }));
}
