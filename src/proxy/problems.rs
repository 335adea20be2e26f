//! Refusals that several steps share.

use super::client_body::BodyFault;
use crate::http::problem::{Problem, ProblemKind};

/// The registered methods that some routes may answer, for `Allow`.
pub(super) const ANSWERED_METHODS: &str = "GET, HEAD, OPTIONS, POST, PUT, PATCH, DELETE";

/// 413 for a body over the limit.
pub(super) fn too_large(limit: u64) -> Problem {
    let detail = format!("the request's body is larger than {limit} bytes");
    Problem::new(ProblemKind::ContentTooLarge, detail).closing()
}

/// 400 for a body whose chunks are not framed by the grammar.
pub(super) fn bad_chunk() -> Problem {
    Problem::bad_request(ProblemKind::BadChunk, "the request's chunked body is malformed")
}

/// Returns the problem of a request whose body did not arrive whole.
pub(super) fn body_problem(fault: BodyFault, limit: u64) -> Problem {
    match fault {
        BodyFault::TooLarge => too_large(limit),
        BodyFault::Malformed => bad_chunk(),
        BodyFault::ClientGone | BodyFault::Answered => {
            Problem::bad_request(ProblemKind::IncompleteRequest, "the request's body ended early")
        }
        BodyFault::Stalled => {
            let detail = "the request's body stopped arriving, or came too slowly";
            Problem::new(ProblemKind::RequestTimeout, detail).closing()
        }
    }
}

/// Returns the 503 for a spent budget of buffers.
pub(super) fn over_budget() -> Problem {
    let detail = "the proxy holds as much in its buffers as `limits.buffered_bytes` allows; repeat the request later";
    Problem::new(ProblemKind::BuffersFull, detail).retry_after(1)
}

/// The task that fetched is gone: the proxy is stopping.
pub(super) fn stopped() -> Problem {
    let detail = "the fetch ended without an answer";
    Problem::new(ProblemKind::UpstreamFailed, detail)
}
