//! HTTP/1 as a client of nodes speaks it (RFC 9112): bytes and messages, without sockets, clocks or waiting.
//!
//! `request` writes a request's head and frames its content; `response` reads a response's head and decides how its
//! content is framed; `content` takes that content out of what follows. [`Link`](super::link::Link) moves the bytes.

pub(crate) mod content;
pub(crate) mod request;
pub(crate) mod response;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod whole;

#[cfg(test)]
mod tests;
