//! The choice of a node for a request: the first eligible one in the order of its key.
//!
//! The decision is pure: it reads the nodes through [`Nodes`], and returns one of them or the reason for which there is
//! none. Health, load and drains never change the ring; nodes are only passed over while they last, and the owner of
//! the key stays the same.

use crate::config::NodeState;

/// The nodes of a pool at one moment.
pub(super) trait Nodes {
    fn count(&self) -> usize;
    fn state(&self, node: usize) -> NodeState;
    /// Returns whether requests may go to a node according to its health; `true` for a trial.
    fn fitness(&self, node: usize) -> Result<bool, Skip>;
    /// Requests in flight.
    fn load(&self, node: usize) -> u32;
    fn weight(&self, node: usize) -> u32;
    /// Returns whether a node has the key in its slow start.
    fn has_reached_key(&self, node: usize) -> bool;
    /// Requests in flight on the nodes that take requests, and their weight; in panic on all that are up.
    fn totals(&self, in_panic: bool) -> (u64, u64) {
        self.count_totals(in_panic)
    }
    /// The same, by looking at every node.
    fn count_totals(&self, in_panic: bool) -> (u64, u64) {
        let takes = |&node: &usize| self.state(node) == NodeState::Up && (in_panic || self.fitness(node).is_ok());
        (0..self.count()).filter(takes).fold((0, 0), |(load, weight), node| {
            (load + u64::from(self.load(node)), weight + u64::from(self.weight(node)))
        })
    }
}

/// Why a node was passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Skip {
    /// Set to `down` by the file or by an operator.
    Down,
    Drain,
    /// Its health checks fail.
    Unhealthy,
    /// Its requests failed.
    Ejected,
    /// The node is in slow start, and does not have this key yet.
    SlowStart,
    /// It has more than its part of the load.
    BoundedLoad,
    /// It has as many requests as it may have.
    Full,
}

impl Skip {
    pub(crate) const ALL: [Skip; 7] =
        [Skip::Down, Skip::Drain, Skip::Unhealthy, Skip::Ejected, Skip::SlowStart, Skip::BoundedLoad, Skip::Full];

    /// Returns the label in metrics.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Skip::Down => "down",
            Skip::Drain => "drain",
            Skip::Unhealthy => "unhealthy",
            Skip::Ejected => "ejected",
            Skip::SlowStart => "slow_start",
            Skip::BoundedLoad => "bounded_load",
            Skip::Full => "connection_limit",
        }
    }
}

/// The rules of a pool for picking a node.
#[derive(Clone, Copy, Debug)]
pub(super) struct PickRules {
    pub(super) max_per_node: u32,
    /// In thousandths of the average.
    pub(super) bounded_load: Option<u32>,
    /// The share of nodes that must be well, from 0 to 1.
    pub(super) panic_threshold: f64,
}

/// The node that takes a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pick {
    pub(super) node: usize,
    /// It is half open, and this request tries it.
    pub(super) is_trial: bool,
    /// Why the first node of the order was passed over.
    pub(super) spilled: Option<Skip>,
    /// So few nodes are well that health is ignored.
    pub(super) in_panic: bool,
}

/// Why no node takes a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PickError {
    /// Those that could have as many requests as they may have.
    Full,
    /// None takes requests.
    Unavailable,
}

/// Goes through the nodes in the order of a key.
pub(super) fn pick(
    order: impl Iterator<Item = usize>,
    nodes: &impl Nodes,
    rules: &PickRules,
) -> Result<Pick, PickError> {
    let mut moment = PoolView { nodes, rules, panic: None, totals: None };
    let mut spilled = None;
    let mut second_best: Option<(usize, bool)> = None;
    let mut full = false;
    let mut first = None;
    for node in order {
        first = first.or(Some(node));
        let skip = match moment.eligibility(node) {
            Ok(is_trial) => {
                return Ok(Pick { node, is_trial, spilled, in_panic: moment.panic.unwrap_or(false) });
            }
            Err(PassedOver::For(skip)) => skip,
            // Such a node is better than none: it is well and has room.
            Err(PassedOver::ForNow(skip, is_trial)) => {
                let better = second_best
                    .is_none_or(|(best, _)| rules.bounded_load.is_some() && moment.is_less_loaded(node, best));
                if better {
                    second_best = Some((node, is_trial));
                }
                skip
            }
        };
        full |= skip == Skip::Full;
        spilled = spilled.or(Some(skip));
    }
    match second_best {
        Some((node, is_trial)) => {
            // The owner, though not at its best, is the owner.
            let spilled = spilled.filter(|_| first != Some(node));
            Ok(Pick { node, is_trial, spilled, in_panic: moment.panic.unwrap_or(false) })
        }
        None if full => Err(PickError::Full),
        None => Err(PickError::Unavailable),
    }
}

