//! `ringway fleet`: the members of a fleet as a running proxy sees them, and the removal of one that is gone.

use super::Outcome;
use super::api::Target;
use crate::control::{BusStatus, FleetStatus, LeaderStatus, MemberStatus};
use serde_json::Value as Json;
use std::io::{self, Write, stdout};
use std::process::ExitCode;
use std::time::Duration;

/// The period of `--watch`.
const EVERY: Duration = Duration::from_secs(1);

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Options {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    target: Target,
    /// Show it anew every second
    #[arg(long)]
    watch: bool,
    /// Print JSON; with `--watch` a line for each time
    #[arg(long)]
    json: bool,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Remove a member that vanished and is gone for good, so that no purge names it as missing any more.
    Forget {
        #[command(flatten)]
        target: Target,
        /// The member's process, 16 hexadecimal digits
        id: String,
    },
}

pub(super) fn run(options: &Options) -> Outcome {
    if let Some(Action::Forget { target, id }) = &options.action {
        return target.command(&format!("/api/fleet/{id}/forget"));
    }
    loop {
        let found: Json = options.target.get("/api/fleet")?;
        let mut out = stdout().lock();
        match (options.json, options.watch) {
            (true, true) => writeln!(out, "{found}")?,
            (true, false) => writeln!(out, "{found:#}")?,
            (false, _) => print(&mut out, &serde_json::from_value(found)?)?,
        }
        if !options.watch {
            return Ok(ExitCode::SUCCESS);
        }
        if !options.json {
            writeln!(out)?;
        }
        out.flush()?;
        drop(out);
        std::thread::sleep(EVERY);
    }
}

fn print(out: &mut impl Write, fleet: &FleetStatus) -> io::Result<()> {
    let live = fleet.members.iter().filter(|member| member.state != "missed").count();
    writeln!(out, "fleet {}  {live} of {} members live, seen by {}", fleet.id, fleet.members.len(), fleet.process)?;
    if let Some(bus) = &fleet.bus {
        print_bus(out, bus)?;
    }
    if let Some(leader) = &fleet.leader {
        print_leader(out, leader)?;
    }
    let head = ["PROCESS", "NAME", "STATE", "VERSION", "ADDRESS", "HEARD", "LAG", "CONFIG"].map(str::to_owned);
    let row = |member: &MemberStatus| {
        [
            member.process.clone(),
            member.name.clone(),
            member.state.clone(),
            member.version.clone(),
            member.address.clone(),
            format!("{:.1} s", member.heard_seconds),
            format!("{:.0} ms", member.lag_seconds * 1000.0),
            member.config.clone(),
        ]
    };
    let rows: Vec<[String; 8]> = std::iter::once(head).chain(fleet.members.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: [usize; 8] = std::array::from_fn(width);
    for row in &rows {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
    }
    for ring in &fleet.rings {
        let word = if ring.agree { "agree" } else { "DISAGREE" };
        writeln!(out, "ring of `{}`: the proxies {word}", ring.pool)?;
    }
    fleet.warnings.iter().try_for_each(|warning| writeln!(out, "warning: {warning}"))
}

fn print_leader(out: &mut impl Write, leader: &LeaderStatus) -> io::Result<()> {
    let state = if leader.up { "up" } else { "away" };
    writeln!(out, "etcd  {}: {state}, {} members", leader.endpoint, leader.members.len())?;
    match (&leader.name, &leader.process) {
        _ if leader.leads => writeln!(out, "      leader: this proxy, term {}", leader.term)?,
        (Some(name), Some(process)) => writeln!(out, "      leader: {name} ({process}), term {}", leader.term)?,
        _ => writeln!(out, "      leader: none")?,
    }
    for pool in &leader.pools {
        let prober = match &*pool.prober {
            "self" => "this proxy, for the fleet",
            "leader" => "the leader",
            _ => "each proxy for itself",
        };
        let age = pool.age_seconds.map(|age| format!(", last sign of life {age:.1} s ago")).unwrap_or_default();
        writeln!(out, "      nodes of `{}` are checked by {prober}{age}", pool.pool)?;
    }
    for state in &leader.states {
        let (word, file, ago) = (state.state.word(), state.file.word(), ago(state.at));
        writeln!(out, "      {}/{}: {word}, by {}, {ago} ago (over `{file}`)", state.pool, state.node, state.by)?;
    }
    Ok(())
}

/// Returns the time since a moment, which is in seconds since 1970, in its largest unit.
fn ago(at: u64) -> String {
    match crate::clock::unix_seconds().saturating_sub(at) {
        seconds @ ..120 => format!("{seconds} s"),
        seconds @ ..7200 => format!("{} min", seconds / 60),
        seconds @ ..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

fn print_bus(out: &mut impl Write, bus: &BusStatus) -> io::Result<()> {
    let BusStatus { replicas, write, read, .. } = bus;
    writeln!(out, "bus   N={replicas} W={write} R={read}, {} doubts since the start", bus.doubts)?;
    for node in &bus.nodes {
        let state = match (&node.error, node.up) {
            (_, true) => "up".to_owned(),
            (Some(error), false) => format!("away: {error}"),
            (None, false) => "connecting".to_owned(),
        };
        writeln!(out, "      {} at {}: {state}", node.id, node.address)?;
    }
    bus.promise.iter().try_for_each(|sentence| writeln!(out, "      {sentence}"))
}
