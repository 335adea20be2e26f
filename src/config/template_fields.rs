//! The settings of a saga that are templates, with the place of every reference.

use super::diagnostics::Span;
use super::read::{Field, Reader, Spanned};
use super::tree::{Node, Value};
use crate::template::{BadTemplate, Reference, Template, Text, is_json};
use http::HeaderName;
use http::header::{AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION};
use serde_json::{Map, Value as Json, json};

/// The references of a template, with their places.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct References {
    pub(crate) known: Vec<Spanned<Reference>>,
    /// The paths that stand for nothing: the suggestion depends on the steps.
    pub(crate) unknown: Vec<Spanned<String>>,
}

impl References {
    /// Reads a template. A reference that stands for nothing is kept for the check of the whole saga, and the template
    /// is read without it.
    fn read(&mut self, node: &Node, text: &str, reader: &mut Reader<'_>) -> Option<Text> {
        let mut source = text.to_owned();
        // How many characters of `source` the text does not have.
        let mut added = 0;
        let template = loop {
            match Text::parse(&source) {
                Ok(template) => break template,
                Err(BadTemplate::Unknown { at, path }) => {
                    let span = place(node, text, at - added, path.chars().count() + 3);
                    self.unknown.push(Spanned { value: path, span });
                    // `$${` is a literal: behind it more may be wrong.
                    source.insert(at, '$');
                    added += 1;
                }
                Err(error) => {
                    reader.diagnostics.error(node.span, error.to_string());
                    return None;
                }
            }
        };
        let mut from = 0;
        for reference in template.references() {
            let at = text[from..].find(&format!("${{{reference}}}")).map(|at| from + at);
            let length = reference.to_string().chars().count() + 3;
            let span = at.map_or(node.span, |at| place(node, text, at, length));
            from = at.map_or(from, |at| at + length);
            if let Reference::Environment(name) = reference
                && (reader.environment)(name).is_none()
            {
                reader.diagnostics.error(span, format!("the environment variable `{name}` is not set"));
            }
            self.known.push(Spanned { value: reference.clone(), span });
        }
        Some(template)
    }
}

/// Returns the place of a part of a scalar: exactly where the scalar stands on one line and has no escapes.
fn place(node: &Node, text: &str, at: usize, length: usize) -> Span {
    let before = text[..at].chars().count();
    match node.span.length.checked_sub(text.chars().count()) {
        Some(quotes @ (0 | 2)) => Span { column: node.span.column + before + quotes / 2, length, ..node.span },
        _ => node.span,
    }
}

/// Returns the text of a scalar as it stands in the file.
fn scalar<'a>(node: &'a Node, expected: &str, reader: &mut Reader<'_>) -> Option<&'a str> {
    match &node.value {
        Value::Scalar { text, .. } if !node.is_null() => Some(text),
        _ => {
            reader.diagnostics.error(node.span, format!("expected {expected}, found {}", node.kind()));
            None
        }
    }
}

/// A path of a saga's request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PathTemplate {
    pub(crate) template: Text,
    pub(crate) references: References,
}

impl PathTemplate {
    const EXPECTED: &str = "a path that begins with `/`, percent-encoded where it must be";

    /// Returns whether the literal parts of the template are those of a path: without an empty segment inside, a dot
    /// segment or a fragment.
    fn is_path(text: &str) -> bool {
        let path = text.split('?').next().unwrap_or_default();
        let inner = path.strip_suffix('/').unwrap_or(path);
        text.parse::<http::uri::PathAndQuery>().is_ok()
            && text.starts_with('/')
            && !text.contains('#')
            && (inner.is_empty() || inner.split('/').skip(1).all(|segment| !matches!(segment, "" | "." | "..")))
            && crate::http::target::normalize_path(path).is_ok_and(|normal| normal == path)
    }
}

impl Field for PathTemplate {
    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let text = scalar(node, Self::EXPECTED, reader)?;
        let mut references = References::default();
        let template = references.read(node, text, reader)?;
        // A path that is wrong is no reason to know nothing of its step.
        if references.unknown.is_empty() && !Self::is_path(&template.with_stand_ins("x")) {
            reader.diagnostics.error(node.span, format!("expected {}, found {}", Self::EXPECTED, node.kind()));
        }
        Some(PathTemplate { template, references })
    }
    fn schema() -> Json {
        json!({ "title": "path template", "type": "string", "pattern": "^/", "examples": ["/charges/${steps.charge.key}/undo"] })
    }
    fn show(&self) -> Json {
        self.template.to_string().into()
    }
}

