//! The record of one identity, and its transitions: one function, which every store follows.
//!
//! ```text
//!              claim                complete
//!   absent ------------> running ---------------> done | done without a body
//!     ^                   |   |                        ^
//!     |      release      |   | holder died,           | complete (late,
//!     +-------------------+   | no whole answer        |  with its own token)
//!     |                       v                        |
//!     |    release        unknown ---------------------+
//!     +---------------------- |
//!     |   operator, expiry    | claim (with `on_unknown: retry`, or with its own token)
//!     +-----------------------+----> running
//! ```
//!
//! A claim is idempotent on its token: sent again, it finds itself and is made again. A claim whose fate is unknown
//! is released with a tombstone, which refuses copies of it that arrive later; to every other claim a tombstone is an
//! absent record. A claim in the place of an unknown outcome is never released: it ends as unknown again, with its
//! token noted as dead. Time never frees a claim: only records that have ended expire.

use super::fingerprint::Fingerprint;
use std::time::Duration;

/// Milliseconds since 1970, by the store's clock.
pub(crate) type Millis = u64;

/// The time for which a tombstone refuses copies of a released claim.
pub(crate) const TOMBSTONE: Duration = Duration::from_secs(60);

/// A claim's own mark: no later claim of the same identity has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Token {
    /// The process that made the claim.
    pub(crate) holder: Holder,
    /// The number of the claim there.
    pub(crate) number: u64,
}

/// A process with a store of its own, by a random number.
pub(crate) type Holder = u64;

/// The state of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Its holder works on it.
    Running,
    /// Its result is stored.
    Done,
    /// It has run; its result was too large to be stored.
    DoneWithoutBody,
    /// It may have run, and its result will never be known.
    Unknown,
    /// A claim that was released, copies of which may still be under way.
    Tombstone,
    /// A saga works on it, whichever process owns the saga: it ends with the saga, and in no other way.
    Saga,
}

impl State {
    pub(crate) const ALL: [State; 6] =
        [State::Running, State::Done, State::DoneWithoutBody, State::Unknown, State::Tombstone, State::Saga];

    /// Returns the word of the state, for operators.
    pub(crate) fn word(self) -> &'static str {
        match self {
            State::Running | State::Saga => "running",
            State::Done => "done",
            State::DoneWithoutBody => "done_without_body",
            State::Unknown => "unknown",
            State::Tombstone => "tombstone",
        }
    }

    /// Returns the number for it in a table.
    pub(crate) fn code(self) -> i16 {
        match self {
            State::Running => 0,
            State::Done => 1,
            State::DoneWithoutBody => 2,
            State::Unknown => 3,
            State::Tombstone => 4,
            State::Saga => 5,
        }
    }

    /// Returns the state with a number.
    pub(crate) fn of(code: i16) -> Option<State> {
        State::ALL.into_iter().find(|state| state.code() == code)
    }
}

/// The record of one identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) state: State,
    pub(crate) token: Token,
    pub(crate) fingerprint: Fingerprint,
    /// The time of its claim.
    pub(crate) created: Millis,
    /// The time at which an ended record may go. A running record has no expiry: `created` and its time to live.
    pub(crate) expires: Millis,
    /// A claim in the place of an unknown outcome that was released: copies of it are refused.
    pub(crate) dead: Option<Token>,
}

/// The end of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finish {
    Done,
    DoneWithoutBody,
    Unknown,
}

impl Finish {
    /// Returns the state that it leaves.
    pub(crate) fn state(self) -> State {
        match self {
            Finish::Done => State::Done,
            Finish::DoneWithoutBody => State::DoneWithoutBody,
            Finish::Unknown => State::Unknown,
        }
    }
}

/// An event of a record. `expires` is the time at which the record may go if it ends now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A proxy claims the request. `retake`: even if it may have run already.
    Claim { token: Token, fingerprint: Fingerprint, retake: bool, expires: Millis },
    /// The run with this token has ended.
    Complete { token: Token, finish: Finish, expires: Millis },
    /// The run with this token has sent nothing, or nothing that counts.
    Release { token: Token, way: ReleaseWay, expires: Millis },
    /// A process is gone, or was silent for its lease.
    HolderDied(Holder),
    /// An operator has looked, and allows another run.
    Authorise,
    /// The time to remove ended records.
    Expire,
}

/// The trace that a released claim leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReleaseWay {
    /// None: it was sent once, and its answer came.
    Plain,
    /// A tombstone: copies of the claim may still arrive.
    Entombed,
    /// An unknown outcome, as it was claimed in the place of one; its token is dead.
    Retaken,
}

