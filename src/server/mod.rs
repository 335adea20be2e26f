//! From sockets to requests: listening sockets, the wire beneath hyper, workers, drain and signals.

mod addresses;
mod admin_socket;
mod connection;
mod follow;
mod gather;
mod greeting;
mod handover;
mod http2;
mod inherited;
#[cfg(any(test, fuzzing))]
pub(crate) mod interleavings;
mod listen;
mod listeners;
pub(crate) mod meter;
mod mirror;
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
mod wire;
mod worker;

pub(crate) use inherited::Inherited;
pub(crate) use run::start;
