//! Membership: who belongs to the fleet, who is missed, and whether all agree.

use super::{Bus, HeardBy, Versions, url};
use crate::engines::Redis;
use crate::support::{Authority, Proxy, eventually, write_private};
use std::process::Command;

#[test]
fn a_member_that_stops_leaves_and_one_that_vanishes_is_missed_until_it_is_forgotten() {
    let Some(mut bus) = Bus::start(1) else { return };
    bus.lease = "1s";
    let versions = Versions::start();
    let mut members = bus.proxies(3, &versions);
    // SIGTERM: it says good-bye.
    let mut leaving = members.pop().unwrap();
    leaving.proxy.signal("TERM");
    eventually("its end", || leaving.proxy.has_ended());
    eventually("its absence", || members.iter().all(|member| member.knows(2)));
    members[0].purge_everywhere(&url("/a"), 2);
    // SIGKILL: it is missed, and stays in `of`.
    let vanished = members.pop().unwrap();
    let process = vanished.process();
    vanished.proxy.signal("KILL");
    eventually("its lease", || members[0].knows(1));
    let heard = members[0].purge(&url("/a"));
    assert_eq!((heard.members, heard.of, heard.complete, heard.published), (1, 2, false, true), "{heard:?}");
    assert!(heard.missing[0].contains(&process), "{heard:?}");
    let warnings = members[0].fleet()["warnings"].to_string();
    assert!(warnings.contains(&format!("ringway fleet forget {process}")), "{warnings}");
    // A proxy that starts now knows it from the nodes.
    let late = bus.proxy(&versions);
    eventually("the members of the late one", || late.knows(2));
    assert_eq!(late.purge(&url("/a")).of, 3);
    let admin = format!("http://{}", members[0].proxy.admin);
    let forget = |id: &str| {
        Command::new(env!("CARGO_BIN_EXE_ringway")).args(["fleet", "forget", id, "--admin", &admin]).output().unwrap()
    };
    assert!(forget(&process).status.success());
    assert!(!forget(&process).status.success(), "once is enough");
    assert!(!forget(&members[0].process()).status.success(), "itself");
    eventually("oblivion", || [&members[0], &late].iter().all(|member| member.purge(&url("/a")) == HeardBy::all(2)));
}

#[test]
fn the_fleet_shows_its_members_the_engines_and_what_they_disagree_on() {
    let Some(bus) = Bus::start(1) else { return };
    let versions = Versions::start();
    let members = bus.proxies(2, &versions);
    let agrees = |member: &super::Member| member.fleet()["rings"][0]["agree"] == true;
    eventually("agreement", || members.iter().all(agrees));
    let fleet = members[0].fleet();
    assert_eq!(fleet["members"][0]["config"], fleet["members"][1]["config"], "{fleet}");
    assert_eq!(fleet["warnings"].as_array().unwrap().len(), 0, "{fleet}");
    assert!(fleet["bus"]["promise"].to_string().contains("Redis"), "{fleet}");
    let offset = fleet["members"][1]["clock_offset_seconds"].as_f64().unwrap();
    assert!(offset.abs() < 5.0, "{fleet}");
    // Another seed: another owner of each key.
    let ports: Vec<u16> = members[1].links.iter().map(crate::engines::Link::port).collect();
    let other = versions.origin.configuration("").replacen("nodes:", "ring: { seed: other-seed }\n    nodes:", 1);
    members[1].proxy.reconfigure(&(bus.block(&ports) + &other));
    eventually("disagreement", || members.iter().all(|member| !agrees(member)));
    eventually("the warnings", || {
        let warnings = members[0].fleet()["warnings"].to_string();
        warnings.contains("disagree on the ring") && warnings.contains("different configurations")
    });
    let text = Command::new(env!("CARGO_BIN_EXE_ringway"))
        .args(["fleet", "--admin", &format!("http://{}", members[0].proxy.admin)])
        .output()
        .unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    for part in ["2 of 2 members live", "N=1 W=1 R=1", "DISAGREE", "self", "live", "warning:"] {
        assert!(text.contains(part), "{part}:\n{text}");
    }
}

#[test]
fn a_change_of_the_bus_needs_a_restart_and_a_change_of_address_does_not() {
    let Some(bus) = Bus::start(1) else { return };
    let versions = Versions::start();
    let members = bus.proxies(2, &versions);
    let another = crate::engines::Link::to(bus.nodes[0].port);
    let site = versions.origin.configuration("");
    members[1].proxy.reconfigure(&(bus.block(&[another.port()]) + &site));
    members[1].cut(true);
    eventually("the new address", || members[0].purge(&url("/a")) == HeardBy::all(2));
    let needs = || members[1].proxy.admin_get("/api/status").json()["last_reload"]["needs_restart"].to_string();
    assert_eq!(needs(), "[]");
    members[1].proxy.reconfigure(&(bus.block(&[another.port()]).replace("id: r0", "id: r9") + &site));
    assert!(needs().contains("fleet.redis"), "{}", needs());
    members[1].proxy.reconfigure(&site);
    assert!(needs().contains("fleet"), "{}", needs());
    // The bus in force goes on.
    members[0].purge_everywhere(&url("/a"), 2);
}

