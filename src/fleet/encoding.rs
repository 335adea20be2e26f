//! The encoding of events: versioned, compact, bounded. The bytes come from a server that others may write to, so that
//! each length is checked.

use super::event::{Event, HeardRange, Heartbeat, ProcessId, Purge, PurgeBy};
use bytes::Bytes;

/// The version of the encoding. A process that reads another one cannot tell what it means.
const VERSION: u8 = 1;
/// The largest event in bytes: the URIs of a write that names two others, however long a request's target may be.
pub(super) const MAX_EVENT: usize = 2 << 20;
/// The longest text of an event in bytes: a URI, whose normal form may be three times as long as a request's target.
const MAX_TEXT: usize = 256 << 10;
/// The most URIs of a write, pools of a heartbeat, and ranges of an acknowledgement.
pub(super) const MAX_ITEMS: usize = 1024;
/// The longest `causal` part of an event in bytes.
const MAX_CAUSAL: usize = 16 << 10;

/// Why bytes are no event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("the event ends too early")]
    Short,
    #[error("the event has bytes behind its end")]
    Long,
    #[error("a part of the event exceeds its bound")]
    TooLarge,
    #[error("a text of the event is not UTF-8")]
    NotUtf8,
    #[error("the event has version {0}, and this Ringway knows version {VERSION}")]
    Version(u8),
    #[error("the event is of the unknown kind {0}")]
    Kind(u8),
}

impl Malformed {
    /// Returns whether the bytes may have been an event that matters: kinds from 128 on are for events that a process
    /// which does not know them may ignore.
    pub(super) fn may_matter(self) -> bool {
        !matches!(self, Malformed::Kind(128..))
    }
}

impl Event {
    /// Returns the bytes of an event; `None` where it exceeds a bound.
    pub(super) fn encode(&self, from: ProcessId, number: u64) -> Option<Bytes> {
        let mut out = Writer { bytes: Vec::with_capacity(64), is_within: true };
        out.byte(VERSION);
        out.byte(self.code());
        out.long(from.0);
        out.long(number);
        match self {
            Event::Purge(purge) => {
                out.byte(purge.by as u8);
                out.byte(u8::from(purge.soft));
                out.text(&purge.value);
                out.causal(purge.causal.as_ref());
            }
            Event::Write { uris, causal } => {
                out.items(uris, |out, uri| out.text(uri));
                out.causal(causal.as_ref());
            }
            Event::Fills { number } => out.long(*number),
            Event::Heartbeat(beat) => out.heartbeat(beat),
            Event::Heard(ranges) => out.items(ranges, |out, range| {
                out.long(range.process.0);
                out.long(range.first);
                out.long(range.last);
            }),
            Event::Forget(process) => out.long(process.0),
            Event::Missed | Event::Leave => {}
        }
        (out.is_within && out.bytes.len() <= MAX_EVENT).then(|| out.bytes.into())
    }

    fn code(&self) -> u8 {
        match self {
            Event::Purge(_) => 1,
            Event::Write { .. } => 2,
            Event::Fills { .. } => 3,
            Event::Heartbeat(_) => 4,
            Event::Heard(_) => 5,
            Event::Missed => 6,
            Event::Forget(_) => 7,
            Event::Leave => 8,
        }
    }

    /// Returns the process of an event, its number and the event.
    ///
    /// # Errors
    /// The bytes are no event of this version.
    pub(super) fn decode(bytes: &[u8]) -> Result<(ProcessId, u64, Event), Malformed> {
        if bytes.len() > MAX_EVENT {
            return Err(Malformed::TooLarge);
        }
        let mut read = Reader { rest: bytes };
        match read.byte()? {
            VERSION => {}
            other => return Err(Malformed::Version(other)),
        }
        let kind = read.byte()?;
        let (from, number) = (ProcessId(read.long()?), read.long()?);
        let event = read.event(kind)?;
        if read.rest.is_empty() { Ok((from, number, event)) } else { Err(Malformed::Long) }
    }
}

/// The bytes of an event, while they are made.
struct Writer {
    bytes: Vec<u8>,
    /// No part has exceeded its bound.
    is_within: bool,
}

