//! Sagas: a list of idempotent requests with undo, behind one request with an `Idempotency-Key`.
//!
//! `definition` is a saga as the configuration has it, and as the row of a running saga keeps it; `values` are the parts
//! of the request and of the steps' answers that its templates use.

pub(crate) mod definition;
pub(crate) mod values;

pub(crate) use definition::{BadDefinition, Definition, Outgoing, Respond, Retries, Step, StepRequest};
pub(crate) use values::{BadInput, Context, Kept, MAX_KEPT};
