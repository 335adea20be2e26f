//! Proxies that hear each other over Redis: purges and writes reach all, whatever happens to nodes and links.

mod gaps;
mod load;
mod members;
mod purging;
mod races;

use crate::engines::{Link, Redis};
use crate::support::{Answer, Barrier, Origin, Proxy, eventually};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// An origin whose resources have versions: a GET returns the version, cached for long; every other method makes a new
/// one. Paths below `/slow` wait before they answer a GET, for as long as the barrier is closed.
pub struct Versions {
    pub origin: Origin,
    versions: Arc<Mutex<HashMap<String, u64>>>,
    pub barrier: Barrier,
}

impl Versions {
    pub fn start() -> Versions {
        let versions: Arc<Mutex<HashMap<String, u64>>> = Arc::default();
        let barrier = Barrier::default();
        let (own, wait) = (Arc::clone(&versions), barrier.clone());
        let origin = Origin::start(move |ask, peer| {
            let path = ask.path().to_owned();
            if ask.method() != "GET" {
                *own.lock().unwrap().entry(path).or_default() += 1;
                let more = ask.field("x-answer").unwrap_or_default().to_owned();
                return peer.reply(200, &more, "");
            }
            let version = own.lock().unwrap().get(&path).copied().unwrap_or_default();
            if path.starts_with("/slow") {
                wait.wait();
            }
            let tag = format!("\"v{version}\"");
            let fields = format!("cache-control: max-age=3600 | etag: {tag} | cache-tag: all-tags");
            match ask.field("if-none-match") == Some(&tag) {
                true => peer.reply(304, &fields, ""),
                false => peer.reply(200, &fields, &format!("v{version}")),
            }
        });
        Versions { origin, versions, barrier }
    }

    /// Makes a new version behind the back of all proxies. Returns it.
    pub fn change(&self, path: &str) -> String {
        let mut versions = self.versions.lock().unwrap();
        let version = versions.entry(path.to_owned()).or_default();
        *version += 1;
        format!("v{version}")
    }

    /// The requests that are validations.
    pub fn validations(&self) -> usize {
        self.origin.requests().iter().filter(|head| head.to_ascii_lowercase().contains("if-none-match")).count()
    }
}

/// The nodes of a bus, and a link to each for every proxy.
pub struct Bus {
    pub nodes: Vec<Redis>,
    /// The short lease of tests.
    pub lease: &'static str,
}

impl Bus {
    /// Starts servers; `None` where Redis is not installed.
    pub fn start(count: usize) -> Option<Bus> {
        let nodes: Option<Vec<Redis>> = (0..count).map(|_| Redis::start(&[])).collect();
        Some(Bus { nodes: nodes?, lease: "3s" })
    }

    /// The block of the configuration, for a proxy that reaches the nodes at these ports.
    pub fn block(&self, ports: &[u16]) -> String {
        let node = |(number, port): (usize, &u16)| format!("{{ id: r{number}, address: \"127.0.0.1:{port}\" }}");
        let nodes: Vec<String> = ports.iter().enumerate().map(node).collect();
        format!("fleet: {{ id: test, lease: {}, redis: {{ nodes: [{}] }} }}\n", self.lease, nodes.join(", "))
    }

    /// Starts a proxy with links of its own to all nodes.
    pub fn proxy(&self, versions: &Versions) -> Member {
        self.proxy_with(versions, "")
    }

    /// The same, with settings of the cache.
    pub fn proxy_with(&self, versions: &Versions, cache: &str) -> Member {
        let links: Vec<Link> = self.nodes.iter().map(|node| Link::to(node.port)).collect();
        let ports: Vec<u16> = links.iter().map(Link::port).collect();
        let proxy = Proxy::start(&(self.block(&ports) + &versions.origin.configuration(cache)));
        let member = Member { proxy, links };
        eventually("the bus", || member.works());
        member
    }

    /// Starts proxies that know each other.
    pub fn proxies(&self, count: usize, versions: &Versions) -> Vec<Member> {
        let members: Vec<Member> = (0..count).map(|_| self.proxy(versions)).collect();
        eventually("all members", || members.iter().all(|member| member.knows(count)));
        members
    }
}

