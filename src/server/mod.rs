//! From sockets to requests: listening sockets, the wire beneath hyper, workers, drain and signals.

mod connection;
mod listen;
mod listeners;
mod mirror;
mod nofile;
mod places;
mod purge;
mod reload;
mod run;
mod status;
mod store;
mod tunnel;
mod watch_file;
mod wire;
mod worker;

pub(crate) use run::start;
