//! Canonical forms of bodies, without differences that have no meaning: the order of keys and the white space of JSON,
//! and the boundary of `multipart`. Clients that build the body anew for each retry differ in these.

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue};
use memchr::memmem;

/// Deeper values are left as they are.
const MAX_DEPTH: usize = 128;

/// The format by which a body is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    Multipart {
        boundary: Vec<u8>,
        /// The content type without its boundary.
        content_type: Vec<u8>,
    },
}

impl Format {
    /// Returns the format of a content type; `None` for other formats.
    pub(super) fn of(fields: &HeaderMap) -> Option<Format> {
        let mut lines = fields.get_all(CONTENT_TYPE).iter().map(HeaderValue::as_bytes);
        let (Some(line), None) = (lines.next(), lines.next()) else { return None };
        let mut parts = line.split(|&byte| byte == b';').map(<[u8]>::trim_ascii);
        let essence = parts.next()?.to_ascii_lowercase();
        if essence == b"application/json" || essence.ends_with(b"+json") {
            return Some(Format::Json);
        }
        if !essence.starts_with(b"multipart/") {
            return None;
        }
        let (mut boundary, mut content_type) = (None, essence);
        for parameter in parts {
            match parameter.get(..9) {
                Some(name) if name.eq_ignore_ascii_case(b"boundary=") && boundary.is_none() => {
                    let value = &parameter[9..];
                    let inner = value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\""));
                    boundary = Some(inner.unwrap_or(value).to_vec());
                }
                _ => {
                    content_type.push(b';');
                    content_type.extend_from_slice(parameter);
                }
            }
        }
        // RFC 2046 5.1.1. A boundary with quoted characters, or with `;`, is none that clients make.
        let boundary = boundary.filter(|boundary| (1..=70).contains(&boundary.len()) && !boundary.contains(&b'"'))?;
        Some(Format::Multipart { boundary, content_type })
    }

    /// Returns the canonical form of a body; `None` where it is not of this format.
    pub(super) fn canonical(&self, body: &[u8]) -> Option<Vec<u8>> {
        match self {
            Format::Json => json(body),
            Format::Multipart { boundary, .. } => multipart(body, boundary),
        }
    }
}

/// Preamble, parts and epilogue, each with its length.
fn multipart(body: &[u8], boundary: &[u8]) -> Option<Vec<u8>> {
    let delimiter = [b"\r\n--", boundary].concat();
    // The first one may begin the body.
    let mut rest = body;
    let mut out = Vec::with_capacity(body.len() + 64);
    let mut add = |piece: &[u8]| {
        out.extend_from_slice(&(piece.len() as u64).to_be_bytes());
        out.extend_from_slice(piece);
    };
    if let Some(after) = body.strip_prefix(&delimiter[2..]) {
        add(b"");
        rest = after;
    } else {
        let at = memmem::find(body, &delimiter)?;
        add(&body[..at]);
        rest = &rest[at + delimiter.len()..];
    }
    loop {
        if let Some(epilogue) = rest.strip_prefix(b"--") {
            add(epilogue);
            return Some(out);
        }
        let padding = rest.iter().position(|byte| !matches!(byte, b' ' | b'\t'))?;
        let part = rest[padding..].strip_prefix(b"\r\n")?;
        // A part may have no fields and no content: the line break before it may be that of its delimiter.
        let whole = &rest[padding..];
        let end = memmem::find(whole, &delimiter)?;
        add(part.get(..end.saturating_sub(2)).unwrap_or_default());
        rest = &whole[end + delimiter.len()..];
    }
}

fn json(body: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(body).ok()?;
    serde_json::from_str::<serde::de::IgnoredAny>(text).ok()?;
    let mut out = Vec::with_capacity(body.len());
    let mut reader = Json { text, at: 0, depth: 0 };
    reader.value(&mut out)?;
    Some(out)
}

