//! The proxy's own answers: problem documents (RFC 9457) with `Proxy-Status` (RFC 9209).

use super::fields::PROXY_STATUS;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::json;
use std::borrow::Cow;

/// An answer that the proxy gives itself.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    /// The stable name behind `urn:ringway:problem:`.
    pub(crate) kind: &'static str,
    /// The explanation for a person, and what to do where something can be done.
    pub(crate) detail: Cow<'static, str>,
    /// RFC 9209's error token.
    pub(crate) error: &'static str,
    /// When the client may try again, in seconds.
    pub(crate) retry_after: Option<u32>,
    /// The rest of the connection cannot be trusted.
    pub(crate) close: bool,
}

impl Problem {
    pub(crate) fn new(
        status: StatusCode,
        kind: &'static str,
        error: &'static str,
        detail: impl Into<Cow<'static, str>>,
    ) -> Problem {
        Problem { status, kind, detail: detail.into(), error, retry_after: None, close: false }
    }

    /// A request that cannot be understood; the connection closes, for what follows may be part of it.
    pub(crate) fn bad_request(kind: &'static str, detail: impl Into<Cow<'static, str>>) -> Problem {
        Problem::new(StatusCode::BAD_REQUEST, kind, "http_request_error", detail).closing()
    }

    pub(crate) fn closing(mut self) -> Problem {
        self.close = true;
        self
    }

    pub(crate) fn retry_after(mut self, seconds: u32) -> Problem {
        self.retry_after = Some(seconds);
        self
    }

    /// Returns the fields and the body of the answer.
    pub(crate) fn render(&self) -> (HeaderMap, Bytes) {
        let mut fields = HeaderMap::with_capacity(8);
        fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Ok(value) = HeaderValue::try_from(format!("ringway; error={}", self.error)) {
            fields.insert(PROXY_STATUS, value);
        }
        if let Some(seconds) = self.retry_after {
            fields.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.close {
            fields.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let body = json!({
            "type": format!("urn:ringway:problem:{}", self.kind),
            "title": self.status.canonical_reason().unwrap_or("Error"),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        (fields, Bytes::from(body.to_string()))
    }

    /// The whole answer as bytes, for a connection that has no HTTP machinery any more. It closes.
    pub(crate) fn to_http1(&self) -> Vec<u8> {
        let (mut fields, body) = self.render();
        fields.insert(CONNECTION, HeaderValue::from_static("close"));
        let mut out = Vec::with_capacity(512);
        out.extend_from_slice(b"HTTP/1.1 ");
        out.extend_from_slice(self.status.as_str().as_bytes());
        out.push(b' ');
        out.extend_from_slice(self.status.canonical_reason().unwrap_or("Error").as_bytes());
        for (name, value) in &fields {
            out.extend_from_slice(b"\r\n");
            out.extend_from_slice(name.as_str().as_bytes());
            out.extend_from_slice(b": ");
            out.extend_from_slice(value.as_bytes());
        }
        out.extend_from_slice(format!("\r\ncontent-length: {}\r\n\r\n", body.len()).as_bytes());
        out.extend_from_slice(&body);
        out
    }
}
