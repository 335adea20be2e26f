//! Frames that cost their sender nothing: a connection that sends too many of them is told to end, and cut.

use crate::support::http2::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Frames, GOAWAY, HEADERS, Http2, PING, PRIORITY, RST_STREAM, SETTINGS,
    WINDOW_UPDATE, block, frame,
};
use crate::support::{Origin, Proxy, eventually};

const ENHANCE_YOUR_CALM: u32 = 0xb;
const GET: [(&str, &str); 4] = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")];
const POST: [(&str, &str); 4] = [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "a")];

fn odd(proxy: &Proxy, kind: &str) -> f64 {
    proxy.metric(&format!("ringway_http2_glitches_total{{kind=\"{kind}\"}}"))
}

fn cut(proxy: &Proxy, reason: &str) -> f64 {
    proxy.metric(&format!("ringway_connections_aborted_total{{reason=\"{reason}\"}}"))
}

/// The piece of a flood by its number.
type Piece = fn(u32) -> Vec<u8>;

#[test]
fn every_flood_is_cut_and_counted_by_its_kind() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    let floods: [(&str, Piece); 8] = [
        ("ping", |_| frame(PING, 0, 0, &[0; 8]).repeat(50)),
        // An acknowledgement of what nobody has sent is a ping, too.
        ("ping", |_| frame(PING, 1, 0, &[0; 8]).repeat(50)),
        ("settings", |_| frame(SETTINGS, 0, 0, &[]).repeat(50)),
        ("priority", |n| frame(PRIORITY, 0, 2 * n + 101, &[0, 0, 0, 0, 16]).repeat(50)),
        ("window_update", |_| frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]).repeat(50)),
        ("unknown", |_| frame(0x77, 0, 0, b"?").repeat(50)),
        ("empty_data", |n| match n {
            0 => frame(HEADERS, END_HEADERS, 1, &block(&POST)),
            _ => frame(DATA, 0, 1, b"").repeat(50),
        }),
        ("continuation", |n| match n {
            0 => frame(HEADERS, END_STREAM, 1, &block(&GET)),
            _ => frame(CONTINUATION, 0, 1, b"").repeat(50),
        }),
    ];
    for (kind, piece) in floods {
        let (before, cut_before) = (odd(&proxy, kind), cut(&proxy, "http2_glitches"));
        let reason = Frames::connect(proxy.address).flood(piece);
        assert_eq!(reason, Some(ENHANCE_YOUR_CALM), "{kind}");
        assert!(odd(&proxy, kind) >= before + 25.0, "{kind}");
        eventually(kind, || cut(&proxy, "http2_glitches") == cut_before + 1.0);
    }
    // The stream with the empty pieces has begun, and no other.
    assert!(node.requests().len() <= 1, "{:?}", node.requests());
    assert_eq!(Http2::connect(proxy.address).get("/").status, 200);
}

/// CVE-2023-44487: requests that are taken back at once never reach a node.
#[test]
fn requests_that_are_reset_at_once_reach_no_node() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    for _ in 0..5 {
        let reason = Frames::connect(proxy.address).flood(|n| {
            let pair = |stream| {
                let request = frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&GET));
                [request, frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
            };
            (0..100).flat_map(|index| pair(2 * (100 * n + index) + 1)).collect()
        });
        assert_eq!(reason, Some(ENHANCE_YOUR_CALM));
    }
    assert!(odd(&proxy, "reset") >= 100.0);
    // What was cut off in the middle between a request and its reset may have begun.
    assert!(node.requests().len() <= 5, "{}", node.requests().len());
}

/// CVE-2025-8671: the proxy is brought to reset what the client has asked for.
#[test]
fn resets_that_the_proxy_is_brought_to_count_as_the_clients() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    let reason = Frames::connect(proxy.address).flood(|n| {
        let stream = 2 * n + 1;
        let request = frame(HEADERS, END_HEADERS, stream, &block(&POST));
        // Each is one that a client may send; together they are more than a window can be.
        [request, frame(WINDOW_UPDATE, 0, stream, &[0x3f, 0xff, 0xff, 0xff]).repeat(3)].concat()
    });
    assert_eq!(reason, Some(ENHANCE_YOUR_CALM));
    assert!(odd(&proxy, "made_reset") > 0.0);
    // Some can be seen for what they are before anything is reset.
    let before = odd(&proxy, "made_reset");
    let reason = Frames::connect(proxy.address).flood(|n| {
        let pair = |stream| {
            let request = frame(HEADERS, END_HEADERS, stream, &block(&POST));
            [request, frame(WINDOW_UPDATE, 0, stream, &[0x7f, 0xff, 0xff, 0xff])].concat()
        };
        (0..500).flat_map(|index| pair(2 * (500 * n + index) + 1)).collect()
    });
    assert_eq!(reason, Some(ENHANCE_YOUR_CALM));
    assert!(odd(&proxy, "made_reset") < before + 200.0);
}

