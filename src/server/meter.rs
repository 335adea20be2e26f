//! The meter of an HTTP/2 connection: it reads the heads of the frames that pass, in both directions, and keeps
//! one score of what honest clients seldom do.
//!
//! Floods are made of frames that cost their sender next to nothing. What honest clients send of these goes with
//! requests and answers, so each answer's frame pays for a few of them, and each answer that ends well takes some
//! of the score back; time takes the rest. At half of the limit a connection is told to end, at the limit it does.

use std::ops::Range;
use std::time::{Duration, Instant};

/// The length of a frame's head (RFC 9113 4.1).
const HEAD: usize = 9;

/// A time in which the whole limit is forgotten.
const MEMORY: Duration = Duration::from_secs(10);
/// The score counts in tenths of a point.
const POINT: u64 = 10;
/// What an answer that ended well takes back.
const GOOD_END: u64 = POINT / 2;

/// Control frames that an answer's frame, or a request, pays for.
const CREDIT_OF_ANSWER: u32 = 2;
const CREDIT_OF_REQUEST: u32 = 1;
/// For the beginning: settings and their acknowledgement, a window, a tree of priorities.
const FIRST_CREDIT: u32 = 16;
const MOST_CREDIT: u32 = 256;

/// An update of less than this is tiny.
const TINY_UPDATE: u32 = 1024;
/// An update of a stream that is none of these is an error, or nearly: a window ends at 2^31 - 1.
const FAIR_UPDATE: Range<u32> = 1..1 << 30;
/// What a stream's beginning takes, in bytes of heads.
const A_STREAM: u64 = 64;
/// A piece of a head that others follow is small below this.
const SMALL_PIECE: u32 = 1024;

/// What honest clients seldom do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Oddity {
    /// The client resets a stream (CVE-2023-44487).
    Reset,
    /// It has the proxy reset one (CVE-2025-8671).
    MadeReset,
    /// A piece of a head that is longer than a frame.
    LongHead,
    /// A small piece of a head that does not end (CVE-2024-27316).
    Continuation,
    Ping,
    Settings,
    Priority,
    /// A piece of a body with nothing in it.
    EmptyData,
    WindowUpdate,
    /// A frame that nobody knows.
    Unknown,
    /// A request that cannot be read.
    Malformed,
}

impl Oddity {
    /// The label in metrics and logs.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Oddity::Reset => "reset",
            Oddity::MadeReset => "made_reset",
            Oddity::LongHead => "long_head",
            Oddity::Continuation => "continuation",
            Oddity::Ping => "ping",
            Oddity::Settings => "settings",
            Oddity::Priority => "priority",
            Oddity::EmptyData => "empty_data",
            Oddity::WindowUpdate => "window_update",
            Oddity::Unknown => "unknown",
            Oddity::Malformed => "malformed",
        }
    }

    /// In tenths of a point.
    fn cost(self) -> u64 {
        match self {
            Oddity::Reset
            | Oddity::LongHead
            | Oddity::Ping
            | Oddity::Priority
            | Oddity::WindowUpdate
            | Oddity::Unknown => POINT,
            Oddity::Malformed => 2 * POINT,
            Oddity::MadeReset | Oddity::Continuation | Oddity::Settings | Oddity::EmptyData => 4 * POINT,
        }
    }
}

/// What a score has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    Fine,
    /// The connection should end well, soon.
    Odd,
    /// It ends now.
    Hostile,
}

/// How odd a connection has been lately.
#[derive(Debug)]
struct Score {
    /// In tenths of a point; no limit without.
    limit: Option<u64>,
    tenths: u64,
    /// When it was last added to.
    since: Option<Instant>,
}

