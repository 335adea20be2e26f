//! A request's one form: what it asks for, read once and strictly, or why it is refused.

use crate::http::fields::{self, TransferCoding, transfer_coding};
use crate::http::problem::Problem;
use crate::http::target::{BadTarget, normalize_path, parse_authority};
use http::header::{CONTENT_LENGTH, COOKIE, EXPECT, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version, request};
use std::borrow::Cow;

/// What a request asks for, in the form in which routing, forwarding and keys see it.
#[derive(Debug, Default)]
pub(crate) struct Form<'a> {
    /// Lower case, without the port; empty where an HTTP/1.0 request names none.
    pub(crate) host: Cow<'a, str>,
    /// The host with a port that is not the scheme's own; the `Host` that goes to the node. `None`
    /// where the request's own `Host` says just that.
    pub(crate) new_host: Option<String>,
    /// The host with a port that is not the scheme's own; empty where an HTTP/1.0 request names none.
    pub(crate) authority: Cow<'a, str>,
    pub(crate) path: Cow<'a, str>,
    pub(crate) query: Option<&'a str>,
    /// The length that was announced.
    pub(crate) content_length: Option<u64>,
    pub(crate) has_body: bool,
    /// The client waits for `100 Continue` before it sends the body.
    pub(crate) expects_continue: bool,
}

/// What bounds a request.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) body: u64,
    pub(crate) default_port: u16,
    /// Whether a body follows, where that is known by other means than fields (HTTP/2).
    pub(crate) body_follows: Option<bool>,
}

impl<'a> Form<'a> {
    /// Reads a request's head. `uri` is the request's own, apart from the head so that it can be
    /// borrowed while the head is changed.
    pub(crate) fn read(
        head: &request::Parts,
        uri: &'a Uri,
        host: Option<&'a str>,
        bounds: Bounds,
    ) -> Result<Form<'a>, Problem> {
        let mut form = Form { query: uri.query(), ..Form::default() };
        form.read_framing(head, bounds)?;
        form.read_target(&head.method, uri)?;
        form.read_host(head, uri, host, bounds.default_port)?;
        Ok(form)
    }

    fn read_framing(&mut self, head: &request::Parts, bounds: Bounds) -> Result<(), Problem> {
        let coding = transfer_coding(&head.headers);
        if coding == TransferCoding::Unsupported {
            return Err(unsupported_coding());
        }
        self.content_length = content_length(&head.headers)?;
        self.has_body = match self.content_length {
            Some(length) => length > 0,
            None => coding == TransferCoding::Chunked || bounds.body_follows.unwrap_or(false),
        };
        if self.content_length.is_some_and(|length| length > bounds.body) {
            return Err(too_large(bounds.body));
        }
        if let Some(expectation) = head.headers.get(EXPECT) {
            if !expectation.as_bytes().eq_ignore_ascii_case(b"100-continue") {
                let detail = "only the expectation `100-continue` is supported";
                return Err(Problem::new(
                    StatusCode::EXPECTATION_FAILED,
                    "expectation-failed",
                    "http_request_error",
                    detail,
                )
                .closing());
            }
            // An HTTP/1.0 client's expectation is to be ignored (RFC 9110 10.1.1).
            self.expects_continue = self.has_body && head.version >= Version::HTTP_11;
        }
        Ok(())
    }

    fn read_target(&mut self, method: &Method, uri: &'a Uri) -> Result<(), Problem> {
        if *method == Method::CONNECT {
            let detail = "this proxy does not make CONNECT tunnels";
            return Err(Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method-not-allowed",
                "http_request_denied",
                detail,
            )
            .closing());
        }
        let path = uri.path();
        self.path = match path {
            "*" if *method == Method::OPTIONS => Cow::Borrowed(path),
            _ if path.starts_with('/') => normalize_path(path).map_err(bad_target)?,
            // An absolute-form target without a path.
            "" if uri.authority().is_some() => Cow::Borrowed("/"),
            _ => return Err(Problem::bad_request("bad-target", "the request's target is neither a path nor a URI")),
        };
        Ok(())
    }

    fn read_host(
        &mut self,
        head: &request::Parts,
        uri: &'a Uri,
        host: Option<&'a str>,
        default_port: u16,
    ) -> Result<(), Problem> {
        let mut lines = head.headers.get_all(HOST).iter();
        match (lines.next(), lines.next()) {
            // HTTP/2 says it in the target (RFC 9113 8.3.1).
            (None, _) if head.version == Version::HTTP_2 && uri.authority().is_some() => {}
            (None, _) if head.version >= Version::HTTP_11 => {
                return Err(Problem::bad_request("bad-host", "the request has no Host field"));
            }
            (Some(_), Some(_)) => {
                return Err(Problem::bad_request("bad-host", "the request has more than one Host field"));
            }
            (Some(_), None) if host.is_none() => {
                return Err(Problem::bad_request("bad-host", "the Host field is not text"));
            }
            _ => {}
        }
        if let Some(scheme) = uri.scheme_str()
            && !matches!(scheme, "http" | "https")
        {
            return Err(Problem::bad_request("bad-target", "the target's scheme is neither http nor https"));
        }
        // The authority of an absolute-form target replaces Host (RFC 9112 3.2.2).
        let authority = uri.authority().map(http::uri::Authority::as_str);
        // A Host that the target overrides must still be a host.
        if let (Some(authority), Some(overridden)) = (authority, host) {
            let overridden = parse_authority(overridden, default_port).map_err(bad_target)?;
            // In HTTP/2 two that differ are two meanings.
            let is_same =
                || parse_authority(authority, default_port).is_ok_and(|own| own.to_text() == overridden.to_text());
            if head.version == Version::HTTP_2 && !is_same() {
                return Err(Problem::bad_request("bad-host", "the Host field and the target's authority differ"));
            }
        }
        let Some(text) = authority.or(host) else { return Ok(()) };
        let parsed = parse_authority(text, default_port).map_err(bad_target)?;
        self.authority = Cow::Borrowed(text);
        if authority.is_some() || !parsed.normal {
            let normal = parsed.to_text();
            self.authority = Cow::Owned(normal.clone());
            self.new_host = Some(normal);
        }
        self.host = parsed.host;
        Ok(())
    }
}

