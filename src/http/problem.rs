//! The proxy's own answers: problem documents (RFC 9457) with `Proxy-Status` (RFC 9209).

use super::fields::PROXY_STATUS;
pub(crate) use super::problem_kinds::ProblemKind;
use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde_json::{Value, json};
use std::borrow::Cow;

/// A problem document that the proxy answers with.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    pub(crate) kind: ProblemKind,
    /// The explanation for a person, with a next step where there is one.
    pub(crate) detail: Cow<'static, str>,
    /// RFC 9209's error token, where it differs from that of the kind.
    token: Option<&'static str>,
    /// The time after which the client may retry, in seconds.
    pub(crate) retry_after: Option<u32>,
    /// The connection must be closed, as its framing is unknown.
    pub(crate) close: bool,
    /// Boxed, as most problems have none of these.
    more: Option<Box<More>>,
}

/// Parts that few problems have.
#[derive(Clone, Debug, Default)]
struct More {
    /// Extension members (RFC 9457 3.2).
    members: Vec<(&'static str, Value)>,
    /// A field that the status demands.
    field: Option<(HeaderName, &'static str)>,
}

impl Problem {
    pub(crate) fn new(kind: ProblemKind, detail: impl Into<Cow<'static, str>>) -> Problem {
        Problem { kind, detail: detail.into(), token: None, retry_after: None, close: false, more: None }
    }

    /// Returns the problem of a malformed request; the connection is closed, as the following bytes may be part of it.
    pub(crate) fn bad_request(kind: ProblemKind, detail: impl Into<Cow<'static, str>>) -> Problem {
        Problem::new(kind, detail).closing()
    }

    /// Returns the 405 of a target with these methods (RFC 9110 15.5.6).
    pub(crate) fn method_not_allowed(detail: impl Into<Cow<'static, str>>, allowed: &'static str) -> Problem {
        Problem::new(ProblemKind::MethodNotAllowed, detail).with_field(ALLOW, allowed)
    }

    /// Returns the 401 that asks for credentials of this scheme (RFC 9110 15.5.2).
    pub(crate) fn unauthorized(detail: &'static str, scheme: &'static str) -> Problem {
        Problem::new(ProblemKind::Unauthorized, detail).with_field(WWW_AUTHENTICATE, scheme)
    }

    fn with_field(mut self, name: HeaderName, value: &'static str) -> Problem {
        self.more.get_or_insert_default().field = Some((name, value));
        self
    }

    /// Replaces the token of `Proxy-Status` by a more specific one.
    pub(crate) fn with_token(mut self, token: &'static str) -> Problem {
        self.token = Some(token);
        self
    }

    /// Adds an extension member.
    pub(crate) fn with_member(mut self, name: &'static str, value: Value) -> Problem {
        self.more.get_or_insert_default().members.push((name, value));
        self
    }

    pub(crate) fn closing(mut self) -> Problem {
        self.close = true;
        self
    }

    pub(crate) fn retry_after(mut self, seconds: u32) -> Problem {
        self.retry_after = Some(seconds);
        self
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.kind.row().status
    }

    /// Returns the stable name after `urn:ringway:problem:`.
    pub(crate) fn name(&self) -> &'static str {
        self.kind.row().name
    }

    /// Returns the fields and the body of the response.
    pub(crate) fn render(&self) -> (HeaderMap, Bytes) {
        let mut fields = HeaderMap::with_capacity(8);
        fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        let (row, status) = (self.kind.row(), self.status());
        if let Some(token) = self.token.or(row.token)
            && let Ok(value) = HeaderValue::try_from(format!("ringway; error={token}"))
        {
            fields.insert(PROXY_STATUS, value);
        }
        if let Some(seconds) = self.retry_after {
            fields.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some((name, value)) = self.more.as_ref().and_then(|more| more.field.as_ref()) {
            fields.insert(name, HeaderValue::from_static(value));
        }
        if self.close {
            fields.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let mut body = json!({
            "type": format!("urn:ringway:problem:{}", row.name),
            "title": status.canonical_reason().unwrap_or("Error"),
            "status": status.as_u16(),
            "detail": self.detail,
        });
        for (name, value) in self.more.iter().flat_map(|more| &more.members) {
            body[*name] = value.clone();
        }
        (fields, Bytes::from(body.to_string()))
    }

    /// Returns the complete response in bytes, for a connection without an HTTP layer. It closes the connection.
    pub(crate) fn to_http1(&self) -> Vec<u8> {
        let ((mut fields, body), status) = (self.render(), self.status());
        fields.insert(CONNECTION, HeaderValue::from_static("close"));
        let mut out = Vec::with_capacity(512);
        out.extend_from_slice(b"HTTP/1.1 ");
        out.extend_from_slice(status.as_str().as_bytes());
        out.push(b' ');
        out.extend_from_slice(status.canonical_reason().unwrap_or("Error").as_bytes());
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
