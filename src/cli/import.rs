//! `ringway import`

use super::Outcome;
use crate::config::file;
use crate::import::{self, Files, Import};
use std::io::{ErrorKind, Write, stderr, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The largest file of another proxy, in bytes.
const MAX_FILE_BYTES: u64 = 16 << 20;

#[derive(clap::Args)]
pub(super) struct Options {
    #[command(subcommand)]
    source: Source,
}

#[derive(clap::Subcommand)]
enum Source {
    /// Translate an nginx configuration with the files that it includes, or what `nginx -T` prints.
    Nginx(SourceFile),
    /// Translate a HAProxy configuration.
    Haproxy(SourceFile),
}

#[derive(clap::Args)]
struct SourceFile {
    /// The file, or `-` for standard input
    file: PathBuf,
    /// Write the Ringway file here instead of to standard output; an existing file is kept
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Prints a Ringway file on standard output, and on standard error what could not be translated.
pub(super) fn run(options: &Options) -> Outcome {
    let source = match &options.source {
        Source::Nginx(source) | Source::Haproxy(source) => source,
    };
    let is_stdin = source.file == Path::new("-");
    let file = if is_stdin { Path::new("<stdin>") } else { &source.file };
    let text = if is_stdin { file::read_stdin(MAX_FILE_BYTES) } else { file::read_any(file, MAX_FILE_BYTES) };
    let text = text.map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    let text = String::from_utf8_lossy(&text);
    let import = match &options.source {
        Source::Nginx(_) => import::nginx(file, &text, &Disk)?,
        Source::Haproxy(_) => import::haproxy(file, &text)?,
    };
    match &source.output {
        None => stdout().write_all(import.text.as_bytes())?,
        Some(output) => {
            let created = std::fs::OpenOptions::new().write(true).create_new(true).open(output);
            let written = created.and_then(|mut created| created.write_all(import.text.as_bytes()));
            written.map_err(|error| match error.kind() {
                ErrorKind::AlreadyExists => {
                    format!("{} is there already, and is kept: name another file, or move it away", output.display())
                }
                _ => format!("cannot write {}: {error}", output.display()),
            })?;
        }
    }
    report(&import, source.output.as_deref()).map(|()| ExitCode::SUCCESS).map_err(Into::into)
}

fn report(import: &Import, output: Option<&Path>) -> std::io::Result<()> {
    let mut out = stderr().lock();
    for (title, notes) in [("not translated:", &import.lost), ("translated, with a difference:", &import.differing)] {
        if !notes.is_empty() {
            writeln!(out, "{title}")?;
            notes.iter().try_for_each(|note| writeln!(out, "  {note}"))?;
        }
    }
    let file = output.map_or("FILE".to_owned(), |output| output.display().to_string());
    writeln!(out, "next: ringway check --config {file}")
}

/// The files of this machine.
struct Disk;

impl Files for Disk {
    fn matching(&self, pattern: &Path) -> Vec<PathBuf> {
        let found = glob::glob_with(&pattern.to_string_lossy(), import::AS_IN_A_SHELL);
        found.into_iter().flatten().flatten().filter(|path| path.is_file()).collect()
    }

    fn text(&self, file: &Path) -> Result<String, String> {
        let bytes = file::read_any(file, MAX_FILE_BYTES).map_err(|error| error.to_string())?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}
