//! Guarantees of reads: the clocks, tags and session tokens of causal ones, by which no session sees an older version than
//! one that it has seen or written, on any proxy; and the stamps of strong ones (`quorum`). Data, no I/O.
//!
//! - `group`: resources that change together, by templates of a route. `vector`: dots, vectors and the clock of a process.
//! - `tag`: what a stored response includes. `token`: what a session has seen, by group. `signer`: tokens as text.
//! - `writes`: the writes of each group that the process knows.
//!
//! A process numbers each answer of a node that it gives to a client, when the head of the answer has arrived. Such a
//! number is a dot. A response may be served if its tag covers all dots that the session has of the response's groups:
//! its fetch began after the answers with these dots had arrived, so that it is no older than they are.

mod group;
pub(crate) mod quorum;
mod requester;
mod signer;
mod tag;
mod token;
mod vector;
mod writes;

pub(crate) use group::{GroupId, GroupSubject, GroupTemplate, Groups, digest, group_id};
pub(crate) use requester::{Causality, Guarantee, Rejection, Requester};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use signer::read_any;
pub(crate) use signer::{Opened, Signer};
pub(crate) use tag::{FetchBase, StoredTag};
pub(crate) use token::Token;
#[cfg(test)]
use vector::Clock;
pub(crate) use vector::Dot;
pub(crate) use writes::{Known, Write};

#[cfg(test)]
mod tests;
