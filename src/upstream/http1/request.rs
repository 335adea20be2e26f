//! A request on its way to a node, as bytes: its head, and its content in the framing that the head announces.
//!
//! Names, values, methods and targets are of types that hold no line end; nothing else goes into a head. A transfer
//! coding or a length is written once, and is the one by which the content is framed.

use crate::http::fields::parse_length;
use bytes::{Buf, Bytes};
use http::header::{CONTENT_LENGTH, TRAILER, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, Method, Uri};
use std::io::IoSlice;

/// A piece of content up to this size is copied behind the bytes before it, which costs less than a vectored write.
const MAX_COPIED: usize = 4 << 10;
/// With so many bytes waiting to be written, no more content is asked for.
const ENOUGH: usize = 16 << 10;
/// The memory that is kept for the next request.
const KEPT: usize = 4 << 10;

/// The bytes of a request that wait to be written, and the framing of the content that follows them.
#[derive(Debug, Default)]
pub(crate) struct Output {
    bytes: Vec<u8>,
    /// The part of `bytes` that was written.
    written: usize,
    /// A large piece of content behind them.
    data: Bytes,
    /// The end of the framing behind that.
    end: &'static [u8],
    framing: Framing,
}

/// The content that is still to be framed.
#[derive(Debug, Default)]
enum Framing {
    /// The request is whole.
    #[default]
    Whole,
    Length(u64),
    /// In chunks, with trailers of these names.
    Chunked(Vec<HeaderName>),
}

impl Framing {
    /// Writes the field that announces the content.
    fn announce(&self, out: &mut Vec<u8>) {
        match self {
            Framing::Whole => out.extend_from_slice(b"content-length: 0\r\n"),
            Framing::Length(length) => {
                write_field(out, &CONTENT_LENGTH, itoa::Buffer::new().format(*length).as_bytes());
            }
            Framing::Chunked(_) => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        }
    }
}

/// The content of a request is longer or shorter than its head has announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the request's content does not have the length that was announced")]
pub(crate) struct BadLength;

impl Output {
    /// Puts the head of a request in place of earlier bytes. `content` is the length of the content: `None` where there
    /// is none, `Some(None)` where it is unknown.
    pub(crate) fn begin(&mut self, method: &Method, target: &Uri, fields: &HeaderMap, content: Option<Option<u64>>) {
        self.clear();
        let out = &mut self.bytes;
        out.extend_from_slice(method.as_str().as_bytes());
        out.push(b' ');
        let target = target.path_and_query().map_or("/", |target| target.as_str());
        if target.starts_with('?') {
            out.push(b'/');
        }
        out.extend_from_slice(target.as_bytes());
        out.extend_from_slice(b" HTTP/1.1\r\n");
        self.framing = match content {
            None => Framing::Whole,
            Some(_) if fields.contains_key(TRANSFER_ENCODING) => Framing::Chunked(announced_trailers(fields)),
            Some(known) => match fields.get(CONTENT_LENGTH).and_then(parse_length).or(known) {
                Some(length) => Framing::Length(length),
                None => Framing::Chunked(announced_trailers(fields)),
            },
        };
        // In the place of what the fields say of it, and once.
        let mut is_announced = false;
        for (name, value) in fields {
            if name == CONTENT_LENGTH || name == TRANSFER_ENCODING {
                let is_length = name == CONTENT_LENGTH;
                let is_its_own = match self.framing {
                    Framing::Chunked(_) => !is_length,
                    Framing::Length(_) | Framing::Whole => is_length,
                };
                if is_its_own && !std::mem::replace(&mut is_announced, true) {
                    self.framing.announce(out);
                }
            } else {
                write_field(out, name, value.as_bytes());
            }
        }
        if !is_announced && !matches!(self.framing, Framing::Whole) {
            self.framing.announce(out);
        }
        out.extend_from_slice(b"\r\n");
    }

    /// Forgets what waits, and what was to follow it.
    pub(crate) fn clear(&mut self) {
        (self.data, self.end, self.framing) = (Bytes::new(), &[], Framing::Whole);
        self.clear_bytes();
    }

    /// The memory stays, where it is not much.
    fn clear_bytes(&mut self) {
        self.bytes.clear();
        self.written = 0;
        if self.bytes.capacity() > KEPT && self.is_whole() {
            self.bytes = Vec::new();
        }
    }

    /// Returns whether all of the request was framed. It may still wait to be written.
    pub(crate) fn is_whole(&self) -> bool {
        matches!(self.framing, Framing::Whole)
    }

    /// Returns whether nothing waits to be written.
    pub(crate) fn is_empty(&self) -> bool {
        self.written == self.bytes.len() && self.data.is_empty() && self.end.is_empty()
    }

    /// Returns whether more content may be added before something is written.
    pub(crate) fn has_room(&self) -> bool {
        self.data.is_empty() && self.end.is_empty() && self.bytes.len() - self.written < ENOUGH
    }

