//! What HTTP itself says, shared by the rooms above: targets, fields, bodies, problem documents.

pub(crate) mod budget;
pub(crate) mod buffered_body;
pub(crate) mod date;
pub(crate) mod fields;
pub(crate) mod forwarded;
pub(crate) mod head;
pub(crate) mod method;
pub(crate) mod problem;
pub(crate) mod target;
pub(crate) mod trace;
