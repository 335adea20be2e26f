//! The faults of a history, at the same time: one after the other of proxies, of links, and of the nodes of the quorum.

use super::SETTLE;
use crate::engines::{Link, Redis};
use crate::support::{Member, Random, disturb, heal};
use std::collections::VecDeque;
use std::sync::Arc;
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

/// Lets proxies crash and stop until a history is over, and rolls configurations out meanwhile.
pub fn of_proxies(members: &mut [Member], mut rollouts: Rollouts, random: &mut Random, is_over: &AtomicBool) {
    while pause(random.millis(50, 700), is_over) {
        if random.below(3) > 0
            && let Some(Rollout { at, text, needs_restart }) = rollouts.pop_front()
        {
            members[at].reconfigure(&text, !needs_restart && random.below(3) > 0);
            continue;
        }
        let at = random.below(members.len() as u64) as usize;
        match random.below(5) {
            0 | 1 => members[at].crash(),
            // Up to longer than the lease.
            2 | 3 => members[at].stop(random.millis(50, 800)),
            _ => purge(&members[at], random),
        }
    }
    rollouts.into_iter().for_each(|it| members[it.at].reconfigure(&it.text, !it.needs_restart));
}

/// Lets the links of a proxy each fail until a history is over. Returns whether a request to the origin was kept for
/// longer than `settle` allows.
pub fn of_links(proxies: &[Arc<Vec<Link>>], random: &mut Random, is_over: &AtomicBool) -> bool {
    let mut is_beyond = false;
    while pause(random.millis(5, 120), is_over) {
        let links = &proxies[random.below(proxies.len() as u64) as usize];
        let at = random.below(links.len() as u64) as usize;
        // What the link to the origin holds arrives before `settle` has passed since the proxy gave up.
        let longest = if at == 0 { SETTLE / 3 } else { SETTLE * 3 / 2 };
        let held = disturb(&links[at], random, u64::try_from(longest.as_millis()).unwrap());
        is_beyond |= at == 0 && held > longest + Duration::from_millis(200);
    }
    proxies.iter().for_each(|links| heal(links));
    is_beyond
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
