//! From the tree to typed settings: each block has one table from which the reader, the defaults, the JSON Schema and
//! the effective configuration are made, so that they cannot differ.

use super::diagnostics::{Diagnostics, Span};
use super::tree::{Node, Value};
use serde_json::{Value as Json, json};
use std::ops::Deref;

/// The context of the reader: the diagnostics and the environment.
pub(crate) struct Reader<'a> {
    pub(crate) diagnostics: &'a mut Diagnostics,
    pub(crate) environment: &'a dyn Fn(&str) -> Option<String>,
    /// `true` inside `saga`, where `${` is left to templates.
    pub(crate) is_verbatim: bool,
}

impl Reader<'_> {
    /// Returns the text of a scalar with every `${NAME}` replaced from the environment; `$${` stands for
    /// `${` itself.
    pub(crate) fn text(&mut self, node: &Node, expected: &str) -> Option<String> {
        let text = match &node.value {
            Value::Scalar { text, .. } if !node.is_null() => text,
            _ => {
                self.diagnostics.error(node.span, format!("expected {expected}, found {}", node.kind()));
                return None;
            }
        };
        if !text.contains("${") {
            return Some(text.clone());
        }
        if self.is_verbatim {
            let message = "nothing is replaced here: inside `saga` only paths, fields and bodies take `${...}`";
            self.diagnostics.error(node.span, message);
            return None;
        }
        let mut out = String::with_capacity(text.len());
        let mut rest = text.as_str();
        while let Some(at) = rest.find("${") {
            if at > 0 && rest.as_bytes()[at - 1] == b'$' {
                out.push_str(&rest[..at - 1]);
                out.push_str("${");
                rest = &rest[at + 2..];
                continue;
            }
            out.push_str(&rest[..at]);
            let Some(end) = rest[at..].find('}') else {
                self.diagnostics
                    .error(node.span, "`${` is not closed by `}`; write `$${` for the characters themselves");
                return None;
            };
            let name = &rest[at + 2..at + end];
            match (self.environment)(name) {
                Some(value) => out.push_str(&value),
                None => {
                    self.diagnostics.error(node.span, format!("the environment variable `{name}` is not set"));
                    return None;
                }
            }
            rest = &rest[at + end + 1..];
        }
        out.push_str(rest);
        Some(out)
    }

    /// Reads a scalar with its own grammar.
    pub(crate) fn scalar<T>(
        &mut self,
        node: &Node,
        expected: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = self.text(node, expected)?;
        match parse(&text) {
            Ok(value) => Some(value),
            Err(wanted) => {
                self.diagnostics.error(node.span, format!("expected {wanted}, found {}", node.kind()));
                None
            }
        }
    }
}

/// The type of a setting: its reader, schema and display.
pub(crate) trait Field: Sized {
    /// Returns the value; `None` where it is invalid, which is reported.
    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self>;
    /// Returns the JSON Schema of the value.
    fn schema() -> Json;
    /// Returns the value in the effective configuration.
    fn show(&self) -> Json;
}

/// A value with its position, for rules that concern several settings. Equality is that of the values.
#[derive(Clone, Debug)]
pub(crate) struct Spanned<T> {
    pub(crate) value: T,
    pub(crate) span: Span,
}

impl<T: PartialEq> PartialEq for Spanned<T> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl<T> Deref for Spanned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: Field> Field for Spanned<T> {
    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        T::read(node, reader).map(|value| Spanned { value, span: node.span })
    }
    fn schema() -> Json {
        T::schema()
    }
    fn show(&self) -> Json {
        self.value.show()
    }
}

/// A value in which the file's own `${NAME}` is not replaced.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Verbatim<T>(pub(crate) T);

impl<T> Deref for Verbatim<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Field> Field for Verbatim<T> {
    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let mut verbatim =
            Reader { diagnostics: &mut *reader.diagnostics, environment: reader.environment, is_verbatim: true };
        T::read(node, &mut verbatim).map(Verbatim)
    }
    fn schema() -> Json {
        T::schema()
    }
    fn show(&self) -> Json {
        self.0.show()
    }
}

impl<T: Field> Field for Option<T> {
    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        T::read(node, reader).map(Some)
    }
    fn schema() -> Json {
        T::schema()
    }
    fn show(&self) -> Json {
        self.as_ref().map_or(Json::Null, Field::show)
    }
}

