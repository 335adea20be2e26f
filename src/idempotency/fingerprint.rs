//! The fingerprint of a request: the same key with another fingerprint is a mistake of the client.

use super::canonical::Format;
use super::identity::add;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue};
use sha2::{Digest, Sha256};
use std::fmt;

/// SHA-256 of query, content type and body.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fingerprint(pub(crate) [u8; 32]);

/// A fingerprint that lacks the body.
#[derive(Clone)]
pub(crate) struct Fingerprinting {
    hash: Sha256,
    /// For a canonical fingerprint: the format, and the hash of the parts before the body.
    canonical: Option<(Format, Sha256)>,
    /// Tells the two kinds apart.
    is_exact: bool,
}

impl Fingerprint {
    /// The fingerprint of a request whose body is still to come, byte by byte. No query and an empty one differ, and
    /// so do no content type and an empty one.
    pub(crate) fn exact(query: Option<&str>, fields: &HeaderMap) -> Fingerprinting {
        Fingerprinting { hash: begin(query, types(fields)), canonical: None, is_exact: true }
    }

    /// Returns a fingerprint that ignores differences without meaning in known formats; see [`Format`].
    pub(crate) fn canonical(query: Option<&str>, fields: &HeaderMap) -> Fingerprinting {
        let canonical = Format::of(fields).map(|format| {
            let hash = match &format {
                Format::Multipart { content_type, .. } => begin(query, std::iter::once(&content_type[..])),
                Format::Json => begin(query, types(fields)),
            };
            (format, hash)
        });
        Fingerprinting { hash: begin(query, types(fields)), canonical, is_exact: false }
    }
}

fn types(fields: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    fields.get_all(CONTENT_TYPE).iter().map(HeaderValue::as_bytes)
}

fn begin<'a>(query: Option<&str>, types: impl Iterator<Item = &'a [u8]>) -> Sha256 {
    let mut hash = Sha256::new();
    match query {
        None => hash.update([0]),
        Some(query) => {
            hash.update([1]);
            add(&mut hash, query.as_bytes());
        }
    }
    for value in types {
        hash.update([1]);
        add(&mut hash, value);
    }
    hash.update([0]);
    hash
}

impl Fingerprinting {
    /// Adds the body.
    pub(crate) fn finish(mut self, body: &[u8]) -> Fingerprint {
        if let Some((format, mut hash)) = self.canonical
            && let Some(canonical) = format.canonical(body)
        {
            hash.update([1]);
            hash.update(canonical);
            return Fingerprint(hash.finalize().into());
        }
        // A body that does not parse as its media type is hashed byte by byte, with the complete `Content-Type`.
        if !self.is_exact {
            self.hash.update([2]);
        }
        self.hash.update(body);
        Fingerprint(self.hash.finalize().into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_difference_shows() {
        let with = |query, types: &[&str], body: &str| {
            let types = types.iter().map(|value| (CONTENT_TYPE, HeaderValue::from_str(value).unwrap()));
            Fingerprint::exact(query, &types.collect()).finish(body.as_bytes()).to_string()
        };
        let mut all = vec![
            with(None, &["text/plain"], "a=1"),
            with(Some(""), &["text/plain"], "a=1"),
            with(Some("a=1"), &["text/plain"], ""),
            with(Some("a=2"), &["text/plain"], ""),
            with(None, &["text/plain"], "a=2"),
            with(None, &["text/html"], "a=1"),
            with(None, &[""], "a=1"),
            with(None, &[], "a=1"),
            with(None, &["text/plain", "text/plain"], "a=1"),
            with(None, &["text/plain"], ""),
        ];
        assert_eq!(all[0], with(None, &["text/plain"], "a=1"));
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 10);
    }

    #[test]
    fn a_canonical_fingerprint_overlooks_what_carries_no_meaning() {
        let with = |content_type: &str, body: &str| {
            let types = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_str(content_type).unwrap())]);
            Fingerprint::canonical(None, &types).finish(body.as_bytes())
        };
        let json = |body| with("application/json", body);
        assert_eq!(json(r#"{"a":1,"b":2}"#), json(r#"{ "b": 2, "a": 1 }"#));
        assert_ne!(json(r#"{"a":1,"b":2}"#), json(r#"{"a":1,"b":3}"#));
        assert_ne!(json("{"), json("{ "), "what is no JSON counts byte by byte");
        assert_ne!(json("{}"), with("application/problem+json", "{}"));
        assert_ne!(with("text/plain", "{}"), with("text/plain", "{ }"));
        let part = |boundary: &str| {
            with(
                &format!("multipart/form-data; boundary={boundary}"),
                &format!("--{boundary}\r\n\r\nx\r\n--{boundary}--\r\n"),
            )
        };
        assert_eq!(part("one"), part("other"));
        // Its line endings are not those of the format.
        let both = "--one\n\n1\n--one--\n--two\n\n1000\n--two--\n";
        let of = |boundary: &str| with(&format!("multipart/form-data; boundary={boundary}"), both);
        assert_ne!(of("one"), of("two"));
    }
}
