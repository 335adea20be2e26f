//! The flood meter of an HTTP/2 connection: it reads the heads of the frames in both directions, and keeps one score of
//! behaviour that is rare in honest clients.
//!
//! Floods consist of frames that cost their sender next to nothing. Honest clients send them together with requests and
//! responses, so each response frame pays for a few of them, and each response that ends well lowers the score; the
//! rest decays with time. At half of the limit the connection gets GOAWAY, at the limit it is aborted.

mod frames;

use frames::{Frame, FrameKind, Frames};
use std::ops::Range;
use std::time::{Duration, Instant};

/// The time in which a score of the limit decays.
const MEMORY: Duration = Duration::from_secs(10);
/// The score counts in tenths of a point.
const POINT: u64 = 10;
/// The points that a response which ended well takes back.
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
/// The cost of a stream's beginning, in bytes of heads.
const A_STREAM: u64 = 64;
/// SETTINGS_HEADER_TABLE_SIZE, and the upper half of its value.
const HEADER_TABLE_SIZE: u32 = 1 << 16;
/// Pieces of a head with further ones after them are small below this size.
const SMALL_PIECE: u32 = 1024;

/// The kinds of glitches: frames that well-behaved clients seldom send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Glitch {
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
    /// A frame of an unknown type.
    Unknown,
    /// A request that cannot be read.
    Malformed,
}

impl Glitch {
    /// Returns the label in metrics and logs.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Glitch::Reset => "reset",
            Glitch::MadeReset => "made_reset",
            Glitch::LongHead => "long_head",
            Glitch::Continuation => "continuation",
            Glitch::Ping => "ping",
            Glitch::Settings => "settings",
            Glitch::Priority => "priority",
            Glitch::EmptyData => "empty_data",
            Glitch::WindowUpdate => "window_update",
            Glitch::Unknown => "unknown",
            Glitch::Malformed => "malformed",
        }
    }

    /// In tenths of a point.
    fn cost(self) -> u64 {
        match self {
            Glitch::Reset
            | Glitch::LongHead
            | Glitch::Ping
            | Glitch::Priority
            | Glitch::WindowUpdate
            | Glitch::Unknown => POINT,
            Glitch::Malformed => 2 * POINT,
            Glitch::MadeReset | Glitch::Continuation | Glitch::Settings | Glitch::EmptyData => 4 * POINT,
        }
    }
}

/// The verdict on a score.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    Fine,
    /// The connection should end well, soon.
    Odd,
    /// It ends now.
    Hostile,
}

/// The glitches of a connection in the last seconds, as a score.
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
        // The remainder is kept, as otherwise many additions in a short time would never decay.
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
pub(crate) struct FloodMeter {
    inward: Frames,
    outward: Frames,
    score: Score,
    credit: u32,
    /// The worst verdict so far.
    verdict: Verdict,
    /// The highest stream that the client has begun.
    last_stream: u32,
    /// The client has announced that it opens no more streams (GOAWAY).
    has_goaway: bool,
    /// The client has requested a header table below 64 KiB (RFC 9113 6.5.2), which the next header block acknowledges.
    has_table: bool,
    /// Streams since the last call of `accept` that have no known request yet.
    unaccepted: u32,
    /// Bytes of bodies that have come.
    data: u64,
    /// The increase of the windows by their first updates, over all streams.
    raise: u64,
    /// Bytes of answers' bodies that were sent.
    sent: u64,
    /// The received bytes of heads, with a charge for the begin of each stream.
    heads: u64,
    /// The window updates to the client, beyond the initial window.
    given_back: u64,
}

impl FloodMeter {
    /// For a connection whose preface is still to come, and whose window is made larger by `raise` at its beginning;
    /// `limit` in points, 0 for none.
    pub(crate) fn new(preface: usize, raise: u32, limit: u32) -> FloodMeter {
        let limit = (limit > 0).then(|| u64::from(limit) * POINT);
        FloodMeter {
            inward: Frames::behind(preface),
            outward: Frames::default(),
            score: Score { limit, tenths: 0, since: None },
            credit: FIRST_CREDIT,
            verdict: Verdict::Fine,
            last_stream: 0,
            unaccepted: 0,
            has_goaway: false,
            has_table: false,
            data: 0,
            sent: 0,
            heads: 0,
            raise: raise.into(),
            given_back: 0,
        }
    }

    /// Bytes of the client. Tells of each glitch.
    pub(crate) fn inward(&mut self, bytes: &[u8], mut tell: impl FnMut(Glitch)) {
        let mut frames = std::mem::take(&mut self.inward);
        frames.pass(bytes, |frame| {
            if let Some(glitch) = self.glitch(frame) {
                self.note(glitch, Instant::now());
                tell(glitch);
            }
        });
        self.inward = frames;
    }

    /// Bytes for the client.
    pub(crate) fn outward(&mut self, bytes: &[u8], mut tell: impl FnMut(Glitch)) {
        let mut frames = std::mem::take(&mut self.outward);
        frames.pass(bytes, |frame| {
            if self.was_made(frame) {
                self.note(Glitch::MadeReset, Instant::now());
                tell(Glitch::MadeReset);
            }
        });
        self.outward = frames;
    }