impl<T: Field> Field for Box<T> {
    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        T::read(node, reader).map(Box::new)
    }
    fn schema() -> Json {
        T::schema()
    }
    fn show(&self) -> Json {
        (**self).show()
    }
}

/// Reading continues after an invalid entry, so that all errors are found.
impl<T: Field> Field for Vec<T> {
    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let Value::Sequence(items) = &node.value else {
            reader.diagnostics.error(node.span, format!("expected a list, found {}", node.kind()));
            return None;
        };
        Some(items.iter().filter_map(|item| T::read(item, reader)).collect())
    }
    fn schema() -> Json {
        json!({ "type": "array", "items": T::schema() })
    }
    fn show(&self) -> Json {
        self.iter().map(Field::show).collect()
    }
}

/// A mapping from names that the user chooses, in the order of the file.
///
/// A name with an invalid value is kept with `None`, so that references to it are no further errors.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Named<T> {
    pub(crate) entries: Vec<(Spanned<String>, Option<T>)>,
}

impl<T> Default for Named<T> {
    fn default() -> Self {
        Named { entries: Vec::new() }
    }
}

impl<T> Named<T> {
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|(name, _)| name.as_str())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Spanned<String>, &T)> + Clone {
        self.entries.iter().filter_map(|(name, value)| Some((name, value.as_ref()?)))
    }

    pub(crate) fn get(&self, name: &str) -> Option<&T> {
        self.iter().find(|(entry, _)| entry.as_str() == name).map(|(_, value)| value)
    }
}

impl<T: Field> Field for Named<T> {
    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let Value::Mapping(entries) = &node.value else {
            reader.diagnostics.error(node.span, format!("expected a mapping, found {}", node.kind()));
            return None;
        };
        let entries = entries
            .iter()
            .filter_map(|(key, value)| {
                let name = Spanned::<String>::read(key, reader)?;
                Some((name, T::read(value, reader)))
            })
            .collect();
        Some(Named { entries })
    }
    fn schema() -> Json {
        json!({ "type": "object", "additionalProperties": T::schema() })
    }
    fn show(&self) -> Json {
        self.iter().map(|(name, value)| (name.value.clone(), value.show())).collect::<serde_json::Map<_, _>>().into()
    }
}

/// A mapping whose known keys are read.
pub(crate) struct Block<'a> {
    entries: &'a [(Node, Node)],
    known: &'a [Key],
    span: Span,
}

/// A key of a block.
pub(crate) struct Key {
    pub(crate) name: &'static str,
    /// Its former name.
    pub(crate) formerly: Option<&'static str>,
}

fn find<'a>(entries: &'a [(Node, Node)], name: &str) -> Option<&'a Node> {
    let is_named = |key: &Node| matches!(&key.value, Value::Scalar { text, .. } if text == name);
    entries.iter().find(|(key, _)| is_named(key)).map(|(_, value)| value)
}

impl<'a> Block<'a> {
    /// Reports unknown keys, with the most similar known one, and keys with a former name.
    pub(crate) fn open(node: &'a Node, known: &'a [Key], reader: &mut Reader<'_>) -> Option<Block<'a>> {
        let Value::Mapping(entries) = &node.value else {
            reader.diagnostics.error(node.span, format!("expected a mapping, found {}", node.kind()));
            return None;
        };
        for (key, _) in entries {
            let Value::Scalar { text, .. } = &key.value else { continue };
            let names = || known.iter().map(|key| key.name);
            if names().any(|name| name == text) {
                continue;
            }
            if let Some(Key { name, .. }) = known.iter().find(|key| key.formerly == Some(text)) {
                match find(entries, name) {
                    Some(_) => {
                        let message = format!("`{text}` is the old name of `{name}`, which stands here too: remove it");
                        reader.diagnostics.error(key.span, message);
                    }
                    None => {
                        let message =
                            format!("`{text}` is called `{name}` now; the next version takes the new name alone");
                        reader.diagnostics.warning(key.span, message);
                    }
                }
                continue;
            }
            let advice = match did_you_mean(text, names()) {
                Some(meant) => format!("; did you mean `{meant}`?"),
                None => format!("; known here: {}", names().collect::<Vec<_>>().join(", ")),
            };
            reader.diagnostics.error(key.span, format!("unknown key `{text}`{advice}"));
        }
        Some(Block { entries, known, span: node.span })
    }

    /// Returns the value of a key, also by its former name.
    pub(crate) fn get(&self, name: &str) -> Option<&'a Node> {
        let formerly = || self.known.iter().find(|key| key.name == name).and_then(|key| key.formerly);
        find(self.entries, name).or_else(|| find(self.entries, formerly()?))
    }

