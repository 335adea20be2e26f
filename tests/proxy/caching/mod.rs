//! The cache, through the real proxy and before an origin that follows a script.

mod collapsing;
mod invalidation;
mod poisoning;
mod policy;
mod purging;
mod ranges;
mod rfc;
mod serving;
mod shared_fetches;
mod slow_readers;
mod superseded;
mod vary;

use crate::support::{Origin, Proxy, eventually};

/// Returns the `Cache-Status` of a GET with these fields.
fn status(proxy: &Proxy, path: &str, fields: &str) -> String {
    proxy.get_with(path, fields).field("cache-status").unwrap_or_default()
}

fn is_hit(proxy: &Proxy, path: &str, fields: &str) -> bool {
    status(proxy, path, fields).contains("; hit")
}

/// Waits until no request is being answered, and no response is on its way to the store.
fn settled(proxy: &Proxy) {
    eventually("the end of all fetches", || proxy.metric("ringway_requests_in_flight") == 0.0);
}

/// Waits until a path's stored response is stale: until a request goes to the origin.
fn outlive(origin: &Origin, proxy: &Proxy, path: &str) {
    let asked = origin.asked();
    eventually("staleness", || {
        proxy.get(path);
        origin.asked() > asked
    });
}
