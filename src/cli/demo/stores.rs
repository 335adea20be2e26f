//! Three Redis servers of the demo's own, for the bus of its two proxies; without `redis-server` the demo goes on
//! without them.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The longest time until a server answers.
const PATIENCE: Duration = Duration::from_secs(5);

/// The servers, which end with the demo.
pub(super) struct Stores {
    servers: Vec<Server>,
}

struct Server {
    address: SocketAddr,
    child: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Stores {
    /// Starts the servers, with their files in a folder; `None` where this program has no bus, or Redis is not installed.
    pub(super) async fn start(folder: &Path) -> Option<Stores> {
        if cfg!(not(feature = "redis")) {
            return None;
        }
        let mut servers = Vec::new();
        for number in 1..=3 {
            let folder = folder.join(format!("redis-{number}"));
            servers.push(start(&folder).await.ok()?);
        }
        Some(Stores { servers })
    }

    /// Returns the block `redis` of a fleet.
    pub(super) fn block(&self) -> String {
        let numbered = self.servers.iter().enumerate();
        let nodes = numbered.map(|(at, server)| format!("{{ id: r{}, address: \"{}\" }}", at + 1, server.address));
        format!("redis: {{ nodes: [{}] }}", nodes.collect::<Vec<_>>().join(", "))
    }
}

/// Starts a server that keeps nothing, and waits until it answers.
async fn start(folder: &Path) -> io::Result<Server> {
    std::fs::create_dir(folder)?;
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut server = Server { address, child: spawn(folder, address.port())? };
    let deadline = Instant::now() + PATIENCE;
    loop {
        if answers(address).await.is_ok() {
            return Ok(server);
        }
        if server.child.try_wait()?.is_some() || Instant::now() > deadline {
            return Err(io::Error::other("redis-server does not start"));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn spawn(folder: &Path, port: u16) -> io::Result<Child> {
    // The server ends with the demo, even where that is killed.
    let mut tied = Command::new("setpriv");
    tied.args(["--pdeathsig=KILL", "--", "redis-server"]);
    // The error where there is none: `setpriv` would start without it.
    Command::new("redis-server").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    let mut alone = Command::new("redis-server");
    let start = |command: &mut Command| {
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"]);
        command.arg(folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn()
    };
    start(&mut tied).or_else(|_| start(&mut alone))
}

async fn answers(address: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"PING\r\n").await?;
    let mut reply = [0; 7];
    stream.read_exact(&mut reply).await?;
    if &reply == b"+PONG\r\n" { Ok(()) } else { Err(io::Error::other("the server loads")) }
}
