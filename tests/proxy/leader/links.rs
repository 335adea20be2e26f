//! Nodes that one proxy alone cannot reach: the name of a node leads each proxy to a loopback address of its own, by an
//! `/etc/hosts` that only this process sees. That needs root.

use super::{Fleet, Member, Traffic, leader_of};
use crate::engines::{Link, free_port};
use crate::support::{Proxy, eventually};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

/// A proxy, and its own links to the nodes.
struct Linked {
    member: Member,
    nodes: Vec<Link>,
    _folder: tempfile::TempDir,
}

/// Returns whether a process may see an `/etc/hosts` of its own here.
fn may_mount() -> bool {
    let tried = Command::new("unshare").args(["-m", "true"]).output();
    let may = tried.is_ok_and(|tried| tried.status.success());
    if !may {
        eprintln!("skipped: needs root, for an /etc/hosts of each process");
    }
    may
}

/// Starts a proxy that finds the nodes, `n0.test` and so on at these ports, at 127.0.0.`host`.
fn start(fleet: &Fleet, host: u8, ports: &[u16]) -> Linked {
    let folder = tempfile::tempdir().unwrap();
    let address = IpAddr::V4(Ipv4Addr::new(127, 0, 0, host));
    let names: String = (0..ports.len()).map(|at| format!("{address} n{at}.test\n")).collect();
    let (hosts, script) = (folder.path().join("hosts"), folder.path().join("ringway"));
    std::fs::write(&hosts, format!("127.0.0.1 localhost\n{names}")).unwrap();
    let text = format!(
        "#!/bin/sh\nexec unshare -m -- /bin/sh -c 'mount --bind \"$0\" /etc/hosts && exec \"$@\"' {} {} \"$@\"\n",
        hosts.display(),
        env!("CARGO_BIN_EXE_ringway")
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let link = |(at, port): (usize, &u16)| Link::from(SocketAddr::new(address, *port), fleet.nodes[at].address.port());
    let nodes = ports.iter().enumerate().map(link).collect();
    let etcd = Link::to(fleet.etcd.ports()[0]);
    // A link that is cut resets what is on its way.
    let mut rest = fleet.configuration(&[etcd.port()]).replace("health: shared\n", "health: shared\n    retries: {}\n");
    for (at, port) in ports.iter().enumerate() {
        rest = rest.replace(&fleet.nodes[at].address.to_string(), &format!("n{at}.test:{port}"));
    }
    let whole = format!(
        "listeners: [{{ name: http, address: \"127.0.0.1:0\" }}]\nadmin: {{ address: \"127.0.0.1:0\" }}\naccess_log: {{ format: \"off\" }}\n{rest}"
    );
    let member = Member { proxy: Proxy::start_as(&script, &whole, |_| ()), links: vec![etcd] };
    Linked { member, nodes, _folder: folder }
}

/// Starts two proxies. Returns the leader and the follower.
fn two(fleet: &Fleet) -> (Linked, Linked) {
    let ports: Vec<u16> = fleet.nodes.iter().map(|_| free_port()).collect();
    let leader = start(fleet, 2, &ports);
    leader_of(std::slice::from_ref(&leader.member));
    let follower = start(fleet, 3, &ports);
    eventually("both", || follower.member.knows(2) && follower.member.prober() == "leader");
    assert!(leader.member.leads());
    (leader, follower)
}

#[test]
fn a_node_that_only_the_leader_cannot_reach_takes_no_requests_of_any_proxy() {
    if !may_mount() {
        return;
    }
    let Some(fleet) = Fleet::start(1) else { return };
    let (leader, follower) = two(&fleet);
    leader.nodes[0].cut(true);
    eventually("the verdict", || !leader.member.is_healthy("n0") && !follower.member.is_healthy("n0"));
    assert_eq!(follower.member.prober(), "leader");
    let before = fleet.nodes[0].asked();
    assert!((0..20).all(|number| follower.member.proxy.get(&format!("/{number}")).text() == "n1"));
    assert_eq!(fleet.nodes[0].asked(), before, "the follower believes the leader");
    // Where it reaches no node, each looks for itself.
    leader.nodes[1].cut(true);
    eventually("checks by the follower", || follower.member.prober() == "local" && follower.member.is_healthy("n0"));
    assert_eq!(follower.member.proxy.get("/").status, 200);
    leader.nodes.iter().for_each(|link| link.cut(false));
    eventually("checks by the leader", || follower.member.prober() == "leader" && follower.member.is_healthy("n0"));
}

#[test]
fn a_node_that_only_a_follower_cannot_reach_takes_no_requests_of_that_proxy() {
    if !may_mount() {
        return;
    }
    let Some(fleet) = Fleet::start(1) else { return };
    let (leader, follower) = two(&fleet);
    let members = [leader.member, follower.member];
    let traffic = Traffic::to(&members);
    follower.nodes[0].cut(true);
    let ejected = || members[1].proxy.node("n0")["ejected_for_seconds"].as_f64().is_some_and(|left| left > 1.0);
    eventually("its ejection", ejected);
    assert_eq!((members[1].prober(), members[0].is_healthy("n0")), ("leader".to_owned(), true));
    let path = &members[0].proxy.paths_of("n0", 1)[0];
    assert_eq!(members[0].proxy.get(path).text(), "n0");
    assert_eq!(members[1].proxy.get(path).text(), "n1", "its own ejection wins");
    traffic.goes_on(100);
    traffic.stop();
}
