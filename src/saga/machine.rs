//! The protocol of a saga as one pure function: [`step`] takes the state and an event, and returns the next state and
//! what is to be done. Production and the exhaustive search use the same function.
//!
//! A proxy keeps the state only for as long as it works on the saga. The proxy that comes after it begins from the log
//! with [`State::begin`]: a step that had been started is then of unknown outcome.
//!
//! - A step is *started* by a durable entry before its first byte, which is merged with the success of the step before.
//! - A step is *refused* by an answer 4xx other than 408, 425, 429 and 409 with `Retry-After`, and only where every
//!   earlier attempt got one of these four. After any other answer, or none, its outcome is unknown.
//! - An unknown outcome is tried again until the deadline. Then the step counts as perhaps done, and is undone like
//!   those that are done.
//! - The turn to compensation is one durable entry before the first undo. It is final.
//! - The last step, where it has no undo, is the pivot: while its outcome is unknown nothing is undone.

use super::definition::{Definition, Step};
use super::log::{Cause, Entry, Fate, Millis, Outcome, Progress, Turn, What};
use std::time::Duration;

/// The most time between two attempts of a step, and of an undo.
const LONGEST_PAUSE: [Millis; 2] = [1_000, 60_000];

/// The parts of a definition that the protocol depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) steps: Vec<PlannedStep>,
    /// The time for the forward steps.
    pub(crate) deadline: Millis,
    /// The time after which a person decides.
    pub(crate) stuck_after: Millis,
}

impl Plan {
    /// Returns the plan of a definition.
    pub(crate) fn of(definition: &Definition) -> Plan {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let planned = |step: &Step| PlannedStep {
            has_undo: step.compensate.is_some(),
            attempts: step.retries.attempts,
            backoff: millis(step.retries.backoff),
        };
        Plan {
            steps: definition.steps.iter().map(planned).collect(),
            deadline: millis(definition.deadline),
            stuck_after: millis(definition.stuck_after),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PlannedStep {
    pub(crate) has_undo: bool,
    /// The number of pauses before they grow.
    pub(crate) attempts: u32,
    pub(crate) backoff: Millis,
}

/// The direction of a step's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Way {
    Do,
    Undo,
}

/// A step that is being sent, again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Attempt {
    pub(crate) step: usize,
    pub(crate) way: Way,
    /// The attempts that have failed, as far as they lengthen the pause.
    failures: u32,
    /// An attempt may have been carried out.
    is_unknown: bool,
    /// The status of the last answer.
    status: Option<u16>,
}

/// The result of one attempt.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Answer {
    /// The step is done; with the parts of the answer that templates use.
    Success { status: u16, outputs: String },
    /// Any other answer. `retry_after`: in milliseconds, where it has the field.
    Status { status: u16, retry_after: Option<Millis> },
    /// The request may have been sent, and no whole answer came.
    None,
    /// Not one byte was sent.
    NotSent,
    /// The request cannot be made: a template names what is not there.
    Unresolved,
}

impl Answer {
    /// Returns whether the answer says that the step was not carried out, and may be later.
    pub(crate) fn is_temporary(&self) -> bool {
        matches!(self, Answer::Status { status, retry_after } if is_temporary(*status, *retry_after))
    }
}

/// An event of a saga that this proxy works on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    /// The work begins, or goes on.
    Begin,
    /// The entry that was to be appended is durable.
    Durable,
    /// An attempt has ended.
    Answer(Answer),
    /// A pause is over.
    Due,
    /// A person has a stuck saga go on.
    Retry { by: String },
    /// A person has seen to what was open.
    Resolve { by: String, outcome: Outcome },
}

/// The next action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Make the entries durable, in one transaction. With [`What::Ended`] the record gets its answer in the same one.
    Append(Vec<Entry>),
    /// Send the request of a step. No answer by `give_up` is none.
    Send { step: usize, way: Way, give_up: Option<Millis> },
    /// Do nothing until a time.
    Wait { until: Millis },
}

/// A saga, as the proxy has it that works on it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    created: Millis,
    /// The progress that the log tells.
    pub(crate) progress: Progress,
    activity: Activity,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Activity {
    /// Nothing is under way: the saga has not begun here, is stuck or over.
    Resting,
    Appending(Vec<Entry>),
    Sending(Attempt),
    Pausing(Attempt),
}

impl State {
    /// Returns the state of a saga that this proxy has made or taken over.
    pub(crate) fn begin(created: Millis, progress: Progress) -> State {
        State { created, progress, activity: Activity::Resting }
    }
}

/// The rules of a plan at a time of the store's clock.
#[derive(Clone, Copy)]
struct Rules<'a> {
    plan: &'a Plan,
    /// The end of the time for forward steps.
    deadline: Millis,
    now: Millis,
}

