//! `ringway ring`

use super::{Outcome, load};
use crate::config::{Config, Pool};
use crate::ring::{Change, Member, Ring, Seed};
use crate::upstream::seed_of;
use serde_json::json;
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

/// The members of a pool, now or after a change.
type Members = Vec<(String, u32)>;

pub(super) fn run(options: Options) -> Outcome {
    let Some((config, _)) = load(options.config.clone()) else { return Ok(ExitCode::FAILURE) };
    let (name, pool) = choose_pool(&config, options.pool.as_deref())?;
    if pool.discovery.is_some() {
        eprintln!("the nodes that `discovery` finds are not known here; name them with --with ADDRESS:PORT");
    }
    let now: Members = pool.listed().iter().map(|node| (node.id.value.clone(), node.weight)).collect();
    let then = change(&now, &options)?;
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
    let moved = Change::between((&before, &ids(&now)), (&after, &ids(&then)));
    let view = View {
        name,
        key: options.key.as_deref(),
        keys,
        now: (&now, &before),
        then: (then != now).then_some((&then, &after)),
        moved,
    };
    if options.json {
        writeln!(stdout(), "{:#}", view.json())?;
    } else {
        view.print(&mut stdout().lock())?;
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

fn change(now: &Members, options: &Options) -> Result<Members, String> {
    let mut then = now.clone();
    for id in &options.without {
        let before = then.len();
        then.retain(|(node, _)| node != id);
        if then.len() == before {
            return Err(format!("--without {id}: the pool has no such node"));
        }
    }
    for wanted in &options.with_ {
        let (id, weight) = match wanted.split_once('=') {
            None => (wanted.as_str(), 1),
            Some((id, weight)) => {
                let weight = weight.parse().ok().filter(|&weight| weight <= 1000);
                (
                    id,
                    weight
                        .ok_or_else(|| format!("--with {wanted}: expected ID=WEIGHT with a weight from 0 to 1000"))?,
                )
            }
        };
        match then.iter_mut().find(|(node, _)| node == id) {
            Some((_, old)) => *old = weight,
            None => then.push((id.to_owned(), weight)),
        }
    }
    Ok(then)
}

fn build(seed: &str, pool: &Pool, members: &Members) -> Ring {
    let list: Vec<Member<'_>> = members.iter().map(|(id, weight)| Member { id, weight: *weight }).collect();
    Ring::build(Seed::new(seed), pool.ring.virtual_nodes, &list)
}

fn ids(members: &Members) -> Vec<&str> {
    members.iter().map(|(id, _)| id.as_str()).collect()
}

struct View<'a> {
    name: &'a str,
    key: Option<&'a str>,
    /// Those whose owners are shown.
    keys: Vec<String>,
    now: (&'a Members, &'a Ring),
    then: Option<(&'a Members, &'a Ring)>,
    moved: Change,
}

impl View<'_> {
    fn order(&self, key: &str, (members, ring): (&Members, &Ring)) -> Vec<String> {
        ring.walk(ring.hash_key(key.as_bytes())).map(|member| members[member].0.clone()).collect()
    }

    fn owner<'m>(&self, key: &str, (members, ring): (&'m Members, &Ring)) -> Option<&'m str> {
        ring.owner(ring.hash_key(key.as_bytes())).map(|member| members[member].0.as_str())
    }

    fn owners(&self, side: (&Members, &Ring)) -> serde_json::Value {
        self.keys
            .iter()
            .map(|key| (key.clone(), json!(self.owner(key, side))))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }

    fn json(&self) -> serde_json::Value {
        let nodes = |(members, ring): (&Members, &Ring)| -> serde_json::Value {
            let listed = members.iter().zip(ring.shares());
            listed.map(|((id, weight), share)| json!({ "id": id, "weight": weight, "share": share })).collect()
        };
        let mut out = json!({ "pool": self.name, "points": self.now.1.points(), "nodes": nodes(self.now) });
        if let Some(key) = self.key {
            out["key"] = json!({ "key": key, "order": self.order(key, self.now) });
        }
        if !self.keys.is_empty() {
            out["owners"] = self.owners(self.now);
        }
        if let Some(then) = self.then {
            let transfers: Vec<_> =
                self.moved.transfers.iter().map(|t| json!({ "from": t.from, "to": t.to, "share": t.share })).collect();
            out["change"] = json!({ "nodes": nodes(then), "moved": self.moved.moved, "transfers": transfers });
            if let Some(key) = self.key {
                out["change"]["key"] = json!({ "key": key, "order": self.order(key, then) });
            }
            if !self.keys.is_empty() {
                out["change"]["owners"] = self.owners(then);
            }
        }
        out
    }

    fn print(&self, out: &mut impl Write) -> std::io::Result<()> {
        let (members, ring) = self.now;
        writeln!(out, "pool {}: {} nodes, {} points", self.name, members.len(), ring.points())?;
        let width = members
            .iter()
            .chain(self.then.iter().flat_map(|(then, _)| then.iter()))
            .map(|(id, _)| id.len())
            .max()
            .unwrap_or(0)
            .max(4);
        writeln!(out, "\n  {:width$}  weight   share", "node")?;
        for ((id, weight), share) in members.iter().zip(ring.shares()) {
            writeln!(out, "  {id:width$}  {weight:>6}  {:>5.2} %", share * 100.0)?;
        }
        if let Some(key) = self.key {
            writeln!(out, "\nkey {key}: {}", self.order(key, self.now).join(" -> "))?;
        }
        for key in &self.keys {
            let owner = |side| self.owner(key, side).unwrap_or("nobody");
            match self.then {
                Some(then) if owner(then) != owner(self.now) => {
                    writeln!(out, "{key}: {} -> {}", owner(self.now), owner(then))?;
                }
                _ => writeln!(out, "{key}: {}", owner(self.now))?,
            }
        }
        let Some(then) = self.then else { return Ok(()) };
        writeln!(out, "\nafter the change {:.2} % of the keys have another node:", self.moved.moved * 100.0)?;
        for transfer in &self.moved.transfers {
            let name = |node: &Option<String>| node.clone().unwrap_or_else(|| "nobody".to_owned());
            writeln!(out, "  {:>5.2} %  {} -> {}", transfer.share * 100.0, name(&transfer.from), name(&transfer.to))?;
        }
        writeln!(out, "\n  {:width$}  weight   share", "node")?;
        for ((id, weight), share) in then.0.iter().zip(then.1.shares()) {
            writeln!(out, "  {id:width$}  {weight:>6}  {:>5.2} %", share * 100.0)?;
        }
        if let Some(key) = self.key {
            writeln!(out, "\nkey {key}: {}", self.order(key, then).join(" -> "))?;
        }
        Ok(())
    }
}
