//! An etcd cluster of one or several members, and what happens to them.

use super::{free_port, program, signal, spawn, until};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A cluster with its data.
pub(crate) struct Etcd {
    folder: tempfile::TempDir,
    members: Vec<Member>,
    /// More arguments of each member.
    arguments: Vec<String>,
    /// `http`, or `https` towards clients.
    scheme: &'static str,
    /// The credentials of `etcdctl`.
    login: Vec<String>,
}

/// A member of the cluster.
struct Member {
    name: String,
    client: u16,
    peer: u16,
    child: Option<Child>,
}

impl Member {
    fn new(number: usize) -> Member {
        Member { name: format!("m{number}"), client: free_port(), peer: free_port(), child: None }
    }

    fn peer_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.peer)
    }
}

/// A change of a key.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) revision: u64,
    pub(crate) created: u64,
    pub(crate) key: String,
    pub(crate) value: Option<String>,
}

impl Change {
    fn of(event: &serde_json::Value) -> Change {
        let text = |name: &str| {
            let bytes = BASE64.decode(event["kv"][name].as_str().unwrap_or_default()).unwrap();
            String::from_utf8(bytes).unwrap()
        };
        let number = |name: &str| event["kv"][name].as_u64().unwrap_or_default();
        let is_removal = event["type"].as_u64() == Some(1) || event["type"] == "DELETE";
        Change {
            revision: number("mod_revision"),
            created: number("create_revision"),
            key: text("key"),
            value: (!is_removal).then(|| text("value")),
        }
    }
}

impl Etcd {
    /// Starts a cluster; nothing where etcd is not installed.
    pub(crate) fn start(count: usize) -> Option<Etcd> {
        Etcd::start_with(count, "http", &[])
    }

    /// Starts a cluster whose clients speak `http` or `https`, with more arguments.
    pub(crate) fn start_with(count: usize, scheme: &'static str, arguments: &[&str]) -> Option<Etcd> {
        program("etcdctl", &["/usr/bin"])?;
        program("etcd", &["/usr/bin"])?;
        let mut cluster = Etcd {
            folder: tempfile::tempdir().unwrap(),
            members: (0..count).map(Member::new).collect(),
            arguments: arguments.iter().map(|&it| it.to_owned()).collect(),
            scheme,
            login: Vec::new(),
        };
        (0..count).for_each(|at| cluster.run_unready(at, "new"));
        if scheme == "http" {
            cluster.wait();
        }
        Some(cluster)
    }

    /// Gives `etcdctl` what it needs, like `--user=root:secret`.
    pub(crate) fn log_in(&mut self, login: &[&str]) {
        self.login = login.iter().map(|&it| it.to_owned()).collect();
    }

    /// Waits until the cluster takes writes.
    pub(crate) fn wait(&self) {
        until("etcd", || self.ask(&["put", "is-up", "yes"]).is_some());
    }

    /// The ports of the members for clients.
    pub(crate) fn ports(&self) -> Vec<u16> {
        self.members.iter().map(|member| member.client).collect()
    }

