//! Sessions over several proxies, in a model with the production's clocks, tags and tokens: no session sees an older
//! version than one that it has seen or written. With one counter in the place of vectors, or with a response's own dot
//! in its vector, sessions do.

use super::tag::{Tag, TagBase};
use super::{Clock, Dot, Token};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

const PROXIES: usize = 3;
const SESSIONS: usize = 3;
const GROUP: [u64; 1] = [1];

/// When a stored response may be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    Design,
    /// The response's own dot counts as a part of its vector.
    FoldedDot,
    /// One number in the place of a vector.
    OneCounter,
}

impl Rule {
    fn covers(self, tag: &Tag, dot: Dot) -> bool {
        match self {
            Rule::Design => tag.covers(dot),
            Rule::FoldedDot => tag.covers(dot) || (dot.process == tag.dot.process && dot.number <= tag.dot.number),
            Rule::OneCounter => {
                let base = &tag.base;
                let known = base.heard.iter().chain(base.joined.iter().copied()).chain([base.given, tag.dot]);
                known.map(|dot| dot.number).max().unwrap_or_default() >= dot.number
            }
        }
    }

    fn may_serve(self, tag: &Tag, token: &Token) -> bool {
        token.dots(&GROUP).all(|dot| self.covers(tag, dot))
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Read {
        session: usize,
        proxy: usize,
    },
    Write {
        session: usize,
        proxy: usize,
    },
    /// The origin answers a request that is under way.
    Answer(usize),
    /// The head of an answer arrives at its proxy.
    Arrive(usize),
    /// A proxy tells the others of the last number that it has given out.
    Publish(usize),
    /// A proxy hears what another one has told.
    Hear {
        proxy: usize,
        event: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let (session, proxy) = (0..SESSIONS, 0..PROXIES);
    prop_oneof![
        4 => (session.clone(), proxy.clone()).prop_map(|(session, proxy)| Step::Read { session, proxy }),
        2 => (session, proxy.clone()).prop_map(|(session, proxy)| Step::Write { session, proxy }),
        4 => (0..8usize).prop_map(Step::Answer),
        4 => (0..8usize).prop_map(Step::Arrive),
        1 => proxy.clone().prop_map(Step::Publish),
        1 => (proxy, 0..8usize).prop_map(|(proxy, event)| Step::Hear { proxy, event }),
    ]
}

#[derive(Default)]
struct Session {
    token: Token,
    /// The newest version that it has seen or written.
    seen: u64,
    waits: bool,
}

/// A request that is under way to the origin.
struct Request {
    session: usize,
    proxy: usize,
    base: TagBase,
    is_write: bool,
    answered: Option<u64>,
}

struct Proxy {
    clock: Clock,
    stored: Option<(Tag, u64)>,
}

struct World {
    rule: Rule,
    version: u64,
    sessions: Vec<Session>,
    proxies: Vec<Proxy>,
    requests: Vec<Request>,
    events: Vec<Dot>,
}

impl World {
    fn new(rule: Rule) -> World {
        let proxy = |number| Proxy { clock: Clock::new(number), stored: None };
        World {
            rule,
            version: 1,
            sessions: (0..SESSIONS).map(|_| Session::default()).collect(),
            proxies: (1..=PROXIES as u64).map(proxy).collect(),
            requests: Vec::new(),
            events: Vec::new(),
        }
    }

    /// Takes a step. Returns a violation.
    fn take(&mut self, step: Step) -> Result<(), String> {
        match step {
            Step::Read { session, .. } | Step::Write { session, .. } if self.sessions[session].waits => {}
            Step::Read { session, proxy } => {
                if let Some((tag, version)) = self.proxies[proxy].stored.clone()
                    && self.rule.may_serve(&tag, &self.sessions[session].token)
                {
                    return self.serve(session, tag.dot, version);
                }
                self.begin(session, proxy, false);
            }
            Step::Write { session, proxy } => self.begin(session, proxy, true),
            Step::Answer(number) => {
                if let Some(request) = self.requests.get_mut(number).filter(|request| request.answered.is_none()) {
                    self.version += u64::from(request.is_write);
                    request.answered = Some(self.version);
                }
            }
            Step::Arrive(number) => {
                if self.requests.get(number).is_some_and(|request| request.answered.is_some()) {
                    let request = self.requests.remove(number);
                    return self.arrive(request);
                }
            }
            Step::Publish(proxy) => self.events.push(self.proxies[proxy].clock.now()),
            Step::Hear { proxy, event } => {
                if let Some(dot) = self.events.get(event) {
                    self.proxies[proxy].clock.hear([*dot]);
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self, session: usize, proxy: usize, is_write: bool) {
        let asker = &mut self.sessions[session];
        asker.waits = true;
        let base = TagBase::begin(&self.proxies[proxy].clock, asker.token.dots(&GROUP));
        self.requests.push(Request { session, proxy, base, is_write, answered: None });
    }

    fn arrive(&mut self, request: Request) -> Result<(), String> {
        let (proxy, version) = (&mut self.proxies[request.proxy], request.answered.unwrap_or_default());
        let tag = request.base.tag(proxy.clock.next(), 0);
        let dot = tag.dot;
        if !request.is_write {
            proxy.stored = Some((tag, version));
        }
        self.sessions[request.session].waits = false;
        self.serve(request.session, dot, version)
    }

    fn serve(&mut self, session: usize, dot: Dot, version: u64) -> Result<(), String> {
        let session = &mut self.sessions[session];
        if version < session.seen {
            return Err(format!("version {version} after {}", session.seen));
        }
        session.seen = version;
        let carried = session.token.clone();
        session.token.answered(&GROUP, &carried, dot, |_| Vec::new());
        Ok(())
    }
}

fn run(rule: Rule, steps: &[Step]) -> Result<(), String> {
    let mut world = World::new(rule);
    steps.iter().try_for_each(|step| world.take(*step))
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 1..60)
}

#[test]
fn no_session_sees_an_older_version() {
    let mut runner = TestRunner::new(Config { cases: 4000, failure_persistence: None, ..Config::default() });
    let found = runner.run(&steps(), |steps| run(Rule::Design, &steps).map_err(TestCaseError::fail));
    assert!(found.is_ok(), "{}", found.unwrap_err());
}

#[test]
fn sessions_see_older_versions_without_vectors_or_with_folded_dots() {
    for rule in [Rule::FoldedDot, Rule::OneCounter] {
        let mut runner = TestRunner::new(Config { cases: 20_000, failure_persistence: None, ..Config::default() });
        let found = runner.run(&steps(), |steps| run(rule, &steps).map_err(TestCaseError::fail));
        assert!(found.is_err(), "no violation of {rule:?} was found");
    }
}

/// Two groups: what a session has seen of one does not say what it may see of the other, even where the first refers to
/// it. The documentation names this.
#[test]
fn across_groups_effects_may_be_seen_before_their_causes() {
    let (article, comment) = ([1u64], [2u64]);
    let (here, there) = (Clock::new(1), Clock::new(2));
    // A proxy has stored the article before it was changed.
    let stored = TagBase::begin(&there, std::iter::empty()).tag(there.next(), 0);
    // A writer changes the article, and then refers to it in a comment.
    let mut writer = Token::default();
    let carried = writer.clone();
    writer.answered(&article, &carried, here.next(), |_| Vec::new());
    let carried = writer.clone();
    writer.answered(&comment, &carried, here.next(), |_| Vec::new());
    // A reader sees the comment, and then the article as it was.
    let mut reader = Token::default();
    reader.answered(&comment, &Token::default(), here.next(), |_| Vec::new());
    assert!(reader.is_covered(&article, |dot| stored.covers(dot)), "the anomaly");
    assert!(!writer.is_covered(&article, |dot| stored.covers(dot)), "the writer itself reads its write");
    // In one group the reader has to see the change.
    let both = [3u64];
    reader.answered(&both, &Token::default(), here.next(), |_| Vec::new());
    assert!(!reader.is_covered(&both, |dot| stored.covers(dot)));
}
