//! Strong routes with `verify: quorum`: three Redis nodes hold the stamps by which a hit is the newest version, on any
//! proxy, whatever happens to nodes and writers.

mod choices;
mod faults;
mod histories;
mod refusals;
mod rollouts;
mod ways;
mod writes;

use crate::engines::{Link, Redis};
use crate::support::{Answer, Barrier, Origin, Proxy, eventually};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// The group of a path: its first segment, whose resources change together.
fn group(path: &str) -> String {
    path.split(['/', '?']).nth(1).unwrap_or_default().to_owned()
}

/// A shop whose shelves have versions: a GET below a shelf tells its version, any other method makes the next one.
pub struct Shop {
    pub origin: Origin,
    versions: Arc<Mutex<HashMap<String, u64>>>,
    barriers: Arc<Mutex<HashMap<String, Barrier>>>,
}

impl Shop {
    pub fn start() -> Shop {
        let versions: Arc<Mutex<HashMap<String, u64>>> = Arc::default();
        let barriers: Arc<Mutex<HashMap<String, Barrier>>> = Arc::default();
        let (own, held) = (Arc::clone(&versions), Arc::clone(&barriers));
        let origin = Origin::start(move |ask, peer| {
            let path = ask.path().to_owned();
            let wait = |when: &str| {
                let barrier = held.lock().unwrap().get(&format!("{when} {path}")).cloned();
                if let Some(barrier) = barrier {
                    barrier.wait();
                }
            };
            if !matches!(ask.method(), "GET" | "HEAD") {
                wait("before");
                let version = {
                    let mut versions = own.lock().unwrap();
                    let version = versions.entry(group(&path)).or_insert(1);
                    *version += 1;
                    *version
                };
                wait("after");
                let more = ask.field("x-answer").unwrap_or_default().replace(" & ", " | ");
                let status = ask.field("x-status").and_then(|status| status.parse().ok()).unwrap_or(200);
                return peer.reply(status, &more, &format!("v{version}"));
            }
            let version = own.lock().unwrap().get(&group(&path)).copied().unwrap_or(1);
            wait("read");
            let tag = format!("\"v{version}\"");
            let fields = format!("cache-control: public, max-age=600 | etag: {tag}");
            if ask.field("if-none-match") == Some(&tag) {
                return peer.reply(304, &fields, "");
            }
            if path.contains("growing") {
                let head = format!("cache-control: public, max-age=600\r\netag: {tag}\r\ncontent-length: 4096");
                peer.send(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\nv{version} "));
                wait("half");
                return peer.send("x".repeat(4096 - format!("v{version} ").len()));
            }
            peer.reply(200, &fields, &if ask.method() == "HEAD" { String::new() } else { format!("v{version}") })
        });
        Shop { origin, versions, barriers }
    }

    /// Holds requests for a path back: `before` or `after` a change, `read` once a GET has read its version, `half` in the
    /// middle of its answer.
    pub fn hold(&self, when: &str, path: &str) -> Barrier {
        let barrier = Barrier::default();
        self.barriers.lock().unwrap().insert(format!("{when} {path}"), barrier.clone());
        barrier
    }

    /// The version of a shelf.
    pub fn version(&self, path: &str) -> String {
        format!("v{}", self.versions.lock().unwrap().get(&group(path)).copied().unwrap_or(1))
    }

    /// The requests with a method that have arrived for a path.
    pub fn count(&self, method: &str, path: &str) -> usize {
        self.origin.asks().iter().filter(|ask| ask.method() == method && ask.path() == path).count()
    }

    /// Waits until a request has arrived.
    pub fn waits_for(&self, method: &str, path: &str) {
        eventually(&format!("{method} {path}"), || self.count(method, path) > 0);
    }
}

/// The nodes of a fleet.
pub struct Nodes {
    pub nodes: Vec<Redis>,
}

impl Nodes {
    /// Starts servers; `None` where Redis is not installed.
    pub fn start(count: usize) -> Option<Nodes> {
        let nodes: Option<Vec<Redis>> = (0..count).map(|_| Redis::start(&[])).collect();
        Some(Nodes { nodes: nodes? })
    }

