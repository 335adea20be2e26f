//! The pipeline of a request. `pipeline` calls the steps in this order: `request` (normalisation), `route`,
//! `rate_limit`, `idempotent`, `caching`, `affinity`, `hash_key`, `forward`, `upstream`, `respond`.
//!
//! `plan` has the decisions, which `ringway explain` prints too; `step` is the result of a step; `respond::finish` is
//! the one exit. `worker_context` has the state that the steps of a worker share, `snapshot` the configuration,
//! `exchange` the record of one request, `downstream` the connection, `client_body` its body.

pub(crate) mod affinity;
mod body;
mod caching;
mod client_body;
mod downstream;
mod exchange;
mod field_rules;
mod forward;
mod groups;
mod hash_key;
mod idempotent;
mod marked;
mod min_rate;
mod pipeline;
pub(crate) mod plan;
mod problems;
mod rate_limit;
mod request;
mod request_buffer;
mod respond;
mod response_body;
mod route;
mod saga;
mod session;
mod snapshot;
mod step;
mod streams;
pub(crate) mod strong;
mod upstream;
mod worker_context;

pub(crate) use downstream::{Downstream, Phase, Secured, Tunnel, TunnelSlot};
pub(crate) use exchange::RequestRecorder;
pub(crate) use groups::{GroupedRequest, uri_group};
pub(crate) use hash_key::{ScopeSources, find_key};
pub(crate) use pipeline::{answer, unreadable};
pub(crate) use request::{Bounds, Form, enter, underscores, unsupported_coding};
pub(crate) use respond::redirect_target;
pub(crate) use response_body::ResponseBody;
pub(crate) use route::Table;
pub(crate) use saga::{missing_pool, recover, status_of};
pub(crate) use snapshot::{Parts, Snapshot};
pub(crate) use step::ResponseFuture;
pub(crate) use streams::Streams;
pub(crate) use worker_context::WorkerContext;
