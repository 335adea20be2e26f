//! The block `consistency` of a route: how old a response from the cache may be.

use crate::config::read::{Spanned, choices, settings};
use crate::consistency::GroupTemplate;
use std::time::Duration;

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
    /// The way in which a strong read finds out that a stored response is the newest.
    Verify {
        /// By a conditional request to a node for every hit.
        Origin = "origin",
        /// By the version stamps that R of N Redis nodes hold, in one round trip.
        Quorum = "quorum",
    }
}

choices! {
    /// The source of responses to reads of a route with `verify: quorum`.
    Reads {
        /// From the cache, where the stamps allow it.
        Cache = "cache",
        /// At a node: writes are marked, and no hit is served without validation. For a rollout.
        Origin = "origin",
    }
}

choices! {
    /// The response to a read while fewer than R nodes answer.
    OnQuorumLoss {
        /// That of a node, which is not stored.
        Origin = "origin",
        /// 503.
        Reject = "reject",
        /// The stored response, unverified.
        Stale = "stale",
    }
}

choices! {
    /// The response to a write while fewer than W nodes take its mark.
    OnWriteQuorumLoss {
        /// 503; nothing is forwarded.
        Reject = "reject",
        /// It is forwarded without a mark.
        Forward = "forward",
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
    /// The guarantee of responses from the cache.
    Consistency {
        /// `eventual`, `causal` or `strong`.
        level: Spanned<Level> = "eventual";
        /// The verification of a strong read: `origin`, or `quorum` by the nodes of `fleet.redis`.
        verify: Option<Spanned<Verify>> = absent;
        /// The resources that change together, as templates of `{host}`, `{path}`, `{path:N}` (the first N segments)
        /// and `{header:NAME}`, at most four. The URI without its query is always a group.
        groups: Vec<Spanned<GroupTemplate>> = absent;
        /// `cache` (the default), or `origin` to mark writes before reads rely on it. `verify: quorum` only.
        reads: Option<Spanned<Reads>> = absent;
        /// `origin` (the default), `reject` (503) or `stale` (the stored response, unverified), for a read while fewer
        /// than R nodes answer. `verify: quorum` only.
        on_quorum_loss: Option<Spanned<OnQuorumLoss>> = absent;
        /// `reject` (503, the default) or `forward`, for a write while fewer than W nodes take its mark. With `forward`
        /// other proxies may serve the old response until the quorum is back; if this process ends before, until its
        /// freshness ends. `verify: quorum` only.
        on_write_quorum_loss: Option<Spanned<OnWriteQuorumLoss>> = absent;
        /// The longest time for which a node may still carry out a request whose connection broke, from 100ms to 1h; 60s by
        /// default.
        /// `verify: quorum` only.
        settle: Option<Spanned<Duration>> = absent;
        /// `pass` or `reject` (409), for a write of a session that does not know of another write in its group. Causal
        /// routes only.
        on_concurrent_write: Spanned<OnConcurrentWrite> = "pass";
    }
}

/// The longest time for which a node may still carry out a request, where the file does not say.
const SETTLE: Duration = Duration::from_secs(60);

impl Consistency {
    /// Returns whether stored responses are verified by the stamps of the fleet's nodes.
    pub(crate) fn is_by_quorum(&self) -> bool {
        let verify = self.verify.as_ref().map(|verify| verify.value);
        (self.level.value, verify) == (Level::Strong, Some(Verify::Quorum))
    }

    pub(crate) fn reads(&self) -> Reads {
        self.reads.as_ref().map_or(Reads::Cache, |reads| reads.value)
    }

    pub(crate) fn on_quorum_loss(&self) -> OnQuorumLoss {
        self.on_quorum_loss.as_ref().map_or(OnQuorumLoss::Origin, |choice| choice.value)
    }

    pub(crate) fn on_write_quorum_loss(&self) -> OnWriteQuorumLoss {
        self.on_write_quorum_loss.as_ref().map_or(OnWriteQuorumLoss::Reject, |choice| choice.value)
    }

    pub(crate) fn settle(&self) -> Duration {
        self.settle.as_ref().map_or(SETTLE, |settle| settle.value)
    }
}
