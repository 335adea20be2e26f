//! Upgrades: a tunnel begins with the node's 101 and not before.

use crate::support::{Client, Origin, Proxy, eventually};

const UPGRADE: &str =
    "GET /chat HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: k\r\n\r\n";

/// Switches and then says everything back, in brackets.
fn websocket_node() -> Origin {
    Origin::by_connection(|peer| {
        let Some(head) = peer.request() else { return };
        if !head.contains("upgrade: websocket") {
            return peer.answer("no tunnel");
        }
        peer.send("HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: x\r\n\r\nfirst");
        while !peer.client.has_ended() {
            let byte = peer.client.exactly(1);
            peer.send([b"[", &byte[..], b"]"].concat());
        }
    })
}

#[test]
fn a_tunnel_carries_bytes_both_ways() {
    let node = websocket_node();
    let proxy = Proxy::before(&[node.address]);
    let mut client = proxy.connect();
    client.send(UPGRADE);
    let head = client.head();
    assert!(
        head.starts_with("HTTP/1.1 101 ")
            && head.contains("upgrade: websocket")
            && head.contains("sec-websocket-accept: x"),
        "{head}"
    );
    assert_eq!(client.exactly(5), b"first");
    client.send("ab");
    assert_eq!(client.exactly(6), b"[a][b]");
    let in_flight = "ringway_node_in_flight{node=\"n0\",pool=\"app\"}";
    assert_eq!(proxy.metric(in_flight), 1.0);
    drop(client);
    eventually("the tunnel's end", || proxy.metric(in_flight) == 0.0);
    assert_eq!(proxy.metric("ringway_requests_total{code=\"101\",method=\"GET\",route=\"site\"}"), 1.0);
}

/// What a client sends behind its request waits for the 101.
#[test]
fn eager_bytes_go_through_the_tunnel_in_order() {
    let node = websocket_node();
    let proxy = Proxy::before(&[node.address]);
    let mut client = proxy.connect();
    client.send(format!("{UPGRADE}xyz"));
    client.head();
    assert_eq!(client.exactly(14), b"first[x][y][z]");
}

/// Where the node refuses, those bytes are a request of their own, read by the proxy itself.
#[test]
fn bytes_behind_a_refused_upgrade_are_no_tunnel() {
    let node = Origin::echo();
    let proxy = Proxy::start(&format!(
        "{}  - {{ name: never, path: /never, pool: app }}\n",
        Proxy::pool(&[node.address], "").replace("path_prefix: /,", "path: /chat,")
    ));
    let mut client = proxy.connect();
    client.send(format!("{UPGRADE}GET /admin HTTP/1.1\r\nhost: a\r\n\r\n"));
    assert_eq!(client.answer().status, 200);
    let second = client.answer();
    assert_eq!((second.status, second.problem().as_str()), (404, "no-route"));
    assert_eq!(node.requests().len(), 1);
}

#[test]
fn only_what_may_switch_is_asked_to() {
    for request in [
        // Cleartext HTTP/2 would be a way past every rule.
        "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: x\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\n\r\n",
        "GET / HTTP/1.0\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    ] {
        let node = Origin::echo();
        let proxy = Proxy::before(&[node.address]);
        let answer = proxy.connect().request(request);
        assert_eq!(answer.status, 200);
        assert!(
            !answer.text().to_lowercase().contains("upgrade") && !answer.text().contains("http2-settings"),
            "{}",
            answer.text()
        );
    }
}

#[test]
fn a_silent_tunnel_ends_in_time() {
    let node = websocket_node();
    let proxy = Proxy::start(&Proxy::pool(&[node.address], "    timeouts: { tunnel: 300ms }\n"));
    let mut client = proxy.connect();
    client.send(UPGRADE);
    client.head();
    client.exactly(5);
    assert!(client.is_closed());
}

