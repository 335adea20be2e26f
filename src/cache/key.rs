//! Cache keys: scheme, authority, path, query, and the parts that the route adds.

use crate::config::CacheKey;
use crate::http::head::RequestFields;
use crate::http::target::respell_query;
use http::header::COOKIE;
use http::{HeaderMap, HeaderName};
use percent_encoding::percent_decode_str;
use siphasher::sip128::{Hasher128, SipHasher13};
use std::borrow::Cow;
use std::hash::Hasher;
use std::sync::LazyLock;

/// A cache key: 128 bits of a hash with a random key per process, so that no client can construct a collision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key(u128);

static SECRET: LazyLock<[u64; 2]> = LazyLock::new(|| {
    let random = || getrandom::u64().unwrap_or_else(|_| fastrand::u64(..));
    [random(), random()]
});

impl Key {
    /// Returns the bits, which are the key of the table.
    pub(super) fn bits(self) -> u128 {
        self.0
    }

    pub(super) fn from_bits(bits: u128) -> Key {
        Key(bits)
    }

    /// Returns a key that is derived from this one and further parts.
    pub(super) fn derive(self, tell: impl FnOnce(&mut dyn FnMut(&[u8]))) -> Key {
        let mut hasher = hasher();
        hasher.write(&self.0.to_le_bytes());
        tell(&mut |bytes| part(&mut hasher, bytes));
        finish(&hasher)
    }
}

/// Returns a hash of one text, keyed like the keys.
pub(super) fn hash_text(text: &[u8]) -> u64 {
    let mut hasher = hasher();
    hasher.write(text);
    hasher.finish128().h1
}

fn hasher() -> SipHasher13 {
    SipHasher13::new_with_keys(SECRET[0], SECRET[1])
}

/// Each part is preceded by its length, so that different lists of parts never have the same bytes.
fn part(hasher: &mut SipHasher13, bytes: &[u8]) {
    hasher.write(&(bytes.len() as u64).to_le_bytes());
    hasher.write(bytes);
}

/// A list of parts is preceded by its length.
fn parts(hasher: &mut SipHasher13, list: impl Iterator<Item = impl AsRef<[u8]>>) {
    let mut count = 0u64;
    for bytes in list {
        part(hasher, bytes.as_ref());
        count += 1;
    }
    hasher.write(&count.to_le_bytes());
}

fn finish(hasher: &SipHasher13) -> Key {
    let hash = hasher.finish128();
    Key(u128::from(hash.h1) << 64 | u128::from(hash.h2))
}

/// The target URI of a request, in the normal form of the proxy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TargetUri<'a> {
    /// The scheme of the client's request.
    pub(crate) scheme: &'a str,
    /// In lower case, without the default port of the scheme.
    pub(crate) authority: &'a str,
    pub(crate) path: &'a str,
    pub(crate) query: Option<&'a str>,
}

/// The rules of a route for its keys.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeyRules {
    ignored: Vec<Pattern>,
    only: Vec<Pattern>,
    sorted: bool,
    headers: Vec<HeaderName>,
    cookies: Vec<String>,
    /// The name of the route where several routes match requests for one URI; empty otherwise.
    route: String,
}

/// The name of a query parameter or cookie, or a prefix of one that ends in `*`.
#[derive(Clone, Debug)]
struct Pattern {
    text: String,
    is_prefix: bool,
}

impl Pattern {
    fn of(text: &str) -> Pattern {
        match text.strip_suffix('*') {
            Some(prefix) => Pattern { text: prefix.to_owned(), is_prefix: true },
            None => Pattern { text: text.to_owned(), is_prefix: false },
        }
    }

    fn matches(&self, name: &str) -> bool {
        if self.is_prefix { name.starts_with(&self.text) } else { name == self.text }
    }

    fn matches_bytes(&self, name: &[u8]) -> bool {
        let text = self.text.as_bytes();
        if self.is_prefix { name.starts_with(text) } else { name == text }
    }
}

/// The cookies whose presence makes a request bypass the cache.
#[derive(Clone, Debug, Default)]
pub(crate) struct BypassCookies(Vec<Pattern>);

