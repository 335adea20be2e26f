//! The entry of the pipeline: a request's one view and one form, read once and strictly, or why it is refused.

use super::problems::{ANSWERED_METHODS, too_large};
use crate::config::UnderscoresInHeaders;
use crate::http::fields::{self, TransferCoding, transfer_coding};
use crate::http::head::{BadHead, Marks, Peer, RequestHead, Underscores};
use crate::http::problem::{Problem, ProblemKind};
use crate::http::target::{BadTarget, normalize_path, normalize_query, parse_authority};
use http::header::{COOKIE, EXPECT, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Method, Uri, Version, request};
use std::borrow::Cow;

/// The normal form of a request's target, for routing, forwarding and keys.
#[derive(Debug, Default)]
pub(crate) struct Form<'a> {
    /// Lower case, without the port; empty where an HTTP/1.0 request names none.
    pub(crate) host: Cow<'a, str>,
    /// The `Host` that the head gets, where its own is not this authority. Taken when the head has it.
    pub(super) new_host: Option<HeaderValue>,
    /// The host with a port that is not the scheme's own; empty where an HTTP/1.0 request names none.
    pub(crate) authority: Cow<'a, str>,
    pub(crate) path: Cow<'a, str>,
    pub(crate) query: Option<Cow<'a, str>>,
    /// The length that was announced.
    pub(crate) content_length: Option<u64>,
    pub(crate) has_body: bool,
    pub(crate) has_expectation: bool,
    /// The client waits for `100 Continue` before it sends the body.
    pub(crate) expects_continue: bool,
}

/// The limits of a request.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) body: u64,
    /// `true` where the request has a body, if other means than fields tell it (HTTP/2).
    pub(crate) body_follows: Option<bool>,
}

/// The entry of the pipeline: makes the one view of a request that every later step reads. `uri` and `host` are the
/// request's own, apart from the head so that the form can borrow them while the head is changed.
pub(crate) fn enter<'a>(
    mut head: request::Parts,
    uri: &'a Uri,
    host: Option<&'a HeaderValue>,
    peer: Peer<'_>,
    bounds: Bounds,
) -> Result<(RequestHead, Form<'a>), Problem> {
    let mut form = Form::default();
    let marks = Marks::of(&head.headers);
    if marks.framing {
        fields::unify_content_length(&mut head.headers)
            .map_err(|bad| Problem::bad_request(ProblemKind::BadContentLength, bad.to_string()))?;
        form.read_framing(&head, bounds)?;
    } else {
        form.has_body = bounds.body_follows.unwrap_or(false);
    }
    let mut head = RequestHead::sanitise(head, &marks, peer).map_err(|bad| bad_head(&bad))?;
    form.read_target(&head, uri)?;
    form.read_host(&head, uri, host)?;
    if let Some(host) = form.new_host.take() {
        head.fields.set_host(host);
    }
    Ok((head, form))
}

/// Returns the configured treatment of names with `_`.
pub(crate) fn underscores(choice: UnderscoresInHeaders) -> Underscores {
    match choice {
        UnderscoresInHeaders::Drop => Underscores::Drop,
        UnderscoresInHeaders::Reject => Underscores::Reject,
        UnderscoresInHeaders::Allow => Underscores::Allow,
    }
}

