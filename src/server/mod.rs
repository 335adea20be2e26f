//! From sockets to requests: listening sockets, the wire beneath hyper, workers, drain and signals.

mod connection;
mod listen;
mod nofile;
mod run;
mod status;
mod tunnel;
mod wire;
mod worker;

pub(crate) use run::start;