impl Score {
    fn add(&mut self, cost: u64, now: Instant) {
        let Some(limit) = self.limit else { return };
        let passed = self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let forgotten = u128::from(limit) * passed.as_micros() / MEMORY.as_micros();
        // What is not forgotten yet waits: else many additions in a short time would never age.
        if forgotten > 0 || self.since.is_none() {
            self.since = Some(now);
        }
        self.tenths = self.tenths.saturating_sub(forgotten.min(u128::from(u64::MAX)) as u64).saturating_add(cost);
    }

    fn take_back(&mut self, tenths: u64) {
        self.tenths = self.tenths.saturating_sub(tenths);
    }

    fn verdict(&self) -> Verdict {
        match self.limit {
            Some(limit) if self.tenths >= limit => Verdict::Hostile,
            Some(limit) if self.tenths >= limit / 2 => Verdict::Odd,
            _ => Verdict::Fine,
        }
    }
}

/// The meter of one connection.
#[derive(Debug)]
pub(crate) struct Meter {
    inward: Frames,
    outward: Frames,
    score: Score,
    credit: u32,
    /// The verdict stays what it was at its worst.
    verdict: Verdict,
    /// The highest stream that the client has begun.
    last_stream: u32,
    /// Bytes of bodies that have come.
    data: u64,
    /// By how much the first update makes the window larger, over all streams.
    raise: u64,
    /// Bytes of answers' bodies that were sent.
    sent: u64,
    /// Bytes of heads that have come, and what the beginning of a stream takes beside them.
    heads: u64,
    /// What the client was told that it may send, beyond the window at the beginning.
    given_back: u64,
}

impl Meter {
    /// For a connection whose preface is still to come, and whose window is made larger by `raise` at its beginning;
    /// `limit` in points, 0 for none.
    pub(crate) fn new(preface: usize, raise: u32, limit: u32) -> Meter {
        let limit = (limit > 0).then(|| u64::from(limit) * POINT);
        Meter {
            inward: Frames { preface, ..Frames::default() },
            outward: Frames::default(),
            score: Score { limit, tenths: 0, since: None },
            credit: FIRST_CREDIT,
            verdict: Verdict::Fine,
            last_stream: 0,
            data: 0,
            sent: 0,
            heads: 0,
            raise: raise.into(),
            given_back: 0,
        }
    }

    /// Bytes of the client. Tells of each oddity.
    pub(crate) fn inward(&mut self, bytes: &[u8], mut tell: impl FnMut(Oddity)) {
        let mut frames = std::mem::take(&mut self.inward);
        frames.pass(bytes, |frame| {
            if let Some(oddity) = self.odd(frame) {
                self.note(oddity, Instant::now());
                tell(oddity);
            }
        });
        self.inward = frames;
    }

    /// Bytes for the client.
    pub(crate) fn outward(&mut self, bytes: &[u8], mut tell: impl FnMut(Oddity)) {
        let mut frames = std::mem::take(&mut self.outward);
        frames.pass(bytes, |frame| {
            if self.was_made(frame) {
                self.note(Oddity::MadeReset, Instant::now());
                tell(Oddity::MadeReset);
            }
        });
        self.outward = frames;
    }

    /// Adds an oddity to the score.
    pub(crate) fn note(&mut self, oddity: Oddity, now: Instant) {
        self.score.add(oddity.cost(), now);
        self.verdict = self.verdict.max(self.score.verdict());
    }

    pub(crate) fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// The highest stream that the client has begun, where what was sent so far ends with a whole frame.
    pub(crate) fn last_stream_at_boundary(&self) -> Option<u32> {
        self.outward.is_at_boundary().then_some(self.last_stream)
    }

    /// How many bytes of answers' bodies were sent.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// How many bytes of heads have come, streams included: these take far more work than those of bodies.
    pub(crate) fn head_bytes(&self) -> u64 {
        self.heads
    }

    /// The number of the head that the client is in the middle of.
    pub(crate) fn open_head(&self) -> Option<u64> {
        let is_open = self.inward.head_open || (self.inward.in_head && self.inward.left > 0);
        is_open.then_some(self.inward.heads)
    }

