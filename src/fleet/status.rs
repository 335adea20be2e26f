//! The fleet in words and numbers, for the admin API.

use super::bus::{Board, Bus};
use super::event::Heartbeat;
use super::members::Member;
use crate::clock;
use crate::config::Quorum;
use crate::control::{BusStatus, FleetStatus, MemberStatus, RingStatus};
use std::collections::{BTreeMap, BTreeSet};

impl Bus {
    /// Returns the fleet as this process sees it.
    pub(crate) fn status(&self) -> FleetStatus {
        let shared = &self.shared;
        let (mut board, now) = (shared.board.lock().clone(), shared.now());
        for (node, read) in board.nodes.iter_mut().zip(&board.read) {
            node.read_seconds = seconds(now.saturating_sub(*read));
        }
        let clock = i128::try_from(clock::since_1970().as_millis()).unwrap_or_default();
        let mut members = vec![MemberStatus {
            state: "self".to_owned(),
            lag_seconds: seconds(board.lag),
            ..member(shared.process.to_string(), &board.own)
        }];
        let others: Vec<(String, Member)> =
            shared.members.lock().iter().map(|(process, member)| (process.to_string(), member.clone())).collect();
        for (process, other) in others {
            let heard = now.saturating_sub(other.heard);
            // As of the arrival of its last heartbeat, which is older by its way over the bus.
            let offset = i128::from(other.beat.clock) + i128::from(heard) - clock;
            members.push(MemberStatus {
                state: if other.is_missed(now) { "missed" } else { "live" }.to_owned(),
                heard_seconds: seconds(heard),
                clock_offset_seconds: offset as f64 / 1000.0,
                ..member(process, &other.beat)
            });
        }
        let rings = rings(&members);
        let works = *shared.works.borrow();
        FleetStatus {
            id: shared.fleet.clone(),
            process: shared.process.to_string(),
            warnings: warnings(&board, &members, &rings, works),
            bus: Some(bus(board, shared.quorum, works)),
            leader: None,
            members,
            rings,
        }
    }
}

fn seconds(milliseconds: u64) -> f64 {
    milliseconds as f64 / 1000.0
}

fn member(process: String, beat: &Heartbeat) -> MemberStatus {
    MemberStatus {
        process,
        name: beat.name.clone(),
        address: beat.address.clone(),
        version: beat.version.clone(),
        state: String::new(),
        heard_seconds: 0.0,
        lag_seconds: seconds(beat.lag.into()),
        clock_offset_seconds: 0.0,
        config: format!("{:016x}", beat.config),
        rings: beat.rings.iter().map(|(pool, digest)| (pool.clone(), format!("{digest:016x}"))).collect(),
    }
}

/// Returns the pools of the members that are alive, and whether their rings are equal.
fn rings(members: &[MemberStatus]) -> Vec<RingStatus> {
    let mut pools: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for member in members.iter().filter(|member| member.state != "missed") {
        for (pool, digest) in &member.rings {
            pools.entry(pool).or_default().insert(digest);
        }
    }
    pools.into_iter().map(|(pool, digests)| RingStatus { pool: pool.to_owned(), agree: digests.len() == 1 }).collect()
}

fn warnings(board: &Board, members: &[MemberStatus], rings: &[RingStatus], works: bool) -> Vec<String> {
    let mut warnings = Vec::new();
    if !works {
        warnings.push(
            "the bus does not work: purges and writes of other proxies may be missed until it does, and stored \
             responses are validated before they are served"
                .to_owned(),
        );
    }
    for node in board.nodes.iter().filter(|node| !node.up) {
        let error = node.error.as_deref().unwrap_or("not connected yet");
        warnings.push(format!("the node `{}` of the bus is away: {error}", node.id));
    }
    for member in members.iter().filter(|member| member.state == "missed") {
        warnings.push(format!(
            "{} vanished without leaving {:.0} s ago; `ringway fleet forget {}` removes it if it is gone for good",
            member.name, member.heard_seconds, member.process
        ));
    }
    if let Some(since) = board.skewed_since {
        let age = since.elapsed().as_secs();
        warnings.push(format!("the proxies have had different configurations for {age} s"));
    }
    for ring in rings.iter().filter(|ring| !ring.agree) {
        warnings.push(format!(
            "the proxies disagree on the ring of the pool `{}`: they send a key to different nodes",
            ring.pool
        ));
    }
    warnings
}

fn bus(board: Board, quorum: Quorum, works: bool) -> BusStatus {
    let Quorum { replicas, write, read } = quorum;
    let mut promise = vec![
        "A purge or write on one proxy reaches the others within a second while the bus works.".to_owned(),
        match (replicas, replicas - write) {
            (1, _) => "One node: while it is away, no purge travels.".to_owned(),
            (_, 0) => format!("An event must reach all {replicas} nodes: with one away, no purge counts as published."),
            (_, spare) => format!("An event counts as published at {write} of {replicas} nodes: {spare} may be away."),
        },
        match read + write > replicas {
            true => format!("Stored responses are validated after gaps at {write} or more nodes at a time."),
            false => "R + W does not exceed N: a gap at one node has all stored responses validated.".to_owned(),
        },
    ];
    if quorum.overlaps() {
        promise.push(format!("Strong routes with `verify: quorum`, {}.", quorum.tolerance()));
    }
    promise.extend(board.facts.into_iter().flatten());
    BusStatus { replicas, write, read, open_gap: !works, doubts: board.doubts, promise, nodes: board.nodes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_agree_where_all_live_members_have_one_digest() {
        let with = |state: &str, digest| MemberStatus {
            state: state.to_owned(),
            ..member(String::new(), &Heartbeat { rings: vec![("app".to_owned(), digest)], ..Heartbeat::default() })
        };
        let agree = |members: &[MemberStatus]| rings(members)[0].agree;
        assert!(agree(&[with("self", 1), with("live", 1), with("missed", 2)]));
        assert!(!agree(&[with("self", 1), with("live", 2)]));
    }
}
