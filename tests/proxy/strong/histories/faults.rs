//! The faults of a history: one after the other at proxies and their links, and beside them one after the other at the
//! nodes of the quorum.

use super::SETTLE;
use crate::engines::Redis;
use crate::support::{Member, Random, disturb};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Configurations that reach the proxies one after the other.
pub type Rollouts = VecDeque<Rollout>;

/// A configuration for one proxy.
pub struct Rollout {
    pub at: usize,
    pub text: String,
    /// It takes a restart.
    pub needs_restart: bool,
}

/// Lets proxies and links fail until a history is over, and rolls configurations out meanwhile. Returns whether the
/// network has kept a request to the origin for longer than `settle` allows.
pub fn of_proxies(members: &mut [Member], mut rollouts: Rollouts, random: &mut Random, is_over: &AtomicBool) -> bool {
    let mut is_beyond = false;
    while !is_over.load(Ordering::Relaxed) {
        std::thread::sleep(random.millis(5, 80));
        if random.below(2) == 0
            && let Some(Rollout { at, text, needs_restart }) = rollouts.pop_front()
        {
            members[at].reconfigure(&text, !needs_restart && random.below(3) > 0);
            continue;
        }
        let at = random.below(members.len() as u64) as usize;
        is_beyond |= of_proxy(&mut members[at], random);
    }
    members.iter().for_each(Member::heal);
    rollouts.into_iter().for_each(|it| members[it.at].reconfigure(&it.text, !it.needs_restart));
    is_beyond
}

fn of_proxy(member: &mut Member, random: &mut Random) -> bool {
    match random.below(12) {
        0 => member.crash(),
        // Up to longer than the lease.
        1 => member.stop(random.millis(50, 800)),
        2 => purge(member, random),
        // The link to the origin: what it holds arrives before `settle` has passed since the proxy gave up.
        3..6 => {
            let longest = SETTLE / 3;
            let held = disturb(&member.links[0], random, u64::try_from(longest.as_millis()).unwrap());
            return held > longest + Duration::from_millis(200);
        }
        _ => {
            let at = random.below(member.links.len() as u64) as usize;
            if at > 0 {
                disturb(&member.links[at], random, 1500);
            }
        }
    }
    false
}

fn purge(member: &Member, random: &mut Random) {
    let soft = random.below(2) == 0;
    let answer = member.proxy().purge(&format!("{{\"all\": true, \"soft\": {soft}}}"));
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// Lets a node fail at a time, until a history is over: it stops, or starts anew without its memory.
pub fn of_nodes(nodes: &mut [Redis], random: &mut Random, is_over: &AtomicBool) {
    if nodes.is_empty() {
        return;
    }
    while pause(random.millis(100, 2500), is_over) {
        let at = random.below(nodes.len() as u64) as usize;
        let node = &mut nodes[at];
        match random.below(3) {
            0 => {
                node.signal("STOP");
                std::thread::sleep(random.millis(50, 1000));
                node.signal("CONT");
            }
            1 => {
                node.kill();
                node.run();
            }
            _ => {
                node.kill();
                std::thread::sleep(random.millis(50, 1000));
                node.run();
            }
        }
    }
}

/// Waits for a time; returns `false` where the history is over before.
fn pause(time: Duration, is_over: &AtomicBool) -> bool {
    let until = Instant::now() + time;
    while Instant::now() < until && !is_over.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(5));
    }
    !is_over.load(Ordering::Relaxed)
}