#[test]
fn a_proxy_starts_and_serves_without_its_bus() {
    let Some(mut bus) = Bus::start(1) else { return };
    let versions = Versions::start();
    bus.nodes[0].kill();
    let proxy = Proxy::start(&(bus.block(&[bus.nodes[0].port]) + &versions.origin.configuration("")));
    assert_eq!(proxy.get("/a").status, 200);
    let heard = proxy.purge(&url("/a")).json();
    assert_eq!((&heard["heard_by"]["published"], &heard["heard_by"]["complete"]), (&false.into(), &false.into()));
    proxy.logs("cannot be used");
    assert_eq!(proxy.metric("ringway_store_up{store=\"r0\"}"), 0.0);
    bus.nodes[0].run();
    eventually("the bus", || proxy.metric("ringway_store_up{store=\"r0\"}") == 1.0);
    assert_eq!(proxy.log().matches("cannot be used").count(), 1, "said once");
}

#[test]
fn a_bus_over_tls_with_a_password_is_verified_and_shows_no_secret() {
    let authority = Authority::new();
    let pair = authority.issue("server", &["localhost", "127.0.0.1"]);
    let (chain, key) = (pair.chain.display(), pair.key.display());
    let port = crate::engines::free_port();
    let settings = [
        format!("tls-port {port}"),
        format!("tls-cert-file {chain}"),
        format!("tls-key-file {key}"),
        "tls-auth-clients no".into(),
        "user proxy on >first-word ~ringway:* +@all".into(),
    ];
    let Some(_server) = Redis::start(&settings.iter().map(String::as_str).collect::<Vec<_>>()) else { return };
    let versions = Versions::start();
    let folder = tempfile::tempdir().unwrap();
    let password = folder.path().join("password");
    write_private(&password, "first-word");
    let block = |tls: &str| {
        let login = format!("username: proxy, password_file: {}, tls: {{ {tls} }}", password.display());
        let nodes = format!("nodes: [{{ id: r0, address: \"127.0.0.1:{port}\" }}]");
        format!("fleet: {{ redis: {{ {nodes}, {login} }} }}\n{}", versions.origin.configuration(""))
    };
    let trusting = Proxy::start(&block(&format!("ca_file: {}", authority.file().display())));
    eventually("the bus", || trusting.metric("ringway_store_up{store=\"r0\"}") == 1.0);
    let suspicious = Proxy::start(&block(""));
    suspicious.logs("TLS: ");
    let shown = trusting.admin_get("/api/fleet").text() + &trusting.admin_get("/api/config").text() + &trusting.log();
    assert!(!shown.contains("first-word"), "{shown}");
}

#[test]
fn check_connect_prints_the_promise_of_each_node_and_refuses_what_cannot_be_one() {
    let Some(bus) = Bus::start(2) else { return };
    let versions = Versions::start();
    let folder = tempfile::tempdir().unwrap();
    let check = |ports: &[u16]| {
        let listeners = "listeners: [{ name: http, address: \"127.0.0.1:8080\" }]\n";
        let file = folder.path().join("ringway.yaml");
        std::fs::write(&file, listeners.to_owned() + &bus.block(ports) + &versions.origin.configuration("")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringway"));
        let output = command.args(["check", "--connect", "--config"]).arg(&file).output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    let [one, two] = [bus.nodes[0].port, bus.nodes[1].port];
    let (is_good, told) = check(&[one, two]);
    assert!(is_good && told.contains("r1: Redis") && told.contains("N=2 W=2 R=1"), "{told}");
    let away = crate::engines::Link::to(one);
    away.cut(true);
    let (is_good, told) = check(&[one, away.port()]);
    assert!(!is_good && told.contains("error: r1 at"), "{told}");
    away.cut(false);
    let (is_good, told) = check(&[one, away.port()]);
    assert!(!is_good && told.contains("the same server as the node `r0`"), "{told}");
    let replica = bus.nodes[0].replica(&[]);
    let (is_good, told) = check(&[one, replica.port]);
    assert!(!is_good && told.contains("it is a replica"), "{told}");
}

#[test]
fn two_nodes_that_are_one_server_are_refused() {
    let Some(bus) = Bus::start(1) else { return };
    let versions = Versions::start();
    let links = [crate::engines::Link::to(bus.nodes[0].port), crate::engines::Link::to(bus.nodes[0].port)];
    let ports: Vec<u16> = links.iter().map(crate::engines::Link::port).collect();
    let proxy = Proxy::start(&(bus.block(&ports) + &versions.origin.configuration("")));
    proxy.logs("the same server as the node");
}
