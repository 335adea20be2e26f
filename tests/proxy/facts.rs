//! One view of a request: routing, limits, scopes, keys, Vary and the node see the same fields, and those that say
//! who the client is are the facts, whatever the client says.

use crate::support::http2::{DATA, END_STREAM, Frames, HEADERS, RST_STREAM, status_of};
use crate::support::{Authority, Origin, Pair, Proxy, TlsClient};
use std::net::SocketAddr;

/// A proxy with a listener `mtls` that asks for client certificates, one `http` in the clear, and some clients.
struct Edge {
    proxy: Proxy,
    alice: TlsClient,
    bob: TlsClient,
    nobody: TlsClient,
}

const CLAIM: &str = "x-client-cert-subject: CN=alice\r\n";

impl Edge {
    fn start(rest: &str) -> Edge {
        let authority = Authority::new();
        let pair: Pair = authority.issue("edge", &["edge.example"]);
        let (alice, bob) = (authority.issue("alice", &["alice"]), authority.issue("bob", &["bob"]));
        let proxy = Proxy::start_whole(&format!(
            "listeners:\n  - {{ name: mtls, address: \"127.0.0.1:0\", tls: {{ certificates: [{}], client_ca_file: \"{}\", client_auth: optional }} }}\n  - {{ name: http, address: \"127.0.0.1:0\" }}\nadmin: {{ address: \"127.0.0.1:0\" }}\naccess_log: {{ format: \"off\" }}\n{rest}",
            pair.setting(),
            authority.file().display(),
        ));
        let (alice, bob) = (authority.client(Some(&alice)), authority.client(Some(&bob)));
        Edge { proxy, alice, bob, nobody: authority.client(None) }
    }

    fn ask(&self, client: &TlsClient, fields: &str) -> String {
        self.send(client, "GET", fields)
    }

    fn send(&self, client: &TlsClient, method: &str, fields: &str) -> String {
        let fields = format!("host: edge.example\r\n{fields}");
        client.send(self.proxy.address, "edge.example", method, &fields).unwrap().text
    }

    fn in_the_clear(&self, fields: &str) -> String {
        let address: SocketAddr = self.proxy.address_of("http");
        let mut client = crate::support::Client::connect(address);
        client.request(format!("GET / HTTP/1.1\r\nhost: edge.example\r\n{fields}\r\n")).text()
    }
}

/// Everything goes to the pool, by a route with these settings.
fn route(node: SocketAddr, settings: &str) -> String {
    Proxy::pool(&[node], "").replace("hash_on: [uri] }", &format!("{settings} }}"))
}

/// A node whose responses say whom they are for, and may be stored.
fn pages(vary: &'static str) -> Origin {
    Origin::start(move |ask, peer| {
        let whose = ask.field("x-client-cert-subject").unwrap_or("nobody").to_owned();
        peer.reply(200, &format!("cache-control: max-age=60 | {vary}"), &format!("page of {whose}"));
    })
}

fn ends(text: &str, body: &str) {
    assert!(text.ends_with(body), "expected {body:?} in {text}");
}

#[test]
fn the_page_of_one_certificate_is_no_hit_for_another() {
    for (vary, cache) in
        [("vary: X-Client-Cert-Subject", "cache: {}"), ("", "cache: { key: { headers: [x-client-cert-subject] } }")]
    {
        let origin = pages(vary);
        let edge = Edge::start(&route(origin.address, cache));
        for _ in 0..2 {
            ends(&edge.ask(&edge.alice, ""), "page of CN=alice");
            ends(&edge.ask(&edge.bob, CLAIM), "page of CN=bob");
            ends(&edge.ask(&edge.nobody, CLAIM), "page of nobody");
            assert_eq!(edge.in_the_clear(CLAIM), "page of nobody");
        }
        assert_eq!(origin.asked(), 4, "each has a page of its own (http and https are two URIs): {cache}");
    }
}