/// Returns the state after an event, and what is to be done next: nothing where the saga is stuck or over, or where the
/// event does not concern it.
pub(crate) fn step(plan: &Plan, state: &State, event: Event, now: Millis) -> (State, Option<Effect>) {
    let rules = Rules { plan, deadline: state.created.saturating_add(plan.deadline), now };
    let State { created, progress, activity } = state;
    let by_person = |what| rules.append(progress, vec![rules.entry(what)]);
    let next = match (event, activity) {
        (Event::Begin, Activity::Resting) => Some((progress.clone(), rules.go_on(progress, true))),
        (Event::Durable, Activity::Appending(entries)) => {
            let after = rules.after(progress, entries);
            let is_new = entries.iter().any(|entry| matches!(entry.what, What::Started { .. }));
            let next = rules.go_on(&after, !is_new);
            Some((after, next))
        }
        (Event::Answer(answer), Activity::Sending(attempt)) => {
            Some((progress.clone(), rules.answered(progress, *attempt, answer)))
        }
        (Event::Due, Activity::Pausing(attempt)) => Some((progress.clone(), rules.attempt(progress, *attempt))),
        (Event::Retry { by }, Activity::Resting) if progress.is_stuck => {
            Some((progress.clone(), by_person(What::Resumed { by })))
        }
        // Nothing goes forward after the turn, not even on a person's word.
        (Event::Resolve { by, outcome }, Activity::Resting)
            if progress.is_stuck && (outcome == Outcome::Compensated || progress.turn.is_none()) =>
        {
            Some((progress.clone(), by_person(What::Resolved { by, outcome })))
        }
        _ => None,
    };
    let Some((progress, (activity, effect))) = next else { return (state.clone(), None) };
    (State { created: *created, progress, activity }, effect)
}

type Next = (Activity, Option<Effect>);

