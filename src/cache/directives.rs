//! `Cache-Control` of responses and requests (RFC 9111 5.2), and the targeted fields that replace it for this cache
//! (RFC 9213).

use crate::http::fields::{items, list_has};
use http::header::{CACHE_CONTROL, PRAGMA};
use http::{HeaderMap, HeaderName, HeaderValue};
use std::borrow::Cow;

/// Targeted fields that replace `Cache-Control` and `Expires`, in the order of precedence. [`SURROGATE_CONTROL`] comes
/// after them.
const TARGETED: [HeaderName; 2] =
    [HeaderName::from_static("ringway-cache-control"), HeaderName::from_static("cdn-cache-control")];

/// The targeted field of the Edge Architecture Specification: `max-age=60+30, content="ESI/1.0"`.
const SURROGATE_CONTROL: HeaderName = HeaderName::from_static("surrogate-control");

/// The largest number of seconds; greater ones count as this (RFC 9111 1.2.2).
const MAX_SECONDS: u32 = 1 << 31;

/// The `Cache-Control` of a response; times in seconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResponseDirectives {
    pub(crate) no_store: bool,
    pub(crate) no_cache: bool,
    pub(crate) private: bool,
    pub(crate) public: bool,
    pub(crate) must_revalidate: bool,
    pub(crate) proxy_revalidate: bool,
    pub(crate) must_understand: bool,
    pub(crate) max_age: Option<u32>,
    pub(crate) s_maxage: Option<u32>,
    pub(crate) stale_while_revalidate: Option<u32>,
    pub(crate) stale_if_error: Option<u32>,
    /// The fields that `no-cache="..."` or `private="..."` name; they are not stored.
    pub(crate) withheld: Vec<HeaderName>,
    /// The directives come from a targeted field, so `Expires` does not count.
    pub(crate) targeted: bool,
}

/// The `Cache-Control` of a request; times in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RequestDirectives {
    pub(crate) no_store: bool,
    pub(crate) no_cache: bool,
    pub(crate) only_if_cached: bool,
    pub(crate) max_age: Option<u32>,
    pub(crate) min_fresh: Option<u32>,
    /// `u32::MAX` for a directive without a value: any staleness.
    pub(crate) max_stale: Option<u32>,
}

/// The argument of a directive, after `=`.
enum Argument<'a> {
    None,
    Text(Cow<'a, [u8]>),
    /// An argument that the grammar does not allow, such as one after white space.
    Malformed,
}

impl Argument<'_> {
    /// Returns a number of seconds; an invalid one is 0, which makes the response stale (RFC 9111 4.2.1).
    fn seconds(&self) -> u32 {
        match self {
            Argument::Text(digits) if !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) => {
                std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()).unwrap_or(MAX_SECONDS)
            }
            _ => 0,
        }
        .min(MAX_SECONDS)
    }

    fn names(&self) -> Option<Vec<HeaderName>> {
        match self {
            Argument::Text(list) => Some(
                list.split(|&byte| byte == b',')
                    .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
                    .collect(),
            ),
            Argument::None | Argument::Malformed => None,
        }
    }
}

impl ResponseDirectives {
    /// Returns the directives of the first field that applies to this cache.
    pub(crate) fn of(fields: &HeaderMap) -> ResponseDirectives {
        if let Some(targeted) = TARGETED.iter().find_map(|name| ResponseDirectives::targeted(fields, name)) {
            return targeted;
        }
        if let Some(surrogate) = ResponseDirectives::surrogate(fields) {
            return surrogate;
        }
        let mut found = ResponseDirectives::default();
        for value in fields.get_all(CACHE_CONTROL) {
            each(value.as_bytes(), |name, argument| found.take(name, &argument));
        }
        found
    }

    /// Returns the directives of a targeted field; `None` where it is not a valid structured-field dictionary.
    fn targeted(fields: &HeaderMap, name: &HeaderName) -> Option<ResponseDirectives> {
        let lines: Vec<&[u8]> = fields.get_all(name).iter().map(HeaderValue::as_bytes).collect();
        if lines.is_empty() {
            return None;
        }
        let dictionary = sfv::Parser::new(&lines.join(&b", "[..])).parse::<sfv::Dictionary>().ok()?;
        if dictionary.is_empty() {
            return None;
        }
        let mut found = ResponseDirectives { targeted: true, ..ResponseDirectives::default() };
        for (key, member) in &dictionary {
            let argument = match member {
                sfv::ListEntry::Item(item) => match &item.bare_item {
                    sfv::BareItem::Boolean(true) => Argument::None,
                    sfv::BareItem::Boolean(false) => continue,
                    sfv::BareItem::Integer(number) => Argument::Text(number.to_string().into_bytes().into()),
                    // Strings are lists of field names only: a number of seconds is never a string.
                    sfv::BareItem::String(names) if matches!(key.as_str(), "no-cache" | "private") => {
                        Argument::Text(names.as_str().as_bytes().into())
                    }
                    _ => Argument::Malformed,
                },
                sfv::ListEntry::InnerList(_) => Argument::Malformed,
            };
            found.take(key.as_str().as_bytes(), &argument);
        }
        Some(found)
    }