/// A reader of a text that is valid JSON.
struct Json<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl Json<'_> {
    fn peek(&mut self) -> Option<u8> {
        let bytes = self.text.as_bytes();
        while bytes.get(self.at).is_some_and(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
        bytes.get(self.at).copied()
    }

    /// Goes over a byte, where it comes next.
    fn take(&mut self, byte: u8) -> bool {
        let comes = self.peek() == Some(byte);
        self.at += usize::from(comes);
        comes
    }

    fn value(&mut self, out: &mut Vec<u8>) -> Option<()> {
        match self.peek()? {
            b'{' => self.nested(|json| json.object(out)),
            b'[' => self.nested(|json| json.array(out)),
            b'"' => {
                let string = self.string()?;
                out.extend_from_slice(serde_json::to_string(&string).ok()?.as_bytes());
                Some(())
            }
            // A number keeps its digits: two that are equal as floating point numbers may differ to a node.
            _ => {
                let rest = &self.text[self.at..];
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '+' | '-' | '.'));
                let scalar = &rest[..end.unwrap_or(rest.len())];
                out.extend_from_slice(scalar.as_bytes());
                self.at += scalar.len();
                (!scalar.is_empty()).then_some(())
            }
        }
    }

    fn nested(&mut self, read: impl FnOnce(&mut Self) -> Option<()>) -> Option<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        self.at += 1;
        read(self)?;
        self.depth -= 1;
        Some(())
    }

    fn string(&mut self) -> Option<String> {
        let start = self.at;
        let bytes = self.text.as_bytes();
        let mut end = start + 1;
        while *bytes.get(end)? != b'"' {
            end += if bytes[end] == b'\\' { 2 } else { 1 };
        }
        self.at = end + 1;
        serde_json::from_str(&self.text[start..=end]).ok()
    }

    fn array(&mut self, out: &mut Vec<u8>) -> Option<()> {
        out.push(b'[');
        if !self.take(b']') {
            loop {
                self.value(out)?;
                out.push(b',');
                if !self.take(b',') {
                    break;
                }
            }
            self.take(b']');
        }
        out.push(b']');
        Some(())
    }

    fn object(&mut self, out: &mut Vec<u8>) -> Option<()> {
        out.push(b'{');
        let begin = out.len();
        let mut members: Vec<(String, std::ops::Range<usize>)> = Vec::new();
        if !self.take(b'}') {
            loop {
                self.peek()?;
                let name = self.string()?;
                self.take(b':');
                let from = out.len();
                out.extend_from_slice(serde_json::to_string(&name).ok()?.as_bytes());
                out.push(b':');
                self.value(out)?;
                out.push(b',');
                members.push((name, from..out.len()));
                if !self.take(b',') {
                    break;
                }
            }
            self.take(b'}');
        }
        if !members.is_sorted_by(|one, other| one.0 < other.0) {
            members.sort_by(|one, other| one.0.cmp(&other.0));
            // The node decides which of two equal names counts.
            if members.windows(2).any(|pair| pair[0].0 == pair[1].0) {
                return None;
            }
            let sorted = members.iter().map(|(_, member)| &out[member.clone()]).collect::<Vec<_>>().concat();
            out.truncate(begin);
            out.extend_from_slice(&sorted);
        }
        out.push(b'}');
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn format(content_type: &str) -> Option<Format> {
        Format::of(&HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_str(content_type).unwrap())]))
    }

    #[test]
    fn only_what_means_the_same_is_the_same() {
        let same = |one: &str, other: &str| {
            let (one, other) = (json(one.as_bytes()), json(other.as_bytes()));
            one.is_some() && one == other
        };
        for (one, other, expected) in [
            (r#"{"a":1,"b":2}"#, "{ \"b\" : 2,\n\"a\" : 1 }", true),
            (r#"{"a":{"x":[1,{"p":1,"q":2}]},"b":2}"#, r#"{"b":2,"a":{"x":[1,{"q":2,"p":1}]}}"#, true),
            (r#"{"a":"é"}"#, r#"{"\u0061":"\u00e9"}"#, true),
            (r#"{"a":1,"b":2}"#, r#"{"a":2,"b":1}"#, false),
            (r#"{"a":[1,2]}"#, r#"{"a":[2,1]}"#, false),
            (r#"{"a":1}"#, r#"{"a":1.0}"#, false),
            (r#"{"a":12345678901234567890123}"#, r#"{"a":12345678901234567890124}"#, false),
            (r#"{"a":"1"}"#, r#"{"a":1}"#, false),
            (r#"{"a":{},"b":[]}"#, r#"{"a":[],"b":{}}"#, false),
            (r#"{"a":null}"#, r#"{}"#, false),
            (r#"{"a":1,"a":2}"#, r#"{"a":2,"a":1}"#, false),
            (r#"["a","b"]"#, r#"["a,b"]"#, false),
            (r#""a b""#, r#""ab""#, false),
        ] {
            assert_eq!(same(one, other), expected, "{one} {other}");
        }
        for bad in ["", "{", "{\"a\":1} x", "\u{feff}{}", r#"{"a":"\ud800"}"#] {
            assert_eq!(json(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(json(&[b'['; 200_000]), None);
        let deep = ["[".repeat(200), "]".repeat(200)].concat();
        assert_eq!(json(deep.as_bytes()), None);
    }

    #[test]
    fn the_boundary_of_a_multipart_body_counts_for_nothing() {
        let body = |boundary: &str, value: &str| {
            let content_type = format!("multipart/form-data; boundary={boundary}");
            let text = format!(
                "--{boundary}\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n{value}\r\n--{boundary}\r\n\r\n\r\n--{boundary}--\r\n"
            );
            let format = format(&content_type).unwrap();
            let Format::Multipart { content_type, .. } = &format else { panic!() };
            (content_type.clone(), format.canonical(text.as_bytes()).unwrap())
        };
        assert_eq!(body("one", "1"), body("\"other\"".trim_matches('"'), "1"));
        assert_ne!(body("one", "1"), body("one", "2"));
        assert_ne!(body("one", "--other"), body("other", "--one"));
        let multipart = format("Multipart/Form-Data; Boundary=\"x y\"; charset=utf-8").unwrap();
        let content_type = b"multipart/form-data;charset=utf-8".to_vec();
        assert_eq!(multipart, Format::Multipart { boundary: b"x y".to_vec(), content_type });
        for broken in ["", "--x y", "--x y\r\na", "--x y--", "a\r\n--x y z\r\n\r\n--x y--"] {
            let is_whole = broken == "--x y--";
            assert_eq!(multipart.canonical(broken.as_bytes()).is_some(), is_whole, "{broken}");
        }
        assert_eq!(format("multipart/mixed"), None);
        assert_eq!(format("text/plain"), None);
        assert_eq!(format("application/problem+JSON; charset=utf-8"), Some(Format::Json));
    }

    /// JSON values, and the same with the members of objects in another order.
    fn values() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            "[a-c\"\\\\\u{e9} ]{0,4}".prop_map(Into::into),
        ];
        leaf.prop_recursive(3, 20, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
                proptest::collection::vec(("[a-d]{1,2}", inner), 0..4)
                    .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
            ]
        })
    }

    fn reversed(value: &serde_json::Value) -> serde_json::Value {
        match value {
            serde_json::Value::Array(items) => items.iter().map(reversed).collect::<Vec<_>>().into(),
            serde_json::Value::Object(members) => {
                let members = members.iter().rev().map(|(name, value)| (name.clone(), reversed(value)));
                serde_json::Value::Object(members.collect())
            }
            other => other.clone(),
        }
    }

    proptest! {
        #[test]
        fn order_and_white_space_alone_count_for_nothing(one in values(), other in values()) {
            let compact = serde_json::to_vec(&one).unwrap();
            let pretty = serde_json::to_vec_pretty(&reversed(&one)).unwrap();
            prop_assert!(json(&compact).is_some());
            prop_assert_eq!(json(&compact), json(&pretty));
            let sorted = |value: &serde_json::Value| -> String { serde_json::to_string(&{ let mut value = value.clone(); value.sort_all_objects(); value }).unwrap() };
            let is_same = sorted(&one) == sorted(&other);
            prop_assert_eq!(json(&compact) == json(&serde_json::to_vec(&other).unwrap()), is_same);
        }

        #[test]
        fn any_body_is_read(body: Vec<u8>, text in "[\\[\\]{}\",:a0\\\\\r\n -]{0,30}") {
            for format in [Format::Json, Format::Multipart { boundary: b"a".to_vec(), content_type: Vec::new() }] {
                format.canonical(&body);
                format.canonical(text.as_bytes());
            }
        }
    }
}
