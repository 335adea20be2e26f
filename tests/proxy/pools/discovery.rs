//! Nodes that a name server tells of, by a name server that is a script.

use crate::support::{Origin, Proxy, eventually};
use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

const A: u16 = 1;
const AAAA: u16 = 28;
const SRV: u16 = 33;

/// What a question is answered with.
#[derive(Clone)]
enum Record {
    A(Ipv4Addr),
    Aaaa(Ipv6Addr),
    /// Priority, weight, port, target.
    Srv(u16, u16, u16, &'static str),
}

impl Record {
    fn kind(&self) -> u16 {
        match self {
            Record::A(_) => A,
            Record::Aaaa(_) => AAAA,
            Record::Srv(..) => SRV,
        }
    }

    fn data(&self) -> Vec<u8> {
        match self {
            Record::A(address) => address.octets().to_vec(),
            Record::Aaaa(address) => address.octets().to_vec(),
            Record::Srv(priority, weight, port, target) => {
                let mut data = [priority, weight, port].map(|number| number.to_be_bytes()).concat();
                data.extend(name(target));
                data
            }
        }
    }
}

fn name(text: &str) -> Vec<u8> {
    let labels = text.split('.').flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat());
    labels.chain([0]).collect()
}

/// What the server does with a question.
#[derive(Clone)]
enum Says {
    Records(Vec<Record>),
    /// SERVFAIL, or no answer, for the kinds of which there are none.
    Only(Vec<Record>, bool),
    /// SERVFAIL.
    Fails,
    /// NXDOMAIN.
    Unknown,
    Nothing,
}

struct NameServer {
    address: SocketAddr,
    names: Arc<Mutex<HashMap<String, Says>>>,
    asked: Arc<AtomicUsize>,
}

impl NameServer {
    fn start() -> NameServer {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let names: Arc<Mutex<HashMap<String, Says>>> = Arc::default();
        let asked: Arc<AtomicUsize> = Arc::default();
        let server = NameServer { address, names: Arc::clone(&names), asked: Arc::clone(&asked) };
        std::thread::spawn(move || {
            let mut buffer = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                asked.fetch_add(1, Ordering::SeqCst);
                if let Some(answer) = answer(&buffer[..length], &names.lock().unwrap()) {
                    socket.send_to(&answer, from).unwrap();
                }
            }
        });
        server
    }

    fn says(&self, name: &str, says: Says) {
        self.names.lock().unwrap().insert(name.to_owned(), says);
    }

    fn addresses(&self, name: &str, addresses: &[Ipv4Addr]) {
        self.says(name, Says::Records(addresses.iter().copied().map(Record::A).collect()));
    }

    /// Waits until it was asked anew, and what came of it is in force.
    fn settle(&self) {
        let before = self.asked.load(Ordering::SeqCst);
        eventually("more questions", || self.asked.load(Ordering::SeqCst) >= before + 4);
    }
}

fn answer(question: &[u8], names: &HashMap<String, Says>) -> Option<Vec<u8>> {
    let (mut at, mut labels) = (12, Vec::new());
    while question[at] != 0 {
        let length = usize::from(question[at]);
        labels.push(String::from_utf8_lossy(&question[at + 1..at + 1 + length]).to_ascii_lowercase());
        at += 1 + length;
    }
    let kind = u16::from_be_bytes([question[at + 1], question[at + 2]]);
    let asked = &question[12..at + 5];
    let (code, records) = match names.get(&labels.join(".")) {
        Some(Says::Records(records)) => (0, records.iter().filter(|record| record.kind() == kind).cloned().collect()),
        Some(Says::Only(records, is_silent)) => {
            let found: Vec<Record> = records.iter().filter(|record| record.kind() == kind).cloned().collect();
            match found.is_empty() {
                true if *is_silent => return None,
                true => (2, found),
                false => (0, found),
            }
        }
        Some(Says::Fails) => (2, Vec::new()),
        Some(Says::Nothing) => return None,
        Some(Says::Unknown) | None => (3, Vec::new()),
    };
    let mut answer = question[..2].to_vec();
    answer.extend([0x81, 0x80 | code, 0, 1, 0, records.len() as u8, 0, 0, 0, 0]);
    answer.extend(asked);
    for record in records {
        let data = record.data();
        answer.extend([0xc0, 12]);
        answer.extend(record.kind().to_be_bytes());
        answer.extend([0, 1, 0, 0, 0, 0]);
        answer.extend((data.len() as u16).to_be_bytes());
        answer.extend(data);
    }
    Some(answer)
}

