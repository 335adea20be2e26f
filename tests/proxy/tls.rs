//! TLS towards clients: versions, certificates by name, resumption, client certificates, files that change.

use crate::support::{Authority, Client, Origin, Pair, Proxy, eventually, have, write_private};
use rustls::{NamedGroup, ProtocolVersion};
use std::io::{Read, Write};
use std::process::Command;
use std::time::{Duration, Instant};

/// A listener with these certificates and settings before an echo node; one for cleartext beside it where `more`
/// says so.
fn text(node: &Origin, certificates: &[&Pair], tls: &str, more: &str) -> String {
    let list: Vec<String> = certificates.iter().map(|pair| pair.setting()).collect();
    format!(
        "listeners:\n  - {{ name: https, address: \"127.0.0.1:0\", tls: {{ certificates: [{}]{tls} }} }}\n{more}admin: {{ address: \"127.0.0.1:0\" }}\naccess_log: {{ format: \"off\" }}\n{}",
        list.join(", "),
        Proxy::pool(&[node.address], "")
    )
}

fn start(node: &Origin, certificates: &[&Pair], tls: &str) -> Proxy {
    Proxy::start_whole(&text(node, certificates, tls, ""))
}

#[test]
fn versions_are_spoken_from_the_lowest_one_on() {
    let (authority, node) = (Authority::new(), Origin::echo());
    let pair = authority.issue("edge", &["edge.example"]);
    let only12 = authority.client_with(None, &[&rustls::version::TLS12]);
    let proxy = start(&node, &[&pair], "");
    for (client, version) in [(&authority.client(None), ProtocolVersion::TLSv1_3), (&only12, ProtocolVersion::TLSv1_2)]
    {
        let told = client.get(proxy.address, "edge.example", "edge.example").unwrap();
        assert_eq!((told.status(), told.version), (200, version));
        assert!(told.text.contains("x-forwarded-proto: https"), "{}", told.text);
    }
    let proxy = start(&node, &[&pair], ", min_version: \"1.3\"");
    assert!(only12.get(proxy.address, "edge.example", "edge.example").is_err());
    assert_eq!(authority.client(None).get(proxy.address, "edge.example", "edge.example").unwrap().status(), 200);
    assert_eq!(proxy.metric("ringway_tls_handshakes_total{listener=\"https\",result=\"failure\"}"), 1.0);
    assert_eq!(proxy.metric("ringway_tls_handshakes_total{listener=\"https\",result=\"success\"}"), 1.0);
}

/// Browsers ask for the key exchange that a quantum computer does not break.
#[test]
fn the_key_exchange_is_the_first_choice_of_the_client() {
    let (authority, node) = (Authority::new(), Origin::echo());
    let pair = authority.issue("edge", &["edge.example"]);
    let proxy = start(&node, &[&pair], "");
    for group in [NamedGroup::X25519MLKEM768, NamedGroup::X25519, NamedGroup::secp384r1] {
        let stream = authority.client_preferring(group).connect(proxy.address, "edge.example").unwrap();
        assert_eq!(stream.conn.negotiated_key_exchange_group().map(|chosen| chosen.name()), Some(group));
    }
}

/// By exact name, by a star, and the first one for all others; a request for a host that the certificate does not
/// cover is misdirected.
#[test]
fn certificates_are_chosen_by_name_and_hold_requests_to_it() {
    let (authority, node) = (Authority::new(), Origin::echo());
    let (first, star) =
        (authority.issue("first", &["a.example"]), authority.issue("star", &["*.b.example", "c.example"]));
    let proxy = start(&node, &[&first, &star], "");
    let client = authority.client(None);
    let served = |name: &str| client.get(proxy.address, name, name).unwrap().certificate;
    let (a, b) = (served("a.example"), served("x.b.example"));
    assert!(a != b && served("c.example") == b && served("y.b.example") == b);
    for (name, host, status) in [
        ("a.example", "a.example", 200),
        ("a.example", "A.Example.:443", 200),
        ("a.example", "c.example", 421),
        ("x.b.example", "y.b.example", 200),
        ("x.b.example", "z.y.b.example", 421),
        ("c.example", "a.example", 421),
    ] {
        let told = client.get(proxy.address, name, host).unwrap();
        assert_eq!(told.status(), status, "{name} {host}: {}", told.text);
        assert_eq!(told.text.contains("misdirected-request"), status == 421);
    }
    // Where the listener allows it, the host may be another one.
    let proxy = start(&node, &[&first], ", sni_mismatch: allow");
    assert_eq!(client.get(proxy.address, "a.example", "c.example").unwrap().status(), 200);
    // Without a name (an address is none) any host may be asked for.
    let by_address = authority.issue("address", &["127.0.0.1"]);
    let proxy = start(&node, &[&by_address], "");
    assert_eq!(client.get(proxy.address, "127.0.0.1", "whatever.example").unwrap().status(), 200);
}