impl BypassCookies {
    pub(crate) fn of<'a>(names: impl Iterator<Item = &'a str>) -> BypassCookies {
        BypassCookies(names.map(Pattern::of).collect())
    }

    /// Returns whether a request has one of the cookies.
    pub(crate) fn are_in(&self, fields: &HeaderMap) -> bool {
        !self.0.is_empty() && pairs(fields).any(|(name, _)| self.0.iter().any(|cookie| cookie.matches_bytes(name)))
    }
}

impl KeyRules {
    pub(crate) fn of(settings: &CacheKey) -> KeyRules {
        KeyRules {
            ignored: settings.ignore_query.iter().map(|name| Pattern::of(name)).collect(),
            only: settings.only_query.iter().map(|name| Pattern::of(name)).collect(),
            sorted: settings.sort_query,
            headers: settings.headers.clone(),
            cookies: settings.cookies.clone(),
            route: String::new(),
        }
    }

    /// Makes the name of the route a part of the key, where other routes match the same URIs.
    pub(crate) fn for_route_only(mut self, name: &str) -> KeyRules {
        name.clone_into(&mut self.route);
        self
    }

    /// Returns whether the key has further parts besides the URI.
    pub(crate) fn has_parts(&self) -> bool {
        !self.headers.is_empty() || !self.cookies.is_empty() || !self.route.is_empty()
    }

    /// Returns the key of the URI without further parts.
    pub(crate) fn of_uri(&self, target: TargetUri<'_>) -> Key {
        let mut hasher = self.begin(target);
        part(&mut hasher, b"");
        finish(&hasher)
    }

    fn begin(&self, target: TargetUri<'_>) -> SipHasher13 {
        let mut hasher = hasher();
        part(&mut hasher, target.scheme.as_bytes());
        part(&mut hasher, target.authority.as_bytes());
        part(&mut hasher, target.path.as_bytes());
        parts(&mut hasher, self.query(target.query).as_deref().map(str::as_bytes).into_iter());
        hasher
    }

    pub(crate) fn key(&self, target: TargetUri<'_>, fields: &RequestFields) -> Key {
        let mut hasher = self.begin(target);
        part(&mut hasher, self.route.as_bytes());
        for name in &self.headers {
            // All lines of the field are part of the key, as the node receives all of them.
            parts(&mut hasher, fields.values(name));
        }
        for name in &self.cookies {
            parts(&mut hasher, cookies(fields.plain(), name));
        }
        finish(&hasher)
    }

    /// Returns the part of a query that belongs to the key, in its normal spelling.
    pub(crate) fn query<'q>(&self, query: Option<&'q str>) -> Option<Cow<'q, str>> {
        let query = respell_query(query?);
        if self.ignored.is_empty() && self.only.is_empty() && !self.sorted {
            return Some(query);
        }
        let mut kept: Vec<&str> = query.split('&').filter(|parameter| self.counts(parameter)).collect();
        if self.sorted {
            kept.sort_by_key(|parameter| parameter.split('=').next());
        }
        // A query that has only ignored parameters counts as none.
        (!kept.is_empty()).then(|| Cow::Owned(kept.join("&")))
    }

    fn counts(&self, parameter: &str) -> bool {
        // A node may split at `;`, so that this is more than one parameter.
        if parameter.contains(';') {
            return true;
        }
        let name = parameter.split('=').next().unwrap_or_default();
        // Compared in its decoded form: another spelling is the same parameter.
        let name = percent_decode_str(name).decode_utf8_lossy();
        let among = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.matches(&name));
        !among(&self.ignored) && (self.only.is_empty() || among(&self.only))
    }

    /// Returns the URI by which stored responses are purged.
    pub(crate) fn uri(&self, target: TargetUri<'_>) -> String {
        let TargetUri { scheme, authority, path, .. } = target;
        match self.query(target.query) {
            Some(query) => [scheme, "://", authority, path, "?", &query].concat(),
            None => [scheme, "://", authority, path].concat(),
        }
    }
}

/// Returns the values of all cookies with a name.
fn cookies<'a>(fields: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a [u8]> {
    pairs(fields).filter_map(move |(known, value)| value.filter(|_| known == name.as_bytes()))
}

