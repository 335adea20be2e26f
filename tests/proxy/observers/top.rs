//! `GET /api/top` and `ringway top`.

use crate::support::{Origin, Proxy, eventually};
use std::process::Command;

#[test]
fn the_hottest_are_counted_from_the_first_question_on() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    proxy.get("/before");
    let first = proxy.admin_get("/api/top?by=url").json();
    assert_eq!((&first["rows"], &first["one_of"]), (&serde_json::json!([]), &1.into()));
    let mut client = proxy.connect();
    for number in 0..30 {
        let path = if number % 3 == 0 { "/cold" } else { "/hot?a=b" };
        client.request(format!("GET {path} HTTP/1.1\r\nhost: example.com\r\n\r\n"));
    }
    let asked = |query: &str| proxy.admin_get(&format!("/api/top?{query}")).json();
    eventually("all are counted", || asked("by=url")["total"] == 30);
    let urls = asked("by=url&limit=1");
    assert_eq!(urls["rows"], serde_json::json!([{ "name": "example.com/hot", "value": 20, "excess": 0 }]));
    assert_eq!(asked("by=client")["rows"][0]["name"], "127.0.0.1");
    assert_eq!(asked("by=route&measure=errors")["rows"], serde_json::json!([]));
    assert!(asked("by=route&measure=time")["rows"][0]["value"].as_u64() > Some(0));
    let owners = proxy.admin_get("/api/pools/app/ring?key=/hot?a=b").json();
    assert_eq!(asked("by=key")["rows"][0]["name"], format!("app {}", owners["hash"].as_str().unwrap()));
    let refused = proxy.admin_get("/api/top?by=node");
    assert_eq!((refused.status, refused.problem().as_str()), (400, "bad-filter"));
    let ran = Command::new(env!("CARGO_BIN_EXE_ringway"))
        .args(["top", "--by", "url", "--admin", &format!("http://{}", proxy.admin)])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success() && said.contains("  20   66.7 %  example.com/hot\n"), "{said}");
}
