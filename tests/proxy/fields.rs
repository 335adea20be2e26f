//! What a node is told about the client, and what nobody may make the proxy say.

use crate::support::{Origin, Proxy};

/// The head that the node gets for these request lines.
fn forwarded(proxy: &Proxy, lines: &str) -> String {
    let answer = proxy.connect().request(format!("GET /a HTTP/1.1\r\nhost: Example.com:80\r\n{lines}\r\n"));
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.text()
}

fn values<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    let lines = head.lines().filter_map(|line| line.split_once(": "));
    lines.filter(|(field, _)| *field == name).map(|(_, value)| value).collect()
}

#[test]
fn an_untrusted_client_cannot_say_who_it_is() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    let head = forwarded(
        &proxy,
        "x-forwarded-for: 1.2.3.4\r\nx-forwarded-proto: https\r\nx-forwarded-host: evil\r\nx-forwarded-port: 1\r\nforwarded: for=1.2.3.4\r\nx-real-ip: 1.2.3.4\r\n",
    );
    assert_eq!(values(&head, "x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(values(&head, "x-forwarded-proto"), ["http"]);
    assert_eq!(values(&head, "x-forwarded-host"), ["example.com"]);
    assert_eq!(values(&head, "host"), ["example.com"]);
    assert_eq!(values(&head, "via"), ["1.1 ringway"]);
    for gone in ["x-forwarded-port", "forwarded", "x-real-ip"] {
        assert!(values(&head, gone).is_empty(), "{gone} in {head}");
    }
}

#[test]
fn a_trusted_proxy_is_believed() {
    let node = Origin::echo();
    let proxy = Proxy::start(&format!("trusted_proxies: [127.0.0.0/8]\n{}", Proxy::pool(&[node.address], "")));
    let head = forwarded(
        &proxy,
        "x-forwarded-for: 1.2.3.4\r\nx-forwarded-for: 5.6.7.8\r\nx-forwarded-proto: https\r\nx-forwarded-host: shop.example\r\nvia: 1.1 front\r\n",
    );
    assert_eq!(values(&head, "x-forwarded-for"), ["1.2.3.4, 5.6.7.8, 127.0.0.1"]);
    assert_eq!(values(&head, "x-forwarded-proto"), ["https"]);
    assert_eq!(values(&head, "x-forwarded-host"), ["shop.example"]);
    assert_eq!(values(&head, "via"), ["1.1 front", "1.1 ringway"]);
}

#[test]
fn the_forwarded_host_never_routes() {
    let node = Origin::echo();
    let proxy = Proxy::start(&format!(
        "trusted_proxies: [127.0.0.0/8]\npools: {{ app: {{ nodes: [{{ id: a, address: \"{}\" }}] }} }}\nroutes:\n  - {{ name: secret, hosts: [secret.example], pool: app }}\n",
        node.address
    ));
    let answer = proxy.connect().request("GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-host: secret.example\r\n\r\n");
    assert_eq!(answer.status, 404);
}

#[test]
fn every_request_has_an_id_and_a_trace() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    let head = forwarded(&proxy, "");
    let (id, trace) = (values(&head, "x-request-id")[0], values(&head, "traceparent")[0]);
    assert!(id.len() == 32 && trace.len() == 55 && trace.contains(id), "{head}");

    let theirs = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let head = forwarded(&proxy, &format!("x-request-id: order-7\r\ntraceparent: {theirs}\r\ntracestate: v=1\r\n"));
    assert_eq!(values(&head, "x-request-id"), ["order-7"]);
    assert_eq!(values(&head, "tracestate"), ["v=1"]);
    let trace = values(&head, "traceparent")[0];
    assert!(trace.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-") && trace != theirs, "{trace}");
}

#[test]
fn fields_of_one_connection_go_no_further() {
    let node = Origin::saying(
        "HTTP/1.1 200 OK\r\nconnection: x-mine, keep-alive\r\nx-mine: 1\r\nkeep-alive: timeout=5\r\nproxy-connection: keep-alive\r\nx-kept: 1\r\ncontent-length: 0\r\n\r\n",
    );
    let proxy = Proxy::before(&[node.address]);
    let answer = proxy.connect().request(
        "GET / HTTP/1.1\r\nhost: a\r\nconnection: keep-alive, x-private\r\nx-private: 1\r\nkeep-alive: 5\r\nproxy-connection: keep-alive\r\nte: gzip\r\n\r\n",
    );
    for gone in ["x-mine", "keep-alive", "proxy-connection"] {
        assert_eq!(answer.field(gone), None, "{answer:?}");
    }
    assert_eq!(answer.field("x-kept").as_deref(), Some("1"));
    let head = &node.requests()[0];
    for gone in ["x-private", "keep-alive", "proxy-connection", "te:", "connection"] {
        assert!(!head.contains(gone), "{gone} in {head}");
    }
}

#[test]
fn a_route_changes_fields_and_paths() {
    let node = Origin::by_connection(|peer| {
        while let Some(head) = peer.request() {
            peer.send(format!(
                "HTTP/1.1 200 OK\r\nserver: node\r\nx-power: 1\r\ncontent-length: {}\r\n\r\n{head}",
                head.len()
            ));
        }
    });
    let proxy = Proxy::start(&format!(
        "pools: {{ app: {{ nodes: [{{ id: a, address: \"{}\" }}] }} }}
routes:
  - name: api
    path_prefix: /api
    strip_prefix: /api
    pool: app
    request_headers: {{ set: {{ x-edge: \"1\", host: inner.example }}, remove: [x-debug, cookie] }}
    response_headers: {{ set: {{ x-frame-options: DENY }}, remove: [server, x-power] }}
",
        node.address
    ));
    let mut client = proxy.connect();
    let answer = client
        .request("GET /api/users?q=%41 HTTP/1.1\r\nhost: a\r\nx-debug: 1\r\ncookie: a=1\r\nx-edge: forged\r\n\r\n");
    let head = answer.text();
    assert!(head.starts_with("GET /users?q=%41 HTTP/1.1"), "{head}");
    assert_eq!((values(&head, "x-edge"), values(&head, "host")), (vec!["1"], vec!["inner.example"]));
    assert!(!head.contains("x-debug") && !head.contains("cookie"), "{head}");
    assert_eq!(answer.field("x-frame-options").as_deref(), Some("DENY"));
    assert!(answer.field("server").is_none() && answer.field("x-power").is_none(), "{answer:?}");
    let named = proxy.get_with("/api", "connection: close, x-edge");
    assert_eq!((named.status, named.problem().as_str()), (400, "bad-connection-option"));
    assert!(client.request("GET /api HTTP/1.1\r\nhost: a\r\n\r\n").text().starts_with("GET / HTTP/1.1"));
    assert!(client.request("GET /%61pi/./x/%7Ey HTTP/1.1\r\nhost: a\r\n\r\n").text().starts_with("GET /x/~y HTTP/1.1"));
}