    /// Returns the directives of `Surrogate-Control` for all surrogates or for this one by its name.
    fn surrogate(fields: &HeaderMap) -> Option<ResponseDirectives> {
        let mut found = ResponseDirectives { targeted: true, ..ResponseDirectives::default() };
        let mut is_meant = false;
        for value in fields.get_all(SURROGATE_CONTROL) {
            each(value.as_bytes(), |name, argument| {
                let (name, mut rest) = cut(name, b';');
                let text = match &argument {
                    Argument::Text(text) => {
                        let (text, after) = cut(text, b';');
                        rest = if rest.is_some() { rest } else { after };
                        Some(text)
                    }
                    Argument::None | Argument::Malformed => None,
                };
                if rest.is_some_and(|target| !target.trim_ascii().eq_ignore_ascii_case(b"ringway")) {
                    return;
                }
                match (&*name.trim_ascii().to_ascii_lowercase(), text) {
                    (b"no-store" | b"no-store-remote", _) => found.no_store = true,
                    (b"max-age", text) => {
                        // The seconds after `+` are the time for which it may be served stale.
                        let (fresh, stale) = cut(text.unwrap_or_default(), b'+');
                        let seconds = |text: &[u8]| Argument::Text(text.to_vec().into()).seconds();
                        let fresh = seconds(fresh.trim_ascii());
                        found.max_age = Some(found.max_age.map_or(fresh, |known| known.min(fresh)));
                        if let Some(stale) = stale {
                            found.stale_while_revalidate = Some(seconds(stale.trim_ascii()));
                        }
                    }
                    // Directives of `Cache-Control` keep their meaning, so that none that forbids is ignored.
                    (b"private" | b"no-cache" | b"must-revalidate" | b"proxy-revalidate", _) => {
                        found.take(name.trim_ascii(), &argument);
                    }
                    (b"s-maxage" | b"stale-while-revalidate" | b"stale-if-error" | b"public", _) => {
                        found.take(name.trim_ascii(), &argument);
                    }
                    _ => return,
                }
                is_meant = true;
            });
        }
        is_meant.then_some(found)
    }

    /// Returns the directives without those that the configuration ignores.
    pub(crate) fn without(mut self, ignored: Ignored) -> ResponseDirectives {
        self.private &= !ignored.private;
        self.no_cache &= !ignored.no_cache;
        self.no_store &= !ignored.no_store;
        self
    }

    fn take(&mut self, name: &[u8], argument: &Argument<'_>) {
        // Of repeated directives the most restrictive one counts.
        let shortest = |known: &mut Option<u32>| {
            let seconds = argument.seconds();
            *known = Some(known.map_or(seconds, |known| known.min(seconds)));
        };
        match &*name.to_ascii_lowercase() {
            b"no-store" => self.no_store = true,
            b"no-cache" => match argument.names() {
                Some(names) => self.withheld.extend(names),
                None => self.no_cache = true,
            },
            b"private" => match argument.names() {
                Some(names) => self.withheld.extend(names),
                None => self.private = true,
            },
            b"public" => self.public = true,
            b"must-revalidate" => self.must_revalidate = true,
            b"proxy-revalidate" => self.proxy_revalidate = true,
            b"must-understand" => self.must_understand = true,
            b"max-age" => shortest(&mut self.max_age),
            b"s-maxage" => shortest(&mut self.s_maxage),
            b"stale-while-revalidate" => shortest(&mut self.stale_while_revalidate),
            b"stale-if-error" => shortest(&mut self.stale_if_error),
            _ => {}
        }
    }

    /// Returns whether the response must never be served stale (RFC 9111 4.2.4). With `allows_s_maxage`, `s-maxage`
    /// does not forbid it where the response has stale directives of its own.
    pub(crate) fn forbids_stale(&self, allows_s_maxage: bool) -> bool {
        self.must_revalidate
            || self.proxy_revalidate
            || self.no_cache
            || (self.s_maxage.is_some() && !(allows_s_maxage && self.says_how_stale()))
    }