#[test]
fn routes_match_what_the_certificate_says() {
    let node = Origin::echo();
    let edge = Edge::start(&format!(
        "pools: {{ app: {{ nodes: [{{ id: a, address: \"{}\" }}] }} }}\nroutes:\n  - {{ name: alice, headers: {{ x-client-cert-subject: CN=alice }}, respond: {{ status: 200, body: \"for alice\" }} }}\n  - {{ name: any, headers: {{ x-client-cert-subject: \"*\" }}, respond: {{ status: 200, body: \"for another\" }} }}\n  - {{ name: rest, respond: {{ status: 200, body: \"for strangers\" }} }}\n",
        node.address
    ));
    ends(&edge.ask(&edge.alice, ""), "for alice");
    ends(&edge.ask(&edge.alice, "x-client-cert-subject: CN=bob\r\n"), "for alice");
    ends(&edge.ask(&edge.bob, CLAIM), "for another");
    ends(&edge.ask(&edge.nobody, CLAIM), "for strangers");
    assert_eq!(edge.in_the_clear(CLAIM), "for strangers");
}

#[test]
fn scopes_limits_and_hash_keys_read_the_certificate() {
    let node = Origin::echo();
    let keyed = "idempotency: { scope: [\"header:x-client-cert-subject\"] }";
    let edge = Edge::start(&format!("idempotency_store: {{ kind: memory }}\n{}", route(node.address, keyed)));
    let pay = |client: &TlsClient, claim: &str| edge.send(client, "POST", &format!("idempotency-key: k\r\n{claim}"));
    assert!(!pay(&edge.alice, "").contains("idempotent-replayed"));
    assert!(pay(&edge.alice, "").contains("idempotent-replayed"));
    assert!(!pay(&edge.bob, CLAIM).contains("idempotent-replayed"));
    assert!(pay(&edge.nobody, CLAIM).contains("scope-missing"));

    let limited = "rate_limit: { requests: 2, per: 1h, key: [\"header:x-client-cert-subject\"] }";
    let edge = Edge::start(&route(node.address, limited));
    let status = |text: String| text.split(' ').nth(1).unwrap().to_owned();
    for expected in ["200", "200", "429"] {
        assert_eq!(status(edge.ask(&edge.alice, "")), expected);
    }
    assert_eq!(status(edge.ask(&edge.bob, CLAIM)), "200", "Bob spends his own");
    for (claimed, expected) in [("CN=a", "200"), ("CN=b", "200"), ("CN=c", "429")] {
        let told = edge.ask(&edge.nobody, &format!("x-client-cert-subject: {claimed}\r\n"));
        assert_eq!(status(told), expected, "without a certificate the address counts");
    }

    let nodes: Vec<Origin> = (0..2).map(|_| Origin::echo()).collect();
    let addresses: Vec<SocketAddr> = nodes.iter().map(|node| node.address).collect();
    let by_certificate =
        Proxy::pool(&addresses, "").replace("hash_on: [uri] }", "hash_on: [\"header:x-client-cert-subject\"] }");
    let edge = Edge::start(&by_certificate);
    for n in 0..12 {
        edge.ask(&edge.alice, &format!("x-client-cert-subject: CN={n}\r\n"));
    }
    let counts: Vec<usize> = nodes.iter().map(|node| node.requests().len()).collect();
    assert!(counts.contains(&12), "one certificate has one node: {counts:?}");
}