impl Rules<'_> {
    fn entry(&self, what: What) -> Entry {
        Entry { at: self.now, what }
    }

    fn after(&self, progress: &Progress, entries: &[Entry]) -> Progress {
        let mut after = progress.clone();
        entries.iter().for_each(|entry| after.apply(entry));
        after
    }

    /// Returns the last step that is to be undone, of those that are.
    fn open_step(&self, progress: &Progress) -> Option<usize> {
        let is_open = |step: &usize| matches!(progress.fates[*step], Fate::Started | Fate::Done);
        (0..self.plan.steps.len()).rev().find(|step| self.plan.steps[*step].has_undo && is_open(step))
    }

    /// Returns whether a step is the last one, and cannot be undone.
    fn is_pivot(&self, step: usize) -> bool {
        step + 1 == self.plan.steps.len() && !self.plan.steps[step].has_undo
    }

    /// Returns the entry that is to be made before anything is sent.
    fn next_entry(&self, progress: &Progress) -> Option<What> {
        if progress.outcome.is_some() || progress.is_stuck {
            return None;
        }
        if progress.turn.is_some() {
            let is_undone = self.open_step(progress).is_none();
            return is_undone.then_some(What::Ended { outcome: Outcome::Compensated });
        }
        let Some(step) = progress.current() else { return Some(What::Ended { outcome: Outcome::Succeeded }) };
        match progress.fates[step] {
            Fate::Untouched if self.now < self.deadline => Some(What::Started { step }),
            Fate::Untouched => {
                Some(What::Turned(Turn { step, status: None, is_unknown: false, cause: Cause::Deadline }))
            }
            Fate::Started | Fate::Done | Fate::Undone => None,
        }
    }

    /// Appends entries, and those that follow from them at once.
    fn append(&self, progress: &Progress, mut entries: Vec<Entry>) -> Next {
        let mut after = self.after(progress, &entries);
        while let Some(what) = self.next_entry(&after) {
            let entry = self.entry(what);
            after.apply(&entry);
            entries.push(entry);
        }
        (Activity::Appending(entries.clone()), Some(Effect::Append(entries)))
    }

    /// Returns what is to be done where nothing is under way. `was_started`: a step that was started may have been
    /// sent.
    fn go_on(&self, progress: &Progress, was_started: bool) -> Next {
        if self.next_entry(progress).is_some() {
            return self.append(progress, Vec::new());
        }
        if progress.outcome.is_some() || progress.is_stuck {
            return (Activity::Resting, None);
        }
        let (way, step) = match progress.turn {
            Some(_) => (Way::Undo, self.open_step(progress)),
            None => (Way::Do, progress.current()),
        };
        let Some(step) = step else { return (Activity::Resting, None) };
        let attempt = Attempt { step, way, failures: 0, is_unknown: was_started && way == Way::Do, status: None };
        self.attempt(progress, attempt)
    }

    /// Returns whether the deadline ends the attempts of a step.
    fn has_deadline(&self, attempt: &Attempt) -> bool {
        attempt.way == Way::Do && !(attempt.is_unknown && self.is_pivot(attempt.step))
    }

    /// Sends a request, unless its time is over.
    fn attempt(&self, progress: &Progress, attempt: Attempt) -> Next {
        if self.has_deadline(&attempt) {
            if self.now >= self.deadline {
                return self.turn(progress, &attempt, Cause::Deadline);
            }
        } else if attempt.failures > 0 && self.now >= progress.since.saturating_add(self.plan.stuck_after) {
            return self.append(progress, vec![self.entry(What::Stuck)]);
        }
        let Attempt { step, way, .. } = attempt;
        // An attempt of the pivot that is cut off would leave its outcome unknown.
        let give_up = (way == Way::Do && !self.is_pivot(step)).then_some(self.deadline);
        (Activity::Sending(attempt), Some(Effect::Send { step, way, give_up }))
    }

    fn turn(&self, progress: &Progress, attempt: &Attempt, cause: Cause) -> Next {
        let Attempt { step, status, is_unknown, .. } = *attempt;
        self.append(progress, vec![self.entry(What::Turned(Turn { step, status, is_unknown, cause }))])
    }

    /// Returns what follows from the end of an attempt.
    fn answered(&self, progress: &Progress, mut attempt: Attempt, answer: Answer) -> Next {
        let step = attempt.step;
        let mut least = 0;
        match (answer, attempt.way) {
            (Answer::Success { status, outputs }, Way::Do) => {
                return self.append(progress, vec![self.entry(What::Succeeded { step, status, outputs })]);
            }
            (Answer::Success { .. }, Way::Undo) => {
                return self.append(progress, vec![self.entry(What::Undone { step })]);
            }
            (Answer::Unresolved, Way::Do) if !attempt.is_unknown => {
                return self.turn(progress, &attempt, Cause::Unresolved);
            }
            (Answer::Status { status, retry_after }, Way::Do) => {
                attempt.status = Some(status);
                if is_temporary(status, retry_after) {
                    least = retry_after.unwrap_or_default().min(self.deadline.saturating_sub(self.now));
                } else if is_refusal(status) && !attempt.is_unknown {
                    return self.turn(progress, &attempt, Cause::Refused);
                } else {
                    attempt.is_unknown = true;
                }
            }
            (Answer::None, Way::Do) => attempt.is_unknown = true,
            (Answer::NotSent | Answer::Unresolved, _) | (Answer::Status { .. } | Answer::None, Way::Undo) => {}
        }
        let pause = self.pause(&mut attempt).max(least);
        let until = self.now.saturating_add(pause);
        match self.has_deadline(&attempt) {
            true if self.now >= self.deadline => self.attempt(progress, attempt),
            true => self.wait(attempt, until.min(self.deadline)),
            false => self.wait(attempt, until),
        }
    }

    fn wait(&self, attempt: Attempt, until: Millis) -> Next {
        (Activity::Pausing(attempt), Some(Effect::Wait { until }))
    }

    /// Counts a failure. Returns the pause after it: for a step `attempts` times the same, then doubled up to a second;
    /// for an undo doubled up to a minute.
    fn pause(&self, attempt: &mut Attempt) -> Millis {
        let planned = &self.plan.steps[attempt.step];
        let (longest, same) = match attempt.way {
            Way::Do => (LONGEST_PAUSE[0], planned.attempts),
            Way::Undo => (LONGEST_PAUSE[1], 1),
        };
        let backoff = planned.backoff.max(1);
        let doublings = (attempt.failures + 1).saturating_sub(same.max(1)).min(16);
        let pause = backoff.saturating_mul(1 << doublings).min(longest).max(backoff);
        // What lengthens the pause no more is not counted.
        let is_longest = attempt.failures >= same && pause >= longest;
        attempt.failures = if is_longest { attempt.failures.max(1) } else { attempt.failures + 1 };
        pause
    }
}

/// Returns whether an answer says that the step was not carried out, and may be later.
fn is_temporary(status: u16, retry_after: Option<Millis>) -> bool {
    matches!(status, 408 | 425 | 429) || (status == 409 && retry_after.is_some())
}

/// Returns whether an answer that is not temporary refuses the step.
fn is_refusal(status: u16) -> bool {
    (400..500).contains(&status)
}

#[cfg(test)]
impl State {
    /// Forgets that an attempt may have been carried out: what the search must find to be wrong.
    pub(super) fn forget_unknown(&mut self) {
        if let Activity::Sending(attempt) = &mut self.activity {
            attempt.is_unknown = false;
        }
    }
}

#[cfg(test)]
mod tests;
