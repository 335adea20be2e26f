//! `ringway check`

use super::Outcome;
use crate::config::{self, Config};
use std::io::{Write, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Validates a file, or standard input where `-` stands for it.
pub(super) fn run(file: Option<PathBuf>) -> Outcome {
    let is_stdin = file.as_deref().is_some_and(|file| file == Path::new("-"));
    let mut out = stdout().lock();
    let file = match config::locate(file) {
        _ if is_stdin => PathBuf::from("<stdin>"),
        Ok(file) => file,
        Err(report) => {
            write!(out, "{report}")?;
            return Ok(ExitCode::FAILURE);
        }
    };
    let loaded = if is_stdin { Config::load_stdin() } else { Config::load(&file) };
    let (report, valid) = match loaded {
        Ok((_, report)) => (report, true),
        Err(report) => (report, false),
    };
    write!(out, "{report}")?;
    let warnings = match report.warnings() {
        0 => String::new(),
        1 => ", 1 warning".to_owned(),
        more => format!(", {more} warnings"),
    };
    match (valid, report.errors()) {
        (true, _) => writeln!(out, "{}: valid{warnings}", file.display())?,
        (false, 1) => writeln!(out, "{}: 1 error{warnings}", file.display())?,
        (false, errors) => writeln!(out, "{}: {errors} errors{warnings}", file.display())?,
    }
    Ok(if valid { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
