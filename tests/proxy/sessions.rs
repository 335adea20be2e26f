//! Session affinity by cookie.

use crate::support::{Client, Origin, Proxy, eventually};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

const SECRET: &str = "0123456789abcdef0123456789abcdef";

struct Pool {
    nodes: Vec<Origin>,
}

impl Pool {
    fn new(count: usize) -> Pool {
        let say = |n| Origin::saying(format!("HTTP/1.1 200 OK\r\nx-node: n{n}\r\ncontent-length: 0\r\n\r\n"));
        Pool { nodes: (0..count).map(say).collect() }
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|node| node.address).collect()
    }

    fn proxy(&self, affinity: &str) -> Proxy {
        Proxy::start_whole(&text(&self.addresses(), affinity))
    }
}

fn text(nodes: &[SocketAddr], affinity: &str) -> String {
    let route = format!("pool: app, affinity_cookie: {{ {affinity} }} }}");
    let pool = Proxy::pool(nodes, "").replace("pool: app, hash_on: [uri] }", &route);
    format!(
        "listeners: [{{ name: http, address: \"127.0.0.1:0\" }}]\nadmin: {{ address: \"127.0.0.1:0\" }}\naccess_log: {{ format: \"off\" }}\n{pool}"
    )
}

/// A folder with a secret file, and the cookie's settings that name it.
fn strict(more: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("key"), SECRET).unwrap();
    let settings = format!("mode: strict, secret_file: {}, {more}", folder.path().join("key").display());
    (folder, settings)
}

/// One request with a cookie: who answered, with which status, and the new cookie's `name=value`.
fn visit(proxy: &Proxy, cookie: &str) -> (u16, String, Option<String>) {
    let cookie = if cookie.is_empty() { String::new() } else { format!("cookie: {cookie}\r\n") };
    let answer = proxy.connect().request(format!("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{cookie}\r\n"));
    let set = answer.field("set-cookie").map(|set| set.split(';').next().unwrap().to_owned());
    (answer.status, answer.field("x-node").unwrap_or_default(), set)
}

