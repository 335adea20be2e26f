//! Gaps: what was missed is validated before it is served.

use super::{Bus, Member, Versions, url};
use crate::support::eventually;

/// Has a proxy miss a purge: its links are cut, another proxy purges, something happens to the nodes, and it comes back.
fn miss(bus: &mut Bus, happens: impl FnOnce(&mut Bus)) {
    let versions = Versions::start();
    let members = bus.proxies(2, &versions);
    let (near, far) = (&members[0], &members[1]);
    members.iter().for_each(|member| member.warm("/a"));
    far.cut(true);
    let new = versions.change("/a");
    let heard = near.purge(&url("/a"));
    assert_eq!((heard.members, heard.of, heard.complete), (1, 2, false), "{heard:?}");
    happens(bus);
    far.cut(false);
    eventually("the bus", || far.works());
    far.reads_on();
    assert_eq!(far.get("/a").0, new, "the struck response is not served after healing");
    far.warm("/a");
    // Once validated it is served, and there is no loop.
    let validated = versions.validations();
    (0..20).for_each(|_| assert_eq!(far.get("/a"), (new.clone(), true)));
    assert_eq!(versions.validations(), validated);
}

#[test]
fn a_cut_loses_nothing() {
    let Some(mut bus) = Bus::start(1) else { return };
    miss(&mut bus, |_| ());
}

#[test]
fn a_stream_that_was_deleted_is_noticed() {
    let Some(mut bus) = Bus::start(1) else { return };
    miss(&mut bus, |bus| drop(bus.nodes[0].execute(&["DEL", "ringway:test:bus"])));
}

#[test]
fn a_flushed_server_is_noticed() {
    let Some(mut bus) = Bus::start(1) else { return };
    miss(&mut bus, |bus| drop(bus.nodes[0].execute(&["FLUSHALL"])));
}