impl<'a> Form<'a> {
    fn read_framing(&mut self, head: &request::Parts, bounds: Bounds) -> Result<(), Problem> {
        let coding = transfer_coding(&head.headers);
        if coding == TransferCoding::Unsupported {
            return Err(unsupported_coding());
        }
        self.content_length = content_length(&head.headers);
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
                return Err(Problem::new(ProblemKind::ExpectationFailed, detail).closing());
            }
            self.has_expectation = true;
            // An HTTP/1.0 client's expectation is to be ignored (RFC 9110 10.1.1).
            self.expects_continue = self.has_body && head.version >= Version::HTTP_11;
        }
        Ok(())
    }

    fn read_target(&mut self, head: &RequestHead, uri: &'a Uri) -> Result<(), Problem> {
        let method = &head.method;
        if *method == Method::CONNECT {
            let detail = "this proxy does not make CONNECT tunnels";
            return Err(Problem::method_not_allowed(detail, ANSWERED_METHODS).closing());
        }
        let is_http2 = head.version == Version::HTTP_2;
        let has_no_path = || uri.path_and_query().is_some_and(|target| target.as_str().starts_with('?'));
        let path = uri.path();
        self.path = match path {
            "*" if *method == Method::OPTIONS => Cow::Borrowed(path),
            // The authority-form is CONNECT's (RFC 9112 3.2.3).
            _ if uri.authority().is_some() && uri.scheme().is_none() => return Err(no_target()),
            // It has `:path` to itself (RFC 9113 8.3.1).
            _ if is_http2 && has_no_path() => return Err(no_target()),
            // RFC 9112 3.2.4.
            _ if *method == Method::OPTIONS && !is_http2 && is_authority_alone(uri) => Cow::Borrowed("*"),
            _ if path.starts_with('/') => normalize_path(path).map_err(bad_target)?,
            // An absolute-form target without a path.
            "" if uri.authority().is_some() => Cow::Borrowed("/"),
            _ => return Err(no_target()),
        };
        self.query = uri.query().map(normalize_query);
        Ok(())
    }

    fn read_host(&mut self, head: &RequestHead, uri: &'a Uri, host: Option<&'a HeaderValue>) -> Result<(), Problem> {
        let default_port = head.fields.facts.default_port();
        let host = host.and_then(|value| value.to_str().ok());
        let mut lines = head.fields.plain().get_all(HOST).iter();
        match (lines.next(), lines.next()) {
            // In HTTP/2 the target has the authority (RFC 9113 8.3.1).
            (None, _) if head.version == Version::HTTP_2 && uri.authority().is_some() => {}
            (None, _) if head.version >= Version::HTTP_11 => {
                return Err(Problem::bad_request(ProblemKind::BadHost, "the request has no Host field"));
            }
            (Some(_), Some(_)) => {
                return Err(Problem::bad_request(ProblemKind::BadHost, "the request has more than one Host field"));
            }
            (Some(_), None) if host.is_none() => {
                return Err(Problem::bad_request(ProblemKind::BadHost, "the Host field is not text"));
            }
            _ => {}
        }
        if let Some(scheme) = uri.scheme_str()
            && !matches!(scheme, "http" | "https")
        {
            return Err(Problem::bad_request(ProblemKind::BadTarget, "the target's scheme is neither http nor https"));
        }
        // The authority of an absolute-form target replaces Host (RFC 9112 3.2.2).
        let authority = uri.authority().map(http::uri::Authority::as_str);
        // A Host that the target overrides must still be a host.
        if let (Some(authority), Some(overridden)) = (authority, host) {
            let overridden = parse_authority(overridden, default_port).map_err(bad_target)?;
            // In HTTP/2 two that differ are ambiguous.
            let is_same =
                || parse_authority(authority, default_port).is_ok_and(|own| own.to_text() == overridden.to_text());
            if head.version == Version::HTTP_2 && !is_same() {
                return Err(Problem::bad_request(
                    ProblemKind::BadHost,
                    "the Host field and the target's authority differ",
                ));
            }
        }
        let Some(text) = authority.or(host) else { return Ok(()) };
        let parsed = parse_authority(text, default_port).map_err(bad_target)?;
        self.authority = if parsed.normal { Cow::Borrowed(text) } else { Cow::Owned(parsed.to_text()) };
        if authority.is_some() || !parsed.normal {
            let host = HeaderValue::from_str(&self.authority);
            self.new_host =
                Some(host.map_err(|_| Problem::bad_request(ProblemKind::BadHost, "the host is not a field value"))?);
        }
        self.host = parsed.host;
        Ok(())
    }
}

/// Joins the Cookie fields into which HTTP/2 may split one (RFC 9113 8.2.3).
pub(super) fn join_cookie_fields(fields: &mut HeaderMap) {
    let mut cookie_fields = fields.get_all(COOKIE).iter();
    let (Some(_), Some(_)) = (cookie_fields.next(), cookie_fields.next()) else { return };
    let all: Vec<&[u8]> = fields.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    // Values that were valid apart are so together.
    if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
        fields.insert(COOKIE, joined);
    }
}

/// Returns the announced length, which chunks go before (RFC 9112 6.3).
fn content_length(fields: &HeaderMap) -> Option<u64> {
    if fields.contains_key(TRANSFER_ENCODING) { None } else { fields::content_length(fields) }
}

