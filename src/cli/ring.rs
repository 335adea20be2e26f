//! `ringway ring`

use super::{Outcome, load};
use crate::config::{Config, Pool};
use crate::control::{KeyOrder, Members, PlanKeys, PlanNode, PoolPlan, Side, changed};
use crate::ring::{Member, Ring, Seed};
use crate::upstream::seed_of;
use std::io::{Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(clap::Args)]
pub(super) struct Options {
    /// The configuration file [default: ringway.yaml, config/ringway.yaml or /etc/ringway/ringway.yaml]
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The pool; needed where the file has several
    #[arg(long)]
    pool: Option<String>,
    /// Show the nodes of this key in their order
    #[arg(long)]
    key: Option<String>,
    /// Show the owner of every key in this file, one key per line
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    /// Show the keys that would move if this node left
    #[arg(long, value_name = "ID")]
    without: Vec<String>,
    /// Show the keys that would move if this node joined, or had this weight
    #[arg(long = "with", value_name = "ID[=WEIGHT]")]
    with_: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(options: Options) -> Outcome {
    let Some((config, _)) = load(options.config.clone()) else { return Ok(ExitCode::FAILURE) };
    let (name, pool) = choose_pool(&config, options.pool.as_deref())?;
    if pool.discovery.is_some() {
        eprintln!("the nodes that `discovery` finds are not known here; name them with --with ADDRESS:PORT");
    }
    let now: Members = pool.listed().iter().map(|node| (node.id.value.clone(), node.weight)).collect();
    let then = changed(&now, &options.without, &options.with_).map_err(|error| format!("--{error}"))?;
    let seed = seed_of(name, pool, &config.secrets);
    let (before, after) = (build(seed, pool, &now), build(seed, pool, &then));
    let keys = match &options.keys {
        None => Vec::new(),
        Some(file) => {
            let text =
                std::fs::read_to_string(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
            text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
        }
    };
    let (now, then) = (Side { members: &now, ring: &before }, Side { members: &then, ring: &after });
    let asked = PlanKeys { key: options.key.as_deref(), keys: &keys };
    let plan = PoolPlan::of(name, now, (then.members != now.members).then_some(then), &asked);
    if options.json {
        writeln!(stdout(), "{:#}", serde_json::to_value(&plan)?)?;
    } else {
        print(&mut stdout().lock(), &plan, &keys)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn choose_pool<'a>(config: &'a Config, wanted: Option<&str>) -> Result<(&'a str, &'a Pool), String> {
    let pools = &config.settings.pools;
    let names = || pools.names().collect::<Vec<_>>().join(", ");
    let name = match (wanted, &pools.entries[..]) {
        (Some(name), _) => name,
        (None, [(only, _)]) => only.as_str(),
        (None, []) => return Err("the configuration has no pools".to_owned()),
        (None, _) => return Err(format!("choose one of the pools with --pool: {}", names())),
    };
    let found = pools.iter().find(|(entry, _)| entry.as_str() == name);
    found
        .map(|(name, pool)| (name.as_str(), pool))
        .ok_or_else(|| format!("there is no pool `{name}`; the pools are: {}", names()))
}

fn build(seed: &str, pool: &Pool, members: &Members) -> Ring {
    let list: Vec<Member<'_>> = members.iter().map(|(id, weight)| Member { id, weight: *weight }).collect();
    Ring::build(Seed::new(seed), pool.ring.virtual_nodes, &list)
}

fn print(out: &mut impl Write, plan: &PoolPlan, keys: &[String]) -> std::io::Result<()> {
    writeln!(out, "pool {}: {} nodes, {} points", plan.pool, plan.nodes.len(), plan.points)?;
    let after = plan.change.iter().flat_map(|change| &change.nodes);
    let width = plan.nodes.iter().chain(after).map(|node| node.id.len()).max().unwrap_or(0).max(4);
    print_nodes(out, &plan.nodes, width)?;
    print_order(out, plan.key.as_ref())?;
    for key in keys {
        let owner = |owners: &serde_json::Map<String, serde_json::Value>| {
            owners.get(key).and_then(|owner| owner.as_str()).unwrap_or("nobody").to_owned()
        };
        let (now, then) = (owner(&plan.owners), plan.change.as_ref().map(|change| owner(&change.owners)));
        match then {
            Some(then) if then != now => writeln!(out, "{key}: {now} -> {then}")?,
            _ => writeln!(out, "{key}: {now}")?,
        }
    }
    let Some(change) = &plan.change else { return Ok(()) };
    writeln!(out, "\nafter the change {:.2} % of the keys have another node:", change.moved * 100.0)?;
    for transfer in &change.transfers {
        let name = |node: &Option<String>| node.clone().unwrap_or_else(|| "nobody".to_owned());
        writeln!(out, "  {:>5.2} %  {} -> {}", transfer.share * 100.0, name(&transfer.from), name(&transfer.to))?;
    }
    print_nodes(out, &change.nodes, width)?;
    print_order(out, change.key.as_ref())
}

fn print_nodes(out: &mut impl Write, nodes: &[PlanNode], width: usize) -> std::io::Result<()> {
    writeln!(out, "\n  {:width$}  weight   share", "node")?;
    for PlanNode { id, weight, share } in nodes {
        writeln!(out, "  {id:width$}  {weight:>6}  {:>5.2} %", share * 100.0)?;
    }
    Ok(())
}

fn print_order(out: &mut impl Write, key: Option<&KeyOrder>) -> std::io::Result<()> {
    match key {
        Some(KeyOrder { key, order }) => writeln!(out, "\nkey {key}: {}", order.join(" -> ")),
        None => Ok(()),
    }
}
