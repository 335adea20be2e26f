//! The cache, through the real proxy and before an origin that follows a script.

mod collapsing;
mod poisoning;
mod purging;
mod ranges;
mod rfc;
mod serving;
