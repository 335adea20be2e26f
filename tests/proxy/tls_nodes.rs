//! TLS with nodes: whom the proxy believes, what it shows, and what it says when a node is not who it should be.

use crate::support::{Authority, Front, Nginx, Origin, Pair, Proxy, eventually};

fn tls(authority: &Authority, more: &str) -> String {
    format!("    tls: {{ ca_file: \"{}\"{more} }}\n", authority.file().display())
}

fn own(pair: &Pair) -> String {
    format!(", certificate: {}", pair.setting())
}

#[test]
fn requests_go_over_tls_on_kept_connections() {
    let (authority, node) = (Authority::new(), Origin::echo());
    let front = Front::before(node.address, &authority.issue("node", &["app.internal"]), None);
    let proxy = Proxy::start(&format!(
        "workers: 1\n{}",
        Proxy::pool(&[front.address], &tls(&authority, ", server_name: app.internal"))
    ));
    let body = "0123456789abcdef".repeat(1 << 16);
    for _ in 0..3 {
        let answer = proxy.connect().request(format!(
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        ));
        assert!(answer.status == 200 && answer.text().ends_with(&body));
    }
    assert_eq!(front.connections(), 1, "one handshake for all");
}

/// The name is checked, and so is who says so; nothing is sent to a node that is somebody else.
#[test]
fn a_node_that_is_not_who_it_should_be_gets_nothing() {
    let (authority, strangers, node) = (Authority::new(), Authority::new(), Origin::echo());
    let right = authority.issue("node", &["app.internal"]);
    let forged = strangers.issue("forged", &["app.internal"]);
    let by_address = authority.issue("address", &["127.0.0.1"]);
    let named = ", server_name: app.internal";
    for (pair, more, status) in [
        (&right, named, 200),
        (&right, ", server_name: other.internal", 502),
        (&right, "", 502),
        (&by_address, "", 200),
        (&forged, named, 502),
    ] {
        let before = node.requests().len();
        let front = Front::before(node.address, pair, None);
        let proxy = Proxy::start(&Proxy::pool(&[front.address], &tls(&authority, more)));
        let answer = proxy.connect().request("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n");
        assert_eq!(answer.status, status, "{more} {answer:?}");
        assert_eq!(node.requests().len() - before, usize::from(status == 200));
        if status == 502 {
            assert_eq!(answer.field("proxy-status").as_deref(), Some("ringway; error=tls_certificate_error"));
        }
    }
    // Unless the file says that it does not matter.
    let front = Front::before(node.address, &forged, None);
    let proxy = Proxy::start(&Proxy::pool(&[front.address], "    tls: { verify: false }\n"));
    assert_eq!(proxy.get("/").status, 200);
}

/// The answer and the log say what is wrong with a certificate.
#[test]
fn a_bad_certificate_is_named() {
    let (authority, strangers, node) = (Authority::new(), Authority::new(), Origin::echo());
    let named = ", server_name: app.internal";
    for (pair, more, text) in [
        (authority.issue_expired("old", &["app.internal"]), named, "has expired"),
        (strangers.issue("forged", &["app.internal"]), named, "an issuer that is not trusted"),
        (authority.issue("node", &["app.internal"]), ", server_name: other.internal", "is for another name"),
    ] {
        let front = Front::before(node.address, &pair, None);
        let proxy = Proxy::start(&Proxy::pool(&[front.address], &tls(&authority, more)));
        for _ in 0..3 {
            let detail = proxy.get("/").json()["detail"].as_str().unwrap().to_owned();
            assert!(detail.contains(text), "{detail}");
        }
        proxy.logs(text);
        let log = proxy.log();
        let warnings = log.lines().filter(|line| line.contains("WARN") && line.contains(text)).count();
        assert_eq!(warnings, 1, "once for many requests: {log}");
    }
}

/// Nothing was sent, so the next node is asked, whatever the method.
#[test]
fn a_handshake_that_fails_is_no_connection() {
    let (authority, strangers, node) = (Authority::new(), Authority::new(), Origin::echo());
    let right = Front::before(node.address, &authority.issue("node", &["app.internal"]), None);
    let forged = Front::before(node.address, &strangers.issue("forged", &["app.internal"]), None);
    let plain = Origin::saying("HTTP/1.1 200 OK\r\n\r\n");
    for wrong in [forged.address, plain.address] {
        let settings =
            format!("    timeouts: {{ connect: 200ms }}\n{}", tls(&authority, ", server_name: app.internal"));
        let proxy = Proxy::start(&Proxy::pool(&[wrong, right.address], &settings));
        for path in proxy.paths_of("n0", 6) {
            let post = format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi");
            let answer = proxy.connect().request(post);
            assert!(answer.status == 200 && answer.text().ends_with("hi"), "{answer:?}");
        }
        assert!(proxy.node("n0")["ejected_for_seconds"].is_number(), "five of them were enough");
    }
}

#[test]
fn a_node_may_ask_for_a_certificate() {
    let (authority, node) = (Authority::new(), Origin::echo());
    let pair = authority.issue("node", &["app.internal"]);
    let front = Front::before(node.address, &pair, Some(&authority));
    let shown = own(&authority.issue("proxy", &["proxy"]));
    for (more, status) in [(shown.as_str(), 200), ("", 502)] {
        let settings = tls(&authority, &format!(", server_name: app.internal{more}"));
        let proxy = Proxy::start(&Proxy::pool(&[front.address], &settings));
        assert_eq!(proxy.get("/").status, status);
    }
}

#[test]
fn checks_and_tunnels_go_over_tls_too() {
    let (authority, mut service) = (Authority::new(), Origin::named("n0"));
    let pair = authority.issue("node", &["app.internal"]);
    let front = Front::before(service.address, &pair, None);
    let settings = tls(&authority, ", server_name: app.internal");
    let checks = "    health_check: { interval: 50ms, unhealthy_after: 1, healthy_after: 1 }\n";
    let proxy = Proxy::start(&Proxy::pool(&[front.address], &format!("{settings}{checks}")));
    eventually("a check that passes", || service.checked() > 1 && proxy.node("n0")["healthy"] == true);
    service.kill();
    eventually("a check that fails", || proxy.node("n0")["healthy"] == false);

    let node = Origin::by_connection(|peer| {
        peer.request();
        peer.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhello");
        let bytes = peer.client.exactly(4);
        peer.send(bytes);
        peer.client.has_ended();
    });
    let front = Front::before(node.address, &pair, None);
    let proxy = Proxy::start(&Proxy::pool(&[front.address], &settings));
    let mut client = proxy.connect();
    client.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nping");
    assert!(client.head().starts_with("HTTP/1.1 101"));
    assert_eq!(client.exactly(9), b"helloping");
}

#[test]
fn nginx_as_a_node_with_tls() {
    let authority = Authority::new();
    let pair = authority.issue("node", &["app.internal"]);
    let certificate = format!(
        "ssl_protocols TLSv1.2 TLSv1.3; ssl_certificate {}; ssl_certificate_key {};",
        pair.chain.display(),
        pair.key.display()
    );
    let Some(nginx) = Nginx::start(
        "ssl",
        &format!("{certificate} location / {{ return 200 \"nginx $ssl_protocol $ssl_server_name $request_uri\"; }}"),
    ) else {
        return;
    };
    let proxy = Proxy::start(&Proxy::pool(&[nginx.address], &tls(&authority, ", server_name: app.internal")));
    for number in 0..20 {
        assert_eq!(proxy.get(&format!("/{number}")).text(), format!("nginx TLSv1.3 app.internal /{number}"));
    }
}
