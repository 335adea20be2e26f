//! `Vary`: the request fields that select one of the responses of a URI (RFC 9111 4.1).

use crate::http::head::RequestFields;
use http::header::{
    ACCEPT, ACCEPT_CHARSET, ACCEPT_ENCODING, ACCEPT_LANGUAGE, AUTHORIZATION, CONTENT_LANGUAGE, COOKIE, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderName};
use std::borrow::Cow;

/// The fields that are part of every key already, in the form in which this proxy sends them.
const KEYED: [&str; 3] = ["host", "x-forwarded-host", "x-forwarded-proto"];

/// Fields by which this proxy distinguishes every client or request, and fields of a connection, which the node gets
/// from the proxy and not from the client.
const OURS: [&str; 12] = [
    "x-forwarded-for",
    "x-real-ip",
    "forwarded",
    "x-request-id",
    "traceparent",
    "via",
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// The normal form of a field's value, in which values are compared; `None` where the field is absent.
type Value = Option<Box<[u8]>>;

/// The selecting fields of a response, with their values in its request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Selecting {
    fields: Box<[(HeaderName, Value)]>,
    /// The only language of the response, in lower case.
    language: Option<Box<[u8]>>,
}

/// The requests that a response may answer, by its `Vary` (RFC 9111 4.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Varies {
    /// All requests for its URI.
    No,
    By(Selecting),
    /// Only its own request.
    ByAnything,
}

impl Varies {
    /// Returns the requests that a response may answer, with the values of the request's selecting fields.
    pub(super) fn of(response: &HeaderMap, request: &RequestFields) -> Varies {
        let mut names: Vec<HeaderName> = Vec::new();
        for value in response.get_all(VARY) {
            for member in value.as_bytes().split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
                match HeaderName::from_bytes(member) {
                    _ if member.is_empty() => {}
                    Ok(name) if KEYED.contains(&name.as_str()) => {}
                    Ok(name) if member != b"*" && !OURS.contains(&name.as_str()) => names.push(name),
                    _ => return Varies::ByAnything,
                }
            }
        }
        if names.is_empty() {
            return Varies::No;
        }
        names.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
        names.dedup();
        let language = response.get(CONTENT_LANGUAGE).map(|value| value.as_bytes().trim_ascii().to_ascii_lowercase());
        let language = language.filter(|language| !language.contains(&b',')).map(Vec::into_boxed_slice);
        Varies::By(Selecting { fields: values(names.into_iter(), request), language })
    }
}

impl Selecting {
    /// Returns whether a request selects this response.
    pub(super) fn matches(&self, request: &RequestFields) -> bool {
        self.fields.iter().all(|(name, value)| {
            let requested = normalize(name, request);
            requested.as_deref() == value.as_deref()
                || (*name == ACCEPT_LANGUAGE && self.is_in_preferred_language(requested.as_deref()))
        })
    }

    /// Returns whether the response is in the language that a request prefers most: the origin would select it whatever
    /// the other languages are.
    fn is_in_preferred_language(&self, requested: Option<&[u8]>) -> bool {
        let (Some(language), Some(requested)) = (&self.language, requested) else { return false };
        let Some(mut liked) = preferences(requested, Ranges::Tokens) else { return false };
        liked.sort_by_key(|preference| std::cmp::Reverse(preference.weight));
        let Some(best) = liked.first() else { return false };
        let is_alone = liked.get(1).is_none_or(|second| second.weight < best.weight);
        best.weight > 0 && is_alone && best.name == **language
    }

    /// Returns whether the selecting fields have the same names.
    pub(super) fn is_by_the_fields_of(&self, other: &Selecting) -> bool {
        self.fields.iter().map(|(name, _)| name).eq(other.fields.iter().map(|(name, _)| name))
    }

    /// Returns the same fields with the values of another request.
    pub(super) fn for_request(&self, request: &RequestFields) -> Selecting {
        let names = self.fields.iter().map(|(name, _)| name.clone());
        Selecting { fields: values(names, request), language: None }
    }

    /// Calls a function for each name and value, for hashing.
    pub(super) fn each(&self, mut tell: impl FnMut(&[u8], Option<&[u8]>)) {
        for (name, value) in &self.fields {
            tell(name.as_str().as_bytes(), value.as_deref());
        }
    }

