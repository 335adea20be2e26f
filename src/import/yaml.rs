//! Writes YAML that the configuration's reader reads back as the same values, with comments.

use std::fmt::Write;

/// The longest line of a list's item that is written as `{ ... }`.
const WIDTH: usize = 100;

/// A value of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// Written as it is: a number, a boolean, a duration, a size.
    Plain(String),
    /// A text, quoted where it must be.
    Text(String),
    /// `[a, b]`
    List(Vec<Value>),
    /// `{ a: b }`
    Map(Entries),
    /// Items below each other.
    Items(Vec<Item>),
    /// Keys below each other, each with its comments.
    Block(Vec<(Comments, String, Value)>),
}

/// Keys with their values, in order.
pub(super) type Entries = Vec<(String, Value)>;

/// Lines of comments, without `#`.
pub(super) type Comments = Vec<String>;

/// An item of a list, with the comments above it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) comments: Comments,
    pub(super) entries: Entries,
}

impl Value {
    pub(super) fn plain(value: impl ToString) -> Value {
        Value::Plain(value.to_string())
    }

    pub(super) fn text(value: impl Into<String>) -> Value {
        Value::Text(value.into())
    }

    /// Returns a list of texts.
    pub(super) fn texts<T: Into<String>>(values: impl IntoIterator<Item = T>) -> Value {
        Value::List(values.into_iter().map(Value::text).collect())
    }

    /// Returns whether the value is written on the line of its key.
    fn is_inline(&self) -> bool {
        !matches!(self, Value::Items(_) | Value::Block(_))
    }
}

/// Returns entries from pairs.
pub(super) fn entries<const N: usize>(pairs: [(&str, Value); N]) -> Entries {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// Returns the text of a whole file.
pub(super) fn file(entries: &[(Comments, String, Value)]) -> String {
    let mut out = String::new();
    for (index, (comments, key, value)) in entries.iter().enumerate() {
        if index > 0 {
            out.push('\n');
        }
        write_entry(&mut out, 0, comments, key, value);
    }
    out
}

fn write_entry(out: &mut String, indent: usize, comments: &[String], key: &str, value: &Value) {
    write_comments(out, indent, comments);
    let _ = write!(out, "{:indent$}{}:", "", shown_key(key));
    match value {
        Value::Items(items) => {
            out.push('\n');
            items.iter().for_each(|item| write_item(out, indent + 2, item));
        }
        Value::Block(entries) => {
            out.push('\n');
            entries.iter().for_each(|(comments, key, value)| write_entry(out, indent + 2, comments, key, value));
        }
        inline => {
            let _ = writeln!(out, " {}", shown(inline));
        }
    }
}

/// Writes an item on one line where it fits, otherwise with a line for each key.
fn write_item(out: &mut String, indent: usize, item: &Item) {
    write_comments(out, indent, &item.comments);
    let line = format!("{:indent$}- {}", "", shown_map(&item.entries));
    if line.len() <= WIDTH && item.entries.iter().all(|(_, value)| value.is_inline()) {
        let _ = writeln!(out, "{line}");
        return;
    }
    let mut lines = String::new();
    item.entries.iter().for_each(|(key, value)| write_entry(&mut lines, indent + 2, &[], key, value));
    // The first line begins with the dash.
    lines.replace_range(indent..indent + 1, "-");
    out.push_str(&lines);
}

pub(super) fn write_comments(out: &mut String, indent: usize, comments: &[String]) {
    for line in comments.iter().flat_map(|comment| comment.lines()) {
        // Only printable characters may stand in a comment.
        let line: String = line.chars().filter(|char| !char.is_control()).collect();
        let _ = writeln!(out, "{:indent$}# {}", "", line.trim_end());
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Plain(text) => text.clone(),
        Value::Text(text) => shown_text(text),
        Value::List(values) => format!("[{}]", values.iter().map(shown).collect::<Vec<_>>().join(", ")),
        Value::Map(entries) => shown_map(entries),
        Value::Items(_) | Value::Block(_) => unreachable!("only at the level of lines"),
    }
}

fn shown_map(entries: &[(String, Value)]) -> String {
    if entries.is_empty() {
        return "{}".to_owned();
    }
    let pairs = entries.iter().filter(|(_, value)| value.is_inline());
    let pairs: Vec<_> = pairs.map(|(key, value)| format!("{}: {}", shown_key(key), shown(value))).collect();
    format!("{{ {} }}", pairs.join(", "))
}

/// Returns a key; the words for booleans are no exception among keys.
fn shown_key(key: &str) -> String {
    match key.starts_with(|first: char| first.is_ascii_lowercase())
        && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
    {
        true => key.to_owned(),
        false => shown_text(key),
    }
}

/// Returns a text without quotes where it is read as the same text, inside of `{ }` and `[ ]` too.
fn shown_text(text: &str) -> String {
    let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'.' | b'_' | b'-' | b':');
    let is_word = text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '/')
        && text.bytes().all(is_bare)
        && !text.ends_with(':');
    let is_address = text.parse::<std::net::SocketAddrV4>().is_ok() || text.parse::<std::net::Ipv4Addr>().is_ok();
    let reserved = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    if (is_word && !reserved.contains(&text.to_ascii_lowercase().as_str())) || is_address {
        return text.to_owned();
    }
    let mut quoted = String::from("\"");
    let mut rest = text.chars().peekable();
    while let Some(char) = rest.next() {
        match char {
            '"' | '\\' => quoted.extend(['\\', char]),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            '\r' => quoted.push_str("\\r"),
            // `${` would be replaced from the environment.
            '$' if rest.peek() == Some(&'{') => quoted.push_str("$$"),
            char if char.is_control() => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(char));
            }
            char => quoted.push(char),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_quoted_where_they_must_be() {
        for bare in ["app", "/static/", "cookie:session", "10.0.0.1:80", "X-Edge", "a.b_c-d"] {
            assert_eq!(shown_text(bare), bare);
        }
        for (text, quoted) in [
            ("", "\"\""),
            ("*.example.com", "\"*.example.com\""),
            ("On", "\"On\""),
            ("1.5", "\"1.5\""),
            ("a: b", "\"a: b\""),
            ("a:", "\"a:\""),
            ("[::]:80", "\"[::]:80\""),
            ("\"\\\n\u{7}", "\"\\\"\\\\\\n\\u0007\""),
            ("${HOME} $x", "\"$${HOME} $x\""),
        ] {
            assert_eq!(shown_text(text), quoted);
        }
    }

    #[test]
    fn items_stand_on_one_line_where_they_fit() {
        let item = |value: &str| Item {
            comments: vec!["from line 3".to_owned()],
            entries: entries([("name", Value::text("a")), ("path", Value::text(value))]),
        };
        let long = format!("/{}", "x".repeat(WIDTH));
        let text = file(&[(Vec::new(), "routes".to_owned(), Value::Items(vec![item("/b"), item(&long)]))]);
        let expected = format!(
            "routes:\n  # from line 3\n  - {{ name: a, path: /b }}\n  # from line 3\n  - name: a\n    path: {long}\n"
        );
        assert_eq!(text, expected);
    }
}
