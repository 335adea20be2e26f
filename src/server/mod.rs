//! From sockets to requests: listening sockets, the wire beneath hyper, workers, drain and signals.

mod addresses;
mod admin_socket;
mod connection;
pub(crate) mod flood;
mod follow;
mod gauges;
mod handover;
mod handshake;
mod http1_io;
mod http2;
mod http2_io;
mod inherited;
#[cfg(any(test, fuzzing))]
pub(crate) mod interleavings;
mod listen;
mod listeners;
mod nofile;
mod places;
pub(crate) mod proxy_protocol;
mod purge;
mod reload;
mod run;
mod status;
mod store;
mod systemd;
mod tunnel;
mod upgrade;
mod websocket;
mod worker;

pub(crate) use inherited::Inherited;
pub(crate) use run::start;