#[test]
fn a_field_that_connection_names_counts_nowhere() {
    let node = Origin::echo();
    let limited = "rate_limit: { requests: 2, per: 1h, key: [\"header:x-api-key\", client_ip] }";
    let proxy = Proxy::start(&route(node.address, limited));
    for (n, expected) in [200, 200, 429, 429].into_iter().enumerate() {
        let answer = proxy.get_with("/", &format!("x-api-key: {n}\r\nconnection: x-api-key\r\n"));
        assert_eq!(answer.status, expected, "{n}");
    }
    assert_eq!(proxy.get_with("/", "x-api-key: real\r\n").status, 200);

    let proxy = Proxy::start(
        "routes:\n  - { name: beta, headers: { x-beta: \"1\" }, respond: { status: 200, body: beta } }\n  - { name: rest, respond: { status: 200, body: rest } }\n",
    );
    assert_eq!(proxy.get_with("/", "x-beta: 1\r\n").text(), "beta");
    assert_eq!(proxy.get_with("/", "x-beta: 1\r\nconnection: x-beta\r\n").text(), "rest");
    assert_eq!(proxy.get_with("/", "connection: cookie\r\n").problem(), "bad-connection-option");
}

#[test]
fn a_key_by_the_chain_of_proxies_reads_what_the_node_sees() {
    let node = Origin::echo();
    let limited = "rate_limit: { requests: 2, per: 1h, key: [\"header:x-forwarded-for\"] }";
    let strangers = Proxy::start(&route(node.address, limited));
    for (n, expected) in [200, 200, 429].into_iter().enumerate() {
        let answer = strangers.get_with("/", &format!("x-forwarded-for: 192.0.2.{n}\r\n"));
        assert_eq!(answer.status, expected, "a stranger's claim is no key");
    }
    let trusted = Proxy::start(&format!("trusted_proxies: [127.0.0.0/8]\n{}", route(node.address, limited)));
    for _ in 0..2 {
        for n in 0..2 {
            assert_eq!(trusted.get_with("/", &format!("x-forwarded-for: 192.0.2.{n}\r\n")).status, 200);
        }
    }
    assert_eq!(trusted.get_with("/", "x-forwarded-for: 192.0.2.1\r\n").status, 429);
}

#[test]
fn names_with_underscores_go_no_further() {
    let node = Origin::echo();
    let fields = "X_Forwarded_For: 1.2.3.4\r\nTransfer_Encoding: chunked\r\nX_Mine: 1\r\nx.forwarded.for: 1.2.3.4\r\n";
    let proxy = Proxy::before(&[node.address]);
    let head = proxy.get_with("/", fields).text();
    assert!(!head.contains('_') && !head.contains("1.2.3.4"), "{head}");

    let with = |choice: &str| {
        Proxy::start(&format!("limits: {{ underscores_in_headers: {choice} }}\n{}", Proxy::pool(&[node.address], "")))
    };
    let answer = with("reject").get_with("/", "X_Mine: 1\r\n");
    assert_eq!((answer.status, answer.problem().as_str()), (400, "bad-field"));
    let head = with("allow").get_with("/", fields).text();
    assert!(head.contains("x_mine: 1") && !head.contains("x_forwarded_for") && !head.contains("transfer_"), "{head}");
}

const TRAILERS: &str = "X-Forwarded-For: 1.2.3.4\r\nCookie: a=1\r\nIdempotency-Key: k\r\nConnection: close\r\nTransfer-Encoding: chunked\r\nX_Mine: 1\r\nX-Sum: 9\r\n";

#[test]
fn trailers_obey_the_rules_of_fields() {
    let node = Origin::by_connection(|peer| {
        while let Some(head) = peer.request() {
            let body = String::from_utf8(peer.body_of(&head)).unwrap();
            peer.send(format!(
                "HTTP/1.1 200 OK\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n{TRAILERS}Set-Cookie: a=b\r\n\r\n",
                body.len()
            ));
        }
    });
    let proxy = Proxy::before(&[node.address]);
    let mut client = proxy.connect();
    client.send(format!(
        "POST / HTTP/1.1\r\nhost: a\r\nte: trailers\r\nconnection: te\r\ntrailer: x-sum, cookie\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n{TRAILERS}\r\n"
    ));
    let head = client.head();
    assert!(head.contains("trailer: x-sum"), "{head}");
    let raw = String::from_utf8(client.chunked_body()).unwrap();
    let lower = raw.to_ascii_lowercase();
    // The node's own view of the request's trailers stands in the body; both must hold the harmless one alone.
    assert_eq!(lower.matches("x-sum: 9").count(), 2, "{raw}");
    for gone in ["forwarded", "cookie", "idempotency", "connection:", "transfer-encoding:", "x_mine"] {
        assert!(!lower.contains(gone), "{gone} in {raw}");
    }
    assert!(client.is_open(), "the connection goes on");

    // No trailers are announced to a client that takes none.
    let mut client = proxy.connect();
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    let head = client.head();
    assert!(!head.contains("trailer:"), "{head}");
}

