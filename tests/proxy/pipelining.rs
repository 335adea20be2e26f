//! What a client sends is what the proxy reads, in order, once: whatever arrives when, over TLS and without.

use crate::support::{Authority, Client, Origin, PATIENCE, Pair, Proxy, eventually, have};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// A request that a body hides: if it is ever executed, bytes were lost.
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nhost: a\r\nx: 0123456789\r\n\r\n";

/// Answers of a node, given one after another when the test says so.
#[derive(Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    asked: Vec<String>,
    permits: usize,
    is_open: bool,
}

impl Gate {
    /// A node that notes each request with its body, waits for a permit and says the request back.
    fn node(self: &Arc<Gate>) -> Origin {
        let gate = Arc::clone(self);
        Origin::by_connection(move |peer| {
            while let Some(head) = peer.request() {
                let body = peer.body_of(&head);
                let line = head.lines().next().unwrap().trim_end_matches(" HTTP/1.1");
                let request = format!("{line} {}", String::from_utf8_lossy(&body));
                gate.pass(request.clone());
                if head.contains("upgrade: websocket") {
                    peer.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n");
                    while !peer.client.has_ended() {
                        let byte = peer.client.exactly(1);
                        peer.send(byte);
                    }
                    return;
                }
                peer.answer(&request);
            }
        })
    }

