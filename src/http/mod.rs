//! HTTP itself, for the rooms above: targets, fields, bodies, dates, problem documents.

pub(crate) mod budget;
pub(crate) mod buffered_body;
pub(crate) mod date;
pub(crate) mod fields;
pub(crate) mod forwarded;
pub(crate) mod head;
pub(crate) mod method;
pub(crate) mod problem;
mod problem_kinds;
pub(crate) mod target;
pub(crate) mod trace;
