//! The head of a node's response, and the framing of the content behind it (RFC 9112 6.3).
//!
//! What two parsers could read in two ways is malformed: lengths that differ or are no digits, a transfer coding in a
//! message of HTTP/1.0, a folded line, white space before a colon. A transfer coding goes before a length.

use super::content::Content;
use crate::http::fields::is_hop_by_hop;
use crate::upstream::interim::Interim;
use bytes::{Buf, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use hyper::ext::ReasonPhrase;
use memchr::memmem::Finder;
use std::mem::MaybeUninit;
use std::sync::LazyLock;

/// The most fields of a head. To allow more would cost an allocation a response.
pub(crate) const MAX_FIELDS: usize = 100;
/// The largest head.
pub(crate) const MAX_HEAD: usize = 64 << 10;
/// The most names that are kept for the next head, and the most bytes of one.
const MAX_NAMES: usize = 24;
const MAX_NAME: usize = 64;

/// The head of a response.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Head {
    /// An interim one (1xx, RFC 9110 15.2), which others follow; its message where it is wanted. A 101 is final.
    Interim(Option<Interim>),
    Final(FinalHead),
}

/// The head of a final response. Its fields are in the map that it was read into.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FinalHead {
    pub(crate) status: StatusCode,
    /// The reason phrase, where it is not the status's own.
    pub(crate) reason: Option<ReasonPhrase>,
    pub(crate) content: Content,
    /// The connection may take another request afterwards.
    pub(crate) persists: bool,
    /// No field is about the connection, and a length is told once: the fields may go on as they are.
    pub(crate) is_plain: bool,
}

/// Why a head is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadHead {
    #[error("the head is malformed")]
    Malformed,
    #[error("the head has more fields or bytes than allowed")]
    TooLarge,
}

/// The request that a response belongs to, as far as it says how the response is read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    /// The method is HEAD: the response has no content.
    pub(crate) is_head: bool,
    pub(crate) wants_interim: bool,
}

/// Reads the heads of a connection's responses.
#[derive(Default)]
pub(crate) struct HeadReader {
    /// The number of bytes of the next head that were searched already.
    seen: usize,
    names: Names,
}

impl HeadReader {
    /// Takes the next head off the bytes that have arrived; `None` where it is not complete. The fields of a final head
    /// are put into `fields`, in place of those that are there.
    pub(crate) fn take(
        &mut self,
        input: &mut BytesMut,
        asked: Asked,
        fields: &mut HeaderMap,
    ) -> Result<Option<Head>, BadHead> {
        // Empty lines may stand before a message (RFC 9112 2.2).
        while matches!(input.first(), Some(b'\r' | b'\n')) {
            input.advance(1);
        }
        if input.is_empty() {
            return Ok(None);
        }
        let Some(length) = length_of(input, self.seen) else {
            return expect_more(input, &mut self.seen);
        };
        if length > MAX_HEAD {
            return Err(BadHead::TooLarge);
        }
        self.seen = 0;
        let bytes = input.split_to(length).freeze();
        read(&bytes, asked, &mut self.names, fields).map(Some)
    }
}

/// The field names of a connection's last heads by their place, as they were written: a node mostly sends the same ones
/// in the same order, and to compare a name costs a fifth of parsing it.
#[derive(Default)]
struct Names(Vec<(Box<[u8]>, HeaderName)>);

impl Names {
    /// Returns the name of the field at this place of a head.
    fn at(&mut self, place: usize, written: &[u8]) -> Result<HeaderName, BadHead> {
        if let Some((known, name)) = self.0.get(place)
            && **known == *written
        {
            return Ok(name.clone());
        }
        let name = HeaderName::from_bytes(written).map_err(|_| BadHead::Malformed)?;
        self.keep(place, written, &name);
        Ok(name)
    }

    #[cold]
    fn keep(&mut self, place: usize, written: &[u8], name: &HeaderName) {
        let kept = (written.into(), name.clone());
        match self.0.get_mut(place) {
            _ if written.len() > MAX_NAME => {}
            Some(known) => *known = kept,
            None if place < MAX_NAMES => self.0.push(kept),
            None => {}
        }
    }
}

/// Returns the length of the head that these bytes begin with, where its empty line is among them and not before the
/// part that was looked at.
fn length_of(bytes: &[u8], seen: usize) -> Option<usize> {
    static EMPTY_LINE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\n\r\n"));
    static BARE_EMPTY_LINE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\n\n"));
    let from = seen.saturating_sub(2);
    let end = EMPTY_LINE.find(&bytes[from..]).map(|at| from + at + 3);
    let head = &bytes[from..end.unwrap_or(bytes.len())];
    BARE_EMPTY_LINE.find(head).map(|at| from + at + 2).or(end)
}

/// Returns an error where the beginning of a head is malformed or too large already.
fn expect_more(input: &[u8], seen: &mut usize) -> Result<Option<Head>, BadHead> {
    if *seen == 0 {
        let mut lines = [const { MaybeUninit::uninit() }; MAX_FIELDS];
        parse(input, &mut lines)?;
    }
    *seen = input.len();
    if input.len() >= MAX_HEAD { Err(BadHead::TooLarge) } else { Ok(None) }
}

/// Returns the head in these bytes; `None` where they are only the beginning of one.
fn parse<'a, 'b>(
    bytes: &'b [u8],
    lines: &'a mut [MaybeUninit<httparse::Header<'b>>],
) -> Result<Option<httparse::Response<'a, 'b>>, BadHead> {
    let mut parsed = httparse::Response::new(&mut []);
    match httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut parsed, bytes, lines) {
        Ok(httparse::Status::Complete(_)) => Ok(Some(parsed)),
        Ok(httparse::Status::Partial) => Ok(None),
        Err(httparse::Error::TooManyHeaders) => Err(BadHead::TooLarge),
        Err(_) => Err(BadHead::Malformed),
    }
}

