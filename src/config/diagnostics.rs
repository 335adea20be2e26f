//! Diagnostics of a file: `FILE:LINE:COLUMN: message`, the line and a caret.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// A position in a file. Lines and columns count from 1; columns count characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span {
    pub(crate) line: usize,
    pub(crate) column: usize,
    pub(crate) length: usize,
}

impl Span {
    pub(crate) fn at(line: usize, column: usize) -> Span {
        Span { line, column, length: 1 }
    }

    pub(crate) fn start() -> Span {
        Span::at(1, 1)
    }

    pub(crate) fn from_parser(span: &granit_parser::Span) -> Span {
        let same_line = span.start.line() == span.end.line();
        let length = if same_line { span.end.col().saturating_sub(span.start.col()) } else { 1 };
        Span { line: span.start.line(), column: span.start.col() + 1, length: length.max(1) }
    }
}

/// The severity of a diagnostic: an error prevents the use of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Severity {
    Error,
    Warning,
}

/// One diagnostic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Diagnostic {
    pub(crate) span: Span,
    pub(crate) severity: Severity,
    pub(crate) message: String,
}

impl Diagnostic {
    pub(crate) fn error(span: Span, message: impl Into<String>) -> Diagnostic {
        Diagnostic { span, severity: Severity::Error, message: message.into() }
    }

    pub(crate) fn warning(span: Span, message: impl Into<String>) -> Diagnostic {
        Diagnostic { span, severity: Severity::Warning, message: message.into() }
    }
}

/// The diagnostics of one run, collected so that a user sees all of them at once.
#[derive(Debug, Default)]
pub(crate) struct Diagnostics {
    found: Vec<Diagnostic>,
}

impl Diagnostics {
    pub(crate) fn push(&mut self, diagnostic: Diagnostic) {
        self.found.push(diagnostic);
    }

    pub(crate) fn error(&mut self, span: Span, message: impl Into<String>) {
        self.push(Diagnostic::error(span, message));
    }

    pub(crate) fn warning(&mut self, span: Span, message: impl Into<String>) {
        self.push(Diagnostic::warning(span, message));
    }

    /// Reports duplicate names.
    pub(crate) fn unique<'a>(&mut self, kind: &str, names: impl Iterator<Item = (&'a str, Span)>) {
        let mut seen: HashMap<&str, Span> = HashMap::new();
        for (name, span) in names {
            match seen.get(name) {
                Some(first) => {
                    let message =
                        format!("the {kind} `{name}` is used twice; it was first given in line {}", first.line);
                    self.error(span, message);
                }
                None => {
                    seen.insert(name, span);
                }
            }
        }
    }

    /// Replaces all diagnostics by one: after a syntax error all others would be consequences of it.
    pub(crate) fn only(&mut self, diagnostic: Diagnostic) {
        self.found = vec![diagnostic];
    }

    pub(crate) fn has_errors(&self) -> bool {
        self.found.iter().any(|found| found.severity == Severity::Error)
    }

    /// Returns the report: the diagnostics with the text that they refer to.
    pub(crate) fn report(mut self, file: &Path, text: &str) -> Report {
        self.found.sort_by_key(|found| found.span);
        // In YAML a lone carriage return ends a line too.
        let text = text.replace("\r\n", "\n");
        let lines: Vec<&str> = text.split_terminator(['\n', '\r']).collect();
        let findings = self
            .found
            .into_iter()
            .map(|diagnostic| {
                let source = lines.get(diagnostic.span.line.wrapping_sub(1)).map(|line| (*line).to_owned());
                (diagnostic, source)
            })
            .collect();
        Report { file: file.to_owned(), findings, files: Vec::new() }
    }
}

/// One diagnostic of a report, for a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) is_error: bool,
    /// Line and column, from 1; `None` where it concerns the whole file.
    pub(crate) place: Option<(usize, usize)>,
    pub(crate) message: String,
}