/// New files are used without anybody asking, and those that do not fit change nothing.
#[test]
fn certificates_are_followed() {
    let (authority, node) = (Authority::new(), Origin::echo());
    let pair = authority.issue("edge", &["edge.example"]);
    let proxy = start(&node, &[&pair], "");
    let served = || authority.client(None).get(proxy.address, "edge.example", "edge.example").unwrap().certificate;
    let before = served();
    let mut kept = authority.client(None).connect(proxy.address, "edge.example").unwrap();
    let expiry = proxy.metric("ringway_tls_certificate_expiry_seconds{name=\"edge.example\"}");
    assert!(expiry > 1_800_000_000.0);

    write_private(&pair.key, "nonsense");
    eventually("the failure to be told", || proxy.admin_get("/api/status").json()["last_reload"]["success"] == false);
    assert!(served() == before, "the old one serves on");

    authority.issue("edge", &["edge.example"]);
    eventually("the new one", || served() != before);
    eventually("the success to be told", || proxy.admin_get("/api/status").json()["last_reload"]["success"] == true);
    assert_eq!(proxy.metric("ringway_config_reloads_total{result=\"failure\"}"), 1.0, "one write, one failure");
    // A connection that was open before stays.
    kept.write_all(b"GET / HTTP/1.1\r\nhost: edge.example\r\nconnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    kept.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
}

/// Sessions resume at every proxy with the same secret, and nowhere else.
#[test]
fn sessions_resume_across_proxies_that_share_a_secret() {
    let (authority, node) = (Authority::new(), Origin::echo());
    let pair = authority.issue("edge", &["edge.example"]);
    let folder = tempfile::tempdir().unwrap();
    let secret = |name: &str, text: &str| {
        let file = folder.path().join(name);
        std::fs::write(&file, text).unwrap();
        format!(", ticket_secret_file: \"{}\"", file.display())
    };
    let shared = secret("shared", "0123456789abcdef0123456789abcdef");
    let rotated = secret("rotated", "fedcba9876543210fedcba9876543210\n0123456789abcdef0123456789abcdef");
    let (one, two) = (start(&node, &[&pair], &shared), start(&node, &[&pair], &rotated));
    let (own, other) = (start(&node, &[&pair], ""), start(&node, &[&pair], ""));
    for versions in [&[&rustls::version::TLS13], &[&rustls::version::TLS12]] {
        let client = authority.client_with(None, versions);
        let resumes = |proxy: &Proxy| client.get(proxy.address, "edge.example", "edge.example").unwrap().resumed;
        assert!(!resumes(&one), "the first time");
        assert!(resumes(&one) && resumes(&two), "the same secret, and one that still opens");
        let client = authority.client_with(None, versions);
        let resumes = |proxy: &Proxy| client.get(proxy.address, "edge.example", "edge.example").unwrap().resumed;
        assert!(!resumes(&own) && resumes(&own), "a process has a secret of its own");
        assert!(!resumes(&other), "which no other has");
    }
    // A reload is no reason to begin anew.
    let client = authority.client(None);
    client.get(own.address, "edge.example", "edge.example").unwrap();
    assert_eq!(own.admin_post("/api/reload", "").status, 200);
    assert!(client.get(own.address, "edge.example", "edge.example").unwrap().resumed);
}

/// The subject goes to the node in a field that clients cannot forge.
#[test]
fn client_certificates() {
    let (authority, strangers, node) = (Authority::new(), Authority::new(), Origin::echo());
    let pair = authority.issue("edge", &["edge.example"]);
    let (own, foreign) = (authority.issue("alice", &["alice"]), strangers.issue("mallory", &["mallory"]));
    let asks = format!(", client_ca_file: \"{}\"", authority.file().display());
    let proxy = start(&node, &[&pair], &asks);
    let forged = "host: edge.example\r\nx-client-cert-subject: CN=root\r\n";
    let ask =
        |client: &crate::support::TlsClient, proxy: &Proxy| client.get_with(proxy.address, "edge.example", forged);
    let told = ask(&authority.client(Some(&own)), &proxy).unwrap();
    assert!(told.text.contains("x-client-cert-subject: CN=alice") && !told.text.contains("CN=root"), "{}", told.text);
    let before = node.requests().len();
    for refused in [authority.client(None), authority.client(Some(&foreign))] {
        let answer = ask(&refused, &proxy);
        assert!(answer.as_ref().map_or(true, |told| told.text.is_empty()), "{answer:?}");
    }
    assert_eq!(node.requests().len(), before, "nothing of it reached the node");

    let proxy = start(&node, &[&pair], &format!("{asks}, client_auth: optional"));
    let told = ask(&authority.client(None), &proxy).unwrap();
    assert!(told.status() == 200 && !told.text.contains("x-client-cert-subject"), "{}", told.text);
    // A session from a listener that asks for less resumes at none that asks for more.
    let proxy = Proxy::start_whole(&text(
        &node,
        &[&pair],
        "",
        &format!(
            "  - {{ name: clients, address: \"127.0.0.1:0\", tls: {{ certificates: [{}]{asks} }} }}\n",
            pair.setting()
        ),
    ));
    let listeners = proxy.admin_get("/api/status").json()["listeners"].clone();
    let strict = listeners[1]["address"].as_str().unwrap().parse().unwrap();
    let client = authority.client(None);
    client.get(proxy.address, "edge.example", "edge.example").unwrap();
    assert!(client.get(proxy.address, "edge.example", "edge.example").unwrap().resumed);
    let answer = client.get(strict, "edge.example", "edge.example");
    assert!(answer.as_ref().map_or(true, |told| told.text.is_empty()), "{answer:?}");
}

#[test]
fn without_tls_nobody_has_a_subject_either() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    assert!(!proxy.get_with("/", "x-client-cert-subject: CN=root").text().contains("CN=root"));
    assert_eq!(proxy.get_with("/", "connection: x-client-cert-subject").status, 400);
}

