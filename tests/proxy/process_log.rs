//! The process log as JSON: every line is an event, whole.

use crate::support::eventually;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

#[test]
fn every_event_is_a_json_object_on_a_line_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ringway.yaml");
    let content = "
listeners: [{ name: http, address: \"127.0.0.1:0\" }]
admin: { address: \"127.0.0.1:0\" }
process_log: { format: json }
routes:
  - { name: all, respond: {} }
  - { name: late, respond: {} }
";
    std::fs::write(&file, content).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_ringway"))
        .args(["run", "--config"])
        .arg(&file)
        .env("RUST_LOG", "info")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines: Arc<Mutex<Vec<String>>> = Arc::default();
    let (stderr, written) = (child.stderr.take().unwrap(), Arc::clone(&lines));
    let reader = std::thread::spawn(move || {
        BufReader::new(stderr).lines().map_while(Result::ok).for_each(|line| written.lock().unwrap().push(line));
    });
    let has = |text: &str| lines.lock().unwrap().iter().any(|line| line.contains(text));
    eventually("the start", || has("serving"));
    std::fs::write(&file, "listeners: 7\nroutes: []\nlimits: { headrs: 1 }\n").unwrap();
    eventually("the refusal", || has("not reloaded"));
    let _ = Command::new("kill").arg(child.id().to_string()).status();
    let _ = child.wait();
    reader.join().unwrap();
    let events: Vec<Value> = lines.lock().unwrap().iter().map(|line| serde_json::from_str(line).expect(line)).collect();
    let find = |text: &str| {
        let found = events.iter().find(|event| event["message"].as_str().is_some_and(|message| message.contains(text)));
        found.unwrap_or_else(|| panic!("no event says {text}: {events:?}"))
    };
    let serving = find("serving");
    assert_eq!((serving["level"].as_str(), serving["workers"].is_u64()), (Some("info"), true), "{serving}");
    assert!(serving["time"].as_str().unwrap().ends_with('Z') && serving["admin"].is_string(), "{serving}");
    assert_eq!(find("never reached")["level"], "warn");
    // The whole report stands in one event.
    let refused = find("not reloaded");
    assert!(refused["level"] == "error" && refused["message"].as_str().unwrap().contains("unknown key `headrs`"));
}
