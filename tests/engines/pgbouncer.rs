//! PgBouncer in transaction mode before a PostgreSQL server.

use super::{Postgres, as_engine, free_port, give_to_engine, program, spawn, until};
use std::net::TcpStream;
use std::process::{Child, Stdio};

/// A running PgBouncer.
pub(crate) struct PgBouncer {
    _folder: tempfile::TempDir,
    port: u16,
    child: Child,
}

impl PgBouncer {
    /// Starts one before all databases of a server; nothing where it is not installed.
    pub(crate) fn before(server: &Postgres) -> Option<PgBouncer> {
        let pgbouncer = program("pgbouncer", &["/usr/sbin"])?;
        let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
        let file = folder.path().join("pgbouncer.ini");
        let text = format!(
            "[databases]\n* = host=127.0.0.1 port={} user=ringway\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nauth_type = any\npool_mode = transaction\nunix_socket_dir =\n\
             default_pool_size = 4\nlogfile = {}\npidfile =\n",
            server.port,
            folder.path().join("log").display()
        );
        std::fs::write(&file, text).unwrap();
        give_to_engine(folder.path());
        let mut command = as_engine(&pgbouncer);
        command.arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
        let child = spawn(command);
        until("PgBouncer", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Some(PgBouncer { _folder: folder, port, child })
    }

    /// The URL of a database behind it.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://ringway@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
