//! The hash sources: one table from which the enum, the reader, the JSON Schema, the reference page and the rules of
//! validation are made. `proxy/hash_key.rs` extracts the value of a source from a request; the compiler requires its
//! arm there.

use super::read::{Field, Reader};
use super::tree::Node;
use http::HeaderName;
use serde_json::{Value as Json, json};
use std::fmt;

/// A row of the table: the notation of a source in the file, and its traits.
#[derive(Clone, Copy, Debug)]
pub(super) struct SourceTraits {
    /// The notation in the file; `NAME` stands for a name that the user chooses.
    pub(super) form: &'static str,
    about: &'static str,
    /// The source is present in every request.
    pub(super) is_always_present: bool,
    /// Clients choose its value.
    pub(super) is_chosen_by_client: bool,
    /// The value differs between callers, so that the source may be used in `idempotency.scope`.
    pub(super) tells_callers_apart: bool,
}

/// Declares the sources. A source with a name has the type of that name in parentheses, and its parser after `by`.
macro_rules! hash_sources {
    ($(
        #[doc = $about:literal]
        $variant:ident $(($type:ty))? = $form:literal $(by $parse:ident)? {
            always_present: $always:literal, chosen_by_client: $chosen:literal, tells_callers_apart: $apart:literal
        }
    )*) => {
        /// A hash source: the part of a request that is hashed.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub(crate) enum HashSource { $( #[doc = $about] $variant $(($type))?, )* }

        impl HashSource {
            /// The table, in the order of the documentation.
            pub(super) const TABLE: &[&SourceTraits] =
                &[ $( hash_sources!(@row $form, $about, $always, $chosen, $apart), )* ];

            fn parse(text: &str) -> Option<HashSource> {
                $( hash_sources!(@parse text, $variant, $form $(, $parse)?); )*
                None
            }

            /// Returns the source's row of the table.
            pub(super) fn traits(&self) -> &'static SourceTraits {
                match self { $(
                    HashSource::$variant { .. } => hash_sources!(@row $form, $about, $always, $chosen, $apart),
                )* }
            }

            /// Returns the name in a source that has one.
            fn name(&self) -> Option<&str> {
                $( hash_sources!(@name self, $variant $(, $type)?); )*
                None
            }
        }
    };
    (@parse $text:ident, $variant:ident, $form:literal) => {
        if $text == $form {
            return Some(HashSource::$variant);
        }
    };
    (@parse $text:ident, $variant:ident, $form:literal, $parse:ident) => {
        if let Some(name) = $form.strip_suffix("NAME").and_then(|prefix| $text.strip_prefix(prefix)) {
            return $parse(name).map(HashSource::$variant);
        }
    };
    (@row $form:literal, $about:literal, $always:literal, $chosen:literal, $apart:literal) => {
        &SourceTraits {
            form: $form,
            about: $about,
            is_always_present: $always,
            is_chosen_by_client: $chosen,
            tells_callers_apart: $apart,
        }
    };
    (@name $self:ident, $variant:ident) => {};
    (@name $self:ident, $variant:ident, $type:ty) => {
        if let HashSource::$variant(name) = $self {
            return Some(AsRef::<str>::as_ref(name));
        }
    };
}

hash_sources! {
    /// The value of the cookie with this name; of several the first one.
    Cookie(String) = "cookie:NAME" by cookie_name {
        always_present: false, chosen_by_client: true, tells_callers_apart: true
    }
    /// The first line of the request field with this name.
    Header(HeaderName) = "header:NAME" by field_name {
        always_present: false, chosen_by_client: true, tells_callers_apart: true
    }
    /// The value of the query parameter with this name, as written in the URL; of several the first one.
    Query(String) = "query:NAME" by parameter_name {
        always_present: false, chosen_by_client: true, tells_callers_apart: true
    }
    /// The client's address; behind `trusted_proxies` the one that they forward.
    ClientIp = "client_ip" {
        always_present: true, chosen_by_client: false, tells_callers_apart: true
    }
    /// The host, in lower case and without the port.
    Host = "host" {
        always_present: true, chosen_by_client: false, tells_callers_apart: false
    }
    /// The path in its normal form, without the query.
    Path = "path" {
        always_present: true, chosen_by_client: false, tells_callers_apart: false
    }
    /// The path in its normal form, with the query.
    Uri = "uri" {
        always_present: true, chosen_by_client: false, tells_callers_apart: false
    }
}

fn cookie_name(name: &str) -> Option<String> {
    // A cookie's name is a token, like a field's (RFC 6265 4.1.1).
    field_name(name).map(|_| name.to_owned())
}

fn field_name(name: &str) -> Option<HeaderName> {
    HeaderName::from_bytes(name.as_bytes()).ok()
}

fn parameter_name(name: &str) -> Option<String> {
    (!name.is_empty()).then(|| name.to_owned())
}

impl HashSource {
    fn expected() -> String {
        format!("one of {}", Self::forms(|_| true))
    }

    /// Returns the sources that have a trait, as an enumeration for messages.
    pub(super) fn forms(has: impl Fn(&SourceTraits) -> bool) -> String {
        let forms: Vec<&str> = Self::TABLE.iter().copied().filter(|row| has(row)).map(|row| row.form).collect();
        forms.join(", ")
    }
}

impl fmt::Display for HashSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = self.traits().form;
        match (form.strip_suffix("NAME"), self.name()) {
            (Some(prefix), Some(name)) => write!(f, "{prefix}{name}"),
            _ => f.write_str(form),
        }
    }
}

impl Field for HashSource {
    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let expected = Self::expected();
        reader.scalar(node, &expected, |text| Self::parse(text).ok_or_else(|| expected.clone()))
    }

    fn schema() -> Json {
        let forms = Self::TABLE.iter().map(|row| match row.form.strip_suffix("NAME") {
            Some(prefix) => {
                json!({ "title": row.form, "pattern": format!("^{prefix}.+$"), "description": row.about.trim() })
            }
            None => json!({ "title": row.form, "const": row.form, "description": row.about.trim() }),
        });
        json!({ "title": "hash source", "type": "string", "anyOf": forms.collect::<Vec<_>>() })
    }

    fn show(&self) -> Json {
        self.to_string().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every row is read and shown in its own notation.
    #[test]
    fn the_table_is_read_as_it_is_written() {
        for row in HashSource::TABLE {
            let text = row.form.replace("NAME", "x-user");
            let source = HashSource::parse(&text).unwrap();
            assert_eq!((source.traits().form, source.to_string()), (row.form, text));
        }
        for text in ["", "cookie", "cookie:", "cookie:a b", "header:a b", "query:", "client_ip:x", "hosts"] {
            assert_eq!(HashSource::parse(text), None, "{text}");
        }
    }

    /// A source that clients choose is never always present; otherwise every pool would warn of a public seed.
    #[test]
    fn no_source_is_both_chosen_and_always_there() {
        assert!(!HashSource::TABLE.iter().any(|row| row.is_always_present && row.is_chosen_by_client));
    }
}