    fn says_how_stale(&self) -> bool {
        self.stale_while_revalidate.is_some() || self.stale_if_error.is_some()
    }
}

/// Directives of responses that the configuration ignores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ignored {
    pub(crate) private: bool,
    pub(crate) no_cache: bool,
    pub(crate) no_store: bool,
}

/// Returns the text before a separator, and the text after it.
fn cut(text: &[u8], separator: u8) -> (&[u8], Option<&[u8]>) {
    match text.iter().position(|&byte| byte == separator) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    }
}

impl RequestDirectives {
    pub(crate) fn of(fields: &HeaderMap) -> RequestDirectives {
        let mut found = RequestDirectives::default();
        for value in fields.get_all(CACHE_CONTROL) {
            each(value.as_bytes(), |name, argument| match &*name.to_ascii_lowercase() {
                b"no-store" => found.no_store = true,
                b"no-cache" => found.no_cache = true,
                b"only-if-cached" => found.only_if_cached = true,
                b"max-age" => found.max_age = Some(argument.seconds()),
                b"min-fresh" => found.min_fresh = Some(argument.seconds()),
                b"max-stale" => {
                    let any = matches!(argument, Argument::None);
                    found.max_stale = Some(if any { MAX_SECONDS } else { argument.seconds() });
                }
                _ => {}
            });
        }
        // `Pragma: no-cache` of HTTP/1.0 clients (RFC 9111 5.4).
        if !fields.contains_key(CACHE_CONTROL) && fields.get_all(PRAGMA).iter().any(|value| list_has(value, "no-cache"))
        {
            found.no_cache = true;
        }
        found
    }
}

