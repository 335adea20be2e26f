//! Nodes that misbehave, and what the client is told.

use crate::support::{Authority, Origin, Proxy, eventually};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

/// The status, the problem and the Proxy-Status of a GET before one such node.
fn told(node: &Origin, pool: &str) -> (u16, String, String) {
    let proxy = Proxy::start(&Proxy::pool(&[node.address], pool));
    let answer = proxy.get("/");
    (answer.status, answer.problem(), answer.field("proxy-status").unwrap_or_default())
}

fn expect(node: &Origin, pool: &str, status: u16, error: &str) {
    let (found, _, proxy_status) = told(node, pool);
    assert_eq!((found, proxy_status.as_str()), (status, format!("ringway; error={error}").as_str()));
}

/// An address at which nobody listens.
fn nobody() -> std::net::SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
fn a_node_that_refuses_is_skipped() {
    let node = Origin::echo();
    let proxy = Proxy::start(&format!("workers: 1\n{}", Proxy::pool(&[nobody(), node.address], "")));
    for n in 0..20 {
        assert_eq!(proxy.get(&format!("/{n}")).status, 200);
    }
    let retries = proxy.metric("ringway_upstream_retries_total{pool=\"app\",reason=\"connection_refused\"}");
    assert!(retries > 0.0 && retries < 20.0, "{retries}");
    assert_eq!(node.requests().len(), 20);
}

/// Whatever the method: nothing was sent.
#[test]
fn a_post_moves_on_where_nothing_was_sent() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[nobody(), node.address]);
    for n in 0..10 {
        let answer =
            proxy.connect().request(format!("POST /{n} HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello"));
        assert!(answer.status == 200 && answer.text().ends_with("hello"), "{answer:?}");
    }
}

#[test]
fn all_nodes_refuse() {
    let proxy = Proxy::before(&[nobody(), nobody()]);
    let answer = proxy.get("/");
    assert_eq!((answer.status, answer.problem().as_str()), (502, "upstream-failed"));
    assert_eq!(answer.field("proxy-status").as_deref(), Some("ringway; error=connection_refused"));
}

#[test]
fn no_node_at_all() {
    let proxy = Proxy::before(&[]);
    let answer = proxy.get("/");
    assert_eq!((answer.status, answer.problem().as_str()), (503, "no-healthy-node"));
    assert_eq!(answer.field("proxy-status").as_deref(), Some("ringway; error=destination_unavailable"));
    assert!(answer.field("retry-after").is_some());
    assert_eq!(proxy.admin_get("/readyz").status, 503);
}

#[test]
fn a_reset_after_the_request_is_not_tried_again() {
    let node = Origin::by_connection(|peer| {
        peer.request();
        peer.reset();
    });
    let other = Origin::by_connection(|peer| {
        peer.request();
        peer.reset();
    });
    let proxy = Proxy::before(&[node.address, other.address]);
    for method in ["GET", "POST"] {
        let answer = proxy.connect().request(format!("{method} / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n"));
        assert_eq!(
            (answer.status, answer.field("proxy-status").as_deref()),
            (502, Some("ringway; error=connection_terminated"))
        );
    }
    assert_eq!(node.requests().len() + other.requests().len(), 2, "a request that may have run was run again");
}

#[test]
fn a_node_that_closes_without_a_word() {
    let node = Origin::by_connection(|peer| {
        peer.request();
    });
    expect(&node, "", 502, "connection_terminated");
}

#[test]
fn a_node_that_hangs() {
    let node = Origin::by_connection(|peer| {
        peer.request();
        peer.client.has_ended();
    });
    let started = Instant::now();
    let (status, problem, proxy_status) = told(&node, "    timeouts: { first_byte: 300ms }\n");
    assert_eq!(
        (status, problem.as_str(), proxy_status.as_str()),
        (504, "upstream-timeout", "ringway; error=http_response_timeout")
    );
    assert!(started.elapsed() >= Duration::from_millis(300));
}

