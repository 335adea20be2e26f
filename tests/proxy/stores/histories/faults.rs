//! The faults of a history: one after the other, each at a random proxy and for a random time.

use crate::support::{Member, Random, disturb, heal};
use std::sync::atomic::{AtomicBool, Ordering};

/// One fault, and its end.
fn suffer(member: &mut Member, random: &mut Random) {
    match random.below(9) {
        0 => member.crash(),
        // Longer than half the lease, and longer than the lease.
        1 => member.stop(random.millis(100, 800)),
        _ => drop(disturb(&member.links[0], random, 1500)),
    }
}

/// Lets faults happen until a history is over.
pub fn happen(members: &mut [Member], random: &mut Random, is_over: &AtomicBool) {
    while !is_over.load(Ordering::Relaxed) {
        std::thread::sleep(random.millis(5, 80));
        let at = random.below(members.len() as u64) as usize;
        suffer(&mut members[at], random);
    }
    members.iter().for_each(|member| heal(&member.links));
}
