//! `ringway check`

use super::Outcome;
use crate::config::{self, Config};
use std::io::{Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

pub(super) fn run(file: Option<PathBuf>) -> Outcome {
    let file = config::locate(file);
    let (report, valid) = match Config::load(&file) {
        Ok((_, report)) => (report, true),
        Err(report) => (report, false),
    };
    let mut out = stdout().lock();
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
