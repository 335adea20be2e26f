//! The keys that a change of the members would move, computed exactly before it is rolled out.

use super::Ring;
use std::collections::BTreeMap;

/// The keys that change their owner between two rings with the same seed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Change {
    /// The share of all keys that moves, from 0 to 1.
    pub moved: f64,
    /// The moves between pairs of nodes, the largest first.
    pub transfers: Vec<Transfer>,
}

/// The keys that move from one node to another.
#[derive(Clone, Debug, PartialEq)]
pub struct Transfer {
    /// The id of the node that owned the keys; `None` where no node did.
    pub from: Option<String>,
    /// The id of the node that will own them; `None` where no node will.
    pub to: Option<String>,
    /// The share of all keys, from 0 to 1.
    pub share: f64,
}

impl Change {
    /// Returns the change between two rings, compared arc by arc. The ids are the members of each ring in its own
    /// order.
    pub fn between(before: (&Ring, &[&str]), after: (&Ring, &[&str])) -> Change {
        let mut bounds: Vec<u64> = before.0.hashes.iter().chain(&*after.0.hashes).copied().collect();
        bounds.sort_unstable();
        bounds.dedup();

        let owner = |(ring, ids): (&Ring, &[&str]), hash| ring.owner(hash).map(|member| ids[member].to_owned());
        let mut moved: BTreeMap<(Option<String>, Option<String>), u128> = BTreeMap::new();
        for (index, &bound) in bounds.iter().enumerate() {
            // Every key on an arc has the owner of the arc's end.
            let (from, to) = (owner(before, bound), owner(after, bound));
            if from != to {
                let start = bounds[if index == 0 { bounds.len() - 1 } else { index - 1 }];
                let arc = match bound.wrapping_sub(start) {
                    0 => 1 << 64,
                    arc => u128::from(arc),
                };
                *moved.entry((from, to)).or_default() += arc;
            }
        }

        let whole = 2f64.powi(64);
        let mut transfers: Vec<Transfer> =
            moved.into_iter().map(|((from, to), arc)| Transfer { from, to, share: arc as f64 / whole }).collect();
        transfers.sort_by(|a, b| b.share.total_cmp(&a.share));
        Change { moved: transfers.iter().map(|transfer| transfer.share).sum(), transfers }
    }
}