/// The fields of a saga's request.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct HeaderTemplates {
    pub(crate) entries: Vec<(Spanned<HeaderName>, HeaderTemplate)>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct HeaderTemplate {
    pub(crate) template: Text,
    pub(crate) references: References,
}

impl HeaderTemplate {
    /// Returns whether the value comes from the environment, at least in part.
    pub(crate) fn is_from_environment(&self) -> bool {
        self.template.references().any(|reference| matches!(reference, Reference::Environment(_)))
    }
}

/// Returns whether a field is one of HTTP's own for credentials.
pub(crate) fn is_credential(name: &HeaderName) -> bool {
    [AUTHORIZATION, PROXY_AUTHORIZATION, COOKIE].contains(name)
}

/// Returns whether a field's value is not shown: a credential's by its name.
fn is_hidden(name: &HeaderName) -> bool {
    is_credential(name)
        || ["auth", "token", "key", "secret", "password", "session"].iter().any(|part| name.as_str().contains(part))
}

impl Field for HeaderTemplates {
    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let Value::Mapping(entries) = &node.value else {
            reader.diagnostics.error(node.span, format!("expected a mapping, found {}", node.kind()));
            return None;
        };
        let mut read = HeaderTemplates::default();
        for (key, value) in entries {
            let name = Spanned::<HeaderName>::read(key, reader);
            let text = scalar(value, "a field value", reader);
            let mut references = References::default();
            let template = text.and_then(|text| references.read(value, text, reader));
            let (Some(name), Some(template)) = (name, template) else { continue };
            if http::HeaderValue::from_str(&template.with_stand_ins("x")).is_err() {
                reader.diagnostics.error(value.span, "expected a field value of visible ASCII characters");
            }
            read.entries.push((name, HeaderTemplate { template, references }));
        }
        Some(read)
    }
    fn schema() -> Json {
        let value = json!({ "title": "text template", "type": ["string", "number", "boolean"], "examples": ["Bearer ${env.TOKEN}"] });
        json!({ "type": "object", "additionalProperties": value })
    }
    fn show(&self) -> Json {
        let shown = |(name, value): &(Spanned<HeaderName>, HeaderTemplate)| {
            let text = match is_hidden(name) && !value.is_from_environment() {
                true => "(hidden)".to_owned(),
                false => value.template.to_string(),
            };
            (name.to_string(), Json::from(text))
        };
        match self.entries.is_empty() {
            true => Json::Null,
            false => self.entries.iter().map(shown).collect::<Map<_, _>>().into(),
        }
    }
}

/// A body of a saga's request, or of its answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct BodyTemplate {
    pub(crate) template: Template,
    pub(crate) references: References,
}

impl BodyTemplate {
    fn template(node: &Node, references: &mut References, reader: &mut Reader<'_>) -> Option<Template> {
        Some(match &node.value {
            Value::Mapping(entries) => {
                let mut members = Vec::new();
                for (key, value) in entries {
                    let Value::Scalar { text, .. } = &key.value else { continue };
                    if text.contains("${") {
                        reader
                            .diagnostics
                            .error(key.span, "a name in a body stands for itself: `${` is not replaced in it");
                    }
                    members
                        .extend(BodyTemplate::template(value, references, reader).map(|value| (text.clone(), value)));
                }
                Template::Object(members)
            }
            Value::Sequence(items) => Template::List(
                items.iter().filter_map(|item| BodyTemplate::template(item, references, reader)).collect(),
            ),
            Value::Scalar { text, plain: true } if literal(text).is_some() => Template::Literal(literal(text)?),
            Value::Scalar { text, .. } => Template::Text(references.read(node, text, reader)?),
        })
    }
}

/// Returns a scalar without quotes as JSON, where it is no text (YAML 1.2, 10.3.2).
fn literal(text: &str) -> Option<String> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Some("null".to_owned()),
        "true" | "True" | "TRUE" => Some("true".to_owned()),
        "false" | "False" | "FALSE" => Some("false".to_owned()),
        _ => {
            let is_number = text.starts_with(|c: char| c == '-' || c.is_ascii_digit()) && is_json(text);
            is_number.then(|| text.to_owned())
        }
    }
}

impl Field for BodyTemplate {
    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let mut references = References::default();
        let template = BodyTemplate::template(node, &mut references, reader)?;
        Some(BodyTemplate { template, references })
    }
    fn schema() -> Json {
        json!({ "title": "JSON template", "examples": ["{ amount: \"${request.body.amount}\", currency: EUR }"] })
    }
    fn show(&self) -> Json {
        serde_json::from_str(&self.template.to_string()).unwrap_or_default()
    }
}
