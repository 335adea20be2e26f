//! A request's way, in this order, a file a step: `request` (its one form), `route`, `idempotent`,
//! `rate_limit`, `caching` (with `filling` where the cache needs the node, and `serving` where it has something),
//! `affinity`, `hash_key`, `forward`, `upstream` (with `attempts` from node to node), `answer`.
//!
//! `engine` holds what a worker needs for it, `snapshot` what one configuration says, `exchange`
//! what is remembered of one request, `client` what the steps may ask of the connection.

pub(crate) mod affinity;
mod answer;
mod attempts;
mod body;
mod caching;
mod client;
mod engine;
mod exchange;
mod filling;
mod forward;
mod hash_key;
mod idempotent;
mod min_rate;
mod rate_limit;
mod request;
mod request_buffer;
mod route;
mod serving;
mod snapshot;
mod upstream;

pub(crate) use answer::{ResponseBody, redirect_target};
pub(crate) use client::{Client, Phase, Secured, Streams, Tunnel};
pub(crate) use engine::{Answering, Engine, Journeying};
pub(crate) use exchange::RequestRecorder;
pub(crate) use hash_key::{ScopeSources, find_key};
pub(crate) use request::{Bounds, Form, enter, underscores, unsupported_coding};
pub(crate) use route::{Query, Table};
pub(crate) use snapshot::{Parts, Snapshot};
