//! Templates: texts and JSON values with references to other values, `"/orders/${request.body.id}"`. Data, no I/O.
//!
//! A reference is a dotted path, [`Reference`]. A text that is one reference and nothing else stands for the value
//! itself, with its JSON type; a reference inside a longer text is rendered as text, and percent-encoded in a path.
//! `$${` stands for the characters `${`.

mod json;
mod reference;

pub(crate) use json::{get, is_json, open_object, quoted};
pub(crate) use reference::Reference;

use json::{Shape, open, scalar_text};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use std::borrow::Cow;
use std::fmt;

/// All but the unreserved characters of a URI (RFC 3986 2.3).
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The deepest nesting of a template.
const MAX_DEPTH: usize = 128;

/// The values that references stand for, each as a JSON text.
pub(crate) trait Values {
    /// Returns the value that a reference stands for, as JSON; nothing where there is none.
    fn value(&self, reference: &Reference) -> Option<Cow<'_, str>>;

    /// Returns whether a value inside a text may also be null, which is no text, or a list or an object, as JSON.
    fn is_lenient(&self) -> bool {
        false
    }
}

/// A text that is no template, and the place in it that is wrong, in bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadTemplate {
    #[error("`${{` is not closed by `}}`; write `$${{` for the characters themselves")]
    Unclosed { at: usize },
    #[error("`${{{path}}}` stands for nothing")]
    Unknown { at: usize, path: String },
    #[error("a template that is no JSON, or is nested too deeply")]
    Json,
}

/// A value that a template needs and cannot use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unresolved {
    #[error("there is no `{0}`")]
    Missing(Reference),
    #[error("`{0}` is a list, an object or null, and stands inside a text")]
    NoText(Reference),
    #[error("`{0}` leaves a segment of a path empty, or makes it a dot segment")]
    PathSegment(Reference),
    #[error("`{0}` holds characters that a field cannot have")]
    FieldValue(Reference),
}

/// A text with references.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Text {
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Literal(String),
    Reference(Reference),
}

impl Text {
    /// Reads a text as the configuration has it.
    ///
    /// # Errors
    ///
    /// Fails at a `${` that is not closed, and at a path that stands for nothing.
    pub(crate) fn parse(text: &str) -> Result<Text, BadTemplate> {
        let (mut pieces, mut literal, mut rest) = (Vec::new(), String::new(), text);
        while let Some(at) = rest.find("${") {
            if rest[..at].ends_with('$') {
                literal.push_str(&rest[..at - 1]);
                literal.push_str("${");
                rest = &rest[at + 2..];
                continue;
            }
            literal.push_str(&rest[..at]);
            let place = text.len() - rest.len() + at;
            let (path, tail) = rest[at + 2..].split_once('}').ok_or(BadTemplate::Unclosed { at: place })?;
            let unknown = || BadTemplate::Unknown { at: place, path: path.to_owned() };
            let reference = Reference::parse(path).ok_or_else(unknown)?;
            if !literal.is_empty() {
                pieces.push(Piece::Literal(std::mem::take(&mut literal)));
            }
            pieces.push(Piece::Reference(reference));
            rest = tail;
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            pieces.push(Piece::Literal(literal));
        }
        Ok(Text { pieces })
    }

