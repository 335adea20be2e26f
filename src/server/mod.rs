//! Sockets to requests, and the process around them.
//!
//! - `listener`: the listening sockets of an address, and the socket of the admin API.
//! - `worker`: one runtime per core, which accepts connections and hands them over.
//! - `balance`: connections of a busy worker go to one that has fewer.
//! - `idle_memory`: what idle connections have let go of goes back to the system.
//! - `connection`: one accepted connection: its handshake, HTTP/1 and HTTP/2, its timers and limits, its tunnel.
//! - `process`: start, reload, upgrade and stop, and the watched files.
//! - `control`: the implementation of the handle for the admin API and the command line.

mod balance;
pub(crate) mod connection;
mod control;
mod idle_memory;
mod listener;
mod process;
mod worker;

#[cfg(feature = "redis")]
pub(crate) use process::fleet::bus_settings;
pub(crate) use process::fleet::quorum_rules;
pub(crate) use process::inherited::Inherited;
pub(crate) use process::leader::etcd_settings;
pub(crate) use process::run::start;
pub(crate) use process::store::store_of;
