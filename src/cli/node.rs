//! `ringway node` and `ringway drain`: the state of a node, or of the whole proxy.

use super::Outcome;
use super::api::Target;
use crate::control::{CommandResult, DrainStatus, FleetStatus, NodeStatus, PoolStatus};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;
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
    /// On all proxies of the fleet: return when each has applied it, or exit with 1 and the names of those that have not
    #[arg(long, requires = "node")]
    fleet: bool,
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
    /// On all proxies of the fleet: return when each has applied it, or exit with 1 and the names of those that have not
    #[arg(long)]
    fleet: bool,
}

pub(super) fn run(options: &NodeOptions) -> Outcome {
    let NodeOptions { target, pool, node, state, fleet } = options;
    if *fleet { set_fleet_state(target, pool, node, state) } else { set_state(target, pool, node, state) }
}

pub(super) fn drain(options: &DrainOptions) -> Outcome {
    match (&options.pool, &options.node) {
        (Some(pool), Some(node)) if options.fleet => {
            let code = set_fleet_state(&options.target, pool, node, "drain")?;
            if !options.wait || code != ExitCode::SUCCESS {
                return Ok(code);
            }
            follow_fleet(&options.target, pool, node)
        }
        (Some(pool), Some(node)) => {
            set_state(&options.target, pool, node, "drain")?;
            if options.wait { follow(&options.target, pool, node) } else { Ok(ExitCode::SUCCESS) }
        }
        _ => options.target.command("/api/drain"),
    }
}

/// Returns the path of a state of a node.
fn path(pool: &str, node: &str, state: &str) -> String {
    // Percent-encoded, as names may contain any character.
    let [pool, node] = [pool, node].map(|name| utf8_percent_encode(name, NON_ALPHANUMERIC).to_string());
    format!("/api/pools/{pool}/nodes/{node}/{state}")
}

/// Sets the state of a node for the fleet. Returns 1 where a proxy has not applied it.
fn set_fleet_state(target: &Target, pool: &str, node: &str, state: &str) -> Outcome {
    let mut body = json!({});
    if let Ok(name) = std::env::var("USER")
        && !name.is_empty()
    {
        body["by"] = name.into();
    }
    target.command_with(&format!("{}?scope=fleet", path(pool, node, state)), &body)
}

fn set_state(target: &Target, pool: &str, node: &str, state: &str) -> Outcome {
    let _: CommandResult = target.post(&path(pool, node, state))?;
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

/// Prints the progress of a drain on all proxies until it is done. Returns 1 where another operator ends it before.
fn follow_fleet(target: &Target, pool: &str, node: &str) -> Outcome {
    let mut told = String::new();
    loop {
        let fleet: FleetStatus = target.get("/api/fleet")?;
        let mut states = fleet.leader.iter().flat_map(|leader| &leader.states);
        let drain = states.find(|state| (&*state.pool, &*state.node) == (pool, node) && state.state.word() == "drain");
        let Some(drain) = drain else {
            return Err(format!("{pool}/{node} does not drain for the fleet any more").into());
        };
        let waits: Vec<&str> = drain.missing.iter().chain(&drain.draining).map(String::as_str).collect();
        if waits.is_empty() {
            writeln!(stdout(), "{pool}/{node}: the last session has left all proxies")?;
            return Ok(ExitCode::SUCCESS);
        }
        let now = format!("requests or sessions are left on {}", waits.join(", "));
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