/// The result of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transition {
    /// It is this from now on.
    Becomes(Record),
    /// There is no record any more.
    Goes,
    /// The event does not concern it: all stays as it is.
    Stays,
}

/// Returns the result of an event of a record at a time `now`: the one rule, which every store follows.
pub(crate) fn transition(record: Option<&Record>, event: Event, now: Millis) -> Transition {
    match (event, record) {
        (Event::Claim { token, fingerprint, retake, expires }, record) => {
            let new = Record { state: State::Running, token, fingerprint, created: now, expires, dead: None };
            match record {
                None => Transition::Becomes(new),
                Some(record) if record.is_over(now) => Transition::Becomes(new),
                Some(record) if record.dead == Some(token) => Transition::Stays,
                Some(record) if record.state == State::Saga && record.token == token => Transition::Becomes(*record),
                Some(record) if record.is_open_to(token) => {
                    let expires = record.created.saturating_add(expires.saturating_sub(now));
                    Transition::Becomes(Record { state: State::Running, expires, ..*record })
                }
                Some(record) if record.state == State::Tombstone && record.token != token => Transition::Becomes(new),
                Some(record) if retake && record.state == State::Unknown && record.fingerprint == fingerprint => {
                    Transition::Becomes(Record { dead: record.dead, ..new })
                }
                Some(_) => Transition::Stays,
            }
        }
        // A tombstone never replaces the record of another token.
        (Event::Release { token, way: ReleaseWay::Entombed | ReleaseWay::Retaken, .. }, record)
            if record.is_none_or(|record| record.is_over(now) && !record.is_open_to(token)) =>
        {
            Transition::Becomes(Record::tombstone(token, Fingerprint([0; 32]), now))
        }
        (Event::Expire, Some(record)) if record.is_over(now) => Transition::Goes,
        (_, None) => Transition::Stays,
        // A late completion with its own token is better than an unknown outcome; a repeated one changes nothing.
        (Event::Complete { token, finish, expires }, Some(record))
            if record.is_open_to(token) || (record.token == token && record.state == finish.state()) =>
        {
            Transition::Becomes(Record { state: finish.state(), expires, ..*record })
        }
        (Event::Release { token, way, expires }, Some(record)) => {
            let is_mine = record.is_open_to(token);
            match way {
                ReleaseWay::Plain if is_mine => Transition::Goes,
                ReleaseWay::Entombed if is_mine || (record.token == token && record.state == State::Tombstone) => {
                    Transition::Becomes(Record::tombstone(token, record.fingerprint, now))
                }
                ReleaseWay::Retaken if is_mine => {
                    Transition::Becomes(Record { state: State::Unknown, expires, dead: Some(token), ..*record })
                }
                ReleaseWay::Retaken if record.state == State::Unknown => {
                    Transition::Becomes(Record { dead: Some(token), ..*record })
                }
                _ => Transition::Stays,
            }
        }
        (Event::HolderDied(holder), Some(record))
            if record.state == State::Running && record.token.holder == holder =>
        {
            // Its time begins now, however long it ran: no client has heard of it yet.
            let expires = record.expires.max(now.saturating_add(record.expires.saturating_sub(record.created)));
            Transition::Becomes(Record { state: State::Unknown, expires, ..*record })
        }
        (Event::Authorise, Some(record))
            if !matches!(record.state, State::Running | State::Tombstone | State::Saga) =>
        {
            Transition::Goes
        }
        (_, Some(_)) => Transition::Stays,
    }
}

impl Record {
    /// Returns the trace of a released claim.
    fn tombstone(token: Token, fingerprint: Fingerprint, now: Millis) -> Record {
        let expires = now.saturating_add(u64::try_from(TOMBSTONE.as_millis()).unwrap_or(u64::MAX));
        Record { state: State::Tombstone, token, fingerprint, created: now, expires, dead: None }
    }

    /// Returns whether a request or a saga works on it.
    pub(crate) fn is_running(&self) -> bool {
        matches!(self.state, State::Running | State::Saga)
    }

    /// Returns whether it has ended and expired.
    pub(crate) fn is_over(&self, now: Millis) -> bool {
        !self.is_running() && self.expires <= now
    }

