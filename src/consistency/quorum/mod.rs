//! Strong reads by a quorum: the version stamps and marks that N independent nodes hold for each slot, and the decisions
//! that are made of them. Data, no I/O.
//!
//! - `slot`: the slots, each a share of all groups. `nodes`: sets of nodes, and how many of a set are needed.
//! - `look`: what the nodes say of a reader's slots; the tag of a stored response; the verdict on it.
//! - `writer`: a write, from the mark before its first byte to the stamps after its answer.
//! - `search`: every interleaving of a write, a fetch and a read, with crashes and nodes that forget.
//!
//! A node holds a random stamp and a set of marks for each of its slots. A write puts a new stamp and a mark on W nodes of
//! each slot before it is sent, and another stamp, without the mark, when it is answered. A stored response has the stamps
//! that R nodes showed before its fetch began. It is served where R of these nodes show the same stamps now, and no mark:
//! as R + W > N, one of them has seen each write that was begun meanwhile.

mod look;
mod nodes;
#[cfg(test)]
mod search;
mod slot;
mod writer;

pub(crate) use look::{Life, Look, LookRules, NodeReply, QuorumTag, SlotView, Standing, Verdict};
pub(crate) use nodes::{Need, Needs, NodeSet};
pub(crate) use slot::{ALL, Slot, Slots, slot_of};
pub(crate) use writer::{Begun, Farewell, Millis, Op, Outcome, Writer};