/// Joins the pieces in which HTTP/2 may send a Cookie field (RFC 9113 8.2.3): nodes know it as one.
pub(super) fn crumbs_to_one(fields: &mut HeaderMap) {
    let mut crumbs = fields.get_all(COOKIE).iter();
    let (Some(_), Some(_)) = (crumbs.next(), crumbs.next()) else { return };
    let all: Vec<&[u8]> = fields.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    // Values that were valid apart are so together.
    if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
        fields.insert(COOKIE, joined);
    }
}

/// The announced length; hyper has refused what is no number and joined equal ones.
fn content_length(fields: &HeaderMap) -> Result<Option<u64>, Problem> {
    if fields.contains_key(TRANSFER_ENCODING) {
        return Ok(None);
    }
    match fields::content_length(fields) {
        None if fields.contains_key(CONTENT_LENGTH) => {
            Err(Problem::bad_request("bad-content-length", "the Content-Length is not a number"))
        }
        length => Ok(length),
    }
}

fn bad_target(error: BadTarget) -> Problem {
    let kind = match error {
        BadTarget::Percent => "bad-target",
        BadTarget::Host | BadTarget::Port => "bad-host",
    };
    Problem::bad_request(kind, error.to_string())
}

/// 413 for a body over the limit.
pub(crate) fn too_large(limit: u64) -> Problem {
    let detail = format!("the request's body is larger than {limit} bytes");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "content-too-large", "http_request_error", detail).closing()
}

/// 501 for a transfer coding that is not exactly `chunked`.
pub(crate) fn unsupported_coding() -> Problem {
    let detail = "the only transfer coding that is understood is `chunked`";
    Problem::new(StatusCode::NOT_IMPLEMENTED, "unsupported-transfer-coding", "http_request_error", detail).closing()
}