/// Reads a whole head.
fn read(bytes: &Bytes, asked: Asked, names: &mut Names, fields: &mut HeaderMap) -> Result<Head, BadHead> {
    let mut lines = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let parsed = parse(bytes, &mut lines)?.ok_or(BadHead::Malformed)?;
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(BadHead::Malformed)?;
    if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
        let interim =
            if asked.wants_interim { Some(read_interim(status, bytes, parsed.headers, names)?) } else { None };
        return Ok(Head::Interim(interim));
    }
    let is_http11 = parsed.version == Some(1);
    let facts = read_fields(bytes, parsed.headers, names, fields)?;
    let reason = parsed.reason.filter(|reason| Some(*reason) != status.canonical_reason());
    let reason = match reason {
        Some(reason) => Some(ReasonPhrase::try_from(reason.as_bytes()).map_err(|_| BadHead::Malformed)?),
        None => None,
    };
    let content = framing(status, asked.is_head, is_http11, &facts)?;
    let may_persist = if is_http11 { !facts.says_close } else { facts.says_keep_alive && !facts.says_close };
    let persists = may_persist && content != Content::Open && status != StatusCode::SWITCHING_PROTOCOLS;
    Ok(Head::Final(FinalHead { status, reason, content, persists, is_plain: !facts.is_odd }))
}

fn read_interim(
    status: StatusCode,
    bytes: &Bytes,
    lines: &[httparse::Header<'_>],
    names: &mut Names,
) -> Result<Interim, BadHead> {
    let mut fields = HeaderMap::with_capacity(lines.len());
    read_fields(bytes, lines, names, &mut fields)?;
    Ok(Interim::new(status, fields))
}

/// The facts of a head's fields that decide on framing and connection.
#[derive(Debug, Default)]
struct Facts {
    length: Length,
    coding: Option<Coding>,
    says_close: bool,
    says_keep_alive: bool,
    /// A field is about the connection, or there are several lengths.
    is_odd: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Length {
    #[default]
    None,
    One(u64),
    /// No number, or several that differ.
    Bad,
}

/// The last transfer coding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coding {
    Chunked,
    Other,
}

/// Puts the fields into a map, in place of what is there. Returns the facts among them.
fn read_fields(
    bytes: &Bytes,
    lines: &[httparse::Header<'_>],
    names: &mut Names,
    fields: &mut HeaderMap,
) -> Result<Facts, BadHead> {
    let mut facts = Facts::default();
    fields.clear();
    fields.reserve(lines.len());
    for (place, line) in lines.iter().enumerate() {
        let name = names.at(place, line.name.as_bytes())?;
        let value = bytes.slice_ref(line.value);
        let value = HeaderValue::from_maybe_shared(value).map_err(|_| BadHead::Malformed)?;
        // The names that matter here have these lengths, and few others do.
        if matches!(line.name.len(), 2 | 7 | 10 | 14 | 16 | 17) {
            facts.note(&name, line.value);
        }
        fields.append(name, value);
    }
    Ok(facts)
}

impl Facts {
    /// Notes a field.
    fn note(&mut self, name: &HeaderName, value: &[u8]) {
        if *name == CONTENT_LENGTH {
            let is_first = self.length == Length::None;
            self.length = self.length.and(value);
            self.is_odd |= !is_first || self.length == Length::Bad || !value.iter().all(u8::is_ascii_digit);
            return;
        }
        if *name == CONNECTION {
            self.says_close |= has_option(value, b"close");
            self.says_keep_alive |= has_option(value, b"keep-alive");
        } else if *name == TRANSFER_ENCODING {
            let last = value.rsplit(|&byte| byte == b',').next().unwrap_or_default();
            let is_chunked = last.trim_ascii().eq_ignore_ascii_case(b"chunked");
            self.coding = Some(if is_chunked { Coding::Chunked } else { Coding::Other });
        }
        self.is_odd |= is_hop_by_hop(name);
    }
}

fn has_option(value: &[u8], option: &[u8]) -> bool {
    value.split(|&byte| byte == b',').any(|found| found.trim_ascii().eq_ignore_ascii_case(option))
}

impl Length {
    /// Returns the length that a further line leaves: equal values, in lines or in lists, are one (RFC 9110 8.6).
    fn and(self, line: &[u8]) -> Length {
        line.split(|&byte| byte == b',').fold(self, |length, value| match (length, digits(value.trim_ascii())) {
            (Length::None, Some(value)) => Length::One(value),
            (Length::One(known), Some(value)) if known == value => length,
            _ => Length::Bad,
        })
    }
}

/// Returns the number that these digits are.
fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |number, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

/// Returns the content behind a head (RFC 9112 6.3).
fn framing(status: StatusCode, is_head: bool, is_http11: bool, facts: &Facts) -> Result<Content, BadHead> {
    match status {
        StatusCode::SWITCHING_PROTOCOLS | StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED => {
            return Ok(Content::NONE);
        }
        _ if is_head => return Ok(Content::NONE),
        _ => {}
    }
    match (facts.coding, facts.length) {
        // HTTP/1.0 knows no chunks (RFC 9112 6.1).
        (Some(_), _) if !is_http11 => Err(BadHead::Malformed),
        (Some(Coding::Chunked), _) => Ok(Content::chunked()),
        (Some(Coding::Other), _) | (None, Length::None) => Ok(Content::Open),
        (None, Length::One(length)) => Ok(Content::Length(length)),
        (None, Length::Bad) => Err(BadHead::Malformed),
    }
}
