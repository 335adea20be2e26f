//! The content of a node's response, taken out of the bytes of its connection as its head has framed it.

use crate::io::chunks::{BadChunk, Chunks};
use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};

/// The most bytes of trailers, and the most of them.
const MAX_TRAILER_BYTES: usize = 16 << 10;
const MAX_TRAILERS: usize = 100;

/// The content that is still to come.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// So many bytes. With 0 the content is over, however it was framed.
    Length(u64),
    Chunked {
        chunks: Chunks,
        /// The part of the trailers that has arrived.
        trailers: Vec<u8>,
    },
    /// Everything to the end of the connection.
    Open,
}

/// The next part of some content.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
    /// More bytes are needed to tell.
    Missing,
}

/// Content that is not framed by the grammar, or that ends before it is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the content is malformed, or ends early")]
pub(crate) struct BadContent;

impl From<BadChunk> for BadContent {
    fn from(_: BadChunk) -> BadContent {
        BadContent
    }
}

impl Content {
    /// No content.
    pub(crate) const NONE: Content = Content::Length(0);

    pub(crate) fn chunked() -> Content {
        Content::Chunked { chunks: Chunks::default(), trailers: Vec::new() }
    }

    /// Returns whether all of it was taken.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self, Content::Length(0))
    }

    /// Returns the number of bytes that are still to come, where it is known.
    pub(crate) fn left(&self) -> Option<u64> {
        match self {
            Content::Length(left) => Some(*left),
            Content::Chunked { .. } | Content::Open => None,
        }
    }

    /// Returns an error where the framing of these bytes, the next ones, is malformed.
    pub(crate) fn check(&self, input: &[u8]) -> Result<(), BadContent> {
        match self {
            Content::Chunked { chunks, .. } => Ok(chunks.clone().pass(input).map(drop)?),
            Content::Length(_) | Content::Open => Ok(()),
        }
    }

    /// Takes the next part of the content from the bytes that have arrived.
    pub(crate) fn take(&mut self, input: &mut BytesMut) -> Result<Part, BadContent> {
        match self {
            Content::Length(0) => Ok(Part::End),
            _ if input.is_empty() => Ok(Part::Missing),
            Content::Length(left) => {
                let here = usize::try_from(*left).map_or(input.len(), |left| left.min(input.len()));
                *left -= here as u64;
                Ok(Part::Data(input.split_to(here).freeze()))
            }
            Content::Open => Ok(Part::Data(input.split().freeze())),
            Content::Chunked { chunks, trailers } => {
                let part = take_chunk(chunks, trailers, input)?;
                let is_over = match &part {
                    Part::Data(_) => take_last_chunk(chunks, input),
                    Part::Trailers(_) | Part::End => true,
                    Part::Missing => false,
                };
                if is_over {
                    *self = Content::NONE;
                }
                Ok(part)
            }
        }
    }

    /// Ends the content with its connection. An error where it is not whole.
    pub(crate) fn end(&mut self) -> Result<(), BadContent> {
        match self {
            Content::Length(0) => Ok(()),
            Content::Open => {
                *self = Content::NONE;
                Ok(())
            }
            Content::Length(_) | Content::Chunked { .. } => Err(BadContent),
        }
    }
}

fn take_chunk(chunks: &mut Chunks, trailers: &mut Vec<u8>, input: &mut BytesMut) -> Result<Part, BadContent> {
    while !input.is_empty() {
        let piece = chunks.next(input)?;
        if let Some(from) = piece.trailers_at {
            trailers.extend_from_slice(&input[from..piece.framing]);
            if trailers.len() > MAX_TRAILER_BYTES {
                return Err(BadContent);
            }
        }
        input.advance(piece.framing);
        if piece.is_last {
            return read_trailers(trailers);
        }
        if piece.content > 0 {
            return Ok(Part::Data(input.split_to(piece.content).freeze()));
        }
    }
    Ok(Part::Missing)
}

/// Takes the last chunk where it has arrived whole behind the one before it, and no trailer with it: the end of the
/// content is known with its last data then.
fn take_last_chunk(chunks: &Chunks, input: &mut BytesMut) -> bool {
    match chunks.clone().next(input) {
        Ok(piece) if piece.is_last && piece.trailers_at.is_some_and(|from| &input[from..piece.framing] == b"\r\n") => {
            input.advance(piece.framing);
            true
        }
        _ => false,
    }
}