/// A proxy of the fleet, with its links to the nodes of the bus.
pub struct Member {
    pub proxy: Proxy,
    pub links: Vec<Link>,
}

impl Member {
    pub fn fleet(&self) -> serde_json::Value {
        self.proxy.admin_get("/api/fleet").json()
    }

    pub fn process(&self) -> String {
        self.fleet()["process"].as_str().unwrap().to_owned()
    }

    /// Whether the bus works and all its nodes are up.
    pub fn works(&self) -> bool {
        let fleet = self.fleet();
        let nodes = fleet["bus"]["nodes"].as_array().unwrap();
        fleet["bus"]["open_gap"] == false && nodes.iter().all(|node| node["up"] == true)
    }

    /// Whether it sees so many members alive.
    pub fn knows(&self, count: usize) -> bool {
        let fleet = self.fleet();
        fleet["members"].as_array().unwrap().iter().filter(|member| member["state"] != "missed").count() == count
    }

    /// Waits until it has read all nodes since now: what happens to one of them from here on is a gap of its own.
    pub fn reads_on(&self) {
        let began = std::time::Instant::now();
        eventually("a reading of all nodes", || {
            let age = began.elapsed().as_secs_f64();
            let nodes = self.fleet()["bus"]["nodes"].clone();
            nodes.as_array().unwrap().iter().all(|node| node["read_seconds"].as_f64().unwrap() < age)
        });
    }

    pub fn doubts(&self) -> u64 {
        self.fleet()["bus"]["doubts"].as_u64().unwrap()
    }

    /// The body and whether it was a hit.
    pub fn get(&self, path: &str) -> (String, bool) {
        let answer = self.proxy.get(path);
        assert_eq!(answer.status, 200, "{answer:?}");
        (answer.text(), answer.field("cache-status").is_some_and(|status| status.contains("; hit")))
    }

    /// Has a path in the store.
    pub fn warm(&self, path: &str) {
        eventually("a hit", || self.get(path).1);
    }

    pub fn purge(&self, order: &str) -> HeardBy {
        let answer = self.proxy.purge(order);
        assert_eq!(answer.status, 200, "{answer:?}");
        HeardBy::of(&answer)
    }

    /// Purges until an answer names all members of a fleet of that size, which the first one does unless the machine is
    /// busy. Returns how often.
    pub fn purge_everywhere(&self, order: &str, count: u64) -> f64 {
        let mut purges = 0.0;
        eventually("a purge that all have heard", || {
            purges += 1.0;
            let heard = self.purge(order);
            assert!(heard.of == count && heard.published, "{heard:?}");
            heard == HeardBy::all(count)
        });
        purges
    }

    pub fn cut(&self, is_cut: bool) {
        self.links.iter().for_each(|link| link.cut(is_cut));
    }
}

/// `heard_by` of an answer.
#[derive(Debug, PartialEq)]
pub struct HeardBy {
    pub members: u64,
    pub of: u64,
    pub missing: Vec<String>,
    pub complete: bool,
    pub published: bool,
}

impl HeardBy {
    fn of(answer: &Answer) -> HeardBy {
        let found = &answer.json()["heard_by"];
        let missing = found["missing"].as_array().unwrap_or_else(|| panic!("{answer:?}"));
        HeardBy {
            members: found["members"].as_u64().unwrap(),
            of: found["of"].as_u64().unwrap(),
            missing: missing.iter().map(|name| name.as_str().unwrap().to_owned()).collect(),
            complete: found["complete"].as_bool().unwrap(),
            published: found["published"].as_bool().unwrap(),
        }
    }

    /// All members of a fleet of that size.
    pub fn all(count: u64) -> HeardBy {
        HeardBy { members: count, of: count, missing: Vec::new(), complete: true, published: true }
    }
}

/// A purge of one URL, by its path.
pub fn url(path: &str) -> String {
    format!(r#"{{"url": "http://example.com{path}"}}"#)
}
