//! Where the messages of one direction of an HTTP/1 connection begin and end, followed beneath hyper as they are read.
//!
//! It reads no head: it looks for the end of one, and is told by who parsed it how the content is framed. Only content
//! in chunks is looked at, by [`Chunks`].

use super::chunks::{BadChunk, Chunks};
use http::HeaderMap;
use http::header::TRANSFER_ENCODING;
use http_body::Body;

/// How the content of a message is framed.
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

/// What has been read of the messages of one direction.
#[derive(Debug)]
pub(crate) struct Messages {
    at: At,
    /// Whether these are responses, of which some are interim.
    are_responses: bool,
}

#[derive(Debug)]
enum At {
    Head(Head),
    /// A head has ended, and its content's framing is not told yet. What has come behind it.
    Waiting(Vec<u8>),
    Length(u64),
    Chunks(Chunks),
    Open,
}

/// What has been read of a head.
#[derive(Debug, Default)]
struct Head {
    has_begun: bool,
    /// The line that is read has something in it, or only a carriage return.
    line: Line,
    /// The beginning of the first line, where that tells something: `HTTP/1.1 103`.
    start: [u8; 12],
    length: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Line {
    #[default]
    Empty,
    Return,
    Some,
}

impl Head {
    /// Reads on. Returns how many of these bytes belong to the head, where it ends among them.
    fn pass(&mut self, bytes: &[u8], keeps_start: bool) -> Option<usize> {
        let mut from = 0;
        if !self.has_begun {
            // Empty lines may stand before a message (RFC 9112 2.2).
            from = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n'))?;
            self.has_begun = true;
        }
        if keeps_start && self.length < self.start.len() {
            for &byte in bytes[from..].iter().take(self.start.len() - self.length) {
                self.start[self.length] = byte;
                self.length += 1;
            }
        }
        while let Some(at) = memchr::memchr(b'\n', &bytes[from..]).map(|at| from + at) {
            self.read_line(&bytes[from..at]);
            from = at + 1;
            if self.line != Line::Some {
                return Some(from);
            }
            self.line = Line::Empty;
        }
        self.read_line(&bytes[from..]);
        None
    }

    fn read_line(&mut self, bytes: &[u8]) {
        self.line = match (self.line, bytes) {
            (line, []) => line,
            (Line::Empty, [b'\r']) => Line::Return,
            _ => Line::Some,
        };
    }

    /// Whether it is that of an interim response that another one follows (RFC 9110 15.2).
    fn is_interim(&self) -> bool {
        self.start[9] == b'1' && &self.start[9..] != b"101"
    }
}

impl Messages {
    pub(crate) fn requests() -> Messages {
        Messages { at: At::Head(Head::default()), are_responses: false }
    }

    pub(crate) fn responses() -> Messages {
        Messages { at: At::Head(Head::default()), are_responses: true }
    }

    /// Reads on.
    pub(crate) fn read(&mut self, mut bytes: &[u8]) -> Result<(), BadChunk> {
        while !bytes.is_empty() {
            match &mut self.at {
                At::Open => return Ok(()),
                At::Waiting(rest) => {
                    rest.extend_from_slice(bytes);
                    return Ok(());
                }
                At::Head(head) => {
                    let Some(end) = head.pass(bytes, self.are_responses) else { return Ok(()) };
                    bytes = &bytes[end..];
                    let is_interim = self.are_responses && head.is_interim();
                    self.at = if is_interim { At::Head(Head::default()) } else { At::Waiting(Vec::new()) };
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
    pub(crate) fn framed(&mut self, framing: Framing) -> Result<(), BadChunk> {
        let after = match framing {
            Framing::Length(0) => At::Head(Head::default()),
            Framing::Length(length) => At::Length(length),
            Framing::Chunked => At::Chunks(Chunks::default()),
            Framing::Open => At::Open,
        };
        match std::mem::replace(&mut self.at, after) {
            At::Waiting(rest) if rest.is_empty() => Ok(()),
            At::Waiting(rest) => self.read(&rest),
            // A head of which the end was not seen: nothing that follows would be right.
            _ => {
                self.at = At::Open;
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

    /// Reads a stream in pieces of one size; heads are told to be framed so, one after another.
    fn follow(mut messages: Messages, bytes: &str, piece: usize, framings: &[Framing]) -> Result<bool, BadChunk> {
        let mut framings = framings.iter();
        for piece in bytes.as_bytes().chunks(piece) {
            messages.read(piece)?;
            while matches!(messages.at, At::Waiting(_)) {
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
        let responses = "HTTP/1.1 103 Hints\r\nlink: x\r\n\r\nHTTP/1.1 100 Go\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nHTTP/1.1 204 No\r\n\r\n";
        for piece in 1..80 {
            assert_eq!(follow(Messages::requests(), &requests, piece, &framings), Ok(true), "{piece}");
            assert_eq!(follow(Messages::responses(), responses, piece, &[chunked, none]), Ok(true), "{piece}");
        }
    }

    #[test]
    fn what_is_malformed_is_found_wherever_it_stands() {
        let bad = format!("{GET}POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: 1\n\r\n{GET}");
        for piece in 1..80 {
            let framings = [Framing::Length(0), Framing::Chunked, Framing::Length(0)];
            assert_eq!(follow(Messages::requests(), &bad, piece, &framings), Err(BadChunk), "{piece}");
        }
    }

    #[test]
    fn what_is_open_is_not_looked_at() {
        let open = "HTTP/1.1 200 OK\r\n\r\nanything\n\0";
        assert_eq!(follow(Messages::responses(), open, 7, &[Framing::Open]), Ok(false));
    }
}
