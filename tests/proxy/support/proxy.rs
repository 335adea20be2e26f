use super::client::{Answer, Client};
use super::eventually;
use super::tls::Pair;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

/// A running proxy, ended when dropped.
pub struct Proxy {
    child: Child,
    pub address: SocketAddr,
    pub admin: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
    output: Arc<Mutex<String>>,
    folder: tempfile::TempDir,
    /// The process that has taken over, no child of this one.
    successor: Option<u32>,
}

impl Proxy {
    /// Starts a proxy with one listener and the admin listener on free ports. The text gives the
    /// rest of the configuration.
    pub fn start(rest: &str) -> Proxy {
        let access_log = if rest.contains("access_log:") { "" } else { "access_log: { format: \"off\" }\n" };
        Proxy::start_whole(&format!(
            "listeners: [{{ name: http, address: \"127.0.0.1:0\" }}]\nadmin: {{ address: \"127.0.0.1:0\" }}\n{access_log}{rest}"
        ))
    }

    /// One pool `app` with these nodes, and everything goes there by its URI.
    pub fn before(nodes: &[SocketAddr]) -> Proxy {
        Proxy::start(&Proxy::pool(nodes, ""))
    }

    /// The same, with more settings for the pool.
    pub fn pool(nodes: &[SocketAddr], more: &str) -> String {
        let list: String = nodes
            .iter()
            .enumerate()
            .map(|(n, address)| format!("      - {{ id: n{n}, address: \"{address}\" }}\n"))
            .collect();
        let nodes = if nodes.is_empty() { " []\n".to_owned() } else { format!("\n{list}") };
        format!(
            "pools:\n  app:\n    nodes:{nodes}{more}\nroutes:\n  - {{ name: site, path_prefix: /, pool: app, hash_on: [uri] }}\n"
        )
    }

    pub fn start_whole(text: &str) -> Proxy {
        Proxy::start_as(Path::new(env!("CARGO_BIN_EXE_ringway")), text, |_| ())
    }

    /// A proxy with a listener `https` and one in the clear, `http`. The text gives the rest of the configuration.
    pub fn start_both(pair: &Pair, rest: &str) -> Proxy {
        Proxy::start_whole(&format!(
            "listeners:\n  - {{ name: https, address: \"127.0.0.1:0\", tls: {{ certificates: [{}] }} }}\n  - {{ name: http, address: \"127.0.0.1:0\" }}\nadmin: {{ address: \"127.0.0.1:0\" }}\n{rest}",
            pair.setting()
        ))
    }

