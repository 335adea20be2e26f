//! Random histories of strong routes: clients read and write a few registers through several proxies, while proxies crash
//! and stop, and links to the origin and to the nodes of the quorum are cut, slow, silent or late. What clients saw is
//! judged by `checker`.
//!
//! `RINGWAY_HISTORIES=2000 cargo test --test proxy strong::histories` runs that many; `RINGWAY_SEED` repeats the one that
//! a failure names.

mod checker;
mod checker_tests;
mod client;
mod faults;
mod registers;

use crate::engines::{Link, Redis};
use crate::support::{Member, Random};
use checker::{Operation, is_linearizable, shortest};
use client::{Client, Log};
use faults::{Rollout, Rollouts};
use registers::Registers;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

const PROXIES: usize = 3;
const CLIENTS: usize = 6;
/// The time for which the origin may still apply a request after its connection broke.
const SETTLE: Duration = Duration::from_secs(1);
/// Sites in which histories run at the same time.
const LANES: usize = 3;
/// Histories after which a site is made anew.
const HISTORIES_OF_A_SITE: usize = 25;

/// A kind of histories: nodes, stages and faults.
#[derive(Clone, Copy)]
struct Kind {
    /// The Redis nodes of the fleet; 0 for none.
    nodes: usize,
    /// The configurations of all proxies. A history begins with one of them, and rolls the next two out; after the last
    /// one comes the first.
    stages: &'static [Stage],
    has_faults: bool,
}

/// One configuration of all proxies.
#[derive(Clone, Copy)]
struct Stage {
    /// The settings of `fleet.redis`, where `@0` is the first node; empty for no fleet.
    redis: &'static str,
    /// The settings of the route.
    route: &'static str,
}

/// Proxies before one origin, with the nodes of their quorum.
struct Site {
    registers: Registers,
    nodes: Vec<Redis>,
    members: Vec<Member>,
    /// The place of the configuration among the stages.
    stage: usize,
}

impl Site {
    /// Starts a site; `None` where Redis is needed and not installed.
    fn start(kind: Kind) -> Option<Site> {
        let registers = Registers::start();
        let nodes: Vec<Redis> = (0..kind.nodes).map(|_| Redis::start(&[])).collect::<Option<_>>()?;
        let member = |_| {
            let ports = [registers.address().port()].into_iter().chain(nodes.iter().map(|node| node.port));
            let links: Vec<Link> = ports.map(Link::to).collect();
            Member::start(configuration(kind.stages[0], &links), links)
        };
        let members = (0..PROXIES).map(member).collect();
        Some(Site { registers, nodes, members, stage: 0 })
    }

    /// Returns the configurations of the next two stages, one stage after the other.
    fn rollouts(&mut self, kind: Kind) -> Rollouts {
        let mut rollouts = Rollouts::new();
        for _ in 0..if kind.stages.len() > 1 { 2 } else { 0 } {
            let before = kind.stages[self.stage];
            self.stage = (self.stage + 1) % kind.stages.len();
            let stage = kind.stages[self.stage];
            let needs_restart = stage.redis != before.redis;
            let texts = self.members.iter().map(|member| configuration(stage, &member.links));
            rollouts.extend(texts.enumerate().map(|(at, text)| Rollout { at, text, needs_restart }));
        }
        rollouts
    }
}

