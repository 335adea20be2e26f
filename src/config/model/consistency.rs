//! The block `consistency` of a route: how old a response from the cache may be.

use crate::config::read::{Spanned, choices, settings};
use crate::consistency::GroupTemplate;

choices! {
    /// The guarantee of reads from the cache.
    Level {
        /// Freshness by RFC 9111. What one proxy hears of a change reaches the others within a second.
        Eventual = "eventual",
        /// Within a group, no session sees an older version than one that it has seen or written, on any proxy.
        Causal = "causal",
        /// Every read sees every finished write (linearizable).
        Strong = "strong",
    }
}

choices! {
    /// How a strong read finds out that a stored response is the newest.
    Verify {
        /// By a conditional request to a node for every hit.
        Origin = "origin",
    }
}

choices! {
    /// The response to a write that does not know of another write in its group.
    OnConcurrentWrite {
        /// It is forwarded.
        Pass = "pass",
        /// 409 with the clocks of both, so that the client reads, merges and writes again.
        Reject = "reject",
    }
}

settings! {
    /// How old a response from the cache may be.
    Consistency {
        /// `eventual`, `causal` or `strong`.
        level: Spanned<Level> = "eventual";
        /// How a strong read is verified: `origin`.
        verify: Option<Spanned<Verify>> = absent;
        /// What changes together: templates of `{host}`, `{path}`, `{path:N}` (the first N segments) and
        /// `{header:NAME}`, at most four. The URI without its query is always a group.
        groups: Vec<Spanned<GroupTemplate>> = absent;
        /// `pass` or `reject` (409), for a write of a session that does not know of another write in its group. Causal
        /// routes only.
        on_concurrent_write: Spanned<OnConcurrentWrite> = "pass";
    }
}