    pub(crate) fn references(&self) -> impl Iterator<Item = &Reference> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Reference(reference) => Some(reference),
            Piece::Literal(_) => None,
        })
    }

    /// Returns the reference that the whole text is.
    fn whole(&self) -> Option<&Reference> {
        match self.pieces.as_slice() {
            [Piece::Reference(reference)] => Some(reference),
            _ => None,
        }
    }

    /// Returns the text with every reference replaced.
    pub(crate) fn render(&self, values: &dyn Values) -> Result<String, Unresolved> {
        let mut out = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Literal(literal) => out.push_str(literal),
                Piece::Reference(reference) => out.push_str(&text_of(reference, values)?),
            }
        }
        Ok(out)
    }

    /// Returns the text with one stand-in for every reference.
    pub(crate) fn with_stand_ins(&self, stand_in: &str) -> String {
        let pieces = self.pieces.iter();
        pieces.map(|piece| if let Piece::Literal(literal) = piece { literal.as_str() } else { stand_in }).collect()
    }

    /// Returns the text as a path, perhaps with a query: references are percent-encoded, so that they stay in their
    /// segment, and none of them leaves its segment empty or makes it `.` or `..`.
    pub(crate) fn render_path(&self, values: &dyn Values) -> Result<String, Unresolved> {
        let (mut out, mut is_in_query) = (String::new(), false);
        // Where the segment begins, and the last reference in it.
        let (mut segment, mut last): (usize, Option<&Reference>) = (0, None);
        let end = |out: &str, segment: usize, last: Option<&Reference>| match last {
            Some(last) if matches!(&out[segment..], "" | "." | "..") => Err(Unresolved::PathSegment(last.clone())),
            _ => Ok(()),
        };
        for piece in &self.pieces {
            match piece {
                Piece::Reference(reference) => {
                    out.extend(utf8_percent_encode(&text_of(reference, values)?, RESERVED));
                    last = Some(reference);
                }
                Piece::Literal(literal) => {
                    for letter in literal.chars() {
                        if !is_in_query && matches!(letter, '/' | '?') {
                            end(&out, segment, last)?;
                            (segment, last, is_in_query) = (out.len() + 1, None, letter == '?');
                        }
                        out.push(letter);
                    }
                }
            }
        }
        if !is_in_query {
            end(&out, segment, last)?;
        }
        Ok(out)
    }
}

fn text_of(reference: &Reference, values: &dyn Values) -> Result<String, Unresolved> {
    let value = values.value(reference).ok_or_else(|| Unresolved::Missing(reference.clone()))?;
    match scalar_text(&value) {
        Some(text) => Ok(text),
        None if values.is_lenient() => Ok(if value == "null" { String::new() } else { value.into_owned() }),
        None => Err(Unresolved::NoText(reference.clone())),
    }
}

/// The text as the configuration has it.
impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pieces.iter().try_for_each(|piece| match piece {
            Piece::Literal(literal) => f.write_str(&literal.replace("${", "$${")),
            Piece::Reference(reference) => write!(f, "${{{reference}}}"),
        })
    }
}

/// A JSON value with references.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Template {
    /// A number, `true`, `false` or `null`, as it was written.
    Literal(String),
    Text(Text),
    List(Vec<Template>),
    Object(Vec<(String, Template)>),
}

impl Template {
    /// Reads a template from JSON whose texts are as the configuration has them.
    ///
    /// # Errors
    ///
    /// Fails where the text is no JSON, and where one of its texts is no template.
    pub(crate) fn parse(json: &str) -> Result<Template, BadTemplate> {
        if !is_json(json) {
            return Err(BadTemplate::Json);
        }
        Template::read(json.trim(), MAX_DEPTH)
    }

    fn read(json: &str, depth: usize) -> Result<Template, BadTemplate> {
        let below = depth.checked_sub(1).ok_or(BadTemplate::Json)?;
        Ok(match open(json) {
            Shape::Object(members) => {
                let read = |(name, value): (String, &str)| Ok((name, Template::read(value, below)?));
                Template::Object(members.into_iter().map(read).collect::<Result<_, _>>()?)
            }
            Shape::List(items) => {
                Template::List(items.into_iter().map(|item| Template::read(item, below)).collect::<Result<_, _>>()?)
            }
            Shape::Scalar if json.starts_with('"') => {
                let text: String = serde_json::from_str(json).map_err(|_| BadTemplate::Json)?;
                Template::Text(Text::parse(&text)?)
            }
            Shape::Scalar => Template::Literal(json.to_owned()),
        })
    }

    /// Calls a function with every reference of the template.
    pub(crate) fn references<'a>(&'a self, seen: &mut impl FnMut(&'a Reference)) {
        match self {
            Template::Literal(_) => {}
            Template::Text(text) => text.references().for_each(seen),
            Template::List(items) => items.iter().for_each(|item| item.references(seen)),
            Template::Object(members) => members.iter().for_each(|(_, value)| value.references(seen)),
        }
    }

