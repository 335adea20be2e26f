//! The request fields that choose between the responses of one URI (RFC 9111 4.1).

use crate::http::head::RequestFields;
use http::header::{ACCEPT, ACCEPT_CHARSET, ACCEPT_ENCODING, ACCEPT_LANGUAGE, CONTENT_LANGUAGE, VARY};
use http::{HeaderMap, HeaderName};
use std::borrow::Cow;

/// Fields that are part of the key already, as this proxy sends them.
const KEYED: [&str; 3] = ["host", "x-forwarded-host", "x-forwarded-proto"];

/// Fields in which this proxy tells every client, or every request, from the others, and those of one
/// connection, of which a node never sees the client's.
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

/// A field's value in the form in which values are compared; `None` where the field is absent.
type Value = Option<Box<[u8]>>;

/// The fields by which a response varies, with their values in the request that it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Selecting {
    fields: Box<[(HeaderName, Value)]>,
    /// The one language of the response, in lower case.
    language: Option<Box<[u8]>>,
}

/// What a response says of the requests that it may answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Varies {
    /// Every request for its URI.
    No,
    By(Selecting),
    /// No request but its own.
    ByAnything,
}

impl Varies {
    /// Reads `Vary`, and from the request the values that it names.
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
    /// Whether a request chooses the same response.
    pub(super) fn matches(&self, request: &RequestFields) -> bool {
        self.fields.iter().all(|(name, value)| {
            let asked = normalize(name, request);
            asked.as_deref() == value.as_deref() || (*name == ACCEPT_LANGUAGE && self.speaks(asked.as_deref()))
        })
    }

    /// Whether the response is in the language that a request likes best: whatever else it would have
    /// taken, it would have been given this.
    fn speaks(&self, asked: Option<&[u8]>) -> bool {
        let (Some(language), Some(asked)) = (&self.language, asked) else { return false };
        let mut liked: Vec<(u32, &[u8])> = asked.split(|&byte| byte == b',').map(quality).collect();
        liked.sort_by_key(|&(quality, _)| std::cmp::Reverse(quality));
        let is_alone = liked.get(1).is_none_or(|second| second.0 < liked[0].0);
        liked[0].0 > 0 && is_alone && liked[0].1 == &**language
    }

    /// Whether the same fields choose.
    pub(super) fn is_by_the_fields_of(&self, other: &Selecting) -> bool {
        self.fields.iter().map(|(name, _)| name).eq(other.fields.iter().map(|(name, _)| name))
    }

    /// The same fields with the values of another request.
    pub(super) fn for_request(&self, request: &RequestFields) -> Selecting {
        let names = self.fields.iter().map(|(name, _)| name.clone());
        Selecting { fields: values(names, request), language: None }
    }

    /// Tells names and values, so that they can be hashed.
    pub(super) fn each(&self, mut tell: impl FnMut(&[u8], Option<&[u8]>)) {
        for (name, value) in &self.fields {
            tell(name.as_str().as_bytes(), value.as_deref());
        }
    }

    /// Bytes in memory.
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

/// A member of a normalised list of preferences, with its weight in thousandths (RFC 9110 12.4.2).
fn quality(member: &[u8]) -> (u32, &[u8]) {
    let mut parts = member.splitn(2, |&byte| byte == b';');
    let name = parts.next().unwrap_or_default();
    let weight = match parts.next().and_then(|rest| rest.strip_prefix(b"q=")) {
        None => Some(1.0),
        Some(text) => std::str::from_utf8(text).ok().and_then(|text| text.parse::<f32>().ok()),
    };
    (weight.map_or(0, |weight| (weight.clamp(0.0, 1.0) * 1000.0) as u32), name)
}

/// A field's value in the one form in which values are compared: lines joined, white space around
/// commas gone; where the grammar allows it, in lower case and sorted. `None` where it is absent.
fn normalize<'a>(name: &HeaderName, fields: &'a RequestFields) -> Option<Cow<'a, [u8]>> {
    let mut lines = fields.values(name);
    let first = lines.next()?;
    let is_preference = [ACCEPT, ACCEPT_CHARSET, ACCEPT_ENCODING, ACCEPT_LANGUAGE].contains(name);
    let plain = |byte: &u8| *byte != b',' && (!is_preference || !matches!(byte, b';' | b' ' | b'A'..=b'Z'));
    if lines.next().is_none() && first.iter().all(plain) {
        return Some(first);
    }
    let values: Vec<Cow<'_, [u8]>> = fields.values(name).collect();
    let mut members: Vec<Vec<u8>> = values
        .iter()
        .flat_map(|value| value.split(|&byte| byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|member| !member.is_empty())
        .map(|member| if is_preference { preference(member) } else { member.to_vec() })
        .collect();
    if is_preference {
        members.sort_unstable();
    }
    Some(Cow::Owned(members.join(&b","[..])))
}

