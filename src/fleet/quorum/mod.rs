//! The stamps and marks of strong reads on the nodes of a fleet: the connections, and what goes over them. The decisions
//! are those of `consistency::quorum`.
//!
//! - `rules`: nodes, numbers and digest of a configuration, and the nodes of a slot. `reach`: their addresses.
//! - `messages`, `wire`: the commands to one server, and their replies. `link`: one node for one thread: its connection, and the checks
//!   that gather while another batch is on its way; `serving`: the work on it.
//! - `client`: all nodes for one thread; `start`: its tasks. `check`: the look of one reader. `mark`: the mark of one write.
//! - `debts`: slots that must be stamped once the quorum is back.
//!
//! Each worker has a client of its own, with one connection to each node; purges have one on a thread of their own
//! (`stamper`).

mod check;
mod client;
mod debts;
mod link;
mod mark;
#[cfg_attr(not(feature = "redis"), allow(dead_code, reason = "no connection reads them"))]
mod messages;
mod reach;
mod rules;
mod serving;
mod stamper;
mod start;
#[cfg(feature = "redis")]
mod wire;
#[cfg(not(feature = "redis"))]
#[path = "wire_none.rs"]
mod wire;

pub(crate) use check::Check;
pub(crate) use client::QuorumClient;
pub(crate) use mark::{Ending, Lapsed, Mark, MarkLost};
pub(crate) use reach::Reach;
pub(crate) use rules::{QuorumRules, QuorumSettings, Spread};
pub(crate) use stamper::Stamper;
#[cfg(feature = "redis")]
pub(crate) use wire::inspect;
