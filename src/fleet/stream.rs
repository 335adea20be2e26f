//! The stream of the fleet on one node: the commands, their replies, and the continuity of what is read.
//!
//! Every entry has the epoch of its stream, which is random and made with it, and a number that counts from 1 in that
//! stream: an entry that was trimmed, deleted or lost leaves a hole, and a stream that was made anew has another epoch.

use crate::io::redis::{Value, bytes, list, number, text};
use ::redis::{Cmd, Pipeline};
use bytes::Bytes;
use std::time::Duration;

/// The most entries of a stream, and about the most bytes; the oldest go first.
const MAX_ENTRIES: usize = 100_000;
const MAX_BYTES: usize = 64 << 20;
/// The most entries of one reply.
pub(super) const PAGE: usize = 128;
/// The time for which a reading waits for entries.
pub(super) const BLOCK: Duration = Duration::from_millis(250);

/// Adds entries to the stream, which it makes where there is none. What others have written into it, and the removal of
/// its last entries, count as the end of its epoch.
const PUBLISH: &str = r"
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
local epoch, number = ARGV[1], 0
if #last > 0 then
  local f = last[1][2]
  local is_cut = true
  local info = redis.call('XINFO', 'STREAM', KEYS[1])
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then is_cut = info[i + 1] ~= last[1][1] end
  end
  if not is_cut and f[1] == 'e' and f[3] == 'n' and tonumber(f[4]) then epoch, number = f[2], tonumber(f[4]) end
end
for i = 4, #ARGV do
  number = number + 1
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', 'e', epoch, 'n', string.format('%.0f', number), 'd', ARGV[i])
end
local size = redis.pcall('MEMORY', 'USAGE', KEYS[1], 'SAMPLES', 5)
if type(size) == 'number' and size > tonumber(ARGV[3]) then
  redis.call('XTRIM', KEYS[1], 'MAXLEN', '~', math.ceil(redis.call('XLEN', KEYS[1]) / 2))
end
return number
";

/// The keys of a fleet.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    /// The stream.
    pub(super) stream: String,
    /// The last heartbeat of each member, by its identity.
    pub(super) members: String,
}

impl Keys {
    pub(super) fn new(fleet: &str) -> Keys {
        Keys { stream: format!("ringway:{fleet}:bus"), members: format!("ringway:{fleet}:members") }
    }

    /// Returns the command that adds events.
    pub(super) fn publish<'a>(&self, events: impl Iterator<Item = &'a Bytes>) -> Cmd {
        let mut command = ::redis::cmd("EVAL");
        let epoch = format!("{:016x}", getrandom::u64().unwrap_or_else(|_| fastrand::u64(..)));
        command.arg(PUBLISH).arg(1).arg(&self.stream).arg(epoch).arg(MAX_ENTRIES).arg(MAX_BYTES);
        for event in events {
            command.arg(&event[..]);
        }
        command
    }

    /// Returns the command that reads on after an entry.
    pub(super) fn read(&self, after: &str) -> Pipeline {
        let mut commands = Pipeline::new();
        let read = commands.cmd("XREAD").arg("COUNT").arg(PAGE).arg("BLOCK").arg(BLOCK.as_millis() as u64);
        read.arg("STREAMS").arg(&self.stream).arg(after);
        commands
    }

    /// Returns the commands that tell which server and which stream a connection reaches.
    pub(super) fn look(&self) -> Pipeline {
        let mut commands = Pipeline::new();
        commands.cmd("INFO").arg("server");
        commands.cmd("XREVRANGE").arg(&self.stream).arg("+").arg("-").arg("COUNT").arg(1);
        commands.cmd("XINFO").arg("STREAM").arg(&self.stream);
        commands
    }
}

/// An entry of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) id: String,
    pub(super) epoch: String,
    pub(super) number: u64,
    pub(super) event: Bytes,
}

/// The run of the server that a connection reaches, and the last entry of its stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Look {
    pub(super) run: String,
    pub(super) last: Option<Entry>,
    /// The id that the stream gave out last, where the entry with it is gone.
    pub(super) cut: Option<String>,
}

/// The position up to which a stream was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Position {
    run: String,
    /// The epoch of the last entry; empty where none was read.
    epoch: String,
    number: u64,
    pub(super) id: String,
    /// The last id of the stream whose entry is gone, once that was noticed.
    cut: Option<String>,
}

/// Before the first entry of a stream.
const START: &str = "0-0";

