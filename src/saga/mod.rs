//! Sagas: a list of idempotent requests with undo, behind one request with an `Idempotency-Key`.
//!
//! `definition` is a saga as the row of a running one keeps it; `settings` makes it from the configuration. `inputs`
//! takes from a request and from the steps' answers the `values` that its templates use. `machine` is the protocol as a
//! pure function, `log` is what its proxies make durable, `keys` are the keys of the steps.

pub(crate) mod definition;
pub(crate) mod inputs;
pub(crate) mod keys;
pub(crate) mod log;
pub(crate) mod machine;
#[cfg(test)]
mod search;
mod settings;
pub(crate) mod values;

pub(crate) use definition::{Definition, Outgoing};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use definition::{Respond, Retries, Step, StepRequest};
pub(crate) use inputs::BadInput;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use values::MAX_KEPT;
pub(crate) use values::{Context, Kept};
