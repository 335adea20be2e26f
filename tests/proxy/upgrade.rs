//! A new binary takes over while clients come, stay and wait: nobody notices.

use crate::support::http2::Http2;
use crate::support::{Barrier, Origin, Proxy, eventually};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const BINARY: &str = env!("CARGO_BIN_EXE_ringway");

/// A place where the program stands, and may be replaced.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let place = Place { folder: tempfile::tempdir().unwrap() };
        place.put_the_real_one();
        place
    }

    fn program(&self) -> PathBuf {
        self.folder.path().join("ringway")
    }

    fn new_one(&self) -> PathBuf {
        self.folder.path().join("new")
    }

    fn put_the_real_one(&self) {
        symlink(BINARY, self.new_one()).unwrap();
        std::fs::rename(self.new_one(), self.program()).unwrap();
    }

    fn put_a_script(&self, text: &str, mode: u32) {
        std::fs::write(self.new_one(), text).unwrap();
        std::fs::set_permissions(self.new_one(), std::fs::Permissions::from_mode(mode)).unwrap();
        std::fs::rename(self.new_one(), self.program()).unwrap();
    }
}

fn text(nodes: &[std::net::SocketAddr], more: &str) -> String {
    format!(
        "listeners: [{{ name: http, address: \"127.0.0.1:0\" }}]\nadmin: {{ address: \"127.0.0.1:0\" }}\naccess_log: {{ format: \"off\" }}\n{more}{}",
        Proxy::pool(nodes, "")
    )
}

fn failures(proxy: &Proxy) -> f64 {
    proxy.metric("ringway_upgrades_total{result=\"failure\"}")
}

#[test]
fn a_new_binary_takes_over_and_nobody_notices() {
    let node = Origin::echo();
    let mut proxy = Proxy::start_whole(&text(&[node.address], "workers: 2\n"));
    let (address, stop) = (proxy.address, Arc::new(AtomicBool::new(false)));
    let asked: Arc<AtomicUsize> = Arc::default();
    // One that comes anew each time, one that stays as long as it may, one that speaks HTTP/2.
    let load: Vec<_> = (0..3)
        .map(|kind| {
            let (stop, asked) = (Arc::clone(&stop), Arc::clone(&asked));
            std::thread::spawn(move || {
                let mut kept = None;
                while !stop.load(Ordering::SeqCst) {
                    if kind == 2 {
                        let client = Http2::connect(address);
                        (0..20).for_each(|_| {
                            // A connection that was told to end takes no more; what it has taken it answers.
                            if let Ok(answer) = client.ask("GET", "/two", "", "") {
                                assert_eq!(answer.status, 200);
                            }
                        });
                        continue;
                    }
                    let mut client = kept.take().unwrap_or_else(|| crate::support::Client::connect(address));
                    let close = if kind == 0 { "connection: close\r\n" } else { "" };
                    let answer = client.request(format!("GET /{kind} HTTP/1.1\r\nhost: a\r\n{close}\r\n"));
                    assert_eq!(answer.status, 200);
                    asked.fetch_add(1, Ordering::SeqCst);
                    if kind == 1 && answer.field("connection").is_none() {
                        kept = Some(client);
                    }
                }
            })
        })
        .collect();
    let mut upgrades = 0.0;
    for _ in 0..4 {
        let before = asked.load(Ordering::SeqCst);
        proxy.upgrade();
        eventually("requests after it", || asked.load(Ordering::SeqCst) > before + 20);
        upgrades += 1.0;
        // The process that is scraped now has counted it.
        assert_eq!(proxy.metric("ringway_upgrades_total{result=\"success\"}"), upgrades);
    }
    stop.store(true, Ordering::SeqCst);
    for client in load {
        client.join().expect("no request failed");
    }
    eventually("all four are told", || proxy.log().matches("the new binary serves").count() == 4);
}

