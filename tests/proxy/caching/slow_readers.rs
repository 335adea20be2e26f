//! Clients of different speed that share one body: nobody is cut because another one is faster.

use crate::support::{Ask, Barrier, Client, Origin, Peer, Proxy, eventually};
use std::io::Read;
use std::time::Duration;

/// Larger than a store takes, and than all windows and socket buffers together.
const LENGTH: usize = 24 << 20;

fn body() -> Vec<u8> {
    (0..LENGTH).map(|index| (index % 251) as u8).collect()
}

/// Sends a body in chunks, once the gate is open: whoever is to share it has its head by then.
fn send_chunks(peer: &mut Peer, head: &str, gate: &Barrier, body: &[u8]) {
    peer.send(format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n{head}\r\n"));
    gate.wait();
    for chunk in body.chunks(64 << 10) {
        peer.send(format!("{:x}\r\n", chunk.len()));
        peer.send(chunk);
        peer.send("\r\n");
    }
    peer.send("0\r\n\r\n");
}

/// The position at which a range begins.
fn range_of(ask: &Ask) -> Option<usize> {
    ask.field("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok())
}

fn send(proxy: &Proxy) -> Client {
    let mut client = proxy.connect();
    client.send("GET / HTTP/1.1\r\nhost: example.com\r\nconnection: close\r\n\r\n");
    client
}

/// Reads a body at once, in a thread of its own.
fn fast(mut client: Client) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || client.chunked_body())
}

/// Two clients that have the head of one body.
fn two(proxy: &Proxy, origin: &Origin) -> (Client, Client) {
    let mut first = send(proxy);
    origin.wait_for(1);
    first.head();
    let mut second = send(proxy);
    second.head();
    assert_eq!(origin.asked(), 1, "they share it");
    (first, second)
}

/// How the origin answers whoever is left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    /// Its response has no tag.
    Untagged,
    /// By the range.
    Partial,
    /// With the whole, for it knows no ranges.
    Whole,
    /// By the range, after an interim answer.
    Hinted,
    /// By a part of the range at a time.
    Capped,
    /// Not at all: it fails, or has another version by then.
    Failing,
    Changed,
}

impl Rest {
    const ALL: [Rest; 7] =
        [Rest::Untagged, Rest::Partial, Rest::Whole, Rest::Hinted, Rest::Capped, Rest::Failing, Rest::Changed];

    /// Whether the fast one waits for the slow one.
    fn is_shared(self) -> bool {
        matches!(self, Rest::Untagged | Rest::Failing | Rest::Changed)
    }
}

fn origin(rest: Rest, gate: &Barrier) -> Origin {
    let (whole, gate) = (body(), gate.clone());
    Origin::start(move |ask, peer| {
        let tag = if rest == Rest::Untagged { "" } else { "etag: \"e\"\r\n" };
        let head = format!("cache-control: max-age=60\r\n{tag}");
        match range_of(ask).filter(|_| rest != Rest::Whole) {
            Some(_) if rest == Rest::Failing => peer.reply(503, "", "bad"),
            Some(_) if rest == Rest::Changed => peer.reply(200, "etag: \"other\"", "another version"),
            Some(from) => {
                assert_eq!(ask.field("if-range"), Some("\"e\""));
                if rest == Rest::Hinted {
                    peer.send("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n");
                }
                let end = if rest == Rest::Capped { LENGTH.min(from + (5 << 20)) } else { LENGTH };
                peer.send(format!(
                    "HTTP/1.1 206 Partial Content\r\n{head}content-range: bytes {from}-{}/{LENGTH}\r\ncontent-length: {}\r\n\r\n",
                    end - 1,
                    end - from
                ));
                peer.send(&whole[from..end]);
            }
            None => send_chunks(peer, &head, &gate, &whole),
        }
    })
}

