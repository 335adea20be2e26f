//! Shared health: one proxy checks for all, and each for itself where none does.

use super::{Fleet, Member, QUICK, leader_of, turn};
use crate::engines::Link;
use crate::support::{Does, Proxy, eventually};
use std::time::Instant;

/// Returns the checks a second at a node, with so many proxies.
fn checks_with(fleet: &Fleet, count: usize) -> f64 {
    let members = fleet.proxies(count);
    eventually("the leader to check for all", || {
        members.iter().filter(|member| member.prober() == "leader").count() == count - 1
    });
    let (before, began) = (fleet.nodes[0].checked(), Instant::now());
    eventually("many checks", || fleet.nodes[0].checked() >= before + 30);
    (fleet.nodes[0].checked() - before) as f64 / began.elapsed().as_secs_f64()
}

fn probes_do_not_grow(counts: [usize; 2]) {
    let Some(fleet) = Fleet::start(1) else { return };
    let rates = counts.map(|count| checks_with(&fleet, count));
    println!("checks a second at a node: {rates:.2?} with {counts:?} proxies");
    assert!(rates[1] < rates[0] * 1.5, "{rates:?}");
}

#[test]
fn checks_do_not_grow_with_the_number_of_proxies() {
    probes_do_not_grow([2, 8]);
}

/// `cargo test --test proxy -- --ignored --nocapture leader::health`
#[test]
#[ignore = "32 processes"]
fn checks_do_not_grow_with_32_proxies() {
    probes_do_not_grow([8, 32]);
}

#[test]
fn a_verdict_of_the_leader_reaches_all_and_without_a_leader_each_checks_for_itself() {
    let Some(mut fleet) = Fleet::start(1) else { return };
    let members = fleet.proxies(3);
    turn(&fleet.nodes[0], false);
    eventually("the verdict", || members.iter().all(|member| !member.is_healthy("n0")));
    let age = "ringway_fleet_health_age_seconds{pool=\"app\"}";
    assert!(members.iter().all(|member| member.proxy.metric(age) < 10.0));

    fleet.etcd.kill_all();
    eventually("checks by each", || members.iter().all(|member| member.prober() == "local"));
    assert!(members.iter().all(|member| !member.is_healthy("n0")), "the last verdict stays until checks say otherwise");
    members[0].proxy.logs("this proxy checks the nodes for itself: no leader has checked for three intervals");
    let warnings = members[0].fleet()["warnings"].to_string();
    assert!(warnings.contains("checks the nodes of `app` for itself"), "{warnings}");
    assert!(members[0].proxy.metric(age) > 1.0);
    turn(&fleet.nodes[0], true);
    eventually("their own verdicts", || members.iter().all(|member| member.is_healthy("n0")));

    fleet.etcd.run_all();
    let leader = leader_of(&members);
    eventually("checks by the leader", || {
        let prober = |at: usize| if at == leader { "self" } else { "leader" };
        (0..3).all(|at| members[at].prober() == prober(at))
    });
}

/// Starts a proxy whose checks go through links of its own, one for all nodes: their port is not that of the nodes.
fn with_checks_through(fleet: &Fleet, port: u16) -> (Member, Link) {
    let (link, etcd) = (Link::to(port), Link::to(fleet.etcd.ports()[0]));
    let checks = format!("{{ {QUICK} }}");
    let through = format!("{{ {QUICK}, port: {} }}", link.port());
    let text = fleet.configuration(&[etcd.port()]).replace(&checks, &through);
    (Member { proxy: Proxy::start(&text), links: vec![etcd] }, link)
}

/// A leader that reaches none of a pool's nodes says more of itself than of them: each proxy checks by itself.
#[test]
fn a_leader_that_reaches_no_node_of_a_pool_is_not_believed() {
    let Some(mut fleet) = Fleet::start(1) else { return };
    fleet.nodes.truncate(1);
    let port = fleet.nodes[0].address.port();
    let (first, link) = with_checks_through(&fleet, port);
    leader_of(std::slice::from_ref(&first));
    let (second, _) = with_checks_through(&fleet, port);
    eventually("both", || second.knows(2) && second.prober() == "leader");
    assert!(first.leads());
    // The only node of the pool: the leader reaches none, and the follower looks for itself.
    link.cut(true);
    eventually("the verdict of the leader", || !first.is_healthy("n0"));
    eventually("checks by the follower", || second.prober() == "local");
    second.proxy.logs("the leader reaches none of its nodes");
    eventually("its own verdict", || second.is_healthy("n0"));
    assert_eq!(second.proxy.get("/").status, 200);
    link.cut(false);
    eventually("checks by the leader", || second.prober() == "leader" && second.is_healthy("n0"));
}

/// The follower's own ejection wins for itself, and for nobody else.
#[test]
fn a_node_that_only_a_follower_cannot_reach_is_ejected_there_alone() {
    let Some(fleet) = Fleet::start(1) else { return };
    let members = fleet.proxies(2);
    let leader = leader_of(&members);
    let follower = &members[1 - leader];
    // The path of the follower alone is broken: its requests reach the node while no other's do.
    fleet.nodes[0].does(Does::Answer(503));
    for path in follower.proxy.paths_of("n0", 10) {
        follower.proxy.get(&path);
    }
    fleet.nodes[0].does(Does::Answer(200));
    assert!(follower.proxy.node("n0")["ejected_for_seconds"].as_f64().unwrap() > 10.0);
    assert!(members[leader].is_healthy("n0"), "ejection is no verdict");
    assert_eq!(follower.prober(), "leader");
    let checked = fleet.nodes[0].checked();
    eventually("more checks that pass", || fleet.nodes[0].checked() > checked + 5);
    assert!(!follower.is_healthy("n0"), "the leader's verdict does not end it");
    let path = &members[leader].proxy.paths_of("n0", 1)[0];
    assert_eq!(members[leader].proxy.get(path).text(), "n0");
    assert_eq!(follower.proxy.get(path).text(), "n1");
}
