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
//!     |   operator, expiry    | claim (only with `on_unknown: retry`)
//!     +-----------------------+----> running, with another token
//! ```
//!
//! A claim in the place of an unknown outcome is never released: it ends as unknown again.
//! What is released or has expired is absent. Time never frees a claim: only what has ended expires.

use super::fingerprint::Fingerprint;

/// Milliseconds since 1970, by the clock of [`super::clock`].
pub(crate) type Millis = u64;

/// A claim's own mark: no later claim of the same identity has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    /// It may have run, and nobody will hear how it ended.
    Unknown,
}

impl State {
    pub(crate) const ALL: [State; 4] = [State::Running, State::Done, State::DoneWithoutBody, State::Unknown];

    /// Returns the word for it, for those who operate it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            State::Running => "running",
            State::Done => "done",
            State::DoneWithoutBody => "done_without_body",
            State::Unknown => "unknown",
        }
    }
}

/// The record of one identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) state: State,
    pub(crate) token: Token,
    pub(crate) fingerprint: Fingerprint,
    /// When it was claimed.
    pub(crate) created: Millis,
    /// When it may go, if it has ended.
    pub(crate) expires: Millis,
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

/// An event of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Somebody wants to run the request. `retake`: even if it may have run already.
    Claim { token: Token, fingerprint: Fingerprint, retake: bool, expires: Millis },
    /// The run with this token has ended; it lives for longer than was thought, where that is said.
    Complete { token: Token, finish: Finish, expires: Option<Millis> },
    /// The run with this token has sent nothing, or nothing that counts.
    Release { token: Token },
    /// A process is gone.
    HolderDied(Holder),
    /// An operator has looked, and allows another run.
    Authorise,
    /// Time to forget what has ended.
    Expire,
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

/// The one rule of what may happen to a record at a time `now`.
pub(crate) fn transition(record: Option<&Record>, event: Event, now: Millis) -> Transition {
    match (event, record) {
        (Event::Claim { token, fingerprint, retake, expires }, record) => {
            let is_free = match record {
                None => true,
                Some(record) if record.is_over(now) => true,
                Some(record) => retake && record.state == State::Unknown && record.fingerprint == fingerprint,
            };
            match is_free {
                true => {
                    Transition::Becomes(Record { state: State::Running, token, fingerprint, created: now, expires })
                }
                false => Transition::Stays,
            }
        }
        (_, None) => Transition::Stays,
        // A late completion of one's own is better than not to know; one that is repeated has happened.
        (Event::Complete { token, finish, expires }, Some(record))
            if record.is_open_to(token) || (record.token == token && record.state == finish.state()) =>
        {
            let expires = expires.unwrap_or(record.expires);
            Transition::Becomes(Record { state: finish.state(), expires, ..*record })
        }
        (Event::Release { token }, Some(record)) if record.is_open_to(token) => Transition::Goes,
        (Event::HolderDied(holder), Some(record))
            if record.state == State::Running && record.token.holder == holder =>
        {
            // It begins to live now, however long it ran: nobody has heard of it yet.
            let expires = record.expires.max(now.saturating_add(record.expires.saturating_sub(record.created)));
            Transition::Becomes(Record { state: State::Unknown, expires, ..*record })
        }
        (Event::Authorise, Some(record)) if record.state != State::Running => Transition::Goes,
        (Event::Expire, Some(record)) if record.is_over(now) => Transition::Goes,
        (_, Some(_)) => Transition::Stays,
    }
}

impl Record {
    /// Returns whether it has ended, and its time is up.
    pub(crate) fn is_over(&self, now: Millis) -> bool {
        self.state != State::Running && self.expires <= now
    }

    /// Returns whether the run with this token may still say how it ended.
    fn is_open_to(&self, token: Token) -> bool {
        self.token == token && matches!(self.state, State::Running | State::Unknown)
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
        Record { state, token: MINE, fingerprint: PRINT, created: 10, expires: 100 }
    }

    fn claim(fingerprint: Fingerprint, retake: bool) -> Event {
        Event::Claim { token: OTHERS[0], fingerprint, retake, expires: 200 }
    }