/// The configuration of a proxy: its first link goes to the origin, the others to the nodes.
fn configuration(stage: Stage, links: &[Link]) -> String {
    let (origin, Stage { redis, route }) = (links[0].port(), stage);
    let redis = links[1..].iter().enumerate().fold(redis.to_owned(), |text, (at, link)| {
        text.replace(&format!("@{at}"), &format!("{{ id: r{at}, address: \"127.0.0.1:{}\" }}", link.port()))
    });
    let fleet = match redis.is_empty() {
        true => String::new(),
        false => format!("fleet: {{ lease: 300ms, redis: {{ {redis} }} }}\n"),
    };
    // Some writes go through a route of their own, which caches nothing; those with a key through one more step.
    format!(
        "{fleet}idempotency_store: {{ kind: memory }}
pools:
  app:
    nodes: [{{ id: origin, address: \"127.0.0.1:{origin}\" }}]
routes:
  - {{ name: posts, path_prefix: /, methods: [POST], pool: app, hash_on: [uri], idempotency: {{ scope: [] }} }}
  - {{ name: site, path_prefix: /, pool: app, hash_on: [uri]{route} }}
"
    )
}

/// The result of histories.
#[derive(Default)]
struct Verdict {
    judged: usize,
    /// Histories in which this machine was too slow for `settle`: they prove nothing.
    void: usize,
    violations: Vec<String>,
    answers: BTreeMap<String, usize>,
}

impl Verdict {
    fn add(&mut self, other: Verdict) {
        self.judged += other.judged;
        self.void += other.void;
        self.violations.extend(other.violations);
        for (answer, count) in other.answers {
            *self.answers.entry(answer).or_default() += count;
        }
    }

    /// Returns the number of requests whose answer has this text.
    fn count(&self, text: &str) -> usize {
        self.answers.iter().filter(|(answer, _)| answer.contains(text)).map(|(_, count)| count).sum()
    }

    fn all(&self) -> usize {
        self.answers.values().sum()
    }
}

/// Runs a history, and judges it.
fn history(site: &mut Site, kind: Kind, seed: u64, operations: usize) -> Verdict {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let prefix = format!("/h{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let mut random = Random::new(seed);
    let seeds: Vec<u64> = (0..CLIENTS + 3).map(|_| random.below(u64::MAX)).collect();
    let (is_over, begin, begun) = (AtomicBool::new(!kind.has_faults), Barrier::new(CLIENTS), Instant::now());
    let addresses: Vec<_> = site.members.iter().map(Member::address).collect();
    let links: Vec<_> = site.members.iter().map(|member| Arc::clone(&member.links)).collect();
    let rollouts = site.rollouts(kind);
    let (members, nodes) = (&mut site.members, &mut site.nodes);
    let (logs, is_beyond) = std::thread::scope(|scope| {
        let (begin, is_over, addresses, prefix, links) = (&begin, &is_over, &addresses, &prefix, &links);
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let client = Client::new(number, seeds[number], prefix, begun, addresses);
                scope.spawn(move || {
                    begin.wait();
                    client.run(operations / CLIENTS)
                })
            })
            .collect();
        let faults = seeds[CLIENTS..].iter().map(|seed| Random::new(*seed)).collect::<Vec<_>>();
        let Ok([mut of_proxies, mut of_links, mut of_nodes]) = <[Random; 3]>::try_from(faults) else { unreachable!() };
        let at_proxies = scope.spawn(move || faults::of_proxies(members, rollouts, &mut of_proxies, is_over));
        let at_links = scope.spawn(move || faults::of_links(links, &mut of_links, is_over));
        let at_nodes = scope.spawn(move || faults::of_nodes(nodes, &mut of_nodes, is_over));
        let logs: Vec<Log> = clients.into_iter().map(|client| client.join().unwrap()).collect();
        is_over.store(true, Ordering::Relaxed);
        at_proxies.join().unwrap();
        at_nodes.join().unwrap();
        (logs, at_links.join().unwrap())
    });
    let mut verdict = judge(logs, &site.registers, seed);
    if is_beyond || site.registers.slowest() > SETTLE / 3 {
        (verdict.judged, verdict.void, verdict.violations) = (0, 1, Vec::new());
    }
    verdict
}

/// Judges what the clients of a history have seen.
fn judge(logs: Vec<Log>, registers: &Registers, seed: u64) -> Verdict {
    let mut verdict = Verdict { judged: 1, ..Verdict::default() };
    let mut operations: BTreeMap<u64, Vec<Operation>> = BTreeMap::new();
    let mut found = Vec::new();
    for log in logs {
        found.extend(log.faulty);
        let ran = log.refused.iter().filter(|&&value| registers.has_written(value));
        found.extend(ran.map(|value| format!("write {value} was refused and took effect")));
        for (answer, count) in log.answers {
            *verdict.answers.entry(answer).or_default() += count;
        }
        for (key, done) in log.operations {
            operations.entry(key).or_default().extend(done);
        }
    }
    let wrong = operations.values().filter(|done| !is_linearizable(done));
    found.extend(wrong.map(|done| format!("a register is not linearizable:{}", told(shortest(done)))));
    verdict.violations = found.into_iter().map(|violation| format!("RINGWAY_SEED={seed:x}: {violation}")).collect();
    verdict
}

/// Returns operations as text, a line for each.
fn told(mut operations: Vec<Operation>) -> String {
    operations.sort_by_key(|operation| operation.call);
    let millis = |nanos: u64| format!("{:.2}", Duration::from_nanos(nanos).as_secs_f64() * 1000.0);
    operations.iter().fold(String::new(), |mut text, Operation { process, call, end, action, place }| {
        let end = end.map_or("unknown".to_owned(), millis);
        let _ = write!(text, "\n    client {process}, {} to {end} ms: {action:?} by {place}", millis(*call));
        text
    })
}

/// Returns the number of histories and of their operations; so many short ones where the environment does not say.
fn extent(short: usize) -> (usize, usize) {
    match std::env::var("RINGWAY_HISTORIES") {
        Ok(count) => (count.parse().expect("RINGWAY_HISTORIES is a number"), 500),
        Err(_) => (short, 360),
    }
}

/// Runs histories of a kind, until there are enough or a violation may stop them; `None` where Redis is missing.
fn histories(kind: Kind, count: usize, operations: usize, stops: bool) -> Option<Verdict> {
    let only = std::env::var("RINGWAY_SEED").ok().map(|seed| u64::from_str_radix(&seed, 16).expect("hexadecimal"));
    let seeds = only.map_or_else(|| (0..count).map(|_| getrandom::u64().unwrap() >> 16).collect(), |it| vec![it]);
    // A void history is replaced, so often.
    let spare = Mutex::new(2 * seeds.len());
    let (left, total) = (Mutex::new(seeds), Mutex::new(Verdict::default()));
    let lane = || {
        let mut site = Site::start(kind)?;
        for number in 1.. {
            let Some(seed) = left.lock().unwrap().pop() else { break };
            if number % HISTORIES_OF_A_SITE == 0 {
                site = Site::start(kind)?;
            }
            let verdict = history(&mut site, kind, seed, operations);
            verdict.violations.iter().for_each(|violation| eprintln!("{violation}"));
            let mut spare = spare.lock().unwrap();
            if verdict.void > 0 && *spare > 0 {
                *spare -= 1;
                left.lock().unwrap().push(getrandom::u64().unwrap() >> 16);
            }
            let mut total = total.lock().unwrap();
            total.add(verdict);
            if stops && !total.violations.is_empty() {
                break;
            }
            if (total.judged + total.void) % 100 == 0 {
                eprintln!("{} histories, {} void, {} violations", total.judged, total.void, total.violations.len());
            }
        }
        Some(())
    };
    std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..LANES).map(|_| scope.spawn(lane)).collect();
        lanes.into_iter().map(|lane| lane.join().unwrap()).collect::<Option<Vec<()>>>()
    })?;
    let total = total.into_inner().unwrap();
    eprintln!("{} histories, {} void, {} violations", total.judged, total.void, total.violations.len());
    total.answers.iter().for_each(|(answer, count)| eprintln!("{count:>8} {answer}"));
    Some(total)
}

