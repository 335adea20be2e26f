//! What the proxy says about itself: metrics, the access log, its own log, trace context. Called by all rooms,
//! calls none.

pub(crate) mod access_log;
mod families;
pub(crate) mod lines;
pub(crate) mod metrics;
pub(crate) mod process_log;