/// The timer of an HTTP/1 connection wakes it after a second whatever it waits for; a node is late by its own time.
#[test]
fn a_node_that_is_late_after_the_connection_was_woken() {
    let silent = || {
        Origin::by_connection(|peer| {
            peer.request();
            peer.client.has_ended();
        })
    };
    expect(&silent(), "    timeouts: { first_byte: 1500ms }\n", 504, "http_response_timeout");
    expect(&silent(), "    timeouts: { total: 1500ms }\n", 504, "http_response_timeout");
    let node = Origin::by_connection(|peer| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort");
        peer.client.has_ended();
    });
    let proxy = Proxy::start(&Proxy::pool(&[node.address], "    timeouts: { idle: 1500ms }\n"));
    let got = proxy.connect().request("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    assert!(got.truncated && got.text() == "short", "{got:?}");
}

#[test]
fn a_node_slower_than_the_whole_request_may_take() {
    let node = Origin::by_connection(|peer| {
        peer.request();
        peer.client.has_ended();
    });
    expect(&node, "    timeouts: { total: 300ms }\n", 504, "http_response_timeout");
}

/// The time for the first byte runs from the last byte sent: a long upload is not a slow node.
#[test]
fn a_long_upload_is_not_a_slow_node() {
    let node = Origin::echo();
    let pool = Proxy::pool(&[node.address], "    timeouts: { first_byte: 400ms }\n");
    let proxy = Proxy::start(&format!("limits: {{ header_timeout: 300ms }}\n{pool}"));
    let mut client = proxy.connect();
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\n");
    for _ in 0..4 {
        // The upload itself is what takes long here.
        proxy.header_timeout_passes();
        client.send("x");
    }
    assert_eq!(client.answer().status, 200);
}

#[test]
fn a_short_answer_looks_short() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nshort\r\n",
    ] {
        let node = Origin::by_connection(move |peer| {
            peer.request();
            peer.send(answer);
        });
        let proxy = Proxy::before(&[node.address]);
        let mut client = proxy.connect();
        let got = client.request("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        assert!(got.truncated, "{got:?}");
        assert_eq!(
            proxy.metric("ringway_upstream_requests_total{node=\"n0\",outcome=\"incomplete\",pool=\"app\"}"),
            1.0
        );
    }
}

#[test]
fn an_answer_that_stalls_is_cut() {
    let node = Origin::by_connection(|peer| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort");
        peer.client.has_ended();
    });
    let proxy = Proxy::start(&Proxy::pool(&[node.address], "    timeouts: { idle: 300ms }\n"));
    let got = proxy.connect().request("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    assert!(got.truncated && got.text() == "short", "{got:?}");
    assert_eq!(proxy.metric("ringway_upstream_requests_total{node=\"n0\",outcome=\"stalled\",pool=\"app\"}"), 1.0);
}

/// What a node sends beyond its answer never becomes the answer to somebody else's request.
#[test]
fn surplus_bytes_are_nobodys_answer() {
    let surplus = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison";
    for answer in [
        format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok{surplus}"),
        format!("HTTP/1.1 204 No Content\r\n\r\n{surplus}"),
        format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n{surplus}"),
    ] {
        let node = Origin::saying(answer);
        let proxy = Proxy::start(&format!("workers: 1\n{}", Proxy::pool(&[node.address], "")));
        let mut client = proxy.connect();
        for _ in 0..4 {
            let got = client.request("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
            assert!(got.status < 300 && got.text() != "poison", "{got:?}");
        }
        assert_eq!(node.connections(), 4, "a connection that spoke out of turn was used again");
    }
}

#[test]
fn nonsense_is_a_bad_gateway() {
    for nonsense in [
        "SSH-2.0-OpenSSH_9.2\r\n\r\n",
        "HTTP/1.1 999999 No\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked, gzip\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    ] {
        let node = Origin::saying(nonsense);
        expect(&node, "", 502, "http_protocol_error");
    }
}

#[test]
fn a_head_without_end_is_a_bad_gateway() {
    let node = Origin::by_connection(|peer| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\n");
        for n in 0..10_000 {
            peer.send(format!("x-{n}: {}\r\n", "y".repeat(100)));
        }
    });
    expect(&node, "", 502, "http_response_header_section_size");
}

/// The node closes after each answer without saying so. No client sees it, whatever the method.
#[test]
fn a_kept_connection_that_the_node_closed_is_replaced() {
    let node = Origin::by_connection(|peer| {
        let head = peer.request().unwrap();
        peer.body_of(&head);
        peer.answer("once");
    });
    let proxy = Proxy::start(&format!("workers: 1\n{}", Proxy::pool(&[node.address], "")));
    let mut client = proxy.connect();
    for n in 1..=20 {
        let got = client.request("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nx");
        assert_eq!((got.status, got.text().as_str()), (200, "once"), "request {n}");
        // The node's goodbye has to be on its way before the next request is.
        eventually("the node's goodbye", || closed_by_node(node.address.port()));
    }
    assert_eq!(node.connections(), 20);
}

