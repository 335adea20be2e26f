//! The log of a saga: what its proxies have made durable, and what follows from it.
//!
//! An entry is a line of JSON, so that operators can read a row. Folded, the entries give the [`Progress`] of a saga.
//! An entry is appended before what it announces is done: a step's request, the first undo.

use serde::{Deserialize, Serialize};

/// Milliseconds since 1970, by the store's clock.
pub(crate) type Millis = u64;

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// When the entry was made.
    pub(crate) at: Millis,
    #[serde(flatten)]
    pub(crate) what: What,
}

impl Entry {
    /// Returns whether the saga turns to compensation with it.
    pub(crate) fn is_turn(&self) -> bool {
        matches!(self.what, What::Turned(_))
    }
}

/// The content of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub(crate) enum What {
    /// A step may be sent from here on.
    Started { step: usize },
    /// A step is done. `outputs` are the parts of its answer that templates use.
    Succeeded { step: usize, status: u16, outputs: String },
    /// The saga turns to compensation, for good: no step is sent after it.
    Turned(Turn),
    /// A step is undone.
    Undone { step: usize },
    /// The saga waits for a person.
    Stuck,
    /// A person has the saga go on.
    Resumed { by: String },
    /// A person has seen to what was open.
    Resolved { by: String, outcome: Outcome },
    /// The saga is over.
    Ended { outcome: Outcome },
}

/// The step that a saga has failed at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Turn {
    pub(crate) step: usize,
    /// The status of the last answer, if there was one.
    pub(crate) status: Option<u16>,
    /// The step may have been carried out, so it is undone, too.
    pub(crate) is_unknown: bool,
    pub(crate) cause: Cause,
}

/// Why a saga has turned to compensation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Cause {
    /// The service has refused the step.
    Refused,
    /// The time for the forward steps is over.
    Deadline,
    /// The step's request cannot be made of what its templates name.
    Unresolved,
    /// A person has found that the step was not carried out.
    Operator,
}

/// The end of a saga.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    Succeeded,
    Compensated,
}

/// The state of one step, as the log has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fate {
    /// Nothing was sent, or the service has refused it.
    Untouched,
    /// It may have been sent.
    Started,
    Done,
    Undone,
}

/// The state of a saga for clients and operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Standing {
    Running,
    Compensating,
    Succeeded,
    Compensated,
    Stuck,
}

impl Standing {
    pub(crate) const ALL: [Standing; 5] =
        [Standing::Running, Standing::Compensating, Standing::Succeeded, Standing::Compensated, Standing::Stuck];

    /// Returns the word for it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Standing::Running => "running",
            Standing::Compensating => "compensating",
            Standing::Succeeded => "succeeded",
            Standing::Compensated => "compensated",
            Standing::Stuck => "stuck",
        }
    }

    /// Returns the number for it in a table.
    pub(crate) fn code(self) -> i16 {
        self as i16
    }

    /// Returns the state with a number.
    pub(crate) fn of(code: i16) -> Option<Standing> {
        Standing::ALL.into_iter().find(|standing| standing.code() == code)
    }

    /// Returns whether the saga is over.
    pub(crate) fn is_end(self) -> bool {
        matches!(self, Standing::Succeeded | Standing::Compensated)
    }
}

/// The state that follows from the entries of a log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Progress {
    pub(crate) fates: Vec<Fate>,
    pub(crate) turn: Option<Turn>,
    pub(crate) is_stuck: bool,
    pub(crate) outcome: Option<Outcome>,
    /// The time from which `stuck_after` counts.
    pub(crate) since: Millis,
}

impl Progress {
    /// Returns the progress of a saga of which nothing was sent.
    pub(crate) fn new(steps: usize, created: Millis) -> Progress {
        let fates = vec![Fate::Untouched; steps];
        Progress { fates, turn: None, is_stuck: false, outcome: None, since: created }
    }

