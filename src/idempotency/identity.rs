//! The identity of a request with a key: namespace, method, authority, path, key, and the caller.
//!
//! The route's name plays no part: to rename a route must not run its payments again.

use sha2::{Digest, Sha256};
use std::fmt;

/// The identity of a record. It begins with a hash of the key, so that all records of a key are adjacent.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Id(pub(crate) [u8; Id::LENGTH]);

impl Id {
    pub(crate) const LENGTH: usize = 32;
    /// Bytes of the key's hash.
    pub(crate) const PREFIX: usize = 8;

    /// Returns the beginning of the identity of every record with this key.
    pub(crate) fn prefix(key: &str) -> [u8; Id::PREFIX] {
        let mut prefix = [0; Id::PREFIX];
        prefix.copy_from_slice(&Sha256::digest(key)[..Id::PREFIX]);
        prefix
    }

    /// Returns the identity from its text of 64 hexadecimal digits.
    pub(crate) fn parse(text: &str) -> Option<Id> {
        let mut id = [0; Id::LENGTH];
        if text.len() != 2 * Id::LENGTH || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        for (byte, digits) in id.iter_mut().zip(text.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        }
        Some(Id(id))
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The request that a record is about, in words for operators.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Subject {
    pub(crate) namespace: String,
    pub(crate) method: String,
    /// Host and port, normalised.
    pub(crate) authority: String,
    /// Normalised.
    pub(crate) path: String,
    pub(crate) key: String,
}

impl Subject {
    /// Returns the identity of this caller's record.
    pub(crate) fn identify(&self, scope: &Scope) -> Id {
        let mut hash = Sha256::new();
        for part in [&self.namespace, &self.method, &self.authority, &self.path, &self.key] {
            add(&mut hash, part.as_bytes());
        }
        hash.update(scope.hash.clone().finalize());
        let mut id = [0; Id::LENGTH];
        id[..Id::PREFIX].copy_from_slice(&Id::prefix(&self.key));
        id[Id::PREFIX..].copy_from_slice(&hash.finalize()[..Id::LENGTH - Id::PREFIX]);
        Id(id)
    }
}

/// The digest of the sources that identify the caller.
#[derive(Clone, Default)]
pub(crate) struct Scope {
    hash: Sha256,
    found: bool,
}

impl Scope {
    /// Adds one source with all its values; without any it counts as absent.
    pub(crate) fn add<'a>(&mut self, source: &str, values: impl Iterator<Item = &'a [u8]>) {
        let mut count = 0u64;
        let mut hash = Sha256::new();
        for value in values.filter(|value| !value.is_empty()) {
            count += 1;
            add(&mut hash, value);
        }
        self.found |= count > 0;
        add(&mut self.hash, source.as_bytes());
        self.hash.update(count.to_be_bytes());
        self.hash.update(hash.finalize());
    }

    /// Returns whether any source was present.
    pub(crate) fn is_known(&self) -> bool {
        self.found
    }
}

/// Adds a part with its length, so that no two lists of parts are equal.
pub(super) fn add(hash: &mut Sha256, part: &[u8]) {
    hash.update((part.len() as u64).to_be_bytes());
    hash.update(part);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn subject(parts: [&str; 5]) -> Subject {
        let [namespace, method, authority, path, key] = parts.map(str::to_owned);
        Subject { namespace, method, authority, path, key }
    }

    fn scope(values: &[&str]) -> Scope {
        let mut scope = Scope::default();
        scope.add("header:authorization", values.iter().map(|value| value.as_bytes()));
        scope
    }

    #[test]
    fn every_part_makes_another_record() {
        let parts = ["default", "POST", "api.example.com", "/payments", "k1"];
        let id = subject(parts).identify(&scope(&["Bearer a"]));
        assert_eq!(id, subject(parts).identify(&scope(&["Bearer a"])));
        for part in 0..5 {
            let mut other = parts;
            other[part] = "x";
            assert_ne!(id, subject(other).identify(&scope(&["Bearer a"])), "{part}");
        }
        for other in [&["Bearer b"][..], &[], &["Bearer a", "Bearer a"], &["Bearer", "a"]] {
            assert_ne!(id, subject(parts).identify(&scope(other)), "{other:?}");
        }
        assert!(id.0.starts_with(&Id::prefix("k1")));
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        let none = Scope::default();
        let one = subject(["a", "bc", "d", "e", "k"]).identify(&none);
        assert_ne!(one, subject(["ab", "c", "d", "e", "k"]).identify(&none));
        let (mut first, mut second) = (Scope::default(), Scope::default());
        first.add("header:a", [&b"1"[..]].into_iter());
        first.add("header:b", std::iter::empty());
        second.add("header:a", std::iter::empty());
        second.add("header:b", [&b"1"[..]].into_iter());
        let of = |scope| subject(["a", "b", "c", "d", "k"]).identify(&scope);
        assert_ne!(of(first), of(second));
    }

    #[test]
    fn a_caller_without_any_scope_field_is_unknown() {
        assert!(!Scope::default().is_known());
        assert!(!scope(&[]).is_known());
        assert!(!scope(&[""]).is_known());
        assert!(scope(&["", "Bearer a"]).is_known());
    }

    proptest! {
        #[test]
        fn an_id_reads_as_it_was_written(bytes: [u8; 32]) {
            prop_assert_eq!(Id::parse(&Id(bytes).to_string()), Some(Id(bytes)));
        }

        #[test]
        fn any_text_is_an_id_or_none(text in "\\PC{0,80}") {
            if let Some(id) = Id::parse(&text) {
                prop_assert_eq!(id.to_string(), text.to_ascii_lowercase());
            }
        }
    }
}