/// One member of an `Accept` field: `de ; Q=1.0` is `de`.
fn preference(member: &[u8]) -> Vec<u8> {
    let lower: Vec<u8> =
        member.iter().filter(|byte| !matches!(byte, b' ' | b'\t')).map(u8::to_ascii_lowercase).collect();
    for whole in [&b";q=1"[..], b";q=1.0", b";q=1.00", b";q=1.000"] {
        if let Some(rest) = lower.strip_suffix(whole) {
            return rest.to_vec();
        }
    }
    lower
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
        asked: &[(&'static str, &'static str)],
    ) -> bool {
        match Varies::of(&fields(&[("vary", vary)]), &fields(stored).into()) {
            Varies::No => true,
            Varies::By(selecting) => selecting.matches(&fields(asked).into()),
            Varies::ByAnything => false,
        }
    }

    #[test]
    fn values_are_compared_in_one_form() {
        for (vary, stored, asked, expected) in [
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
            ("Foo, Bar", &[("foo", "1")], &[("foo", "1"), ("bar", "x")], false),
            ("accept-language", &[("accept-language", "en, de")], &[("accept-language", "De,eN")], true),
            ("accept-language", &[("accept-language", "de")], &[("accept-language", "de ; q=1.0")], true),
            ("accept-language", &[("accept-language", "de;q=0.5")], &[("accept-language", "de")], false),
            ("accept-encoding", &[("accept-encoding", "gzip, br")], &[("accept-encoding", "br,gzip")], true),
            ("accept", &[("accept", "text/html, */*;q=0.1")], &[("accept", "*/*; Q=0.1,text/HTML")], true),
            ("host", &[("host", "a")], &[("host", "b")], true),
            ("*", &[], &[], false),
            ("*, *", &[], &[], false),
            (", *", &[], &[], false),
            ("foo, *", &[("foo", "1")], &[("foo", "1")], false),
            ("x-forwarded-for", &[], &[], false),
            (",", &[], &[], true),
        ] {
            assert_eq!(same(vary, stored, asked), expected, "{vary} {stored:?} {asked:?}");
        }
    }

    #[test]
    fn the_language_that_is_liked_best_is_enough() {
        let response = fields(&[("vary", "accept-language"), ("content-language", "De")]);
        let Varies::By(selecting) = Varies::of(&response, &fields(&[("accept-language", "en, de")]).into()) else {
            panic!()
        };
        for (asked, expected) in [
            ("fr;q=0.5, de;q=1.0", true),
            ("de, en;q=0.9", true),
            ("de", true),
            ("de, fr", false),
            ("de;q=0.5, fr", false),
            ("fr", false),
            ("de;q=0", false),
            ("*", false),
        ] {
            assert_eq!(selecting.matches(&fields(&[("accept-language", asked)]).into()), expected, "{asked}");
        }
        assert!(!selecting.matches(&fields(&[]).into()));
    }

    /// By a protected name a response varies as the facts do, whatever the clients have sent.
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
        /// A request chooses what it was answered with, whatever its fields hold, and normal values stay
        /// as they are.
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
