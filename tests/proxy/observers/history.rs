//! `GET /api/history`.

use crate::support::{Does, Origin, Proxy, eventually};
use std::time::Duration;

#[test]
fn rates_errors_and_latency_are_kept_by_route_and_node() {
    let nodes = Origin::several(2);
    let settings = "    outlier_ejection: { consecutive_failures: 1000 }\n    retries: { attempts: 0 }\n";
    let proxy = Proxy::start(&Proxy::pool(&Origin::addresses(&nodes), settings));
    nodes[0].does(Does::Late(Duration::from_millis(60)));
    nodes[1].does(Does::Answer(503));
    for path in proxy.paths_of("n0", 2).iter().chain(&proxy.paths_of("n1", 3)) {
        proxy.get(path);
    }
    let sum = |list: &serde_json::Value| list.as_array().unwrap().iter().filter_map(|it| it.as_f64()).sum::<f64>();
    let mut all = serde_json::Value::Null;
    eventually("all requests are in a sample", || {
        all = proxy.admin_get("/api/history").json();
        let route = all["routes"].as_array().unwrap().iter().find(|route| route["route"] == "site");
        route.is_some_and(|route| sum(&route["requests"]) == 5.0)
    });
    let route = all["routes"].as_array().unwrap().iter().find(|route| route["route"] == "site").unwrap();
    assert_eq!(sum(&route["errors"]), 3.0, "{all}");
    let node = |id: &str| all["nodes"].as_array().unwrap().iter().find(|node| node["node"] == id).unwrap();
    assert_eq!((sum(&node("n0")["requests"]), sum(&node("n1")["requests"])), (2.0, 3.0));
    let slowest = node("n0")["p99"].as_array().unwrap().iter().filter_map(|it| it.as_f64()).fold(0.0, f64::max);
    assert!((50.0..1000.0).contains(&slowest), "{all}");
    let newest = all["newest"].as_u64().unwrap();
    let later = proxy.admin_get(&format!("/api/history?after={newest}")).json();
    assert!(later["routes"][0]["requests"].as_array().unwrap().len() <= 1, "{later}");
    assert_eq!(proxy.admin_get("/api/history?after=x").problem(), "bad-filter");
}