    /// Returns the progress that a log tells of.
    pub(crate) fn fold(steps: usize, created: Millis, entries: &[Entry]) -> Progress {
        let mut progress = Progress::new(steps, created);
        entries.iter().for_each(|entry| progress.apply(entry));
        progress
    }

    /// Takes the next entry.
    pub(crate) fn apply(&mut self, entry: &Entry) {
        match entry.what {
            What::Started { step } => {
                self.set(step, Fate::Started);
                self.since = entry.at;
            }
            What::Succeeded { step, .. } => self.set(step, Fate::Done),
            What::Turned(turn) => {
                self.set(turn.step, if turn.is_unknown { Fate::Started } else { Fate::Untouched });
                self.turn = Some(turn);
                self.since = entry.at;
            }
            What::Undone { step } => self.set(step, Fate::Undone),
            What::Stuck => self.is_stuck = true,
            What::Resumed { .. } => {
                self.is_stuck = false;
                self.since = entry.at;
            }
            What::Resolved { outcome, .. } => {
                self.is_stuck = false;
                self.since = entry.at;
                self.resolve(outcome);
            }
            What::Ended { outcome } => self.outcome = Some(outcome),
        }
    }

    fn set(&mut self, step: usize, to: Fate) {
        if let Some(fate) = self.fates.get_mut(step) {
            *fate = to;
        }
    }

    /// Takes what a person says of the steps that were open.
    fn resolve(&mut self, outcome: Outcome) {
        match (outcome, self.turn) {
            (Outcome::Succeeded, _) => self.fates.fill(Fate::Done),
            (Outcome::Compensated, Some(_)) => {
                let open = self.fates.iter_mut().filter(|fate| matches!(fate, Fate::Started | Fate::Done));
                open.for_each(|fate| *fate = Fate::Undone);
            }
            // The step that was open was not carried out; those before it are undone now.
            (Outcome::Compensated, None) => {
                let step = self.current().unwrap_or_default();
                self.set(step, Fate::Untouched);
                self.turn = Some(Turn { step, status: None, is_unknown: false, cause: Cause::Operator });
            }
        }
    }

    /// Returns the first step that is not done.
    pub(crate) fn current(&self) -> Option<usize> {
        self.fates.iter().position(|fate| *fate != Fate::Done)
    }

    /// Returns the state for clients and operators.
    pub(crate) fn standing(&self) -> Standing {
        match (self.outcome, self.is_stuck, self.turn) {
            (Some(Outcome::Succeeded), ..) => Standing::Succeeded,
            (Some(Outcome::Compensated), ..) => Standing::Compensated,
            (None, true, _) => Standing::Stuck,
            (None, false, Some(_)) => Standing::Compensating,
            (None, false, None) => Standing::Running,
        }
    }
}

