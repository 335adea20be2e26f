//! The tag of a stored response: the answers that it is no older than.

use super::quorum::QuorumTag;
use super::vector::{Clock, Dot, Vector};
use std::sync::Arc;

/// The lower bound of a fetch, by the guarantee of its route.
#[derive(Clone, Debug)]
pub(crate) enum FetchBase {
    Causal(TagBase),
    Quorum(Arc<QuorumTag>),
}

/// The lower bound of a stored response, by the guarantee of its route.
#[derive(Clone, Debug)]
pub(crate) enum StoredTag {
    Causal(Tag),
    Quorum(Arc<QuorumTag>),
}

impl StoredTag {
    /// Returns its memory in bytes, without what it shares.
    pub(crate) fn size(&self) -> usize {
        size_of::<StoredTag>()
            + match self {
                StoredTag::Causal(tag) => tag.size() - size_of::<Tag>(),
                StoredTag::Quorum(tag) => tag.size(),
            }
    }
}

/// The answers that a fetch is no older than, when it begins: the clock of the process, and the dots of its requester.
#[derive(Clone, Debug)]
pub(crate) struct TagBase {
    pub(super) heard: Arc<Vector>,
    /// The last number that the process had given out.
    pub(super) given: Dot,
    /// The requester's dots that the clock does not cover.
    pub(super) joined: Box<[Dot]>,
}

/// The tag of a response: the base of its fetch, and its own dot, which is kept apart. (In the vector it would cover
/// earlier numbers of its process, of answers that came after the fetch had begun.)
#[derive(Clone, Debug)]
pub(crate) struct Tag {
    pub(super) base: TagBase,
    pub(crate) dot: Dot,
    /// When the head of the answer arrived, in milliseconds of the cache's clock.
    pub(crate) validated: i64,
}

impl TagBase {
    /// Returns the base of a fetch that begins now for a requester with these dots.
    pub(crate) fn begin(clock: &Clock, requester: impl Iterator<Item = Dot>) -> TagBase {
        let mut base = TagBase { heard: clock.heard(), given: clock.now(), joined: Box::default() };
        let joined: Vec<Dot> = requester.filter(|dot| !base.covers(*dot)).collect();
        base.joined = joined.into();
        base
    }

    /// Returns whether the fetch began after the answer with this dot had arrived.
    pub(crate) fn covers(&self, dot: Dot) -> bool {
        (dot.process == self.given.process && dot.number <= self.given.number)
            || self.heard.covers(dot)
            || self.joined.iter().any(|seen| seen.process == dot.process && seen.number >= dot.number)
    }

    /// Returns all that it covers.
    pub(crate) fn vector(&self) -> Vector {
        self.heard.iter().chain([self.given]).chain(self.joined.iter().copied()).collect()
    }

    /// Returns the tag of the answer, whose head has arrived.
    pub(crate) fn tag(&self, dot: Dot, now: i64) -> Tag {
        Tag { base: self.clone(), dot, validated: now }
    }
}

impl Tag {
    /// Returns whether the response is no older than the answer with this dot.
    pub(crate) fn covers(&self, dot: Dot) -> bool {
        dot == self.dot || self.base.covers(dot)
    }

    /// Returns its memory in bytes. The clock is shared.
    pub(crate) fn size(&self) -> usize {
        size_of::<Tag>() + size_of_val(&*self.base.joined)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_covers_its_base_and_its_own_dot_alone() {
        let dot = |process, number| Dot { process, number };
        let clock = Clock::new(1);
        clock.next();
        clock.hear([dot(2, 5)]);
        let base = TagBase::begin(&clock, [dot(3, 7), dot(2, 4)].into_iter());
        assert_eq!(base.joined.len(), 1, "what the clock covers is not kept");
        // Another answer arrives before that of the fetch.
        assert_eq!(clock.next(), dot(1, 2));
        let tag = base.tag(clock.next(), 0);
        for (asked, covered) in [
            (dot(1, 1), true),
            (dot(1, 2), false),
            (dot(1, 3), true),
            (dot(1, 4), false),
            (dot(2, 5), true),
            (dot(2, 6), false),
            (dot(3, 7), true),
            (dot(3, 1), true),
            (dot(3, 8), false),
        ] {
            assert_eq!(tag.covers(asked), covered, "{asked:?}");
        }
    }
}
