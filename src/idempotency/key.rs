//! The `Idempotency-Key` field: a string of structured fields (RFC 9651), or the bare word that many clients send.

use http::{HeaderMap, HeaderName};

/// The default field (draft-ietf-httpapi-idempotency-key-header).
#[cfg(test)]
pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The longest key, in characters.
pub(crate) const MAX_KEY: usize = 255;

/// Why a field is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadKey {
    #[error("the field stands there more than once")]
    Repeated,
    #[error("the key is empty")]
    Empty,
    #[error("the key has more than 255 characters")]
    TooLong,
    #[error("the key begins with `\"` and is no structured-field string (RFC 9651 3.3.3)")]
    BadString,
    #[error("the key has parameters, which mean nothing here")]
    Parameters,
    #[error("the key holds `{0}`; send it as a string in double quotes")]
    BadCharacter(char),
}

/// Returns the key of a request, in the field of that name; `None` where it has no such field. `"abc"` and `abc` are
/// the same key.
pub(crate) fn key_of(fields: &HeaderMap, name: &HeaderName) -> Result<Option<String>, BadKey> {
    let mut lines = fields.get_all(name).iter();
    let Some(value) = lines.next() else { return Ok(None) };
    if lines.next().is_some() {
        return Err(BadKey::Repeated);
    }
    let key = match value.as_bytes() {
        quoted if quoted.starts_with(b"\"") => unquote(quoted)?,
        bare => bare_word(bare)?,
    };
    match key.len() {
        0 => Err(BadKey::Empty),
        1..=MAX_KEY => Ok(Some(key)),
        _ => Err(BadKey::TooLong),
    }
}

fn unquote(text: &[u8]) -> Result<String, BadKey> {
    let item: sfv::Item = sfv::Parser::new(text).parse().map_err(|_| BadKey::BadString)?;
    if !item.params.is_empty() {
        return Err(BadKey::Parameters);
    }
    match item.bare_item {
        sfv::BareItem::String(key) => Ok(key.as_str().to_owned()),
        _ => Err(BadKey::BadString),
    }
}

fn bare_word(text: &[u8]) -> Result<String, BadKey> {
    let is_barred = |byte: &u8| !byte.is_ascii_graphic() || matches!(byte, b'"' | b',' | b';');
    match text.iter().find(|byte| is_barred(byte)) {
        Some(&byte) => Err(BadKey::BadCharacter(char::from(byte))),
        None => Ok(text.iter().copied().map(char::from).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    fn read(lines: &[&[u8]]) -> Result<Option<String>, BadKey> {
        let mut fields = HeaderMap::new();
        for line in lines {
            fields.append(&IDEMPOTENCY_KEY, HeaderValue::from_bytes(line).unwrap());
        }
        key_of(&fields, &IDEMPOTENCY_KEY)
    }

    #[test]
    fn strings_and_bare_words_are_keys() {
        let long = "k".repeat(256);
        for (text, expected) in [
            ("abc", Ok("abc")),
            ("\"abc\"", Ok("abc")),
            ("\"a b\"", Ok("a b")),
            (r#""a\"b\\c""#, Ok(r#"a"b\c"#)),
            ("8e03978e-40d5-43dd-bc93-6894a57f9324", Ok("8e03978e-40d5-43dd-bc93-6894a57f9324")),
            ("a=b", Ok("a=b")),
            ("\\", Ok("\\")),
            ("", Err(BadKey::Empty)),
            ("\"\"", Err(BadKey::Empty)),
            ("\"abc", Err(BadKey::BadString)),
            ("\"abc\" x", Err(BadKey::BadString)),
            ("\"abc\", \"def\"", Err(BadKey::BadString)),
            ("\"abc\";a=1", Err(BadKey::Parameters)),
            ("abc;a=1", Err(BadKey::BadCharacter(';'))),
            ("abc,def", Err(BadKey::BadCharacter(','))),
            ("ab\"c", Err(BadKey::BadCharacter('"'))),
            ("a b", Err(BadKey::BadCharacter(' '))),
            (&long, Err(BadKey::TooLong)),
            (&long[1..], Ok(&long[1..])),
        ] {
            assert_eq!(read(&[text.as_bytes()]), expected.map(|key| Some(key.to_owned())), "{text}");
        }
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[b"a", b"a"]), Err(BadKey::Repeated));
        assert_eq!(read(&[b"\xe9"]), Err(BadKey::BadCharacter('\u{e9}')));
    }

    #[test]
    fn every_visible_character_may_be_in_a_key() {
        for byte in 0x21..=0x7eu8 {
            let bare = read(&[&[byte]]);
            assert_eq!(bare.is_ok(), !matches!(byte, b'"' | b',' | b';'), "{byte}");
            let escaped = if matches!(byte, b'"' | b'\\') { "\\" } else { "" };
            let key = char::from(byte).to_string();
            assert_eq!(read(&[format!("\"{escaped}{key}\"").as_bytes()]), Ok(Some(key)));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_key_or_an_error(bytes in proptest::collection::vec(0x20u8..0xff, 0..300)) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let fields = HeaderMap::from_iter([(IDEMPOTENCY_KEY, value)]);
                if let Ok(Some(key)) = key_of(&fields, &IDEMPOTENCY_KEY) {
                    prop_assert!((1..=MAX_KEY).contains(&key.len()) && key.is_ascii());
                }
            }
        }
    }
}