    /// The address of a listener.
    pub fn address_of(&self, listener: &str) -> SocketAddr {
        let status = self.admin_get("/api/status").json();
        let listeners = status["listeners"].as_array().unwrap();
        let found = listeners.iter().find(|found| found["name"] == listener);
        found.unwrap_or_else(|| panic!("no listener {listener}: {status}"))["address"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap()
    }

    /// Starts the program at this path; the command may be given more.
    pub fn start_as(program: &Path, text: &str, prepare: impl FnOnce(&mut Command)) -> Proxy {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ringway.yaml");
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new(program);
        command.args(["run", "--config"]).arg(&file).env("RUST_LOG", "info").stdin(Stdio::null());
        prepare(&mut command);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        let output: Arc<Mutex<String>> = Arc::default();
        let (stderr, lines) = (child.stderr.take().unwrap(), Arc::clone(&log));
        std::thread::spawn(move || {
            BufReader::new(stderr).lines().map_while(Result::ok).for_each(|line| lines.lock().unwrap().push(line))
        });
        let (mut stdout, text) = (child.stdout.take().unwrap(), Arc::clone(&output));
        std::thread::spawn(move || {
            let mut buffer = [0; 65536];
            while let Ok(length @ 1..) = stdout.read(&mut buffer) {
                text.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
        });
        let found = |key: &str| -> Option<SocketAddr> {
            let log = log.lock().unwrap();
            log.iter().find_map(|line| line.split(key).nth(1)?.split(' ').next()?.parse().ok())
        };
        eventually("the start of the proxy", || {
            if let Ok(Some(status)) = child.try_wait() {
                panic!("the proxy ended with {status}: {:?}", log.lock().unwrap());
            }
            found("admin=").is_some()
        });
        let (address, admin) = (found("address=").unwrap(), found("admin=").unwrap());
        Proxy { child, address, admin, log, output, folder, successor: None }
    }

    pub fn connect(&self) -> Client {
        Client::connect(self.address)
    }

    /// One GET on a connection of its own.
    pub fn get(&self, path: &str) -> Answer {
        self.connect().request(format!("GET {path} HTTP/1.1\r\nhost: example.com\r\nconnection: close\r\n\r\n"))
    }

    /// One GET with more fields; ` | ` separates them.
    pub fn get_with(&self, path: &str, fields: &str) -> Answer {
        self.send("GET", path, fields)
    }

    /// One request without a body, on a connection of its own.
    pub fn send(&self, method: &str, path: &str, fields: &str) -> Answer {
        let lines: String =
            fields.split(" | ").filter(|line| !line.is_empty()).map(|line| format!("{line}\r\n")).collect();
        let host = if fields.to_ascii_lowercase().contains("host:") { "" } else { "host: example.com\r\n" };
        self.connect().request(format!("{method} {path} HTTP/1.1\r\n{host}connection: close\r\n{lines}\r\n"))
    }

    /// The paths of a pool's keys, `/0` on, whose owner is this node.
    pub fn paths_of(&self, node: &str, count: usize) -> Vec<String> {
        let owner = |path: &String| self.admin_get(&format!("/api/pools/app/ring?key={path}")).json()["owner"] == node;
        (0..10_000).map(|number| format!("/{number}")).filter(owner).take(count).collect()
    }

    /// A node as the admin API shows it.
    pub fn node(&self, id: &str) -> serde_json::Value {
        let pools = self.admin_get("/api/pools").json();
        let nodes = pools[0]["nodes"].as_array().unwrap();
        nodes.iter().find(|node| node["id"] == id).unwrap_or_else(|| panic!("no node {id}: {pools}")).clone()
    }

    /// Writes another configuration and waits until it is in force.
    pub fn reconfigure(&self, rest: &str) {
        let text = format!(
            "listeners: [{{ name: http, address: \"127.0.0.1:0\" }}]\nadmin: {{ address: \"127.0.0.1:0\" }}\naccess_log: {{ format: \"off\" }}\n{rest}"
        );
        let new = self.folder.path().join("new.yaml");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.folder.path().join("ringway.yaml")).unwrap();
        let answer = self.admin_post("/api/reload", "");
        assert_eq!(answer.status, 200, "{answer:?}");
    }

    /// A purge through the admin API.
    pub fn purge(&self, order: &str) -> Answer {
        self.admin_post("/api/cache/purge", order)
    }

    pub fn admin_post(&self, path: &str, body: &str) -> Answer {
        Client::connect(self.admin).request(format!(
            "POST {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            self.admin,
            body.len()
        ))
    }

    /// A GET to the admin listener.
    pub fn admin_get(&self, path: &str) -> Answer {
        Client::connect(self.admin)
            .request(format!("GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.admin))
    }

    /// The value of a series in the metrics; 0 where it is absent.
    pub fn metric(&self, series: &str) -> f64 {
        let page = self.admin_get("/metrics").text();
        let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ').map(str::to_owned));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Waits until the proxy has closed a silent connection for its `limits.header_timeout`: the time has passed by
    /// the proxy's own clock.
    pub fn header_timeout_passes(&self) {
        assert!(Client::connect(self.address).is_closed());
    }

    pub fn pid(&self) -> u32 {
        self.successor.unwrap_or_else(|| self.child.id())
    }

    /// Has a new binary take over, and waits until it has and the old process has ended.
    pub fn upgrade(&mut self) {
        let before = self.pid();
        self.signal("USR2");
        self.wait_for_successor(before);
        eventually("the end of the old process", || self.process_ended(before));
    }

    /// Waits until another process answers.
    pub fn wait_for_successor(&mut self, before: u32) {
        let serving = || self.admin_get("/api/status").json()["pid"].as_u64().unwrap() as u32;
        let mut now = before;
        eventually("another process to serve", || {
            now = serving();
            now != before
        });
        self.successor = Some(now);
    }

    /// The processes that were started with this proxy's file.
    fn all_processes(&self) -> Vec<u32> {
        let file = self.folder.path().display().to_string();
        let is_ours = |pid: &u32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(&file)
        };
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_ours).collect()
    }

    /// Whether a process is no more.
    pub fn process_ended(&mut self, pid: u32) -> bool {
        let _ = self.child.try_wait();
        !Path::new(&format!("/proc/{pid}")).exists()
    }

    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.pid().to_string()).status().unwrap();
        assert!(sent.success());
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// What the proxy wrote to stdout: the access log.
    pub fn output(&self) -> String {
        self.output.lock().unwrap().clone()
    }

    /// What the proxy wrote to stderr: its own log.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    /// Waits until the log holds a text: what has happened is told by a thread of its own.
    pub fn logs(&self, text: &str) {
        eventually(text, || self.log().contains(text));
    }

    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// Resident memory, in bytes.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // A test that fails in the middle of an upgrade does not know who has taken over: but its file is its own.
        let taken_over =
            if std::thread::panicking() { self.all_processes() } else { self.successor.into_iter().collect() };
        for pid in taken_over {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        let log = self.log();
        assert!(std::thread::panicking() || !log.contains("panicked"), "a worker panicked:\n{log}");
    }
}
