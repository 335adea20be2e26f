//! The proxy as its users meet it: the real program, real sockets, nodes that follow a script.

#![allow(unreachable_pub, missing_docs, clippy::unwrap_used)]

mod accounts;
mod bounds;
mod browser;
mod caching;
mod causal;
mod cli;
mod closing;
mod demo;
mod deploy;
mod docs;
mod drain;
mod early_answers;
#[path = "../engines/mod.rs"]
mod engines;
mod events;
mod facts;
mod fields;
mod fleet;
mod floods;
mod following;
mod forwarding;
mod framing;
mod golden;
mod grpc;
mod http2;
mod http2_nodes;
mod idempotency;
mod import;
mod leader;
mod malformed;
mod model;
mod nodes;
mod observe;
mod observers;
mod pipelining;
mod pools;
mod process_log;
mod proxy_protocol;
mod rate_limit;
mod reference;
mod reload;
mod routes;
mod sagas;
mod scale;
mod sessions;
mod stalls;
mod stores;
mod strong;
mod support;
mod timers;
mod tls;
mod tls_nodes;
mod tunnels;
mod upgrade;
