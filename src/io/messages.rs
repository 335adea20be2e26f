//! Where the requests on an HTTP/1 connection begin and end, followed beneath hyper as they are read.
//!
//! It reads no head: it looks for the end of one, and is told by who parsed it how the content is framed. Only content
//! in chunks is looked at, by [`Chunks`].

use super::chunks::{BadChunk, Chunks};
use http::HeaderMap;
use http::header::TRANSFER_ENCODING;
use http_body::Body;
use memchr::memmem::Finder;
use std::sync::LazyLock;

/// The framing of a message's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Length(u64),
    Chunked,
    /// To the end of the connection, or by another protocol.
    Open,
}

impl Framing {
    /// As hyper has understood a message.
    pub(crate) fn of(fields: &HeaderMap, body: &impl Body) -> Framing {
        match body.size_hint().exact() {
            Some(length) => Framing::Length(length),
            None if fields.contains_key(TRANSFER_ENCODING) => Framing::Chunked,
            None => Framing::Open,
        }
    }
}

/// The fault of a message that hyper would accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Malformed {
    Chunks,
    /// The target of a request has a fragment (RFC 9112 3.2), which hyper drops silently.
    Fragment,
}

impl From<BadChunk> for Malformed {
    fn from(_: BadChunk) -> Malformed {
        Malformed::Chunks
    }
}

/// The state of the requests on an HTTP/1 connection: within which one, and where in it, the next byte stands.
#[derive(Debug)]
pub(crate) struct Messages {
    at: At,
    /// The bytes after a head whose framing is not known yet, where they have to be parsed again.
    rest: Vec<u8>,
}

/// The memory that is kept for the next such rest.
const KEPT: usize = 4 << 10;

#[derive(Debug)]
enum At {
    Head(Head),
    /// A head has ended, and its content's framing is not told yet.
    Waiting {
        has_fragment: bool,
    },
    Length(u64),
    Chunks(Chunks),
    Open,
}

/// The state within a head.
#[derive(Debug, Default)]
struct Head {
    has_begun: bool,
    /// The content of the current line.
    line: Line,
    /// The first line is not over.
    is_in_first: bool,
    /// Of the first line, the method is over.
    has_space: bool,
    has_fragment: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Line {
    #[default]
    Empty,
    Return,
    Some,
}

impl Head {
    /// Parses the next bytes. Returns how many of them belong to the head, where it ends among them.
    fn pass(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut from = 0;
        if !self.has_begun {
            // Empty lines may precede a message (RFC 9112 2.2).
            from = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n'))?;
            (self.has_begun, self.is_in_first) = (true, true);
            if let Some(length) = plain_head(&bytes[from..]) {
                return Some(from + length);
            }
        }
        loop {
            let end = memchr::memchr(b'\n', &bytes[from..]);
            let line = &bytes[from..end.map_or(bytes.len(), |end| from + end)];
            if self.is_in_first {
                self.read_first(line, end.is_some());
                self.is_in_first = end.is_none();
            }
            match (self.line, line) {
                (_, []) => {}
                (Line::Empty, b"\r") => self.line = Line::Return,
                _ => self.line = Line::Some,
            }
            from += end? + 1;
            if self.line != Line::Some {
                return Some(from);
            }
            self.line = Line::Empty;
        }
    }

    /// Looks for a fragment: a `#` is part of a method, and the beginning of a fragment in a target.
    fn read_first(&mut self, line: &[u8], is_whole: bool) {
        if let Some(at) = memchr::memrchr(b'#', line) {
            self.has_fragment |= self.has_space || line[..at].contains(&b' ');
        }
        // For the rest of the line.
        self.has_space |= !is_whole && line.contains(&b' ');
    }
}

/// Returns the length of a request's head that begins and ends here and has no `#`, as nearly every one does: the empty
/// line behind it is found by one search, and not line by line.
fn plain_head(bytes: &[u8]) -> Option<usize> {
    static EMPTY_LINE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\n\r\n"));
    static BARE_EMPTY_LINE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\n\n"));
    let head = &bytes[..EMPTY_LINE.find(bytes)? + 3];
    let is_plain = memchr::memchr(b'#', head).is_none() && BARE_EMPTY_LINE.find(head).is_none();
    is_plain.then_some(head.len())
}

impl Messages {
    pub(crate) fn requests() -> Messages {
        Messages { at: At::Head(Head::default()), rest: Vec::new() }
    }

    /// Returns whether a head has ended whose framing is not known yet.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn is_waiting(&self) -> bool {
        matches!(self.at, At::Waiting { .. })
    }

    /// Returns whether no message has begun that has not ended.
    pub(crate) fn is_between(&self) -> bool {
        matches!(&self.at, At::Head(head) if !head.has_begun)
    }