impl Writer {
    fn byte(&mut self, byte: u8) {
        self.bytes.push(byte);
    }

    fn long(&mut self, number: u64) {
        self.bytes.extend_from_slice(&number.to_be_bytes());
    }

    fn int(&mut self, number: u32) {
        self.bytes.extend_from_slice(&number.to_be_bytes());
    }

    /// Adds bytes behind their length.
    fn part(&mut self, bytes: &[u8], most: usize) {
        match u32::try_from(bytes.len()) {
            Ok(length) if bytes.len() <= most => {
                self.bytes.extend_from_slice(&length.to_be_bytes());
                self.bytes.extend_from_slice(bytes);
            }
            _ => self.is_within = false,
        }
    }

    fn text(&mut self, text: &str) {
        self.part(text.as_bytes(), MAX_TEXT);
    }

    fn causal(&mut self, causal: Option<&Bytes>) {
        self.byte(u8::from(causal.is_some()));
        if let Some(causal) = causal {
            self.part(causal, MAX_CAUSAL);
        }
    }

    fn items<T>(&mut self, items: &[T], write: impl Fn(&mut Writer, &T)) {
        match u16::try_from(items.len()) {
            Ok(count) if items.len() <= MAX_ITEMS => {
                self.bytes.extend_from_slice(&count.to_be_bytes());
                items.iter().for_each(|item| write(self, item));
            }
            _ => self.is_within = false,
        }
    }

    fn heartbeat(&mut self, beat: &Heartbeat) {
        self.text(&beat.name);
        self.text(&beat.address);
        self.text(&beat.version);
        self.long(beat.config);
        // A process with more pools than that says nothing of the others.
        self.items(&beat.rings[..beat.rings.len().min(MAX_ITEMS)], |out, (pool, digest)| {
            out.text(pool);
            out.long(*digest);
        });
        self.long(beat.clock);
        self.int(beat.lag);
        self.int(beat.lease);
    }
}

/// The bytes of an event, while they are read.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Malformed::Short)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const LENGTH: usize>(&mut self) -> Result<[u8; LENGTH], Malformed> {
        self.take(LENGTH)?.try_into().map_err(|_| Malformed::Short)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn long(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    fn int(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    fn part(&mut self, most: usize) -> Result<&'a [u8], Malformed> {
        let length = self.int()? as usize;
        if length > most { Err(Malformed::TooLarge) } else { self.take(length) }
    }

    fn text(&mut self) -> Result<String, Malformed> {
        let bytes = self.part(MAX_TEXT)?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| Malformed::NotUtf8)
    }

    fn flag(&mut self) -> Result<bool, Malformed> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed::TooLarge),
        }
    }

    fn causal(&mut self) -> Result<Option<Bytes>, Malformed> {
        match self.flag()? {
            true => self.part(MAX_CAUSAL).map(|bytes| Some(Bytes::copy_from_slice(bytes))),
            false => Ok(None),
        }
    }

    fn items<T>(&mut self, read: impl Fn(&mut Self) -> Result<T, Malformed>) -> Result<Vec<T>, Malformed> {
        let count = usize::from(u16::from_be_bytes(self.array()?));
        if count > MAX_ITEMS {
            return Err(Malformed::TooLarge);
        }
        (0..count).map(|_| read(self)).collect()
    }

    fn event(&mut self, kind: u8) -> Result<Event, Malformed> {
        Ok(match kind {
            1 => {
                let by = match self.byte()? {
                    0 => PurgeBy::Url,
                    1 => PurgeBy::Prefix,
                    2 => PurgeBy::Tag,
                    3 => PurgeBy::All,
                    other => return Err(Malformed::Kind(other)),
                };
                let soft = self.flag()?;
                Event::Purge(Purge { by, soft, value: self.text()?, causal: self.causal()? })
            }
            2 => Event::Write { uris: self.items(Reader::text)?, causal: self.causal()? },
            3 => Event::Fills { number: self.long()? },
            4 => Event::Heartbeat(Box::new(self.heartbeat()?)),
            5 => Event::Heard(self.items(|read| {
                Ok(HeardRange { process: ProcessId(read.long()?), first: read.long()?, last: read.long()? })
            })?),
            6 => Event::Missed,
            7 => Event::Forget(ProcessId(self.long()?)),
            8 => Event::Leave,
            other => return Err(Malformed::Kind(other)),
        })
    }

    fn heartbeat(&mut self) -> Result<Heartbeat, Malformed> {
        Ok(Heartbeat {
            name: self.text()?,
            address: self.text()?,
            version: self.text()?,
            config: self.long()?,
            rings: self.items(|read| Ok((read.text()?, read.long()?)))?,
            clock: self.long()?,
            lag: self.int()?,
            lease: self.int()?,
        })
    }
}