/// Large bodies, several requests on a connection, a pause that parks it, and pipelined ones.
#[test]
fn a_connection_is_used_for_long() {
    let (authority, node) = (Authority::new(), Origin::echo());
    let pair = authority.issue("edge", &["edge.example"]);
    let text = text(&node, &[&pair], "", "").replace("access_log", "limits: { header_timeout: 1300ms }\naccess_log");
    let proxy = Proxy::start_whole(&text);
    let mut stream = authority.client(None).connect(proxy.address, "edge.example").unwrap();
    let body = "0123456789abcdef".repeat(1 << 18);
    let mut rest = Vec::new();
    for round in 0..2 {
        let head = format!("POST /{round} HTTP/1.1\r\nhost: edge.example\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body.as_bytes()).unwrap();
        let answer = read_answer(&mut stream, &mut rest);
        assert!(answer.ends_with(&body) && answer.starts_with("HTTP/1.1 200"));
        // Longer than a connection is kept with hyper.
        proxy.header_timeout_passes();
    }
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: edge.example\r\n\r\n");
    stream.write_all([get("/a"), get("/b"), get("/c")].concat().as_bytes()).unwrap();
    for path in ["/a", "/b", "/c"] {
        assert!(read_answer(&mut stream, &mut rest).contains(&format!("GET {path} ")));
    }
}

/// Reads one answer, whose length its head says; what comes behind it stays in `rest`.
fn read_answer(stream: &mut impl Read, rest: &mut Vec<u8>) -> String {
    let mut piece = [0; 16384];
    loop {
        if let Some(end) = rest.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&rest[..end]).to_lowercase();
            let length = head.split("content-length: ").nth(1).unwrap().split("\r\n").next().unwrap();
            let whole = end + 4 + length.parse::<usize>().unwrap();
            if rest.len() >= whole {
                return String::from_utf8(rest.drain(..whole).collect()).unwrap();
            }
        }
        let length = stream.read(&mut piece).unwrap();
        assert!(length > 0, "the connection ended: {:?}", String::from_utf8_lossy(rest));
        rest.extend_from_slice(&piece[..length]);
    }
}

/// A client that leaves while it waits is noticed, and its request is given up.
#[test]
fn a_client_that_leaves_is_noticed() {
    let (authority, gone) = (Authority::new(), std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false)));
    let seen = std::sync::Arc::clone(&gone);
    let node = Origin::by_connection(move |peer| {
        peer.request();
        peer.client.has_ended();
        seen.store(true, std::sync::atomic::Ordering::SeqCst);
    });
    let pair = authority.issue("edge", &["edge.example"]);
    let proxy = start(&node, &[&pair], "");
    let mut stream = authority.client(None).connect(proxy.address, "edge.example").unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: edge.example\r\n\r\n").unwrap();
    eventually("the request", || node.requests().len() == 1);
    stream.conn.send_close_notify();
    stream.flush().unwrap();
    drop(stream);
    eventually("the node to be told", || gone.load(std::sync::atomic::Ordering::SeqCst));
}