fn read_trailers(bytes: &[u8]) -> Result<Part, BadContent> {
    if bytes == b"\r\n" {
        return Ok(Part::End);
    }
    let mut lines = [httparse::EMPTY_HEADER; MAX_TRAILERS];
    let Ok(httparse::Status::Complete((length, lines))) = httparse::parse_headers(bytes, &mut lines) else {
        return Err(BadContent);
    };
    if length != bytes.len() {
        return Err(BadContent);
    }
    let mut trailers = HeaderMap::with_capacity(lines.len());
    for line in lines {
        let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|_| BadContent)?;
        trailers.append(name, HeaderValue::from_bytes(line.value).map_err(|_| BadContent)?);
    }
    Ok(Part::Trailers(trailers))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes all parts of content that arrives in pieces of one size. Returns the data, the trailers, and the bytes
    /// that are left behind the content.
    fn take_all(
        mut content: Content,
        bytes: &str,
        size: usize,
    ) -> Result<(String, Option<HeaderMap>, String), BadContent> {
        let (mut data, mut trailers, mut input) = (Vec::new(), None, BytesMut::new());
        for piece in bytes.as_bytes().chunks(size) {
            input.extend_from_slice(piece);
            while !content.is_over() {
                match content.take(&mut input)? {
                    Part::Data(more) => data.extend_from_slice(&more),
                    Part::Trailers(all) => trailers = Some(all),
                    Part::End => {}
                    Part::Missing => break,
                }
            }
        }
        content.end()?;
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Ok((text(data), trailers, text(input.to_vec())))
    }

    #[test]
    fn content_ends_where_its_framing_says() {
        let chunks = "5;a=b\r\nhello\r\n6\r\n world\r\n0\r\n\r\nnext";
        for size in 1..40 {
            let whole = |content, bytes| take_all(content, bytes, size);
            let is = |data: &str, rest: &str| Ok((data.to_owned(), None, rest.to_owned()));
            assert_eq!(whole(Content::Length(5), "hellonext"), is("hello", "next"), "{size}");
            assert_eq!(whole(Content::NONE, "next"), is("", "next"), "{size}");
            assert_eq!(whole(Content::Open, "hello"), is("hello", ""), "{size}");
            assert_eq!(whole(Content::chunked(), chunks), is("hello world", "next"), "{size}");
            assert_eq!(whole(Content::Length(6), "hello"), Err(BadContent), "{size}");
            assert_eq!(whole(Content::chunked(), "5\r\nhello\r\n0\r\n"), Err(BadContent), "{size}");
            assert_eq!(whole(Content::chunked(), "5\r\nhello\n"), Err(BadContent), "{size}");
        }
    }

    #[test]
    fn trailers_are_read_and_bounded() {
        let trailers = "x-sum: 1\r\nX-Sum: 2\r\ny:\r\n\r\n";
        for size in 1..40 {
            let found = take_all(Content::chunked(), &format!("2\r\nhi\r\n0\r\n{trailers}next"), size).unwrap();
            let fields = found.1.unwrap();
            let sums: Vec<_> = fields.get_all("x-sum").iter().map(|value| value.to_str().unwrap()).collect();
            assert_eq!((found.0.as_str(), found.2.as_str(), sums), ("hi", "next", vec!["1", "2"]), "{size}");
            assert_eq!(fields["y"], "");
        }
        let many = |count: usize, value: &str| format!("0\r\n{}\r\n", format!("x: {value}\r\n").repeat(count));
        for (count, value, is_fine) in [(100, "y", true), (101, "y", false), (8, "y".repeat(2 << 10).as_str(), false)] {
            let found = take_all(Content::chunked(), &many(count, value), 4096);
            assert_eq!(found.is_ok(), is_fine, "{count} of {}", value.len());
        }
    }

    #[test]
    fn extensions_are_bounded_over_all_chunks() {
        let chunk = |length: usize| format!("1;{}\r\nx\r\n", "a".repeat(length));
        let body = |chunks: usize| format!("{}0\r\n\r\n", chunk(4000).repeat(chunks));
        assert!(take_all(Content::chunked(), &body(4), 1000).is_ok());
        assert_eq!(take_all(Content::chunked(), &body(5), 1000), Err(BadContent));
    }

    #[test]
    fn the_end_is_known_with_the_last_data() {
        let mut input = BytesMut::from(&b"2\r\nhi\r\n0\r\n\r\n"[..]);
        let mut content = Content::chunked();
        assert_eq!(content.take(&mut input), Ok(Part::Data("hi".into())));
        assert!(content.is_over() && input.is_empty());
    }
}
