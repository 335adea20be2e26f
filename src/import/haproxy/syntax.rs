//! The language of HAProxy: sections of lines of words.

use super::super::{ImportError, Place};
use std::path::Path;
use std::rc::Rc;

/// A section with its lines.
#[derive(Debug)]
pub(super) struct Section {
    pub(super) place: Place,
    /// The words of its first line: `frontend`, its name and more.
    pub(super) words: Vec<String>,
    pub(super) lines: Vec<Line>,
}

/// A line with its words.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) place: Place,
    pub(super) words: Vec<String>,
}

impl Section {
    pub(super) fn kind(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    pub(super) fn name(&self) -> &str {
        self.words.get(1).map_or("", String::as_str)
    }

    /// Returns the first line as the list of remarks shows it.
    pub(super) fn shown(&self) -> String {
        shown(&self.words)
    }
}

impl Line {
    /// Returns a word, or an empty text.
    pub(super) fn word(&self, index: usize) -> &str {
        self.words.get(index).map_or("", String::as_str)
    }

    /// Returns the words from an index on.
    pub(super) fn from(&self, index: usize) -> &[String] {
        self.words.get(index..).unwrap_or_default()
    }

    /// Returns the word behind another one.
    pub(super) fn after(&self, word: &str) -> Option<&str> {
        let at = self.words.iter().position(|other| other == word)?;
        self.words.get(at + 1).map(String::as_str)
    }

    pub(super) fn has(&self, word: &str) -> bool {
        self.words.iter().any(|other| other == word)
    }

    /// Returns the line as the list of remarks shows it.
    pub(super) fn shown(&self) -> String {
        shown(&self.words)
    }
}

fn shown(words: &[String]) -> String {
    let joined = words.join(" ");
    let mut text: String = joined.chars().map(|char| if char.is_control() { ' ' } else { char }).take(100).collect();
    if text.len() < joined.len() {
        text.push_str(" ...");
    }
    text
}

const SECTIONS: &[&str] = &[
    "global",
    "defaults",
    "frontend",
    "backend",
    "listen",
    "userlist",
    "peers",
    "mailers",
    "resolvers",
    "program",
    "cache",
    "ring",
    "log-forward",
    "http-errors",
    "fcgi-app",
    "crt-list",
    "crt-store",
    "traces",
    "acme",
    "log-profile",
];

/// Returns the sections of a file.
pub(super) fn parse(file: &Path, text: &str) -> Result<Vec<Section>, ImportError> {
    let name: Rc<str> = file.display().to_string().into();
    let mut sections: Vec<Section> = Vec::new();
    for (index, text) in text.lines().enumerate() {
        let place = Place { file: Rc::clone(&name), line: index + 1 };
        let error = |message: &str| ImportError { place: place.clone(), message: message.to_owned() };
        let words = words(text.trim_start_matches('\u{feff}')).map_err(error)?;
        let Some(first) = words.first() else { continue };
        if SECTIONS.contains(&&**first) {
            sections.push(Section { place, words, lines: Vec::new() });
        } else if let Some(section) = sections.last_mut() {
            section.lines.push(Line { place, words });
        } else if !first.starts_with('.') {
            return Err(error(&format!("expected a section like `frontend`, found `{first}`")));
        }
    }
    Ok(sections)
}

/// Returns the words of a line, without quotes and comments.
fn words(line: &str) -> Result<Vec<String>, &'static str> {
    let (mut words, mut word, mut is_open) = (Vec::new(), String::new(), false);
    let mut chars = line.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '#' => break,
            ' ' | '\t' | '\r' => {
                if is_open {
                    words.push(std::mem::take(&mut word));
                }
                is_open = false;
                continue;
            }
            '\\' => match chars.next() {
                Some('n') => word.push('\n'),
                Some('r') => word.push('\r'),
                Some('t') => word.push('\t'),
                Some(char @ (' ' | '#' | '\\' | '"' | '\'')) => word.push(char),
                Some(char) => word.extend(['\\', char]),
                None => return Err("a line ends with a backslash"),
            },
            quote @ ('"' | '\'') => loop {
                match chars.next() {
                    None => return Err("a quote is not closed"),
                    Some(char) if char == quote => break,
                    Some('\\') if quote == '"' => match chars.next() {
                        Some(char @ ('"' | '\\' | '$' | ' ')) => word.push(char),
                        Some(char) => word.extend(['\\', char]),
                        None => return Err("a quote is not closed"),
                    },
                    Some(char) => word.push(char),
                }
            },
            char => word.push(char),
        }
        is_open = true;
    }
    if is_open {
        words.push(word);
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_words() {
        let of = |line: &str| words(line).unwrap();
        assert_eq!(of("  acl a path_beg /x # a comment"), ["acl", "a", "path_beg", "/x"]);
        assert_eq!(of(r#"return string "a b" 'c"d' e\ f """#), ["return", "string", "a b", "c\"d", "e f", ""]);
        assert_eq!(of(r#"rep ^/(.*)\.js "\1\"""#), ["rep", r"^/(.*)\.js", r#"\1""#]);
        assert!(words("a \"b").is_err() && words("a \\").is_err());
    }
}