    fn list(&self, which: &[usize]) -> String {
        let node = |number: &usize| format!("{{ id: r{number}, address: \"127.0.0.1:{}\" }}", self.nodes[*number].port);
        which.iter().map(node).collect::<Vec<_>>().join(", ")
    }

    /// The block of the configuration, with these nodes and more settings of `redis`.
    pub fn block_of(&self, which: &[usize], more: &str) -> String {
        let comma = if more.is_empty() { "" } else { ", " };
        format!("fleet: {{ id: test, lease: 3s, redis: {{ nodes: [{}]{comma}{more} }} }}\n", self.list(which))
    }

    /// Starts a proxy that reaches each node over a link of its own.
    pub fn linked(&self, shop: &Shop) -> (Proxy, Vec<Link>) {
        let links: Vec<Link> = self.nodes.iter().map(|node| Link::to(node.port)).collect();
        let mut text = self.block() + &routes(shop, "");
        for (node, link) in self.nodes.iter().zip(&links) {
            text = text.replace(&format!("127.0.0.1:{}\"", node.port), &format!("127.0.0.1:{}\"", link.port()));
        }
        (Proxy::start(&text), links)
    }

    pub fn block(&self) -> String {
        self.block_of(&(0..self.nodes.len()).collect::<Vec<_>>(), "")
    }

    /// Starts a proxy before a shop, with more settings of `consistency`.
    pub fn proxy(&self, shop: &Shop, more: &str) -> Proxy {
        Proxy::start(&(self.block() + &routes(shop, more)))
    }

