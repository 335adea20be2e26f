//! How often a client may ask on a route, and what it is told of that.

use crate::support::http2::Http2;
use crate::support::{Answer, Client, Origin, Proxy, eventually};

/// A proxy with one route, and its node.
fn proxy(node: &Origin, route: &str) -> Proxy {
    Proxy::start(&format!(
        "trusted_proxies: [127.0.0.1]\npools: {{ app: {{ nodes: [{{ id: n0, address: \"{}\" }}] }} }}\nidempotency_store: {{ kind: memory }}\nroutes: [{{ name: site, pool: app, {route} }}]\n",
        node.address
    ))
}

fn from(proxy: &Proxy, address: &str, path: &str) -> Answer {
    proxy.get_with(path, &format!("x-forwarded-for: {address}"))
}

#[test]
fn a_client_that_asks_too_often_is_told_when_it_may_again() {
    let node = Origin::echo();
    let proxy = proxy(&node, "rate_limit: { requests: 3, per: 1h }");
    let told: Vec<_> = (0..4)
        .map(|_| {
            let answer = from(&proxy, "192.0.2.1", "/");
            (answer.status, answer.field("ratelimit").unwrap())
        })
        .collect();
    assert_eq!(told[..3].iter().map(|(status, _)| *status).collect::<Vec<_>>(), [200, 200, 200]);
    assert!(told[0].1.starts_with("\"site\";r=2;t=") && told[2].1.starts_with("\"site\";r=0;t="), "{told:?}");
    let refused = from(&proxy, "192.0.2.1", "/");
    assert_eq!((refused.status, refused.problem().as_str()), (429, "rate-limited"));
    assert_eq!(refused.field("ratelimit-policy").as_deref(), Some("\"site\";q=3;w=3600"));
    assert_eq!(refused.field("proxy-status").as_deref(), Some("ringway; error=http_request_denied"));
    let wait: u64 = refused.field("retry-after").unwrap().parse().unwrap();
    assert!((1190..=1200).contains(&wait), "{wait}");
    assert_eq!(from(&proxy, "192.0.2.2", "/").status, 200, "another client has its own");
    assert_eq!(node.requests().len(), 4);
    assert_eq!(proxy.metric("ringway_rate_limited_total{route=\"site\"}"), 2.0);
    // What its client says of itself counts for nothing where it is not believed.
    let host = proxy.get_with("/", "x-forwarded-for: 192.0.2.1, 192.0.2.9");
    assert_eq!(host.status, 200);
}

#[test]
fn the_time_brings_requests_back() {
    let node = Origin::echo();
    let proxy = proxy(&node, "rate_limit: { requests: 20, per: 1s, burst: 1 }");
    assert_eq!(proxy.get("/").status, 200);
    eventually("a refusal", || proxy.get("/").status == 429);
    eventually("another one", || proxy.get("/").status == 200);
}

#[test]
fn clients_are_told_apart_by_what_the_route_says() {
    let node = Origin::echo();
    let proxy = proxy(&node, "rate_limit: { requests: 1, per: 1h, key: [header:x-api-key, query:key] }");
    assert_eq!(proxy.get_with("/", "x-api-key: a").status, 200);
    assert_eq!(proxy.get_with("/", "x-api-key: a").status, 429);
    assert_eq!(proxy.get_with("/", "x-api-key: b").status, 200);
    assert_eq!(proxy.get("/?key=a").status, 200, "the same word in another place is another key");
    assert_eq!(proxy.get("/?key=a&more").status, 429);
    // Without any of them it is the address.
    assert_eq!(proxy.get("/").status, 200);
    assert_eq!(proxy.get("/").status, 429);
    assert_eq!(from(&proxy, "2001:db8::1", "/").status, 200);
    assert_eq!(from(&proxy, "2001:db8::2", "/").status, 429, "the same /64");
}