#[test]
fn a_tunnel_goes_through_tls() {
    let authority = Authority::new();
    let node = Origin::by_connection(|peer| {
        peer.request();
        peer.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhello");
        let bytes = peer.client.exactly(4);
        peer.send(bytes);
    });
    let pair = authority.issue("edge", &["edge.example"]);
    let proxy = start(&node, &[&pair], "");
    let mut stream = authority.client(None).connect(proxy.address, "edge.example").unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: edge.example\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nping")
        .unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    assert!(all.starts_with("HTTP/1.1 101") && all.ends_with("helloping"), "{all}");
}

/// Who speaks HTTP where TLS is spoken is told so; who says nothing is not waited for.
#[test]
fn what_is_no_handshake() {
    let (authority, node) = (Authority::new(), Origin::echo());
    let pair = authority.issue("edge", &["edge.example"]);
    let proxy = Proxy::start_whole(
        &text(&node, &[&pair], "", "").replace("access_log", "limits: { header_timeout: 300ms }\naccess_log"),
    );
    let answer = proxy.connect().request("GET / HTTP/1.1\r\nhost: edge.example\r\n\r\n");
    assert_eq!((answer.status, answer.problem().as_str()), (400, "tls-required"));
    let started = Instant::now();
    for bytes in [&b""[..], b"\x16\x03", b"\x16\x03\x01\x02\x00\x01"] {
        let mut client = Client::connect(proxy.address);
        client.send(bytes);
        assert!(client.has_ended());
    }
    assert!(started.elapsed() >= Duration::from_millis(800) && started.elapsed() < Duration::from_secs(10));
    let mut client = Client::connect(proxy.address);
    client.send(b"\x80\x80\x80\x80");
    assert!(client.has_ended());
    assert_eq!(node.requests().len(), 0);
}

/// The way from http to https, and HSTS, as routes say it.
#[test]
fn cleartext_is_redirected_as_routes_say() {
    let (authority, node) = (Authority::new(), Origin::echo());
    let pair = authority.issue("edge", &["edge.example"]);
    let whole = text(&node, &[&pair], "", "  - { name: http, address: \"127.0.0.1:0\" }\n").replace(
        "routes:\n",
        "routes:\n  - { name: up, scheme: http, redirect: { to: \"https://{host}{uri}\", status: 301 } }\n",
    );
    let whole = whole.replace(
        "hash_on: [uri] }",
        "hash_on: [uri], response_headers: { set: { strict-transport-security: max-age=31536000 } } }",
    );
    let proxy = Proxy::start_whole(&whole);
    let listeners = proxy.admin_get("/api/status").json()["listeners"].clone();
    let clear = listeners[1]["address"].as_str().unwrap().parse().unwrap();
    let answer = Client::connect(clear).request("GET /%70ath/../x?q={uri} HTTP/1.1\r\nhost: Edge.Example:8080\r\n\r\n");
    assert_eq!((answer.status, answer.field("location").as_deref()), (301, Some("https://edge.example/x?q={uri}")));
    let told = authority.client(None).get(proxy.address, "edge.example", "edge.example").unwrap();
    assert!(told.status() == 200 && told.text.contains("strict-transport-security: max-age=31536000"), "{}", told.text);
}

