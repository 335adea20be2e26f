//! The running process as the admin API and the command line see it: its status, its gauges, and purges.

pub(super) mod gauges;
mod purge;
mod status;
