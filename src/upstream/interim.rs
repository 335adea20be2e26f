//! Interim answers (1xx) of nodes, on their way to clients.

use crate::http::fields;
use http::{HeaderMap, StatusCode};

/// An interim answer of a node.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Interim {
    status: StatusCode,
    fields: HeaderMap,
}

impl Interim {
    /// Returns the answer without the fields of its connection.
    pub(super) fn new(status: StatusCode, mut fields: HeaderMap) -> Interim {
        fields::strip_response(&mut fields);
        fields.remove(http::header::CONTENT_LENGTH);
        Interim { status, fields }
    }

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

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    #[test]
    fn an_interim_answer_goes_on_without_its_connection_fields() {
        let lines = [("link", "</a.css>"), ("connection", "x-hop"), ("x-hop", "1"), ("content-length", "3")];
        let fields = lines.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        let interim = Interim::new(StatusCode::EARLY_HINTS, fields.into_iter().collect());
        let text = String::from_utf8(interim.to_http1()).unwrap();
        assert_eq!(text, "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n");
    }
}
