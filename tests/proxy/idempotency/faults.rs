//! A store that fails: a clear error, and never a second run.

use super::*;
use crate::support::eventually;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

/// Makes every write to a file fail, as on a disk that is full; or no longer.
fn disk_full(proxy: &Proxy, full: bool) {
    let most = getrlimit(Resource::Fsize).maximum;
    let limit = Rlimit { current: if full { Some(1) } else { most }, maximum: most };
    prlimit(Pid::from_raw(proxy.pid().cast_signed()), Resource::Fsize, limit).unwrap();
}

fn store_of(proxy: &Proxy) -> std::path::PathBuf {
    proxy.folder().join("data/idempotency.db")
}

#[test]
fn on_a_full_disk_nothing_is_forwarded_and_what_is_known_is_replayed() {
    let origin = charging();
    let proxy = payments(&[origin.address], "");
    let first = proxy.ask(charge("/", "old", ""));
    disk_full(&proxy, true);
    for _ in 0..3 {
        let answer = proxy.ask(charge("/", "new", ""));
        assert_eq!((answer.status, answer.problem().as_str()), (503, "store-unavailable"));
        assert!(answer.field("retry-after").is_some());
    }
    assert_eq!(seen(&proxy.ask(charge("/", "old", ""))), seen(&first));
    assert_eq!((origin.asked(), proxy.idempotency("store_failure")), (1, 3.0));
    proxy.logs("the idempotency store is out of order");
    disk_full(&proxy, false);
    assert_eq!(proxy.ask(charge("/", "new", "")).text(), "charge 1");
    assert!(is_replay(&proxy.ask(charge("/", "new", ""))));
    proxy.logs("the idempotency store works again");
    let mut events = Client::connect(proxy.admin);
    events.send(format!("GET /api/events HTTP/1.1\r\nhost: {}\r\n\r\n", proxy.admin));
    let (mut seen, mut lines) = (Vec::new(), BufReader::new(events.stream.try_clone().unwrap()).lines());
    while seen.len() < 3 {
        let line = lines.next().unwrap().unwrap();
        let event = line.strip_prefix("data: ").map(|data| serde_json::from_str::<serde_json::Value>(data).unwrap());
        seen.extend(event.filter(|event| event["kind"] == "store").map(|event| event["working"] == true));
    }
    assert_eq!(seen, [true, false, true], "opened, failed, works again");
}

#[test]
fn with_forward_requests_go_on_without_protection_and_are_counted() {
    let origin = charging();
    let proxy = payments(&[origin.address], "on_store_failure: forward");
    disk_full(&proxy, true);
    assert_eq!(proxy.ask(charge("/", "k", "body")).text(), "charge 0");
    assert_eq!(proxy.ask(charge("/", "k", "body")).text(), "charge 1");
    assert_eq!(origin.last().field("idempotency-key"), Some("k"));
    assert_eq!((proxy.idempotency("store_failure"), proxy.idempotency("first")), (2.0, 0.0));
}

#[test]
fn with_forward_a_request_without_an_answer_is_not_called_a_failure() {
    let origin = Origin::start(|_, peer| peer.hang_up());
    let proxy = payments(&[origin.address], "on_store_failure: forward");
    disk_full(&proxy, true);
    let answer = proxy.ask(charge("/", "k", "body"));
    assert_eq!((answer.status, answer.problem().as_str()), (409, "outcome-unknown"), "it may have run");
}

#[test]
fn a_result_that_cannot_be_stored_is_passed_on_and_stays_unknown() {
    let (origin, began, gate) = held(|peer| peer.reply(200, "", "true"));
    let proxy = payments(&[origin.address], "lease: 300ms");
    let mut client = proxy.connect();
    client.send(charge("/", "k", ""));
    began.wait();
    disk_full(&proxy, true);
    gate.open();
    let answer = client.answer();
    assert_eq!((answer.status, answer.text().as_str()), (200, "true"));
    assert_eq!(proxy.idempotency("store_failure"), 1.0);
    assert_eq!(proxy.ask(charge("/", "k", "")).problem(), "outcome-unknown", "known before the store knows");
    disk_full(&proxy, false);
    eventually("the store's hearing of it", || proxy.records("k")[0]["state"] == "unknown");
    assert_eq!(proxy.ask(charge("/", "k", "")).problem(), "outcome-unknown");
    proxy.logs("the outcome of a request is unknown");
    assert_eq!(origin.asked(), 1);
}

