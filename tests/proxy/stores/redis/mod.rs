//! Stores in Redis: the same promises, and the failures that are its own.

mod failover;
mod failures;
mod operating;
mod sharing;

use super::*;

/// The addresses of a store, and the file by which proxies of one machine know it.
pub struct Site {
    folder: tempfile::TempDir,
    ports: Vec<u16>,
    more: String,
}

impl Site {
    pub fn new(ports: &[u16]) -> Site {
        Site::with(ports, "")
    }

    /// With more settings of the store.
    pub fn with(ports: &[u16], more: &str) -> Site {
        Site { folder: tempfile::tempdir().unwrap(), ports: ports.to_vec(), more: more.to_owned() }
    }

    pub fn identity_file(&self) -> PathBuf {
        self.folder.path().join("store.id")
    }

    /// The block of the configuration, for a store at these ports.
    pub fn block_at(&self, ports: &[u16]) -> String {
        let addresses: Vec<String> = ports.iter().map(|port| format!("\"127.0.0.1:{port}\"")).collect();
        let (addresses, file, more) = (addresses.join(", "), self.identity_file(), &self.more);
        format!(
            "idempotency_store: {{ kind: redis, address: [{addresses}], identity_file: {}{more} }}\n",
            file.display()
        )
    }

    pub fn text_at(&self, ports: &[u16], node: SocketAddr, settings: &str) -> String {
        self.block_at(ports) + &configuration(&[node], settings, "timeouts: { connect: 1s, first_byte: 10s }")
    }

    pub fn text(&self, node: SocketAddr, settings: &str) -> String {
        self.text_at(&self.ports, node, settings)
    }

    /// Starts a proxy before a node, whose one route runs requests with a key once.
    pub fn proxy(&self, node: SocketAddr, settings: &str) -> Proxy {
        Proxy::start(&self.text(node, settings))
    }
}

/// The promise that a proxy prints.
pub fn promise(proxy: &Proxy) -> String {
    proxy.admin_get("/api/status").json()["idempotency"]["promise"].to_string()
}
