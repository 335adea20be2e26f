//! Idempotency stores that several proxies share: real engines, links that fail, proxies and servers that die.

mod failover;
mod failures;
mod histories;
mod operating;
mod redis;
mod sharing;

use crate::idempotency::{charge, configuration};
use crate::support::{Barrier, Origin, Proxy};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The file with a store's URL, and the file by which proxies of one machine know the store.
pub struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    pub fn new(url: &str) -> Place {
        let place = Place { folder: tempfile::tempdir().unwrap() };
        place.moves_to(url);
        place
    }

    /// The store is at another address, or has another password.
    pub fn moves_to(&self, url: &str) {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(self.url_file(), url).unwrap();
        std::fs::set_permissions(self.url_file(), std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    pub fn url_file(&self) -> PathBuf {
        self.folder.path().join("url")
    }

    pub fn identity_file(&self) -> PathBuf {
        self.folder.path().join("store.id")
    }

    /// The block of the configuration.
    pub fn block(&self, more: &str) -> String {
        let (url, identity) = (self.url_file(), self.identity_file());
        format!(
            "idempotency_store: {{ kind: postgres, url_file: {}, identity_file: {}{more} }}\n",
            url.display(),
            identity.display()
        )
    }

    /// Starts a proxy before a node, whose one route runs requests with a key once.
    pub fn proxy(&self, node: SocketAddr, settings: &str) -> Proxy {
        Proxy::start(&self.text(node, settings))
    }

    /// The same, with the wall's clock off by so many seconds.
    pub fn proxy_off_by(&self, seconds: i64, node: SocketAddr, settings: &str) -> Proxy {
        let listeners = "listeners: [{ name: http, address: \"127.0.0.1:0\" }]\nadmin: { address: \"127.0.0.1:0\" }\n";
        let text = listeners.to_owned() + &self.text(node, settings);
        Proxy::start_as(Path::new(env!("CARGO_BIN_EXE_ringway")), &text, |command| {
            command.env("RINGWAY_CLOCK_OFFSET", seconds.to_string());
        })
    }

    pub fn text(&self, node: SocketAddr, settings: &str) -> String {
        self.block("") + &configuration(&[node], settings, "timeouts: { connect: 1s, first_byte: 10s }")
    }
}

/// The URL of a server that several addresses lead to.
pub fn url_of(ports: &[u16], database: &str) -> String {
    let hosts: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    format!("postgres://ringway@{}/{database}?sslmode=disable", hosts.join(","))
}

/// A node that counts how often each body, which is the key, was charged.
pub struct Counting {
    origin: Origin,
    counts: Arc<Mutex<HashMap<String, u32>>>,
}

impl Counting {
    pub fn start() -> Counting {
        Counting::start_with(Barrier::default())
    }

    /// Starts a node that answers a key which begins with `slow` only once the gate is open.
    pub fn start_with(gate: Barrier) -> Counting {
        let counts: Arc<Mutex<HashMap<String, u32>>> = Arc::default();
        let told = Arc::clone(&counts);
        let origin = Origin::start(move |ask, peer| {
            let key = String::from_utf8_lossy(&ask.body).into_owned();
            *told.lock().unwrap().entry(key.clone()).or_default() += 1;
            if key.starts_with("slow") {
                gate.wait();
            }
            peer.reply(201, "content-type: text/plain", &format!("charged {key} as {}", ask.number));
        });
        Counting { origin, counts }
    }

    pub fn address(&self) -> SocketAddr {
        self.origin.address
    }

    /// How often a key was charged.
    pub fn of(&self, key: &str) -> u32 {
        self.counts.lock().unwrap().get(key).copied().unwrap_or_default()
    }

    /// The keys that were charged more than once.
    pub fn twice(&self) -> Vec<String> {
        let counts = self.counts.lock().unwrap();
        counts.iter().filter(|(_, count)| **count > 1).map(|(key, _)| key.clone()).collect()
    }

    pub fn charged(&self) -> usize {
        self.counts.lock().unwrap().len()
    }
}

/// A request with a key, whose body is the key.
pub fn pay(key: &str) -> String {
    charge("/pay", key, key)
}

/// Whether the store takes writes, as the proxy's metrics say.
pub fn is_up(proxy: &Proxy) -> bool {
    proxy.metric("ringway_store_up{store=\"idempotency\"}") == 1.0
}

/// Clients that repeat each key at alternating proxies until its result or its unknown outcome is there.
pub fn pay_through(proxies: &[Proxy], prefix: &str, clients: usize, is_over: &AtomicBool) -> usize {
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..clients)
            .map(|client| {
                scope.spawn(move || {
                    let mut number = 0;
                    while !is_over.load(Ordering::Relaxed) {
                        let key = format!("{prefix}-{client}-{number}");
                        let deadline = Instant::now() + Duration::from_secs(40);
                        for proxy in proxies.iter().cycle().skip(client + number) {
                            let answer = proxy.ask(pay(&key));
                            if answer.status == 201 || (answer.status == 409 && answer.problem() == "outcome-unknown") {
                                break;
                            }
                            assert!(Instant::now() < deadline, "{key}: {answer:?}");
                        }
                        number += 1;
                    }
                    number
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    })
}