    /// The URLs of the members for clients.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        self.ports().iter().map(|port| format!("{}://127.0.0.1:{port}", self.scheme)).collect()
    }

    fn run_unready(&mut self, at: usize, state: &str) {
        let all: Vec<String> = self.members.iter().map(|it| format!("{}={}", it.name, it.peer_url())).collect();
        let member = &self.members[at];
        let client = format!("{}://127.0.0.1:{}", self.scheme, member.client);
        let log =
            File::options().create(true).append(true).open(self.folder.path().join(&member.name).with_extension("log"));
        let log = log.unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig=KILL", "--"]).arg(program("etcd", &["/usr/bin"]).unwrap());
        command.args(["--name", &member.name, "--initial-cluster-state", state]);
        command.arg("--data-dir").arg(self.data(at));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &member.peer_url(), "--initial-advertise-peer-urls", &member.peer_url()]);
        command.args(["--initial-cluster", &all.join(","), "--auto-compaction-retention=1h"]);
        command.args(&self.arguments);
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.members[at].child = Some(spawn(command));
    }

    fn data(&self, at: usize) -> PathBuf {
        self.folder.path().join(&self.members[at].name)
    }

    /// Runs `etcdctl`. Returns its output.
    pub(crate) fn execute(&self, command: &[&str]) -> String {
        self.ask(command).unwrap_or_else(|| panic!("etcd refuses {command:?}"))
    }

    /// Runs `etcdctl`; nothing where it fails.
    pub(crate) fn ask(&self, command: &[&str]) -> Option<String> {
        let endpoints = format!("--endpoints={}", self.endpoints().join(","));
        let mut asked = Command::new("etcdctl");
        asked.env("ETCDCTL_API", "3").args([&*endpoints, "--command-timeout=2s"]).args(&self.login).args(command);
        let asked = asked.stderr(Stdio::null()).stdin(Stdio::null()).output().unwrap();
        asked.status.success().then(|| String::from_utf8_lossy(&asked.stdout).trim_end().to_owned())
    }

    /// Returns the value of a key; empty where there is none.
    pub(crate) fn get(&self, key: &str) -> String {
        self.execute(&["get", "--print-value-only", key])
    }

    /// Returns all changes below a prefix that were not compacted: the revision, the key, its create revision, and the
    /// value; none for a removal.
    pub(crate) fn history(&self, prefix: &str) -> Vec<Change> {
        let last = format!("{prefix}~last");
        self.execute(&["put", &last, ""]);
        let endpoints = format!("--endpoints={}", self.endpoints().join(","));
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args([&*endpoints, "watch", "--prefix", prefix, "--rev=1", "-w", "json"]);
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut changes = Vec::new();
        for line in BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok) {
            let message: serde_json::Value = serde_json::from_str(&line).unwrap();
            changes.extend(message["Events"].as_array().into_iter().flatten().map(Change::of));
            if changes.iter().any(|change| change.key == last) {
                break;
            }
        }
        let _ = child.kill();
        let _ = child.wait();
        self.execute(&["del", &last]);
        changes.retain(|change| change.key != last);
        changes
    }

    /// The place of the member that leads the cluster.
    pub(crate) fn leader(&self) -> usize {
        let mut found = None;
        until("a leader of etcd", || {
            found = (0..self.members.len()).find(|&at| {
                let endpoint = format!("--endpoints={}://127.0.0.1:{}", self.scheme, self.members[at].client);
                let mut asked = Command::new("etcdctl");
                asked.env("ETCDCTL_API", "3").args([&*endpoint, "endpoint", "status", "-w", "json"]);
                let asked = asked.stderr(Stdio::null()).output().unwrap();
                let status: serde_json::Value = serde_json::from_slice(&asked.stdout).unwrap_or_default();
                let status = &status[0]["Status"];
                status["leader"].is_number() && status["leader"] == status["header"]["member_id"]
            });
            found.is_some()
        });
        found.unwrap()
    }

    /// Ends a member as a power failure would.
    pub(crate) fn kill(&mut self, at: usize) {
        if let Some(mut child) = self.members[at].child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Ends all members.
    pub(crate) fn kill_all(&mut self) {
        (0..self.members.len()).for_each(|at| self.kill(at));
    }

    /// Starts a member again, with its data.
    pub(crate) fn run(&mut self, at: usize) {
        self.run_unready(at, "existing");
    }

    /// Starts all members again, and waits until the cluster takes writes.
    pub(crate) fn run_all(&mut self) {
        (0..self.members.len()).for_each(|at| self.run(at));
        self.wait();
    }

    /// Removes the data of all members, which are down, and starts another cluster at the same addresses.
    pub(crate) fn replace(&mut self) {
        for at in 0..self.members.len() {
            let _ = fs::remove_dir_all(self.data(at));
        }
        self.arguments.push("--initial-cluster-token=another".to_owned());
        (0..self.members.len()).for_each(|at| self.run_unready(at, "new"));
        self.wait();
    }

    /// Adds a member to the cluster.
    pub(crate) fn add_member(&mut self) {
        let member = Member::new(self.members.len());
        // A change may take effect and its answer be lost: to ask for it again is an error then.
        until("the addition of a member", || {
            self.ask(&["member", "add", &member.name, &format!("--peer-urls={}", member.peer_url())]).is_some()
                || self.lists(&member.peer_url()) == Some(true)
        });
        self.members.push(member);
        self.run_unready(self.members.len() - 1, "existing");
    }

    /// Removes a member from the cluster, and ends it.
    pub(crate) fn remove_member(&mut self, at: usize) {
        let name = self.members[at].name.clone();
        let list = self.execute(&["member", "list"]);
        let line = list.lines().find(|line| line.contains(&format!(", {name}, "))).unwrap().to_owned();
        let id = line.split(',').next().unwrap().to_owned();
        until("the removal of a member", || {
            self.ask(&["member", "remove", &id]).is_some() || self.lists(&id) == Some(false)
        });
        self.kill(at);
        self.members.remove(at);
    }

    /// Returns whether the list of members has this text; `None` where the cluster does not answer.
    fn lists(&self, text: &str) -> Option<bool> {
        self.ask(&["member", "list"]).map(|list| list.contains(text))
    }

    /// Sends a signal to a member.
    pub(crate) fn signal(&self, at: usize, name: &str) {
        if let Some(child) = &self.members[at].child {
            signal(child.id(), name);
        }
    }

    /// The folder of the cluster's data.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill_all();
    }
}
