//! Metrics, the access log, the process log and trace context. Used by all rooms, uses none.

pub(crate) mod access_log;
mod families;
pub(crate) mod lines;
pub(crate) mod metrics;
pub(crate) mod process_log;
mod process_metrics;