/// Whether every connection of the proxy to that port has had the other side's FIN, or is gone.
fn closed_by_node(port: u16) -> bool {
    const ESTABLISHED: &str = "01";
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let remote = format!(":{port:04X}");
    !table.lines().skip(1).any(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        columns[2].ends_with(&remote) && columns[3] == ESTABLISHED
    })
}

#[test]
fn an_idle_connection_ends_in_time() {
    let node = Origin::echo();
    let proxy = Proxy::start(&Proxy::pool(&[node.address], "    connections: { idle_timeout: 200ms }\n"));
    assert_eq!(proxy.get("/").status, 200);
    let idle = "ringway_upstream_connections{node=\"n0\",pool=\"app\",state=\"idle\"}";
    eventually("the end of the idle connection", || proxy.metric(idle) == 0.0);
    assert_eq!(proxy.get("/").status, 200);
    assert_eq!(node.connections(), 2);
}

#[test]
fn no_connection_is_kept_where_none_may_be() {
    let node = Origin::echo();
    let proxy = Proxy::start(&Proxy::pool(&[node.address], "    connections: { max_idle_per_node: 0 }\n"));
    for _ in 0..3 {
        assert_eq!(proxy.get("/").status, 200);
    }
    assert_eq!(node.connections(), 3);
}

#[test]
fn a_full_node_is_skipped_and_full_nodes_are_said() {
    let node = Origin::by_connection(|peer| {
        while let Some(head) = peer.request() {
            if head.starts_with("GET /hang") {
                peer.client.has_ended();
                return;
            }
            peer.answer("ok");
        }
    });
    let proxy = Proxy::start(&Proxy::pool(&[node.address], "    connections: { max_per_node: 1 }\n"));
    let mut busy = proxy.connect();
    busy.send("GET /hang HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("the first request", || node.requests().len() == 1);
    let answer = proxy.get("/");
    assert_eq!((answer.status, answer.problem().as_str()), (503, "connection-limit-reached"));
    assert_eq!(answer.field("proxy-status").as_deref(), Some("ringway; error=connection_limit_reached"));
    assert_eq!(answer.field("retry-after").as_deref(), Some("1"));
    drop(busy);
    eventually("room", || proxy.get("/").status == 200);
}

#[test]
fn a_node_that_is_down_or_drains_gets_nothing() {
    let (up, other) = (Origin::echo(), Origin::echo());
    for state in ["down", "drain"] {
        let proxy = Proxy::start(&format!(
            "pools:\n  app:\n    nodes:\n      - {{ id: a, address: \"{}\" }}\n      - {{ id: b, address: \"{}\", state: {state} }}\nroutes:\n  - {{ name: site, pool: app, hash_on: [uri] }}\n",
            up.address, other.address
        ));
        for n in 0..20 {
            assert_eq!(proxy.get(&format!("/{n}")).status, 200);
        }
    }
    assert_eq!((up.requests().len(), other.requests().len()), (40, 0));
}

#[test]
fn an_early_answer_to_a_long_upload_arrives() {
    let node = Origin::by_connection(|peer| {
        peer.request();
        peer.send("HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno");
        // Leaves with the body unread, as servers do.
        peer.client.exactly(1);
    });
    let proxy = Proxy::before(&[node.address]);
    let mut client = proxy.connect();
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 60000000\r\n\r\nxxxxxxxx");
    let answer = client.answer();
    assert_eq!((answer.status, answer.text().as_str()), (403, "no"));
}

/// The node refuses and closes at once, so that writing the rest of the body fails: what it has said arrives, over
/// TLS too, and is no fault of the node's.
#[test]
fn a_refusal_and_a_close_during_an_upload_is_the_answer() {
    let authority = Authority::new();
    let pair = authority.issue("node", &["node.internal"]);
    let plain = Origin::by_connection(|peer| {
        peer.request();
        peer.send(REFUSAL);
    });
    let sealed = tls_refuser(&pair);
    let over_tls = format!("    tls: {{ server_name: node.internal, ca_file: \"{}\" }}\n", authority.file().display());
    for (address, tls) in [(plain.address, ""), (sealed, over_tls.as_str())] {
        let pool = format!("    outlier_ejection: {{ consecutive_failures: 1 }}\n{tls}");
        let proxy = Proxy::start(&Proxy::pool(&[address], &pool));
        for _ in 0..10 {
            let mut client = proxy.connect();
            let mut writer = client.stream.try_clone().unwrap();
            let upload = std::thread::spawn(move || {
                let head = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", 16 << 20);
                writer.write_all(head.as_bytes()).and_then(|()| writer.write_all(&vec![b'x'; 16 << 20]))
            });
            let answer = client.answer();
            assert_eq!((answer.status, answer.text().as_str()), (413, "no"), "{tls}");
            drop(client);
            // It may have been cut off.
            let _ = upload.join().unwrap();
        }
        assert_eq!(proxy.node("n0")["ejected_for_seconds"].as_f64(), None);
    }
}

const REFUSAL: &str = "HTTP/1.1 413 Content Too Large\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno";

/// A node that speaks TLS, refuses every request, and closes with the body unread.
fn tls_refuser(pair: &crate::support::Pair) -> std::net::SocketAddr {
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let chain = CertificateDer::pem_file_iter(&pair.chain).unwrap().map(Result::unwrap).collect();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(&pair.key).unwrap())
        .unwrap();
    let config = std::sync::Arc::new(config);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            // What it says must be out before it closes: its session tickets may not be acknowledged yet.
            stream.set_nodelay(true).unwrap();
            let session = rustls::ServerConnection::new(std::sync::Arc::clone(&config)).unwrap();
            let mut stream = rustls::StreamOwned::new(session, stream);
            let mut some = [0; 4096];
            if stream.read(&mut some).is_ok() {
                let _ = stream.write_all(REFUSAL.as_bytes()).and_then(|()| stream.flush());
            }
        }
    });
    address
}