#[test]
fn a_request_in_flight_ends_where_it_began() {
    let barrier = Barrier::default();
    let held = barrier.clone();
    let node = Origin::by_connection(move |peer| {
        while let Some(head) = peer.request() {
            if head.contains("/slow") {
                held.wait();
            }
            peer.answer("done");
        }
    });
    let mut proxy = Proxy::start_whole(&text(&[node.address], ""));
    let old = proxy.pid();
    let mut waiting = proxy.connect();
    waiting.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("the request to be with the node", || !node.requests().is_empty());
    proxy.signal("USR2");
    proxy.wait_for_successor(old);
    assert_eq!(proxy.get("/").text(), "done");
    assert!(!proxy.process_ended(old), "it has a request to answer");
    barrier.open();
    let answer = waiting.answer();
    assert_eq!((answer.text().as_str(), answer.field("connection").as_deref()), ("done", Some("close")));
    eventually("the end of the old process", || proxy.process_ended(old));
}

#[test]
fn a_binary_that_does_not_start_changes_nothing() {
    let node = Origin::echo();
    let place = Place::new();
    let mut proxy = Proxy::start_as(&place.program(), &text(&[node.address], ""), |_| ());
    let pid = proxy.pid();
    let file = proxy.folder().join("ringway.yaml");
    let good = std::fs::read_to_string(&file).unwrap();
    let fail: [(&str, &dyn Fn()); 5] = [
        ("ended before it was ready", &|| place.put_a_script("#!/bin/sh\nexit 7\n", 0o755)),
        ("ended before it was ready", &|| place.put_a_script("#!/bin/sh\nexec 0<&-\nexit 0\n", 0o755)),
        ("cannot start", &|| place.put_a_script("#!/bin/sh\nexit 0\n", 0o644)),
        ("cannot start", &|| std::fs::remove_file(place.program()).unwrap()),
        ("ended before it was ready", &|| {
            place.put_the_real_one();
            std::fs::write(&file, "nonsense").unwrap();
        }),
    ];
    for (count, (why, prepare)) in fail.iter().enumerate() {
        prepare();
        proxy.signal("USR2");
        eventually(why, || failures(&proxy) == (count + 1) as f64);
        let is_told = |line: &str| line.contains("not upgraded") && line.contains(why);
        eventually(why, || proxy.log().lines().filter(|line| is_told(line)).count() > 0);
        assert_eq!(proxy.get("/").status, 200);
        assert_eq!(proxy.admin_get("/api/status").json()["pid"], pid);
    }
    proxy.logs("exit status: 7");
    std::fs::write(&file, good).unwrap();
    proxy.upgrade();
    assert_ne!(proxy.pid(), pid);
    assert_eq!(failures(&proxy), 0.0, "the new process counts anew");
    assert_eq!(proxy.get("/").status, 200);
}

#[test]
fn what_was_said_of_nodes_goes_along() {
    let nodes = [Origin::echo(), Origin::echo(), Origin::echo()];
    let addresses: Vec<_> = nodes.iter().map(|node| node.address).collect();
    let mut proxy = Proxy::start_whole(&text(&addresses, ""));
    assert_eq!(proxy.admin_post("/api/pools/app/nodes/n1/down", "").status, 200);
    assert_eq!(proxy.admin_post("/api/pools/app/nodes/n2/drain", "").status, 200);
    for _ in 0..2 {
        proxy.upgrade();
        let states = ["n0", "n1", "n2"].map(|id| proxy.node(id)["state"].as_str().unwrap().to_owned());
        assert_eq!(states, ["up", "down", "drain"]);
    }
    // Until the file says something new about it.
    let file = proxy.folder().join("ringway.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    let one = format!("{{ id: n1, address: \"{}\" }}", addresses[1]);
    std::fs::write(&file, text.replace(&one, &one.replace(" }", ", state: drain }"))).unwrap();
    eventually("the file's word", || proxy.node("n1")["state"] == "drain");
}

/// `[::]` leaves IPv4 to `0.0.0.0` beside it, and takes IPv4 once that is gone: by whichever process it was opened.
#[test]
fn a_listener_for_all_addresses_takes_ipv4_after_the_change() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        eprintln!("skipped: this machine has no IPv6");
        return;
    }
    let node = Origin::echo();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let v4 = format!("{{ name: v4, address: \"0.0.0.0:{port}\" }}, ");
    let both = format!("listeners: [{v4}{{ name: v6, address: \"[::]:{port}\" }}]\n");
    let own = "listeners: [{ name: http, address: \"127.0.0.1:0\" }]\n";
    let mut proxy = Proxy::start_whole(&text(&[node.address], "").replace(own, &both));
    proxy.upgrade();
    let file = proxy.folder().join("ringway.yaml");
    let config = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, config.replace(&v4, "")).unwrap();
    let serves = |address: &str| {
        let mut client = std::net::TcpStream::connect((address, port)).ok()?;
        client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        client.read_to_string(&mut answer).ok()?;
        answer.starts_with("HTTP/1.1 200").then_some(())
    };
    eventually("the one listener", || {
        proxy.admin_get("/api/status").json()["listeners"].as_array().unwrap().len() == 1
    });
    eventually("IPv4 at it", || serves("127.0.0.1").is_some() && serves("::1").is_some());
}

