//! `ringway store`

use super::{Outcome, load};
use crate::idempotency::{Kind, adopt, copy, schema};
use crate::server::store_of;
use std::io::{IsTerminal, Write, stderr, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub(super) struct Options {
    #[command(subcommand)]
    command: StoreCommand,
}

#[derive(clap::Subcommand)]
enum StoreCommand {
    /// Print the SQL of the tables of a PostgreSQL store, for an administrator of the database.
    Schema,
    /// Copy the records of a store that no proxy uses into another one. Existing records of the target are kept.
    ///
    /// A store is `sqlite:FILE`, `postgres:FILE` (a file with the URL, like `url_file`) or `config:FILE` (the store of
    /// a configuration).
    Copy {
        /// The store to read
        #[arg(long, value_name = "STORE")]
        from: String,
        /// The store to fill
        #[arg(long, value_name = "STORE")]
        to: String,
    },
    /// Accept the store at the configured address as the right one, after it was created anew or has moved. Requests
    /// that only the former store had recorded can run again.
    Adopt {
        /// The configuration file [default: ringway.yaml, config/ringway.yaml or /etc/ringway/ringway.yaml]
        #[arg(long, short, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

pub(super) fn run(options: Options) -> Outcome {
    match options.command {
        StoreCommand::Schema => {
            stdout().write_all(schema().as_bytes())?;
            Ok(ExitCode::SUCCESS)
        }
        StoreCommand::Copy { from, to } => move_records(&from, &to),
        StoreCommand::Adopt { config } => {
            let Some((config, _)) = load(config) else { return Ok(ExitCode::FAILURE) };
            for sentence in adopt(&store_of(&config)?)? {
                writeln!(stdout(), "{sentence}")?;
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn move_records(from: &str, to: &str) -> Outcome {
    let (from, to) = (named(from)?, named(to)?);
    let began = Instant::now();
    let (mut told, is_live) = (Instant::now(), stderr().is_terminal());
    let copied = copy(&from, &to, |read, all| {
        let pause = Duration::from_millis(if is_live { 100 } else { 5000 });
        if told.elapsed() >= pause {
            told = Instant::now();
            let end = if is_live { "\r" } else { "\n" };
            eprint!("{read} of {all} records{end}");
        }
    })?;
    let (seconds, there) = (began.elapsed().as_secs_f64(), copied.read - copied.added);
    writeln!(
        stdout(),
        "{} records read, {} copied, {there} were there already, in {seconds:.1} s",
        copied.read,
        copied.added
    )?;
    if copied.unknown > 0 {
        writeln!(stdout(), "{} of them were running when their proxy ended; their outcome is unknown", copied.unknown)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the store of an argument.
fn named(text: &str) -> Result<Kind, Box<dyn std::error::Error>> {
    match text.split_once(':') {
        Some(("sqlite", path)) => Ok(Kind::Sqlite(path.into())),
        Some(("postgres", path)) if !path.starts_with("//") => {
            let url = std::fs::read_to_string(path).map_err(|error| format!("cannot read `{path}`: {error}"))?;
            Ok(Kind::postgres(url.trim(), None, Path::new(""))?)
        }
        // Every user of the machine could read a password on the command line.
        Some(("postgres", _)) => Err("put the URL into a file, and give `postgres:FILE`".into()),
        Some(("config", path)) => {
            let loaded = crate::config::Config::load(Path::new(path));
            Ok(store_of(&loaded.map_err(|report| report.to_string())?.0)?)
        }
        _ => Err(format!("expected `sqlite:FILE`, `postgres:FILE` or `config:FILE`, found `{text}`").into()),
    }
}
