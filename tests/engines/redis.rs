//! Redis servers: a primary, its replicas, and what happens to them.

use super::{free_port, program, signal, spawn, until};
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

/// A server with its data.
pub(crate) struct Redis {
    folder: tempfile::TempDir,
    pub(crate) port: u16,
    settings: Vec<String>,
    child: Option<Child>,
}

impl Redis {
    /// Starts an empty server with settings like `appendonly yes`; nothing where Redis is not installed.
    pub(crate) fn start(settings: &[&str]) -> Option<Redis> {
        program("redis-cli", &["/usr/bin"])?;
        program("redis-server", &["/usr/bin"])?;
        let settings = settings.iter().map(|&setting| setting.to_owned()).collect();
        let mut server = Redis { folder: tempfile::tempdir().unwrap(), port: free_port(), settings, child: None };
        server.run();
        Some(server)
    }

    /// The one server that tests share which only need a prefix of their own.
    pub(crate) fn shared() -> Option<&'static Redis> {
        static SHARED: OnceLock<Option<Redis>> = OnceLock::new();
        SHARED.get_or_init(|| Redis::start(&[])).as_ref()
    }

    /// Starts the server's process, and waits until it answers.
    pub(crate) fn run(&mut self) {
        self.run_unready();
        until("Redis", || self.ask(&["PING"]).is_some_and(|pong| pong == "PONG"));
    }

    /// Starts the server's process.
    pub(crate) fn run_unready(&mut self) {
        let log = File::options().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig=KILL", "--"]).arg(program("redis-server", &["/usr/bin"]).unwrap());
        command.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--protected-mode", "no"]);
        command.arg("--dir").arg(self.folder.path());
        for setting in ["save ", "repl-diskless-sync-delay 0", "repl-timeout 5", "repl-ping-replica-period 1"] {
            argue(&mut command, setting);
        }
        self.settings.iter().for_each(|setting| argue(&mut command, setting));
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(spawn(command));
    }

    /// Starts a replica of this server.
    pub(crate) fn replica(&self, settings: &[&str]) -> Redis {
        self.replica_through(self.port, settings)
    }

    /// Starts a replica of this server, which streams from it through a port.
    pub(crate) fn replica_through(&self, port: u16, settings: &[&str]) -> Redis {
        let source = format!("replicaof 127.0.0.1 {port}");
        let settings: Vec<&str> = settings.iter().copied().chain([source.as_str()]).collect();
        let mut replica = Redis::start(&settings).unwrap();
        // Started anew, it is what it was promoted to.
        replica.settings.pop();
        until("the replica", || replica.info("master_link_status") == "up");
        until("the replica, at the primary", || self.info("slave0").contains("state=online"));
        replica
    }

    /// Waits until a replica has everything that its primary has acknowledged.
    pub(crate) fn catch_up_with(&self, primary: &Redis) {
        let sent: u64 = primary.info("master_repl_offset").parse().unwrap();
        until("the replica's data", || self.info("slave_repl_offset").parse().is_ok_and(|has: u64| has >= sent));
    }

    /// Makes a replica the primary.
    pub(crate) fn promote(&self) {
        self.execute(&["REPLICAOF", "NO", "ONE"]);
    }

    /// Runs a command. Returns its reply as text, a line for each part.
    pub(crate) fn execute(&self, command: &[&str]) -> String {
        self.ask(command).unwrap_or_else(|| panic!("Redis refuses {command:?}"))
    }

    /// Runs a command; nothing where it fails.
    pub(crate) fn ask(&self, command: &[&str]) -> Option<String> {
        let port = self.port.to_string();
        let mut asked = Command::new("redis-cli");
        asked.args(["-h", "127.0.0.1", "-p", &port, "-e", "--no-auth-warning"]).args(command);
        let asked = asked.stderr(Stdio::null()).stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8_lossy(&asked.stdout).trim_end().to_owned();
        asked.status.success().then_some(text)
    }

    /// Returns a field of `INFO`; empty where there is none.
    pub(crate) fn info(&self, field: &str) -> String {
        let info = self.ask(&["INFO"]).unwrap_or_default();
        let value = info.lines().find_map(|line| line.trim_end().strip_prefix(field)?.strip_prefix(':'));
        value.unwrap_or_default().to_owned()
    }

    /// Lets the clock of the records below a prefix go on.
    pub(crate) fn pass(&self, prefix: &str, millis: u128) {
        let script = "local by = tonumber(ARGV[1])
            for _, key in ipairs(redis.call('KEYS', KEYS[1] .. 'r:*')) do
              for _, field in ipairs({ 'c', 'e' }) do
                local at = tonumber(redis.call('HGET', key, field))
                redis.call('HSET', key, field, string.format('%.0f', at - by))
              end
            end
            for _, id in ipairs(redis.call('ZRANGE', KEYS[1] .. 'ended', 0, -1)) do
              redis.call('ZINCRBY', KEYS[1] .. 'ended', -by, id)
            end";
        self.execute(&["EVAL", script, "1", prefix, &millis.to_string()]);
    }

    /// Sends a signal to the server.
    pub(crate) fn signal(&self, name: &str) {
        if let Some(child) = &self.child {
            signal(child.id(), name);
        }
    }

    /// Ends the server as a power failure would, but for what the kernel has not written.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Ends the server, and removes its data.
    pub(crate) fn lose(&mut self) {
        self.kill();
        for entry in fs::read_dir(self.folder.path()).unwrap().flatten() {
            let path = entry.path();
            let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
    }

    /// Adds a setting for the next start.
    pub(crate) fn set(&mut self, setting: &str) {
        self.settings.push(setting.to_owned());
    }

    /// The folder of the server's data.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }
}

fn argue(command: &mut Command, setting: &str) {
    let (name, values) = setting.split_once(' ').unwrap_or((setting, ""));
    command.arg(format!("--{name}")).args(if values.is_empty() { vec![""] } else { values.split(' ').collect() });
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}
