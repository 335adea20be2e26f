//! `POST /api/plan` and `GET /api/check`: what a changed configuration would move, and the diagnostics of the file.
//!
//! The file of a plan comes from outside: none of the files that it names is read, and no variable of the environment
//! that the running file does not name itself.

use crate::config::{
    Config, Finding as ConfigFinding, MAX_POINTS, NodeState, Pool as PoolSettings, Route, Settings, changes,
};
use crate::control::{
    CheckStatus, Finding, HistoryStatus, Members, PlanKeys, PlanOrder, PlanStatus, PoolPlan, Side, changed,
};
use crate::proxy::Snapshot;
use crate::ring::{Member, Ring, Seed};
use crate::server::process::reload::needs_restart;
use crate::upstream::{Pool, seed_of};
use std::collections::HashMap;

/// The samples of the history that make the load of a node.
const RECENT: usize = 12;

/// Returns what a change would move, or why the order makes no sense.
pub(super) fn plan(snapshot: &Snapshot, history: &HistoryStatus, order: &PlanOrder) -> Result<PlanStatus, String> {
    let mut plan = match (&order.file, &order.pool) {
        (Some(text), None) if order.without.is_empty() && order.with.is_empty() => of_file(snapshot, order, text),
        (None, Some(name)) => of_members(snapshot, order, name)?,
        _ => return Err(r#"give either "file", or "pool" with "without" and "with""#.to_owned()),
    };
    let pools = std::mem::take(&mut plan.pools);
    plan.pools = pools.into_iter().map(|pool| with_load(pool, history)).collect();
    Ok(plan)
}

fn with_load(pool: PoolPlan, history: &HistoryStatus) -> PoolPlan {
    let of_pool = history.nodes.iter().filter(|node| node.pool == pool.pool);
    let rates: HashMap<String, f64> = of_pool
        .map(|node| {
            let recent = &node.samples.requests[node.samples.requests.len().saturating_sub(RECENT)..];
            let seconds = recent.len() as f64 * history.interval_seconds as f64;
            let rate = recent.iter().map(|&count| f64::from(count)).sum::<f64>() / seconds.max(1.0);
            (node.node.clone(), rate)
        })
        .collect();
    if rates.is_empty() { pool } else { pool.with_load(&rates) }
}

fn asked(order: &PlanOrder) -> PlanKeys<'_> {
    PlanKeys { key: order.key.as_deref(), keys: &order.keys }
}

fn members_now(pool: &Pool) -> Members {
    pool.nodes.iter().map(|node| (node.id.to_string(), node.weight)).collect()
}

fn ring_of(seed: &str, virtual_nodes: u32, members: &Members) -> Ring {
    let list: Vec<Member<'_>> = members.iter().map(|(id, weight)| Member { id, weight: *weight }).collect();
    Ring::build(Seed::new(seed), virtual_nodes, &list)
}

fn of_members(snapshot: &Snapshot, order: &PlanOrder, name: &str) -> Result<PlanStatus, String> {
    let found = snapshot.pools.iter().find(|pool| &*pool.name == name);
    let settings = snapshot.config.settings.pools.get(name);
    let (Some(pool), Some(settings)) = (found, settings) else {
        let names: Vec<&str> = snapshot.pools.iter().map(|pool| &*pool.name).collect();
        return Err(format!("there is no pool `{name}`; the pools are: {}", names.join(", ")));
    };
    let now = members_now(pool);
    let then = changed(&now, &order.without, &order.with)?;
    let weight: u64 = then.iter().map(|(_, weight)| u64::from(*weight)).sum();
    if weight * u64::from(settings.ring.virtual_nodes) > MAX_POINTS {
        return Err(format!("the ring would have more than {MAX_POINTS} points; take lower weights"));
    }
    let plan = compared(pool, &now, settings, &then, (&snapshot.config, order));
    Ok(PlanStatus { valid: true, pools: vec![plan], ..PlanStatus::default() })
}

/// Returns the plan of a pool whose settings and members are those afterwards.
fn compared(
    pool: &Pool,
    now: &Members,
    settings: &PoolSettings,
    then: &Members,
    (config, order): (&Config, &PlanOrder),
) -> PoolPlan {
    let after = ring_of(seed_of(&pool.name, settings, &config.secrets), settings.ring.virtual_nodes, then);
    let before = Side { members: now, ring: &pool.ring };
    let is_changed = now != then || after.points() != pool.ring.points();
    PoolPlan::of(&pool.name, before, is_changed.then_some(Side { members: then, ring: &after }), &asked(order))
}