    fn pass(&self, request: String) {
        let mut state = self.state.lock().unwrap();
        state.asked.push(request);
        self.changed.notify_all();
        let mut state = self.changed.wait_while(state, |state| state.permits == 0 && !state.is_open).unwrap();
        state.permits = state.permits.saturating_sub(1);
        if state.is_open {
            drop(state);
            // A node that works: requests arrive meanwhile.
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Lets one answer go.
    fn permit(&self) {
        self.state.lock().unwrap().permits += 1;
        self.changed.notify_all();
    }

    /// Lets every answer go.
    fn open(&self) {
        self.state.lock().unwrap().is_open = true;
        self.changed.notify_all();
    }

    fn asked(&self) -> Vec<String> {
        self.state.lock().unwrap().asked.clone()
    }

    /// Waits until the node has seen so many requests.
    fn wait_for(&self, count: usize) {
        eventually("a request at the node", || self.asked().len() >= count);
    }
}

trait Wire: Read + Write {
    /// Ends what this side sends, with what the transport says for it.
    fn end(&mut self);
}

impl Wire for TcpStream {
    fn end(&mut self) {
        let _ = self.shutdown(Shutdown::Write);
    }
}

impl Wire for rustls::StreamOwned<rustls::ClientConnection, TcpStream> {
    fn end(&mut self) {
        self.conn.send_close_notify();
        let _ = self.flush();
        let _ = self.sock.shutdown(Shutdown::Write);
    }
}

/// A proxy of one worker with a listener in the clear and one with TLS.
struct Setting {
    gate: Arc<Gate>,
    _node: Origin,
    proxy: Proxy,
    authority: Authority,
    _pair: Pair,
}

impl Setting {
    fn new() -> Setting {
        let (gate, authority) = (Arc::<Gate>::default(), Authority::new());
        let (node, pair) = (gate.node(), authority.issue("edge", &["a", "localhost"]));
        let proxy = Proxy::start_both(
            &pair,
            &format!(
                "workers: 1\naccess_log: {{ format: \"off\" }}\npools: {{ app: {{ nodes: [{{ id: n0, address: \"{}\" }}] }} }}\nroutes:\n  - {{ name: here, path: /here, respond: {{ status: 204 }} }}\n  - {{ name: site, pool: app }}\n",
                node.address
            ),
        );
        Setting { gate, _node: node, proxy, authority, _pair: pair }
    }

    fn connect(&self, is_tls: bool) -> Box<dyn Wire> {
        if is_tls {
            return Box::new(self.authority.client(None).connect(self.proxy.address, "a").unwrap());
        }
        let stream = TcpStream::connect(self.proxy.address_of("http")).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Box::new(stream)
    }

    /// Returns once the only worker has seen all that was sent before.
    fn settle(&self, other: &mut Client) {
        for _ in 0..2 {
            assert_eq!(other.request("GET /here HTTP/1.1\r\nhost: b\r\n\r\n").status, 204);
        }
    }
}

/// What is sent at once, and how many requests are whole with it.
struct Record {
    bytes: String,
    whole: usize,
}

fn record(bytes: &str, whole: usize) -> Record {
    Record { bytes: bytes.to_owned(), whole }
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n")
}

fn post(path: &str, length: usize, more: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n{more}\r\n")
}

/// Requests cut into records, and what the node is to see of them.
fn scripts() -> Vec<(Vec<Record>, Vec<String>)> {
    let hidden = format!("0123456789{HIDDEN}");
    let length = hidden.len();
    let chunked = "POST /k HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunk = format!("{length:x}\r\n{hidden}\r\n");
    let filler = format!("GET /f HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "f".repeat(5000));
    let node_sees = |paths: &[&str]| paths.iter().map(|path| format!("GET {path} ")).collect::<Vec<_>>();
    vec![
        (
            vec![record(&(get("/a") + &get("/b")), 2), record(&get("/c"), 3), record(&get("/d"), 4)],
            node_sees(&["/a", "/b", "/c", "/d"]),
        ),
        (
            vec![
                record(&(get("/a") + &get("/b")), 2),
                record(&(post("/p", length, "") + "0123456789"), 2),
                record(HIDDEN, 3),
                record(&get("/c"), 4),
            ],
            vec!["GET /a ".to_owned(), "GET /b ".to_owned(), format!("POST /p {hidden}"), "GET /c ".to_owned()],
        ),
        (
            vec![
                record(&get("/a"), 1),
                record(&(get("/b") + "GET /c HTTP/1.1\r\n"), 2),
                record("host: a\r\n", 2),
                record("\r\n", 3),
            ],
            node_sees(&["/a", "/b", "/c"]),
        ),
        (
            vec![
                record(&(get("/a") + chunked), 1),
                record(&chunk[..8], 1),
                record(&chunk[8..], 1),
                record("0\r\n\r\n", 2),
                record(&get("/c"), 3),
            ],
            vec!["GET /a ".to_owned(), format!("POST /k {hidden}"), "GET /c ".to_owned()],
        ),
        // More than one look takes.
        (
            vec![
                record(&(get("/a") + &get("/b")), 2),
                record(&filler[..2048], 2),
                record(&(filler[2048..].to_owned() + &get("/c")), 4),
            ],
            vec!["GET /a ".to_owned(), "GET /b ".to_owned(), "GET /f ".to_owned(), "GET /c ".to_owned()],
        ),
        // The body does not wait for the 100.
        (
            vec![
                record(&(get("/a") + &post("/e", length, "expect: 100-continue\r\n")), 1),
                record(&hidden[..20], 1),
                record(&hidden[20..], 2),
                record(&get("/c"), 3),
            ],
            vec!["GET /a ".to_owned(), format!("POST /e {hidden}"), "GET /c ".to_owned()],
        ),
    ]
}

/// What happens next: the client sends a record, or the node gives an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    Send,
    Answer,
}

/// Every order in which each answer follows its request.
fn orders(records: &[Record], sent: usize, answered: usize, so_far: &mut Vec<Step>, all: &mut Vec<Vec<Step>>) {
    let whole = if sent == 0 { 0 } else { records[sent - 1].whole };
    let count = records.last().unwrap().whole;
    if sent == records.len() && answered == count {
        return all.push(so_far.clone());
    }
    if sent < records.len() {
        so_far.push(Step::Send);
        orders(records, sent + 1, answered, so_far, all);
        so_far.pop();
    }
    if answered < whole {
        so_far.push(Step::Answer);
        orders(records, sent, answered + 1, so_far, all);
        so_far.pop();
    }
}

/// Reads one answer; its body.
fn read_answer(wire: &mut dyn Wire) -> String {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            wire.read_exact(&mut byte).unwrap_or_else(|error| panic!("{error}: {:?}", String::from_utf8_lossy(&head)));
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        if head.starts_with("HTTP/1.1 100 ") {
            continue;
        }
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse().unwrap();
        let mut body = vec![0; length];
        wire.read_exact(&mut body).unwrap();
        return String::from_utf8(body).unwrap();
    }
}

/// Lost bytes showed when two requests came in one record, and a third while the second was being answered.
#[test]
fn every_order_of_records_and_answers_keeps_every_byte() {
    for is_tls in [true, false] {
        let setting = Setting::new();
        let mut other = Client::connect(setting.proxy.address_of("http"));
        let mut seen = 0;
        for (number, (records, expected)) in scripts().into_iter().enumerate() {
            let mut all = Vec::new();
            orders(&records, 0, 0, &mut Vec::new(), &mut all);
            assert!(all.len() > 3, "script {number}");
            for order in all {
                let mut wire = setting.connect(is_tls);
                let (mut sent, mut answered) = (0, 0);
                for step in &order {
                    match step {
                        Step::Send => {
                            wire.write_all(records[sent].bytes.as_bytes()).unwrap();
                            wire.flush().unwrap();
                            setting.settle(&mut other);
                            sent += 1;
                        }
                        Step::Answer => {
                            setting.gate.wait_for(seen + answered + 1);
                            setting.gate.permit();
                            let answer = read_answer(&mut *wire);
                            assert_eq!(answer, expected[answered], "TLS: {is_tls}, script {number}, {order:?}");
                            answered += 1;
                        }
                    }
                }
                seen += answered;
                let asked = setting.gate.asked();
                assert_eq!(asked[seen - answered..], expected, "TLS: {is_tls}, script {number}, {order:?}");
            }
        }
    }
}

/// A client that leaves in the middle: the node sees a beginning of what was sent, and nothing else.
#[test]
fn a_close_in_any_place_makes_no_other_request() {
    for is_tls in [true, false] {
        for (number, (records, expected)) in scripts().into_iter().enumerate() {
            for cut in 1..records.len() {
                let setting = Setting::new();
                setting.gate.open();
                let mut wire = setting.connect(is_tls);
                for record in &records[..cut] {
                    wire.write_all(record.bytes.as_bytes()).unwrap();
                    wire.flush().unwrap();
                }
                wire.end();
                let _ = wire.read_to_end(&mut Vec::new());
                drop(wire);
                let name = if is_tls { "https" } else { "http" };
                let gauge = format!("ringway_connections{{listener=\"{name}\"}}");
                eventually("the end of the connection", || setting.proxy.metric(&gauge) == 0.0);
                let asked = setting.gate.asked();
                // A body that streams may have begun to.
                let is_a_part = |(asked, expected): (&String, &String)| expected.starts_with(asked.as_str());
                let is_a_beginning = asked.len() <= expected.len() && asked.iter().zip(&expected).all(is_a_part);
                assert!(is_a_beginning, "TLS: {is_tls}, script {number}, cut {cut}: {asked:?}");
            }
        }
    }
}

/// What is sent behind an upgrade is the tunnel's, however it is cut and whenever it comes.
#[test]
fn eager_bytes_of_a_tunnel_keep_their_order() {
    let upgrade =
        "GET /t HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: k\r\n\r\n";
    let eager: Vec<u8> = (0..5000).map(|n: u32| b'a' + (n % 23) as u8).collect();
    for (is_tls, is_early) in [(true, true), (true, false), (false, true), (false, false)] {
        for cut in [1, 2047, 2048, 2049, 4999] {
            let setting = Setting::new();
            let mut other = Client::connect(setting.proxy.address_of("http"));
            let mut wire = setting.connect(is_tls);
            let mut send = |wire: &mut dyn Wire, bytes: &[u8]| {
                wire.write_all(bytes).unwrap();
                wire.flush().unwrap();
                setting.settle(&mut other);
            };
            send(&mut *wire, format!("{}{upgrade}", get("/a")).as_bytes());
            setting.gate.wait_for(1);
            if is_early {
                send(&mut *wire, &eager[..cut]);
            }
            setting.gate.permit();
            assert_eq!(read_answer(&mut *wire), "GET /a ");
            setting.gate.wait_for(2);
            if !is_early {
                send(&mut *wire, &eager[..cut]);
            }
            send(&mut *wire, &eager[cut..]);
            setting.gate.permit();
            let mut all = Vec::new();
            while !all.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                wire.read_exact(&mut byte).unwrap();
                all.push(byte[0]);
            }
            assert!(all.starts_with(b"HTTP/1.1 101 "));
            let mut back = vec![0; eager.len()];
            wire.read_exact(&mut back).unwrap();
            assert!(back == eager, "TLS: {is_tls}, early: {is_early}, cut {cut}");
        }
    }
}

