//! Nothing that a reader, a file or a name server does not do may hold up a request, a probe or the end.

use crate::support::{Client, Origin, Proxy, eventually};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What a stop may take beside its `drain_timeout`: a second, and what a busy machine adds.
const LAST_MOMENT: Duration = Duration::from_secs(4);

fn fifo(folder: &std::path::Path, name: &str) -> std::path::PathBuf {
    let path = folder.join(name);
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    path
}

/// Ends a proxy, and gives how long that took.
fn end(proxy: &mut Proxy) -> Duration {
    let begun = Instant::now();
    proxy.signal("TERM");
    eventually("the end of the proxy", || proxy.has_ended());
    begun.elapsed()
}

#[test]
fn a_reader_of_the_access_log_that_stalls_holds_up_nothing() {
    for workers in [1, 2] {
        let node = Origin::echo();
        let folder = tempfile::tempdir().unwrap();
        let path = fifo(folder.path(), "log");
        let _reader = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let settings = |format: &str| {
            format!(
                "workers: {workers}\nlimits: {{ drain_timeout: 1s }}\naccess_log: {{ format: {format}, path: {} }}\n{}",
                path.display(),
                Proxy::pool(&[node.address], "")
            )
        };
        let mut proxy = Proxy::start(&settings("json"));
        let fill = |count: usize| {
            let mut client = proxy.connect();
            let request = format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "x".repeat(8000));
            for _ in 0..count {
                assert_eq!(client.request(&request).status, 200);
            }
        };
        fill(1500);
        let dropped = "ringway_access_log_dropped_total";
        eventually("lines that are dropped", || proxy.metric(dropped) > 0.0);
        proxy.signal("HUP");
        fill(300);
        // Another log for a file that is configured anew.
        let file = proxy.folder().join("ringway.yaml");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace("format: json", "format: common")).unwrap();
        assert_eq!(proxy.admin_post("/api/reload", "").status, 200);
        proxy.signal("HUP");
        fill(1500);
        assert_eq!(proxy.admin_get("/livez").status, 200);
        let took = end(&mut proxy);
        assert!(took < Duration::from_secs(1) + LAST_MOMENT, "{workers} workers: {took:?}");
    }
}

#[test]
fn an_access_log_is_opened_anew_whatever_the_file_says() {
    let node = Origin::echo();
    let proxy = Proxy::start(&format!(
        "access_log: {{ format: common, path: access.log }}\n{}",
        Proxy::pool(&[node.address], "")
    ));
    let log = proxy.folder().join("access.log");
    let lines = || std::fs::read_to_string(&log).unwrap_or_default().lines().count();
    proxy.get("/1");
    eventually("a line", || lines() == 1);
    std::fs::write(proxy.folder().join("ringway.yaml"), "routes: [").unwrap();
    eventually("a reload that fails", || proxy.metric("ringway_config_last_reload_success") == 0.0);
    std::fs::rename(&log, proxy.folder().join("access.log.1")).unwrap();
    proxy.signal("HUP");
    eventually("a new file", || log.exists());
    proxy.get("/2");
    eventually("a line in the new file", || lines() == 1);
}

#[test]
fn lines_that_a_failing_log_loses_are_counted() {
    let node = Origin::echo();
    // Every write to it fails.
    let proxy = Proxy::start(&format!(
        "access_log: {{ format: common, path: /dev/full }}\n{}",
        Proxy::pool(&[node.address], "")
    ));
    for _ in 0..5 {
        proxy.get("/");
    }
    eventually("all lines to be counted", || proxy.metric("ringway_access_log_dropped_total") == 5.0);
    proxy.logs("cannot write the access log");
}

/// A proxy whose stderr is read until it serves, and no more.
struct Unread {
    child: Child,
    address: SocketAddr,
    admin: SocketAddr,
    _folder: tempfile::TempDir,
    _stderr: BufReader<std::process::ChildStderr>,
}

