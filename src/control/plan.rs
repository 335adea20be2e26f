//! The keys that a change of a pool's members moves, and the load afterwards: the answer of `ringway ring` and of
//! `POST /api/plan`.

use crate::config::is_node_id;
use crate::ring::{Change, Ring, Transfer};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// The heaviest weight of a node.
const MAX_WEIGHT: u32 = 1000;
/// The most nodes that leave, join or change in one plan.
const MAX_CHANGES: usize = 4096;

/// The members of a pool with their weights.
pub(crate) type Members = Vec<(String, u32)>;

/// The members of a pool and their ring, before or after a change.
#[derive(Clone, Copy)]
pub(crate) struct Side<'a> {
    pub(crate) members: &'a Members,
    pub(crate) ring: &'a Ring,
}

impl<'a> Side<'a> {
    fn ids(self) -> Vec<&'a str> {
        self.members.iter().map(|(id, _)| id.as_str()).collect()
    }

    fn nodes(self) -> Vec<PlanNode> {
        let listed = self.members.iter().zip(self.ring.shares());
        listed.map(|((id, weight), share)| PlanNode { id: id.clone(), weight: *weight, share }).collect()
    }

    fn order(self, key: &str) -> KeyOrder {
        let walk = self.ring.walk(self.ring.hash_key(key.as_bytes()));
        KeyOrder { key: key.to_owned(), order: walk.map(|member| self.members[member].0.clone()).collect() }
    }

    /// Returns the owner of a key.
    pub(crate) fn owner(self, key: &str) -> Option<&'a str> {
        let owner = self.ring.owner(self.ring.hash_key(key.as_bytes()));
        owner.map(|member| self.members[member].0.as_str())
    }

    fn owners(self, keys: &[String]) -> serde_json::Map<String, serde_json::Value> {
        keys.iter().map(|key| (key.clone(), self.owner(key).into())).collect()
    }
}

/// Returns the members after a change. `with` has `ID` or `ID=WEIGHT` of nodes that join, or get another weight.
pub(crate) fn changed(now: &Members, without: &[String], with: &[String]) -> Result<Members, String> {
    if without.len() + with.len() > MAX_CHANGES {
        return Err(format!("a plan changes at most {MAX_CHANGES} nodes"));
    }
    let mut then: Vec<Option<(String, u32)>> = now.iter().cloned().map(Some).collect();
    let mut places: HashMap<String, usize> = now.iter().enumerate().map(|(at, (id, _))| (id.clone(), at)).collect();
    for id in without {
        let place = places.remove(id).ok_or_else(|| format!("without {id}: the pool has no such node"))?;
        then[place] = None;
    }
    for wanted in with {
        let (id, weight) = match wanted.rsplit_once('=') {
            None => (wanted.as_str(), Some(1)),
            Some((id, weight)) => (id, weight.parse().ok().filter(|&weight| weight <= MAX_WEIGHT)),
        };
        let expected = || format!("with {wanted}: expected ID=WEIGHT with a weight from 0 to {MAX_WEIGHT}");
        let weight = weight.ok_or_else(expected)?;
        if !is_node_id(id) {
            return Err(format!("with {wanted}: expected a node id of 1 to 128 visible ASCII characters"));
        }
        let place = *places.entry(id.to_owned()).or_insert(then.len());
        match then.get_mut(place) {
            Some(old) => *old = Some((id.to_owned(), weight)),
            None => then.push(Some((id.to_owned(), weight))),
        }
    }
    Ok(then.into_iter().flatten().collect())
}

/// The plan of one pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PoolPlan {
    pub(crate) pool: String,
    /// Points on the ring.
    pub(crate) points: usize,
    pub(crate) nodes: Vec<PlanNode>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<KeyOrder>,
    /// The owner of each key that was asked for.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub(crate) owners: serde_json::Map<String, serde_json::Value>,
    /// `None` where nothing changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) change: Option<PlanChange>,
}