/// A tunnel of which one side has ended closes after `timeouts.idle`.
#[test]
fn half_a_tunnel_ends_in_time() {
    let node = Origin::by_connection(|peer| {
        peer.request();
        peer.send("HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n");
        // It does not end, whatever the client does.
        loop {
            std::thread::park();
        }
    });
    let proxy = Proxy::start(&Proxy::pool(&[node.address], "    timeouts: { tunnel: 1h, idle: 300ms }\n"));
    let mut client = proxy.connect();
    client.send(UPGRADE);
    client.head();
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(client.is_closed());
    eventually("the node's place", || proxy.metric("ringway_node_in_flight{node=\"n0\",pool=\"app\"}") == 0.0);
}

/// A client that vanishes takes its tunnel with it, even if the node has nothing to say.
#[test]
fn a_reset_ends_the_tunnel() {
    let node = websocket_node();
    let proxy = Proxy::before(&[node.address]);
    let mut client = proxy.connect();
    client.send(UPGRADE);
    client.head();
    client.exactly(5);
    let in_flight = "ringway_node_in_flight{node=\"n0\",pool=\"app\"}";
    assert_eq!(proxy.metric(in_flight), 1.0);
    socket2::SockRef::from(&client.stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    drop(client);
    eventually("the tunnel's end", || proxy.metric(in_flight) == 0.0);
}

/// RFC 9110 7.8 knows no limit to GET: `docker exec` and `kubectl exec` upgrade a POST.
#[test]
fn a_post_may_switch_once_its_body_is_sent() {
    let node = Origin::by_connection(|peer| {
        let Some(head) = peer.request() else { return };
        let body = peer.body_of(&head);
        peer.send("HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: tcp\r\n\r\n");
        peer.send(&body);
        while !peer.client.has_ended() {
            let byte = peer.client.exactly(1);
            peer.send([b"[", &byte[..], b"]"].concat());
        }
    });
    let proxy = Proxy::before(&[node.address]);
    for (framing, body) in [
        ("content-length: 5", "hello"),
        ("transfer-encoding: chunked", "5\r\nhello\r\n0\r\n\r\n"),
        ("content-length: 0", ""),
    ] {
        let mut client = proxy.connect();
        client.send(format!(
            "POST /exec HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: tcp\r\n{framing}\r\n\r\n{body}"
        ));
        let head = client.head();
        assert!(head.starts_with("HTTP/1.1 101 ") && head.contains("upgrade: tcp"), "{framing}: {head}");
        if !body.is_empty() {
            assert_eq!(client.exactly(5), b"hello", "{framing}");
        }
        client.send("a");
        assert_eq!(client.exactly(3), b"[a]", "{framing}");
    }
}

/// A 101 before the whole request was sent is none.
#[test]
fn a_101_in_the_middle_of_a_request_is_refused() {
    let node = Origin::by_connection(|peer| {
        peer.request();
        peer.send("HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: tcp\r\n\r\n");
        peer.client.has_ended();
    });
    let proxy = Proxy::before(&[node.address]);
    let mut client = proxy.connect();
    client.send("POST / HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: tcp\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n");
    assert_eq!(client.answer().status, 502);
}

/// A client that leaves while its 101 cannot be written takes the node's place with it.
#[test]
fn a_101_that_nobody_takes_keeps_no_place() {
    let node = Origin::by_connection(|peer| {
        peer.request();
        // Interim answers, which the client does not read, many times what its connection takes, and fewer than a node
        // may send. The proxy holds a part of them and drops the others.
        let hints = format!("HTTP/1.1 103 Early Hints\r\nlink: <{}>\r\n\r\n", "x".repeat(4000)).repeat(10);
        for _ in 0..175 {
            peer.send(&hints);
        }
        peer.send("HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n");
        peer.note("switched");
        peer.client.has_ended();
    });
    let proxy = Proxy::before(&[node.address]);
    // Its connection holds little.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&proxy.address.into()).unwrap();
    let mut client = Client::over(socket.into());
    client.send(UPGRADE);
    eventually("the switch", || node.requests().iter().any(|note| note == "switched"));
    assert_eq!(proxy.metric("ringway_node_in_flight{node=\"n0\",pool=\"app\"}"), 1.0);
    // Its end is seen while the write waits; a reset would end the write.
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    eventually("the end", || proxy.metric("ringway_node_in_flight{node=\"n0\",pool=\"app\"}") == 0.0);
    eventually("the end of the request", || proxy.metric("ringway_requests_in_flight") == 0.0);
}
