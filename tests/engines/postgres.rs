//! PostgreSQL servers: a primary, its standbys, and what happens to them.

use super::{as_engine, free_port, give_to_engine, program, signal, spawn, until};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

/// Where Debian keeps the programs of its versions, the newest first.
fn folders() -> Vec<String> {
    let mut folders: Vec<String> = fs::read_dir("/usr/lib/postgresql")
        .map(|versions| versions.flatten().map(|version| format!("{}/bin", version.path().display())).collect())
        .unwrap_or_default();
    folders.sort();
    folders.reverse();
    folders
}

fn find(name: &str) -> Option<PathBuf> {
    let folders = folders();
    program(name, &folders.iter().map(String::as_str).collect::<Vec<_>>())
}

/// A server with its data.
pub(crate) struct Postgres {
    folder: tempfile::TempDir,
    pub(crate) port: u16,
    settings: Vec<String>,
    child: Option<Child>,
}

impl Postgres {
    /// Starts an empty server; nothing where PostgreSQL is not installed.
    pub(crate) fn start() -> Option<Postgres> {
        Postgres::start_with(&["fsync=off"])
    }

    /// Starts an empty server with settings of `postgresql.conf`.
    pub(crate) fn start_with(settings: &[&str]) -> Option<Postgres> {
        let initdb = find("initdb")?;
        let server = Postgres::unstarted(settings);
        let data = server.data();
        let made = as_engine(&initdb)
            .args(["--no-sync", "-A", "trust", "-U", "ringway", "--locale=C", "-E", "UTF8", "-D"])
            .arg(&data)
            .stdout(Stdio::null())
            .status();
        assert!(made.unwrap().success());
        let mut rules = fs::read_to_string(data.join("pg_hba.conf")).unwrap();
        rules.push_str("host replication all 127.0.0.1/32 trust\n");
        fs::write(data.join("pg_hba.conf"), rules).unwrap();
        let mut server = server;
        server.run();
        Some(server)
    }

    fn unstarted(settings: &[&str]) -> Postgres {
        let folder = tempfile::tempdir().unwrap();
        give_to_engine(folder.path());
        let settings = settings.iter().map(|&setting| setting.to_owned()).collect();
        Postgres { folder, port: free_port(), settings, child: None }
    }

    /// The one server that tests share which only need a database of their own.
    pub(crate) fn shared() -> Option<&'static Postgres> {
        static SHARED: OnceLock<Option<Postgres>> = OnceLock::new();
        SHARED.get_or_init(|| Postgres::start_with(&["fsync=off", "max_connections=400"])).as_ref()
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Starts the server's process, and waits until it answers.
    pub(crate) fn run(&mut self) {
        self.run_unready();
        until("PostgreSQL", || self.answers());
    }

    /// Starts the server's process.
    pub(crate) fn run_unready(&mut self) {
        let log = File::options().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        let mut command = as_engine(&find("postgres").unwrap());
        command.arg("-D").arg(self.data()).args(["-p", &self.port.to_string()]);
        let fixed = [
            "listen_addresses=127.0.0.1".to_owned(),
            format!("unix_socket_directories={}", self.folder.path().display()),
            "hot_standby=on".to_owned(),
            "wal_level=replica".to_owned(),
            "max_wal_senders=8".to_owned(),
        ];
        for setting in fixed.iter().chain(&self.settings) {
            command.args(["-c", setting]);
        }
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(spawn(command));
    }

    /// Returns whether the server answers.
    pub(crate) fn answers(&self) -> bool {
        self.ask("postgres", "SELECT 1").is_some()
    }

    /// Makes a standby of this server, which streams from it under a name and through a port.
    pub(crate) fn standby(&self, name: &str, port: u16, settings: &[&str]) -> Postgres {
        let mut standby = Postgres::unstarted(settings);
        let copied = as_engine(&find("pg_basebackup").unwrap())
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", "ringway", "-c", "fast", "--no-sync", "-D"])
            .arg(standby.data())
            .status();
        assert!(copied.unwrap().success());
        standby.follow(name, port);
        standby
    }

    fn follow(&mut self, name: &str, port: u16) {
        let source = format!("host=127.0.0.1 port={port} user=ringway application_name={name}");
        self.settings.push(format!("primary_conninfo={source}"));
        fs::write(self.data().join("standby.signal"), "").unwrap();
        give_to_engine(&self.data());
        self.run();
    }

    /// Makes a standby the primary.
    pub(crate) fn promote(&self) {
        self.execute("postgres", "SELECT pg_promote()");
    }

    /// Makes a database of its own for a test. Returns its URL.
    pub(crate) fn database(&self, name: &str) -> String {
        self.execute("postgres", &format!("CREATE DATABASE \"{name}\""));
        self.url(name)
    }

    /// The URL of a database, without TLS.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://ringway@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    /// Runs a statement. Returns its rows as text.
    pub(crate) fn execute(&self, database: &str, statement: &str) -> String {
        self.ask(database, statement).unwrap_or_else(|| panic!("PostgreSQL refuses `{statement}`"))
    }

    /// Runs a statement; nothing where it fails.
    pub(crate) fn ask(&self, database: &str, statement: &str) -> Option<String> {
        let asked = Command::new("psql")
            .args(["-X", "-A", "-t", "-q", "-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", "ringway"])
            .args(["-d", database, "-c", statement])
            .env("PGCONNECT_TIMEOUT", "5")
            .env("PGOPTIONS", "-c synchronous_commit=local")
            .stderr(Stdio::null())
            .output()
            .unwrap();
        asked.status.success().then(|| String::from_utf8_lossy(&asked.stdout).trim().to_owned())
    }

    /// Starts the server with a certificate.
    pub(crate) fn use_tls(&mut self, chain: &Path, key: &Path) {
        use std::os::unix::fs::PermissionsExt;
        for (from, to) in [(chain, "server.crt"), (key, "server.key")] {
            let to = self.data().join(to);
            fs::copy(from, &to).unwrap();
            fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).unwrap();
        }
        give_to_engine(&self.data());
        self.settings.push("ssl=on".to_owned());
        self.run();
    }

    /// Sends a signal to the server and its processes.
    pub(crate) fn signal(&self, name: &str) {
        for pid in self.processes() {
            signal(pid, name);
        }
    }

    fn processes(&self) -> Vec<u32> {
        let Some(child) = &self.child else { return Vec::new() };
        let mut found = vec![child.id()];
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap_or_default();
        found.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        found
    }

    /// Ends the server as a power failure would.
    pub(crate) fn kill(&mut self) {
        let processes = self.processes();
        if let Some(mut child) = self.child.take() {
            for pid in processes {
                let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).stderr(Stdio::null()).status();
            }
            let _ = child.wait();
        }
        let _ = fs::remove_file(self.data().join("postmaster.pid"));
    }

    /// Returns the server's log.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// The folder of the server's socket.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.kill();
    }
}