/// RFC 9112 6.3: where both are there, the chunks count.
#[test]
fn a_length_beside_chunks_is_not_believed() {
    for length in [2, 1000] {
        let node = Origin::saying(format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\ntransfer-encoding: chunked\r\n\r\n5\r\nwhole\r\n0\r\n\r\n"
        ));
        let proxy = Proxy::before(&[node.address]);
        let got = proxy.connect().request("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        assert_eq!((got.text().as_str(), got.field("content-length")), ("whole", None));
    }
}

/// A node that accepts and closes at once was sent nothing: any request may go to the next one.
#[test]
fn a_node_that_closes_at_once_is_skipped() {
    let closing = Origin::by_connection(|_| {});
    let node = Origin::echo();
    let proxy = Proxy::before(&[closing.address, node.address]);
    let answers: Vec<u16> =
        (0..20).map(|n| proxy.connect().request(format!("GET /{n} HTTP/1.1\r\nhost: a\r\n\r\n")).status).collect();
    // Where the close came only after the request had gone out, it is not sent again.
    assert!(answers.iter().all(|status| [200, 502].contains(status)), "{answers:?}");
    assert!(answers.contains(&200));
}

#[test]
fn a_client_that_pauses_is_not_a_slow_node() {
    let node = Origin::echo();
    let pool = Proxy::pool(&[node.address], "    timeouts: { first_byte: 300ms }\n");
    let proxy = Proxy::start(&format!("limits: {{ header_timeout: 900ms }}\n{pool}"));
    let mut client = proxy.connect();
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nha");
    // Longer than the node may take.
    proxy.header_timeout_passes();
    client.send("lf");
    let answer = client.answer();
    assert!(answer.status == 200 && answer.text().ends_with("half"), "{answer:?}");
}

/// HTTP/1.0 has no other way to tell a short answer from a whole one.
#[test]
fn a_short_answer_is_a_reset_for_http_1_0() {
    let node = Origin::by_connection(|peer| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nshort\r\n");
    });
    let proxy = Proxy::before(&[node.address]);
    let mut client = proxy.connect();
    client.send("GET / HTTP/1.0\r\nhost: a\r\n\r\n");
    let mut got = Vec::new();
    let ended = std::io::Read::read_to_end(&mut client.stream, &mut got);
    assert_eq!(ended.map_err(|error| error.kind()), Err(std::io::ErrorKind::ConnectionReset));
}