    /// Bytes of bodies that wait for their readers at most, of which `read` bytes were read.
    pub(crate) fn unread(&self, read: u64) -> u64 {
        // Of what nobody will read any more, only what the client was told tells.
        let given_back = self.given_back.saturating_sub(self.raise);
        self.data.saturating_sub(read).min(self.data.saturating_sub(given_back))
    }

    fn pays(&mut self) -> bool {
        let pays = self.credit > 0;
        self.credit = self.credit.saturating_sub(1);
        pays
    }

    fn earn(&mut self, credit: u32) {
        self.credit = (self.credit + credit).min(MOST_CREDIT);
    }

    /// What is odd about a frame of the client.
    fn odd(&mut self, frame: Frame) -> Option<Oddity> {
        match frame.kind {
            Kind::DATA => {
                self.data += u64::from(frame.length);
                (frame.content() == 0 && !frame.ends_stream()).then_some(Oddity::EmptyData)
            }
            Kind::HEADERS => {
                self.heads += u64::from(frame.length) + A_STREAM;
                self.last_stream = self.last_stream.max(frame.stream);
                self.earn(CREDIT_OF_REQUEST);
                None
            }
            Kind::CONTINUATION => {
                self.heads += u64::from(frame.length);
                let is_small = !frame.ends_head() && frame.length < SMALL_PIECE;
                Some(if is_small { Oddity::Continuation } else { Oddity::LongHead })
            }
            Kind::RST_STREAM => Some(Oddity::Reset),
            // What can only have the stream reset is told before it is.
            Kind::WINDOW_UPDATE if frame.stream != 0 && !FAIR_UPDATE.contains(&frame.first_word()) => {
                Some(Oddity::WindowUpdate)
            }
            Kind::WINDOW_UPDATE if frame.first_word() >= TINY_UPDATE => None,
            _ if self.pays() => None,
            Kind::PING => Some(Oddity::Ping),
            Kind::SETTINGS => Some(Oddity::Settings),
            Kind::PRIORITY | Kind::PRIORITY_UPDATE => Some(Oddity::Priority),
            Kind::WINDOW_UPDATE => Some(Oddity::WindowUpdate),
            _ => Some(Oddity::Unknown),
        }
    }

    /// Whether a frame for the client resets a stream by the client's own doing.
    fn was_made(&mut self, frame: Frame) -> bool {
        match frame.kind {
            Kind::RST_STREAM => {
                // PROTOCOL_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED, FRAME_SIZE_ERROR (RFC 9113 7).
                return matches!(frame.first_word(), 1 | 3 | 5 | 6);
            }
            Kind::DATA | Kind::HEADERS => {
                if frame.kind == Kind::DATA {
                    self.sent += u64::from(frame.length);
                }
                self.earn(CREDIT_OF_ANSWER);
                if frame.ends_stream() {
                    self.score.take_back(GOOD_END);
                }
            }
            // Each will be acknowledged; an acknowledgement is not.
            Kind::PING | Kind::SETTINGS if frame.flags & Frame::ACK == 0 => self.earn(1),
            Kind::WINDOW_UPDATE if frame.stream == 0 => self.given_back += u64::from(frame.first_word()),
            _ => {}
        }
        false
    }
}

/// The types of frames (RFC 9113 6, RFC 9218 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind(u8);

impl Kind {
    const DATA: Kind = Kind(0);
    const HEADERS: Kind = Kind(1);
    const PRIORITY: Kind = Kind(2);
    const RST_STREAM: Kind = Kind(3);
    const SETTINGS: Kind = Kind(4);
    const PING: Kind = Kind(6);
    const WINDOW_UPDATE: Kind = Kind(8);
    const CONTINUATION: Kind = Kind(9);
    const PRIORITY_UPDATE: Kind = Kind(16);
}

/// What is known of a frame by its head and the first bytes behind it.
#[derive(Clone, Copy, Debug)]
struct Frame {
    length: u32,
    kind: Kind,
    flags: u8,
    stream: u32,
    first: [u8; 4],
}