#[test]
fn trailers_about_the_connection_do_not_hurt_nodes_of_http2() {
    let node = crate::support::Origin::http2();
    let proxy = Proxy::start(&Proxy::pool(&[node.address], "\n    protocol: http2"));
    for trailer in ["Connection: close", "Transfer-Encoding: chunked", "Keep-Alive: 1", "X-Sum: 9"] {
        let answer = proxy.connect().request(format!(
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n{trailer}\r\n\r\n"
        ));
        assert_eq!(answer.status, 200, "{trailer}: {answer:?}");
    }
    assert_eq!(proxy.metric("ringway_node_healthy{node=\"n0\",pool=\"app\"}"), 1.0);
}

#[test]
fn what_trusted_proxies_say_is_read_by_its_grammar() {
    let node = Origin::echo();
    let proxy = Proxy::start(&format!(
        "trusted_proxies: [127.0.0.0/8]\npools: {{ app: {{ nodes: [{{ id: a, address: \"{}\" }}] }} }}\nroutes:\n  - {{ name: clear, path: /to-https, scheme: http, redirect: {{ to: \"https://{{host}}{{path}}\", status: 308 }} }}\n  - {{ name: all, pool: app, rate_limit: {{ requests: 1, per: 1h, key: [client_ip] }} }}\n",
        node.address
    ));
    for said in [
        "x-forwarded-proto: https, https",
        "x-forwarded-proto: HTTPS",
        "x-forwarded-proto: https,http",
        "forwarded: for=192.0.2.60;proto=https",
    ] {
        let head = proxy.get_with("/to-https", &format!("x-forwarded-for: 192.0.2.{}\r\n{said}\r\n", said.len()));
        let expected = if said.starts_with("for") { 308 } else { 200 };
        assert_eq!(head.status, expected, "X-Forwarded-For is there, so that Forwarded is not read: {said}");
        assert!(expected == 308 || head.text().contains("x-forwarded-proto: https\r\n"), "{}", head.text());
    }
    let head = proxy.get_with("/to-https", "forwarded: for=\"203.0.113.60:80\";proto=https\r\n");
    assert_eq!(head.status, 200);
    assert!(head.text().contains("x-forwarded-for: 203.0.113.60, 127.0.0.1\r\n"), "{}", head.text());
    // The client behind bytes that are no text is the one whom the next proxy names.
    let lines =
        |first: &[u8]| [b"GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-for: ", first, b", 203.0.113.9\r\n\r\n"].concat();
    assert_eq!(proxy.connect().request(lines(b"\xe4\xff")).status, 200);
    assert_eq!(proxy.connect().request(lines(b"1.1.1.1")).status, 429, "both are 203.0.113.9");
    assert_eq!(proxy.get_with("/", "x-forwarded-for: 203.0.113.10\r\n").status, 200);
}

/// The status that an HTTP/2 request with these fields gets.
fn status_over_http2(proxy: &Proxy, fields: &[(&str, &str)]) -> String {
    let mut frames = Frames::connect(proxy.address);
    frames.headers(END_STREAM, 1, fields);
    let answer = frames.of_stream(1).expect("an answer");
    match answer.kind {
        HEADERS => status_of(&answer.payload).to_owned(),
        RST_STREAM => "reset".to_owned(),
        kind => panic!("a frame of kind {kind}"),
    }
}