    /// Returns the memory of the fields in bytes.
    pub(super) fn size(&self) -> usize {
        let size = |value: &Value| value.as_ref().map_or(0, |value| value.len());
        size(&self.language) + self.fields.iter().map(|(_, value)| 64 + size(value)).sum::<usize>()
    }
}

fn values(names: impl Iterator<Item = HeaderName>, request: &RequestFields) -> Box<[(HeaderName, Value)]> {
    names
        .map(|name| {
            let value = normalize(&name, request).map(|value| value.into_owned().into_boxed_slice());
            (name, value)
        })
        .collect()
}

/// The rule by which two values of a field are equal.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Comparison {
    /// As a list of preferences (RFC 9110 12.5): regardless of order, and of case where it has no meaning.
    Preferences(Ranges),
    /// Byte by byte: these fields identify the requester, and a node may read them in any way.
    Exact,
    /// Byte by byte, except for white space around the commas of lists.
    List,
}

/// The grammar of the elements of a list of preferences.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ranges {
    /// `text/html`, with parameters.
    Media,
    /// `gzip`, `en-gb`, `utf-8`.
    Tokens,
}

impl Comparison {
    fn of(name: &HeaderName) -> Comparison {
        match name {
            name if name == ACCEPT => Comparison::Preferences(Ranges::Media),
            name if [ACCEPT_CHARSET, ACCEPT_ENCODING, ACCEPT_LANGUAGE].contains(name) => {
                Comparison::Preferences(Ranges::Tokens)
            }
            name if [ORIGIN, COOKIE, AUTHORIZATION].contains(name) => Comparison::Exact,
            _ => Comparison::List,
        }
    }
}

/// Returns the normal form of a field's value; `None` where the field is absent.
fn normalize<'a>(name: &HeaderName, fields: &'a RequestFields) -> Option<Cow<'a, [u8]>> {
    let mut lines = fields.values(name);
    let first = lines.next()?;
    let comparison = Comparison::of(name);
    let is_plain = |byte: &u8| match comparison {
        Comparison::Preferences(_) => matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'/' | b'*' | b'+' | b'.'),
        Comparison::Exact => true,
        Comparison::List => *byte != b',',
    };
    if lines.next().is_none() && first.iter().all(is_plain) {
        return Some(first);
    }
    let lines: Vec<Cow<'_, [u8]>> = fields.values(name).collect();
    let lines: Vec<&[u8]> = lines.iter().map(|line| line.trim_ascii()).collect();
    let preferences = match comparison {
        Comparison::Exact => return Some(Cow::Owned(lines.join(&b"\n"[..]))),
        Comparison::Preferences(ranges) => preferences(&lines.join(&b", "[..]), ranges),
        Comparison::List => None,
    };
    let Some(preferences) = preferences else {
        // Also for a malformed list of preferences.
        let joined = lines.join(&b", "[..]);
        let members: Vec<&[u8]> = split_outside_quotes(&joined, b',').map(<[u8]>::trim_ascii).collect();
        return Some(Cow::Owned(members.join(&b","[..])));
    };
    let mut members: Vec<Vec<u8>> = preferences.into_iter().map(Preference::into_text).collect();
    members.sort_unstable();
    Some(Cow::Owned(members.join(&b","[..])))
}

/// Returns the parts of a text between separators outside of quoted strings. An unterminated string extends to the end
/// of the text.
fn split_outside_quotes(text: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let (mut is_quoted, mut is_escaped) = (false, false);
        let end = text.iter().position(|&byte| {
            match byte {
                _ if is_escaped => is_escaped = false,
                b'\\' if is_quoted => is_escaped = true,
                b'"' => is_quoted = !is_quoted,
                _ => return byte == separator && !is_quoted,
            }
            false
        });
        rest = end.map(|end| &text[end + 1..]);
        Some(&text[..end.unwrap_or(text.len())])
    })
}

/// One element of a list of preferences.
struct Preference {
    /// In lower case.
    name: Vec<u8>,
    /// `;name=value` each, with names in lower case. Values are kept, as their case may have a meaning.
    parameters: Vec<u8>,
    /// In thousandths (RFC 9110 12.4.2).
    weight: u16,
}