    #[test]
    fn a_claim_takes_what_is_free_and_nothing_else() {
        let claimed = |fingerprint, created| {
            let (state, token) = (State::Running, OTHERS[0]);
            Transition::Becomes(Record { state, token, fingerprint, created, expires: 200 })
        };
        for retake in [false, true] {
            for fingerprint in [PRINT, OTHER_PRINT] {
                assert_eq!(transition(None, claim(fingerprint, retake), 50), claimed(fingerprint, 50));
                for state in State::ALL {
                    let taken = transition(Some(&record(state)), claim(fingerprint, retake), 99);
                    let may = state == State::Unknown && retake && fingerprint == PRINT;
                    assert_eq!(taken, if may { claimed(PRINT, 99) } else { Transition::Stays }, "{state:?} {retake}");
                    let after_its_time = transition(Some(&record(state)), claim(fingerprint, retake), 100);
                    let may = state != State::Running;
                    let expected = if may { claimed(fingerprint, 100) } else { Transition::Stays };
                    assert_eq!(after_its_time, expected, "{state:?}");
                }
            }
        }
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
                    for (now, expires) in [(50, None), (50, Some(300)), (500, None), (500, Some(300))] {
                        let open = token == MINE && matches!(before, State::Running | State::Unknown);
                        let may = open || (token == MINE && before == state);
                        let after = Record { state, expires: expires.unwrap_or(100), ..record(before) };
                        let expected = if may { Transition::Becomes(after) } else { Transition::Stays };
                        let event = Event::Complete { token, finish, expires };
                        assert_eq!(transition(Some(&record(before)), event, now), expected);
                        assert_eq!(transition(None, event, now), Transition::Stays);
                        let expected = if open { Transition::Goes } else { Transition::Stays };
                        assert_eq!(transition(Some(&record(before)), Event::Release { token }, now), expected);
                    }
                }
            }
        }
    }

    #[test]
    fn a_holder_that_died_leaves_unknown_and_time_frees_no_claim() {
        for state in State::ALL {
            let running = state == State::Running;
            for (now, expires) in [(1, 100), (10, 100), (11, 101), (5000, 5090)] {
                let unknown = Transition::Becomes(Record { state: State::Unknown, expires, ..record(state) });
                let died = |holder| transition(Some(&record(state)), Event::HolderDied(holder), now);
                assert_eq!(died(1), if running { unknown } else { Transition::Stays }, "it lives from then on");
                assert_eq!(died(2), Transition::Stays);
            }
            let gone = if running { Transition::Stays } else { Transition::Goes };
            assert_eq!(transition(Some(&record(state)), Event::Expire, 99), Transition::Stays);
            assert_eq!(transition(Some(&record(state)), Event::Expire, u64::MAX), gone);
            assert_eq!(transition(Some(&record(state)), Event::Authorise, 1), gone);
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
            (token.clone(), finish).prop_map(|(token, finish)| Event::Complete { token, finish, expires: None }),
            token.prop_map(|token| Event::Release { token }),
            (1..3u64).prop_map(Event::HolderDied),
        ]
    }

    proptest! {
        /// Without an operator, without `retry` and before its time, a request that was claimed and not
        /// released is never claimed again, whatever happens.
        #[test]
        fn at_most_one_run(events in proptest::collection::vec(any_event(), 0..60)) {
            let mut record: Option<Record> = None;
            let mut may_have_run: Option<Token> = None;
            for event in events {
                // Nothing here expires.
                let event = match event {
                    Event::Claim { token, fingerprint, retake, .. } => Event::Claim { token, fingerprint, retake, expires: 1000 },
                    other => other,
                };
                match transition(record.as_ref(), event, 100) {
                    Transition::Becomes(next) => {
                        if let Event::Claim { token, .. } = event {
                            prop_assert_eq!(may_have_run, None);
                            may_have_run = Some(token);
                        }
                        prop_assert_eq!(Some(next.token), may_have_run);
                        record = Some(next);
                    }
                    Transition::Goes => {
                        prop_assert_eq!(event, Event::Release { token: may_have_run.unwrap() });
                        may_have_run = None;
                        record = None;
                    }
                    Transition::Stays => {}
                }
            }
        }
    }
}