impl Position {
    /// Returns the position at the end of a stream, from which a new process reads on.
    pub(super) fn at_end(look: &Look) -> Position {
        let (run, last) = (look.run.clone(), look.last.as_ref());
        Position {
            run,
            epoch: last.map(|last| last.epoch.clone()).unwrap_or_default(),
            number: last.map_or(0, |last| last.number),
            id: last.map_or_else(|| START.to_owned(), |last| last.id.clone()),
            cut: look.cut.clone(),
        }
    }

    /// Compares the position with what the connection reaches. Returns why entries may be lost, where they may; the
    /// position is then one from which the stream can be read on.
    pub(super) fn resume(&mut self, look: &Look) -> Option<&'static str> {
        let is_same_run = self.run == look.run;
        look.run.clone_into(&mut self.run);
        let cut = std::mem::replace(&mut self.cut, look.cut.clone());
        let is_cut = look.cut.as_ref().is_some_and(|now| cut.as_ref() != Some(now) && order(now) > order(&self.id));
        let is_before = |last: &Entry| (last.number, order(&last.id)) < (self.number, order(&self.id));
        let reason = match &look.last {
            None if self.number > 0 => "the stream is gone",
            Some(last) if last.epoch != self.epoch && !self.epoch.is_empty() => "the stream was made anew",
            Some(last) if is_before(last) => "the stream was restored from an earlier state",
            // What was read is still there; what came after it may have been lost.
            _ if !is_same_run => return Some("the server was restarted or replaced"),
            _ if is_cut => return Some("the last entries of the stream are gone"),
            _ => return None,
        };
        (self.epoch, self.number, self.id) = (String::new(), 0, START.to_owned());
        Some(reason)
    }

    /// Moves on to the next entry. Returns whether entries before it are lost.
    pub(super) fn pass(&mut self, entry: &Entry) -> bool {
        let is_next = entry.number == self.number + 1 && (entry.epoch == self.epoch || self.epoch.is_empty());
        entry.epoch.clone_into(&mut self.epoch);
        entry.id.clone_into(&mut self.id);
        self.number = entry.number;
        !is_next
    }
}

impl Position {
    /// Moves past what a stranger has written, behind which the next entry begins an epoch.
    pub(super) fn skip(&mut self, id: String) {
        (self.epoch, self.number, self.id) = (String::new(), 0, id);
    }
}

/// Returns the order of an entry's id: milliseconds and a sequence.
fn order(id: &str) -> (u64, u64) {
    let (time, sequence) = id.split_once('-').unwrap_or((id, "0"));
    (time.parse().unwrap_or(0), sequence.parse().unwrap_or(0))
}

/// Returns an entry; its id alone where a stranger has written it.
fn entry(value: &Value) -> Result<Entry, Option<String>> {
    let [id, fields] = list(value) else { return Err(None) };
    let id = text(id).ok_or(None)?;
    let read = || {
        let [e, epoch, n, count, d, event] = list(fields) else { return None };
        let is_ours = bytes(e) == Some(b"e") && bytes(n) == Some(b"n") && bytes(d) == Some(b"d");
        let event = Bytes::copy_from_slice(bytes(event).filter(|_| is_ours)?);
        Some((text(epoch)?, number(count)?, event))
    };
    let Some((epoch, number, event)) = read() else { return Err(Some(id)) };
    Ok(Entry { id, epoch, number, event })
}

/// The entries of a reply, in their order; those that a stranger has written by their ids.
pub(super) fn entries(reply: &Value) -> Vec<Result<Entry, String>> {
    let stream = match reply {
        Value::Map(streams) => streams.first().map(|(_, entries)| entries),
        reply => list(reply).first().and_then(|stream| list(stream).get(1)),
    };
    let found = stream.map(list).unwrap_or_default().iter().map(entry);
    found
        .filter_map(|entry| entry.map_err(|id| id.ok_or(())).map_or_else(|id| id.ok().map(Err), |it| Some(Ok(it))))
        .collect()
}