    /// Adds a glitch to the score.
    pub(crate) fn note(&mut self, glitch: Glitch, now: Instant) {
        self.score.add(glitch.cost(), now);
        self.verdict = self.verdict.max(self.score.verdict());
    }

    pub(crate) fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Returns the highest stream of the client, where the bytes sent so far end with a complete frame.
    pub(crate) fn last_stream_at_boundary(&self) -> Option<u32> {
        self.outward.is_at_boundary().then_some(self.last_stream)
    }

    /// Returns whether the client has announced that it opens no more streams (GOAWAY).
    pub(crate) fn has_goaway(&self) -> bool {
        self.has_goaway
    }

    /// Begins another turn of reading.
    pub(crate) fn begin_turn(&mut self) {
        self.unaccepted = 0;
    }

    /// Counts a request. Returns its stream where it is certain: the only new one since the last call.
    pub(crate) fn accept(&mut self) -> Option<u32> {
        let is_only = self.unaccepted == 1 && !self.has_table;
        self.unaccepted = self.unaccepted.saturating_sub(1);
        is_only.then_some(self.last_stream)
    }

    /// Returns the number of bytes of response bodies that were sent.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// Returns the number of received bytes of heads, including the charge for streams: they take far more work than
    /// bodies.
    pub(crate) fn head_bytes(&self) -> u64 {
        self.heads
    }

    /// The number of the head that the client is in the middle of.
    pub(crate) fn open_head(&self) -> Option<u64> {
        self.inward.open_head()
    }

    /// Bytes of bodies that wait for their readers at most, of which `read` bytes were read.
    pub(crate) fn unread(&self, read: u64) -> u64 {
        // For bytes that are dropped unread, only the window updates tell.
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

    /// Returns the glitch in a frame of the client.
    fn glitch(&mut self, frame: Frame) -> Option<Glitch> {
        self.has_goaway |= frame.kind == FrameKind::GOAWAY;
        // Settings come in the order of their numbers, by custom.
        self.has_table |=
            frame.kind == FrameKind::SETTINGS && frame.length > 0 && frame.first_word() == HEADER_TABLE_SIZE;
        match frame.kind {
            FrameKind::DATA => {
                self.data += u64::from(frame.length);
                (frame.content() == 0 && !frame.ends_stream()).then_some(Glitch::EmptyData)
            }
            FrameKind::HEADERS => {
                self.heads += u64::from(frame.length) + A_STREAM;
                if frame.stream > self.last_stream {
                    self.last_stream = frame.stream;
                    self.unaccepted += 1;
                }
                self.earn(CREDIT_OF_REQUEST);
                None
            }
            FrameKind::CONTINUATION => {
                self.heads += u64::from(frame.length);
                let is_small = !frame.ends_head() && frame.length < SMALL_PIECE;
                Some(if is_small { Glitch::Continuation } else { Glitch::LongHead })
            }
            FrameKind::RST_STREAM => Some(Glitch::Reset),
            // Updates that can only cause a reset of the stream are counted before it.
            FrameKind::WINDOW_UPDATE if frame.stream != 0 && !FAIR_UPDATE.contains(&frame.first_word()) => {
                Some(Glitch::WindowUpdate)
            }
            FrameKind::WINDOW_UPDATE if frame.first_word() >= TINY_UPDATE => None,
            _ if self.pays() => None,
            FrameKind::PING => Some(Glitch::Ping),
            FrameKind::SETTINGS => Some(Glitch::Settings),
            FrameKind::PRIORITY | FrameKind::PRIORITY_UPDATE => Some(Glitch::Priority),
            FrameKind::WINDOW_UPDATE => Some(Glitch::WindowUpdate),
            _ => Some(Glitch::Unknown),
        }
    }

    /// Returns whether a frame to the client resets a stream because of the client's own behaviour.
    fn was_made(&mut self, frame: Frame) -> bool {
        match frame.kind {
            FrameKind::RST_STREAM => {
                // PROTOCOL_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED, FRAME_SIZE_ERROR (RFC 9113 7).
                return matches!(frame.first_word(), 1 | 3 | 5 | 6);
            }
            FrameKind::DATA | FrameKind::HEADERS => {
                if frame.kind == FrameKind::DATA {
                    self.sent += u64::from(frame.length);
                }
                self.earn(CREDIT_OF_ANSWER);
                if frame.ends_stream() {
                    self.score.take_back(GOOD_END);
                }
            }
            // Each will be acknowledged; an acknowledgement is not.
            FrameKind::PING | FrameKind::SETTINGS if frame.flags & Frame::ACK == 0 => self.earn(1),
            FrameKind::WINDOW_UPDATE if frame.stream == 0 => self.given_back += u64::from(frame.first_word()),
            _ => {}
        }
        false
    }
}

#[cfg(test)]
mod tests;