fn pool(server: &NameServer, dns: &str, more: &str) -> String {
    format!(
        "pools:\n  app:\n    discovery: {{ dns: \"{dns}\", server: \"{}\", refresh: 100ms, timeout: 300ms }}\n{more}routes:\n  - {{ name: site, path_prefix: /, pool: app, hash_on: [uri] }}\n",
        server.address
    )
}

fn ids(proxy: &Proxy) -> Vec<String> {
    let pools = proxy.admin_get("/api/pools").json();
    pools[0]["nodes"].as_array().unwrap().iter().map(|node| node["id"].as_str().unwrap().to_owned()).collect()
}

const fn local(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 0, last)
}

#[test]
fn nodes_come_and_go_as_the_name_server_says() {
    let node = Origin::named("n");
    let port = node.address.port();
    let server = NameServer::start();
    server.addresses("app.test", &[local(1)]);
    let proxy = Proxy::start(&pool(&server, &format!("app.test:{port}"), ""));
    let one = format!("127.0.0.1:{port}");
    assert_eq!(ids(&proxy), [one.as_str()], "known before the first request");
    assert_eq!(proxy.get("/").status, 200);
    let warm = node.asked();

    server.addresses("app.test", &[local(2), local(1)]);
    eventually("the other node", || ids(&proxy).len() == 2);
    assert_eq!(ids(&proxy), [one.clone(), format!("127.0.0.2:{port}")], "in the order of the addresses");
    assert_eq!(proxy.metric("ringway_config_reloads_total{result=\"success\"}"), 0.0, "no reload of the file");
    // Only the first one listens: the other's keys move on, and nobody sees it.
    assert!((0..20).all(|number| proxy.get(&format!("/{number}")).status == 200));
    assert!(node.asked() > warm);

    server.addresses("app.test", &[local(1)]);
    eventually("it to go", || ids(&proxy) == [one.as_str()]);
    eventually("its series to go", || !proxy.admin_get("/metrics").text().contains("127.0.0.2"));
}

/// Whatever is wrong with the answer, the last nodes stay, and it is said why.
#[test]
fn an_answer_that_fails_or_is_empty_takes_nobody_away() {
    let node = Origin::named("n");
    let port = node.address.port();
    let server = NameServer::start();
    server.addresses("app.test", &[local(1)]);
    let proxy = Proxy::start(&pool(&server, &format!("app.test:{port}"), ""));
    let discovery = || proxy.admin_get("/api/pools").json()[0]["discovery"].clone();
    assert_eq!(discovery()["success"], true);
    for says in [Says::Fails, Says::Unknown, Says::Records(Vec::new()), Says::Nothing] {
        server.says("app.test", says);
        eventually("the failure to be told", || discovery()["success"] == false);
        assert!(!discovery()["error"].as_str().unwrap().is_empty());
        assert_eq!((ids(&proxy).len(), proxy.get("/").status), (1, 200));
        server.addresses("app.test", &[local(1)]);
        eventually("it to be well again", || discovery()["success"] == true);
    }
    proxy.logs("the last ones stay");
}

/// A name server that is out of order when the proxy starts: it serves what it can, and goes on asking.
#[test]
fn a_start_without_a_name_server() {
    let node = Origin::named("n");
    let server = NameServer::start();
    server.says("app.test", Says::Nothing);
    let proxy = Proxy::start(&pool(&server, &format!("app.test:{}", node.address.port()), ""));
    assert_eq!((proxy.get("/").status, proxy.admin_get("/readyz").status), (503, 503));
    server.addresses("app.test", &[local(1)]);
    eventually("an answer", || proxy.get("/").status == 200);
}

