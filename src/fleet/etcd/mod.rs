//! The client of etcd, by its JSON gateway (`/v3/`) over HTTP/1.1.
//!
//! - `settings`: the endpoints, and the secrets to reach them. `wire`: the JSON of requests and replies.
//! - `connection`: a connection to one endpoint. `client`: calls that fail over from endpoint to endpoint, and the
//!   token of the user; `error`: why they fail. `watch`: the stream of changes below a prefix.
//! - `inspect`: what `ringway check --connect` says of a cluster; `version`: those with known faults.

mod client;
mod connection;
mod error;
mod inspect;
mod settings;
mod version;
mod watch;
mod wire;

pub(super) use client::{Client, Txn};
pub(super) use error::EtcdError;
pub(crate) use inspect::inspect;
pub(crate) use settings::{Endpoint, EtcdLogin, EtcdSettings};
pub(super) use watch::{Batch, Watch};
pub(super) use wire::{Header, KeyValue};
