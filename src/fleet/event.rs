//! The events of the bus.

use bytes::Bytes;
use std::fmt;
use std::str::FromStr;

/// The identity of a process of the fleet: random at each start, never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ProcessId(pub(crate) u64);

impl ProcessId {
    /// Returns a new identity.
    ///
    /// # Errors
    /// The system has no randomness.
    pub(crate) fn random() -> std::io::Result<ProcessId> {
        let number = getrandom::u64().map_err(|error| std::io::Error::other(error.to_string()))?;
        Ok(ProcessId(number.max(1)))
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for ProcessId {
    type Err = String;

    fn from_str(text: &str) -> Result<ProcessId, String> {
        let number = u64::from_str_radix(text, 16).ok().filter(|_| text.len() == 16);
        number.map(ProcessId).ok_or_else(|| format!("expected 16 hexadecimal digits, found `{text}`"))
    }
}

/// An event of the bus.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Event {
    /// An operator has purged responses.
    Purge(Purge),
    /// A write has changed resources: the URIs whose stored responses it invalidates.
    Write { uris: Vec<String>, causal: Option<Bytes> },
    /// Fills have changed content: the number of the last answer that this process has given out.
    Fills { number: u64 },
    /// A sign of life.
    Heartbeat(Box<Heartbeat>),
    /// The process has applied purges of others.
    Heard(Vec<HeardRange>),
    /// The process could not publish some events: receivers may have missed something.
    Missed,
    /// An operator has removed a member that is gone.
    Forget(ProcessId),
    /// The process ends.
    Leave,
}

/// A purge by an operator, in the operator's words: each process applies it by its own routes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Purge {
    pub(crate) by: PurgeBy,
    /// The URL, prefix or tag; empty for everything.
    pub(crate) value: String,
    pub(crate) soft: bool,
    /// The number that it has among the answers of its process, and the clock of the process.
    pub(crate) causal: Option<Bytes>,
}

/// The meaning of a purge's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PurgeBy {
    Url,
    Prefix,
    Tag,
    All,
}

/// Events of one process, by their numbers; both ends are included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HeardRange {
    pub(crate) process: ProcessId,
    pub(crate) first: u64,
    pub(crate) last: u64,
}

/// A sign of life of a member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Heartbeat {
    /// Host and process id, for operators.
    pub(crate) name: String,
    /// The address of the admin listener.
    pub(crate) address: String,
    pub(crate) version: String,
    /// The digest of the configuration.
    pub(crate) config: u64,
    /// The digest of the ring of each pool.
    pub(crate) rings: Vec<(String, u64)>,
    /// The time of the sender's clock, in milliseconds since 1970.
    pub(crate) clock: u64,
    /// The age of the last event that it has applied, in milliseconds.
    pub(crate) lag: u32,
    /// The time after which it counts as missed, in milliseconds.
    pub(crate) lease: u32,
}

impl Event {
    /// Returns the label in metrics.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Event::Purge(_) => "purge",
            Event::Write { .. } => "write",
            Event::Fills { .. } => "fills",
            Event::Heartbeat(_) => "heartbeat",
            Event::Heard(_) => "heard",
            Event::Missed => "missed",
            Event::Forget(_) => "forget",
            Event::Leave => "leave",
        }
    }
}
