//! Ringway files from the files of other proxies: `ringway import`.
//!
//! `nginx` and `haproxy` parse their languages (`syntax`) and fill a `Draft`; `draft` puts names and order right and
//! writes it as YAML (`yaml`). What has no counterpart is listed with its place, never dropped silently; and what
//! restricted access in the source is refused by the new file where routes can express it, until its owner decides.

mod draft;
mod haproxy;
mod nginx;
mod units;
mod yaml;

#[cfg(test)]
mod tests;

pub(crate) use haproxy::import as haproxy;
pub(crate) use nginx::{AS_IN_A_SHELL, import as nginx};

use std::fmt;
use std::path::{Path, PathBuf};

/// The result of an import.
#[derive(Debug)]
pub(crate) struct Import {
    /// The Ringway file.
    pub(crate) text: String,
    /// The directives that could not be translated, in the order of the source.
    pub(crate) lost: Vec<Note>,
    /// The directives that were translated, and behave differently.
    pub(crate) differing: Vec<Note>,
}

/// A remark on one place of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) place: Place,
    /// The directive, as the source writes it.
    pub(crate) directive: String,
    pub(crate) remark: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.place, self.directive, self.remark)
    }
}

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) file: std::rc::Rc<str>,
    pub(crate) line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// A source that cannot be parsed.
#[derive(Debug)]
pub(crate) struct ImportError {
    pub(crate) place: Place,
    pub(crate) message: String,
}

impl fmt::Display for ImportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

impl std::error::Error for ImportError {}

/// The files that a source includes.
pub(crate) trait Files {
    /// Returns the files that a pattern of `include` names, in their order.
    fn matching(&self, pattern: &Path) -> Vec<PathBuf>;
    /// Returns the text of a file.
    fn text(&self, file: &Path) -> Result<String, String>;
}
