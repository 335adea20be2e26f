//! The frames of an HTTP/2 connection, as far as their heads and first bytes are needed (RFC 9113 4.1).

/// The length of a frame's head (RFC 9113 4.1).
const HEAD: usize = 9;

/// The types of frames (RFC 9113 6, RFC 9218 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameKind(pub(super) u8);

impl FrameKind {
    pub(super) const DATA: FrameKind = FrameKind(0);
    pub(super) const HEADERS: FrameKind = FrameKind(1);
    pub(super) const PRIORITY: FrameKind = FrameKind(2);
    pub(super) const RST_STREAM: FrameKind = FrameKind(3);
    pub(super) const SETTINGS: FrameKind = FrameKind(4);
    pub(super) const PING: FrameKind = FrameKind(6);
    pub(super) const GOAWAY: FrameKind = FrameKind(7);
    pub(super) const WINDOW_UPDATE: FrameKind = FrameKind(8);
    pub(super) const CONTINUATION: FrameKind = FrameKind(9);
    pub(super) const PRIORITY_UPDATE: FrameKind = FrameKind(16);
}

/// A frame, by its head and the first bytes behind it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    pub(super) length: u32,
    pub(super) kind: FrameKind,
    pub(super) flags: u8,
    pub(super) stream: u32,
    first: [u8; 4],
}

impl Frame {
    pub(super) const END_STREAM: u8 = 0x1;
    pub(super) const ACK: u8 = 0x1;
    pub(super) const END_HEADERS: u8 = 0x4;
    pub(super) const PADDED: u8 = 0x8;

    fn of(head: &[u8; HEAD]) -> Frame {
        Frame {
            length: u32::from_be_bytes([0, head[0], head[1], head[2]]),
            kind: FrameKind(head[3]),
            flags: head[4],
            stream: u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff,
            first: [0; 4],
        }
    }

    /// Returns the number of bytes after the head that are needed.
    fn telling(&self) -> usize {
        let wanted = match self.kind {
            FrameKind::RST_STREAM | FrameKind::WINDOW_UPDATE | FrameKind::SETTINGS => 4,
            FrameKind::DATA if self.flags & Frame::PADDED != 0 => 1,
            _ => 0,
        };
        wanted.min(self.length as usize)
    }

    /// The number that the frame begins with: a reason, an increment, or a setting and the upper half of its value.
    pub(super) fn first_word(&self) -> u32 {
        u32::from_be_bytes(self.first) & 0x7fff_ffff
    }

    /// Returns a piece of a body without its padding.
    pub(super) fn content(&self) -> u32 {
        match self.flags & Frame::PADDED {
            0 => self.length,
            _ => self.length.saturating_sub(1 + u32::from(self.first[0])),
        }
    }

    pub(super) fn ends_stream(&self) -> bool {
        self.flags & Frame::END_STREAM != 0
    }

    pub(super) fn ends_head(&self) -> bool {
        self.flags & Frame::END_HEADERS != 0
    }
}

/// Finds the frames in one direction's bytes, however these are cut.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// Bytes before the first frame.
    preface: usize,
    head: [u8; HEAD],
    /// The bytes of the head that have arrived.
    seen: usize,
    /// The frame whose first bytes are awaited, and the number of those received.
    frame: Option<(Frame, usize)>,
    /// Bytes of the frame that are still to come.
    left: usize,
    /// The last frame is a head, or a part of one.
    in_head: bool,
    /// A head has begun whose last frame has not.
    head_open: bool,
    /// The heads that have begun.
    heads: u64,
}

impl Frames {
    /// Returns a parser of the frames after a preface.
    pub(super) fn behind(preface: usize) -> Frames {
        Frames { preface, ..Frames::default() }
    }

    /// Returns the number of the head that is incomplete.
    pub(super) fn open_head(&self) -> Option<u64> {
        let is_open = self.head_open || (self.in_head && self.left > 0);
        is_open.then_some(self.heads)
    }

    /// Returns whether the last frame is complete.
    pub(super) fn is_at_boundary(&self) -> bool {
        self.seen == 0 && self.frame.is_none() && self.left == 0
    }

    /// Parses the next bytes, and calls a function for each frame as soon as enough of it is received.
    pub(super) fn pass(&mut self, mut bytes: &[u8], mut each: impl FnMut(Frame)) {
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
        self.in_head = matches!(frame.kind, FrameKind::HEADERS | FrameKind::CONTINUATION);
        if self.in_head {
            self.head_open = !frame.ends_head();
            self.heads += u64::from(frame.kind == FrameKind::HEADERS);
        }
        each(frame);
    }
}