/// Returns all cookies: names, and values where there is a `=`.
fn pairs(fields: &HeaderMap) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
    let pairs = fields.get_all(COOKIE).iter().flat_map(|value| value.as_bytes().split(|&byte| byte == b';'));
    pairs.map(|pair| match pair.iter().position(|&byte| byte == b'=') {
        Some(equals) => (pair[..equals].trim_ascii(), Some(pair[equals + 1..].trim_ascii())),
        None => (pair.trim_ascii(), None),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn target(query: Option<&'static str>) -> TargetUri<'static> {
        TargetUri { scheme: "http", authority: "example.com", path: "/a", query }
    }

    fn rules(ignored: &[&str], only: &[&str], sorted: bool) -> KeyRules {
        let patterns = |texts: &[&str]| texts.iter().map(|text| Pattern::of(text)).collect();
        KeyRules { ignored: patterns(ignored), only: patterns(only), sorted, ..KeyRules::default() }
    }

    #[test]
    fn only_parameters_that_count_are_part_of_the_key() {
        for (rules, query, kept) in [
            (rules(&[], &[], false), Some("b=1&a=2"), Some("b=1&a=2")),
            (rules(&[], &[], true), Some("%7A=1&b=%7e"), Some("b=~&z=1")),
            (rules(&["utm_source"], &[], false), Some("utm_source=x&a=1"), Some("a=1")),
            (rules(&["utm_*"], &[], false), Some("a=1&utm_source=x&utm_id"), Some("a=1")),
            (rules(&["utm_*"], &[], false), Some("%75tm_source=x"), None),
            (rules(&["utm_*"], &[], false), Some(""), Some("")),
            (rules(&[], &["page"], false), Some("page=1&pages=2&x"), Some("page=1")),
            (rules(&[], &["p*"], true), Some("q=1&pb=2&pa=3&pb=1"), Some("pa=3&pb=2&pb=1")),
            (rules(&[], &[], true), None, None),
            (rules(&["utm_*"], &[], false), Some("utm_id=1;page=2"), Some("utm_id=1;page=2")),
        ] {
            assert_eq!(rules.query(query).as_deref(), kept, "{query:?}");
        }
    }

    #[test]
    fn what_differs_has_another_key() {
        let none = HeaderMap::new().into();
        let plain = KeyRules::default();
        let base = plain.key(target(None), &none);
        assert_eq!(plain.key(target(None), &none), base);
        for other in [
            TargetUri { scheme: "https", ..target(None) },
            TargetUri { authority: "example.com:8080", ..target(None) },
            TargetUri { authority: "example.org", ..target(None) },
            TargetUri { path: "/b", ..target(None) },
            target(Some("")),
            target(Some("a")),
        ] {
            assert_ne!(plain.key(other, &none), base, "{other:?}");
        }
    }

    #[test]
    fn chosen_fields_and_cookies_count_with_every_value() {
        let rules = KeyRules {
            headers: vec!["x-country".parse().unwrap()],
            cookies: vec!["lang".into()],
            ..KeyRules::default()
        };
        let key = |lines: &[(&'static str, &'static str)]| {
            let fields = lines.iter().map(|&(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)));
            rules.key(target(None), &fields.collect::<HeaderMap>().into())
        };
        let different = [
            key(&[]),
            key(&[("x-country", "de")]),
            key(&[("x-country", "fr")]),
            key(&[("x-country", "de"), ("x-country", "fr")]),
            key(&[("cookie", "lang=de")]),
            key(&[("cookie", "lang=fr")]),
            key(&[("cookie", "lang=de; lang=fr")]),
            key(&[("x-country", "")]),
            key(&[("cookie", "lang=")]),
        ];
        for (n, one) in different.iter().enumerate() {
            assert!(different[..n].iter().all(|other| other != one), "{n}");
        }
        assert_eq!(
            KeyRules::default().of_uri(target(None)),
            KeyRules::default().key(target(None), &HeaderMap::new().into())
        );
        assert_ne!(rules.of_uri(target(None)), key(&[]));
        let with_query = rules.key(target(Some("page=2")), &HeaderMap::new().into());
        assert_ne!(key(&[("x-country", "?page=2")]), with_query, "no part can pass for another");
        assert_eq!(key(&[("cookie", "lang =de")]), key(&[("cookie", "lang=de")]));
        assert_eq!(key(&[("cookie", "a=1; lang=de")]), key(&[("cookie", "lang=de"), ("accept", "*/*")]));
    }
}
