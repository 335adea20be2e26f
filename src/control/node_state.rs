//! The state of a node in JSON: its word in the file.

use crate::config::NodeState;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serializer};

pub(crate) fn serialize<S: Serializer>(state: &NodeState, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(state.word())
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<NodeState, D::Error> {
    let word = String::deserialize(from)?;
    NodeState::from_word(&word).ok_or_else(|| D::Error::custom(format!("`{word}` is no state of a node")))
}
