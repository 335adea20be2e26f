//! `ringway schema`

use super::Outcome;
use crate::config;
use std::io::{Write, stdout};
use std::process::ExitCode;

pub(super) fn run() -> Outcome {
    writeln!(stdout(), "{:#}", config::schema())?;
    Ok(ExitCode::SUCCESS)
}
