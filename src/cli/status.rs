//! `ringway status` and `ringway reload`: what a running proxy does, and whether it takes a new file.

use super::Outcome;
use super::api::{Target, text};
use super::node::progress;
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
    writeln!(stdout(), "{}", text(&target.post("/api/reload")?["detail"]))?;
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
        let mut notes = String::new();
        if pool["panic"] == true {
            notes += "  in panic: health is ignored";
        }
        if pool["queued"].as_u64() > Some(0) {
            notes += &format!("  {} requests wait for room", pool["queued"]);
        }
        writeln!(out, "\npool {}{notes}", text(&pool["name"]))?;
        if let Some(error) = pool["discovery"]["error"].as_str() {
            writeln!(
                out,
                "  {}",
                shown(false, &format!("the name server tells of no nodes, the last ones stay: {error}"))
            )?;
        }
        writeln!(
            out,
            "  {:20} {:24} {:>6} {:>8}  {:6} {:>9} {:>6}  health",
            "node", "address", "weight", "share", "state", "in flight", "idle"
        )?;
        for node in pool["nodes"].as_array().into_iter().flatten() {
            let state = text(&node["state"]);
            writeln!(
                out,
                "  {:20} {:24} {:>6} {:>6.2} %  {} {:>9} {:>6}  {}",
                text(&node["id"]),
                text(&node["address"]),
                node["weight"],
                node["share"].as_f64().unwrap_or_default() * 100.0,
                shown(state == "up", &format!("{state:6}")),
                node["in_flight"],
                node["idle_connections"],
                shown(node["healthy"] == true, &health(node))
            )?;
            if !node["drain"].is_null() {
                writeln!(out, "  {:20} drains: {}", "", progress(&node["drain"]))?;
            }
        }
    }
    Ok(())
}

fn mebibytes(value: &Json) -> f64 {
    value.as_f64().unwrap_or_default() / f64::from(1 << 20)
}

/// What is known of a node's health, in a few words.
fn health(node: &Json) -> String {
    let ramp = node["slow_start"].as_f64().unwrap_or(1.0);
    match (node["ejected_for_seconds"].as_f64(), node["health_check"]["error"].as_str()) {
        (Some(seconds), _) if seconds > 0.0 => format!("out for {seconds:.0} s: requests failed"),
        (Some(_), _) => "a request will try it".to_owned(),
        (None, Some(error)) if node["healthy"] != true => format!("checks fail: {error}"),
        (None, Some(error)) => format!("well; the last check failed: {error}"),
        (None, None) if node["healthy"] != true => "not checked well yet".to_owned(),
        (None, None) if ramp < 1.0 => format!("well; {:.0} % of its slow start", ramp * 100.0),
        (None, None) => "well".to_owned(),
    }
}