fn no_target() -> Problem {
    Problem::bad_request(ProblemKind::BadTarget, "the request's target is neither a path nor a URI")
}

/// Returns whether a target is in absolute form and ends with its authority. `Uri` shows an empty path as `/`; an
/// explicit path begins where the authority ends.
fn is_authority_alone(uri: &Uri) -> bool {
    let (Some(authority), Some(target)) = (uri.authority(), uri.path_and_query()) else { return false };
    target.as_str() == "/" && authority.as_str().as_bytes().as_ptr_range().end != target.as_str().as_ptr()
}

/// Returns the 400 for an ambiguous or malformed head.
fn bad_head(bad: &BadHead) -> Problem {
    let kind = match bad {
        BadHead::ConnectionOption(_) => ProblemKind::BadConnectionOption,
        BadHead::Underscore(_) | BadHead::WhiteSpace(_) => ProblemKind::BadField,
    };
    Problem::bad_request(kind, bad.to_string())
}

fn bad_target(error: BadTarget) -> Problem {
    let kind = match error {
        BadTarget::Percent => ProblemKind::BadTarget,
        BadTarget::Host | BadTarget::Port => ProblemKind::BadHost,
    };
    Problem::bad_request(kind, error.to_string())
}

/// 501 for a transfer coding that is not exactly `chunked`.
pub(crate) fn unsupported_coding() -> Problem {
    let detail = "the only transfer coding that is understood is `chunked`";
    Problem::new(ProblemKind::UnsupportedTransferCoding, detail).closing()
}

#[cfg(test)]
mod tests {
    use super::super::hash_key::{ScopeSources, find_key};
    use super::super::route::{Query, Table};
    use super::*;
    use crate::cache::{KeyRules, TargetUri};
    use crate::config::Config;
    use crate::config::values::HashSource;
    use crate::http::head::RequestFields;
    use http::HeaderName;
    use proptest::prelude::*;
    use std::path::Path;

    const PROTECTED: [&str; 5] =
        ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-client-cert-subject", "host"];

    /// A head as a client may send it, over a connection as it may be.
    #[derive(Clone, Debug)]
    struct Sent {
        lines: Vec<(String, String)>,
        is_trusted: bool,
        is_secure: bool,
        certificate: Option<HeaderValue>,
    }

    fn sent() -> impl Strategy<Value = Sent> {
        let name = prop_oneof![
            prop::sample::select(&PROTECTED[..4]).prop_map(str::to_owned),
            Just("X_Forwarded_For".to_owned()),
            Just("x.client.cert.subject".to_owned()),
            Just("forwarded".to_owned()),
            Just("connection".to_owned()),
            Just("x-real-ip".to_owned()),
        ];
        let value = prop_oneof![
            Just("https".to_owned()),
            Just("CN=a".to_owned()),
            Just("CN=b".to_owned()),
            Just("x-any, close".to_owned()),
            Just("for=203.0.113.9;proto=https".to_owned()),
            "(10\\.0\\.0|203\\.0\\.113)\\.[12](, 203\\.0\\.113\\.[12])?",
            "[a-z ,]{0,6}",
        ];
        let certificate =
            prop::option::of(prop::sample::select(vec!["CN=a", "CN=b"]).prop_map(HeaderValue::from_static));
        (prop::collection::vec((name, value), 0..6), any::<bool>(), any::<bool>(), certificate)
            .prop_map(|(lines, is_trusted, is_secure, certificate)| Sent { lines, is_trusted, is_secure, certificate })
    }

    /// Returns the request for the steps, and the one for the node.
    fn enter_head(sent: &Sent) -> Option<(RequestHead, HeaderMap)> {
        let (mut head, ()) = http::Request::new(()).into_parts();
        head.headers.insert(HOST, HeaderValue::from_static("Example.com"));
        for (name, value) in &sent.lines {
            let name = HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes()).unwrap();
            head.headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        let (uri, host) = (head.uri.clone(), head.headers.get(HOST).cloned());
        let trusted = ["10.0.0.0/8".parse().unwrap()];
        let peer = Peer {
            address: "10.0.0.9".parse().unwrap(),
            is_secure: sent.is_secure,
            certificate: sent.certificate.as_ref(),
            trusted_proxies: if sent.is_trusted { &trusted } else { &[] },
            underscores: Underscores::Drop,
            protected: &[],
        };
        let bounds = Bounds { body: 0, body_follows: None };
        let (head, _) = enter(head, &uri, host.as_ref(), peer, bounds).ok()?;
        let (node, _) = head.fields.clone().for_node(&HeaderValue::from_static("10.0.0.9"));
        Some((head, node))
    }