#[test]
fn malformed_fields_of_http2_are_refused() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    let base = |path: &'static str| vec![(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", path)];
    let with = |path: &'static str, more: (&'static str, &'static str)| [base(path), vec![more]].concat();
    assert_eq!(status_over_http2(&proxy, &with("/", ("authorization", "Bearer a"))), "200");
    for fields in [
        with("/", ("authorization", "Bearer a ")),
        with("/", ("authorization", " Bearer a")),
        with("/", ("x-any", "\tb")),
        base("?x"),
    ] {
        let status = status_over_http2(&proxy, &fields);
        assert!(status == "400" || status == "reset", "{fields:?}: {status}");
    }
    assert_eq!(node.requests().len(), 1);
}

#[test]
fn equal_lengths_over_http2_are_one() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    for (lengths, expected) in [(["2", "2"], true), (["2", "3"], false)] {
        let mut frames = Frames::connect(proxy.address);
        let fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "a"),
            (":path", "/"),
            ("content-length", lengths[0]),
            ("content-length", lengths[1]),
        ];
        frames.headers(0, 1, &fields);
        frames.send(DATA, END_STREAM, 1, b"hi");
        frames.of_stream(1).expect("an answer");
        let heads = node.requests();
        assert_eq!(heads.len(), 1, "lines that differ are refused");
        if expected {
            assert_eq!(heads[0].matches("content-length: 2\r\n").count(), 1, "{}", heads[0]);
        }
    }
}

/// Which of two nodes a key goes to, for some keys.
fn placing(proxy: &Proxy) -> String {
    (0..64).map(|n| proxy.get_with("/", &format!("x-user: {n}\r\n")).text()).collect()
}

#[test]
fn a_seed_from_a_file_places_keys_and_is_not_shown() {
    let nodes = [
        Origin::saying("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na"),
        Origin::saying("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nb"),
    ];
    let addresses = nodes.each_ref().map(|node| node.address);
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let start = |ring: &str| {
        let text = Proxy::pool(&addresses, &format!("\n    ring: {{ {ring} }}"));
        Proxy::start(&text.replace("hash_on: [uri]", "hash_on: [\"header:x-user\"]"))
    };
    let secret = "0123456789abcdef0123456789abcdef";
    let one = start(&format!("seed_file: \"{}\"", file("one", &format!("{secret}\n"))));
    let same = start(&format!("seed: \"{secret}\""));
    let other = start(&format!("seed_file: \"{}\"", file("other", &secret.replace('0', "1"))));
    let public = start("");
    assert_eq!(placing(&one), placing(&same), "a file holds what `seed` would say");
    assert_ne!(placing(&one), placing(&other));
    assert_ne!(placing(&one), placing(&public));
    assert!(!same.admin_get("/api/config").text().contains(secret), "the seed is a secret");
}

#[test]
fn check_warns_where_clients_choose_keys_under_the_public_seed() {
    let check = |ring: &str, hash_on: &str| {
        let text = format!(
            "listeners: [{{ name: l, address: 127.0.0.1:1 }}]\npools: {{ p: {{ nodes: [{{ id: n, address: 127.0.0.1:2 }}], ring: {{ {ring} }} }} }}\nroutes: [{{ name: r, pool: p, hash_on: [{hash_on}] }}]\n"
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let told = std::process::Command::new(env!("CARGO_BIN_EXE_ringway"))
            .args(["check", "--config"])
            .arg(file.path())
            .output()
            .unwrap();
        assert!(told.status.success(), "{told:?}");
        String::from_utf8_lossy(&told.stderr).into_owned() + &String::from_utf8_lossy(&told.stdout)
    };
    for source in ["\"header:x-user\"", "\"cookie:s\"", "\"query:t\""] {
        assert!(check("", source).contains("ring.seed_file"), "{source}");
        assert!(!check("seed: of-our-own", source).contains("ring.seed_file"), "{source}");
    }
    assert!(!check("", "client_ip, uri").contains("ring.seed_file"));
}
