//! The requester of a read or a write on a route with a guarantee: what it may be served, and what its answer includes.

use super::group::Groups;
use super::quorum::{Look, Verdict};
use super::tag::{FetchBase, StoredTag, Tag, TagBase};
use super::token::Token;
use super::vector::{Clock, Dot};
use super::writes::{Known, Relation, Write, Writes};
use http::StatusCode;
use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

/// The longest time without validation after which a response is served, in milliseconds: half of the life of a session
/// token.
const MAX_UNVALIDATED: i64 = 12 * 3600 * 1000;

/// The causal state of the process.
pub(crate) struct Causality {
    pub(crate) clock: Clock,
    pub(crate) writes: Writes,
}

impl Causality {
    pub(crate) fn new(process: u64) -> Causality {
        Causality { clock: Clock::new(process), writes: Writes::default() }
    }

    /// Notes a write of this process that has just been answered, and that began after all that the process knows.
    pub(crate) fn write(&self, groups: Groups) -> Write {
        let clock = Arc::new(self.clock.vector());
        let write = Write { dot: self.clock.next(), clock, groups };
        self.writes.note(&write);
        write
    }

    /// Notes a write of another process.
    pub(crate) fn hear(&self, write: &Write) {
        self.hear_number(write.dot);
        self.writes.note(write);
    }

    /// Notes a number of another process. A process that is forgotten for it is in no later tag: its writes get a number
    /// of this process, which the tags of all later fetches include.
    pub(crate) fn hear_number(&self, dot: Dot) {
        for process in self.clock.hear([dot]) {
            self.writes.forget(process, || self.clock.next());
        }
    }
}

/// The guarantee of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guarantee {
    Causal,
    /// No stored response is served without validation.
    Strong,
    /// A stored response is served where the stamps of its groups are those from before its fetch.
    Quorum,
}

/// A request on a route with a guarantee.
pub(crate) struct Requester {
    causality: Arc<Causality>,
    pub(crate) guarantee: Guarantee,
    pub(crate) groups: Groups,
    /// The dots that its session has seen.
    pub(crate) token: Rc<Token>,
    /// The answers that its own includes at least, where the route refuses concurrent writes.
    begun: Option<TagBase>,
    /// The dot of the stored response that it is answered with, and its tag where the route refuses concurrent writes.
    served: Cell<Option<Dot>>,
    included: RefCell<Option<Tag>>,
    /// The dot of the write that it has made.
    written: Cell<Option<Dot>>,
    /// A node has answered it with what the groups are now.
    is_shown: Cell<bool>,
    /// The replies of the nodes of the fleet about its groups, since it arrived.
    look: OnceCell<Look>,
}

/// Why a stored response is not served without validation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rejection {
    /// The session may have seen a newer one, or nothing is known of its age.
    Session,
    /// A write is later than the response.
    Superseded,
    /// A write and the response do not include each other.
    Concurrent,
    /// The guarantee is strong.
    Strong,
}

impl Rejection {
    /// Returns the word of the access log.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Rejection::Session => "session",
            Rejection::Superseded => "superseded",
            Rejection::Concurrent => "concurrent",
            Rejection::Strong => "strong",
        }
    }
}

impl Requester {
    pub(crate) fn new(causality: &Arc<Causality>, guarantee: Guarantee, groups: Groups, token: Rc<Token>) -> Requester {
        Requester {
            causality: Arc::clone(causality),
            guarantee,
            groups,
            token,
            begun: None,
            served: Cell::new(None),
            included: RefCell::default(),
            written: Cell::new(None),
            is_shown: Cell::new(false),
            look: OnceCell::new(),
        }
    }

    /// Notes what the nodes of the fleet have said of its groups. Nothing that they say later counts.
    pub(crate) fn looked(&self, look: Look) {
        let _ = self.look.set(look);
    }

    /// Returns the requester on a route that refuses concurrent writes.
    pub(crate) fn knowing_writes(mut self) -> Requester {
        if let Some(FetchBase::Causal(base)) = self.begin() {
            self.begun = Some(base);
        }
        self
    }