    /// Frames a piece of content. It is the last one where `is_last` says so.
    pub(crate) fn add(&mut self, data: Bytes, is_last: bool) -> Result<(), BadLength> {
        let end = match &mut self.framing {
            _ if data.is_empty() => &b""[..],
            Framing::Whole => return Err(BadLength),
            Framing::Length(left) => {
                *left = left.checked_sub(data.len() as u64).ok_or(BadLength)?;
                b""
            }
            Framing::Chunked(_) => {
                write_size(&mut self.bytes, data.len());
                b"\r\n"
            }
        };
        match data.len() <= MAX_COPIED {
            true => {
                self.bytes.extend_from_slice(&data);
                self.bytes.extend_from_slice(end);
            }
            false => (self.data, self.end) = (data, end),
        }
        if is_last { self.finish(None) } else { Ok(()) }
    }

    /// Frames the end of the content, with the trailers that the head has announced.
    pub(crate) fn finish(&mut self, trailers: Option<&HeaderMap>) -> Result<(), BadLength> {
        match std::mem::take(&mut self.framing) {
            Framing::Whole | Framing::Length(0) => Ok(()),
            Framing::Length(_) => Err(BadLength),
            Framing::Chunked(_) if !self.data.is_empty() => {
                // Only a last piece is followed by the end at once, and then there are no trailers.
                self.end = b"\r\n0\r\n\r\n";
                Ok(())
            }
            Framing::Chunked(announced) => {
                self.bytes.extend_from_slice(b"0\r\n");
                for (name, value) in trailers.into_iter().flatten().filter(|(name, _)| announced.contains(name)) {
                    write_field(&mut self.bytes, name, value.as_bytes());
                }
                self.bytes.extend_from_slice(b"\r\n");
                Ok(())
            }
        }
    }

