//! `ringway status` and `ringway reload`: what a running proxy does, and whether it takes a new file.

use super::Outcome;
use super::api::Target;
use super::node::progress;
use crate::config::NodeState;
use crate::control::{ListenerStatus, NodeStatus, PoolStatus, Status};
use serde_json::Value as Json;
use std::io::{self, IsTerminal, Write, stdout};
use std::process::ExitCode;

#[derive(clap::Args)]
pub(super) struct Options {
    #[command(flatten)]
    target: Target,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(options: &Options) -> Outcome {
    let mut out = stdout().lock();
    if options.json {
        // As the proxy tells it: it may be newer than this program.
        let [status, pools] = [options.target.get::<Json>("/api/status")?, options.target.get("/api/pools")?];
        writeln!(out, "{:#}", serde_json::json!({ "status": status, "pools": pools }))?;
    } else {
        let (status, pools) = (options.target.get("/api/status")?, options.target.get::<Vec<_>>("/api/pools")?);
        print(&mut out, &status, &pools, stdout().is_terminal())?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn reload(target: &Target) -> Outcome {
    target.command("/api/reload")
}

/// Words in green where all is well, else in red.
struct Colours {
    green: &'static str,
    red: &'static str,
    plain: &'static str,
}

impl Colours {
    fn new(colours: bool) -> Colours {
        let [green, red, plain] = if colours { ["\x1b[32m", "\x1b[31m", "\x1b[0m"] } else { [""; 3] };
        Colours { green, red, plain }
    }

    fn show(&self, good: bool, word: &str) -> String {
        format!("{}{word}{}", if good { self.green } else { self.red }, self.plain)
    }
}

fn print(out: &mut impl Write, status: &Status, pools: &[PoolStatus], colours: bool) -> io::Result<()> {
    let colours = Colours::new(colours);
    let Status { version, uptime_seconds, workers, pid, last_reload: last, cache, .. } = status;
    let ready = colours.show(status.ready, if status.ready { "ready" } else { "not ready" });
    writeln!(out, "ringway {version}  {ready}  up {uptime_seconds} s, {workers} workers, pid {pid}")?;
    let outcome = match last.success {
        true => "in force".to_owned(),
        false => format!("not in force: {}", last.error.as_deref().unwrap_or_default()),
    };
    let outcome = colours.show(last.success, &outcome);
    writeln!(out, "config  {} (read {}, {outcome})", status.config.file, last.time)?;
    for name in &last.needs_restart {
        writeln!(out, "        `{name}` has changed and needs a restart")?;
    }
    for ListenerStatus { name, address } in &status.listeners {
        writeln!(out, "listens {address} ({name})")?;
    }
    writeln!(
        out,
        "cache   {} entries, {:.1} of {:.0} MiB, {} hits",
        cache.entries,
        mebibytes(cache.bytes),
        mebibytes(cache.memory),
        cache.requests.get("hit").copied().unwrap_or_default()
    )?;
    pools.iter().try_for_each(|pool| print_pool(out, pool, &colours))
}

fn print_pool(out: &mut impl Write, pool: &PoolStatus, colours: &Colours) -> io::Result<()> {
    let mut notes = String::new();
    if pool.panic {
        notes += "  in panic: health is ignored";
    }
    if pool.queued > 0 {
        notes += &format!("  {} requests wait for room", pool.queued);
    }
    writeln!(out, "\npool {}{notes}", pool.name)?;
    if let Some(error) = pool.discovery.as_ref().and_then(|discovery| discovery.error.as_ref()) {
        let text = format!("the name server tells of no nodes, the last ones stay: {error}");
        writeln!(out, "  {}", colours.show(false, &text))?;
    }
    writeln!(
        out,
        "  {:20} {:24} {:>6} {:>8}  {:6} {:>9} {:>6}  health",
        "node", "address", "weight", "share", "state", "in flight", "idle"
    )?;
    for node in &pool.nodes {
        let state = node.state.word();
        writeln!(
            out,
            "  {:20} {:24} {:>6} {:>6.2} %  {} {:>9} {:>6}  {}",
            node.id,
            node.address.as_deref().unwrap_or_default(),
            node.weight,
            node.share * 100.0,
            colours.show(node.state == NodeState::Up, &format!("{state:6}")),
            node.in_flight,
            node.idle_connections,
            colours.show(node.healthy, &health(node))
        )?;
        if let Some(drain) = &node.drain {
            writeln!(out, "  {:20} drains: {}", "", progress(drain))?;
        }
    }
    Ok(())
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Returns the health of a node in a few words.
fn health(node: &NodeStatus) -> String {
    let error = node.health_check.as_ref().and_then(|checks| checks.error.as_ref());
    match (node.ejected_for_seconds, error) {
        (Some(seconds), _) if seconds > 0.0 => format!("out for {seconds:.0} s: requests failed"),
        (Some(_), _) => "a request will try it".to_owned(),
        (None, Some(error)) if !node.healthy => format!("checks fail: {error}"),
        (None, Some(error)) => format!("well; the last check failed: {error}"),
        (None, None) if !node.healthy => "not checked well yet".to_owned(),
        (None, None) if node.slow_start < 1.0 => {
            format!("well; {:.0} % of its slow start", node.slow_start * 100.0)
        }
        (None, None) => "well".to_owned(),
    }
}
