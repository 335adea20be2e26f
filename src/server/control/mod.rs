//! The state of the running process for the admin API and the command line: status, gauges, and purges.

mod fleet;
pub(super) mod gauges;
pub(super) mod purge;
mod sagas;
mod status;