    /// Returns the JSON with every reference replaced.
    pub(crate) fn render(&self, values: &dyn Values) -> Result<String, Unresolved> {
        let mut out = String::new();
        self.write(&mut out, &mut |text, out| {
            match text.whole() {
                Some(whole) => {
                    out.push_str(&values.value(whole).ok_or_else(|| Unresolved::Missing(whole.clone()))?);
                }
                None => out.push_str(&quoted(&text.render(values)?)),
            }
            Ok(())
        })?;
        Ok(out)
    }

    fn write<E>(&self, out: &mut String, text: &mut impl FnMut(&Text, &mut String) -> Result<(), E>) -> Result<(), E> {
        match self {
            Template::Literal(literal) => out.push_str(literal),
            Template::Text(template) => text(template, out)?,
            Template::List(items) => {
                out.push('[');
                for (index, item) in items.iter().enumerate() {
                    out.push_str(if index > 0 { "," } else { "" });
                    item.write(out, text)?;
                }
                out.push(']');
            }
            Template::Object(members) => {
                out.push('{');
                for (index, (name, value)) in members.iter().enumerate() {
                    out.push_str(if index > 0 { "," } else { "" });
                    out.push_str(&quoted(name));
                    out.push(':');
                    value.write(out, text)?;
                }
                out.push('}');
            }
        }
        Ok(())
    }
}