    /// Returns the pieces that wait, in their order, and how many there are.
    pub(crate) fn pieces(&self) -> ([IoSlice<'_>; 3], usize) {
        let mut pieces = [IoSlice::new(&[]); 3];
        let mut count = 0;
        for piece in [&self.bytes[self.written..], &self.data, self.end] {
            if !piece.is_empty() {
                pieces[count] = IoSlice::new(piece);
                count += 1;
            }
        }
        (pieces, count)
    }

    /// Notes that so many of the waiting bytes were written.
    pub(crate) fn wrote(&mut self, mut length: usize) {
        let here = length.min(self.bytes.len() - self.written);
        self.written += here;
        length -= here;
        let here = length.min(self.data.len());
        self.data.advance(here);
        length -= here;
        self.end = &self.end[length.min(self.end.len())..];
        if self.written == self.bytes.len() {
            self.clear_bytes();
        } else if self.written >= ENOUGH {
            // A node that takes its bytes slowly never empties the buffer, which would grow with the content.
            self.bytes.drain(..self.written);
            self.written = 0;
        }
    }
}

fn write_field(out: &mut Vec<u8>, name: &HeaderName, value: &[u8]) {
    let name = name.as_str().as_bytes();
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn write_size(out: &mut Vec<u8>, size: usize) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let length = (usize::BITS - size.leading_zeros()).div_ceil(4).max(1);
    out.extend((0..length).rev().map(|place| DIGITS[(size >> (4 * place)) & 15]));
    out.extend_from_slice(b"\r\n");
}

/// Returns the names in `Trailer`: of other trailers a recipient has not been told.
fn announced_trailers(fields: &HeaderMap) -> Vec<HeaderName> {
    let lines = fields.get_all(TRAILER).iter();
    let names = lines.flat_map(|line| line.as_bytes().split(|&byte| byte == b','));
    names.filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn fields(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines.iter().map(|&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    /// Writes all that waits, in pieces of one size.
    fn written(output: &mut Output, size: usize) -> String {
        let mut out = Vec::new();
        while !output.is_empty() {
            let (pieces, count) = output.pieces();
            let all: Vec<u8> = pieces[..count].iter().flat_map(|piece| piece.to_vec()).collect();
            let here = size.min(all.len());
            out.extend_from_slice(&all[..here]);
            output.wrote(here);
        }
        String::from_utf8(out).unwrap()
    }

    fn head(method: Method, lines: &[(&'static str, &'static str)], content: Option<Option<u64>>) -> String {
        let mut output = Output::default();
        output.begin(&method, &Uri::from_static("/path?a=b"), &fields(lines), content);
        written(&mut output, usize::MAX)
    }

    #[test]
    fn a_head_announces_its_content_once() {
        let (length, chunked) = (("content-length", "4"), ("transfer-encoding", "chunked"));
        for (lines, content, announced) in [
            (&[][..], None, ""),
            (&[("content-length", "0")], None, "content-length: 0\r\n"),
            // Bytes that do not follow must not be announced.
            (&[length], None, "content-length: 0\r\n"),
            (&[chunked], None, ""),
            (&[], Some(Some(4)), "content-length: 4\r\n"),
            (&[length], Some(None), "content-length: 4\r\n"),
            (&[], Some(None), "transfer-encoding: chunked\r\n"),
            (&[chunked], Some(Some(4)), "transfer-encoding: chunked\r\n"),
            (&[length, chunked], Some(Some(4)), "transfer-encoding: chunked\r\n"),
            (&[("content-length", "x")], Some(Some(4)), "content-length: 4\r\n"),
            (&[length, length], Some(Some(4)), "content-length: 4\r\n"),
        ] {
            let lines = [&[("host", "a")], lines].concat();
            let expected = format!("PUT /path?a=b HTTP/1.1\r\nhost: a\r\n{announced}\r\n");
            assert_eq!(head(Method::PUT, &lines, content), expected, "{lines:?} {content:?}");
        }
    }

    #[test]
    fn the_order_of_fields_stays() {
        let lines = [("a", "1"), ("content-length", "4"), ("b", "2"), ("a", "3")];
        let expected = "PUT /path?a=b HTTP/1.1\r\na: 1\r\na: 3\r\ncontent-length: 4\r\nb: 2\r\n\r\n";
        assert_eq!(head(Method::PUT, &lines, Some(Some(4))), expected);
    }

    #[test]
    fn a_target_is_in_origin_form() {
        for (target, line) in
            [("/", "/"), ("*", "*"), ("http://a", "/"), ("http://a/b?c", "/b?c"), ("http://a?c", "/?c")]
        {
            let mut output = Output::default();
            output.begin(&Method::OPTIONS, &Uri::from_static(target), &HeaderMap::new(), None);
            assert_eq!(written(&mut output, usize::MAX), format!("OPTIONS {line} HTTP/1.1\r\n\r\n"));
        }
    }

    #[test]
    fn content_follows_in_the_framing_that_was_announced() {
        let large = "x".repeat(MAX_COPIED + 1);
        for size in [1, 7, usize::MAX] {
            let mut output = Output::default();
            let begin = |output: &mut Output, content| {
                output.begin(&Method::POST, &Uri::from_static("/"), &HeaderMap::new(), Some(content));
                written(output, size);
            };
            begin(&mut output, Some(6));
            output.add("hel".into(), false).unwrap();
            assert!(!output.is_whole());
            output.add("lo!".into(), true).unwrap();
            assert_eq!((output.is_whole(), written(&mut output, size).as_str()), (true, "hello!"));

            begin(&mut output, None);
            output.add("hello".into(), false).unwrap();
            assert_eq!(written(&mut output, size), "5\r\nhello\r\n");
            output.add("".into(), false).unwrap();
            assert!(output.is_empty());
            output.add(large.clone().into(), false).unwrap();
            assert!(!output.has_room());
            assert_eq!(written(&mut output, size), format!("1001\r\n{large}\r\n"));
            output.add(large.clone().into(), true).unwrap();
            assert_eq!(written(&mut output, size), format!("1001\r\n{large}\r\n0\r\n\r\n"));

            begin(&mut output, None);
            output.add("0123456789abcdef".into(), true).unwrap();
            assert_eq!(written(&mut output, size), "10\r\n0123456789abcdef\r\n0\r\n\r\n");
        }
    }

    #[test]
    fn content_of_another_length_is_refused() {
        for pieces in [&["hello"][..], &["he", "l"], &[]] {
            let mut output = Output::default();
            output.begin(&Method::POST, &Uri::from_static("/"), &HeaderMap::new(), Some(Some(4)));
            let added = pieces.iter().try_for_each(|piece| output.add((*piece).into(), false));
            assert_eq!(added.and_then(|()| output.finish(None)), Err(BadLength), "{pieces:?}");
        }
    }

    #[test]
    fn only_announced_trailers_are_sent() {
        let mut output = Output::default();
        let announcing = fields(&[("trailer", "x-sum, X-Other"), ("trailer", "x-more")]);
        output.begin(&Method::POST, &Uri::from_static("/"), &announcing, Some(None));
        written(&mut output, usize::MAX);
        let trailers = fields(&[("x-sum", "1"), ("x-secret", "2"), ("x-more", "3")]);
        output.finish(Some(&trailers)).unwrap();
        assert_eq!(written(&mut output, usize::MAX), "0\r\nx-sum: 1\r\nx-more: 3\r\n\r\n");
        assert!(output.is_whole());
    }

    #[test]
    fn a_slow_node_does_not_make_the_output_grow() {
        let mut output = Output::default();
        output.begin(&Method::POST, &Uri::from_static("/"), &HeaderMap::new(), Some(None));
        for _ in 0..1000 {
            while output.has_room() {
                output.add("x".repeat(MAX_COPIED).into(), false).unwrap();
            }
            output.wrote(MAX_COPIED / 2);
        }
        assert!(output.bytes.len() <= 2 * ENOUGH + 2 * MAX_COPIED, "{}", output.bytes.len());
    }

    #[test]
    fn much_memory_is_not_kept() {
        let mut output = Output::default();
        let large = HeaderValue::from_str(&"x".repeat(KEPT)).unwrap();
        let fields = HeaderMap::from_iter([(HeaderName::from_static("x"), large)]);
        output.begin(&Method::GET, &Uri::from_static("/"), &fields, None);
        assert!(written(&mut output, usize::MAX).len() > KEPT);
        assert!(output.bytes.capacity() <= KEPT);
    }
}
