//! Metrics and their history, the access log, the observers of requests, the process log. Used by all rooms, uses none.

pub(crate) mod access_log;
mod families;
pub(crate) mod history;
pub(crate) mod lines;
pub(crate) mod metrics;
pub(crate) mod observers;
pub(crate) mod process_log;
mod process_metrics;
pub(crate) mod tap;
pub(crate) mod top;
pub(crate) mod watched;
