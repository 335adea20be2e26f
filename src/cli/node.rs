//! `ringway node` and `ringway drain`: the state of a node, or of the whole proxy.

use super::Outcome;
use super::api::Target;
use crate::control::{CommandResult, DrainStatus, NodeStatus, PoolStatus};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use std::io::{Write, stdout};
use std::process::ExitCode;
use std::time::Duration;

/// The interval at which the progress of a drain is requested.
const EVERY: Duration = Duration::from_secs(1);

#[derive(clap::Args)]
pub(super) struct DrainOptions {
    #[command(flatten)]
    target: Target,
    /// The node's pool
    #[arg(requires = "node")]
    pool: Option<String>,
    /// The node's id
    node: Option<String>,
    /// Show the progress, and return when the last session has left
    #[arg(long, requires = "node")]
    wait: bool,
}

#[derive(clap::Args)]
pub(super) struct NodeOptions {
    #[command(flatten)]
    target: Target,
    /// The node's pool
    pool: String,
    /// The node's id
    node: String,
    /// The state
    #[arg(value_parser = ["up", "drain", "down"])]
    state: String,
}

pub(super) fn run(options: &NodeOptions) -> Outcome {
    set_state(&options.target, &options.pool, &options.node, &options.state)
}

pub(super) fn drain(options: &DrainOptions) -> Outcome {
    match (&options.pool, &options.node) {
        (Some(pool), Some(node)) => {
            set_state(&options.target, pool, node, "drain")?;
            if options.wait { follow(&options.target, pool, node) } else { Ok(ExitCode::SUCCESS) }
        }
        _ => options.target.command("/api/drain"),
    }
}

fn set_state(target: &Target, pool: &str, node: &str, state: &str) -> Outcome {
    // Percent-encoded, as names may contain any character.
    let [pool_name, node_id] = [pool, node].map(|name| utf8_percent_encode(name, NON_ALPHANUMERIC).to_string());
    let _: CommandResult = target.post(&format!("/api/pools/{pool_name}/nodes/{node_id}/{state}"))?;
    writeln!(stdout(), "{pool}/{node}: {state}")?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the progress of a drain until it is done. Returns 1 where another operator ends it before.
fn follow(target: &Target, pool: &str, node: &str) -> Outcome {
    let mut told = String::new();
    loop {
        let pools: Vec<PoolStatus> = target.get("/api/pools")?;
        let Some(found) = find(&pools, pool, node) else {
            return Err(format!("the pool `{pool}` has no node `{node}` any more").into());
        };
        let Some(drain) = &found.drain else {
            return Err(format!("{pool}/{node} does not drain any more: it is {}", found.state.word()).into());
        };
        if drain.done {
            writeln!(stdout(), "{pool}/{node}: the last session has left")?;
            return Ok(ExitCode::SUCCESS);
        }
        let now = progress(drain);
        if now != told {
            writeln!(stdout(), "{pool}/{node}: {now}")?;
            told = now;
        }
        std::thread::sleep(EVERY);
    }
}

fn find<'a>(pools: &'a [PoolStatus], pool: &str, node: &str) -> Option<&'a NodeStatus> {
    let pool = pools.iter().find(|found| found.name == pool)?;
    pool.nodes.iter().find(|found| found.id == node)
}

/// Returns the progress of a drain in words.
pub(super) fn progress(drain: &DrainStatus) -> String {
    let sessions = match drain.last_session_ends_in_seconds {
        0 => "no session left".to_owned(),
        seconds => format!("the last session ends in {seconds} s at the latest"),
    };
    format!("{} in flight, {sessions}", drain.in_flight)
}