/// A log that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the log of the saga cannot be read: {0}")]
pub(crate) struct BadLog(#[from] serde_json::Error);

/// Returns entries as the text that is appended to a log.
pub(crate) fn encode(entries: &[Entry]) -> String {
    let line = |entry| serde_json::to_string(entry).expect("an entry has nothing that JSON has not") + "\n";
    entries.iter().map(line).collect()
}

/// Reads the entries of a log.
///
/// # Errors
///
/// The text is none, or of a newer version.
pub(crate) fn decode(log: &str) -> Result<Vec<Entry>, BadLog> {
    log.lines().map(|line| serde_json::from_str(line).map_err(BadLog)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(at: Millis, what: What) -> Entry {
        Entry { at, what }
    }

    fn turned(step: usize, is_unknown: bool) -> What {
        What::Turned(Turn { step, status: Some(422), is_unknown, cause: Cause::Refused })
    }

    fn all() -> Vec<Entry> {
        let what = [
            What::Started { step: 0 },
            What::Succeeded { step: 0, status: 201, outputs: "{\"steps.a.body\":\"\u{fc}\\n\"}".to_owned() },
            turned(1, true),
            What::Undone { step: 1 },
            What::Stuck,
            What::Resumed { by: "ann".to_owned() },
            What::Resolved { by: "bob".to_owned(), outcome: Outcome::Compensated },
            What::Ended { outcome: Outcome::Compensated },
        ];
        what.into_iter().enumerate().map(|(at, what)| entry(at as u64, what)).collect()
    }

    #[test]
    fn a_log_is_read_as_it_was_written() {
        let entries = all();
        let log = encode(&entries);
        assert_eq!(decode(&log).unwrap(), entries);
        assert_eq!(log.lines().count(), entries.len(), "a line each");
        let parts: String = entries.iter().map(|entry| encode(std::slice::from_ref(entry))).collect();
        assert_eq!(parts, log, "appended one by one");
        assert_eq!(decode("").unwrap(), []);
        for damaged in [&log[1..], &log[..log.len() - 3], "{\"at\":1,\"what\":\"paused\"}\n"] {
            assert!(decode(damaged).is_err());
        }
        let first = encode(&entries[..1]);
        assert_eq!(first, "{\"at\":0,\"what\":\"started\",\"step\":0}\n", "rows outlive versions of Ringway");
    }

    #[test]
    fn a_log_tells_how_far_a_saga_is() {
        use Fate::{Done, Started, Undone, Untouched};
        let entries = all();
        let expected = [
            (Standing::Running, [Untouched, Untouched, Untouched]),
            (Standing::Running, [Started, Untouched, Untouched]),
            (Standing::Running, [Done, Untouched, Untouched]),
            (Standing::Compensating, [Done, Started, Untouched]),
            (Standing::Compensating, [Done, Undone, Untouched]),
            (Standing::Stuck, [Done, Undone, Untouched]),
            (Standing::Compensating, [Done, Undone, Untouched]),
            (Standing::Compensating, [Undone, Undone, Untouched]),
            (Standing::Compensated, [Undone, Undone, Untouched]),
        ];
        for (length, (standing, fates)) in expected.into_iter().enumerate() {
            let progress = Progress::fold(3, 0, &entries[..length]);
            assert_eq!((progress.standing(), &progress.fates[..]), (standing, &fates[..]), "{length} entries");
        }
        let refused = Progress::fold(2, 0, &[entry(1, What::Started { step: 0 }), entry(2, turned(0, false))]);
        assert_eq!(refused.fates, [Untouched, Untouched], "what was refused is not undone");
    }

    #[test]
    fn a_person_says_what_became_of_the_pivot() {
        let done = |step| entry(1, What::Succeeded { step, status: 200, outputs: String::new() });
        let resolved = |outcome| {
            let by = "ann".to_owned();
            let log = [done(0), entry(2, What::Started { step: 1 }), entry(3, What::Stuck)];
            let mut progress = Progress::fold(2, 0, &log);
            assert_eq!(progress.standing(), Standing::Stuck);
            progress.apply(&entry(4, What::Resolved { by, outcome }));
            progress
        };
        assert_eq!(resolved(Outcome::Succeeded).fates, [Fate::Done, Fate::Done]);
        let undone = resolved(Outcome::Compensated);
        assert_eq!(
            (undone.standing(), &undone.fates[..]),
            (Standing::Compensating, &[Fate::Done, Fate::Untouched][..])
        );
        assert_eq!(undone.turn.unwrap().cause, Cause::Operator);
    }

    #[test]
    fn the_numbers_of_the_table_stay() {
        let numbers = Standing::ALL.map(|standing| (standing.code(), standing.word()));
        let expected = [(0, "running"), (1, "compensating"), (2, "succeeded"), (3, "compensated"), (4, "stuck")];
        assert_eq!(numbers, expected);
        assert!(Standing::ALL.into_iter().all(|standing| Standing::of(standing.code()) == Some(standing)));
        assert_eq!(Standing::of(5), None);
    }
}