/// Returns what a connection reaches.
///
/// # Errors
/// The server refuses the commands, or replies with something else.
pub(super) fn look(replies: &[Value]) -> Result<Look, String> {
    let [info, last, stream] = replies else { return Err("the server gave no reply".to_owned()) };
    for reply in [info, last] {
        if let Value::ServerError(error) = reply {
            return Err(error.to_string());
        }
    }
    let info = text(info).unwrap_or_default();
    let run = field(&info, "run_id").ok_or("`INFO` shows no run_id")?;
    let names = list(stream).chunks(2);
    let given = names.filter(|pair| bytes(&pair[0]) == Some(b"last-generated-id")).find_map(|pair| text(pair.get(1)?));
    let last_id = list(last).first().and_then(|entry| text(list(entry).first()?));
    let last = match list(last).first().map(entry) {
        None => None,
        Some(Ok(entry)) => Some(entry),
        // As the script has it: the next entry begins an epoch.
        Some(Err(id)) => Some(Entry {
            id: id.ok_or("the server's reply is no entry")?,
            epoch: "strange".to_owned(),
            number: 0,
            event: Bytes::new(),
        }),
    };
    let cut = given.filter(|given| last_id.is_some_and(|last| last != *given));
    Ok(Look { run: run.to_owned(), last, cut })
}

/// Returns a field of `INFO`.
pub(super) fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.trim_end().strip_prefix(name)?.strip_prefix(':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(id: &str, epoch: &str, number: u64) -> Entry {
        Entry { id: id.to_owned(), epoch: epoch.to_owned(), number, event: Bytes::new() }
    }

    fn seen(run: &str, last: Option<Entry>) -> Look {
        Look { run: run.to_owned(), last, cut: None }
    }

    #[test]
    fn continuity_ends_with_the_run_the_epoch_and_what_was_read() {
        let at = Position::at_end(&seen("a", Some(made("5-0", "e", 7))));
        let restored = "the stream was restored from an earlier state";
        for (look, lost, goes_on) in [
            (seen("a", Some(made("5-0", "e", 7))), None, true),
            (seen("a", Some(made("9-0", "e", 9))), None, true),
            (seen("b", Some(made("5-0", "e", 7))), Some("the server was restarted or replaced"), true),
            (seen("a", None), Some("the stream is gone"), false),
            (seen("a", Some(made("9-0", "f", 1))), Some("the stream was made anew"), false),
            (seen("b", Some(made("4-0", "e", 6))), Some(restored), false),
            // A clock that went back: the number is equal, and the entry another one.
            (seen("b", Some(made("4-5", "e", 7))), Some(restored), false),
        ] {
            let mut position = at.clone();
            assert_eq!(position.resume(&look), lost, "{look:?}");
            assert_eq!(position.id == at.id, goes_on, "{look:?}");
            assert_eq!(position.run, look.run);
        }
        let cut = Look { cut: Some("8-0".to_owned()), ..seen("a", Some(made("5-0", "e", 7))) };
        let mut position = at.clone();
        assert_eq!(position.resume(&cut), Some("the last entries of the stream are gone"));
        assert_eq!(position.resume(&cut), None, "noticed once");
        position.pass(&made("8-0", "e", 8));
        let read = Look { cut: Some("8-0".to_owned()), ..seen("a", Some(made("8-0", "e", 8))) };
        assert_eq!(position.resume(&read), None, "it was read before it was deleted");
        let mut fresh = Position::at_end(&seen("a", None));
        assert_eq!(fresh.resume(&seen("a", Some(made("5-0", "e", 1)))), None);
    }

    #[test]
    fn a_hole_in_the_numbers_is_a_loss() {
        let mut position = Position::at_end(&seen("a", Some(made("5-0", "e", 7))));
        assert!(!position.pass(&made("6-0", "e", 8)));
        assert!(position.pass(&made("7-0", "e", 10)));
        assert!(!position.pass(&made("8-0", "e", 11)));
        assert!(position.pass(&made("9-0", "f", 12)));
        let mut fresh = Position::at_end(&seen("a", None));
        assert!(!fresh.clone().pass(&made("6-0", "e", 1)));
        assert!(fresh.pass(&made("6-0", "e", 2)));
    }

    #[test]
    fn what_strangers_write_is_no_entry() {
        let bulk = |text: &str| Value::BulkString(text.into());
        let fields = |fields: &[&str]| Value::Array(fields.iter().map(|field| bulk(field)).collect());
        let ours = Value::Array(vec![bulk("1-0"), fields(&["e", "x", "n", "4", "d", "bytes"])]);
        let strange = Value::Array(vec![bulk("2-0"), fields(&["a", "b"])]);
        let none = Value::Array(vec![bulk("3-0")]);
        let reply = Value::Array(vec![Value::Array(vec![bulk("s"), Value::Array(vec![ours, strange, none])])]);
        let expected = Entry { event: Bytes::from_static(b"bytes"), ..made("1-0", "x", 4) };
        assert_eq!(entries(&reply), [Ok(expected), Err("2-0".to_owned())]);
        assert_eq!(entries(&Value::Nil), []);
    }
}