    /// Returns a write to its groups that its session has not seen; `None` where it has seen all that the process knows,
    /// and where the route does not ask.
    pub(crate) fn unseen_write(&self) -> Option<Known> {
        self.begun.as_ref()?;
        let known = self.groups.iter().flat_map(|group| self.causality.writes.of(*group));
        known.into_iter().find(|known| !self.token.has_seen(known.dot, &self.groups))
    }

    /// Returns whether a response with this tag may be served at this time, in milliseconds of the cache's clock.
    pub(crate) fn check(&self, tag: Option<&StoredTag>, now: i64) -> Result<(), Rejection> {
        let tag = match (self.guarantee, tag) {
            (Guarantee::Causal, Some(StoredTag::Causal(tag))) => Some(tag),
            (Guarantee::Causal, _) => None,
            (Guarantee::Quorum, Some(StoredTag::Quorum(tag))) => {
                let is_fresh = |look: &Look| look.judge(tag) == Verdict::Fresh;
                return if self.look.get().is_some_and(is_fresh) { Ok(()) } else { Err(Rejection::Strong) };
            }
            (Guarantee::Strong | Guarantee::Quorum, _) => return Err(Rejection::Strong),
        };
        let tag = tag.filter(|tag| now - tag.validated <= MAX_UNVALIDATED).ok_or(Rejection::Session)?;
        if !self.token.is_covered(&self.groups, |dot| tag.covers(dot)) {
            return Err(Rejection::Session);
        }
        match self.causality.writes.relation(&self.groups, tag) {
            Relation::Covered => Ok(()),
            Relation::Superseded => Err(Rejection::Superseded),
            Relation::Concurrent => Err(Rejection::Concurrent),
        }
    }

    /// Returns whether the answer of a fetch with this base may be waited for.
    pub(crate) fn may_wait(&self, base: Option<&FetchBase>) -> bool {
        match base {
            Some(FetchBase::Causal(base)) => {
                self.guarantee == Guarantee::Causal && self.token.is_covered(&self.groups, |dot| base.covers(dot))
            }
            Some(FetchBase::Quorum(tag)) => self.look.get().is_some_and(|look| look.judge(tag) == Verdict::Fresh),
            None => false,
        }
    }

    /// Returns the base of a fetch that begins now; `None` where responses need no tag.
    pub(crate) fn begin(&self) -> Option<FetchBase> {
        match self.guarantee {
            Guarantee::Causal => {
                let seen = self.token.dots(&self.groups);
                Some(FetchBase::Causal(TagBase::begin(&self.causality.clock, seen)))
            }
            Guarantee::Strong => None,
            Guarantee::Quorum => self.look.get()?.freeze().map(|tag| FetchBase::Quorum(Arc::new(tag))),
        }
    }

    /// Returns the tag of an answer whose head has just arrived. That of a write has the dot of the write.
    pub(crate) fn tag(&self, base: &FetchBase, now: i64) -> StoredTag {
        match base {
            FetchBase::Causal(base) => {
                StoredTag::Causal(base.tag(self.written.get().unwrap_or_else(|| self.causality.clock.next()), now))
            }
            FetchBase::Quorum(tag) => StoredTag::Quorum(Arc::clone(tag)),
        }
    }

    /// Notes the answer that the client gets.
    pub(crate) fn serves(&self, tag: Option<&StoredTag>) {
        let tag = match tag {
            Some(StoredTag::Causal(tag)) => Some(tag),
            _ => None,
        };
        self.served.set(tag.map(|tag| tag.dot));
        if self.begun.is_some() {
            *self.included.borrow_mut() = tag.cloned();
        }
    }

