//! `ringway status`, `reload`, `drain` and `node`: what a running proxy is asked and told.

use super::Outcome;
use super::api::Target;
use serde_json::Value as Json;
use std::io::{IsTerminal, Write, stdout};
use std::process::ExitCode;

#[derive(clap::Args)]
pub(super) struct Options {
    #[command(flatten)]
    target: Target,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub(super) struct DrainOptions {
    #[command(flatten)]
    target: Target,
    /// The node's pool
    #[arg(requires = "node")]
    pool: Option<String>,
    /// The node's id
    node: Option<String>,
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

pub(super) fn run(options: &Options) -> Outcome {
    let status = options.target.get("/api/status")?;
    let pools = options.target.get("/api/pools")?;
    let mut out = stdout().lock();
    if options.json {
        writeln!(out, "{:#}", serde_json::json!({ "status": status, "pools": pools }))?;
    } else {
        print(&mut out, &status, &pools, stdout().is_terminal())?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn reload(target: &Target) -> Outcome {
    say(&target.post("/api/reload")?)
}

pub(super) fn drain(options: &DrainOptions) -> Outcome {
    match (&options.pool, &options.node) {
        (Some(pool), Some(node)) => set_state(&options.target, pool, node, "drain"),
        _ => say(&options.target.post("/api/drain")?),
    }
}

pub(super) fn node(options: &NodeOptions) -> Outcome {
    set_state(&options.target, &options.pool, &options.node, &options.state)
}

fn set_state(target: &Target, pool: &str, node: &str, state: &str) -> Outcome {
    target.post(&format!("/api/pools/{pool}/nodes/{node}/{state}"))?;
    writeln!(stdout(), "{pool}/{node}: {state}")?;
    Ok(ExitCode::SUCCESS)
}

fn say(answer: &Json) -> Outcome {
    writeln!(stdout(), "{}", text(&answer["detail"]))?;
    Ok(ExitCode::SUCCESS)
}

fn print(out: &mut impl Write, status: &Json, pools: &Json, colours: bool) -> std::io::Result<()> {
    let (red, green, plain) = if colours { ("\x1b[31m", "\x1b[32m", "\x1b[0m") } else { ("", "", "") };
    let shown = |good: bool, word: &str| format!("{}{word}{plain}", if good { green } else { red });
    let ready = status["ready"] == true;
    writeln!(
        out,
        "ringway {}  {}  up {} s, {} workers, pid {}",
        text(&status["version"]),
        shown(ready, if ready { "ready" } else { "not ready" }),
        status["uptime_seconds"],
        status["workers"],
        status["pid"]
    )?;
    let last = &status["last_reload"];
    let good = last["success"] == true;
    let outcome = if good { "in force".to_owned() } else { format!("not in force: {}", text(&last["error"])) };
    writeln!(
        out,
        "config  {} (read {}, {})",
        text(&status["config"]["file"]),
        text(&last["time"]),
        shown(good, &outcome)
    )?;
    for name in last["needs_restart"].as_array().into_iter().flatten() {
        writeln!(out, "        `{}` has changed and needs a restart", text(name))?;
    }
    for listener in status["listeners"].as_array().into_iter().flatten() {
        writeln!(out, "listens {} ({})", text(&listener["address"]), text(&listener["name"]))?;
    }
    let cache = &status["cache"];
    writeln!(
        out,
        "cache   {} entries, {:.1} of {:.0} MiB, {} hits",
        cache["entries"],
        mebibytes(&cache["bytes"]),
        mebibytes(&cache["memory"]),
        cache["requests"]["hit"].as_u64().unwrap_or_default()
    )?;
    for pool in pools.as_array().into_iter().flatten() {
        writeln!(out, "\npool {}", text(&pool["name"]))?;
        writeln!(
            out,
            "  {:20} {:24} {:>6} {:>8}  {:6} {:>9} {:>6}",
            "node", "address", "weight", "share", "state", "in flight", "idle"
        )?;
        for node in pool["nodes"].as_array().into_iter().flatten() {
            let state = text(&node["state"]);
            writeln!(
                out,
                "  {:20} {:24} {:>6} {:>6.2} %  {} {:>9} {:>6}",
                text(&node["id"]),
                text(&node["address"]),
                node["weight"],
                node["share"].as_f64().unwrap_or_default() * 100.0,
                shown(state == "up", &format!("{state:6}")),
                node["in_flight"],
                node["idle_connections"]
            )?;
        }
    }
    Ok(())
}

fn mebibytes(value: &Json) -> f64 {
    value.as_f64().unwrap_or_default() / f64::from(1 << 20)
}

fn text(value: &Json) -> &str {
    value.as_str().unwrap_or_default()
}