#[test]
fn a_result_is_stored_when_the_disk_recovers_in_time() {
    let (origin, began, gate) = held(|peer| peer.reply(200, "", "true"));
    let proxy = payments(&[origin.address], "lease: 20s");
    let mut client = proxy.connect();
    client.send(charge("/", "k", ""));
    began.wait();
    disk_full(&proxy, true);
    gate.open();
    eventually("a first try", || proxy.log().contains("out of order"));
    disk_full(&proxy, false);
    let answer = client.answer();
    assert_eq!(seen(&proxy.ask(charge("/", "k", ""))), seen(&answer));
}

#[test]
fn a_locked_file_is_waited_for_and_then_refused() {
    let origin = charging();
    let proxy = payments(&[origin.address], "");
    let first = proxy.ask(charge("/", "old", ""));
    let other = rusqlite::Connection::open(store_of(&proxy)).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let answer = proxy.ask(charge("/", "new", ""));
    assert_eq!((answer.status, answer.problem().as_str()), (503, "store-unavailable"));
    assert_eq!(seen(&proxy.ask(charge("/", "old", ""))), seen(&first), "what is known is replayed");
    other.execute_batch("COMMIT").unwrap();
    eventually("the store's return", || proxy.ask(charge("/", "new", "")).status == 201);
    assert_eq!(origin.asked(), 2);
}

#[test]
fn a_file_that_is_damaged_or_gone_never_runs_a_request_again() {
    for (what, damage) in [
        ("overwritten", (|path: &Path| std::fs::write(path, vec![0xa5; 64 << 10]).unwrap()) as fn(&Path)),
        ("emptied", |path| std::fs::write(path, "").unwrap()),
        ("removed", |path| std::fs::remove_file(path).unwrap()),
    ] {
        let origin = charging();
        let proxy = payments(&[origin.address], "");
        assert_eq!(proxy.ask(charge("/", "k", "")).status, 201);
        damage(&store_of(&proxy));
        for _ in 0..3 {
            let answer = proxy.ask(charge("/", "k", ""));
            assert!(is_replay(&answer) || answer.status == 503, "{what}: {answer:?}");
        }
        assert_eq!(origin.asked(), 1, "{what}");
    }
}

/// What a proxy says that does not start.
fn refusal(store: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ringway.yaml");
    let text = configuration(&["127.0.0.1:9".parse().unwrap()], "", "timeouts: { idle: 1s }");
    let head = "listeners: [{ name: http, address: \"127.0.0.1:0\" }]\nadmin: { address: \"127.0.0.1:0\" }\n";
    std::fs::write(&file, format!("{head}idempotency_store: {{ path: \"{store}\" }}\n{text}")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringway"));
    let output = command.args(["run", "--config"]).arg(&file).stdin(Stdio::null()).output().unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_store_that_cannot_be_opened_is_a_clear_error_at_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("text"), "this is no database, whatever its name may be ".repeat(100)).unwrap();
    let other = rusqlite::Connection::open(path("other")).unwrap();
    other.execute_batch("CREATE TABLE t (a)").unwrap();
    for (store, expected) in [
        (path("text"), "not a database"),
        (path("other"), "not one of Ringway's"),
        (folder.path().display().to_string(), "unable to open"),
        ("/proc/ringway/store.db".to_owned(), "No such file"),
    ] {
        let said = refusal(&store);
        assert!(said.contains(&format!("cannot open the idempotency store `{store}`")), "{said}");
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn a_file_that_may_not_be_written_is_a_clear_error_at_start() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("s.db");
    let text = configuration(&["127.0.0.1:9".parse().unwrap()], "", "timeouts: { idle: 1s }");
    drop(Proxy::start(&format!("idempotency_store: {{ path: {} }}\n{text}", store.display())));
    let change = |flag: &str| Command::new("chattr").arg(flag).arg(&store).stderr(Stdio::null()).status();
    // Who is root may write what is marked read-only, but not what is immutable.
    if !change("+i").is_ok_and(|status| status.success()) {
        eprintln!("skipped: `chattr +i` (Debian's e2fsprogs) does not work here");
        return;
    }
    let said = refusal(&store.display().to_string());
    change("-i").unwrap();
    assert!(said.contains("cannot open the idempotency store"), "{said}");
}

#[test]
fn a_reload_that_cannot_open_the_store_changes_nothing() {
    let origin = charging();
    let proxy = Proxy::start(&Proxy::pool(&[origin.address], ""));
    std::fs::write(proxy.folder().join("data"), "in the way").unwrap();
    let file = proxy.folder().join("ringway.yaml");
    let with = std::fs::read_to_string(&file).unwrap().replace("hash_on: [uri] }", "hash_on: [uri], idempotency: {} }");
    std::fs::write(&file, with).unwrap();
    let answer = proxy.admin_post("/api/reload", "");
    assert!(answer.text().contains("cannot open the idempotency store"), "{answer:?}");
    assert_eq!(proxy.get("/").status, 201);
}
