//! `POST /api/plan` and `GET /api/check`: what a change would move, before it is in force.

use crate::support::{Origin, Proxy};
use serde_json::{Value, json};
use std::process::Command;

/// A file for `ringway ring`, whose pool `app` has these nodes.
fn text(nodes: &str) -> String {
    format!(
        "listeners: [{{ name: http, address: \"127.0.0.1:0\" }}]\nadmin: {{ address: \"127.0.0.1:0\" }}\naccess_log: {{ format: \"off\" }}\npools:\n  app:\n    nodes: [{nodes}]\nroutes:\n  - {{ name: site, path_prefix: /, pool: app, hash_on: [uri], cache: {{}} }}\n"
    )
}

fn plan(proxy: &Proxy, order: &Value) -> Value {
    let answer = proxy.admin_post("/api/plan", &order.to_string());
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

/// The plan of a change, of a whole file, what `ringway ring` says, and what a reload does: all the same for every key.
#[test]
fn a_plan_is_what_ring_says_and_a_reload_does() {
    const BEFORE: &str =
        "{ id: a, address: 127.0.0.1:9 }, { id: b, address: 127.0.0.2:9 }, { id: c, address: 127.0.0.3:9 }";
    const AFTER: &str =
        "{ id: a, address: 127.0.0.1:9 }, { id: c, address: 127.0.0.3:9, weight: 3 }, { id: d, address: 127.0.0.4:9 }";
    let proxy = Proxy::start_whole(&text(BEFORE));
    let keys: Vec<String> = (0..10_000).map(|number| format!("user-{number}")).collect();
    let of_change =
        plan(&proxy, &json!({ "pool": "app", "without": ["b"], "with": ["c=3", "d"], "key": "user-7", "keys": keys }));
    let of_file = plan(&proxy, &json!({ "file": text(AFTER), "key": "user-7", "keys": keys }));
    assert_eq!(of_change["pools"], of_file["pools"]);
    assert_eq!(of_file["valid"], true);
    assert_eq!(of_file["changes"], json!(["pools: 1 changed (`app`)"]), "{}", of_file["changes"]);

    let list = proxy.folder().join("keys");
    std::fs::write(&list, keys.join("\n")).unwrap();
    let ran = Command::new(env!("CARGO_BIN_EXE_ringway"))
        .args(["ring", "--json", "--without", "b", "--with", "c=3", "--with", "d", "--key", "user-7"])
        .arg("--config")
        .arg(proxy.folder().join("ringway.yaml"))
        .arg("--keys")
        .arg(list)
        .output()
        .unwrap();
    let said: Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!(said, of_change["pools"][0]);

    let changed = &of_change["pools"][0]["change"];
    let moved = keys.iter().filter(|key| said["owners"][key.as_str()] != changed["owners"][key.as_str()]).count();
    let exact = changed["moved"].as_f64().unwrap();
    assert!((moved as f64 / 10_000.0 - exact).abs() < 0.02, "{moved} of 10,000 keys moved, {exact} of all");
    std::fs::write(proxy.folder().join("ringway.yaml"), text(AFTER)).unwrap();
    assert_eq!(proxy.admin_post("/api/reload", "").status, 200);
    let now = plan(&proxy, &json!({ "pool": "app", "key": "user-7", "keys": keys }));
    assert_eq!(now["pools"][0]["owners"], changed["owners"]);
    assert_eq!((&now["pools"][0]["key"], &now["pools"][0]["nodes"]), (&changed["key"], &changed["nodes"]));
    assert_eq!(now["pools"][0]["change"], Value::Null);
}

#[test]
fn a_plan_tells_the_errors_of_its_file_and_changes_nothing() {
    let node = Origin::echo();
    let proxy = Proxy::start_whole(&text(&format!("{{ id: a, address: \"{}\" }}", node.address)));
    let bad = plan(&proxy, &json!({ "file": "listeners: []\npools:\n  app: { nodez: [] }\nroutes: []\n" }));
    assert_eq!(bad["valid"], false);
    let found = bad["findings"].as_array().unwrap();
    assert!(found.iter().any(|it| it["line"] == 3 && it["severity"] == "error"), "{bad}");
    // The routes' stored responses, a pool that goes and one that comes.
    let other = text("{ id: a, address: 127.0.0.1:9 }")
        .replace("app", "other")
        .replace("cache: {}", "cache: { key: { ignore_query: [a] } }");
    let seen = plan(&proxy, &json!({ "file": other }));
    assert_eq!((&seen["pools_added"], &seen["pools_removed"]), (&json!(["other"]), &json!(["app"])), "{seen}");
    assert_eq!(seen["cache_lost"], json!(["site"]));
    let seed =
        text("{ id: a, address: 127.0.0.1:9 }").replace("nodes:", "ring: { seed: another seed of ours }\n    nodes:");
    let seen = plan(&proxy, &json!({ "file": seed }));
    assert!(seen["unknown"][0].as_str().unwrap().contains("every key gets a new place"), "{seen}");
    assert_eq!(proxy.get("/").status, 200);
    for bad in [
        "[]",
        "{}",
        r#"{"pool": "none"}"#,
        r#"{"pool": "app", "without": ["x"]}"#,
        r#"{"pool": "app", "with": ["a=9999"]}"#,
        r#"{"pool": "app", "file": ""}"#,
        r#"{"pools": "app"}"#,
        r#"{"pool": "app", "with": ["=1"]}"#,
        r#"{"pool": "app", "with": ["two words=1"]}"#,
    ] {
        let refused = proxy.admin_post("/api/plan", bad);
        assert_eq!((refused.status, refused.problem().as_str()), (400, "bad-plan"), "{bad}");
    }
    // A ring that no configuration may have, and more changes than any plan needs.
    let heavy: Vec<String> = (0..100).map(|number| format!("n{number}=1000")).collect();
    let many: Vec<String> = (0..5000).map(|number| format!("n{number}=0")).collect();
    for (with, words) in [(heavy, "more than 16777216 points"), (many, "at most 4096 nodes")] {
        let refused = proxy.admin_post("/api/plan", &json!({ "pool": "app", "with": with }).to_string());
        assert!(refused.status == 400 && refused.text().contains(words), "{refused:?}");
    }
    assert_eq!(proxy.admin_get("/api/plan").problem(), "method-not-allowed");
}

/// A file of a plan comes from outside: it shows neither the environment nor files.
#[test]
fn a_plan_reads_no_secrets() {
    let file = text("{ id: a, address: 127.0.0.1:9 }");
    let proxy = Proxy::start_as(std::path::Path::new(env!("CARGO_BIN_EXE_ringway")), &file, |command| {
        command.env("HIDDEN", "hidden-value");
    });
    let seen = plan(&proxy, &json!({ "file": text("{ id: \"${HIDDEN}\", address: 127.0.0.1:9 }") }));
    assert!(!seen.to_string().contains("hidden-value"), "{seen}");
    let named = file.replace("routes:", "    ring: { seed_file: /etc/hostname }\nroutes:");
    let seen = plan(&proxy, &json!({ "file": named })).to_string();
    let host = std::fs::read_to_string("/etc/hostname").unwrap_or_default();
    assert!(host.trim().len() < 4 || !seen.contains(host.trim()), "{seen}");
}

#[test]
fn the_warnings_of_the_file_are_told() {
    let node = Origin::echo();
    let proxy = Proxy::start_whole(&text(&format!("{{ id: a, address: \"{}\" }}", node.address)));
    let checked = proxy.admin_get("/api/check").json();
    assert_eq!((&checked["valid"], &checked["findings"]), (&true.into(), &json!([])), "{checked}");
    std::fs::write(proxy.folder().join("ringway.yaml"), "\n\nroutes: 7\n").unwrap();
    let checked = proxy.admin_get("/api/check").json();
    let found = checked["findings"].as_array().unwrap();
    assert_eq!(checked["valid"], false);
    assert!(found.iter().any(|it| it["line"] == 3 && it["severity"] == "error"), "{checked}");
}
