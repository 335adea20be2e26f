//! The stream of events of the admin listener.

use crate::support::{Authority, Client, Does, EventReader, Origin, Proxy, eventually};
use serde_json::Value;

#[test]
fn an_outage_of_the_bus_of_a_fleet_is_told() {
    let Some(mut server) = crate::engines::Redis::start(&[]) else { return };
    let node = Origin::echo();
    let nodes = format!("nodes: [{{ id: r0, address: \"127.0.0.1:{}\" }}]", server.port);
    let proxy = Proxy::start(&format!("fleet: {{ redis: {{ {nodes} }} }}\n{}", Proxy::pool(&[node.address], "")));
    let mut reader = EventReader::open(&proxy, "/api/events", None);
    let mut working = || {
        let told = reader.find("store");
        assert_eq!((&told["store"], told["error"].is_null()), (&"bus of the fleet".into(), told["working"] == true));
        told["working"] == true
    };
    assert!(working());
    server.kill();
    assert!(!working());
    server.run();
    assert!(working());
}

#[test]
fn what_operators_do_is_told_in_order() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    let mut reader = EventReader::open(&proxy, "/api/events", None);
    proxy.admin_post("/api/pools/app/nodes/n0/drain", "");
    let drained = reader.find("node_state");
    assert_eq!((&drained["pool"], &drained["node"], &drained["state"]), (&"app".into(), &"n0".into(), &"drain".into()));
    assert!(drained["time"].as_str().unwrap().ends_with('Z'), "{drained}");
    proxy.purge(r#"{"tag": "news", "soft": true}"#);
    let purged = reader.find("purge");
    assert_eq!((&purged["by"], &purged["value"], &purged["soft"]), (&"tag".into(), &"news".into(), &true.into()));
    assert_eq!(purged["sequence"].as_u64(), drained["sequence"].as_u64().map(|sequence| sequence + 1));
    proxy.reconfigure(&Proxy::pool(&[node.address], ""));
    assert_eq!(reader.find("reload")["success"], true);
    std::fs::write(proxy.folder().join("ringway.yaml"), "\n\nroutes: 7\n").unwrap();
    let refused = reader.find("reload");
    assert_eq!((&refused["success"], &refused["line"], &refused["column"]), (&false.into(), &3.into(), &1.into()));
    assert!(refused["file"].as_str().unwrap().ends_with("ringway.yaml"), "{refused}");
    assert!(refused["error"].as_str().unwrap().contains("ringway.yaml:3:1: "), "{refused}");
}

#[test]
fn health_and_ejection_of_nodes_are_told() {
    let mut nodes = Origin::several(2);
    let settings = "    outlier_ejection: { consecutive_failures: 2, base_time: 200ms }\n    health_check: { interval: 50ms, unhealthy_after: 2, healthy_after: 1 }\n";
    let proxy = Proxy::start(&Proxy::pool(&Origin::addresses(&nodes), settings));
    let mut reader = EventReader::open(&proxy, "/api/events", None);
    nodes[0].does(Does::Answer(503));
    for path in proxy.paths_of("n0", 2) {
        proxy.get(&path);
    }
    let out = reader.find("node_ejection");
    assert_eq!((&out["node"], &out["ejected"], &out["seconds"]), (&"n0".into(), &true.into(), &0.2.into()));
    nodes[0].does(Does::Answer(200));
    let path = proxy.paths_of("n0", 1).remove(0);
    eventually("a request has tried the node", || {
        proxy.get(&path);
        proxy.node("n0")["ejected_for_seconds"].is_null()
    });
    assert_eq!(reader.find("node_ejection")["ejected"], false);
    nodes[1].kill();
    let bad = reader.find("node_health");
    assert_eq!((&bad["node"], &bad["healthy"]), (&"n1".into(), &false.into()));
    assert!(bad["error"].is_string(), "{bad}");
    nodes[1].revive();
    assert_eq!(reader.find("node_health")["healthy"], true);
}

#[test]
fn certificates_are_told_when_they_come_into_force() {
    let (authority, node) = (Authority::new(), Origin::echo());
    let pair = authority.issue("edge", &["edge.example"]);
    let proxy = Proxy::start_both(&pair, &Proxy::pool(&[node.address], ""));
    let mut reader = EventReader::open(&proxy, "/api/events", None);
    let first = reader.find("certificate");
    assert_eq!(first["name"], "edge.example");
    authority.issue_later("edge", &["edge.example"]);
    let second = reader.find("certificate");
    assert_ne!(second["expires"], first["expires"]);
}

#[test]
fn a_reader_goes_on_after_the_last_event_that_it_has_seen() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    for tag in ["a", "b", "c"] {
        proxy.purge(&format!(r#"{{"tag": "{tag}"}}"#));
    }
    let mut reader = EventReader::open(&proxy, "/api/events", None);
    let ids: Vec<(Value, String)> =
        (0..3).map(|_| (reader.find("purge")["value"].clone(), reader.id.clone().unwrap())).collect();
    assert_eq!((&ids[0].0, &ids[2].0), (&"a".into(), &"c".into()));
    let mut again = EventReader::open(&proxy, "/api/events", Some(&ids[1].1));
    assert_eq!(again.next().unwrap()["value"], "c");
    // An id of another process: everything that is kept.
    let mut other = EventReader::open(&proxy, "/api/events", Some("1-2"));
    assert_eq!(other.find("purge")["value"], "a");
}

#[test]
fn readers_are_bounded_and_other_requests_are_answered() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    let mut readers: Vec<EventReader> = (0..32).map(|_| EventReader::open(&proxy, "/api/events", None)).collect();
    let refused = proxy.admin_get("/api/events");
    assert_eq!((refused.status, refused.problem().as_str()), (503, "too-many-readers"));
    assert!(refused.field("retry-after").is_some());
    assert_eq!(proxy.admin_get("/api/status").status, 200);
    assert_eq!(proxy.admin_post("/api/events", "").problem(), "method-not-allowed");
    readers.pop();
    eventually("there is room for a reader", || {
        let mut client = Client::connect(proxy.admin);
        client.send(format!("GET /api/events HTTP/1.1\r\nhost: {}\r\n\r\n", proxy.admin));
        client.head().starts_with("HTTP/1.1 200 ")
    });
}

#[test]
fn the_end_of_the_process_is_told_and_ends_the_stream() {
    let node = Origin::echo();
    let mut proxy = Proxy::before(&[node.address]);
    let mut reader = EventReader::open(&proxy, "/api/events", None);
    proxy.signal("TERM");
    assert!(reader.find("drain")["timeout_seconds"].as_f64() > Some(0.0));
    while reader.next().is_some() {}
    eventually("the process has ended", || proxy.has_ended());
}
