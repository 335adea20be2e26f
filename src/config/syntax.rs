//! Syntax errors of YAML, explained in the user's terms at the position to correct.

use super::diagnostics::{Diagnostic, Span};
use granit_parser::{ErrorKind, ScanError};

/// Returns the diagnostic for an error of the parser.
pub(super) fn diagnose(text: &str, error: &ScanError) -> Diagnostic {
    let at = error.marker();
    let place = Span::at(at.line(), at.col() + 1);
    use ErrorKind::{
        BlockSequenceEntryNotAllowed, ExpectedBlockMappingKey, ExpectedBlockSequenceEntry,
        ExpectedFlowMappingSeparator, ExpectedFlowSequenceSeparator, InvalidColonPlacement, InvalidIndentation,
        MappingValueNotAllowed, SimpleKeyExpected, TabInBlockIndentation, TabInIndentation, TabInPlainScalar,
        TabNotAllowed, UnclosedFlowCollection, UnclosedQuotedScalar, UnexpectedCharacter, UnknownAnchor,
    };
    let (place, message) = match error.kind() {
        TabInPlainScalar | TabInBlockIndentation | TabInIndentation | TabNotAllowed => (
            indented_by_tab(text, place.line).unwrap_or(place),
            "a tab stands in the indentation of this line; YAML takes spaces alone".to_owned(),
        ),
        ExpectedFlowMappingSeparator | ExpectedFlowSequenceSeparator if follows_dollar(text, place) => (
            Span { column: place.column - 1, length: variable(text, place).chars().count(), ..place },
            format!("inside `{{ }}` and `[ ]` a variable stands in quotes: \"{}\"", variable(text, place)),
        ),
        ExpectedFlowMappingSeparator => {
            (place, "expected `,` or `}` before this, to go on with `{` or to end it".to_owned())
        }
        ExpectedFlowSequenceSeparator => {
            (place, "expected `,` or `]` before this, to go on with `[` or to end it".to_owned())
        }
        UnclosedFlowCollection { open } => (place, format!("a `{open}` is not closed")),
        ExpectedBlockSequenceEntry => (
            place,
            "this line is indented like the items of the list above, and begins with no `- `; check its indentation"
                .to_owned(),
        ),
        ExpectedBlockMappingKey | InvalidIndentation => {
            (place, "this line is indented like none of the keys above; check its indentation".to_owned())
        }
        BlockSequenceEntryNotAllowed => {
            (place, "a list cannot begin here; write its `- ` on a line of its own, or use `[ ]`".to_owned())
        }
        MappingValueNotAllowed => (
            place,
            "a `:` cannot stand here; check the indentation, or put a text that holds `: ` in quotes".to_owned(),
        ),
        InvalidColonPlacement => (place, "a `:` cannot stand here; a `{` or `[` above may not be closed".to_owned()),
        SimpleKeyExpected => (place, "expected `:` behind this key".to_owned()),
        UnclosedQuotedScalar => (place, "a quote is not closed".to_owned()),
        UnknownAnchor => {
            (place, "`*` begins an alias, and there is none of this name; put a text in quotes".to_owned())
        }
        UnexpectedCharacter { character } => {
            (place, format!("a text cannot begin with `{character}` here; put it in quotes"))
        }
        _ => (place, error.info()),
    };
    Diagnostic::error(place, format!("not valid YAML: {message}"))
}

/// Returns the first tab that indents a line, from a line on.
fn indented_by_tab(text: &str, from: usize) -> Option<Span> {
    let mut lines = text.lines().enumerate().skip(from.saturating_sub(1));
    lines.find_map(|(index, line)| {
        let indentation = line.len() - line.trim_start().len();
        let tab = line[..indentation].find('\t').filter(|_| indentation < line.len())?;
        Some(Span::at(index + 1, line[..tab].chars().count() + 1))
    })
}

/// Returns the characters of a line, from the one before the position.
fn line_from_before(text: &str, place: Span) -> impl Iterator<Item = char> {
    let line = text.lines().nth(place.line.wrapping_sub(1)).unwrap_or_default();
    line.chars().skip(place.column.saturating_sub(2))
}

fn follows_dollar(text: &str, place: Span) -> bool {
    place.column > 1 && line_from_before(text, place).take(2).eq("${".chars())
}

/// Returns the text from `${` to the end of the value.
fn variable(text: &str, place: Span) -> String {
    let mut is_inside = true;
    let value = line_from_before(text, place).take_while(|&c| {
        let was_inside = is_inside;
        is_inside &= c != '}';
        was_inside || !(c.is_whitespace() || matches!(c, ',' | '}' | ']'))
    });
    value.collect()
}
