//! What the proxy says about itself: metrics, the access log, trace context. Called by all rooms,
//! calls none.

pub(crate) mod access_log;
pub(crate) mod metrics;