    /// Notes that the client gets a node's answer with this status. An error shows nothing of the groups, but that
    /// something is not there.
    pub(crate) fn passes_on(&self, status: StatusCode) {
        self.is_shown.set(status.as_u16() < 400 || matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE));
    }

    /// Notes that a node has answered the write of the request, which began with this base. Returns what others have to
    /// know of it.
    pub(crate) fn wrote(&self, base: &FetchBase) -> Option<Write> {
        let FetchBase::Causal(base) = base else { return None };
        let dot = self.causality.clock.next();
        self.written.set(Some(dot));
        let write = Write { dot, clock: Arc::new(base.vector()), groups: self.groups.clone() };
        self.causality.writes.note(&write);
        Some(write)
    }

    /// Returns whether the session has the answer already: it has got the same stored response before, and nothing else of
    /// its groups.
    pub(crate) fn has_answer(&self) -> bool {
        let has = |dot| self.groups.iter().all(|group| self.token.has_only(*group, dot));
        self.begun.is_none() && self.served.get().is_some_and(has)
    }

    /// Notes the answer, whose head is about to leave, in the token of its session: with the dot of the stored response
    /// or of the write, else with a new one.
    pub(crate) fn answer(&self, token: &mut Token) {
        let included = self.included.borrow();
        let known = self.served.get().or(self.written.get());
        let dot = known.unwrap_or_else(|| self.causality.clock.next());
        token.answered(&self.groups, &self.token, dot, |group| {
            let Some(begun) = &self.begun else { return Vec::new() };
            let includes = |dot: &Dot| match &*included {
                Some(tag) => tag.covers(*dot),
                None => (self.is_shown.get() && begun.covers(*dot)) || self.written.get() == Some(*dot),
            };
            self.causality.writes.of(group).into_iter().map(|known| known.dot).filter(includes).collect()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requester(causality: &Arc<Causality>, guarantee: Guarantee, token: Token) -> Requester {
        Requester::new(causality, guarantee, Groups::from_slice(&[1]), Rc::new(token))
    }

    #[test]
    fn a_response_is_served_without_validation_for_half_the_life_of_a_token() {
        let causality = Arc::new(Causality::new(1));
        let reader = requester(&causality, Guarantee::Causal, Token::default());
        let tag = reader.tag(&reader.begin().unwrap(), 5);
        assert_eq!(reader.check(Some(&tag), 5 + MAX_UNVALIDATED), Ok(()));
        assert_eq!(reader.check(Some(&tag), 6 + MAX_UNVALIDATED), Err(Rejection::Session));
        assert_eq!(reader.check(None, 5), Err(Rejection::Session), "a response from before the route was causal");
        let strong = requester(&causality, Guarantee::Strong, Token::default());
        assert_eq!(strong.check(Some(&tag), 5), Err(Rejection::Strong));
        assert!(strong.begin().is_none() && !strong.may_wait(None));
    }

    #[test]
    fn an_answer_has_the_dot_of_what_it_is() {
        let causality = Arc::new(Causality::new(1));
        let dots = |requester: &Requester| {
            let mut token = Token::clone(&requester.token);
            requester.answer(&mut token);
            token.dots(&[1]).map(|dot| dot.number).collect::<Vec<_>>()
        };
        let reader = requester(&causality, Guarantee::Causal, Token::default());
        let tag = reader.tag(&reader.begin().unwrap(), 0);
        reader.serves(Some(&tag));
        assert_eq!((dots(&reader), reader.has_answer()), (vec![1], false), "the dot of the stored response");
        let mut token = Token::default();
        reader.answer(&mut token);
        let again = requester(&causality, Guarantee::Causal, token);
        again.serves(Some(&tag));
        assert!(again.has_answer());
        let passing = requester(&causality, Guarantee::Causal, Token::default());
        assert_eq!(dots(&passing), [2], "a new one");
        let writer = requester(&causality, Guarantee::Causal, Token::default());
        let write = writer.wrote(&writer.begin().unwrap()).unwrap();
        assert_eq!((dots(&writer), write.dot.number), (vec![3], 3), "that of the write");
        assert_eq!(again.check(Some(&tag), 0), Err(Rejection::Superseded), "the write has seen the response");
    }
}
