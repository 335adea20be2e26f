//! What a request says: the same key with another fingerprint is another request by mistake.

use super::identity::add;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use sha2::{Digest, Sha256};
use std::fmt;

/// SHA-256 of query, content type and body.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fingerprint(pub(crate) [u8; 32]);

/// A fingerprint that lacks the body.
#[derive(Clone)]
pub(crate) struct Fingerprinting(Sha256);

impl Fingerprint {
    /// The fingerprint of a request whose body is still to come. No query and an empty one differ, and
    /// so do no content type and an empty one.
    pub(crate) fn begin(query: Option<&str>, fields: &HeaderMap) -> Fingerprinting {
        let mut hash = Sha256::new();
        match query {
            None => hash.update([0]),
            Some(query) => {
                hash.update([1]);
                add(&mut hash, query.as_bytes());
            }
        }
        for value in fields.get_all(CONTENT_TYPE) {
            hash.update([1]);
            add(&mut hash, value.as_bytes());
        }
        hash.update([0]);
        Fingerprinting(hash)
    }
}

impl Fingerprinting {
    /// Adds the body.
    pub(crate) fn finish(mut self, body: &[u8]) -> Fingerprint {
        self.0.update(body);
        Fingerprint(self.0.finalize().into())
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
    use http::HeaderValue;

    #[test]
    fn every_difference_shows() {
        let with = |query, types: &[&str], body: &str| {
            let types = types.iter().map(|value| (CONTENT_TYPE, HeaderValue::from_str(value).unwrap()));
            Fingerprint::begin(query, &types.collect()).finish(body.as_bytes()).to_string()
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
}