/// What `check` says of files.
#[test]
fn files_are_checked_with_the_place_that_names_them() {
    let (authority, node) = (Authority::new(), Origin::echo());
    let (pair, other) = (authority.issue("edge", &["edge.example"]), authority.issue("other", &["other.example"]));
    let folder = tempfile::tempdir().unwrap();
    let check = |text: &str| {
        let file = folder.path().join("c.yaml");
        std::fs::write(&file, text).unwrap();
        let told = Command::new(env!("CARGO_BIN_EXE_ringway")).args(["check", "--config"]).arg(&file).output().unwrap();
        let said = [told.stdout, told.stderr].concat();
        (told.status.success(), String::from_utf8_lossy(&said).into_owned())
    };
    let (valid, said) = check(&text(&node, &[&pair], "", ""));
    assert!(valid && !said.contains("warning"), "{said}");
    let mismatched = Pair { chain: pair.chain.clone(), key: other.key.clone() };
    let absent = Pair { chain: pair.chain.clone(), key: folder.path().join("absent") };
    for (pairs, expected) in [
        (vec![&mismatched], "c.yaml:2:80: "),
        (vec![&mismatched], "does not fit the certificate"),
        (vec![&absent], "cannot read"),
        (vec![], "needs at least one of `certificates`"),
    ] {
        let (valid, said) = check(&text(&node, &pairs, "", ""));
        assert!(!valid && said.contains(expected), "{expected}: {said}");
    }
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&pair.key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (valid, said) = check(&text(&node, &[&pair], "", ""));
    assert!(valid && said.contains("can be read by anybody, or changed by its group (mode 644)"), "{said}");
    // So may a token; and a certificate may be for later, or in a file that an editor has marked.
    let token = folder.path().join("token");
    std::fs::write(&token, "0123456789abcdef").unwrap();
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o644)).unwrap();
    let marked = Pair { chain: folder.path().join("marked.pem"), key: other.key.clone() };
    let chain = std::fs::read_to_string(&other.chain).unwrap();
    std::fs::write(&marked.chain, format!("\u{feff}{chain}")).unwrap();
    let later = authority.issue_later("later", &["later.example"]);
    let with_token = text(&node, &[&marked, &later], "", "").replace(
        "\"127.0.0.1:0\" }\naccess_log",
        &format!("\"127.0.0.1:0\", token_file: {} }}\naccess_log", token.display()),
    );
    let (valid, said) = check(&with_token);
    for expected in ["the token in", "can be read by anybody", "is valid only in"] {
        assert!(valid && said.contains(expected), "{expected}: {said}");
    }
}

/// Programs that people use.
#[test]
fn curl_and_openssl_agree() {
    if !have("curl", "curl") || !have("openssl", "openssl") {
        return;
    }
    let (authority, node) = (Authority::new(), Origin::echo());
    let (pair, own) = (authority.issue("edge", &["edge.example"]), authority.issue("alice", &["alice"]));
    let asks = format!(", client_ca_file: \"{}\", client_auth: optional", authority.file().display());
    let proxy = start(&node, &[&pair], &asks);
    let port = proxy.address.port();
    let told = Command::new("curl")
        .args(["-sS", "--max-time", "20", "--http1.1", "--cacert"])
        .arg(authority.file())
        .args(["--resolve", &format!("edge.example:{port}:127.0.0.1")])
        .arg("--cert")
        .arg(&own.chain)
        .arg("--key")
        .arg(&own.key)
        .arg(format!("https://edge.example:{port}/from-curl"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(said.contains("GET /from-curl") && said.contains("CN=alice"), "{said} {told:?}");
    for (version, protocol) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        let session = tempfile::NamedTempFile::new().unwrap();
        for (option, expected) in [("-sess_out", "New, "), ("-sess_in", "Reused, ")] {
            let mut child = Command::new("openssl")
                .args(["s_client", version, "-servername", "edge.example", "-connect", &proxy.address.to_string()])
                .arg("-CAfile")
                .arg(authority.file())
                .arg(option)
                .arg(session.path())
                .args(["-verify_return_error", "-ign_eof"])
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::null())
                .spawn()
                .unwrap();
            let request = "GET / HTTP/1.1\r\nhost: edge.example\r\nconnection: close\r\n\r\n";
            child.stdin.take().unwrap().write_all(request.as_bytes()).unwrap();
            let said = String::from_utf8_lossy(&child.wait_with_output().unwrap().stdout).into_owned();
            assert!(
                said.contains(expected) && said.contains(protocol) && said.contains("HTTP/1.1 200"),
                "{option} {said}"
            );
        }
    }
}

/// `curl -0` offers nothing newer.
#[test]
fn a_client_may_offer_http_1_0() {
    let (authority, node) = (Authority::new(), Origin::echo());
    let pair = authority.issue("edge", &["edge.example"]);
    let proxy = start(&node, &[&pair], "");
    if !have("curl", "curl") {
        return;
    }
    let port = proxy.address.port();
    let told = Command::new("curl")
        .args(["-sS", "-0", "--max-time", "20", "--cacert"])
        .arg(authority.file())
        .args(["--resolve", &format!("edge.example:{port}:127.0.0.1")])
        .arg(format!("https://edge.example:{port}/old"))
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&told.stdout).contains("GET /old"), "{told:?}");
}