impl Unread {
    fn start(text: &str) -> Unread {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ringway.yaml");
        let listeners = "listeners: [{ name: http, address: \"127.0.0.1:0\" }]\nadmin: { address: \"127.0.0.1:0\" }\naccess_log: { format: \"off\" }\n";
        std::fs::write(&file, format!("{listeners}{text}")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringway"));
        command.args(["run", "--config"]).arg(&file).env("RUST_LOG", "debug").stdin(Stdio::null());
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let (mut address, mut admin) = (None, None);
        let found = |line: &str, key: &str| line.split(key).nth(1)?.split(' ').next()?.parse().ok();
        while admin.is_none() {
            let mut line = String::new();
            assert!(stderr.read_line(&mut line).unwrap() > 0, "it ended");
            address = address.or(found(&line, "address="));
            admin = admin.or(found(&line, "admin="));
        }
        Unread { child, address: address.unwrap(), admin: admin.unwrap(), _folder: folder, _stderr: stderr }
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_stderr_that_nobody_reads_holds_up_nothing() {
    for workers in [1, 2] {
        // Nobody listens there, and each attempt is told at this level.
        let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut proxy = Unread::start(&format!(
            "workers: {workers}\nlimits: {{ drain_timeout: 1s }}\n{}",
            Proxy::pool(&[dead], "")
        ));
        let mut clients: Vec<Client> = (0..4).map(|_| Client::connect(proxy.address)).collect();
        for _ in 0..1500 {
            for client in &mut clients {
                assert!(client.request("GET / HTTP/1.1\r\nhost: a\r\n\r\n").status >= 500);
            }
        }
        let admin = |path: &str| {
            let host = proxy.admin;
            Client::connect(host).request(format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"))
        };
        assert_eq!(admin("/livez").status, 200);
        let dropped = || {
            let page = admin("/metrics").text();
            let line = page.lines().find(|line| line.starts_with("ringway_process_log_dropped_total ")).unwrap();
            line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
        };
        assert!(dropped() > 0.0, "lines were dropped, and counted");
        let begun = Instant::now();
        let pid = proxy.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        eventually("the end of the proxy", || proxy.child.try_wait().unwrap().is_some());
        assert!(begun.elapsed() < Duration::from_secs(1) + LAST_MOMENT, "{:?}", begun.elapsed());
    }
}

#[test]
fn clients_that_do_not_read_or_do_not_finish_leave_room_for_probes() {
    let node = Origin::echo();
    let proxy = Proxy::start(&format!("metrics: {{ address: \"127.0.0.1:0\" }}\n{}", Proxy::pool(&[node.address], "")));
    let metrics: SocketAddr = {
        proxy.logs("metrics and probes");
        let log = proxy.log();
        let line = log.lines().find(|line| line.contains("metrics and probes")).unwrap();
        line.split("address=").nth(1).unwrap().trim().parse().unwrap()
    };
    for admin in [proxy.admin, metrics] {
        for stalls in ["GET /metrics HTTP/1.1\r\n", "POST /api/cache/purge HTTP/1.1\r\ncontent-length: 100\r\n", ""] {
            let _held: Vec<Client> = (0..300)
                .map(|_| {
                    let mut client = Client::connect(admin);
                    let request =
                        if stalls.is_empty() { "G".to_owned() } else { format!("{stalls}host: {admin}\r\n\r\n") };
                    // Answers that nobody reads, more of them than the sockets take.
                    client.send(request.repeat(if stalls.starts_with("GET") { 100 } else { 1 }));
                    client
                })
                .collect();
            for path in ["/livez", "/readyz"] {
                let begun = Instant::now();
                let request = format!("GET {path} HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n");
                assert_eq!(Client::connect(admin).request(request).status, 200, "{stalls} {path}");
                // A probe that waits for these clients would wait for ever; a busy machine may take its time.
                assert!(begun.elapsed() < Duration::from_secs(15), "{stalls} {path}: {:?}", begun.elapsed());
            }
        }
    }
}

#[test]
fn name_servers_that_do_not_answer_are_waited_for_together() {
    let node = Origin::echo();
    // It takes questions and answers none.
    let server = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap();
    let pools: String = (0..20)
        .map(|number| {
            format!(
                "  p{number}:\n    discovery: {{ dns: \"a{number}.test:80\", server: \"{address}\", timeout: 2s }}\n"
            )
        })
        .collect();
    let routes: String = (0..20)
        .map(|number| format!("  - {{ name: r{number}, path_prefix: /p{number}, pool: p{number} }}\n"))
        .collect();
    let text = Proxy::pool(&[node.address], "")
        .replace("pools:\n", &format!("pools:\n{pools}"))
        .replace("routes:\n", &format!("routes:\n{routes}"));
    let begun = Instant::now();
    let proxy = Proxy::start(&text);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(proxy.get("/").status, 200);
    assert_eq!(proxy.get("/p7").status, 503);
    proxy.logs("the name server tells of no nodes");
    // A reload too.
    let begun = Instant::now();
    proxy.reconfigure(&text.replace("timeout: 2s", "timeout: 3s"));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn a_removed_listener_keeps_nobody_waiting_for_a_place() {
    let node = Origin::echo();
    let text = |listeners: &str| {
        format!(
            "listeners: [{listeners}]\nadmin: {{ address: \"127.0.0.1:0\" }}\naccess_log: {{ format: \"off\" }}\nlimits: {{ connections: 2 }}\n{}",
            Proxy::pool(&[node.address], "")
        )
    };
    let stays = "{ name: http, address: \"127.0.0.1:0\" }";
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let proxy = Proxy::start_whole(&text(&format!("{stays}, {{ name: goes, address: \"{free}\" }}")));
    let mut held: Vec<Client> = (0..2).map(|_| proxy.connect()).collect();
    for client in &mut held {
        assert_eq!(client.request("GET / HTTP/1.1\r\nhost: a\r\n\r\n").status, 200);
    }
    let mut waiting: Vec<Client> = (0..3).map(|_| Client::connect(free)).collect();
    for client in &mut waiting {
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    }
    std::fs::write(proxy.folder().join("ringway.yaml"), text(stays)).unwrap();
    assert_eq!(proxy.admin_post("/api/reload", "").status, 200);
    eventually("the end of the listener", || std::net::TcpStream::connect(free).is_err());
    for client in &mut waiting {
        assert!(client.is_closed(), "nobody waits on a listener that is gone");
    }
    for client in &mut held {
        assert_eq!(client.request("GET / HTTP/1.1\r\nhost: a\r\n\r\n").status, 200, "what was there goes on");
    }
}
