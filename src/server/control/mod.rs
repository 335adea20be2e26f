//! The state of the running process for the admin API and the command line: status, gauges, plans and purges.

mod fleet;
pub(super) mod gauges;
mod plan;
pub(super) mod purge;
mod sagas;
mod status;