    /// Reads on.
    pub(crate) fn read(&mut self, mut bytes: &[u8]) -> Result<(), BadChunk> {
        while !bytes.is_empty() {
            match &mut self.at {
                At::Open => return Ok(()),
                At::Waiting { .. } => {
                    self.rest.extend_from_slice(bytes);
                    return Ok(());
                }
                At::Head(head) => {
                    let Some(end) = head.pass(bytes) else { return Ok(()) };
                    bytes = &bytes[end..];
                    self.at = At::Waiting { has_fragment: head.has_fragment };
                }
                At::Length(left) => {
                    let here = (*left).min(bytes.len() as u64);
                    *left -= here;
                    bytes = &bytes[here as usize..];
                    if *left == 0 {
                        self.at = At::Head(Head::default());
                    }
                }
                At::Chunks(chunks) => {
                    let Some(end) = chunks.pass(bytes)? else { return Ok(()) };
                    bytes = &bytes[end..];
                    self.at = At::Head(Head::default());
                }
            }
        }
        Ok(())
    }

    /// The head that was read last has been parsed: its content is framed so.
    pub(crate) fn framed(&mut self, framing: Framing) -> Result<(), Malformed> {
        let At::Waiting { has_fragment } = self.at else {
            // The end of the head was missed: nothing after it could be parsed correctly.
            self.at = At::Open;
            return Ok(());
        };
        self.at = match framing {
            Framing::Length(0) => At::Head(Head::default()),
            Framing::Length(all) => At::Length(all),
            Framing::Chunked => At::Chunks(Chunks::default()),
            Framing::Open => At::Open,
        };
        // Whatever follows, the request is refused.
        if has_fragment {
            return Err(Malformed::Fragment);
        }
        if !self.rest.is_empty() {
            let mut rest = std::mem::take(&mut self.rest);
            let read = self.read(&rest);
            // The rest waits for its turn, after the next head.
            if self.rest.is_empty() && rest.capacity() <= KEPT {
                rest.clear();
                self.rest = rest;
            }
            read?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

    /// Parses a stream in pieces of one size; the framings of its heads are given in order.
    fn follow(mut messages: Messages, bytes: &str, piece: usize, framings: &[Framing]) -> Result<bool, Malformed> {
        let mut framings = framings.iter();
        for piece in bytes.as_bytes().chunks(piece) {
            messages.read(piece)?;
            while messages.is_waiting() {
                let Some(&framing) = framings.next() else { return Ok(false) };
                messages.framed(framing)?;
            }
        }
        let is_between = matches!(&messages.at, At::Head(head) if !head.has_begun);
        Ok(is_between && framings.next().is_none())
    }

    #[test]
    fn messages_are_followed_whatever_they_come_in() {
        let (none, chunked) = (Framing::Length(0), Framing::Chunked);
        let post = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5;a\r\nhello\r\n0\r\nx: y\r\n\r\n";
        let with_length = "POST / HTTP/1.1\nhost: a\ncontent-length: 7\n\n\r\n\r\nabc";
        let requests = [GET, post, "\r\n\n", with_length, GET, post, GET].concat();
        let framings = [none, chunked, Framing::Length(7), none, chunked, none];
        for piece in 1..80 {
            assert_eq!(follow(Messages::requests(), &requests, piece, &framings), Ok(true), "{piece}");
        }
    }

    #[test]
    fn what_is_malformed_is_found_wherever_it_stands() {
        let bad = format!("{GET}POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: 1\n\r\n{GET}");
        for piece in 1..80 {
            let framings = [Framing::Length(0), Framing::Chunked, Framing::Length(0)];
            assert_eq!(follow(Messages::requests(), &bad, piece, &framings), Err(Malformed::Chunks), "{piece}");
        }
    }

    #[test]
    fn a_fragment_is_found_in_every_target_and_nowhere_else() {
        let fine = "POST /a HTTP/1.1\r\nx: a #b\r\nreferer: /a#b\r\ncontent-length: 6\r\n\r\n /a#b\nG#T / HTTP/1.1\r\nhost: a\r\n\r\n";
        let framings = [Framing::Length(6), Framing::Length(0), Framing::Length(0)];
        let bad = format!("{fine}GET /a#b HTTP/1.1\r\nhost: a\r\n\r\n");
        for piece in 1..120 {
            assert_eq!(follow(Messages::requests(), fine, piece, &framings[..2]), Ok(true), "{piece}");
            assert_eq!(follow(Messages::requests(), &bad, piece, &framings), Err(Malformed::Fragment), "{piece}");
        }
    }

    #[test]
    fn what_is_open_is_not_looked_at() {
        let open = "GET / HTTP/1.1\r\nupgrade: x\r\n\r\nanything\n\0";
        assert_eq!(follow(Messages::requests(), open, 7, &[Framing::Open]), Ok(false));
    }
}
