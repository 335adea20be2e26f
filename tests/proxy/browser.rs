//! A browser: WebSockets from Chromium, over HTTP/1.1 in the clear and over a stream of HTTP/2.

use crate::support::{Authority, Barrier, Origin, Peer, Proxy, eventually, have};
use base64::Engine as _;
use sha1::{Digest, Sha1};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// What a browser shows when the socket has said what it should, or why not. It is not loaded before its picture
/// is, and that waits for the socket.
const PAGE: &str = "<!doctype html><title>socket</title><p id=told>nothing yet</p><img src=/held><script>
const told = text => document.getElementById('told').textContent = text;
const socket = new WebSocket(location.href.replace(/^http/, 'ws') + 'socket');
socket.onopen = () => socket.send('over the edge');
socket.onmessage = event => { told('echo: ' + event.data); fetch('/done'); };
socket.onerror = () => told('an error');
</script>";

/// Serves the page, and echoes what a socket says first (RFC 6455).
fn site() -> Origin {
    let answered = Mutex::new(Barrier::default());
    Origin::by_connection(move |peer| {
        while let Some(head) = peer.request() {
            match head.split(' ').nth(1).unwrap_or_default() {
                "/socket" => return echo(peer, &head),
                "/done" => {
                    answered.lock().unwrap().open();
                    peer.reply(204, "", "");
                }
                "/held" => {
                    let waiting = answered.lock().unwrap().clone();
                    waiting.wait();
                    peer.reply(404, "", "");
                }
                "/" => {
                    *answered.lock().unwrap() = Barrier::default();
                    peer.reply(200, "content-type: text/html", PAGE);
                }
                _ => peer.reply(404, "", ""),
            }
        }
    })
}

fn echo(peer: &mut Peer, head: &str) {
    let key = head
        .lines()
        .filter_map(|line| line.split_once(": "))
        .find(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-key"));
    let proof = Sha1::digest(format!("{}258EAFA5-E914-47DA-95CA-C5AB0DC85B11", key.unwrap().1));
    let accept = base64::engine::general_purpose::STANDARD.encode(proof);
    peer.send(format!(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: {accept}\r\n\r\n"
    ));
    let start = peer.client.exactly(2);
    let length = usize::from(start[1] & 0x7f);
    let mask = peer.client.exactly(4);
    let masked = peer.client.exactly(length);
    let text: Vec<u8> = masked.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
    peer.send([&[0x81, length as u8], &text[..]].concat());
    peer.client.has_ended();
}

/// What the page shows in the end.
fn shown(url: &str) -> String {
    let profile = tempfile::tempdir().unwrap();
    let mut child = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--ignore-certificate-errors", "--timeout=15000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(url)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            let _ = child.kill();
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    String::from_utf8_lossy(&child.wait_with_output().unwrap().stdout).into_owned()
}

#[test]
fn websockets_open_over_both_versions() {
    if !have("chromium", "chromium") {
        return;
    }
    let (authority, node) = (Authority::new(), site());
    let pair = authority.issue("edge", &["localhost"]);
    let proxy = Proxy::start_both(&pair, &Proxy::pool(&[node.address], ""));
    let clear = proxy.address_of("http");
    let urls = [
        (format!("http://localhost:{}/", clear.port()), "HTTP/1.1"),
        (format!("https://localhost:{}/", proxy.address.port()), "HTTP/2.0"),
    ];
    for (url, version) in urls {
        let page = shown(&url);
        assert!(page.contains("echo: over the edge"), "{url}: {page}");
        // A tunnel is logged when it has ended.
        eventually(&format!("a line about the socket over {version}"), || {
            proxy.output().lines().any(|line| line.contains("/socket") && line.contains(version))
        });
    }
}