/// A node with the part of the pool's keys that it owns, from 0 to 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PlanNode {
    pub(crate) id: String,
    pub(crate) weight: u32,
    pub(crate) share: f64,
}

/// The nodes of a key in the order of the ring, the owner first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct KeyOrder {
    pub(crate) key: String,
    pub(crate) order: Vec<String>,
}

/// A pool after the change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PlanChange {
    pub(crate) nodes: Vec<PlanNode>,
    /// The share of all keys that have another node, from 0 to 1. A node's own cache has none of the keys that it gets.
    pub(crate) moved: f64,
    /// The moves between pairs of nodes, the largest first.
    pub(crate) transfers: Vec<PlanTransfer>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<KeyOrder>,
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub(crate) owners: serde_json::Map<String, serde_json::Value>,
    /// The load of the last minute, and what it would be. Empty where it is not known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) load: Vec<PlanLoad>,
}

/// The keys that move from one node to another; `None` for no node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PlanTransfer {
    pub(crate) from: Option<String>,
    pub(crate) to: Option<String>,
    pub(crate) share: f64,
}

/// Requests per second of a node, now and after the change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PlanLoad {
    pub(crate) id: String,
    pub(crate) now: f64,
    pub(crate) then: f64,
}

/// The keys that a plan is asked about.
#[derive(Clone, Debug, Default)]
pub(crate) struct PlanKeys<'a> {
    /// A key whose nodes are listed.
    pub(crate) key: Option<&'a str>,
    /// Keys whose owners are listed.
    pub(crate) keys: &'a [String],
}

impl PoolPlan {
    /// Returns the plan of a change from one ring to another with the same seed.
    pub(crate) fn of(pool: &str, now: Side<'_>, then: Option<Side<'_>>, asked: &PlanKeys<'_>) -> PoolPlan {
        let change = then.map(|then| {
            let moved = Change::between((now.ring, &now.ids()), (then.ring, &then.ids()));
            let transfer = |it: Transfer| PlanTransfer { from: it.from, to: it.to, share: it.share };
            PlanChange {
                nodes: then.nodes(),
                moved: moved.moved,
                transfers: moved.transfers.into_iter().map(transfer).collect(),
                key: asked.key.map(|key| then.order(key)),
                owners: then.owners(asked.keys),
                load: Vec::new(),
            }
        });
        PoolPlan {
            pool: pool.to_owned(),
            points: now.ring.points(),
            nodes: now.nodes(),
            key: asked.key.map(|key| now.order(key)),
            owners: now.owners(asked.keys),
            change,
        }
    }

    /// Adds the load afterwards: the keys of a node take their part of its load with them.
    pub(crate) fn with_load(mut self, rates: &HashMap<String, f64>) -> PoolPlan {
        let Some(change) = &mut self.change else { return self };
        let rate = |id: &str| rates.get(id).copied().unwrap_or_default();
        let mut then: HashMap<&str, f64> = self.nodes.iter().map(|node| (node.id.as_str(), rate(&node.id))).collect();
        for transfer in &change.transfers {
            let from = self.nodes.iter().find(|node| Some(&node.id) == transfer.from.as_ref());
            let load =
                from.filter(|from| from.share > 0.0).map_or(0.0, |from| rate(&from.id) * transfer.share / from.share);
            for (id, load) in [(&transfer.from, -load), (&transfer.to, load)] {
                if let Some(id) = id {
                    *then.entry(id).or_default() += load;
                }
            }
        }
        let joined = change.nodes.iter().filter(|node| !self.nodes.iter().any(|known| known.id == node.id));
        let all = self.nodes.iter().chain(joined);
        let load = |node: &PlanNode| {
            let afterwards = then.get(node.id.as_str()).copied().unwrap_or_default();
            PlanLoad { id: node.id.clone(), now: rate(&node.id), then: afterwards.max(0.0) }
        };
        change.load = all.map(load).collect();
        self
    }
}

