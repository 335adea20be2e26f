//! Refusals that several steps share.

use crate::http::problem::{Problem, ProblemKind};

/// 413 for a body over the limit.
pub(super) fn too_large(limit: u64) -> Problem {
    let detail = format!("the request's body is larger than {limit} bytes");
    Problem::new(ProblemKind::ContentTooLarge, detail).closing()
}

/// 400 for a body whose chunks are not framed by the grammar.
pub(super) fn bad_chunk() -> Problem {
    Problem::bad_request(ProblemKind::BadChunk, "the request's chunked body is malformed")
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
