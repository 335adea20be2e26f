//! The process that checks the nodes of a pool with shared health: a pure decision.

use super::values::Table;
use std::time::Duration;

/// A leader publishes at most twice a second.
pub(super) const SHORTEST_BEAT: Duration = Duration::from_millis(500);
/// The longest time between two beats, by which a process also sees that its watch works.
pub(super) const LONGEST_BEAT: Duration = Duration::from_secs(1);

/// The prober of a pool: the process that sends its health checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prober {
    /// This process, as the leader, for all.
    Own,
    /// The leader.
    Leader,
    /// Each process for itself.
    Local(Why),
}

/// The reason for local health checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// No beat of a leader has come for three intervals.
    Late,
    /// The leader reaches no node of the pool, which says more of the leader than of the nodes.
    ReachesNone,
}

impl Why {
    pub(super) fn words(self) -> &'static str {
        match self {
            Why::Late => "no leader has checked for three intervals",
            Why::ReachesNone => "the leader reaches none of its nodes",
        }
    }
}

/// Returns whose checks of a pool count. `age`: the time since the last beat for the pool.
pub(super) fn prober(is_leader: bool, age: Option<Duration>, interval: Duration, table: Option<&Table>) -> Prober {
    if is_leader {
        return Prober::Own;
    }
    let Some(table) = table.filter(|_| age.is_some_and(|age| age <= interval.max(SHORTEST_BEAT) * 3)) else {
        return Prober::Local(Why::Late);
    };
    match table.nodes.iter().any(|node| node.healthy) {
        true => Prober::Leader,
        false => Prober::Local(Why::ReachesNone),
    }
}

/// Returns the time between two beats, from the intervals of the pools.
pub(super) fn between_beats(intervals: impl Iterator<Item = Duration>) -> Duration {
    intervals.min().unwrap_or(LONGEST_BEAT).clamp(SHORTEST_BEAT, LONGEST_BEAT)
}

#[cfg(test)]
mod tests {
    use super::super::values::NodeVerdict;
    use super::*;

    #[test]
    fn a_table_counts_while_beats_come() {
        let verdict = |healthy| NodeVerdict { node: "a".to_owned(), healthy, failure: None };
        let table = |all: &[bool]| Table { term: 1, nodes: all.iter().map(|healthy| verdict(*healthy)).collect() };
        let (seconds, interval) = (Duration::from_secs, Duration::from_secs(2));
        let half = table(&[true, false]);
        assert_eq!(prober(true, None, interval, None), Prober::Own);
        assert_eq!(prober(false, Some(seconds(6)), interval, Some(&half)), Prober::Leader);
        assert_eq!(prober(false, Some(seconds(7)), interval, Some(&half)), Prober::Local(Why::Late));
        assert_eq!(prober(false, None, interval, Some(&half)), Prober::Local(Why::Late));
        assert_eq!(prober(false, Some(seconds(0)), interval, None), Prober::Local(Why::Late));
        let none = table(&[false, false]);
        assert_eq!(prober(false, Some(seconds(0)), interval, Some(&none)), Prober::Local(Why::ReachesNone));
        // Beats come no faster than twice a second, whatever the interval.
        assert_eq!(prober(false, Some(seconds(1)), Duration::from_millis(10), Some(&half)), Prober::Leader);
    }

    #[test]
    fn beats_are_half_a_second_to_a_second_apart() {
        let between = |millis: &[u64]| between_beats(millis.iter().map(|millis| Duration::from_millis(*millis)));
        assert_eq!(between(&[]), LONGEST_BEAT);
        assert_eq!(between(&[2000]), LONGEST_BEAT);
        assert_eq!(between(&[2000, 700]), Duration::from_millis(700));
        assert_eq!(between(&[10]), SHORTEST_BEAT);
    }
}