/// Reads an event that a stranger may have written, and checks that a second encoding has the same bytes.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn read_any(bytes: &[u8]) {
    if let Ok((from, number, event)) = Event::decode(bytes) {
        assert_eq!(event.encode(from, number).as_deref(), Some(bytes), "{event:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn some() -> Vec<Event> {
        let causal = Some(Bytes::from_static(b"\x00clock"));
        let purge =
            |by, value: &str| Event::Purge(Purge { by, value: value.into(), soft: true, causal: causal.clone() });
        vec![
            purge(PurgeBy::Url, "http://example.com/a?b"),
            purge(PurgeBy::Prefix, "/a/"),
            purge(PurgeBy::Tag, "news"),
            purge(PurgeBy::All, ""),
            Event::Write { uris: vec!["http://a/b".into(), "http://a/c?d".into()], causal },
            Event::Fills { number: u64::MAX },
            Event::Heartbeat(Box::new(Heartbeat {
                name: "edge-1/7".into(),
                address: "127.0.0.1:9900".into(),
                version: "0.1.0".into(),
                config: 7,
                rings: vec![("app".into(), 9)],
                clock: 1,
                lag: 2,
                lease: 3,
            })),
            Event::Heard(vec![HeardRange { process: ProcessId(3), first: 1, last: 9 }]),
            Event::Missed,
            Event::Forget(ProcessId(5)),
            Event::Leave,
        ]
    }

    #[test]
    fn every_event_survives_its_encoding() {
        for event in some() {
            let bytes = event.encode(ProcessId(u64::MAX), 42).unwrap();
            assert_eq!(Event::decode(&bytes), Ok((ProcessId(u64::MAX), 42, event)));
        }
    }

    #[test]
    fn an_event_beyond_its_bounds_is_not_made() {
        let long = "a".repeat(MAX_TEXT + 1);
        let many = vec![String::new(); MAX_ITEMS + 1];
        let large = vec!["a".repeat(MAX_TEXT); 9];
        for uris in [vec![long], many, large] {
            assert_eq!(Event::Write { uris, causal: None }.encode(ProcessId(1), 1), None);
        }
        let causal = Some(Bytes::from(vec![0; MAX_CAUSAL + 1]));
        assert_eq!(Event::Write { uris: Vec::new(), causal }.encode(ProcessId(1), 1), None);
    }

    #[test]
    fn other_versions_and_cut_events_are_refused() {
        for event in some() {
            let bytes = event.encode(ProcessId(1), 1).unwrap();
            for length in 0..bytes.len() {
                assert!(Event::decode(&bytes[..length]).is_err(), "{event:?} cut to {length}");
            }
            let longer = [&bytes[..], b"x"].concat();
            assert_eq!(Event::decode(&longer), Err(Malformed::Long));
            let mut newer = bytes.to_vec();
            newer[0] = 2;
            assert_eq!(Event::decode(&newer), Err(Malformed::Version(2)));
            assert!(Malformed::Version(2).may_matter());
            (newer[0], newer[1]) = (VERSION, 128);
            assert_eq!(Event::decode(&newer).map_err(Malformed::may_matter), Err(false));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_event_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0..12u8) {
            read_any(&bytes);
            read_any(&[&[VERSION, kind][..], &bytes].concat());
        }
    }
}
