//! `ringway check`

use super::Outcome;
use crate::config::{self, Config};
use crate::idempotency::inspect;
use crate::server::store_of;
use std::io::{Write, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Validates a file, or standard input for `-`.
///
/// `connects`: connects to the stores too, and prints what their settings guarantee.
pub(super) fn run(file: Option<PathBuf>, connects: bool) -> Outcome {
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
    let (report, config) = match loaded {
        Ok((config, report)) => (report, Some(config)),
        Err(report) => (report, None),
    };
    let valid = config.is_some();
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
    match config {
        Some(config) if connects => {
            let (store, bus) = (connect(&config, &mut out)?, connect_bus(&config, &mut out)?);
            let etcd = connect_etcd(&config, &mut out)?;
            Ok(if bus && etcd { store } else { ExitCode::FAILURE })
        }
        Some(_) => Ok(ExitCode::SUCCESS),
        None => Ok(ExitCode::FAILURE),
    }
}

/// Connects to the endpoints of etcd, and prints what was found. Returns whether the fleet can use it.
fn connect_etcd(config: &Config, out: &mut impl Write) -> std::io::Result<bool> {
    let Some(settings) = crate::server::etcd_settings(config) else { return Ok(true) };
    let found = crate::fleet::inspect_etcd(&settings);
    writeln!(out, "etcd of the fleet {}:", settings.fleet)?;
    found.sentences.iter().try_for_each(|sentence| writeln!(out, "  {sentence}"))?;
    found.warnings.iter().try_for_each(|warning| writeln!(out, "  warning: {warning}"))?;
    found.errors.iter().try_for_each(|error| writeln!(out, "  error: {error}"))?;
    Ok(found.errors.is_empty())
}

/// Connects to the nodes of the fleet's bus, and prints what each promises. Returns whether all can be used.
#[cfg(feature = "redis")]
fn connect_bus(config: &Config, out: &mut impl Write) -> std::io::Result<bool> {
    let Some(settings) = crate::server::bus_settings(config) else { return Ok(true) };
    let told = crate::fleet::inspect(&settings);
    let crate::config::Quorum { replicas, write, read } = settings.quorum;
    writeln!(out, "bus of the fleet {} (N={replicas} W={write} R={read}):", settings.fleet)?;
    for sentence in &told {
        match sentence {
            Ok(sentence) => writeln!(out, "  {sentence}")?,
            Err(error) => writeln!(out, "  error: {error}")?,
        }
    }
    Ok(told.iter().all(Result::is_ok) & connect_quorum(config, out)?)
}

/// Connects to the nodes by which strong reads are verified, and prints whether each can hold stamps. Returns whether all
/// can.
#[cfg(feature = "redis")]
fn connect_quorum(config: &Config, out: &mut impl Write) -> std::io::Result<bool> {
    let Some(rules) = crate::server::quorum_rules(config) else { return Ok(true) };
    let told = crate::fleet::quorum::inspect(&rules);
    writeln!(out, "strong reads, {}:", rules.settings.current.quorum.tolerance())?;
    for sentence in &told {
        match sentence {
            Ok(sentence) => writeln!(out, "  {sentence}")?,
            Err(error) => writeln!(out, "  error: {error}")?,
        }
    }
    Ok(told.iter().all(Result::is_ok))
}

#[cfg(not(feature = "redis"))]
fn connect_bus(_: &Config, _: &mut impl Write) -> std::io::Result<bool> {
    Ok(true)
}

/// Connects to the stores that routes use, and prints what their settings guarantee.
fn connect(config: &Config, out: &mut impl Write) -> Outcome {
    if config.settings.routes.iter().all(|route| route.idempotency.is_none()) {
        writeln!(out, "no route uses the idempotency store")?;
        return Ok(ExitCode::SUCCESS);
    }
    let kind = store_of(config)?;
    match inspect(&kind) {
        Ok(sentences) => {
            writeln!(out, "idempotency store ({kind}):")?;
            for sentence in sentences {
                writeln!(out, "  {sentence}")?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(reason) => {
            writeln!(out, "idempotency store ({kind}): error: {reason}")?;
            Ok(ExitCode::FAILURE)
        }
    }
}
