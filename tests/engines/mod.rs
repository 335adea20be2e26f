//! Real engines for tests: started on loopback ports from the programs of the machine, ended with the test process,
//! and the faults that happen to them. Shared by the unit tests and by `tests/proxy`.
#![allow(dead_code, unused_imports, missing_docs, reason = "each of the two test programs uses a part")]

mod etcd;
mod link;
mod pgbouncer;
mod postgres;
mod redis;

pub(crate) use etcd::Etcd;
pub(crate) use link::Link;
pub(crate) use pgbouncer::PgBouncer;
pub(crate) use postgres::Postgres;
pub(crate) use redis::Redis;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Returns the path of a program, from PATH or a folder; nothing, and a line that says so, where it is missing.
///
/// # Panics
/// Where `RINGWAY_REQUIRE_TOOLS` says that everything is installed.
pub(crate) fn program(name: &str, folders: &[&str]) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let found = path.split(':').chain(folders.iter().copied()).map(|folder| Path::new(folder).join(name));
    let found = found.into_iter().find(|path| path.exists());
    if found.is_none() {
        assert!(std::env::var_os("RINGWAY_REQUIRE_TOOLS").is_none(), "`{name}` is not installed");
        eprintln!("skipped: `{name}` is not installed");
    }
    found
}

/// Returns a port that is free, and below those that the kernel gives to others: an engine that is killed finds it free
/// when it comes back.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = std::process::id() * 61 % 9000;
    loop {
        let step = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(20_000 + (first + step) % 9000).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Waits until a condition holds.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "it never came: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Returns whether tests run as root, whom some engines refuse.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Gives a folder to the user under whom an engine runs.
pub(crate) fn give_to_engine(folder: &Path) {
    if is_root() {
        let given = Command::new("chown").args(["-R", "postgres:postgres"]).arg(folder).status();
        assert!(given.unwrap().success());
    }
}

/// Returns a command that runs as the engines' user, and ends with this process.
pub(crate) fn as_engine(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.arg("--pdeathsig=KILL");
    if is_root() {
        command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]);
    }
    command.arg("--").arg(program);
    command
}

/// A program to start, and where to send it.
type Order = (Command, Sender<Child>);

/// Starts a program from a thread that lives as long as this process: the kernel ends the program with that thread.
pub(crate) fn spawn(command: Command) -> Child {
    static SPAWNER: OnceLock<Mutex<Sender<Order>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, asked) = channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in asked {
                command.stdin(Stdio::null());
                let _ = answer.send(command.spawn().unwrap());
            }
        });
        Mutex::new(orders)
    });
    let (answer, child) = channel();
    spawner.lock().unwrap_or_else(PoisonError::into_inner).send((command, answer)).unwrap();
    child.recv().unwrap()
}

/// Sends a signal to a process.
pub(crate) fn signal(pid: u32, name: &str) {
    let sent = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status();
    assert!(sent.unwrap().success(), "no process {pid}");
}