/// Returns the node of a strict session, which keeps its sessions while it drains, whatever its load.
pub(super) fn pick_pinned(node: usize, nodes: &impl Nodes, rules: &PickRules) -> Result<Pick, Skip> {
    let mut moment = PoolView { nodes, rules, panic: None, totals: None };
    if nodes.state(node) == NodeState::Down {
        return Err(Skip::Down);
    }
    let is_trial = moment.fitness(node)?;
    match nodes.load(node) < rules.max_per_node {
        true => Ok(Pick { node, is_trial, spilled: None, in_panic: moment.panic.unwrap_or(false) }),
        false => Err(Skip::Full),
    }
}

/// Returns whether so few nodes are healthy that health is ignored (panic mode).
pub(super) fn is_panic(nodes: &impl Nodes, threshold: f64) -> bool {
    if threshold == 0.0 {
        return false;
    }
    let up = || (0..nodes.count()).filter(|&node| nodes.state(node) == NodeState::Up && nodes.weight(node) > 0);
    let well = up().filter(|&node| nodes.fitness(node).is_ok()).count();
    (well as f64) < threshold * up().count() as f64
}

/// The reason for which a node is passed over: always, or only while there is a better one.
enum PassedOver {
    For(Skip),
    ForNow(Skip, bool),
}

/// The nodes, with totals that are computed only when they are needed.
struct PoolView<'a, N> {
    nodes: &'a N,
    rules: &'a PickRules,
    panic: Option<bool>,
    /// As [`Nodes::totals`] has them.
    totals: Option<(u64, u64)>,
}

impl<N: Nodes> PoolView<'_, N> {
    /// Returns whether a node gets the request; `true` for a trial.
    fn eligibility(&mut self, node: usize) -> Result<bool, PassedOver> {
        match self.nodes.state(node) {
            NodeState::Up => {}
            NodeState::Drain => return Err(PassedOver::For(Skip::Drain)),
            NodeState::Down => return Err(PassedOver::For(Skip::Down)),
        }
        let is_trial = self.fitness(node).map_err(PassedOver::For)?;
        if self.nodes.load(node) >= self.rules.max_per_node {
            return Err(PassedOver::For(Skip::Full));
        }
        if !self.nodes.has_reached_key(node) {
            return Err(PassedOver::ForNow(Skip::SlowStart, is_trial));
        }
        if let Some(factor) = self.rules.bounded_load
            && u64::from(self.nodes.load(node)) >= self.capacity(node, factor)
        {
            return Err(PassedOver::ForNow(Skip::BoundedLoad, is_trial));
        }
        Ok(is_trial)
    }

    fn fitness(&mut self, node: usize) -> Result<bool, Skip> {
        self.nodes.fitness(node).or_else(|skip| {
            let threshold = self.rules.panic_threshold;
            let panic = *self.panic.get_or_insert_with(|| is_panic(self.nodes, threshold));
            if panic { Ok(false) } else { Err(skip) }
        })
    }

    /// Returns the most requests of a node: a multiple of its share of all (Mirrokni, Thorup and Zadimoghaddam, 2016),
    /// and at least one.
    fn capacity(&mut self, node: usize, factor: u32) -> u64 {
        // One request is always allowed.
        if self.nodes.load(node) == 0 {
            return 1;
        }
        let in_panic = self.panic.unwrap_or(false);
        let (load, weight) = *self.totals.get_or_insert_with(|| self.nodes.totals(in_panic));
        // This one included.
        let load = load + 1;
        let part = u128::from(factor) * u128::from(load) * u128::from(self.nodes.weight(node));
        u64::try_from(part.div_ceil(1000 * u128::from(weight.max(1)))).unwrap_or(u64::MAX).max(1)
    }

    /// Returns whether one node has fewer requests in flight than another, by weight.
    fn is_less_loaded(&self, one: usize, other: usize) -> bool {
        let part = |node, by| u64::from(self.nodes.load(node)) * u64::from(self.nodes.weight(by));
        part(one, other) < part(other, one)
    }
}

#[cfg(test)]
mod tests;