/// The look-ahead is for this: a client that leaves while a node works is noticed.
#[test]
fn a_client_that_leaves_is_noticed_while_the_node_works() {
    for is_tls in [true, false] {
        let setting = Setting::new();
        let in_flight = "ringway_node_in_flight{node=\"n0\",pool=\"app\"}";
        let mut wire = setting.connect(is_tls);
        wire.write_all(get("/a").as_bytes()).unwrap();
        wire.flush().unwrap();
        setting.gate.wait_for(1);
        assert_eq!(setting.proxy.metric(in_flight), 1.0);
        wire.end();
        drop(wire);
        eventually("the end of the request", || setting.proxy.metric(in_flight) == 0.0);
        setting.gate.open();
    }
}

/// A node of HTTP/2 that answers before it has the body: what the client sends of it later is no request, and nothing
/// is answered that was not asked.
#[test]
fn the_rest_of_a_body_is_no_request_after_an_early_answer() {
    let (node, other) = (Origin::http2(), Origin::echo());
    let authority = Authority::new();
    let pair = authority.issue("edge", &["a"]);
    for (is_tls, pause) in [(true, 1200), (false, 1200), (true, 0), (false, 0)] {
        let proxy = Proxy::start_both(
            &pair,
            &format!(
                "limits: {{ header_timeout: 1s }}\naccess_log: {{ format: \"off\" }}\npools:\n  two: {{ protocol: http2, nodes: [{{ id: a, address: \"{}\" }}] }}\n  one: {{ nodes: [{{ id: b, address: \"{}\" }}] }}\nroutes:\n  - {{ name: early, path: /early, pool: two }}\n  - {{ name: site, pool: one }}\n",
                node.address, other.address
            ),
        );
        let mut wire: Box<dyn Wire> = match is_tls {
            true => Box::new(authority.client(None).connect(proxy.address, "a").unwrap()),
            false => {
                let stream = TcpStream::connect(proxy.address_of("http")).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                Box::new(stream)
            }
        };
        wire.write_all((post("/early", 200_000, "") + &"x".repeat(70_000)).as_bytes()).unwrap();
        wire.flush().unwrap();
        assert_eq!(read_answer(&mut *wire), "early");
        // Idle connections are parked after a second.
        std::thread::sleep(Duration::from_millis(pause));
        // The proxy may have closed already.
        let _ = wire.write_all(HIDDEN.as_bytes()).and_then(|()| wire.flush());
        let mut rest = Vec::new();
        let _ = wire.read_to_end(&mut rest);
        assert!(rest.is_empty(), "TLS: {is_tls}, {pause} ms: {}", String::from_utf8_lossy(&rest));
        assert_eq!(other.requests(), Vec::<String>::new());
    }
}

