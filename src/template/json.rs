//! Parts of a JSON text as they were written. Numbers keep their digits: a reader that made them binary could change an
//! amount.

use serde::de::IgnoredAny;

/// Returns whether a text is JSON (RFC 8259).
pub(crate) fn is_json(text: &str) -> bool {
    serde_json::from_str::<IgnoredAny>(text).is_ok()
}

/// Returns the value at a path below a JSON value, as it was written. A number in the path counts the items of a list
/// from 0; of members with one name the last one counts.
pub(crate) fn get<'a>(json: &'a str, path: &[String]) -> Option<&'a str> {
    let mut json = json.trim();
    for segment in path {
        json = match open(json) {
            Shape::Object(members) => members.into_iter().rfind(|(name, _)| name == segment)?.1,
            Shape::List(items) => *items.get(segment.parse::<usize>().ok()?)?,
            Shape::Scalar => return None,
        };
    }
    Some(json)
}

/// Returns the text of a JSON string, number or boolean; nothing for the other kinds of values.
pub(crate) fn scalar_text(json: &str) -> Option<String> {
    match json.as_bytes().first()? {
        b'"' => serde_json::from_str(json).ok(),
        b'{' | b'[' | b'n' => None,
        _ => Some(json.to_owned()),
    }
}

/// Returns the members of a JSON object; nothing where the value is none.
pub(crate) fn open_object(json: &str) -> Option<Vec<(String, &str)>> {
    match open(json) {
        Shape::Object(members) => Some(members),
        _ => None,
    }
}

/// Returns a text as a JSON string.
pub(crate) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The outermost level of a JSON value.
pub(crate) enum Shape<'a> {
    Object(Vec<(String, &'a str)>),
    List(Vec<&'a str>),
    Scalar,
}

/// Takes the outermost level of a JSON value apart. The text must be JSON: of any other text the parts mean nothing.
pub(crate) fn open(json: &str) -> Shape<'_> {
    let json = json.trim();
    let Some(inner) = json.get(1..json.len().saturating_sub(1)) else { return Shape::Scalar };
    match json.as_bytes()[0] {
        b'{' => Shape::Object(members(inner)),
        b'[' => Shape::List(items(inner)),
        _ => Shape::Scalar,
    }
}

fn items(inner: &str) -> Vec<&str> {
    let (mut items, mut rest) = (Vec::new(), inner.trim());
    while !rest.is_empty() {
        let (item, tail) = rest.split_at(value_length(rest).max(1).min(rest.len()));
        items.push(item);
        rest = tail.trim_start().strip_prefix(',').unwrap_or_default().trim_start();
    }
    items
}

fn members(inner: &str) -> Vec<(String, &str)> {
    let (mut members, mut rest) = (Vec::new(), inner.trim());
    while !rest.is_empty() {
        let (name, tail) = rest.split_at(value_length(rest));
        let Some(tail) = tail.trim_start().strip_prefix(':') else { break };
        let tail = tail.trim_start();
        let (value, tail) = tail.split_at(value_length(tail));
        // A name that is no text, like half a surrogate pair, can be asked for by no path.
        if let Ok(name) = serde_json::from_str(name) {
            members.push((name, value));
        }
        rest = tail.trim_start().strip_prefix(',').unwrap_or_default().trim_start();
    }
    members
}

/// Returns the length of the value that a text begins with, in bytes.
fn value_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let (mut at, mut depth, mut is_quoted) = (0, 0_usize, false);
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'\\' if is_quoted => at += 1,
            b'"' => {
                is_quoted = !is_quoted;
                if !is_quoted && depth == 0 {
                    return at + 1;
                }
            }
            _ if is_quoted => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth > 0 => {
                depth -= 1;
                if depth == 0 {
                    return at + 1;
                }
            }
            b',' | b':' | b' ' | b'\t' | b'\n' | b'\r' if depth == 0 => return at,
            _ => {}
        }
        at += 1;
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn path(text: &str) -> Vec<String> {
        text.split('.').filter(|segment| !segment.is_empty()).map(str::to_owned).collect()
    }

    #[test]
    fn a_value_keeps_the_text_that_it_was_written_with() {
        let json = r#" { "amount": 10.10, "id": 123456789012345678901234567890, "a.b": 1,
            "items": [ {"sku": "x\"}", "n": [1 , 2]}, null, true ], "twice": 1, "twice": 2, "\u00e4": "\u00e4" } "#;
        for (at, expected) in [
            ("amount", Some("10.10")),
            ("id", Some("123456789012345678901234567890")),
            ("items.0.sku", Some(r#""x\"}""#)),
            ("items.0.n", Some("[1 , 2]")),
            ("items.0.n.1", Some("2")),
            ("items.1", Some("null")),
            ("items.2", Some("true")),
            ("items.3", None),
            ("items.x", None),
            ("amount.x", None),
            ("absent", None),
            ("twice", Some("2")),
            ("ä", Some(r#""\u00e4""#)),
        ] {
            assert_eq!(get(json, &path(at)), expected, "{at}");
        }
        assert_eq!(get(json, &[]), Some(json.trim()));
    }

    #[test]
    fn scalars_have_a_text() {
        for (json, expected) in [
            (r#""a\nb""#, Some("a\nb")),
            ("10.10", Some("10.10")),
            ("true", Some("true")),
            ("null", None),
            ("[]", None),
            ("{}", None),
        ] {
            assert_eq!(scalar_text(json).as_deref(), expected, "{json}");
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "\\PC{0,6}|[\"\\\\{}\\[\\]:, ]{0,6}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-c\"\\\\:,{}]{1,3}", inner, 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    fn paths(value: &Value, at: &mut Vec<String>, found: &mut Vec<(Vec<String>, Value)>) {
        found.push((at.clone(), value.clone()));
        let mut below = |name: String, value: &Value| {
            at.push(name);
            paths(value, at, found);
            at.pop();
        };
        match value {
            Value::Object(members) => members.iter().for_each(|(name, value)| below(name.clone(), value)),
            Value::Array(items) => items.iter().enumerate().for_each(|(index, value)| below(index.to_string(), value)),
            _ => {}
        }
    }

    proptest! {
        /// Every value of a document is found at its path, however the document is spaced.
        #[test]
        fn every_value_is_found_at_its_path(value in any_json(), is_pretty: bool) {
            let text = if is_pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) };
            let text = text.unwrap();
            let mut found = Vec::new();
            paths(&value, &mut Vec::new(), &mut found);
            for (path, expected) in found {
                let part = get(&text, &path).map(|part| serde_json::from_str::<Value>(part).unwrap());
                prop_assert_eq!(part, Some(expected), "{:?} of {}", path, text);
            }
            prop_assert_eq!(get(&text, &["absent".to_owned()]), None);
        }

        /// No text makes the reader panic.
        #[test]
        fn any_text_can_be_opened(text in "[\\[\\]{}\",:\\\\a1ä ]{0,16}") {
            get(&text, &["a".to_owned(), "0".to_owned()]);
        }
    }

    #[test]
    fn a_quoted_text_is_json() {
        assert_eq!(serde_json::from_str::<Value>(&quoted("a\"\n")).unwrap(), json!("a\"\n"));
    }
}