    /// Returns whether the run with this token may still record its end.
    pub(crate) fn is_open_to(&self, token: Token) -> bool {
        self.token == token && matches!(self.state, State::Running | State::Unknown) && self.dead != Some(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MINE: Token = Token { holder: 1, number: 1 };
    const OTHERS: [Token; 2] = [Token { holder: 1, number: 2 }, Token { holder: 2, number: 1 }];
    const PRINT: Fingerprint = Fingerprint([1; 32]);
    const OTHER_PRINT: Fingerprint = Fingerprint([2; 32]);

    fn record(state: State) -> Record {
        Record { state, token: MINE, fingerprint: PRINT, created: 10, expires: 100, dead: None }
    }

    fn claim(fingerprint: Fingerprint, retake: bool) -> Event {
        Event::Claim { token: OTHERS[0], fingerprint, retake, expires: 200 }
    }

    #[test]
    fn a_claim_takes_what_is_free_and_nothing_else() {
        let claimed = |fingerprint, created| {
            let (state, token) = (State::Running, OTHERS[0]);
            Transition::Becomes(Record { state, token, fingerprint, created, expires: 200, dead: None })
        };
        for retake in [false, true] {
            for fingerprint in [PRINT, OTHER_PRINT] {
                assert_eq!(transition(None, claim(fingerprint, retake), 50), claimed(fingerprint, 50));
                for state in State::ALL {
                    let taken = transition(Some(&record(state)), claim(fingerprint, retake), 99);
                    let may = state == State::Tombstone || (state == State::Unknown && retake && fingerprint == PRINT);
                    assert_eq!(
                        taken,
                        if may { claimed(fingerprint, 99) } else { Transition::Stays },
                        "{state:?} {retake}"
                    );
                    let after_its_time = transition(Some(&record(state)), claim(fingerprint, retake), 100);
                    let may = !record(state).is_running();
                    let expected = if may { claimed(fingerprint, 100) } else { Transition::Stays };
                    assert_eq!(after_its_time, expected, "{state:?}");
                }
            }
        }
    }

    fn release(token: Token, way: ReleaseWay) -> Event {
        Event::Release { token, way, expires: 300 }
    }

    #[test]
    fn a_claim_that_is_sent_again_finds_itself() {
        let again = Event::Claim { token: MINE, fingerprint: PRINT, retake: false, expires: 250 };
        for state in State::ALL {
            let expected = match state {
                State::Running | State::Unknown => {
                    Transition::Becomes(Record { state: State::Running, expires: 210, ..record(state) })
                }
                State::Saga => Transition::Becomes(record(state)),
                _ => Transition::Stays,
            };
            assert_eq!(transition(Some(&record(state)), again, 50), expected, "{state:?}");
            let dead = Record { dead: Some(MINE), ..record(state) };
            assert_eq!(transition(Some(&dead), again, 50), Transition::Stays, "{state:?}, released");
        }
    }

    #[test]
    fn a_claim_of_unknown_fate_leaves_a_tombstone_or_its_token() {
        let entombed = |token| release(token, ReleaseWay::Entombed);
        let tombstone = |token, fingerprint| {
            Transition::Becomes(Record {
                state: State::Tombstone,
                token,
                fingerprint,
                created: 50,
                expires: 60_050,
                dead: None,
            })
        };
        assert_eq!(transition(None, entombed(MINE), 50), tombstone(MINE, Fingerprint([0; 32])));
        for state in State::ALL {
            let is_mine = matches!(state, State::Running | State::Unknown | State::Tombstone);
            let expected = if is_mine { tombstone(MINE, PRINT) } else { Transition::Stays };
            assert_eq!(transition(Some(&record(state)), entombed(MINE), 50), expected, "{state:?}");
            assert_eq!(transition(Some(&record(state)), entombed(OTHERS[0]), 50), Transition::Stays, "{state:?}");

            let retaken = transition(Some(&record(state)), release(MINE, ReleaseWay::Retaken), 50);
            let dead = Record { state: State::Unknown, expires: 300, dead: Some(MINE), ..record(state) };
            let is_open = matches!(state, State::Running | State::Unknown);
            assert_eq!(retaken, if is_open { Transition::Becomes(dead) } else { Transition::Stays }, "{state:?}");
            // The claim never took the record: only its token is noted.
            let refused = transition(Some(&record(state)), release(OTHERS[0], ReleaseWay::Retaken), 50);
            let noted = Record { dead: Some(OTHERS[0]), ..record(state) };
            let is_unknown = state == State::Unknown;
            assert_eq!(refused, if is_unknown { Transition::Becomes(noted) } else { Transition::Stays }, "{state:?}");
        }
        let grave = Record { state: State::Tombstone, ..record(State::Running) };
        let again = Event::Claim { token: MINE, fingerprint: PRINT, retake: true, expires: 200 };
        assert_eq!(transition(Some(&grave), again, 99), Transition::Stays, "a late copy of the claim");
    }

    #[test]
    fn only_the_run_itself_says_how_it_ended() {
        for (finish, state) in [
            (Finish::Done, State::Done),
            (Finish::DoneWithoutBody, State::DoneWithoutBody),
            (Finish::Unknown, State::Unknown),
        ] {
            for before in State::ALL {
                for token in [MINE, OTHERS[0], OTHERS[1]] {
                    // Late or not: its own completion is always welcome.
                    for (now, expires) in [(50, 300), (500, 300)] {
                        let open = token == MINE && matches!(before, State::Running | State::Unknown);
                        let may = open || (token == MINE && before == state);
                        let after = Record { state, expires, ..record(before) };
                        let expected = if may { Transition::Becomes(after) } else { Transition::Stays };
                        let event = Event::Complete { token, finish, expires };
                        assert_eq!(transition(Some(&record(before)), event, now), expected);
                        assert_eq!(transition(None, event, now), Transition::Stays);
                        let expected = if open { Transition::Goes } else { Transition::Stays };
                        assert_eq!(transition(Some(&record(before)), release(token, ReleaseWay::Plain), now), expected);
                    }
                }
            }
        }
    }

    #[test]
    fn a_holder_that_died_leaves_unknown_and_time_frees_no_claim() {
        for state in State::ALL {
            let (running, saga) = (state == State::Running, state == State::Saga);
            for (now, expires) in [(1, 100), (10, 100), (11, 101), (5000, 5090)] {
                let unknown = Transition::Becomes(Record { state: State::Unknown, expires, ..record(state) });
                let died = |holder| transition(Some(&record(state)), Event::HolderDied(holder), now);
                assert_eq!(died(1), if running { unknown } else { Transition::Stays }, "it lives from then on");
                assert_eq!(died(2), Transition::Stays);
            }
            let gone = if running || saga { Transition::Stays } else { Transition::Goes };
            assert_eq!(transition(Some(&record(state)), Event::Expire, 99), Transition::Stays);
            assert_eq!(transition(Some(&record(state)), Event::Expire, u64::MAX), gone);
            let authorised = if state == State::Tombstone { Transition::Stays } else { gone };
            assert_eq!(transition(Some(&record(state)), Event::Authorise, 1), authorised);
        }
    }

    fn any_event() -> impl Strategy<Value = Event> {
        let token = (1..3u64, 1..4u64).prop_map(|(holder, number)| Token { holder, number });
        let print = prop_oneof![Just(PRINT), Just(OTHER_PRINT)];
        let finish = prop_oneof![Just(Finish::Done), Just(Finish::DoneWithoutBody), Just(Finish::Unknown)];
        prop_oneof![
            (token.clone(), print, 0..50u64).prop_map(|(token, fingerprint, expires)| Event::Claim {
                token,
                fingerprint,
                retake: false,
                expires
            }),
            (token.clone(), finish).prop_map(|(token, finish)| Event::Complete { token, finish, expires: 1000 }),
            (token, prop_oneof![Just(ReleaseWay::Plain), Just(ReleaseWay::Entombed)])
                .prop_map(|(token, way)| Event::Release { token, way, expires: 1000 }),
            (1..3u64).prop_map(Event::HolderDied),
        ]
    }

    proptest! {
        /// Without an operator, without `retry` and before its expiry, a request that was claimed and not released is
        /// never claimed again, for any order of events.
        #[test]
        fn at_most_one_run(events in proptest::collection::vec(any_event(), 0..60)) {
            let mut record: Option<Record> = None;
            let mut may_have_run: Option<Token> = None;
            let mut ended: Vec<Token> = Vec::new();
            for event in events {
                // Nothing here expires; and no process sends a claim again once it has ended its run.
                let event = match event {
                    Event::Claim { token, .. } if ended.contains(&token) => continue,
                    Event::Claim { token, fingerprint, retake, .. } => Event::Claim { token, fingerprint, retake, expires: 1000 },
                    other => other,
                };
                if let Event::Complete { token, .. } | Event::Release { token, .. } = event {
                    ended.push(token);
                }
                match transition(record.as_ref(), event, 100) {
                    Transition::Becomes(next) => {
                        match event {
                            Event::Claim { token, .. } => {
                                prop_assert!(may_have_run.is_none_or(|running| running == token), "a second run");
                                may_have_run = Some(token);
                            }
                            Event::Release { token, .. } => {
                                prop_assert!(may_have_run.is_none_or(|running| running == token));
                                may_have_run = None;
                            }
                            _ => {}
                        }
                        prop_assert!(next.state == State::Tombstone || Some(next.token) == may_have_run);
                        record = Some(next);
                    }
                    Transition::Goes => {
                        let token = may_have_run.take().unwrap();
                        prop_assert_eq!(event, Event::Release { token, way: ReleaseWay::Plain, expires: 1000 });
                        record = None;
                    }
                    Transition::Stays => {}
                }
            }
        }
    }
}
