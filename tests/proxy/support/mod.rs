//! A proxy in a process of its own, a scripted origin that can fail and come back, and a client that
//! sends bytes as they are.

mod barrier;
mod client;
mod conduct;
mod event_reader;
pub mod http2;
mod http2_origin;
mod impatient;
mod member;
mod nginx;
mod origin;
mod peer;
mod proxy;
mod random;
mod tls;
mod wire;

pub use barrier::Barrier;
pub use client::{Answer, Client};
pub use conduct::Does;
pub use event_reader::EventReader;
pub use impatient::ask_once;
pub use member::{Member, disturb, heal};
pub use nginx::Nginx;
pub use origin::{Ask, Origin};
pub use peer::Peer;
pub use proxy::Proxy;
pub use random::Random;
pub use tls::{Authority, Front, Pair, TlsClient, write_private};
pub use wire::Wire;

use std::time::{Duration, Instant};

/// How long anything that should happen may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until a condition holds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until a path is answered from the store of a proxy.
pub fn warm(proxy: &Proxy, path: &str) {
    proxy.get(path);
    let status = || proxy.get(path).field("cache-status").unwrap_or_default();
    eventually("a hit", || status().starts_with("ringway; hit"));
}

/// Whether a program that a test needs is there. Without it the test is skipped, unless
/// `RINGWAY_REQUIRE_TOOLS` says that everything is installed.
pub fn have(program: &str, package: &str) -> bool {
    let found = std::process::Command::new(program).arg("--version").output().is_ok();
    if !found {
        assert!(
            std::env::var_os("RINGWAY_REQUIRE_TOOLS").is_none(),
            "`{program}` is missing; install Debian's {package}"
        );
        eprintln!("skipped: needs `{program}` from Debian's package {package}");
    }
    found
}
