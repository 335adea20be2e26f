//! Range requests answered from a stored response (RFC 9110 14).

use super::body::Part;
use bytes::Bytes;
use http::header::RANGE;
use http::{HeaderMap, HeaderValue};
use std::collections::VecDeque;

/// The most ranges of a request; with more the complete response is sent.
const MAX_RANGES: usize = 32;

/// The ranges of a request (RFC 9110 14.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ranges {
    /// The complete body: the request has no range, or an invalid one.
    Whole,
    /// No range overlaps the body: 416.
    Unsatisfiable,
    /// Pairs of a start and an end, which is not included.
    Some(Vec<(u64, u64)>),
}

/// Returns the ranges of a request for a body of a length.
pub(crate) fn ranges(request: &HeaderMap, length: u64) -> Ranges {
    let mut lines = request.get_all(RANGE).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else { return Ranges::Whole };
    parse(line, length).unwrap_or(Ranges::Whole)
}

fn parse(line: &HeaderValue, length: u64) -> Option<Ranges> {
    let text = line.to_str().ok()?;
    let (unit, set) = text.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let mut found = Vec::new();
    let mut specified = 0;
    for range in set.split(',').map(str::trim).filter(|range| !range.is_empty()) {
        specified += 1;
        let (first, last) = range.split_once('-')?;
        let number = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) && !text.is_empty() {
            // A number beyond `u64` lies after any end.
            true => Some(text.parse::<u64>().unwrap_or(u64::MAX)),
            false => None,
        };
        let (from, end) = match (first, last) {
            ("", suffix) => (length.saturating_sub(number(suffix)?), length),
            (first, "") => (number(first)?, length),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                if last < first {
                    return None;
                }
                (first, last.saturating_add(1).min(length))
            }
        };
        if from < end {
            found.push((from, end));
        }
    }
    match (specified, found.len()) {
        (0, _) => None,
        (_, 0) => Some(Ranges::Unsatisfiable),
        // Many ranges, or overlapping ones that add up to more than the body, are an attack or a mistake.
        (many, _) if many > MAX_RANGES || !fits(&found, length) => None,
        _ => Some(Ranges::Some(found)),
    }
}

/// Returns whether the ranges together are no longer than the body.
fn fits(ranges: &[(u64, u64)], length: u64) -> bool {
    ranges.iter().try_fold(length, |left, (from, end)| left.checked_sub(end - from)).is_some()
}

/// Returns the value of `Content-Range` for a part.
pub(crate) fn content_range((from, end): (u64, u64), length: u64) -> String {
    format!("bytes {from}-{}/{length}", end - 1)
}

/// Returns the parts of a `multipart/byteranges` body, and its media type.
pub(crate) fn multipart(
    ranges: &[(u64, u64)],
    length: u64,
    media_type: Option<&HeaderValue>,
) -> (VecDeque<Part>, HeaderValue) {
    let boundary = format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
    let mut parts = VecDeque::with_capacity(ranges.len() * 2 + 1);
    for (index, &range) in ranges.iter().enumerate() {
        let mut head = Vec::with_capacity(160);
        head.extend_from_slice(if index == 0 { b"--" } else { b"\r\n--" });
        head.extend_from_slice(boundary.as_bytes());
        if let Some(media_type) = media_type {
            head.extend_from_slice(b"\r\ncontent-type: ");
            head.extend_from_slice(media_type.as_bytes());
        }
        head.extend_from_slice(b"\r\ncontent-range: ");
        head.extend_from_slice(content_range(range, length).as_bytes());
        head.extend_from_slice(b"\r\n\r\n");
        parts.push_back(Part::Literal(head.into()));
        parts.push_back(Part::Slice(range.0, range.1));
    }
    parts.push_back(Part::Literal(Bytes::from(format!("\r\n--{boundary}--\r\n"))));
    let media_type = HeaderValue::try_from(format!("multipart/byteranges; boundary={boundary}"));
    (parts, media_type.expect("hexadecimal digits are a field value"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(value: &str, length: u64) -> Ranges {
        let mut request = HeaderMap::new();
        request.insert(RANGE, HeaderValue::from_str(value).unwrap());
        ranges(&request, length)
    }

    #[test]
    fn ranges_are_what_rfc_9110_says() {
        let some = |ranges: &[(u64, u64)]| Ranges::Some(ranges.to_vec());
        for (value, expected) in [
            ("bytes=0-1", some(&[(0, 2)])),
            ("bytes=5-", some(&[(5, 10)])),
            ("bytes=-3", some(&[(7, 10)])),
            ("bytes=-99", some(&[(0, 10)])),
            ("bytes=9-99", some(&[(9, 10)])),
            ("BYTES=0-0, -1", some(&[(0, 1), (9, 10)])),
            ("bytes=0-1,, 4-4,20-", some(&[(0, 2), (4, 5)])),
            ("bytes=0-99999999999999999999", some(&[(0, 10)])),
            ("bytes=10-", Ranges::Unsatisfiable),
            ("bytes=-0", Ranges::Unsatisfiable),
            ("bytes=20-30, 40-", Ranges::Unsatisfiable),
            ("bytes=5-4", Ranges::Whole),
            ("bytes=", Ranges::Whole),
            ("bytes=a-b", Ranges::Whole),
            ("bytes=1-2-3", Ranges::Whole),
            ("items=0-1", Ranges::Whole),
            ("0-1", Ranges::Whole),
            ("bytes=0-9, 0-9", Ranges::Whole),
        ] {
            assert_eq!(read(value, 10), expected, "{value}");
        }
        assert_eq!(read("bytes=0-", 0), Ranges::Unsatisfiable);
        // A node may announce any length.
        assert_eq!(read("bytes=0-, 0-", u64::MAX), Ranges::Whole);
    }

    proptest! {
        #[test]
        fn no_range_leaves_the_body(value in "bytes=[0-9,-]{0,30}", length in 0..100u64) {
            if let Ranges::Some(found) = read(&value, length) {
                prop_assert!(!found.is_empty());
                prop_assert!(found.iter().all(|&(from, end)| from < end && end <= length));
            }
        }
    }
}