impl Preference {
    fn read(element: &[u8], ranges: Ranges) -> Option<Preference> {
        let mut parts = split_outside_quotes(element, b';').map(<[u8]>::trim_ascii);
        let name = parts.next()?.to_ascii_lowercase();
        let is_range = match ranges {
            Ranges::Tokens => is_token(&name),
            Ranges::Media => {
                let slash = name.iter().position(|&byte| byte == b'/')?;
                is_token(&name[..slash]) && is_token(&name[slash + 1..])
            }
        };
        let (mut parameters, mut weight) = (Vec::new(), None);
        for parameter in parts {
            let equals = parameter.iter().position(|&byte| byte == b'=')?;
            let (name, value) = (parameter[..equals].to_ascii_lowercase(), &parameter[equals + 1..]);
            // At any position among the parameters (RFC 9110 12.5.1), and only once.
            if name == b"q" {
                if weight.replace(thousandths(value)?).is_some() {
                    return None;
                }
                continue;
            }
            if ranges == Ranges::Tokens || !is_token(&name) || !(is_token(value) || is_quoted(value)) {
                return None;
            }
            parameters.extend([b";", &name[..], b"=", value].concat());
        }
        is_range.then(|| Preference { name, parameters, weight: weight.unwrap_or(1000) })
    }

    fn into_text(self) -> Vec<u8> {
        let mut text = [self.name, self.parameters].concat();
        if self.weight < 1000 {
            text.extend_from_slice(format!(";q=0.{:03}", self.weight).as_bytes());
        }
        text
    }
}

/// Returns the elements of a list of preferences; `None` where it does not follow the grammar.
fn preferences(list: &[u8], ranges: Ranges) -> Option<Vec<Preference>> {
    let elements = split_outside_quotes(list, b',').map(<[u8]>::trim_ascii);
    // Empty elements are ignored (RFC 9110 5.6.1.2).
    elements.filter(|element| !element.is_empty()).map(|element| Preference::read(element, ranges)).collect()
}

/// Returns a weight in thousandths: up to three digits after `0.`, or `1` with zeros after `1.`.
fn thousandths(text: &[u8]) -> Option<u16> {
    let (&whole, rest) = text.split_first()?;
    let digits = match rest {
        [] => rest,
        [b'.', digits @ ..] => digits,
        _ => return None,
    };
    if digits.len() > 3 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let places = [100, 10, 1];
    let part: u16 = digits.iter().zip(places).map(|(&digit, place)| u16::from(digit - b'0') * place).sum();
    match whole {
        b'0' => Some(part),
        b'1' if part == 0 => Some(1000),
        _ => None,
    }
}

/// Returns whether a text is a token (RFC 9110 5.6.2).
fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}