#[test]
fn the_number_of_workers_may_change() {
    let node = Origin::echo();
    let mut proxy = Proxy::start_whole(&text(&[node.address], "workers: 2\n"));
    let file = proxy.folder().join("ringway.yaml");
    for workers in [3, 1] {
        let text = std::fs::read_to_string(&file).unwrap();
        let line = text.lines().find(|line| line.starts_with("workers")).unwrap().to_owned();
        std::fs::write(&file, text.replace(&line, &format!("workers: {workers}"))).unwrap();
        proxy.upgrade();
        assert_eq!(proxy.admin_get("/api/status").json()["workers"], workers);
        // The kernel spreads connections over all sockets of the set: each has somebody who accepts.
        (0..50).for_each(|_| assert_eq!(proxy.get("/").status, 200));
    }
}

/// Who has kept a connection to the admin listener does not go on talking to the process that leaves.
#[test]
fn kept_admin_connections_end_with_the_change() {
    let barrier = Barrier::default();
    let held = barrier.clone();
    let node = Origin::by_connection(move |peer| {
        while peer.request().is_some() {
            held.wait();
            peer.answer("done");
        }
    });
    let mut proxy = Proxy::start_whole(&text(&[node.address], ""));
    let old = proxy.pid();
    let mut waiting = proxy.connect();
    waiting.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n");
    let mut kept = crate::support::Client::connect(proxy.admin);
    let ask = format!("GET /readyz HTTP/1.1\r\nhost: {}\r\n\r\n", proxy.admin);
    assert_eq!(kept.request(&ask).status, 200);
    proxy.signal("USR2");
    proxy.wait_for_successor(old);
    assert!(kept.is_closed());
    assert!(!proxy.process_ended(old), "it still has a request to answer");
    assert_eq!(crate::support::Client::connect(proxy.admin).request(&ask).status, 200);
    barrier.open();
    assert_eq!(waiting.answer().text(), "done");
}

/// Who is told to stop while a new binary starts stops, and takes that one along.
#[test]
fn a_stop_in_the_middle_of_an_upgrade_is_a_stop() {
    let node = Origin::echo();
    let place = Place::new();
    let mut proxy = Proxy::start_as(&place.program(), &text(&[node.address], ""), |_| ());
    let (pid, told) = (proxy.pid(), place.folder.path().join("pid"));
    place.put_a_script(&format!("#!/bin/sh\necho $$ > {}\nexec sleep 60\n", told.display()), 0o755);
    proxy.signal("USR2");
    let mut started = 0;
    eventually("the start of the new one", || {
        started = std::fs::read_to_string(&told).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        started != 0
    });
    assert_eq!(proxy.get("/").status, 200);
    proxy.signal("TERM");
    eventually("the end of the old process", || proxy.process_ended(pid));
    eventually("the end of the new one", || proxy.process_ended(started));
}

/// With two stores at a time a payment could run twice.
#[test]
fn the_store_does_not_change_by_an_upgrade() {
    let node = Origin::echo();
    let folder = tempfile::tempdir().unwrap();
    let store = |name: &str| format!("idempotency_store: {{ path: \"{}/{name}\" }}\n", folder.path().display());
    let base = text(&[node.address], "").replace("hash_on: [uri]", "hash_on: [uri], idempotency: {}");
    let proxy = Proxy::start_whole(&format!("{}{base}", store("one.db")));
    let file = proxy.folder().join("ringway.yaml");
    std::fs::write(&file, format!("{}{base}", store("two.db"))).unwrap();
    proxy.signal("USR2");
    eventually("the refusal", || failures(&proxy) == 1.0);
    proxy.logs("stop and start instead");
    assert_eq!(proxy.get("/").status, 200);
}

