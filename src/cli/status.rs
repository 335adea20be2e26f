//! `ringway status` and `ringway reload`: the state of a running proxy, and the reload of its file.

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
        // As the proxy sends it, which may be newer than this program.
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

/// Words in green for a good state, in red for a bad one.
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
    if let Some(store) = &status.idempotency {
        let word = colours.show(store.up, if store.up { "works" } else { "takes no claims" });
        let records = store.records.map(|records| format!(", {records} records")).unwrap_or_default();
        writeln!(out, "store   {} ({word}{records})", store.store)?;
        for sentence in &store.promise {
            writeln!(out, "        {sentence}")?;
        }
    }
    if let Some(quorum) = &status.quorum {
        writeln!(out, "quorum  {} (strong reads of {})", quorum.tolerance, quorum.routes.join(", "))?;
    }
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
    print_nodes(out, &pool.nodes, colours)
}

/// Prints nodes as a table, each column as wide as its widest cell.
fn print_nodes(out: &mut impl Write, nodes: &[NodeStatus], colours: &Colours) -> io::Result<()> {
    let titles = ["node", "address", "weight", "share", "state", "in flight", "idle"].map(str::to_owned);
    let rows: Vec<[String; 7]> = std::iter::once(titles).chain(nodes.iter().map(cells)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: [usize; 7] = std::array::from_fn(width);
    for (row, node) in rows.iter().zip(std::iter::once(None).chain(nodes.iter().map(Some))) {
        let mut cells: [String; 7] = std::array::from_fn(|column| match column {
            0 | 1 | 4 => format!("{:width$}", row[column], width = widths[column]),
            _ => format!("{:>width$}", row[column], width = widths[column]),
        });
        let Some(node) = node else {
            writeln!(out, "  {}  health", cells.join("  "))?;
            continue;
        };
        cells[4] = colours.show(node.state == NodeState::Up, &cells[4]);
        let health = match health(node) {
            (Some(is_well), text) => colours.show(is_well, &text),
            (None, text) => text,
        };
        writeln!(out, "  {}  {health}", cells.join("  "))?;
        if let Some(drain) = &node.drain {
            writeln!(out, "  {:width$}  drains: {}", "", progress(drain), width = widths[0])?;
        }
    }
    Ok(())
}

/// Returns the cells of a node's row.
fn cells(node: &NodeStatus) -> [String; 7] {
    [
        node.id.clone(),
        node.address.clone().unwrap_or_else(|| "-".to_owned()),
        node.weight.to_string(),
        format!("{:.2} %", node.share * 100.0),
        node.state.word().to_owned(),
        node.in_flight.to_string(),
        node.idle_connections.to_string(),
    ]
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Returns whether a node is healthy, and the reason in a few words; `None` without any check or failed request.
fn health(node: &NodeStatus) -> (Option<bool>, String) {
    let checks = node.health_check.as_ref();
    let is_checked = checks.is_some_and(|checks| checks.seconds_ago.is_some());
    let ramp = match node.slow_start {
        part if part < 1.0 => format!("; {:.0} % of its slow start", part * 100.0),
        _ => String::new(),
    };
    let note = match (node.ejected_for_seconds, checks.and_then(|checks| checks.error.as_ref())) {
        (Some(seconds), _) if seconds > 0.0 => format!("out for {seconds:.0} s: requests failed"),
        (Some(_), _) => "a request will try it".to_owned(),
        (None, Some(error)) if !node.healthy => format!("checks fail: {error}"),
        (None, Some(error)) => format!("well; the last check failed: {error}"),
        (None, None) if !node.healthy => "not checked well yet".to_owned(),
        (None, None) if !is_checked => return (None, format!("not checked{ramp}")),
        (None, None) => format!("well{ramp}"),
    };
    (Some(node.healthy), note)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The columns of numbers and words begin where their titles do, however long the ids are.
    #[test]
    fn the_columns_of_nodes_are_aligned() {
        let node = |id: &str, weight: u32, check: Json| -> NodeStatus {
            let mut node = json!({
                "id": id, "address": "127.0.0.1:9001", "weight": weight, "share": 0.5, "state": "up",
                "file_state": "up", "in_flight": 12, "idle_connections": 3, "healthy": true,
                "failures_in_a_row": 0, "slow_start": 1.0,
            });
            if !check.is_null() {
                node["health_check"] = check;
            }
            serde_json::from_value(node).unwrap()
        };
        let check = |error: Json, seconds_ago: Json| json!({ "passed_in_a_row": 0, "failed_in_a_row": 0, "error": error, "seconds_ago": seconds_ago });
        let nodes = [
            node("a", 1, Json::Null),
            node("a-node-with-a-rather-long-name", 100, check(Json::Null, json!(0.5))),
            node("b", 7, check("status 500".into(), json!(0.5))),
            node("c", 7, check(Json::Null, Json::Null)),
        ];
        let mut out = Vec::new();
        print_nodes(&mut out, &nodes, &Colours::new(false)).unwrap();
        let expected = "  \
  node                            address         weight    share  state  in flight  idle  health
  a                               127.0.0.1:9001       1  50.00 %  up            12     3  not checked
  a-node-with-a-rather-long-name  127.0.0.1:9001     100  50.00 %  up            12     3  well
  b                               127.0.0.1:9001       7  50.00 %  up            12     3  well; the last check failed: status 500
  c                               127.0.0.1:9001       7  50.00 %  up            12     3  not checked
";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
