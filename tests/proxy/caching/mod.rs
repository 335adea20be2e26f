//! The cache, through the real proxy and before an origin that follows a script.

mod collapsing;
mod mended;
mod poisoning;
mod purging;
mod ranges;
mod rfc;
mod serving;
mod slow_readers;
mod truth;
