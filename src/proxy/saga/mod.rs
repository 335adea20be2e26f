//! Routes that run sagas: what makes a request one, its one saga, and its answer.
//!
//! `begin` takes a request to its claim, with which the saga's row is inserted. `executor` carries a saga out in a task
//! of its own, which outlives the client; `attempt` is one request of a step. `recovery` goes on with the sagas of
//! owners that are gone. `answers` are what clients see, `rules` what a route has; `kill` ends the process where a test
//! says.

mod answers;
mod attempt;
mod begin;
mod executor;
mod kill;
mod marked;
mod recovery;
mod rules;
mod status;

pub(super) use begin::{SagaRequest, begin};
pub(crate) use recovery::{missing_pool, recover};
pub(super) use rules::{SagaRules, states_route};
pub(super) use status::show;
pub(crate) use status::status_of;