/// The JSON that [`Template::parse`] reads.
impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = String::new();
        self.write(&mut out, &mut |text, out| {
            out.push_str(&quoted(&text.to_string()));
            Ok::<(), fmt::Error>(())
        })?;
        f.write_str(&out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// Values by their paths.
    #[derive(Default)]
    struct Table(BTreeMap<String, String>);

    impl Table {
        fn of(entries: &[(&str, &str)]) -> Table {
            Table(entries.iter().map(|&(path, json)| (path.to_owned(), json.to_owned())).collect())
        }
    }

    impl Values for Table {
        fn value(&self, reference: &Reference) -> Option<Cow<'_, str>> {
            self.0.get(&reference.to_string()).map(|json| json.as_str().into())
        }
    }

    fn values() -> Table {
        Table::of(&[
            ("request.body.amount", "10.10"),
            ("request.body.id", r#""a/b ä?""#),
            ("request.body.items", r#"[{"sku": 1}]"#),
            ("request.body.none", "null"),
            ("request.body.empty", r#""""#),
            ("request.body.dots", r#""..""#),
            ("request.body.dot", r#"".""#),
            ("steps.reserve.key", r#""6b""#),
        ])
    }

    fn reference(path: &str) -> Reference {
        Reference::parse(path).unwrap()
    }

    #[test]
    fn texts_are_rendered() {
        for (template, expected) in [
            ("plain", "plain"),
            ("", ""),
            ("${request.body.amount} EUR for ${request.body.id}", "10.10 EUR for a/b ä?"),
            ("$${request.body.amount}", "${request.body.amount}"),
            ("a $ b } c", "a $ b } c"),
            ("$${$${${steps.reserve.key}", "${${6b"),
        ] {
            let parsed = Text::parse(template).unwrap();
            assert_eq!(parsed.render(&values()).as_deref(), Ok(expected), "{template}");
            assert_eq!(parsed.to_string(), template);
        }
    }

    #[test]
    fn a_bad_reference_is_found_at_its_place() {
        for (template, expected) in [
            ("ab ${request.body", BadTemplate::Unclosed { at: 3 }),
            ("${request.body} ${TOKEN}", BadTemplate::Unknown { at: 16, path: "TOKEN".to_owned() }),
            ("$${x} ${}", BadTemplate::Unknown { at: 6, path: String::new() }),
        ] {
            assert_eq!(Text::parse(template), Err(expected), "{template}");
        }
    }

    #[test]
    fn parts_of_paths_stay_in_their_segment() {
        for (template, expected) in [
            ("/orders/${request.body.id}/undo", Ok("/orders/a%2Fb%20%C3%A4%3F/undo")),
            ("/orders?id=${request.body.id}&n=${request.body.empty}", Ok("/orders?id=a%2Fb%20%C3%A4%3F&n=")),
            ("/orders/x-${request.body.empty}", Ok("/orders/x-")),
            ("/orders/", Ok("/orders/")),
            ("/a?b=/${request.body.dots}/c", Ok("/a?b=/../c")),
            ("/orders/${request.body.empty}", Err(Unresolved::PathSegment(reference("request.body.empty")))),
            ("/${request.body.empty}/undo", Err(Unresolved::PathSegment(reference("request.body.empty")))),
            ("/a/${request.body.dots}/undo", Err(Unresolved::PathSegment(reference("request.body.dots")))),
            ("/a/${request.body.dots}?x", Err(Unresolved::PathSegment(reference("request.body.dots")))),
            ("/${request.body.dot}${request.body.dot}/x", Err(Unresolved::PathSegment(reference("request.body.dot")))),
            ("/${request.body.items}", Err(Unresolved::NoText(reference("request.body.items")))),
            ("/${request.body.none}", Err(Unresolved::NoText(reference("request.body.none")))),
            ("/${request.body.absent}", Err(Unresolved::Missing(reference("request.body.absent")))),
        ] {
            let rendered = Text::parse(template).unwrap().render_path(&values());
            assert_eq!(rendered, expected.map(str::to_owned), "{template}");
        }
    }

    #[test]
    fn whole_values_keep_their_type() {
        for (template, expected) in [
            (r#"{"amount":"${request.body.amount}"}"#, Ok(r#"{"amount":10.10}"#)),
            (r#"{ "items" : [ "${request.body.items}", 1.50 ] }"#, Ok(r#"{"items":[[{"sku": 1}],1.50]}"#)),
            (r#""${request.body.none}""#, Ok("null")),
            (r#""${request.body.amount} EUR""#, Ok(r#""10.10 EUR""#)),
            (r#"{"${x}":"$${x}"}"#, Ok(r#"{"${x}":"${x}"}"#)),
            ("null", Ok("null")),
            (r#""x ${request.body.none}""#, Err(Unresolved::NoText(reference("request.body.none")))),
            (r#"["${request.body.absent}"]"#, Err(Unresolved::Missing(reference("request.body.absent")))),
        ] {
            let parsed = Template::parse(template).unwrap();
            assert_eq!(parsed.render(&values()), expected.map(str::to_owned), "{template}");
            assert_eq!(Template::parse(&parsed.to_string()).as_ref(), Ok(&parsed), "{template}");
        }
        assert_eq!(Template::parse("{"), Err(BadTemplate::Json));
        assert_eq!(Template::parse(&format!("{}{}", "[".repeat(200), "]".repeat(200))), Err(BadTemplate::Json));
    }

    #[test]
    fn every_reference_is_told() {
        let template = Template::parse(r#"{"a":["${request.body.x}",1],"b":"x${env.A}${steps.s.key}"}"#).unwrap();
        let mut seen = Vec::new();
        template.references(&mut |reference| seen.push(reference.to_string()));
        assert_eq!(seen, ["request.body.x", "env.A", "steps.s.key"]);
    }

    proptest! {
        /// A text that is written reads back as the same text.
        #[test]
        fn a_text_reads_back(text in "(\\$|\\{|\\}|\\$\\{|\\$\\{request\\.body\\.a\\}|a| ){0,12}") {
            let Ok(parsed) = Text::parse(&text) else { return Ok(()) };
            prop_assert_eq!(parsed.to_string(), text);
        }

        /// Whatever a client sends, the path has the segments of its template.
        #[test]
        fn a_value_never_changes_the_segments_of_a_path(value in "\\PC{0,12}|[/?#%.]{0,4}") {
            let table = Table(BTreeMap::from([("request.body.id".to_owned(), quoted(&value))]));
            let Ok(path) = Text::parse("/orders/${request.body.id}/undo").unwrap().render_path(&table) else {
                prop_assert!(matches!(value.as_str(), "" | "." | ".."));
                return Ok(());
            };
            let segments: Vec<&str> = path.split('/').collect();
            prop_assert_eq!(segments.len(), 4);
            prop_assert!(path.parse::<http::uri::PathAndQuery>().is_ok_and(|parsed| parsed.query().is_none()));
            prop_assert_eq!(crate::http::target::normalize_path(&path).unwrap().split('/').count(), 4);
            let decoded = percent_encoding::percent_decode_str(segments[2]).decode_utf8().unwrap();
            prop_assert_eq!(decoded, value);
        }
    }
}