/// Addresses of both families; the file's own nodes beside them; states set by hand hold.
#[test]
fn both_families_beside_the_files_own() {
    let (node, own) = (Origin::named("n"), Origin::named("own"));
    let port = node.address.port();
    let server = NameServer::start();
    let both = [Record::A(local(1)), Record::Aaaa(Ipv6Addr::LOCALHOST)];
    server.says("app.test", Says::Records(both.to_vec()));
    let more = format!("    nodes:\n      - {{ id: own, address: \"{}\" }}\n", own.address);
    let proxy = Proxy::start(&pool(&server, &format!("app.test:{port}"), &more));
    let found = format!("127.0.0.1:{port}");
    assert_eq!(ids(&proxy), ["own".to_owned(), found.clone(), format!("[::1]:{port}")]);
    assert_eq!(proxy.admin_post(&format!("/api/pools/app/nodes/{found}/drain"), "").status, 200);
    server.says("app.test", Says::Records(both[..1].to_vec()));
    eventually("one to go", || ids(&proxy).len() == 2);
    assert_eq!(proxy.node(&found)["state"], "drain");
    assert!((0..20).all(|number| proxy.get(&format!("/{number}")).text() == "own"));
    // A reload of the file keeps what was found.
    let text = pool(&server, &format!("app.test:{port}"), &more);
    proxy.reconfigure(&text.replace("hash_on: [uri]", "hash_on: [path]"));
    assert_eq!(ids(&proxy).len(), 2);
    server.settle();
    assert_eq!(proxy.node(&found)["state"], "drain");
}

/// Where one family cannot be asked for, the other one is enough, and the first one's last nodes stay.
#[test]
fn one_family_is_enough() {
    let node = Origin::named("n");
    let port = node.address.port();
    for is_silent in [false, true] {
        let server = NameServer::start();
        server.says("app.test", Says::Only(vec![Record::A(local(1))], is_silent));
        let proxy = Proxy::start(&pool(&server, &format!("app.test:{port}"), ""));
        eventually("an answer", || proxy.get("/").text() == "n");
        let both = vec![Record::A(local(1)), Record::Aaaa(Ipv6Addr::LOCALHOST)];
        server.says("app.test", Says::Records(both));
        eventually("the other family", || ids(&proxy).len() == 2);
        server.says("app.test", Says::Only(vec![Record::A(local(1))], is_silent));
        server.settle();
        server.settle();
        assert_eq!(ids(&proxy).len(), 2, "what is not known takes no node away");
    }
    let server = NameServer::start();
    let both = vec![Record::A(local(1)), Record::Aaaa(Ipv6Addr::LOCALHOST)];
    server.says("app.test", Says::Records(both));
    for (family, expected) in [("ipv4", format!("127.0.0.1:{port}")), ("ipv6", format!("[::1]:{port}"))] {
        let text =
            pool(&server, &format!("app.test:{port}"), "").replace("refresh:", &format!("family: {family}, refresh:"));
        assert_eq!(ids(&Proxy::start(&text)), [expected]);
    }
}

/// A name of the file that cannot be resolved takes its own node away, and neither the start nor a reload.
#[test]
fn a_name_that_cannot_be_resolved_is_a_node_that_is_down() {
    let node = Origin::named("n");
    let text = format!(
        "pools:\n  app:\n    nodes:\n      - {{ id: n0, address: \"nowhere.invalid:80\" }}\n      - {{ id: n1, address: \"{}\" }}\nroutes:\n  - {{ name: site, path_prefix: /, pool: app, hash_on: [uri] }}\n",
        node.address
    );
    let proxy = Proxy::start(&text);
    let is_down = || {
        let status = proxy.node("n0");
        assert_eq!((status["healthy"].as_bool(), status["address"].as_str()), (Some(false), None));
        assert!(status["unresolved"].as_str().is_some_and(|cause| !cause.is_empty()), "{status}");
        assert!((0..20).all(|number| proxy.get(&format!("/{number}")).text() == "n"));
        assert_eq!(proxy.metric("ringway_node_healthy{node=\"n0\",pool=\"app\"}"), 0.0);
    };
    is_down();
    proxy.logs("cannot be resolved");
    proxy.reconfigure(&text.replace("[uri]", "[path]"));
    is_down();
    proxy.reconfigure(&text.replace("nowhere.invalid:80", &format!("localhost:{}", node.address.port())));
    assert_eq!(proxy.node("n0")["healthy"].as_bool(), Some(true));
}

/// SRV: ports, weights and the lowest priority.
#[test]
fn services_have_ports_and_weights() {
    let nodes = Origin::several(3);
    let server = NameServer::start();
    let port = |node: usize| nodes[node].address.port();
    server.says(
        "_http._tcp.app.test",
        Says::Records(vec![
            Record::Srv(1, 30, port(0), "a.app.test"),
            Record::Srv(1, 60, port(1), "b.app.test"),
            Record::Srv(2, 60, port(2), "a.app.test"),
        ]),
    );
    server.addresses("a.app.test", &[local(1)]);
    server.addresses("b.app.test", &[local(1)]);
    let proxy = Proxy::start(&pool(&server, "_http._tcp.app.test", ""));
    let weight = |node: usize| proxy.node(&format!("127.0.0.1:{}", port(node)))["weight"].clone();
    assert_eq!((weight(0), weight(1), ids(&proxy).len()), (30.into(), 60.into(), 2));
    let share = proxy.node(&format!("127.0.0.1:{}", port(1)))["share"].as_f64().unwrap();
    assert!((0.5..0.8).contains(&share), "{share}");
    // A target that cannot be resolved makes no half an answer.
    server.says("b.app.test", Says::Fails);
    server.settle();
    assert_eq!(ids(&proxy).len(), 2);
}