/// Requires histories without a violation, in which this machine was fast enough and most requests were answered.
fn hold(verdict: &Verdict) {
    assert!(verdict.violations.is_empty(), "{:#?}", verdict.violations);
    assert!(2 * verdict.judged > verdict.void, "{} judged, {} void", verdict.judged, verdict.void);
    let answered = verdict.all() - verdict.count("no answer") - verdict.count(" 50");
    assert!(
        2 * answered > verdict.all(),
        "{answered} of {} requests were answered: {:#?}",
        verdict.all(),
        verdict.answers
    );
}

/// Runs the histories of a test, so many where the environment does not say; `None` where Redis is missing.
fn run(nodes: usize, stages: &'static [Stage], short: usize) -> Option<Verdict> {
    let (count, operations) = extent(short);
    // A rollout takes a part of a history's time.
    let operations = if stages.len() > 1 { 2 * operations } else { operations };
    let verdict = histories(Kind { nodes, stages, has_faults: true }, count, operations, false)?;
    hold(&verdict);
    Some(verdict)
}

/// Requires that responses were served from stores, without which nothing is proved.
fn is_served_from_stores(verdict: &Verdict) {
    let hits = verdict.count("ringway; hit");
    assert!(50 * hits > verdict.all(), "{hits} hits of {} requests: {:#?}", verdict.all(), verdict.answers);
}