const KEYED: &str =
    "POST /pay HTTP/1.1\r\nhost: a\r\nauthorization: me\r\nidempotency-key: k1\r\ncontent-length: 2\r\n\r\n{}";

#[test]
fn a_payment_runs_once_across_the_change() {
    let barrier = Barrier::default();
    let held = barrier.clone();
    let node = Origin::by_connection(move |peer| {
        while let Some(head) = peer.request() {
            peer.body_of(&head);
            held.wait();
            peer.answer("paid");
        }
    });
    let base = text(&[node.address], "");
    let folder = tempfile::tempdir().unwrap();
    let store = format!("idempotency_store: {{ kind: sqlite, path: \"{}\" }}\n", folder.path().join("s.db").display());
    let base = base.replace("hash_on: [uri]", "hash_on: [uri], idempotency: {}");
    let mut proxy = Proxy::start_whole(&format!("{store}{base}"));
    let old = proxy.pid();
    let mut first = proxy.connect();
    first.send(KEYED);
    eventually("the payment to run", || node.requests().len() == 1);
    proxy.signal("USR2");
    proxy.wait_for_successor(old);
    // It still runs in the old process, and the new one knows.
    let again = proxy.connect().request(KEYED);
    assert_eq!((again.status, again.problem().as_str()), (409, "request-in-progress"), "{again:?}");
    barrier.open();
    assert_eq!(first.answer().text(), "paid");
    let replay = proxy.connect().request(KEYED);
    assert_eq!((replay.text().as_str(), replay.field("idempotent-replayed").as_deref()), ("paid", Some("true")));
    assert_eq!(node.requests().len(), 1);
    eventually("the end of the old process", || proxy.process_ended(old));
    let replay = proxy.connect().request(KEYED);
    assert_eq!((replay.text().as_str(), node.requests().len()), ("paid", 1));
}

/// Socket activation: the socket is open, and takes connections, before the proxy is there.
#[test]
fn a_socket_of_systemd_is_taken_and_handed_on() {
    let node = Origin::echo();
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let mut early = crate::support::Client::connect(address);
    early.send("GET /early HTTP/1.1\r\nhost: a\r\n\r\n");
    let config = text(&[node.address], "workers: 2\n").replacen("127.0.0.1:0", &address.to_string(), 1);
    let folder = tempfile::tempdir().unwrap();
    // systemd gives the socket as descriptor 3, and says so in the environment.
    let script = folder.path().join("activate");
    std::fs::write(
        &script,
        format!("#!/bin/sh\nexec 3<&0 0</dev/null\nLISTEN_PID=$$ LISTEN_FDS=1 exec {BINARY} \"$@\"\n"),
    )
    .unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut proxy = Proxy::start_as(&script, &config, |command| {
        command.stdin(Stdio::from(OwnedFd::from(socket)));
    });
    assert_eq!(proxy.address, address);
    assert!(early.answer().text().contains("/early"));
    proxy.upgrade();
    assert!(proxy.get("/late").text().contains("/late"));
}

/// What a service manager is told (sd_notify).
#[test]
fn a_service_manager_is_told_of_every_step() {
    let node = Origin::echo();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
    let hear = |wanted: &str| loop {
        let mut buffer = [0; 4096];
        let length = manager.recv(&mut buffer).unwrap_or_else(|error| panic!("{wanted}: {error}"));
        let said = String::from_utf8_lossy(&buffer[..length]).into_owned();
        if said.lines().any(|line| line.starts_with(wanted)) {
            return said;
        }
    };
    let mut proxy = Proxy::start_as(Path::new(BINARY), &text(&[node.address], ""), |command| {
        command.env("NOTIFY_SOCKET", &path);
    });
    hear("READY=1");
    proxy.signal("HUP");
    assert!(hear("RELOADING=1").contains("MONOTONIC_USEC="));
    assert!(hear("READY=1").contains("STATUS=reloaded"));
    let old = proxy.pid();
    proxy.upgrade();
    let said = hear("MAINPID=");
    assert!(said.contains(&proxy.pid().to_string()) && !said.contains(&old.to_string()), "{said}");
    proxy.signal("TERM");
    hear("STOPPING=1");
}
