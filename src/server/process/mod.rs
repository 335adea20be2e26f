//! The life of the process: start, signals and stop, reloads, upgrades of the binary, and inheritance.

pub(super) mod background;
#[cfg_attr(not(feature = "redis"), allow(dead_code, reason = "no bus without Redis"))]
pub(in crate::server) mod fleet;
mod follow;
pub(super) mod handle;
pub(super) mod handover;
mod hints;
pub(super) mod inherited;
pub(in crate::server) mod leader;
mod log;
mod nofile;
pub(super) mod reload;
pub(super) mod run;
pub(super) mod store;
mod systemd;
mod upgrade;