const BY_ORIGIN: &str = ", cache: {}, consistency: { level: strong, verify: origin, groups: [\"{host}/{path:2}\"] }";
const EVENTUAL: &str = ", cache: {}, consistency: { level: eventual }";

#[test]
fn reads_that_the_origin_verifies_are_linearizable() {
    let Some(verdict) = run(0, &[Stage { redis: "", route: BY_ORIGIN }], 20) else { return };
    assert!(verdict.count("fwd-status=304") > 0, "validated responses are served: {:#?}", verdict.answers);
}

#[test]
fn histories_show_stale_reads_of_an_eventual_route() {
    let kind = Kind { nodes: 0, stages: &[Stage { redis: "", route: EVENTUAL }], has_faults: false };
    let Some(verdict) = histories(kind, 20, 240, true) else { return };
    assert!(verdict.violations.iter().any(|it| it.contains("not linearizable")), "{:#?}", verdict.answers);
}

/// The settings of a strong route by a quorum, with `reads`.
macro_rules! by_quorum {
    ($reads:literal) => {
        concat!(
            ", cache: {}, consistency: { level: strong, verify: quorum, settle: 1s, ",
            "groups: [\"{host}/{path:2}\"], reads: ",
            $reads,
            " }"
        )
    };
}

const BY_QUORUM: &str = by_quorum!("cache");
const TWO_OF_THREE: Stage = Stage { redis: "nodes: [@0, @1, @2]", route: BY_QUORUM };

#[test]
fn reads_that_two_of_three_nodes_verify_are_linearizable() {
    let Some(verdict) = run(3, &[TWO_OF_THREE], 20) else { return };
    is_served_from_stores(&verdict);
}

#[test]
fn reads_are_linearizable_by_other_numbers_that_overlap() {
    for redis in [
        "nodes: [@0, @1, @2, @3, @4], replicas: 3",
        "nodes: [@0, @1, @2], write: 3, read: 1",
        "nodes: [@0, @1, @2], write: 1, read: 3",
    ] {
        let stages = Box::leak(Box::new([Stage { redis, route: BY_QUORUM }]));
        let Some(verdict) = run(5, stages, 4) else { return };
        is_served_from_stores(&verdict);
    }
}

/// Other nodes and numbers take over, by two rollouts.
#[test]
fn reads_are_linearizable_while_nodes_change() {
    const OTHERS: &str = "nodes: [@2, @3, @4], write: 3, read: 1";
    let stages = &[
        TWO_OF_THREE,
        Stage { redis: "nodes: [@2, @3, @4], write: 3, read: 1, former: { nodes: [@0, @1, @2] }", route: BY_QUORUM },
        Stage { redis: OTHERS, route: BY_QUORUM },
        Stage { redis: "nodes: [@0, @1, @2], former: { nodes: [@2, @3, @4], write: 3, read: 1 }", route: BY_QUORUM },
    ];
    run(5, stages, 10);
}

/// A strong route is new: all proxies mark writes before any serves a stored response.
#[test]
fn reads_are_linearizable_while_a_route_becomes_strong() {
    const MARKING: Stage = Stage { redis: "nodes: [@0, @1, @2]", route: by_quorum!("origin") };
    run(3, &[Stage { redis: "nodes: [@0, @1, @2]", route: "" }, MARKING, TWO_OF_THREE, MARKING], 8);
}
