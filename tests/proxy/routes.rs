//! Routes and the ring, seen from outside.

use crate::support::{Origin, Proxy};
use std::process::Command;

#[test]
fn a_route_answers_redirects_or_forwards() {
    let node = Origin::echo();
    let proxy = Proxy::start(&format!(
        "pools: {{ app: {{ nodes: [{{ id: a, address: \"{}\" }}] }} }}
routes:
  - {{ name: robots, path: /robots.txt, respond: {{ body: \"User-agent: *\\n\" }} }}
  - {{ name: gone, path: /gone, respond: {{ status: 204, body: ignored }} }}
  - {{ name: old, path: /old, redirect: {{ to: \"https://example.com/new\" }} }}
  - {{ name: post, path_prefix: /form, methods: [POST], pool: app }}
  - {{ name: host, hosts: [\"*.example.com\"], pool: app }}
",
        node.address
    ));
    let mut client = proxy.connect();
    let robots = client.request("GET /robots.txt HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!((robots.status, robots.text().as_str()), (200, "User-agent: *\n"));
    assert_eq!(robots.field("content-type").as_deref(), Some("text/plain; charset=utf-8"));
    let head = client.request("HEAD /robots.txt HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!((head.status, head.field("content-length").as_deref()), (200, Some("14")));
    assert_eq!(client.request("GET /gone HTTP/1.1\r\nhost: a\r\n\r\n").status, 204);
    let old = client.request("GET /old HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!((old.status, old.field("location").as_deref()), (308, Some("https://example.com/new")));
    let refused = client.request("GET /form HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!((refused.status, refused.problem().as_str()), (404, "no-route"));
    assert_eq!(client.request("POST /form HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nx").status, 200);
    assert_eq!(client.request("GET / HTTP/1.1\r\nhost: WWW.Example.com.:80\r\n\r\n").status, 200);
    assert!(client.is_open());
    assert_eq!(proxy.metric("ringway_requests_total{code=\"404\",method=\"GET\",route=\"none\"}"), 1.0);
    assert_eq!(proxy.metric("ringway_requests_total{code=\"200\",method=\"POST\",route=\"post\"}"), 1.0);
}

/// The same key goes to the same node, and `ringway ring` and the API know which.
#[test]
fn the_ring_is_the_same_everywhere() {
    let nodes: Vec<Origin> = (0..3)
        .map(|n| Origin::saying(format!("HTTP/1.1 200 OK\r\nx-node: n{n}\r\ncontent-length: 0\r\n\r\n")))
        .collect();
    let addresses: Vec<_> = nodes.iter().map(|node| node.address).collect();
    let text =
        Proxy::pool(&addresses, "").replace("hash_on: [uri]", "hash_on: [header:x-user, query:tenant, client_ip]");
    let (one, two) = (Proxy::start(&text), Proxy::start(&text));
    let mut met = std::collections::BTreeSet::new();
    let (mut here, mut there) = (one.connect(), two.connect());
    for user in 0..10_000 {
        let request = format!("GET /{user} HTTP/1.1\r\nhost: a\r\nx-user: user-{user}\r\n\r\n");
        let home = here.request(&request).field("x-node").unwrap();
        assert_eq!(there.request(&request).field("x-node").unwrap(), home);
        met.insert(home.clone());
        if user < 5 {
            let owner = one.admin_get(&format!("/api/pools/app/ring?key=user-{user}")).json();
            assert_eq!(owner["owner"], home.as_str());
            let file = one.folder().join("ringway.yaml");
            let told = Command::new(env!("CARGO_BIN_EXE_ringway"))
                .args(["ring", "--json", "--key", &format!("user-{user}"), "--config"])
                .arg(file)
                .output()
                .unwrap();
            let told: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap();
            assert_eq!(told["key"]["order"][0], home.as_str());
        }
    }
    assert_eq!(met.len(), 3);
    // The query comes next, and needs no field.
    let by_query = |n| {
        one.connect()
            .request(format!("GET /{n}?tenant=t1 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"))
            .field("x-node")
    };
    assert_eq!(by_query(1), by_query(2));
}

#[test]
fn without_a_key_the_load_spreads() {
    let nodes = [Origin::echo(), Origin::echo()];
    let text = Proxy::pool(&[nodes[0].address, nodes[1].address], "").replace(", hash_on: [uri]", "");
    let proxy = Proxy::start(&text);
    let mut client = proxy.connect();
    for _ in 0..60 {
        client.request("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    }
    assert!(nodes.iter().all(|node| node.requests().len() > 5));
}
