//! Faults of etcd: members that end, come and go; a cluster that is away, or replaced by an empty one.

use super::{Fleet, Member, Traffic, leader_of};
use crate::support::eventually;

#[test]
fn a_cluster_that_changes_or_is_away_fails_no_request() {
    let Some(mut fleet) = Fleet::start(3) else { return };
    let members = fleet.proxies(2);
    assert_eq!(members[0].set("n1", "drain").status, 200);
    let traffic = Traffic::to(&members);

    let first = fleet.etcd.leader();
    fleet.etcd.kill(first);
    traffic.goes_on(100);
    fleet.etcd.wait();
    leader_of(&members);
    assert_eq!(members[1].set("n0", "up").status, 200, "two of three members are enough");
    fleet.etcd.run(first);

    // The proxies know no endpoint of the new member, and one of their endpoints goes.
    fleet.etcd.wait();
    fleet.etcd.add_member();
    fleet.etcd.wait();
    fleet.etcd.remove_member(0);
    fleet.etcd.wait();
    traffic.goes_on(100);
    leader_of(&members);

    let told = |member: &Member| member.proxy.log().matches("etcd is away").count();
    let before: Vec<usize> = members.iter().map(told).collect();
    fleet.etcd.kill_all();
    eventually("both to see it", || members.iter().all(|member| member.leader()["up"] == false));
    eventually("each to check by itself", || members.iter().all(|member| member.prober() == "local"));
    assert!(members.iter().all(|member| member.state("n1") == "drain"), "the state that they know stays");
    traffic.goes_on(100);
    assert_eq!(members[0].set("n1", "up").problem(), "fleet-unavailable");
    for (member, before) in members.iter().zip(before) {
        assert_eq!(member.proxy.metric("ringway_store_up{store=\"etcd\"}"), 0.0);
        assert_eq!(told(member), before + 1, "said once");
    }
    fleet.etcd.run_all();
    eventually("etcd to work", || members.iter().all(|member| member.knows(2)));
    leader_of(&members);
    assert!(members.iter().all(|member| member.state("n1") == "drain"));
    traffic.goes_on(100);
    traffic.stop();
}

#[test]
fn a_cluster_without_the_data_takes_no_state_away() {
    let Some(mut fleet) = Fleet::start(1) else { return };
    let members = fleet.proxies(2);
    assert_eq!(members[0].set("n1", "drain").status, 200);
    // The cluster that comes after counts from 1: its revisions stay below those that the proxies have seen.
    (0..300).for_each(|number| _ = fleet.etcd.execute(&["put", "elsewhere", &number.to_string()]));
    fleet.etcd.kill_all();
    fleet.etcd.replace();
    eventually("etcd to work", || members.iter().all(|member| member.knows(2)));
    leader_of(&members);
    assert!(members.iter().all(|member| member.state("n1") == "drain"));
    members[0].proxy.logs("etcd has lost states of nodes");
    // Set anew, it is there for those that start later.
    assert_eq!(members[0].set("n1", "drain").json()["applied_by"]["complete"], true);
    let late = fleet.proxy();
    assert_eq!(late.state("n1"), "drain");
    assert_eq!(members[0].set("n1", "up").json()["applied_by"]["of"], 3);
    assert!(members.iter().all(|member| member.state("n1") == "up"));
}

#[test]
fn a_proxy_that_was_away_while_etcd_compacted_reads_all_anew() {
    let Some(fleet) = Fleet::start(1) else { return };
    let members = fleet.proxies(2);
    members[1].cut(true);
    let answer = members[0].set("n1", "drain").json();
    assert_eq!(answer["applied_by"]["complete"], false, "{answer}");
    let revision = answer["applied_by"]["revision"].as_u64().unwrap();
    fleet.etcd.execute(&["compact", &revision.to_string()]);
    members[1].cut(false);
    eventually("the state", || members[1].state("n1") == "drain");
}

#[test]
fn an_upgrade_without_etcd_keeps_the_states() {
    let Some(mut fleet) = Fleet::start(1) else { return };
    let mut members = fleet.proxies(1);
    assert_eq!(members[0].set("n0", "drain").status, 200);
    fleet.etcd.kill_all();
    members[0].proxy.upgrade();
    assert_eq!(members[0].state("n0"), "drain");
    fleet.etcd.run_all();
    // The old process could not leave: it counts until its lease is over, and then is missed.
    eventually("the new process", || members[0].leader()["up"] == true && members[0].leads());
    assert_eq!(members[0].state("n0"), "drain");
}

/// Without etcd at the start, a proxy serves; once it is there, the proxy follows.
#[test]
fn a_start_does_not_wait_for_etcd() {
    let Some(mut fleet) = Fleet::start(1) else { return };
    let first = fleet.proxy();
    leader_of(std::slice::from_ref(&first));
    assert_eq!(first.set("n0", "down").status, 200);
    fleet.etcd.kill_all();
    let member = fleet.proxy();
    assert_eq!(member.proxy.get("/").status, 200);
    assert_eq!(member.state("n0"), "up", "it cannot know");
    assert_eq!(member.proxy.metric("ringway_store_up{store=\"etcd\"}"), 0.0);
    let ports: Vec<u16> = member.links.iter().map(crate::engines::Link::port).collect();
    member.proxy.reconfigure(&fleet.configuration(&ports).replace("interval: 200ms", "interval: 150ms"));
    fleet.etcd.run_all();
    eventually("the state", || member.state("n0") == "down");
}
