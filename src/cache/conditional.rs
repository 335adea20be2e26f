//! Conditional requests answered from the store (RFC 9110 13, RFC 9111 4.3.2).

use super::object::{Stored, strip_weak};
use crate::http::date;
use http::header::{DATE, ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, LAST_MODIFIED};
use http::{HeaderMap, HeaderName};

/// The fields that make a request conditional or partial; a fetch for the store is sent without them.
pub(crate) const CONDITIONS: [HeaderName; 6] = [
    IF_NONE_MATCH,
    IF_MODIFIED_SINCE,
    http::header::IF_MATCH,
    http::header::IF_UNMODIFIED_SINCE,
    IF_RANGE,
    http::header::RANGE,
];

/// The content fields that a 304 does not carry (RFC 9110 15.4.5).
pub(crate) const NOT_IN_304: [&str; 5] =
    ["content-type", "content-encoding", "content-language", "content-range", "content-length"];

/// Returns whether a conditional request is answered by 304. `If-Match` and `If-Unmodified-Since` are evaluated by the
/// origin only (RFC 9111 4.3.2).
pub(crate) fn is_unmodified(stored: &Stored, request: &HeaderMap) -> bool {
    if !stored.status.is_success() {
        return false;
    }
    if request.contains_key(IF_NONE_MATCH) {
        let known = stored.field(&ETAG);
        let matches = |tag: &[u8]| {
            tag == b"*" || known.as_ref().is_some_and(|known| strip_weak(tag) == strip_weak(known.as_bytes()))
        };
        return request.get_all(IF_NONE_MATCH).iter().any(|value| entity_tags(value.as_bytes()).any(matches));
    }
    let mut since = request.get_all(IF_MODIFIED_SINCE).iter();
    let (Some(since), None) = (since.next().and_then(date::parse), since.next()) else { return false };
    // Without `Last-Modified` the `Date` counts.
    let modified = stored.field(&LAST_MODIFIED).as_ref().and_then(date::parse);
    let modified = modified.or_else(|| stored.field(&DATE).as_ref().and_then(date::parse));
    modified.is_some_and(|modified| modified <= since)
}

/// Returns whether `If-Range` allows a range of this response (RFC 9110 13.1.5): only a strong validator does.
pub(crate) fn is_same_for_range(stored: &Stored, request: &HeaderMap) -> bool {
    let Some(condition) = request.get(IF_RANGE) else { return true };
    if condition.as_bytes().first().is_some_and(|&first| first == b'"') {
        return stored.field(&ETAG).is_some_and(|known| known == *condition);
    }
    // A response with a weak tag has no strong date either.
    if stored.field(&ETAG).is_some_and(|tag| tag.as_bytes().starts_with(b"W/")) {
        return false;
    }
    let (Some(since), Some(known)) = (date::parse(condition), stored.field(&LAST_MODIFIED)) else { return false };
    let (modified, made) = (date::parse(&known), stored.field(&DATE).as_ref().and_then(date::parse));
    // A date is a strong validator if it is at least one second before `Date` (RFC 9110 8.8.2.2).
    modified == Some(since) && made.is_some_and(|made| made > since)
}

/// Returns the entity tags of a list; an element that is not a quoted tag is returned unchanged.
fn entity_tags(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = list;
    std::iter::from_fn(move || {
        rest = rest.trim_ascii_start();
        while let Some(after) = rest.strip_prefix(b",") {
            rest = after.trim_ascii_start();
        }
        if rest.is_empty() {
            return None;
        }
        let quote =
            strip_weak(rest).first().filter(|&&first| first == b'"').map(|_| rest.len() - strip_weak(rest).len());
        let end = match quote {
            Some(at) => rest[at + 1..].iter().position(|&byte| byte == b'"').map(|end| at + 1 + end + 1),
            None => rest.iter().position(|&byte| byte == b','),
        };
        let (tag, after) = rest.split_at(end.unwrap_or(rest.len()));
        rest = after;
        Some(tag.trim_ascii())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lists_of_tags_are_taken_apart() {
        let tags = |list: &'static str| -> Vec<&[u8]> { entity_tags(list.as_bytes()).collect() };
        assert_eq!(tags(r#""a", W/"b,c" ,, "d""#), [&br#""a""#[..], br#"W/"b,c""#, br#""d""#]);
        assert_eq!(tags("*"), [b"*"]);
        assert_eq!(tags("abc, \"d"), [&b"abc"[..], b"\"d"]);
        assert!(tags(" , ").is_empty());
    }

    proptest! {
        /// Any bytes can be parsed, and a tag is found at any position of a list.
        #[test]
        fn a_tag_is_found_in_any_list(others in proptest::collection::vec("(W/)?\"[!#-~]{0,5}\"", 0..4), at in 0..4usize, bytes: Vec<u8>) {
            let mut list = others;
            list.insert(at.min(list.len()), "\"mine\"".to_owned());
            let text = list.join(", ");
            prop_assert!(entity_tags(text.as_bytes()).any(|tag| tag == b"\"mine\""), "{text}");
            prop_assert_eq!(entity_tags(text.as_bytes()).count(), list.len());
            prop_assert!(entity_tags(&bytes).count() <= bytes.len());
        }
    }
}