/// Calls a function for every directive of a list with its argument. Commas in quoted strings are no separators.
fn each(list: &[u8], mut tell: impl FnMut(&[u8], Argument<'_>)) {
    for item in items(list) {
        let Some(equals) = item.iter().position(|&byte| byte == b'=') else {
            tell(item, Argument::None);
            continue;
        };
        let (name, value) = (&item[..equals], &item[equals + 1..]);
        tell(name.trim_ascii(), argument(name, value));
    }
}

fn argument<'a>(name: &[u8], value: &'a [u8]) -> Argument<'a> {
    if name.trim_ascii().len() != name.len() || value.trim_ascii().len() != value.len() {
        return Argument::Malformed;
    }
    let Some(inner) = value.strip_prefix(b"\"") else { return Argument::Text(value.into()) };
    let Some(inner) = inner.strip_suffix(b"\"") else { return Argument::Malformed };
    if !inner.contains(&b'\\') {
        return Argument::Text(inner.into());
    }
    let mut escaped = false;
    let plain: Vec<u8> = inner
        .iter()
        .copied()
        .filter(|&byte| {
            escaped = byte == b'\\' && !escaped;
            !escaped
        })
        .collect();
    Argument::Text(plain.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fields(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines.iter().map(|&(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
    }

    fn read(value: &'static str) -> ResponseDirectives {
        ResponseDirectives::of(&fields(&[("cache-control", value)]))
    }

    #[test]
    fn numbers_are_read_strictly_and_what_is_none_is_zero() {
        for (value, seconds) in [
            ("max-age=3600", 3600),
            ("MaX-AgE=3600", 3600),
            ("max-age=\"3600\"", 3600),
            ("max-age=003600", 3600),
            ("max-age=99999999999", MAX_SECONDS),
            ("max-age=2147483648", MAX_SECONDS),
            ("max-age=99999999999999999999999999", MAX_SECONDS),
            ("max-age=-1", 0),
            ("max-age='3600'", 0),
            ("max-age=3600.5", 0),
            ("max-age=3600a", 0),
            ("max-age = 3600", 0),
            ("max-age=", 0),
            ("max-age", 0),
            ("max-age=1800, max-age=1", 1),
            ("max-age=1, max-age=1800", 1),
            ("extension=\"max-age=3600\", max-age=1", 1),
            ("max-age=1, extension=\"max-age=3600\"", 1),
            ("extension=\"a\\\", max-age=3600\", max-age=1", 1),
        ] {
            assert_eq!(read(value).max_age, Some(seconds), "{value}");
        }
        assert_eq!(read("extension=\"max-age=3600").max_age, None);
    }

    #[test]
    fn fields_that_may_not_be_used_freely_are_named() {
        let found = read("no-cache=\"a, b\", private=\"Set-Cookie\", max-age=1");
        assert_eq!(found.withheld, ["a", "b", "set-cookie"]);
        assert!(!found.no_cache && !found.private);
        assert!(read("no-cache").no_cache && read("private, x=1").private);
    }

    #[test]
    fn a_targeted_field_replaces_the_others_or_does_not_count() {
        let all = |cdn: &'static str, cc: &'static str| {
            ResponseDirectives::of(&fields(&[("cdn-cache-control", cdn), ("cache-control", cc)]))
        };
        assert_eq!(all("max-age=60", "no-store").max_age, Some(60));
        assert!(!all("max-age=60", "no-store").no_store);
        assert!(all("max-age=60, &&&", "no-store").no_store);
        assert!(all("", "no-store").no_store);
        assert!(all("MAX-AGE=60", "no-store").no_store);
        assert_eq!(all("max-age=\"60\"", "no-store").max_age, Some(0));
        assert!(all("no-store", "max-age=60").no_store);
        assert!(!all("no-store=?0, max-age=5", "max-age=60").no_store);
        assert_eq!(all("private=\"x-user\", max-age=5", "").withheld, ["x-user"]);
        let both = ResponseDirectives::of(&fields(&[
            ("ringway-cache-control", "max-age=1"),
            ("cdn-cache-control", "max-age=2"),
            ("cache-control", "max-age=3"),
        ]));
        assert_eq!((both.max_age, both.targeted), (Some(1), true));
    }

    #[test]
    fn surrogates_are_told_in_their_own_way() {
        let read = |surrogate: &'static str| {
            ResponseDirectives::of(&fields(&[
                ("surrogate-control", surrogate),
                ("cache-control", "private, max-age=5"),
            ]))
        };
        for (said, max_age, stale, no_store) in [
            ("max-age=60", Some(60), None, false),
            ("max-age=60+30, content=\"ESI/1.0\"", Some(60), Some(30), false),
            ("no-store, max-age=60", Some(60), None, true),
            ("max-age=60;ringway", Some(60), None, false),
            ("no-store;ringway", None, None, true),
            ("max-age=x", Some(0), None, false),
            ("max-age=60, max-age=5", Some(5), None, false),
            ("max-age=60, stale-while-revalidate=9", Some(60), Some(9), false),
        ] {
            let found = read(said);
            let expected = (max_age, stale, no_store, false);
            let all = (found.max_age, found.stale_while_revalidate, found.no_store, found.private);
            assert_eq!(all, expected, "{said}");
            assert!(found.targeted, "{said}");
        }
        assert!(read("max-age=60, private").private && read("max-age=60, no-cache").no_cache);
        for other in ["", "content=\"ESI/1.0\"", "max-age=60;elsewhere", "no-store;elsewhere"] {
            assert!(read(other).private, "{other} says nothing here");
        }
        let targeted = fields(&[("cdn-cache-control", "max-age=1"), ("surrogate-control", "max-age=2")]);
        assert_eq!(ResponseDirectives::of(&targeted).max_age, Some(1));
    }

    #[test]
    fn requests_ask_in_the_same_way() {
        let read = |value| RequestDirectives::of(&fields(&[("cache-control", value)]));
        assert_eq!(
            read("no-cache, max-age=0, min-fresh=5, max-stale"),
            RequestDirectives {
                no_cache: true,
                max_age: Some(0),
                min_fresh: Some(5),
                max_stale: Some(MAX_SECONDS),
                ..RequestDirectives::default()
            }
        );
        assert_eq!(read("max-stale=9").max_stale, Some(9));
        assert!(read("Only-If-Cached").only_if_cached && read("no-store").no_store);
    }

    proptest! {
        /// Any bytes can be parsed, and a directive that forbids is never hidden by the bytes beside it, except by
        /// quotes.
        #[test]
        fn any_bytes_are_read(before in "[ -!#-~\t]{0,30}", after in "[ -~\t]{0,30}", bytes: Vec<u8>) {
            let text = format!("{before}, no-store, {after}");
            let fields: HeaderMap =
                [(CACHE_CONTROL, HeaderValue::from_str(&text).unwrap())].into_iter().collect();
            prop_assert!(ResponseDirectives::of(&fields).no_store);
            prop_assert!(RequestDirectives::of(&fields).no_store);
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let mut fields = HeaderMap::new();
                for name in TARGETED.iter().chain([&CACHE_CONTROL]) {
                    fields.insert(name, value.clone());
                }
                ResponseDirectives::of(&fields);
                RequestDirectives::of(&fields);
            }
        }
    }
}