    fn lines(fields: &HeaderMap, name: &str) -> Vec<Vec<u8>> {
        fields.get_all(name).iter().map(|value| value.as_bytes().to_vec()).collect()
    }

    fn matches_route(fields: &RequestFields, name: &str, value: &str) -> bool {
        let text = format!(
            "listeners: [{{ name: l, address: 127.0.0.1:1 }}]\npools: {{ p: {{ nodes: [] }} }}\nroutes: [{{ name: r, pool: p, headers: {{ {name}: \"{value}\" }} }}]"
        );
        let (config, _) = Config::parse(Path::new("t.yaml"), &text, &|_| None).unwrap();
        let table = Table::new(&config.settings.routes);
        table.find(Query { host: "example.com", path: "/", method: &Method::GET, fields }).is_some()
    }

    proptest! {
        /// Routing, limits, scopes, cache keys, hash keys and the node use the same values of the protected fields.
        #[test]
        fn all_steps_see_what_the_node_sees(one in sent(), other in sent()) {
            let (Some((one_head, one_node)), Some((other_head, other_node))) = (enter_head(&one), enter_head(&other))
            else { return Ok(()) };
            let form = Form::default();
            let target = TargetUri { scheme: "http", authority: "a", path: "/", query: None };
            for name in PROTECTED {
                let field: HeaderName = name.parse().unwrap();
                let (ours, theirs) = (lines(&one_node, name), lines(&other_node, name));
                let seen: Vec<Vec<u8>> = one_head.fields.values(&field).map(|value| value.into_owned()).collect();
                prop_assert_eq!(&seen, &ours, "{} as the steps see it", name);
                let is_same = ours == theirs;
                let source = [HashSource::Header(field.clone())];
                let key = |head: &RequestHead| find_key(&source, &form, &head.fields).map(|found| found.key.into_owned());
                prop_assert_eq!(key(&one_head), ours.first().cloned().filter(|line| !line.is_empty()));
                let settings = crate::config::read::default_value(&format!("{{ headers: [{name}] }}"));
                let rules = KeyRules::of(&settings);
                prop_assert_eq!(rules.key(target, &one_head.fields) == rules.key(target, &other_head.fields), is_same);
                let subject = crate::idempotency::Subject {
                    namespace: String::new(), method: String::new(), authority: String::new(), path: String::new(), key: String::new(),
                };
                let scopes = ScopeSources::of(&source);
                let id = |head: &RequestHead| scopes.read(&form, &head.fields).map(|scope| subject.identify(&scope));
                let said = |lines: &[Vec<u8>]| lines.iter().filter(|line| !line.is_empty()).cloned().collect::<Vec<_>>();
                prop_assert_eq!(id(&one_head) == id(&other_head), said(&ours) == said(&theirs));
                for value in ["CN=a", "https", "10.0.0.9", "example.com"] {
                    let is_there = ours.iter().any(|line| line == value.as_bytes());
                    prop_assert_eq!(matches_route(&one_head.fields, name, value), is_there, "{}: {}", name, value);
                }
            }
        }

        /// Whatever an untrusted client sends, the protected fields have the facts of its connection.
        #[test]
        fn a_stranger_is_what_its_connection_is(sent in sent()) {
            let sent = Sent { is_trusted: false, ..sent };
            let Some((head, node)) = enter_head(&sent) else { return Ok(()) };
            prop_assert_eq!(lines(&node, "x-forwarded-for"), vec![b"10.0.0.9".to_vec()]);
            prop_assert_eq!(lines(&node, "x-forwarded-proto"), vec![if sent.is_secure { b"https".to_vec() } else { b"http".to_vec() }]);
            prop_assert_eq!(lines(&node, "x-forwarded-host"), vec![b"example.com".to_vec()]);
            prop_assert_eq!(node.get("x-client-cert-subject"), sent.certificate.as_ref());
            prop_assert_eq!(head.fields.facts.address.to_string(), "10.0.0.9");
            prop_assert!(!node.keys().any(|name| name.as_str().contains(['_', '.'])));
        }
    }
}