    /// Starts proxies of which each has a hit of a path.
    pub fn proxies(&self, count: usize, shop: &Shop, path: &str) -> Vec<Proxy> {
        let proxies: Vec<Proxy> = (0..count).map(|_| self.proxy(shop, "")).collect();
        proxies.iter().for_each(|proxy| warm(proxy, path));
        proxies
    }
}

/// One strong route for everything.
pub fn routes(shop: &Shop, more: &str) -> String {
    routes_before(&shop.origin, more)
}

pub fn routes_before(origin: &Origin, more: &str) -> String {
    let comma = if more.is_empty() { "" } else { ", " };
    let consistency =
        format!("level: strong, verify: quorum, settle: 1s, groups: [\"{{host}}/{{path:1}}\"]{comma}{more}");
    let route = format!("hash_on: [uri], cache: {{ lock_timeout: 5m }}, consistency: {{ {consistency} }} }}");
    Proxy::pool(&[origin.address], "").replace("hash_on: [uri] }", &route)
}

/// Waits until a path is answered from the store of a proxy: the memory of new nodes counts only after a while.
pub fn warm(proxy: &Proxy, path: &str) {
    eventually("a hit", || is_hit(&proxy.get(path)));
}

pub fn status(answer: &Answer) -> String {
    answer.field("cache-status").unwrap_or_default()
}

/// Returns whether an answer is a stored response that the nodes have verified.
pub fn is_hit(answer: &Answer) -> bool {
    status(answer).starts_with("ringway; hit; ttl=") && !status(answer).contains("detail")
}

pub fn count(proxy: &Proxy, result: &str) -> f64 {
    proxy.metric(&format!("ringway_consistency_requests_total{{result=\"{result}\",route=\"site\"}}"))
}

/// Sends a request in a thread of its own. Returns its answer in the end.
pub fn later(proxy: &Proxy, method: &str, path: &str, fields: &str) -> std::thread::JoinHandle<Answer> {
    let mut client = proxy.connect();
    let lines: String = fields.split(" | ").filter(|line| !line.is_empty()).map(|line| format!("{line}\r\n")).collect();
    let text = format!("{method} {path} HTTP/1.1\r\nhost: example.com\r\nconnection: close\r\n{lines}\r\n");
    std::thread::spawn(move || client.request(text))
}

/// The time that a call takes, in milliseconds.
pub fn timed<T>(call: impl FnOnce() -> T) -> (T, u128) {
    let began = Instant::now();
    let result = call();
    (result, began.elapsed().as_millis())
}

#[test]
fn a_hit_is_served_once_the_nodes_have_verified_it() {
    let Some(nodes) = Nodes::start(3) else { return };
    let shop = Shop::start();
    let proxies = nodes.proxies(2, &shop, "/tools/list");
    for proxy in &proxies {
        let mut asked = 0;
        let mut answer = proxy.get("/tools/list");
        // A node that is slow for a moment costs a validation.
        eventually("a hit", || {
            asked = shop.origin.asked();
            answer = proxy.get("/tools/list");
            is_hit(&answer)
        });
        assert_eq!(shop.origin.asked(), asked, "no hit goes to the origin");
        assert_eq!(answer.text(), "v1");
        assert!(answer.field("cache-control").unwrap().ends_with("private, no-cache"), "{answer:?}");
        assert!(count(proxy, "fresh") >= 1.0);
        assert_eq!(proxy.metric("ringway_consistency_config_skew"), 0.0);
    }
}

#[test]
fn a_finished_write_is_read_on_every_proxy() {
    let Some(nodes) = Nodes::start(3) else { return };
    let shop = Shop::start();
    let proxies = nodes.proxies(2, &shop, "/tools/list");
    for round in 0..50 {
        let (writer, reader) = (&proxies[round % 2], &proxies[(round + 1) % 2]);
        // Another URI of the group: no other means than the stamps tells the reader.
        let written = writer.send("POST", "/tools/add", "content-length: 0").text();
        for proxy in [reader, writer] {
            let answer = proxy.get("/tools/list");
            assert_eq!(answer.text(), written, "round {round}: {answer:?}");
        }
        warm(reader, "/tools/list");
    }
}

#[test]
fn a_route_without_a_quorum_leaves_the_nodes_alone() {
    let Some(nodes) = Nodes::start(3) else { return };
    let shop = Shop::start();
    let proxy = Proxy::start(&(nodes.block() + &shop.origin.configuration("")));
    proxy.get("/tools/list");
    assert!(is_hit(&proxy.get("/tools/list")));
    assert_eq!(proxy.send("POST", "/tools/add", "content-length: 0").status, 200);
    for node in &nodes.nodes {
        assert_eq!(node.execute(&["KEYS", "ringway:test:strong:*"]), "");
        // The bus has two connections, redis-cli one.
        let clients =
            node.execute(&["CLIENT", "LIST"]).lines().filter(|line| line.contains("lib-name=ringway")).count();
        assert!(clients <= 2, "{clients} connections");
    }
}

#[test]
fn the_log_and_the_status_tell_of_the_quorum() {
    let Some(nodes) = Nodes::start(3) else { return };
    let shop = Shop::start();
    let proxy =
        Proxy::start(&("workers: 1\naccess_log: { format: json }\n".to_owned() + &nodes.block() + &routes(&shop, "")));
    warm(&proxy, "/tools/list");
    let barrier = shop.hold("before", "/tools/add");
    let running = later(&proxy, "POST", "/tools/add", "content-length: 0");
    shop.waits_for("POST", "/tools/add");
    proxy.get("/tools/list?marked");
    barrier.open();
    assert_eq!(running.join().unwrap().status, 200);
    proxy.get("/tools/list");
    let said = |uri: &str, word: &str| {
        eventually(word, || {
            let output = proxy.output();
            let mut lines = output.lines().filter(|line| line.contains(&format!("\"uri\":\"{uri}\"")));
            lines.next_back().is_some_and(|line| line.contains(&format!("\"consistency\":\"{word}\"")))
        });
    };
    said("/tools/list?marked", "marked");
    said("/tools/list", "changed");
    warm(&proxy, "/tools/list");
    said("/tools/list", "fresh");
    let quorum = &proxy.admin_get("/api/status").json()["quorum"];
    assert_eq!((&quorum["replicas"], &quorum["write"], &quorum["read"]), (&3.into(), &2.into(), &2.into()));
    assert_eq!(quorum["routes"], serde_json::json!(["site"]));
    assert!(quorum["tolerance"].as_str().unwrap().contains("writes go on with one node away"), "{quorum}");
}