#[test]
fn a_trimmed_stream_is_noticed() {
    let Some(mut bus) = Bus::start(1) else { return };
    miss(&mut bus, |bus| drop(bus.nodes[0].execute(&["XTRIM", "ringway:test:bus", "MAXLEN", "0"])));
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Deletes the purge, and no other entry.
fn delete_purge(bus: &Bus) {
    let ids = bus.nodes[0].execute(&["XRANGE", "ringway:test:bus", "-", "+"]);
    // The bytes of an event may be lines with a `-`, too.
    let is_id = |line: &&str| line.split_once('-').is_some_and(|(time, number)| is_number(time) && is_number(number));
    let ids: Vec<&str> = ids.lines().filter(is_id).collect();
    let is_purge = |id: &str| bus.nodes[0].execute(&["XRANGE", "ringway:test:bus", id, id]).contains("example.com/a");
    let deleted: Vec<String> = ids
        .into_iter()
        .filter(|id| is_purge(id))
        .map(|id| bus.nodes[0].execute(&["XDEL", "ringway:test:bus", id]))
        .collect();
    assert_eq!(deleted, ["1"]);
}

#[test]
fn a_last_entry_that_was_deleted_is_noticed() {
    let Some(mut bus) = Bus::start(1) else { return };
    miss(&mut bus, |bus| delete_purge(bus));
}

#[test]
fn an_entry_in_the_middle_that_was_deleted_is_noticed() {
    let Some(mut bus) = Bus::start(1) else { return };
    miss(&mut bus, |bus| {
        let length = || bus.nodes[0].execute(&["XLEN", "ringway:test:bus"]).parse::<u64>().unwrap();
        let before = length();
        eventually("a heartbeat behind the purge", || length() > before);
        delete_purge(bus);
    });
}

#[test]
fn a_restart_that_comes_back_empty_is_noticed() {
    let Some(mut bus) = Bus::start(1) else { return };
    miss(&mut bus, |bus| {
        bus.nodes[0].lose();
        bus.nodes[0].run();
    });
}

#[test]
fn a_stream_whose_clock_went_back_is_noticed() {
    let Some(bus) = Bus::start(1) else { return };
    let versions = Versions::start();
    let members = bus.proxies(2, &versions);
    members.iter().for_each(|member| member.warm("/a"));
    // The next ids are those of another century, and then of this one again.
    bus.nodes[0].execute(&["XADD", "ringway:test:bus", "9999999999999-0", "x", "y"]);
    members.iter().for_each(Member::reads_on);
    let length = bus.nodes[0].execute(&["XLEN", "ringway:test:bus"]);
    eventually("a later entry", || bus.nodes[0].execute(&["XLEN", "ringway:test:bus"]) != length);
    let last = bus.nodes[0].execute(&["XREVRANGE", "ringway:test:bus", "+", "-", "COUNT", "1"]);
    assert!(last.starts_with("9999999999999-"), "{last}");
    members.iter().for_each(Member::reads_on);
    bus.nodes[0].execute(&["DEL", "ringway:test:bus"]);
    let new = versions.change("/a");
    members[0].purge_everywhere(&url("/a"), 2);
    assert!(members.iter().all(|member| member.get("/a").0 == new));
    let last = bus.nodes[0].execute(&["XREVRANGE", "ringway:test:bus", "+", "-", "COUNT", "1"]);
    assert!(!last.starts_with("9999999999999-"), "{last}");
}

#[test]
fn two_of_three_nodes_that_come_back_empty_are_noticed() {
    let Some(mut bus) = Bus::start(3) else { return };
    miss(&mut bus, |bus| {
        for node in &mut bus.nodes[..2] {
            node.lose();
            node.run();
        }
        // The third never had it: what it has is lost with its stream.
        bus.nodes[2].execute(&["DEL", "ringway:test:bus"]);
    });
}

#[test]
fn one_node_of_three_that_comes_back_empty_is_no_doubt() {
    let Some(mut bus) = Bus::start(3) else { return };
    let versions = Versions::start();
    let members = bus.proxies(2, &versions);
    members.iter().for_each(Member::reads_on);
    let doubts: Vec<u64> = members.iter().map(Member::doubts).collect();
    members.iter().for_each(|member| member.warm("/a"));
    bus.nodes[0].lose();
    eventually("the loss of the node", || members.iter().all(|member| !member.works()));
    bus.nodes[0].run();
    eventually("the bus", || members.iter().all(Member::works));
    let log = members[1].proxy.log();
    assert_eq!(members.iter().map(Member::doubts).collect::<Vec<_>>(), doubts, "{log}");
    assert!(members[1].get("/a").1);
    assert!(members[1].proxy.metric("ringway_fleet_gaps_total") >= 1.0);
}

#[test]
fn a_silent_link_is_replaced_and_what_was_stored_before_is_validated() {
    let Some(bus) = Bus::start(1) else { return };
    let versions = Versions::start();
    let members = bus.proxies(2, &versions);
    let far = &members[1];
    far.warm("/a");
    far.warm("/b");
    let new = versions.change("/a");
    // Half-open: what it sends is lost on the way.
    far.links[0].hold_replies(true);
    eventually("the silence", || far.fleet()["bus"]["open_gap"] == true);
    far.proxy.logs("the bus does not work");
    assert!(!members[0].purge(&url("/a")).complete);
    // While the gap is open, what was stored before it is validated before it is served.
    assert_eq!(far.get("/a").0, new);
    assert_eq!(far.get("/b").0, "v0");
    assert!(versions.validations() >= 2);
    assert!(far.get("/b").1, "validated since the gap began");
    far.links[0].hold_replies(false);
    far.links[0].cut(true);
    far.links[0].cut(false);
    eventually("the bus", || far.works());
}

#[test]
fn a_fetch_that_began_before_a_gap_ended_is_joined_by_no_later_request() {
    let Some(bus) = Bus::start(1) else { return };
    let versions = Versions::start();
    // Requests that may join a fetch wait for longer than the test.
    let members = [bus.proxy(&versions), bus.proxy_with(&versions, "lock_timeout: 1m")];
    eventually("all members", || members.iter().all(|member| member.knows(2)));
    let far = &members[1];
    let asks = || versions.origin.asks().iter().filter(|ask| ask.path() == "/slow").count();
    std::thread::scope(|scope| {
        let early = scope.spawn(|| far.get("/slow"));
        eventually("the fetch", || asks() == 1);
        far.cut(true);
        let new = versions.change("/slow");
        assert!(!members[0].purge(&url("/slow")).complete);
        bus.nodes[0].execute(&["DEL", "ringway:test:bus"]);
        let doubts = far.doubts();
        far.cut(false);
        eventually("the doubt", || far.doubts() > doubts);
        let late = scope.spawn(|| far.get("/slow"));
        eventually("a fetch of its own", || asks() == 2);
        versions.barrier.open();
        assert_eq!(early.join().unwrap().0, "v0");
        assert_eq!(late.join().unwrap().0, new);
        assert_eq!(far.get("/slow").0, new);
    });
}

#[test]
fn what_strangers_write_into_the_stream_does_no_harm() {
    let Some(bus) = Bus::start(1) else { return };
    let versions = Versions::start();
    let members = bus.proxies(2, &versions);
    members.iter().for_each(|member| member.warm("/a"));
    let add = |fields: &[&str]| {
        let command: Vec<&str> = ["XADD", "ringway:test:bus", "*"].iter().chain(fields).copied().collect();
        bus.nodes[0].execute(&command);
    };
    add(&["x", "y"]);
    add(&["e", "0", "n", "1", "d", "no event"]);
    eventually("the count", || {
        members
            .iter()
            .all(|it| it.proxy.metric("ringway_fleet_events_total{direction=\"heard\",kind=\"malformed\"}") >= 2.0)
    });
    // It may have been a purge.
    assert!(!members[1].get("/a").1);
    let new = versions.change("/a");
    eventually("a purge that all have heard", || members[0].purge(&url("/a")).complete);
    assert_eq!(members[1].get("/a").0, new);
    bus.nodes[0].execute(&["DEL", "ringway:test:bus"]);
    bus.nodes[0].execute(&["SET", "ringway:test:bus", "no stream"]);
    members[0].proxy.logs("cannot be used");
    bus.nodes[0].execute(&["DEL", "ringway:test:bus"]);
    eventually("the bus", || members.iter().all(Member::works));
}