#[test]
fn all_get_every_byte_in_every_order() {
    let expected = body();
    let log = "access_log: { format: json }\n";
    for rest in Rest::ALL {
        for slow_first in [true, false] {
            let gate = Barrier::default();
            let origin = origin(rest, &gate);
            let proxy = Proxy::start(&format!("{log}{}", origin.configuration("lock_timeout: 1m")));
            let (first, second) = two(&proxy, &origin);
            let (mut slow, other) = if slow_first { (first, second) } else { (second, first) };
            gate.open();
            let other = fast(other);
            // Where it can go on by itself, the other one waits for nothing; else it waits for what is read here.
            let other = if rest.is_shared() { Err(other) } else { Ok(other.join().unwrap()) };
            assert!(slow.chunked_body() == expected, "{rest:?}, slow first: {slow_first}");
            let other = other.unwrap_or_else(|other| other.join().unwrap());
            assert!(other == expected, "{rest:?}, slow first: {slow_first}");
            eventually("both lines", || proxy.output().lines().count() == 2);
            assert_eq!(proxy.output().matches("\"ended_by\":\"completed\"").count(), 2, "{}", proxy.output());
        }
    }
}

#[test]
fn a_range_of_a_growing_body_goes_on_too() {
    let expected = body();
    let (whole, gate) = (body(), Barrier::default());
    let open = gate.clone();
    let origin = Origin::start(move |ask, peer| match range_of(ask) {
        Some(from) => {
            peer.send(format!(
                "HTTP/1.1 206 Partial Content\r\netag: \"e\"\r\ncontent-range: bytes {from}-{}/{LENGTH}\r\ncontent-length: {}\r\n\r\n",
                LENGTH - 1,
                LENGTH - from
            ));
            peer.send(&whole[from..]);
        }
        None => send_chunks(peer, "cache-control: max-age=60\r\netag: \"e\"\r\n", &open, &whole),
    });
    // What arrives in all takes more than the memory that is for it.
    let settings = format!("cache: {{ memory: 1MiB }}\n{}", origin.configuration("lock_timeout: 1m"));
    let proxy = Proxy::start(&settings);
    let (mut slow, other) = two(&proxy, &origin);
    gate.open();
    assert!(fast(other).join().unwrap() == expected);
    assert!(slow.chunked_body() == expected);
}

#[test]
fn who_reads_too_slowly_for_others_is_cut_as_its_own_fault() {
    let (whole, gate) = (body(), Barrier::default());
    let open = gate.clone();
    let origin = Origin::start(move |_, peer| send_chunks(peer, "cache-control: max-age=60\r\n", &open, &whole));
    let limits = "limits: { write_timeout: 2s, body_min_rate: 1GiB }\naccess_log: { format: json }\n";
    let proxy = Proxy::start(&format!("{limits}{}", origin.configuration("lock_timeout: 1m")));
    let (mut slow, other) = two(&proxy, &origin);
    gate.open();
    let other = fast(other);
    // It takes a little, ever again, so that no timer of its connection ends it.
    let dripping = std::thread::spawn(move || {
        let mut piece = [0; 16 << 10];
        let mut taken = 0;
        loop {
            match slow.stream.read(&mut piece) {
                Ok(0) | Err(_) => return taken,
                Ok(length) => taken += length,
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
    });
    assert!(other.join().unwrap() == body(), "the other one goes on");
    assert!(dripping.join().unwrap() < LENGTH);
    eventually("both lines", || proxy.output().lines().count() == 2);
    let output = proxy.output();
    let ends = |by: &str| output.matches(&format!("\"ended_by\":\"{by}\"")).count();
    assert_eq!((ends("completed"), ends("client")), (1, 1), "{output}");
    assert_eq!(proxy.metric("ringway_connections_aborted_total{reason=\"write\"}"), 1.0);
}

#[test]
fn nobody_joins_a_body_that_is_too_large() {
    let (gate, first) = (Barrier::default(), Barrier::default());
    let (open, sent) = (gate.clone(), first.clone());
    let node = Origin::by_connection(move |peer| {
        while peer.request().is_some() {
            let large = vec![b'x'; 3000];
            peer.send("HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ntransfer-encoding: chunked\r\n\r\n");
            for _ in 0..2 {
                peer.send("bb8\r\n");
                peer.send(&large);
                peer.send("\r\n");
            }
            sent.open();
            open.wait();
            peer.send("0\r\n\r\n");
        }
    });
    let text =
        Proxy::pool(&[node.address], "").replace("hash_on: [uri] }", "hash_on: [uri], cache: { max_object: 4KiB } }");
    let proxy = Proxy::start(&text);
    let mut early = send(&proxy);
    early.head();
    first.wait();
    eventually("a fetch of its own", || {
        let mut late = send(&proxy);
        late.head();
        node.requests().len() > 1
    });
    gate.open();
    assert_eq!(early.chunked_body().len(), 6000);
}
