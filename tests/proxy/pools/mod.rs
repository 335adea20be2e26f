//! Pools whose nodes fail, come and go, through real sockets.

mod discovery;
mod ejection;
mod health;
mod link;
mod load;
mod retries;
mod slow_start;

use crate::support::{Origin, Proxy};

/// A proxy whose route keeps strict sessions by these settings, beside `hash_on: [uri]`, and the folder of its secret.
fn with_sessions(nodes: &[Origin], pool: &str, settings: &str) -> (Proxy, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    std::fs::write(&key, "0123456789abcdef0123456789abcdef").unwrap();
    let cookie = format!("{{ mode: strict, secret_file: \"{}\"{settings} }}", key.display());
    let text = Proxy::pool(&Origin::addresses(nodes), pool)
        .replace("hash_on: [uri] }", &format!("hash_on: [uri], affinity_cookie: {cookie} }}"));
    (Proxy::start(&text), folder)
}

/// The cookie of a session that begins with this path.
fn begin_session(proxy: &Proxy, path: &str) -> String {
    proxy.get(path).field("set-cookie").unwrap().split(';').next().unwrap().to_owned()
}
