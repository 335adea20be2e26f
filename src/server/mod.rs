//! From sockets to requests: listening sockets, the wire beneath hyper, workers, drain and signals.

mod addresses;
mod connection;
mod gather;
mod greeting;
mod http2;
mod listen;
mod listeners;
mod meter;
mod mirror;
mod nofile;
mod places;
mod proxy_protocol;
mod purge;
mod reload;
mod run;
mod status;
mod store;
mod tunnel;
mod watch_file;
mod watch_secrets;
mod wire;
mod worker;

pub(crate) use run::start;
