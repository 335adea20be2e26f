//! Answers that come before the whole request, over HTTP/2.

use crate::support::http2::{DATA, END_STREAM, Frames, HEADERS, PING, RST_STREAM, WINDOW_UPDATE, post_head, status_of};
use crate::support::{Origin, Proxy};

/// Early answers end, and the rest of the request is read for a while before its stream is reset without an error: a
/// reset at once would have curl 7.88 lose the answer.
#[test]
fn an_early_answer_is_not_followed_by_a_reset_at_once() {
    let node = Origin::by_connection(|peer| {
        while let Some(head) = peer.request() {
            peer.send("HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno");
            if head.contains("transfer-encoding") || head.contains("content-length") {
                return;
            }
        }
    });
    let proxy = Proxy::start(&format!(
        "limits: {{ request_body: 2MiB }}\nidempotency_store: {{ kind: memory }}\npools:\n  app: {{ nodes: [{{ id: n, address: \"{}\" }}] }}\n  down: {{ nodes: [{{ id: n, address: \"127.0.0.1:1\", state: down }}] }}\nroutes:\n  - {{ name: down, headers: {{ x-to: down }}, pool: down }}\n  - {{ name: written, headers: {{ x-to: written }}, pool: down, cache: {{}} }}\n  - {{ name: large, headers: {{ x-to: large }}, pool: app, idempotency: {{ required: true, max_request: 1KiB }} }}\n  - {{ name: fixed, headers: {{ x-to: fixed }}, respond: {{ status: 200, body: hello }} }}\n  - {{ name: moved, headers: {{ x-to: moved }}, redirect: {{ to: /, status: 308 }} }}\n  - {{ name: limited, headers: {{ x-to: limited }}, pool: app, rate_limit: {{ requests: 1, per: 1h, burst: 1 }} }}\n  - {{ name: keyed, headers: {{ x-to: keyed }}, pool: app, idempotency: {{ required: true }} }}\n  - {{ name: node, headers: {{ x-to: node }}, pool: app }}\n",
        node.address
    ));
    let spent = proxy.get_with("/", "x-to: limited\r\n");
    assert_eq!(spent.status, 403);
    for to in ["fixed", "moved", "limited", "keyed", "node", "nowhere", "down", "written", "large"] {
        let mut frames = Frames::connect(proxy.address);
        match to {
            "large" => {
                frames.headers(0, 1, &post_head(&[("x-to", to), ("idempotency-key", "\"k\""), ("authorization", "a")]))
            }
            _ => frames.headers(0, 1, &post_head(&[("x-to", to)])),
        }
        match to {
            "node" => frames.send(DATA, 0, 1, b"first"),
            "large" => frames.send(DATA, 0, 1, &[b'x'; 2000]),
            _ => {}
        }
        let mut kinds = Vec::new();
        loop {
            let frame = frames.of_stream(1).unwrap_or_else(|| panic!("{to}: the connection ended after {kinds:?}"));
            kinds.push(frame.kind);
            assert_ne!(frame.kind, RST_STREAM, "{to}: {kinds:?}");
            if frame.kind == HEADERS && to == "large" {
                assert_ne!(status_of(&frame.payload), "400", "it is refused for its size alone");
            }
            if frame.flags & END_STREAM > 0 {
                break;
            }
        }
        // What was sent before this is answered was sent with the answer.
        frames.send(PING, 0, 0, &[7; 8]);
        loop {
            let frame = frames.next().unwrap();
            assert!(frame.kind != RST_STREAM, "{to}: a reset with the answer");
            if frame.kind == PING {
                break;
            }
        }
        // The client's data is on its way meanwhile, and does no harm.
        frames.send(DATA, 0, 1, &[b'x'; 1000]);
        frames.send(DATA, END_STREAM, 1, b"");
        // The connection goes on for others.
        frames.headers(
            END_STREAM,
            3,
            &[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a"), ("x-to", "fixed")],
        );
        let answer = frames.of_stream(3).unwrap();
        assert_eq!((answer.kind, status_of(&answer.payload)), (HEADERS, "200"), "{to}");
    }
}

/// What is still sent behind an early answer is read up to a bound, and then the stream is reset without an error.
#[test]
fn what_follows_an_early_answer_is_bounded() {
    let proxy = Proxy::start("routes: [{ name: fixed, respond: { status: 200, body: hello } }]\n");
    let mut frames = Frames::connect(proxy.address);
    frames.headers(0, 1, &post_head(&[]));
    // The windows of RFC 9113 6.9.2: the settings that make them larger are not acknowledged.
    let (mut sent, mut stream_window, mut window) = (0, 65_535, 65_535);
    let reset = loop {
        if stream_window.min(window) >= 16_000 {
            frames.send(DATA, 0, 1, &[b'x'; 16_000]);
            (sent, stream_window, window) = (sent + 16_000, stream_window - 16_000, window - 16_000);
            continue;
        }
        let frame = frames.next().expect("the connection goes on");
        if frame.kind == RST_STREAM {
            break frame;
        }
        if frame.kind == WINDOW_UPDATE {
            let update = u32::from_be_bytes(frame.payload[..4].try_into().unwrap());
            *if frame.stream == 0 { &mut window } else { &mut stream_window } += update;
        }
    };
    assert_eq!((reset.stream, &*reset.payload), (1, &[0, 0, 0, 0][..]), "NO_ERROR");
    assert!(sent >= 1 << 20, "{sent}");
}