/// A change to plan: of the members of one pool, or a whole file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct PlanOrder {
    /// The text of a configuration file.
    pub(crate) file: Option<String>,
    /// The pool whose members change.
    pub(crate) pool: Option<String>,
    /// Nodes that leave.
    pub(crate) without: Vec<String>,
    /// `ID` or `ID=WEIGHT` of nodes that join, or get another weight.
    pub(crate) with: Vec<String>,
    /// A key whose nodes are listed.
    pub(crate) key: Option<String>,
    /// Keys whose owners are listed.
    pub(crate) keys: Vec<String>,
}

/// The keys that a change would move: `POST /api/plan`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct PlanStatus {
    /// The change could come into force.
    pub(crate) valid: bool,
    /// Errors and warnings of the file.
    pub(crate) findings: Vec<Finding>,
    /// The parts of the configuration that differ, in words.
    pub(crate) changes: Vec<String>,
    /// Settings that take effect at a restart.
    pub(crate) needs_restart: Vec<String>,
    /// The pools that the change concerns.
    pub(crate) pools: Vec<PoolPlan>,
    pub(crate) pools_added: Vec<String>,
    pub(crate) pools_removed: Vec<String>,
    /// Pools whose keys cannot be compared, with the reason.
    pub(crate) unknown: Vec<String>,
    /// Routes whose stored responses would not be found any more.
    pub(crate) cache_lost: Vec<String>,
}

/// An error or a warning of a configuration file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Finding {
    /// `error` or `warning`.
    pub(crate) severity: String,
    /// From 1; `None` where it concerns the whole file.
    pub(crate) line: Option<usize>,
    pub(crate) column: Option<usize>,
    pub(crate) message: String,
}

/// The file as it is on disk now: `GET /api/check`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct CheckStatus {
    pub(crate) file: String,
    pub(crate) valid: bool,
    pub(crate) findings: Vec<Finding>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::{Member, Seed};

    fn members(list: &[(&str, u32)]) -> Members {
        list.iter().map(|(id, weight)| ((*id).to_owned(), *weight)).collect()
    }

    fn ring(members: &Members) -> Ring {
        let list: Vec<Member<'_>> = members.iter().map(|(id, weight)| Member { id, weight: *weight }).collect();
        Ring::build(Seed::new("s"), 256, &list)
    }

    #[test]
    fn a_change_names_its_nodes() {
        let now = members(&[("a", 1), ("b", 2)]);
        let change = |without: &[&str], with: &[&str]| {
            let owned = |list: &[&str]| list.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
            changed(&now, &owned(without), &owned(with))
        };
        assert_eq!(change(&["a"], &["c", "b=5"]), Ok(members(&[("b", 5), ("c", 1)])));
        assert_eq!(change(&[], &["127.0.0.1:1=3"]), Ok(members(&[("a", 1), ("b", 2), ("127.0.0.1:1", 3)])));
        for (without, with) in [(&["c"][..], &[][..]), (&[], &["a=1001"]), (&[], &["a=x"]), (&[], &["a="])] {
            assert!(change(without, with).is_err(), "{without:?} {with:?}");
        }
    }

    /// The load that leaves a node arrives at others, and no load is lost.
    #[test]
    fn load_follows_the_keys() {
        let (now, then) = (members(&[("a", 1), ("b", 1), ("c", 1)]), members(&[("b", 1), ("c", 1), ("d", 1)]));
        let (before, after) = (ring(&now), ring(&then));
        let (now, then) = (Side { members: &now, ring: &before }, Side { members: &then, ring: &after });
        let rates = [("a", 90.0), ("b", 5.0), ("c", 5.0)].map(|(id, rate)| (id.to_owned(), rate)).into();
        let plan = PoolPlan::of("app", now, Some(then), &PlanKeys::default()).with_load(&rates);
        let load = plan.change.unwrap().load;
        let of = |id: &str| load.iter().find(|load| load.id == id).unwrap();
        assert!(of("a").then < 1e-6 && of("a").now > 89.0 && of("d").then > 1.0, "{load:?}");
        assert!((load.iter().map(|load| load.then).sum::<f64>() - 100.0).abs() < 1e-6, "{load:?}");
    }
}
