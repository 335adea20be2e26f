//! The pass-through path alone: one client, one connection, one node, the real program between
//! them. What is measured is the whole round trip; `direct` is the same without the proxy.
//! Run with `cargo bench --bench pass_through`.

use divan::Bencher;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

fn main() {
    divan::main();
}

/// A node that answers every head with 1 KiB.
fn node() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("a bound socket has an address");
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || answer_all(stream));
        }
    });
    address
}

fn answer_all(mut stream: TcpStream) {
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 1024\r\n\r\n{}", "x".repeat(1024));
    let mut buffer = [0; 4096];
    // One head a read, for the other side waits for its answer.
    while matches!(stream.read(&mut buffer), Ok(1..)) {
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// The proxy before one node; ended when dropped.
struct Proxy {
    child: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Proxy {
    fn start(node: SocketAddr) -> Proxy {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("bench.yaml");
        let text = format!(
            "workers: 1
listeners: [{{ name: http, address: \"127.0.0.1:0\" }}]
admin: {{ address: \"127.0.0.1:0\" }}
access_log: {{ format: \"off\" }}
pools: {{ app: {{ nodes: [{{ id: a, address: \"{node}\" }}] }} }}
routes: [{{ name: site, pool: app, hash_on: [uri] }}]
"
        );
        std::fs::write(&file, text).expect("the configuration can be written");
        let mut child = Command::new(env!("CARGO_BIN_EXE_ringway"))
            .args(["run", "--config"])
            .arg(&file)
            .stderr(Stdio::piped())
            .spawn()
            .expect("the proxy starts");
        let log = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let mut lines = log.lines().map_while(Result::ok);
        let address = lines
            .find_map(|line| line.split("address=").nth(1)?.split(' ').next()?.parse().ok())
            .expect("the proxy says where it listens");
        std::thread::spawn(move || lines.for_each(drop));
        Proxy { child, address, _folder: folder }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn round_trips(bencher: Bencher<'_, '_>, address: SocketAddr) {
    let mut stream = TcpStream::connect(address).expect("somebody listens");
    stream.set_nodelay(true).expect("a TCP socket");
    let mut buffer = vec![0; 8192];
    bencher.bench_local(|| {
        stream.write_all(b"GET /a HTTP/1.1\r\nhost: example.com\r\n\r\n").expect("the request goes out");
        let mut received = 0;
        while !buffer[..received].ends_with(&[b'x'; 1024]) {
            let length = stream.read(&mut buffer[received..]).expect("the answer comes");
            assert!(length > 0, "the connection ended");
            received += length;
        }
    });
}

#[divan::bench]
fn direct(bencher: Bencher<'_, '_>) {
    round_trips(bencher, node());
}

#[divan::bench]
fn through_the_proxy(bencher: Bencher<'_, '_>) {
    let proxy = Proxy::start(node());
    round_trips(bencher, proxy.address);
}
