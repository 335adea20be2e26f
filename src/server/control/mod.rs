//! The state of the running process for the admin API and the command line: status, gauges, and purges.

pub(super) mod gauges;
mod purge;
mod sagas;
mod status;