#[test]
fn hits_count_or_not_as_configured() {
    for (counts, expected) in [("true", [200, 200, 429, 429, 429]), ("false", [200, 200, 200, 200, 429])] {
        let node = Origin::saying("HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-length: 2\r\n\r\nok");
        let route = format!("cache: {{}}, rate_limit: {{ requests: 2, per: 1h, cache_hits: {counts} }}");
        let proxy = proxy(&node, &route);
        let statuses: Vec<u16> = ["/a", "/a", "/a", "/b", "/c"].iter().map(|path| proxy.get(path).status).collect();
        assert_eq!(statuses, expected, "{counts}");
    }
}

#[test]
fn replays_count_or_not_as_configured() {
    for (counts, expected) in [("true", [200, 200, 429, 429]), ("false", [200, 200, 200, 429])] {
        let node = Origin::saying("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        let route = format!("idempotency: {{}}, rate_limit: {{ requests: 2, per: 1h, replays: {counts} }}");
        let proxy = proxy(&node, &route);
        let pay = |key: &str| {
            let fields = format!("authorization: me | idempotency-key: {key} | content-length: 0");
            proxy.send("POST", "/pay", &fields)
        };
        let statuses: Vec<u16> = ["k1", "k1", "k2", "k3"].iter().map(|key| pay(key).status).collect();
        assert_eq!(statuses, expected, "{counts}");
    }
}

/// A request that was refused has not run: its key is free.
#[test]
fn a_refused_payment_may_be_made_again() {
    let node = Origin::saying("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    let proxy = proxy(&node, "idempotency: {}, rate_limit: { requests: 5, per: 1s, burst: 1, replays: false }");
    let pay = |key: &str| {
        proxy.send("POST", "/pay", &format!("authorization: me | idempotency-key: {key} | content-length: 0"))
    };
    assert_eq!(pay("k1").status, 200);
    let refused = pay("k2");
    assert_eq!((refused.status, refused.problem().as_str()), (429, "rate-limited"));
    eventually("its turn", || pay("k2").status == 200);
    assert_eq!(node.requests().len(), 2);
}

#[test]
fn routes_without_a_pool_and_http2_are_limited_too() {
    let proxy = Proxy::start(
        "routes: [{ name: hi, respond: { body: hi }, rate_limit: { requests: 2, per: 1h, key: [host] } }]\n",
    );
    let client = Http2::connect(proxy.address);
    let first = client.get("/");
    assert_eq!(
        (first.status, first.field("ratelimit").map(|text| text[..8].to_owned())),
        (200, Some("\"hi\";r=1".to_owned()))
    );
    assert_eq!(proxy.get("/").status, 200);
    let refused = client.get("/");
    assert_eq!((refused.status, refused.field("retry-after").is_some()), (429, true));
}

#[test]
fn a_reload_that_leaves_a_limit_alone_forgets_nothing() {
    let node = Origin::echo();
    let text = |more: &str| {
        format!(
            "pools: {{ app: {{ nodes: [{{ id: n0, address: \"{}\" }}] }} }}\nroutes: [{{ name: site, pool: app, rate_limit: {{ requests: 2, per: 1h{more} }} }}]\n",
            node.address
        )
    };
    let proxy = Proxy::start(&text(""));
    (0..2).for_each(|_| assert_eq!(proxy.get("/").status, 200));
    proxy.reconfigure(&format!("limits: {{ headers: 90 }}\n{}", text("")));
    assert_eq!(proxy.get("/").status, 429);
    proxy.reconfigure(&text(", burst: 3"));
    assert_eq!(proxy.get("/").status, 200);
}

/// The connection of a client that was refused goes on.
#[test]
fn a_refusal_costs_no_connection() {
    let node = Origin::echo();
    let proxy = proxy(&node, "rate_limit: { requests: 1, per: 1h }");
    let mut client = Client::connect(proxy.address);
    let mut ask = || client.request("GET / HTTP/1.1\r\nhost: a\r\n\r\n").status;
    assert_eq!([ask(), ask(), ask()], [200, 429, 429]);
}