    pub(crate) fn missing(&self, name: &str, reader: &mut Reader<'_>) {
        reader.diagnostics.error(self.span, format!("the key `{name}` is missing here"));
    }
}

/// Returns the candidate that is most similar to a misspelt word.
pub(crate) fn did_you_mean<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|candidate| (strsim::damerau_levenshtein(&word.to_lowercase(), candidate), candidate))
        .filter(|&(distance, candidate)| distance <= (candidate.len().max(word.len()) / 3).max(1))
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// Returns a default value from its text: defaults are written as in the file.
pub(crate) fn default_value<T: Field>(text: &str) -> T {
    let mut diagnostics = Diagnostics::default();
    let node = super::tree::parse(text, &mut diagnostics).expect("a default is valid YAML");
    let mut reader = Reader { diagnostics: &mut diagnostics, environment: &|_| None, is_verbatim: false };
    T::read(&node, &mut reader).expect("a default is a valid value")
}

/// Returns the key of a field of a settings block: Rust keywords are written with `r#`.
pub(crate) const fn key(field: &'static str) -> &'static str {
    match field.as_bytes() {
        [b'r', b'#', ..] => field.split_at(2).1,
        _ => field,
    }
}

/// Declares a block of settings. The value after `=` applies where the key is absent: `required`, `absent` (the type's
/// empty value), `block` (all defaults of that block) or the default as text. After `formerly` comes the former name of
/// a key, which is accepted with a warning.
macro_rules! settings {
    (
        $(#[doc = $about:literal])*
        $name:ident {
            $( $(#[doc = $doc:literal])* $field:ident: $type:ty = $default:tt $(within $low:literal to $high:literal)? $(formerly $old:literal)?; )*
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Clone, Debug, PartialEq)]
        pub(crate) struct $name {
            $( $(#[doc = $doc])* pub(crate) $field: $type, )*
        }

        impl $name {
            const KEYS: &[$crate::config::read::Key] = &[
                $( $crate::config::read::Key {
                    name: $crate::config::read::key(stringify!($field)),
                    formerly: settings!(@formerly $($old)?),
                }, )*
            ];
        }

        impl $crate::config::read::Field for $name {
            fn read(node: &$crate::config::tree::Node, reader: &mut $crate::config::read::Reader<'_>) -> Option<Self> {
                let block = $crate::config::read::Block::open(node, Self::KEYS, reader)?;
                $(
                    let $field: Option<$type> = match block.get($crate::config::read::key(stringify!($field))) {
                        Some(value) => {
                            let read = <$type as $crate::config::read::Field>::read(value, reader);
                            $( let read = $crate::config::read::within(read, value, reader, $low, $high); )?
                            read.or(settings!(@fallback $type, $default))
                        }
                        None => settings!(@absent $type, $default, block, reader, $field),
                    };
                )*
                Some($name { $( $field: $field?, )* })
            }

            fn schema() -> serde_json::Value {
                #[allow(unused_mut)]
                let mut required: Vec<&str> = Vec::new();
                let mut properties = serde_json::Map::new();
                $(
                    let mut schema = <$type as $crate::config::read::Field>::schema();
                    $crate::config::read::describe(&mut schema, concat!($($doc, "\n"),*));
                    $( $crate::config::read::describe_range(&mut schema, $low, $high); )?
                    settings!(@describe $default, $type, schema, required, $field);
                    $( properties.insert($old.to_owned(), $crate::config::read::deprecated(&schema, stringify!($field))); )?
                    properties.insert($crate::config::read::key(stringify!($field)).to_owned(), schema);
                )*
                let mut schema = serde_json::json!({
                    "type": "object",
                    "properties": properties,
                    "additionalProperties": false,
                });
                if !required.is_empty() {
                    schema["required"] = required.into();
                }
                $crate::config::read::describe(&mut schema, concat!($($about, "\n"),*));
                schema
            }

            fn show(&self) -> serde_json::Value {
                let mut shown = serde_json::Map::new();
                $( shown.insert($crate::config::read::key(stringify!($field)).to_owned(), <$type as $crate::config::read::Field>::show(&self.$field)); )*
                shown.retain(|_, value| !value.is_null());
                shown.into()
            }
        }
    };

    (@formerly) => { None };
    (@formerly $old:literal) => { Some($old) };
    (@absent $type:ty, required, $block:ident, $reader:ident, $field:ident) => {{
        $block.missing($crate::config::read::key(stringify!($field)), $reader);
        None
    }};
    (@absent $type:ty, $default:tt, $block:ident, $reader:ident, $field:ident) => {
        settings!(@fallback $type, $default)
    };
    (@fallback $type:ty, required) => { None };
    (@fallback $type:ty, absent) => { Some(<$type>::default()) };
    (@fallback $type:ty, block) => { Some($crate::config::read::default_value::<$type>("{}")) };
    (@fallback $type:ty, $default:literal) => { Some($crate::config::read::default_value::<$type>($default)) };
    (@describe required, $type:ty, $schema:ident, $required:ident, $field:ident) => {
        $required.push($crate::config::read::key(stringify!($field)));
    };
    (@describe absent, $type:ty, $schema:ident, $required:ident, $field:ident) => {};
    (@describe block, $type:ty, $schema:ident, $required:ident, $field:ident) => {};
    (@describe $default:literal, $type:ty, $schema:ident, $required:ident, $field:ident) => {
        $schema["default"] = <$type as $crate::config::read::Field>::show(&$crate::config::read::default_value::<$type>($default));
    };
}
pub(crate) use settings;

/// Declares an enum of words.
macro_rules! choices {
    ($(#[doc = $about:literal])* $name:ident { $( $(#[doc = $doc:literal])* $variant:ident = $word:literal, )* }) => {
        $(#[doc = $about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum $name { $( $(#[doc = $doc])* $variant, )* }

        impl $name {
            const WORDS: &[&str] = &[$($word),*];

            /// Returns the variant of a word in the file.
            #[allow(dead_code, reason = "not every choice is made outside the file too")]
            pub(crate) fn from_word(word: &str) -> Option<Self> {
                match word { $( $word => Some($name::$variant), )* _ => None }
            }

            /// Returns the word of a variant in the file.
            pub(crate) fn word(self) -> &'static str {
                match self { $( $name::$variant => $word, )* }
            }
        }

        impl $crate::config::read::Field for $name {
            fn read(node: &$crate::config::tree::Node, reader: &mut $crate::config::read::Reader<'_>) -> Option<Self> {
                let one_of = || format!("one of {}", $name::WORDS.join(", "));
                reader.scalar(node, &one_of(), |text| match text {
                    $( $word => Ok($name::$variant), )*
                    _ => Err(match $crate::config::read::did_you_mean(text, $name::WORDS.iter().copied()) {
                        Some(meant) => format!("{} (did you mean `{meant}`?)", one_of()),
                        None => one_of(),
                    }),
                })
            }
            fn schema() -> serde_json::Value {
                serde_json::json!({ "enum": $name::WORDS })
            }
            fn show(&self) -> serde_json::Value {
                self.word().into()
            }
        }
    };
}
pub(crate) use choices;

/// Reports a value outside of a range, both bounds included.
pub(crate) fn within<T: Field + PartialOrd>(
    value: Option<T>,
    node: &Node,
    reader: &mut Reader<'_>,
    low: &str,
    high: &str,
) -> Option<T> {
    let value = value?;
    if value < default_value::<T>(low) || value > default_value::<T>(high) {
        reader.diagnostics.error(node.span, format!("expected a value from {low} to {high}, found {}", node.kind()));
        return None;
    }
    Some(value)
}

pub(crate) fn describe(schema: &mut Json, doc: &str) {
    let text = doc.split_whitespace().collect::<Vec<_>>().join(" ");
    if !text.is_empty() {
        schema["description"] = text.into();
    }
}

/// Returns the schema of a key's former name.
pub(crate) fn deprecated(schema: &Json, name: &str) -> Json {
    let mut schema = schema.clone();
    schema["description"] = format!("The old name of `{name}`.").into();
    schema["deprecated"] = true.into();
    schema
}

pub(crate) fn describe_range(schema: &mut Json, low: &str, high: &str) {
    match (low.parse::<u64>(), high.parse::<u64>()) {
        (Ok(low), Ok(high)) => {
            schema["minimum"] = low.into();
            schema["maximum"] = high.into();
        }
        _ => {
            let text = schema["description"].as_str().unwrap_or_default();
            schema["description"] = format!("{text} From {low} to {high}.").into();
        }
    }
}
