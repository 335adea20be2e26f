//! Interim answers (1xx), which hyper's client swallows: read from the bytes on their way to it.

use crate::http::fields;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

/// An interim answer larger than this is not passed on.
const MAX_BYTES: usize = 64 << 10;
const MAX_FIELDS: usize = 100;
/// The bytes that every interim response begins with.
const BEGINNING: &[u8] = b"HTTP/1.1 1";

/// An interim answer of a node.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Interim {
    status: StatusCode,
    fields: HeaderMap,
}

impl Interim {
    pub(crate) fn is_continue(&self) -> bool {
        self.status == StatusCode::CONTINUE
    }

    /// Returns the bytes that a client gets, ahead of the final answer.
    pub(crate) fn to_http1(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        out.extend_from_slice(b"HTTP/1.1 ");
        out.extend_from_slice(self.status.as_str().as_bytes());
        out.push(b' ');
        out.extend_from_slice(self.status.canonical_reason().unwrap_or_default().as_bytes());
        out.extend_from_slice(b"\r\n");
        for (name, value) in &self.fields {
            out.extend_from_slice(name.as_str().as_bytes());
            out.extend_from_slice(b": ");
            out.extend_from_slice(value.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"\r\n");
        out
    }
}

/// Looks at the beginning of what a node sends after a request. It costs a comparison where the
/// answer is a final one.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    /// The final response has not begun yet.
    watching: bool,
    /// The part of an interim answer that has arrived.
    partial: Vec<u8>,
    found: Vec<Interim>,
}

impl Scanner {
    /// A request is about to be sent.
    pub(super) fn begin(&mut self) {
        self.watching = true;
        self.partial.clear();
        self.found.clear();
    }

    /// Returns the interim responses since the last call.
    pub(super) fn take(&mut self) -> Vec<Interim> {
        std::mem::take(&mut self.found)
    }

    pub(super) fn see(&mut self, bytes: &[u8]) {
        if !self.watching {
            return;
        }
        if self.partial.is_empty() && !may_be_interim(bytes) {
            self.watching = false;
            return;
        }
        self.partial.extend_from_slice(bytes);
        self.read_partial();
    }

    fn read_partial(&mut self) {
        while may_be_interim(&self.partial) {
            let mut lines = [httparse::EMPTY_HEADER; MAX_FIELDS];
            let mut head = httparse::Response::new(&mut lines);
            match head.parse(&self.partial) {
                Ok(httparse::Status::Partial) if self.partial.len() < MAX_BYTES => return,
                Ok(httparse::Status::Complete(length)) if head.code.is_some_and(|code| code != 101) => {
                    self.found.extend(interim(&head));
                    self.partial.drain(..length);
                    if self.partial.is_empty() {
                        return;
                    }
                }
                // A 101 is final; what cannot be read is hyper's to refuse.
                _ => break,
            }
        }
        self.watching = false;
        self.partial = Vec::new();
    }
}

fn may_be_interim(bytes: &[u8]) -> bool {
    let length = bytes.len().min(BEGINNING.len());
    bytes[..length] == BEGINNING[..length]
}

fn interim(head: &httparse::Response<'_, '_>) -> Option<Interim> {
    let status = StatusCode::from_u16(head.code?).ok()?;
    let lines = head.headers.iter().filter_map(|line| {
        let name = HeaderName::from_bytes(line.name.as_bytes()).ok()?;
        Some((name, HeaderValue::from_bytes(line.value).ok()?))
    });
    let mut fields: HeaderMap = lines.collect();
    fields::strip_response(&mut fields);
    fields.remove(http::header::CONTENT_LENGTH);
    Some(Interim { status, fields })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\nconnection: x-hop\r\nx-hop: 1\r\n\r\n";

    fn scan(pieces: &[&[u8]]) -> Vec<u16> {
        let mut scanner = Scanner::default();
        scanner.begin();
        for piece in pieces {
            scanner.see(piece);
        }
        scanner.take().iter().map(|interim| interim.status.as_u16()).collect()
    }

    #[test]
    fn only_answers_before_the_final_one_are_interim() {
        let two = format!("HTTP/1.1 100 Continue\r\n\r\n{HINTS}HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 103 Fake\r\n\r\n");
        assert_eq!(scan(&[two.as_bytes()]), [100, 103]);
        assert_eq!(scan(&[b"HTTP/1.1 200 OK\r\n\r\n", HINTS.as_bytes()]), [0u16; 0]);
        assert_eq!(scan(&[b"HTTP/1.1 101 Switching Protocols\r\n\r\n", HINTS.as_bytes()]), [0u16; 0]);
    }

    #[test]
    fn an_interim_answer_goes_on_without_its_connection_fields() {
        let mut scanner = Scanner::default();
        scanner.begin();
        scanner.see(HINTS.as_bytes());
        let found = scanner.take();
        let text = String::from_utf8(found[0].to_http1()).unwrap();
        assert_eq!(text, "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n");
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_the_bytes_arrive(cuts in prop::collection::vec(1usize..40, 0..12)) {
            let whole = format!("{HINTS}HTTP/1.1 100 Continue\r\n\r\n{HINTS}HTTP/1.1 204 No Content\r\n\r\n");
            let mut rest = whole.as_bytes();
            let mut pieces = Vec::new();
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            pieces.push(rest);
            prop_assert_eq!(scan(&pieces), [103, 100, 103]);
        }
    }
}