/// Sends this many requests with somebody's client over TLS; every answer must be its own request's.
fn ask_with(program: &str, file: &str, count: usize) {
    let setting = Setting::new();
    setting.gate.open();
    let told = Command::new(program)
        .arg(clients().join(file))
        .arg(format!("https://localhost:{}", setting.proxy.address.port()))
        .arg(setting.authority.file())
        .arg(count.to_string())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&told.stdout);
    assert_eq!(said.trim(), format!("answered {count}"), "{}", String::from_utf8_lossy(&told.stderr));
    assert_eq!(setting.gate.asked().len(), count);
}

fn clients() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients"))
}

/// It stopped after 1,992 of 2,000.
#[test]
fn undici_has_all_its_answers() {
    if !have("node", "nodejs") {
        return;
    }
    if !clients().join("node_modules/undici").exists() {
        let required = std::env::var_os("RINGWAY_REQUIRE_TOOLS").is_some();
        assert!(!required, "undici is missing; run `npm ci` in tests/clients");
        eprintln!("skipped: needs undici; run `npm ci` in tests/clients");
        return;
    }
    ask_with("node", "undici.mjs", 2000);
}

#[test]
fn javas_client_has_all_its_answers() {
    if have("java", "openjdk-17-jdk-headless") {
        ask_with("java", "Requests.java", 1000);
    }
}