fn of_file(snapshot: &Snapshot, order: &PlanOrder, text: &str) -> PlanStatus {
    let (settings, found) = Config::draft(&snapshot.config, text);
    let findings = findings(found);
    let Some(settings) = settings else { return PlanStatus { findings, ..PlanStatus::default() } };
    let mut plan = PlanStatus { valid: true, findings, ..PlanStatus::default() };
    let old = &snapshot.config.settings;
    plan.needs_restart = needs_restart(old, &settings).iter().map(|name| (*name).to_owned()).collect();
    let names = |settings: &Settings| settings.pools.names().map(str::to_owned).collect::<Vec<String>>();
    let (before, after) = (names(old), names(&settings));
    plan.pools_added = after.iter().filter(|name| !before.contains(name)).cloned().collect();
    plan.pools_removed = before.iter().filter(|name| !after.contains(name)).cloned().collect();
    for pool in &snapshot.pools {
        let (Some(was), Some(will)) = (old.pools.get(&pool.name), settings.pools.get(&pool.name)) else { continue };
        if let Some(reason) = why_unknown(was, will) {
            plan.unknown.push(format!("{}: {reason}", pool.name));
            continue;
        }
        plan.unknown.extend(changed_states(was, will).map(|what| format!("{}: {what}", pool.name)));
        let (now, then) = (members_now(pool), members_then(pool, was, will));
        let compared = compared(pool, &now, will, &then, (&snapshot.config, order));
        if compared.change.is_some() || !order.keys.is_empty() || order.key.is_some() {
            plan.pools.push(compared);
        }
    }
    plan.unknown.extend(moved_routes(old, &settings));
    plan.cache_lost = cache_lost(old, &settings);
    let config = Config { source: text.into(), settings, ..snapshot.config.clone() };
    plan.changes = changes(&snapshot.config, &config);
    plan
}

/// Returns the nodes whose state the file changes, in sentences: the ring keeps their keys, which other nodes serve
/// while they are down or drain.
fn changed_states(was: &PoolSettings, will: &PoolSettings) -> impl Iterator<Item = String> {
    let before: HashMap<&str, _> = was.listed().iter().map(|node| (node.id.as_str(), node.state)).collect();
    let changed =
        will.listed().iter().filter(move |node| before.get(node.id.as_str()).is_some_and(|was| *was != node.state));
    changed.map(|node| match node.state {
        NodeState::Up => format!("`{}` takes its keys again (`state: up`)", node.id.value),
        state => format!("the keys of `{}` go to the next nodes (`state: {}`)", node.id.value, state.word()),
    })
}

/// Returns the routes that another configuration sends to another pool, or by another key, in sentences.
fn moved_routes(old: &Settings, new: &Settings) -> Vec<String> {
    let moved = old.routes.iter().filter_map(|was| {
        let will = new.routes.iter().find(|route| route.name.value == was.name.value)?;
        let pool = |route: &Route| route.pool.as_ref().map(|pool| pool.value.clone());
        match (pool(was) == pool(will), was.hash_on == will.hash_on) {
            (false, _) => Some("another pool"),
            (_, false) => Some("another `hash_on`: its keys are other ones"),
            _ => None,
        }
        .map(|what| format!("the route `{}` has {what}", was.name.value))
    });
    moved.collect()
}

/// Returns why the keys of a pool cannot be compared; `None` where they can.
fn why_unknown(was: &PoolSettings, will: &PoolSettings) -> Option<&'static str> {
    if was.ring.seed_file != will.ring.seed_file {
        return Some("its `ring.seed_file` is another one, which is not read here; every key gets a new place");
    }
    if was.ring.seed_file.is_none() && was.ring.seed != will.ring.seed {
        return Some("its `ring.seed` is another one: every key gets a new place");
    }
    match was.discovery == will.discovery {
        true => None,
        false => Some("its `discovery` has changed: its nodes are not known before the name server is asked"),
    }
}

/// Returns the members of a pool after a change of its file; nodes that were discovered stay.
fn members_then(pool: &Pool, was: &PoolSettings, will: &PoolSettings) -> Members {
    let mut then: Members = will.listed().iter().map(|node| (node.id.value.clone(), node.weight)).collect();
    let is_listed = |id: &str| was.listed().iter().any(|node| node.id.value == id);
    let discovered = pool.nodes.iter().filter(|node| was.discovery.is_some() && !is_listed(&node.id));
    for node in discovered {
        if !then.iter().any(|(id, _)| *id == *node.id) {
            then.push((node.id.to_string(), node.weight));
        }
    }
    then
}

/// Returns the routes whose stored responses another configuration would not find.
fn cache_lost(old: &Settings, new: &Settings) -> Vec<String> {
    let keeps = |name: &str, key: &crate::config::CacheKey| {
        let same = new.routes.iter().find(|route| route.name.value == name);
        same.and_then(|route| route.cache.as_ref()).is_some_and(|cache| cache.key == *key)
    };
    let with_cache = old.routes.iter().filter_map(|route| Some((&route.name.value, &route.cache.as_ref()?.key)));
    with_cache.filter(|(name, key)| !keeps(name, key)).map(|(name, _)| name.clone()).collect()
}

fn findings(found: Vec<ConfigFinding>) -> Vec<Finding> {
    let finding = |found: ConfigFinding| Finding {
        severity: if found.is_error { "error" } else { "warning" }.to_owned(),
        line: found.place.map(|(line, _)| line),
        column: found.place.map(|(_, column)| column),
        message: found.message,
    };
    found.into_iter().map(finding).collect()
}

/// Returns the errors and warnings of the file as it is now.
pub(super) fn check(config: &Config) -> CheckStatus {
    let report = match Config::load(&config.file) {
        Ok((_, report)) | Err(report) => report,
    };
    let file = config.file.display().to_string();
    CheckStatus { file, valid: report.errors() == 0, findings: findings(report.findings()) }
}
