//! The crash harness: clients that repeat each request until they know how it ended, a node that
//! counts, and a proxy that is killed at random moments.
//!
//! `RINGWAY_KILLS=200 cargo test --release --test proxy crash -- --nocapture` runs it for longer.

use super::*;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const CLIENTS: usize = 8;

/// An answer without what says that it is a repetition.
type Seen = (u16, String, Vec<u8>);

/// What a client learnt of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Known {
    Answer(Seen),
    Unknown,
}

/// One try: the answer if it came whole.
fn attempt(address: SocketAddr, key: &str) -> Option<Seen> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
    let text =
        request("POST", "/pay", &format!("connection: close\r\nauthorization: x\r\nidempotency-key: {key}\r\n"), key);
    stream.write_all(text.as_bytes()).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = String::from_utf8(answer[..end].to_vec()).ok()?;
    let body = answer[end + 4..].to_vec();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok())?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let head = head.lines().filter(|line| !line.starts_with("idempotent-replayed")).collect::<Vec<_>>().join("\n");
    (body.len() == length).then_some((status, head, body))
}

/// Repeats a request until it is known how it ended.
fn insist(address: &Mutex<SocketAddr>, key: &str) -> Known {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        assert!(Instant::now() < deadline, "{key} is stuck");
        let now = *address.lock().unwrap();
        match attempt(now, key) {
            Some((409, _, body)) if String::from_utf8_lossy(&body).contains("outcome-unknown") => {
                return Known::Unknown;
            }
            Some(answer @ (200..=299, _, _)) => return Known::Answer(answer),
            // It runs, or the proxy is gone or not yet there.
            Some((409 | 503, _, _)) | None => std::thread::sleep(Duration::from_millis(2)),
            Some(other) => panic!("{key}: {other:?}"),
        }
    }
}

#[test]
fn no_kill_makes_a_request_run_twice_or_changes_an_answer() {
    let kills: usize = std::env::var("RINGWAY_KILLS").map_or(20, |kills| kills.parse().unwrap());
    // What the node ran, and what it answered.
    let runs: Arc<Mutex<HashMap<String, Vec<String>>>> = Arc::default();
    let counted = Arc::clone(&runs);
    let origin = Origin::start(move |ask, peer| {
        let key = ask.field("idempotency-key").unwrap().to_owned();
        let charge = format!("{:016x}", fastrand::u64(..));
        counted.lock().unwrap().entry(key).or_default().push(charge.clone());
        // A node takes its time, so that there is a moment to be killed in.
        std::thread::sleep(Duration::from_micros(fastrand::u64(..4000)));
        peer.reply(201, &format!("x-charge: {charge}"), &charge);
    });
    let folder = tempfile::tempdir().unwrap();
    let store = format!("idempotency_store: {{ path: {}/s.db }}\n", folder.path().display());
    let text = format!("{store}{}", configuration(&[origin.address], "", "timeouts: { first_byte: 10s }"));

    let mut proxy = Proxy::start(&text);
    let address = Arc::new(Mutex::new(proxy.address));
    let (over, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (address, over, asked) = (Arc::clone(&address), Arc::clone(&over), Arc::clone(&asked));
            std::thread::spawn(move || {
                let mut known = Vec::new();
                while !over.load(Ordering::SeqCst) {
                    let key = format!("key-{client}-{}", known.len());
                    asked.fetch_add(1, Ordering::SeqCst);
                    known.push((key.clone(), insist(&address, &key)));
                }
                known
            })
        })
        .collect();
    for _ in 0..kills {
        let before = asked.load(Ordering::SeqCst);
        let wanted = before + fastrand::u64(1..150);
        while asked.load(Ordering::SeqCst) < wanted {
            std::thread::sleep(Duration::from_micros(200));
        }
        std::thread::sleep(Duration::from_micros(fastrand::u64(..3000)));
        // SIGKILL.
        drop(proxy);
        proxy = Proxy::start(&text);
        *address.lock().unwrap() = proxy.address;
    }
    over.store(true, Ordering::SeqCst);
    let known: Vec<(String, Known)> = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();

    let runs = runs.lock().unwrap().clone();
    let twice: Vec<_> = runs.iter().filter(|(_, charges)| charges.len() > 1).collect();
    assert!(twice.is_empty(), "ran twice: {twice:?}");
    for (key, known) in &known {
        assert_eq!(&insist(&address, key), known, "{key}: what was said once is said for ever");
        if let Known::Answer((_, _, body)) = known {
            let charge = runs.get(key).unwrap_or_else(|| panic!("{key}: an answer without a run"));
            assert_eq!(charge[0].as_bytes(), body, "{key}: the answer of another request");
        }
    }
    let unknown = known.iter().filter(|(_, known)| *known == Known::Unknown).count();
    assert!(unknown > 0 || kills < 20, "no kill met a run: this proves nothing");
    println!("{kills} kills, {} keys, {} runs, {unknown} unknown", known.len(), runs.len());
}
