//! Calls of etcd that have not succeeded.

use super::wire::Refusal;
use http::StatusCode;

/// A call that has not succeeded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EtcdError {
    /// No endpoint answers; the call may have been carried out.
    #[error("{0}")]
    Unreachable(String),
    /// etcd refuses the call; `code` is that of gRPC.
    #[error("{message}")]
    Refused { code: u64, message: String },
    #[error("a reply of etcd cannot be read: {0}")]
    Malformed(String),
}

/// The codes of gRPC.
const INVALID_ARGUMENT: u64 = 3;
const DEADLINE_EXCEEDED: u64 = 4;
pub(super) const NOT_FOUND: u64 = 5;
const UNKNOWN: u64 = 2;
const UNAVAILABLE: u64 = 14;
const UNAUTHENTICATED: u64 = 16;

impl EtcdError {
    /// Returns whether another endpoint, or the same one later, may answer.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            EtcdError::Unreachable(_) => true,
            EtcdError::Refused { code, .. } => matches!(*code, UNAVAILABLE | DEADLINE_EXCEEDED | UNKNOWN),
            EtcdError::Malformed(_) => false,
        }
    }

    /// Returns whether a new token may help.
    pub(super) fn is_about_the_token(&self) -> bool {
        match self {
            EtcdError::Refused { code: UNAUTHENTICATED, .. } => true,
            EtcdError::Refused { code: INVALID_ARGUMENT, message } => message.contains("auth"),
            _ => false,
        }
    }
}

/// Returns the error of a response that is no success.
pub(super) fn refusal(status: StatusCode, body: &[u8]) -> EtcdError {
    match serde_json::from_slice::<Refusal>(body) {
        Ok(Refusal { code, message, error }) if code > 0 => {
            EtcdError::Refused { code, message: if message.is_empty() { error } else { message } }
        }
        _ => EtcdError::Unreachable(format!("the endpoint answers with the status {}", status.as_u16())),
    }
}