/// The diagnostics of one file, ready to print.
#[derive(Debug)]
pub struct Report {
    file: PathBuf,
    findings: Vec<(Diagnostic, Option<String>)>,
    /// The files that the configuration names, with their state at the time of reading.
    pub(super) files: Vec<(PathBuf, super::FileStamp)>,
}

impl Report {
    /// Returns the files that the configuration names, with their state at the time of reading.
    pub(crate) fn files(&self) -> &[(PathBuf, super::FileStamp)] {
        &self.files
    }

    /// Returns a report on a file that could not be read.
    pub(crate) fn unreadable(file: &Path, message: String) -> Report {
        let diagnostic = Diagnostic { span: Span::default(), severity: Severity::Error, message };
        Report { file: file.to_owned(), findings: vec![(diagnostic, None)], files: Vec::new() }
    }

    /// Returns the diagnostics in the order of the file.
    pub(crate) fn findings(&self) -> Vec<Finding> {
        let finding = |(found, _): &(Diagnostic, Option<String>)| Finding {
            is_error: found.severity == Severity::Error,
            place: (found.span.line != 0).then_some((found.span.line, found.span.column)),
            message: found.message.clone(),
        };
        self.findings.iter().map(finding).collect()
    }

    /// Returns the number of errors.
    pub fn errors(&self) -> usize {
        self.findings.iter().filter(|(found, _)| found.severity == Severity::Error).count()
    }

    /// Returns the number of warnings.
    pub fn warnings(&self) -> usize {
        self.findings.len() - self.errors()
    }

    /// Returns the lines and columns of the diagnostics.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn places(&self) -> impl Iterator<Item = (usize, usize)> {
        self.findings.iter().map(|(found, _)| (found.span.line, found.span.column))
    }

    /// Returns the first error as one line, for a log or a status page.
    pub fn first_error(&self) -> Option<String> {
        let (first, _) = self.findings.iter().find(|(found, _)| found.severity == Severity::Error)?;
        let more = self.errors() - 1;
        let others = if more == 0 { String::new() } else { format!(" (and {more} more)") };
        Some(format!("{}{others}", self.headline(first)))
    }

    /// Returns the place of the first error: the file, and a line and a column from 1 where it has them.
    pub(crate) fn first_place(&self) -> Option<(&Path, Option<(usize, usize)>)> {
        let (first, _) = self.findings.iter().find(|(found, _)| found.severity == Severity::Error)?;
        let Span { line, column, .. } = first.span;
        Some((&self.file, (line != 0).then_some((line, column))))
    }

    fn headline(&self, found: &Diagnostic) -> String {
        let file = self.file.display();
        let Span { line, column, .. } = found.span;
        let warning = if found.severity == Severity::Warning { "warning: " } else { "" };
        match line {
            0 => format!("{file}: {warning}{}", found.message),
            _ => format!("{file}:{line}:{column}: {warning}{}", found.message),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (found, source) in &self.findings {
            writeln!(f, "{}", self.headline(found))?;
            let Some(source) = source else { continue };
            let Span { line, column, length } = found.span;
            let (shown, column) = window(source, column);
            let number = line.to_string();
            let carets = length.min(shown.chars().count().saturating_sub(column - 1)).max(1);
            writeln!(f, "  {number} | {shown}")?;
            writeln!(f, "  {:width$} | {:pad$}{}", "", "", "^".repeat(carets), width = number.len(), pad = column - 1)?;
        }
        Ok(())
    }
}

/// Returns the part of a long line around a column, so that a report stays readable. Tabs become spaces, so that the
/// caret is below the right column.
fn window(line: &str, column: usize) -> (String, usize) {
    const WIDTH: usize = 120;
    let column = column.max(1);
    let skip = if column > WIDTH { column - WIDTH / 2 } else { 0 };
    let shown = line.chars().skip(skip).take(WIDTH).map(|c| if c.is_control() { ' ' } else { c }).collect();
    (shown, column - skip)
}