/// To ask in another way is no reason to forget what was found; to ask for what is not there is an error.
#[test]
fn a_reload_takes_no_nodes_away_that_nobody_took_away() {
    let node = Origin::named("n");
    let server = NameServer::start();
    let dns = format!("app.test:{}", node.address.port());
    server.addresses("app.test", &[local(1)]);
    let proxy = Proxy::start(&pool(&server, &dns, ""));
    server.says("app.test", Says::Fails);
    proxy.reconfigure(&pool(&server, &dns, "").replace("refresh: 100ms", "refresh: 150ms"));
    assert_eq!((ids(&proxy).len(), proxy.get("/").status), (1, 200));

    let other = pool(&server, &dns.replace("app.test", "other.test"), "");
    std::fs::write(
        proxy.folder().join("ringway.yaml"),
        format!(
            "listeners: [{{ name: http, address: \"127.0.0.1:0\" }}]\nadmin: {{ address: \"127.0.0.1:0\" }}\n{other}"
        ),
    )
    .unwrap();
    let refused = proxy.admin_post("/api/reload", "");
    assert_eq!(refused.status, 422);
    assert!(refused.text().contains("tells of no node for the pool `app`"), "{refused:?}");
    assert_eq!((ids(&proxy).len(), proxy.get("/").status), (1, 200));
}

/// Who leaves or joins changes nobody else's keys: the weights of services are taken as they are.
#[test]
fn services_that_come_and_go_move_nobody_elses_keys() {
    let nodes = Origin::several(3);
    let record = |node: usize, weight: u16| Record::Srv(1, weight, nodes[node].address.port(), "a.app.test");
    // Whether the weights were the same before, and however large the newcomer's is.
    for weights in [[10, 20, 15], [10, 10, 20], [5, 5, 2000]] {
        let server = NameServer::start();
        server.addresses("a.app.test", &[local(1)]);
        server.says("_http._tcp.app.test", Says::Records(vec![record(0, weights[0]), record(1, weights[1])]));
        let proxy = Proxy::start(&pool(&server, "_http._tcp.app.test", ""));
        let homes = || (0..200).map(|key| proxy.get(&format!("/{key}")).text()).collect::<Vec<_>>();
        let before = homes();
        let all = (0..3).map(|node| record(node, weights[node])).collect();
        server.says("_http._tcp.app.test", Says::Records(all));
        eventually("the third one", || ids(&proxy).len() == 3);
        let after = homes();
        let moved: Vec<_> = before.iter().zip(&after).filter(|(before, after)| before != after).collect();
        assert!(!moved.is_empty() && moved.iter().all(|(_, after)| *after == "n2"), "{weights:?}: {moved:?}");
    }
}

/// What an operator has said of a node holds although one answer does not tell of it.
#[test]
fn a_node_that_was_drained_stays_so_when_it_comes_back() {
    let node = Origin::named("n");
    let port = node.address.port();
    let server = NameServer::start();
    server.addresses("app.test", &[local(1), local(2)]);
    let proxy = Proxy::start(&pool(&server, &format!("app.test:{port}"), ""));
    let drained = format!("127.0.0.2:{port}");
    assert_eq!(proxy.admin_post(&format!("/api/pools/app/nodes/{drained}/drain"), "").status, 200);
    server.addresses("app.test", &[local(1)]);
    eventually("it to go", || ids(&proxy).len() == 1);
    server.addresses("app.test", &[local(1), local(2)]);
    eventually("it to come back", || ids(&proxy).len() == 2);
    assert_eq!(proxy.node(&drained)["state"], "drain");
    // A pool that asks for nothing any more forgets it.
    proxy.reconfigure(&Proxy::pool(&[node.address], ""));
    proxy.reconfigure(&pool(&server, &format!("app.test:{port}"), ""));
    assert_eq!(proxy.node(&drained)["state"], "up");
}
