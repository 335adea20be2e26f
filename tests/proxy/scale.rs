//! What large bodies and many connections cost in memory.

use crate::support::{Client, Origin, Proxy, eventually};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicU32, Ordering};

const BODY: usize = 200 << 20;
const LIMIT: u64 = 32 << 20;
const BLOCK: usize = 256 << 10;
/// 10,000 where the limit of open files allows it.
const CONNECTIONS: u64 = 10_000;

fn block(seed: usize) -> Vec<u8> {
    (0..BLOCK).map(|n| (n * 31 + seed) as u8).collect()
}

#[test]
fn two_hundred_mebibytes_go_up_in_little_memory() {
    let node = Origin::by_connection(|peer| {
        let Some(head) = peer.request() else { return };
        assert!(head.contains(&format!("content-length: {BODY}")));
        for seed in 0..BODY / BLOCK {
            assert!(peer.client.exactly(BLOCK) == block(seed), "block {seed} differs");
        }
        peer.answer("all there");
    });
    let proxy = Proxy::start(&format!("limits: {{ request_body: 1GiB }}\n{}", Proxy::pool(&[node.address], "")));
    let before = proxy.memory();
    let mut client = proxy.connect();
    client.send(format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {BODY}\r\n\r\n"));
    let mut most = 0;
    for seed in 0..BODY / BLOCK {
        client.send(block(seed));
        most = most.max(proxy.memory());
    }
    assert_eq!(client.answer().text(), "all there");
    assert!(most - before < LIMIT, "{} bytes more", most - before);
}

#[test]
fn two_hundred_mebibytes_come_down_in_little_memory() {
    for framing in ["sized", "chunked"] {
        let node = Origin::by_connection(move |peer| {
            peer.request();
            match framing {
                "sized" => peer.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {BODY}\r\n\r\n")),
                _ => peer.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"),
            }
            for seed in 0..BODY / BLOCK {
                match framing {
                    "sized" => peer.send(block(seed)),
                    _ => peer.send([format!("{BLOCK:x}\r\n").as_bytes(), &block(seed), b"\r\n"].concat()),
                }
            }
            if framing == "chunked" {
                peer.send("0\r\n\r\n");
            }
        });
        let proxy = Proxy::before(&[node.address]);
        let before = proxy.memory();
        let mut client = proxy.connect();
        // HTTP/1.0, so that both framings arrive as plain bytes.
        client.send("GET / HTTP/1.0\r\nhost: a\r\n\r\n");
        client.head();
        let mut most = 0;
        for seed in 0..BODY / BLOCK {
            assert!(client.exactly(BLOCK) == block(seed), "block {seed} differs ({framing})");
            most = most.max(proxy.memory());
        }
        assert!(most - before < LIMIT, "{} bytes more ({framing})", most - before);
    }
}

/// As many connections as this process and the proxy may have.
fn many() -> u64 {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let hard: u64 = line.split_whitespace().nth(4).unwrap().parse().unwrap_or(u64::MAX);
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    CONNECTIONS.min(hard.saturating_sub(500))
}

/// Makes many connections, each made and used by `each`, and waits until each costs the proxy less than `limit` bytes.
fn many_cost_under(
    limit: u64,
    proxy: &Proxy,
    each: impl Fn(&Proxy) -> std::net::TcpStream,
) -> Vec<std::net::TcpStream> {
    let count = many();
    let open = || proxy.metric("ringway_connections{listener=\"http\"}");
    // What the first connections cost once is not theirs.
    drop((0..200).map(|_| each(proxy)).collect::<Vec<_>>());
    eventually("the end of the first connections", || open() == 0.0);
    let before = proxy.memory();
    let streams: Vec<_> = (0..count).map(|_| each(proxy)).collect();
    eventually("all connections", || open() == count as f64);
    // Idle connections give their buffers back after a second.
    let cost = || proxy.memory().saturating_sub(before) / count;
    eventually(&format!("fewer than {limit} bytes each"), || cost() < limit);
    streams
}

#[test]
fn a_silent_connection_costs_under_4_kib() {
    let node = Origin::echo();
    let proxy = Proxy::start(&format!("limits: {{ header_timeout: 1h }}\n{}", Proxy::pool(&[node.address], "")));
    let streams = many_cost_under(4096, &proxy, |proxy| Client::connect(proxy.address).stream);
    drop(streams);
    assert_eq!(proxy.get("/").status, 200);
}

#[test]
fn an_idle_connection_costs_under_24_kib() {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let proxy = Proxy::start("routes: [{ name: r, respond: { body: ok } }]\n");
    let streams = many_cost_under(24 << 10, &proxy, |proxy| {
        let mut stream = Client::connect(proxy.address).stream;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        stream.write_all(format!("GET /{number} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\nok") {
            let mut buffer = [0; 1024];
            let length = stream.read(&mut buffer).unwrap();
            assert!(length > 0);
            answer.extend_from_slice(&buffer[..length]);
        }
        stream
    });
    drop(streams);
}

/// Fewer places than sockets to accept from: every connection still gets its turn.
#[test]
fn a_limit_of_one_connection_serves_one_after_the_other() {
    let proxy = Proxy::start("workers: 4\nlimits: { connections: 1 }\nroutes: [{ name: r, respond: { body: ok } }]\n");
    for _ in 0..20 {
        assert_eq!(proxy.get("/").status, 200);
    }
}

/// The descriptors that each worker's poll of the kernel watches, by `/proc`. A poll has several descriptors, which show
/// the same.
#[cfg(target_os = "linux")]
fn watched(proxy: &Proxy) -> Vec<BTreeSet<String>> {
    let files = std::fs::read_dir(format!("/proc/{}/fdinfo", proxy.pid())).unwrap();
    let polls = files.flatten().filter_map(|file| {
        let text = std::fs::read_to_string(file.path()).ok()?;
        let watched = text.lines().filter(|line| line.starts_with("tfd:")).map(str::to_owned);
        Some(watched.collect::<BTreeSet<_>>()).filter(|watched| !watched.is_empty())
    });
    polls.collect::<BTreeSet<_>>().into_iter().collect()
}

/// Returns how many descriptors each poll watches that it did not watch before, the most first.
#[cfg(target_os = "linux")]
fn watched_since(before: &[BTreeSet<String>], proxy: &Proxy) -> Vec<usize> {
    let old: BTreeSet<&String> = before.iter().flatten().collect();
    let now = watched(proxy);
    let mut counts: Vec<usize> =
        now.iter().map(|watched| watched.iter().filter(|line| !old.contains(line)).count()).collect();
    counts.sort_unstable_by(|a, b| b.cmp(a));
    counts
}

#[test]
#[cfg(target_os = "linux")]
fn few_long_connections_spread_evenly_over_the_workers() {
    let proxy = Proxy::start("workers: 2\nroutes: [{ name: r, respond: { body: ok } }]\n");
    assert_eq!(proxy.get("/").status, 200);
    let idle = || proxy.metric("ringway_connections{listener=\"http\"}") == 0.0;
    eventually("the end of the first connection", idle);
    let before = watched(&proxy);
    let mut clients: Vec<Client> = Vec::new();
    for count in 1..=8_usize {
        let mut client = proxy.connect();
        assert_eq!(client.request("GET / HTTP/1.1\r\nhost: a\r\n\r\n").status, 200);
        clients.push(client);
        let expected = [count.div_ceil(2), count / 2];
        let spread = || watched_since(&before, &proxy)[..2] == expected;
        eventually(&format!("{count} connections on two workers: {expected:?}"), spread);
    }
}
