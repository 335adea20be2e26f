//! Ringway, an edge proxy.
//!
//! A request walks through the rooms in one direction, and imports point the same way: a room
//! knows only what stands below it. `docs/architecture.md` is the map.
//!
//! - [`cli`]: one file a command.
//! - `server`: sockets to requests: listeners, workers, connections; and the life of the process.
//! - `proxy`: the way of a request, a file a step.
//! - `cache`: stored responses, fetches that many share, purges.
//! - `idempotency`: requests that run once; records, stores, one run.
//! - `fleet`: the bus that carries purges and writes to the other proxies.
//! - `saga`: a list of idempotent requests with undo, behind one request.
//! - `upstream`: a pool's nodes, their health, who takes a key, connections, one attempt at one of them.
//! - [`ring`]: the consistent-hash ring, pure data.
//! - `admin`: the admin listener. `control`: the handle on a running proxy that it holds.
//! - [`config`]: YAML to validated settings with the place of every error.
//! - `import`: the files of nginx and HAProxy to Ringway's, pure data.
//! - `template`: texts and JSON with references, pure data.
//! - `telemetry`: metrics, access log, trace context; called by all, calls none.
//! - `http`: what HTTP itself says. `tls`: what TLS says: certificates, tickets, trust. `io`: what both ends do
//!   with a socket. `clock`: the clocks, which a test can set.

mod admin;
mod cache;
pub mod cli;
mod clock;
pub mod config;
mod consistency;
mod control;
#[cfg(test)]
#[path = "../tests/engines/mod.rs"]
mod engines;
#[cfg_attr(not(feature = "redis"), allow(dead_code, unused_imports, reason = "no bus without Redis"))]
mod fleet;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
mod http;
mod idempotency;
mod import;
mod io;
mod proxy;
#[cfg(test)]
mod reference;
pub mod ring;
mod saga;
mod server;
mod telemetry;
mod template;
mod tls;
mod upstream;