/// Returns whether a text is a single quoted string.
fn is_quoted(text: &[u8]) -> bool {
    let [b'"', inner @ .., b'"'] = text else { return false };
    let mut is_escaped = false;
    let is_closed_before = inner.iter().any(|&byte| {
        let ends = byte == b'"' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        ends
    });
    !is_closed_before && !is_escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    fn fields(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines.iter().map(|&(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
    }

    fn same(
        vary: &'static str,
        stored: &[(&'static str, &'static str)],
        requested: &[(&'static str, &'static str)],
    ) -> bool {
        match Varies::of(&fields(&[("vary", vary)]), &fields(stored).into()) {
            Varies::No => true,
            Varies::By(selecting) => selecting.matches(&fields(requested).into()),
            Varies::ByAnything => false,
        }
    }

    #[test]
    fn values_are_compared_in_one_form() {
        for (vary, stored, requested, expected) in [
            ("foo", &[("foo", "1")][..], &[("foo", "1")][..], true),
            ("foo", &[("foo", "1")], &[("foo", "2")], false),
            ("foo", &[("foo", "1")], &[], false),
            ("foo", &[], &[("foo", "1")], false),
            ("foo", &[], &[], true),
            ("foo", &[], &[("foo", "")], false),
            ("foo", &[("foo", "1,2")], &[("foo", " 1, 2 ")], true),
            ("foo", &[("foo", "1, 2")], &[("foo", "1"), ("foo", "2")], true),
            ("foo", &[("foo", "1, 2")], &[("foo", "2, 1")], false),
            ("foo", &[("foo", "a")], &[("foo", "A")], false),
            ("x-tenant", &[("x-tenant", "acme,")], &[("x-tenant", "acme")], false),
            ("x-tenant", &[("x-tenant", "acme,,x")], &[("x-tenant", "acme,x")], false),
            ("x-tenant", &[("x-tenant", "acme"), ("x-tenant", "")], &[("x-tenant", "acme")], false),
            ("foo", &[("foo", "\"Foo, Bar\"")], &[("foo", "\"Foo,Bar\"")], false),
            ("foo", &[("foo", "\"Foo, Bar\" , x")], &[("foo", "\"Foo, Bar\",x")], true),
            ("foo", &[("foo", "\"a\\\" , b\"")], &[("foo", "\"a\\\",b\"")], false),
            ("foo", &[("foo", "a b")], &[("foo", "ab")], false),
            ("origin", &[("origin", ",https://shop.example")], &[("origin", "https://shop.example")], false),
            ("origin", &[("origin", "https://a , b")], &[("origin", "https://a,b")], false),
            ("cookie", &[("cookie", "a=1,,2")], &[("cookie", "a=1,2")], false),
            ("cookie", &[("cookie", "a=1, 2")], &[("cookie", "a=1,2")], false),
            ("cookie", &[("cookie", "a=1"), ("cookie", "b=2")], &[("cookie", "a=1, b=2")], false),
            ("cookie", &[("cookie", "a=1; b=2")], &[("cookie", "a=1; b=2")], true),
            ("authorization", &[("authorization", "Basic a ,b")], &[("authorization", "Basic a,b")], false),
            ("Foo, Bar", &[("foo", "1")], &[("foo", "1"), ("bar", "x")], false),
            ("accept-language", &[("accept-language", "en, de")], &[("accept-language", "De,eN")], true),
            ("accept-language", &[("accept-language", "de")], &[("accept-language", "de ; q=1.0")], true),
            ("accept-language", &[("accept-language", "de;q=0.5")], &[("accept-language", "de")], false),
            ("accept-encoding", &[("accept-encoding", "gzip, br")], &[("accept-encoding", "br,gzip")], true),
            ("accept", &[("accept", "text/html, */*;q=0.1")], &[("accept", "*/*; Q=0.1,text/HTML")], true),
            ("accept-language", &[("accept-language", "d e")], &[("accept-language", "de")], false),
            ("accept-language", &[("accept-language", "de;q=0.50")], &[("accept-language", "de; q=0.5")], true),
            ("accept-language", &[("accept-language", "de;q=0.5000")], &[("accept-language", "de;q=0.5")], false),
            ("accept-language", &[("accept-language", "de;q=1.5")], &[("accept-language", "de")], false),
            ("accept-language", &[("accept-language", "de,,en,")], &[("accept-language", "en, de")], true),
            ("accept-language", &[("accept-language", "")], &[], false),
            ("accept-charset", &[("accept-charset", "UTF-8;q=0")], &[("accept-charset", "utf-8;q=0.0")], true),
            ("accept", &[("accept", "a/b;q=1;v=1, c/d")], &[("accept", "c/d,a/b;v=1")], true),
            ("accept", &[("accept", "a/b;q=0.5;v=1")], &[("accept", "a/b;v=1;q=0.5")], true),
            ("accept", &[("accept", "a/b;v=A")], &[("accept", "a/b;v=a")], false),
            ("accept", &[("accept", "a/b; profile=\"X y\"")], &[("accept", "a/b;profile=\"X y\"")], true),
            ("accept", &[("accept", "a/b;profile=\"X\"")], &[("accept", "a/b;profile=\"x\"")], false),
            ("accept", &[("accept", "a/b;profile=\"x, y\"")], &[("accept", "a/b;profile=\"x,y\"")], false),
            ("accept", &[("accept", "a/b;profile=\"x;q=1\"")], &[("accept", "a/b;profile=\"x\"")], false),
            ("accept", &[("accept", "text / html")], &[("accept", "text/html")], false),
            ("host", &[("host", "a")], &[("host", "b")], true),
            ("*", &[], &[], false),
            ("*, *", &[], &[], false),
            (", *", &[], &[], false),
            ("foo, *", &[("foo", "1")], &[("foo", "1")], false),
            ("x-forwarded-for", &[], &[], false),
            (",", &[], &[], true),
        ] {
            assert_eq!(same(vary, stored, requested), expected, "{vary} {stored:?} {requested:?}");
        }
    }

    #[test]
    fn the_language_that_is_liked_best_is_enough() {
        let response = fields(&[("vary", "accept-language"), ("content-language", "De")]);
        let Varies::By(selecting) = Varies::of(&response, &fields(&[("accept-language", "en, de")]).into()) else {
            panic!()
        };
        for (requested, expected) in [
            ("fr;q=0.5, de;q=1.0", true),
            ("de, en;q=0.9", true),
            ("de", true),
            ("de, fr", false),
            ("de;q=0.5, fr", false),
            ("fr", false),
            ("de;q=0", false),
            ("*", false),
        ] {
            assert_eq!(selecting.matches(&fields(&[("accept-language", requested)]).into()), expected, "{requested}");
        }
        assert!(!selecting.matches(&fields(&[]).into()));
    }

    /// By the name of a protected field a response varies as the facts do, whatever fields the client has sent.
    #[test]
    fn protected_fields_vary_as_the_facts_do() {
        use crate::http::head::{Marks, Peer, RequestHead, Underscores};
        let ask = |claim: &'static str, certificate: Option<&'static str>, is_secure: bool| {
            let certificate = certificate.map(HeaderValue::from_static);
            let (mut head, ()) = http::Request::new(()).into_parts();
            for name in ["x-client-cert-subject", "x-forwarded-port"] {
                head.headers.insert(name, HeaderValue::from_static(claim));
            }
            let peer = Peer {
                address: "192.0.2.1".parse().unwrap(),
                is_secure,
                certificate: certificate.as_ref(),
                trusted_proxies: &[],
                underscores: Underscores::Drop,
                protected: &[],
            };
            let marks = Marks::of(&head.headers);
            RequestHead::sanitise(head, &marks, peer).unwrap().fields
        };
        let asks = [("CN=a", None), ("CN=b", None), ("CN=a", Some("CN=a")), ("CN=b", Some("CN=a")), ("", Some("CN=b"))];
        for (claim, certificate) in asks {
            for (other_claim, other) in asks {
                let (one, another) = (ask(claim, certificate, true), ask(other_claim, other, true));
                let Varies::By(selecting) = Varies::of(&fields(&[("vary", "x-client-cert-subject")]), &one) else {
                    panic!()
                };
                assert_eq!(
                    selecting.matches(&another),
                    certificate == other,
                    "{claim} {certificate:?} {other_claim} {other:?}"
                );
                let Varies::By(selecting) = Varies::of(&fields(&[("vary", "x-forwarded-port")]), &one) else {
                    panic!()
                };
                assert!(selecting.matches(&another), "a stranger's claim tells nothing apart");
            }
        }
    }

    proptest! {
        /// Two values with the same normal form are equal without white space and, where order has no meaning, as
        /// multisets of letters: only white space, case and order are ignored.
        #[test]
        fn nothing_but_space_case_and_order_is_overlooked(
            one in "[aB ,;=q01.\"\\\\/-]{0,12}",
            other in "[aB ,;=q01.\"\\\\/-]{0,12}",
        ) {
            for name in ["x-any", "origin", "accept", "accept-language"] {
                let request = |value: &str| {
                    let value = HeaderValue::from_str(value.trim()).unwrap();
                    RequestFields::from(HeaderMap::from_iter([(HeaderName::from_static(name), value)]))
                };
                let name = HeaderName::from_static(name);
                let (a, b) = (request(&one), request(&other));
                if normalize(&name, &a) == normalize(&name, &b) {
                    let bare = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
                    match Comparison::of(&name) {
                        Comparison::Exact => prop_assert_eq!(one.trim(), other.trim()),
                        Comparison::List => prop_assert_eq!(bare(&one), bare(&other)),
                        Comparison::Preferences(_) => {
                            let letters = |text: &str| {
                                let mut letters: Vec<char> =
                                    text.to_lowercase().chars().filter(|c| matches!(c, 'a' | 'b')).collect();
                                letters.sort_unstable();
                                letters
                            };
                            prop_assert_eq!(letters(&one), letters(&other));
                        }
                    }
                }
            }
        }

        /// A request selects the response to itself, whatever its fields contain, and a normal form is its own normal
        /// form.
        #[test]
        fn a_request_matches_itself(values in proptest::collection::vec(any::<Vec<u8>>(), 0..3)) {
            for name in ["x-any", "accept", "accept-language"] {
                let mut request = HeaderMap::new();
                for value in values.iter().filter_map(|value| HeaderValue::from_bytes(value).ok()) {
                    request.append(HeaderName::from_static(name), value);
                }
                let request = RequestFields::from(request);
                let response = HeaderMap::from_iter([(VARY, HeaderValue::from_static(name))]);
                let Varies::By(selecting) = Varies::of(&response, &request) else { panic!() };
                prop_assert!(selecting.matches(&request));
                prop_assert_eq!(&selecting.for_request(&request), &selecting);
            }
        }
    }
}
