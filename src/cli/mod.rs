//! The command line: one file a command.

mod api;
mod check;
mod demo;
mod explain;
mod explain_saga;
mod fleet;
mod http_client;
mod import;
mod node;
mod purge;
mod ring;
mod run;
mod sagas;
mod schema;
mod status;
mod store;
mod tap;
mod top;

use crate::config::{self, Config, Report};
use clap::{CommandFactory, Parser, Subcommand};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// An edge proxy: consistent-hash routing behind one YAML file.
///
/// Exit codes: 0 success, 1 failure, 2 wrong usage.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until SIGTERM or SIGINT; then drain, and exit. A second signal exits at once. SIGHUP reloads the
    /// configuration, SIGUSR2 replaces the binary without refusing a connection.
    Run(ConfigFile),
    /// Validate a configuration and print every error with its line and column.
    Check(CheckedFile),
    /// Start three nodes and the proxy on loopback, show a tour with real requests, and keep running. With `--nodes`,
    /// start only the nodes.
    Demo(demo::Options),
    /// Show each node's share of the keys, the owner of a key, or the keys that a change would move.
    Ring(ring::Options),
    /// Explain how a request is handled: its route, hash key, node and cache rules.
    Explain(explain::Options),
    /// Print the configuration's JSON Schema, for editors.
    Schema,
    /// Translate the configuration of nginx or HAProxy to a commented Ringway file, and list what could not be
    /// translated.
    Import(import::Options),
    /// Show the state of a running proxy: listeners, pools, nodes, the last reload.
    Status(status::Options),
    /// Reload the configuration of a running proxy; exits with 1 and the reason if it is refused.
    Reload(api::Target),
    /// Remove stored responses from the cache of a running proxy.
    Purge(purge::Options),
    /// Drain a node (it gets no new keys), or without one the whole proxy, as SIGTERM does.
    Drain(node::DrainOptions),
    /// Set the state of a node, until the configuration file changes it.
    Node(node::NodeOptions),
    /// Show the fleet of a running proxy: its members, the bus, and whether all agree; or remove a member that is gone.
    Fleet(fleet::Options),
    /// Show the sagas of a running proxy and its fleet, or decide on one that is stuck.
    Sagas(sagas::Options),
    /// Show the requests of a running proxy as they end: a sample, filtered.
    Tap(Box<tap::Options>),
    /// Show the hottest keys, URLs, clients or routes of a running proxy.
    Top(top::Options),
    /// Print the tables of a shared idempotency store, copy records between stores, or adopt a new store.
    Store(store::Options),
    /// Print completions for a shell.
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(clap::Args)]
struct ConfigFile {
    /// The configuration file [default: ringway.yaml, config/ringway.yaml or /etc/ringway/ringway.yaml]
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(clap::Args)]
struct CheckedFile {
    /// The configuration file, or `-` for standard input [default: ringway.yaml, config/ringway.yaml or
    /// /etc/ringway/ringway.yaml]
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Connect to the stores too, and print what their settings guarantee
    #[arg(long)]
    connect: bool,
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Run(file) => run::run(file.config),
        Command::Check(file) => check::run(file.config, file.connect),
        Command::Demo(options) => demo::run(&options),
        Command::Ring(options) => ring::run(options),
        Command::Explain(options) => explain::run(options),
        Command::Schema => schema::run(),
        Command::Import(options) => import::run(&options),
        Command::Status(options) => status::run(&options),
        Command::Reload(target) => status::reload(&target),
        Command::Purge(options) => purge::run(&options),
        Command::Drain(options) => node::drain(&options),
        Command::Node(options) => node::run(&options),
        Command::Fleet(options) => fleet::run(&options),
        Command::Sagas(options) => sagas::run(&options),
        Command::Tap(options) => tap::run(&options),
        Command::Top(options) => top::run(&options),
        Command::Store(options) => store::run(options),
        Command::Completions { shell } => {
            // To a buffer first: `generate` panics where its reader has gone.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "ringway", &mut script);
            std::io::stdout().write_all(&script).map(|()| ExitCode::SUCCESS).map_err(Into::into)
        }
    };
    match result {
        Ok(code) => code,
        // The reader of the output has closed it.
        Err(error) if is_broken_pipe(&*error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringway: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The result of a command: an exit code, or an error to print.
type Outcome = Result<ExitCode, Box<dyn std::error::Error>>;

/// Returns the configuration of `--config`; `None` after printing its errors.
fn load(file: Option<PathBuf>) -> Option<(Config, Report)> {
    config::locate(file).and_then(|file| Config::load(&file)).map_err(|report| eprint!("{report}")).ok()
}

/// Returns a duration as the file writes it.
fn shown(duration: std::time::Duration) -> String {
    config::read::Field::show(&duration).as_str().unwrap_or_default().to_owned()
}

fn is_broken_pipe(error: &(dyn std::error::Error + 'static)) -> bool {
    let of_stream = error.downcast_ref().and_then(|error| match error {
        api::ApiError::Output(error) => Some(error),
        _ => None,
    });
    let error = error.downcast_ref::<std::io::Error>().or(of_stream);
    error.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