/// A proxy that is trusted speaks for many: what one stranger does through it costs the others nothing.
#[test]
fn a_trusted_proxy_is_not_cut() {
    let node = Origin::echo();
    let proxy = Proxy::start(&format!("trusted_proxies: [127.0.0.1]\n{}", Proxy::pool(&[node.address], "")));
    let mut frames = Frames::connect(proxy.address);
    for n in 0..500 {
        frames.headers(END_STREAM, 2 * n + 1, &GET);
        frames.send(RST_STREAM, 0, 2 * n + 1, &[0, 0, 0, 8]);
        // A turn at a time: h2 has a bound of its own for those that come at once.
        frames.send(PING, 0, 0, &[0; 8]);
        while frames.next().unwrap().kind != PING {}
    }
    frames.headers(END_STREAM, 1001, &GET);
    assert_eq!(frames.of_stream(1001).unwrap().kind, HEADERS);
    assert!(odd(&proxy, "reset") >= 500.0);
}

#[test]
fn half_of_the_glitches_end_a_connection_well() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    let mut frames = Frames::connect(proxy.address);
    (0..130).for_each(|_| frames.send(PING, 0, 0, &[0; 8]));
    frames.headers(END_STREAM, 1, &GET);
    let (mut told, mut answered) = (None, false);
    while let Some(frame) = frames.next() {
        match frame.kind {
            GOAWAY => told = told.or(Some(frame.payload[4..8].to_vec())),
            // Its own pings were acknowledged; this one is the proxy's, and asks what still comes.
            PING if frame.flags == 0 => frames.send(PING, 1, 0, &frame.payload),
            HEADERS => answered = true,
            _ => {}
        }
    }
    assert_eq!(told, Some(vec![0, 0, 0, 0]), "NO_ERROR");
    assert!(answered, "what was asked for is still answered");
    assert_eq!(cut(&proxy, "http2_glitches"), 0.0);
}

#[test]
fn the_limit_of_glitches_is_the_configurations() {
    let node = Origin::echo();
    let proxy = Proxy::start(&format!("limits: {{ http2_glitches: 0 }}\n{}", Proxy::pool(&[node.address], "")));
    let mut frames = Frames::connect(proxy.address);
    let pings = frame(PING, 0, 0, &[0; 8]).repeat(100);
    let (mut sent, mut acknowledged) = (0, 0);
    for _ in 0..20 {
        frames.send_bytes(&pings);
        sent += 100;
        while acknowledged < sent {
            acknowledged += usize::from(frames.next().unwrap().kind == PING);
        }
    }
    frames.headers(END_STREAM, 1, &GET);
    assert_eq!(frames.of_stream(1).unwrap().kind, HEADERS);
}

/// Pieces of cookies are fields like others when fields are counted.
#[test]
fn crumbs_of_cookies_are_counted() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    for (count, status) in [(90, 200), (120, 431)] {
        let crumbs = vec!["cookie: a=b"; count].join(" | ");
        let answer = Http2::connect(proxy.address).ask("GET", "/", &crumbs, "").unwrap();
        assert_eq!(answer.status, status, "{count}");
    }
    assert_eq!(node.requests().len(), 1);
    assert!(node.requests()[0].contains("a=b; a=b"));
}

/// A few bytes that stand for megabytes of fields.
#[test]
fn an_hpack_bomb_gets_no_further() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    let before = proxy.memory();
    for _ in 0..20 {
        let mut frames = Frames::connect(proxy.address);
        // A field of 4,000 bytes enters the table of the connection, and then is referred to.
        let mut head = block(&GET);
        head.extend_from_slice(&[0x40, 1, b'x', 0x7f, 0xa1, 0x1e]);
        head.extend_from_slice(&[b'y'; 4000]);
        head.extend_from_slice(&[0xbe; 12_000]);
        frames.send(HEADERS, END_STREAM | END_HEADERS, 1, &head);
        // 431, a reset, or the end of it all: but no request.
        let told = frames.of_stream(1);
        assert!(told.is_none_or(|frame| [HEADERS, RST_STREAM, GOAWAY].contains(&frame.kind)));
    }
    assert_eq!(node.requests().len(), 0);
    assert!(proxy.memory() < before + (48 << 20), "{} to {}", before, proxy.memory());
}

/// A head that never ends holds its connection no longer than any other head.
#[test]
fn a_head_that_does_not_end_is_cut_off_although_another_stream_is_open() {
    let node = Origin::by_connection(|peer| while peer.request().is_some() {});
    let limits = "limits: { header_timeout: 500ms }\n";
    let proxy = Proxy::start(&format!("{limits}{}", Proxy::pool(&[node.address], "")));
    let mut frames = Frames::connect(proxy.address);
    frames.headers(END_STREAM, 1, &GET);
    frames.send(HEADERS, END_STREAM, 3, &block(&GET));
    while frames.next().is_some() {}
    assert_eq!(cut(&proxy, "head"), 1.0);
}

#[test]
fn heads_that_cannot_be_read_are_counted() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    let answer = proxy.connect().request("NOT HTTP AT ALL\r\n\r\n");
    assert_eq!(answer.status, 400);
    assert_eq!(odd(&proxy, "malformed"), 1.0);
    // Over HTTP/2 they are answered one by one, until there are too many.
    let mut statuses = Vec::new();
    let mut frames = Frames::connect(proxy.address);
    let bad = [(":method", "GET"), (":scheme", "http"), (":path", "/%zz"), (":authority", "a")];
    for n in 0..200 {
        frames.headers(END_STREAM, 2 * n + 1, &bad);
        match frames.of_stream(2 * n + 1) {
            Some(frame) if frame.kind == HEADERS => statuses.push(frame),
            _ => break,
        }
    }
    assert!((40..120).contains(&statuses.len()), "{}", statuses.len());
    assert!(odd(&proxy, "malformed") > 40.0);
}