impl Frame {
    const END_STREAM: u8 = 0x1;
    const ACK: u8 = 0x1;
    const END_HEADERS: u8 = 0x4;
    const PADDED: u8 = 0x8;

    fn of(head: &[u8; HEAD]) -> Frame {
        Frame {
            length: u32::from_be_bytes([0, head[0], head[1], head[2]]),
            kind: Kind(head[3]),
            flags: head[4],
            stream: u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff,
            first: [0; 4],
        }
    }

    /// How many of the bytes behind the head tell something.
    fn telling(&self) -> usize {
        let wanted = match self.kind {
            Kind::RST_STREAM | Kind::WINDOW_UPDATE => 4,
            Kind::DATA if self.flags & Frame::PADDED != 0 => 1,
            _ => 0,
        };
        wanted.min(self.length as usize)
    }

    fn first_word(&self) -> u32 {
        u32::from_be_bytes(self.first) & 0x7fff_ffff
    }

    /// A piece of a body without its padding.
    fn content(&self) -> u32 {
        match self.flags & Frame::PADDED {
            0 => self.length,
            _ => self.length.saturating_sub(1 + u32::from(self.first[0])),
        }
    }

    fn ends_stream(&self) -> bool {
        self.flags & Frame::END_STREAM != 0
    }

    fn ends_head(&self) -> bool {
        self.flags & Frame::END_HEADERS != 0
    }
}

/// Finds the frames in one direction's bytes, however these are cut.
#[derive(Debug, Default)]
struct Frames {
    /// Bytes before the first frame.
    preface: usize,
    head: [u8; HEAD],
    /// How much of the head is there.
    seen: usize,
    /// The frame whose first bytes are awaited, and how many are there.
    frame: Option<(Frame, usize)>,
    /// Bytes of the frame that are still to come.
    left: usize,
    /// The last frame is a head, or a part of one.
    in_head: bool,
    /// A head has begun whose last frame has not.
    head_open: bool,
    /// How many heads have begun.
    heads: u64,
}

impl Frames {
    fn is_at_boundary(&self) -> bool {
        self.seen == 0 && self.frame.is_none() && self.left == 0
    }

    fn pass(&mut self, mut bytes: &[u8], mut each: impl FnMut(Frame)) {
        let skipped = self.preface.min(bytes.len());
        self.preface -= skipped;
        bytes = &bytes[skipped..];
        while !bytes.is_empty() {
            if let Some((mut frame, known)) = self.frame.take() {
                let taken = (frame.telling() - known).min(bytes.len());
                frame.first[known..known + taken].copy_from_slice(&bytes[..taken]);
                bytes = &bytes[taken..];
                self.left -= taken;
                self.arrived(frame, known + taken, &mut each);
                continue;
            }
            if self.left > 0 {
                let passed = self.left.min(bytes.len());
                self.left -= passed;
                bytes = &bytes[passed..];
                continue;
            }
            let taken = (HEAD - self.seen).min(bytes.len());
            self.head[self.seen..self.seen + taken].copy_from_slice(&bytes[..taken]);
            self.seen += taken;
            bytes = &bytes[taken..];
            if self.seen == HEAD {
                self.seen = 0;
                let frame = Frame::of(&self.head);
                self.left = frame.length as usize;
                self.arrived(frame, 0, &mut each);
            }
        }
    }

    fn arrived(&mut self, frame: Frame, known: usize, each: &mut impl FnMut(Frame)) {
        if known < frame.telling() {
            self.frame = Some((frame, known));
            return;
        }
        self.in_head = matches!(frame.kind, Kind::HEADERS | Kind::CONTINUATION);
        if self.in_head {
            self.head_open = !frame.ends_head();
            self.heads += u64::from(frame.kind == Kind::HEADERS);
        }
        each(frame);
    }
}

#[cfg(test)]
mod tests;