/// `explain` names the node that the proxy sends the request to, whatever decides on it.
#[test]
fn explain_says_where_a_session_goes() {
    let explain = |config: &Path, cookie: &str| {
        let cookie = format!("Cookie: {cookie}");
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_ringway"))
            .args(["explain", "--config", config.to_str().unwrap(), "GET", "http://a/", "-H", &cookie])
            .output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    let explained = |proxy: &Proxy, cookie: &str| explain(&proxy.folder().join("ringway.yaml"), cookie);
    let pool = Pool::new(3);
    let (_folder, settings) = strict("on_gone: reject");
    let proxy = pool.proxy(&settings);
    let (_, node, cookie) = visit(&proxy, "");
    let cookie = cookie.unwrap();
    let said = explained(&proxy, &cookie);
    assert!(said.contains(&format!("session      of the node {node}; while that is down: 503")), "{said}");
    assert!(said.contains("the session's node alone"), "{said}");
    assert!(explained(&proxy, "RINGWAY=nonsense").contains("any node, by share"));

    // Of a node that name servers tell of, the file knows nothing.
    let file = proxy.folder().join("ringway.yaml");
    let config = std::fs::read_to_string(&file).unwrap();
    let nodes = config.find("nodes:").unwrap()..config.find("routes:").unwrap();
    let found = [&config[..nodes.start], "discovery: { dns: \"nodes.example:80\" }\n", &config[nodes.end..]].concat();
    std::fs::write(proxy.folder().join("found.yaml"), found).unwrap();
    let said = explain(&proxy.folder().join("found.yaml"), &cookie);
    assert!(said.contains(&format!("session      of the node {node}, if `discovery` finds it")), "{said}");

    let proxy = pool.proxy("ttl: 2h");
    let (_, node, cookie) = visit(&proxy, "");
    let said = explained(&proxy, &cookie.unwrap());
    assert!(
        said.contains("the affinity cookie's, hash") && said.contains(&format!("nodes        {node} ->")),
        "{said}"
    );
}

#[test]
fn a_soft_cookie_keeps_a_client_with_its_node() {
    let pool = Pool::new(3);
    let proxy = pool.proxy("ttl: 2h");
    let answer = proxy.get("/");
    let set = answer.field("set-cookie").unwrap();
    let (cookie, attributes) = set.split_once("; ").unwrap();
    assert_eq!(attributes, "Path=/; Max-Age=7200; HttpOnly; SameSite=Lax");
    let home = answer.field("x-node").unwrap();
    for _ in 0..20 {
        assert_eq!(visit(&proxy, cookie), (200, home.clone(), None));
    }
    // Another proxy with the same file agrees.
    let other = pool.proxy("ttl: 2h");
    assert_eq!(visit(&other, cookie).1, home);
    // What is not ours is no key: a new one is issued.
    for junk in ["ringway=junk", "ringway=", "ringwayx=AAAAAAAAAAAAAAAAAAAAAA"] {
        assert!(visit(&proxy, junk).2.is_some(), "{junk}");
    }
}

#[test]
fn a_soft_cookie_comes_only_where_no_source_is_present() {
    let pool = Pool::new(3);
    let settings = "pool: app, hash_on: [header:x-user], affinity_cookie: {} }";
    let proxy = Proxy::start(&Proxy::pool(&pool.addresses(), "").replace("pool: app, hash_on: [uri] }", settings));
    let keyed = proxy.connect().request("GET / HTTP/1.1\r\nhost: a\r\nx-user: u\r\n\r\n");
    assert_eq!(keyed.field("set-cookie"), None);
    assert!(proxy.get("/").field("set-cookie").is_some());
}

#[test]
fn a_strict_cookie_holds_its_node() {
    let pool = Pool::new(4);
    let (_folder, settings) = strict("ttl: 1h");
    let proxy = pool.proxy(&settings);
    let mut cookies = BTreeSet::new();
    let mut homes = BTreeMap::new();
    for _ in 0..40 {
        let (status, home, cookie) = visit(&proxy, "");
        assert_eq!(status, 200);
        let cookie = cookie.unwrap();
        assert!(cookies.insert(cookie.clone()), "two sessions have one cookie");
        homes.insert(home, cookie);
    }
    assert_eq!(homes.len(), 4);
    for (home, cookie) in &homes {
        assert_eq!(visit(&proxy, cookie), (200, home.clone(), None));
    }
}

#[test]
fn a_strict_cookie_that_does_not_hold_gets_a_new_one() {
    let pool = Pool::new(2);
    let (_folder, settings) = strict("ttl: 1h");
    let proxy = pool.proxy(&settings);
    let cookie = visit(&proxy, "").2.unwrap();
    let mut forged = cookie.clone().into_bytes();
    let last = forged.len() - 4;
    forged[last] = if forged[last] == b'A' { b'B' } else { b'A' };
    for bad in [String::from_utf8(forged).unwrap(), cookie[..cookie.len() - 5].to_owned(), "ringway=AQ".to_owned()] {
        let (status, _, new) = visit(&proxy, &bad);
        assert!(status == 200 && new.is_some_and(|new| new != cookie), "{bad}");
    }
    // Sealed with a secret that nobody has any more.
    let other = tempfile::tempdir().unwrap();
    std::fs::write(other.path().join("key"), "another-secret-of-enough-characters").unwrap();
    let stranger = pool.proxy(&format!("mode: strict, secret_file: {}", other.path().join("key").display()));
    assert!(visit(&stranger, &cookie).2.is_some());
}

#[test]
fn an_expired_strict_cookie_is_renewed() {
    let pool = Pool::new(1);
    let (_folder, settings) = strict("ttl: 4s");
    let proxy = pool.proxy(&settings);
    let cookie = visit(&proxy, "").2.unwrap();
    assert_eq!(visit(&proxy, &cookie).2, None);
    eventually("the renewal", || visit(&proxy, &cookie).2.is_some());
}

#[test]
fn a_drain_keeps_strict_sessions_and_takes_no_new_ones() {
    let pool = Pool::new(2);
    let (_folder, settings) = strict("ttl: 1h");
    let proxy = pool.proxy(&settings);
    let mut cookie = visit(&proxy, "");
    while cookie.1 != "n1" {
        cookie = visit(&proxy, "");
    }
    let cookie = cookie.2.unwrap();
    let state = |word: &str| {
        let request = format!(
            "POST /api/pools/app/nodes/n1/{word} HTTP/1.1\r\nhost: {}\r\ncontent-length: 0\r\n\r\n",
            proxy.admin
        );
        assert_eq!(Client::connect(proxy.admin).request(request).status, 200);
    };
    state("drain");
    assert_eq!(visit(&proxy, &cookie), (200, "n1".into(), None));
    for _ in 0..20 {
        assert_eq!(visit(&proxy, "").1, "n0");
    }
    // Down, and `on_gone: reject`: 503.
    state("down");
    let answer = proxy.connect().request(format!("GET / HTTP/1.1\r\nhost: a\r\ncookie: {cookie}\r\n\r\n"));
    assert_eq!((answer.status, answer.problem().as_str()), (503, "session-node-down"));
    assert!(answer.field("retry-after").is_some());
    state("up");
    assert_eq!(visit(&proxy, &cookie).1, "n1");
}

#[test]
fn a_node_that_does_not_answer_is_down_for_its_sessions() {
    let pool = Pool::new(1);
    for (on_gone, expected) in [("reject", 503), ("next", 200)] {
        let (_folder, settings) = strict(&format!("on_gone: {on_gone}"));
        // A node that is there when the cookie is made, and not afterwards.
        let live = Origin::saying("HTTP/1.1 200 OK\r\nx-node: n1\r\ncontent-length: 0\r\n\r\n");
        let whole = text(&[pool.nodes[0].address, live.address], &settings);
        let proxy = Proxy::start_whole(&whole);
        let mut first = visit(&proxy, "");
        while first.1 != "n1" {
            first = visit(&proxy, "");
        }
        let cookie = first.2.unwrap();
        // From now on nobody listens there.
        let refusing = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let moved = whole.replace(&live.address.to_string(), &refusing.to_string());
        std::fs::write(proxy.folder().join("ringway.yaml"), moved).unwrap();
        eventually("the reload", || proxy.metric("ringway_config_reloads_total{result=\"success\"}") >= 1.0);
        let (status, home, new) = visit(&proxy, &cookie);
        assert_eq!(status, expected, "{on_gone}");
        if on_gone == "next" {
            assert!(home == "n0" && new.is_some());
        }
    }
}

#[test]
fn a_node_that_left_the_file_means_a_new_one() {
    let pool = Pool::new(2);
    let (_folder, settings) = strict("ttl: 1h");
    let proxy = pool.proxy(&settings);
    let mut first = visit(&proxy, "");
    while first.1 != "n1" {
        first = visit(&proxy, "");
    }
    let cookie = first.2.unwrap();
    std::fs::write(proxy.folder().join("ringway.yaml"), text(&pool.addresses()[..1], &settings)).unwrap();
    eventually("the reload", || proxy.metric("ringway_config_reloads_total{result=\"success\"}") >= 1.0);
    let (status, home, new) = visit(&proxy, &cookie);
    assert!(status == 200 && home == "n0" && new.is_some());
}

/// A secret that rotates: the new one seals, the old one still opens, on two proxies alike.
#[test]
fn two_proxies_agree_and_secrets_rotate() {
    let pool = Pool::new(4);
    let (folder, settings) = strict("ttl: 1h");
    let one = pool.proxy(&settings);
    let cookies: Vec<(String, String)> =
        (0..20).map(|_| visit(&one, "")).map(|(_, home, cookie)| (home, cookie.unwrap())).collect();
    std::fs::write(folder.path().join("key"), format!("a-new-secret-of-at-least-32-characters\n{SECRET}\n")).unwrap();
    let two = pool.proxy(&settings);
    for (home, cookie) in &cookies {
        assert_eq!(visit(&two, cookie).1, *home);
    }
    one.signal("HUP");
    eventually("the reload", || one.metric("ringway_config_reloads_total{result=\"success\"}") >= 1.0);
    let (_, home, cookie) = visit(&two, "");
    assert_eq!(visit(&one, &cookie.unwrap()).1, home);
}

/// A trusted proxy that ends TLS before this one says so; nobody else can.
#[test]
fn a_cookie_over_tls_is_secure() {
    let pool = Pool::new(1);
    let settings = "pool: app, affinity_cookie: {} }";
    let text = Proxy::pool(&pool.addresses(), "").replace("pool: app, hash_on: [uri] }", settings);
    for (trusted, secure) in [("trusted_proxies: [127.0.0.0/8]\n", true), ("", false)] {
        let proxy = Proxy::start(&format!("{trusted}{text}"));
        let answer = proxy.connect().request("GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-proto: https\r\n\r\n");
        assert_eq!(answer.field("set-cookie").unwrap().ends_with("; Secure"), secure);
    }
}
