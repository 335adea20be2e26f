//! What stays when something goes: clients, nodes, configurations, proxies, time.

use super::*;
use crate::support::eventually;

#[test]
fn the_answer_of_a_client_that_left_is_stored() {
    let (origin, began, gate) = held(|peer| peer.reply(200, "", "for nobody"));
    let proxy = payments(&[origin.address], "");
    let mut client = proxy.connect();
    client.send(charge("/", "k", "body"));
    began.wait();
    drop(client);
    eventually("the client's leaving", || proxy.metric("ringway_connections{listener=\"http\"}") == 0.0);
    gate.open();
    eventually("the end of the run", || proxy.records("k")[0]["state"] == "done");
    let again = proxy.ask(charge("/", "k", "body"));
    assert!(is_replay(&again));
    assert_eq!((again.text().as_str(), origin.asked()), ("for nobody", 1));
}

#[test]
fn a_client_that_leaves_in_its_body_leaves_nothing() {
    let origin = charging();
    let proxy = payments(&[origin.address], "");
    let mut client = proxy.connect();
    client.send(charge("/", "k", "the whole body").strip_suffix("body").unwrap());
    eventually("the request", || proxy.metric("ringway_requests_in_flight") == 1.0);
    drop(client);
    eventually("its end", || proxy.metric("ringway_requests_in_flight") == 0.0);
    assert!(proxy.records("k").is_empty() && origin.asked() == 0);
    assert_eq!(proxy.ask(charge("/", "k", "the whole body")).status, 201);
}

#[test]
fn a_drain_that_cannot_wait_leaves_unknown() {
    let (origin, began, gate) = held(|_| {});
    let text = configuration(&[origin.address], "", "timeouts: { first_byte: 1m }");
    let mut proxy = Proxy::start(&format!("limits: {{ drain_timeout: 100ms }}\n{text}"));
    let mut client = proxy.connect();
    client.send(charge("/", "k", ""));
    began.wait();
    proxy.signal("TERM");
    eventually("the end", || proxy.has_ended());
    proxy.logs("the outcome of a request is unknown");
    let store = rusqlite::Connection::open(proxy.folder().join("data/idempotency.db")).unwrap();
    let state: i64 = store.query_row("SELECT state FROM records", [], |row| row.get(0)).unwrap();
    assert_eq!(state, 3, "unknown, and not left running");
    gate.open();
}

#[test]
fn a_replay_needs_no_node() {
    let origin = charging();
    let rules = "hash_on: [path], idempotency: {}, affinity_cookie: { mode: strict, secret_file: SECRET } }";
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("affinity.key");
    std::fs::write(&secret, "0123456789abcdef0123456789abcdef").unwrap();
    let text = Proxy::pool(&[origin.address], "").replace("hash_on: [uri] }", rules);
    let proxy = Proxy::start(&text.replace("SECRET", secret.to_str().unwrap()));
    let first = proxy.ask(charge("/", "k", ""));
    let cookie = first.field("set-cookie").unwrap();
    let session = format!("cookie: {}\r\nhost:", cookie.split(';').next().unwrap());
    assert_eq!(proxy.admin_post("/api/pools/app/nodes/n0/down", "").status, 200);
    let again = proxy.ask(charge("/", "k", "").replace("host:", &session));
    assert!(is_replay(&again), "{again:?}");
    let new = proxy.ask(charge("/", "new", "").replace("host:", &session));
    assert_eq!((new.status, new.problem().as_str()), (503, "session-node-down"));
    assert_eq!(proxy.ask(charge("/", "new", "")).problem(), "no-healthy-node");
    assert!(proxy.records("new").is_empty(), "nothing was sent");
    assert_eq!(proxy.admin_post("/api/pools/app/nodes/n0/up", "").status, 200);
    assert_eq!(proxy.ask(charge("/", "new", "")).status, 201);
}

#[test]
fn a_drain_waits_for_the_run_of_a_client_that_left() {
    let (origin, began, gate) = held(|peer| peer.reply(200, "", "in the end"));
    let mut proxy = payments(&[origin.address], "");
    let mut client = proxy.connect();
    client.send(charge("/", "k", ""));
    began.wait();
    drop(client);
    eventually("the client's leaving", || proxy.metric("ringway_connections{listener=\"http\"}") == 0.0);
    proxy.signal("TERM");
    eventually("the drain", || proxy.log().contains("draining"));
    gate.open();
    eventually("the end", || proxy.has_ended());
    let store = rusqlite::Connection::open(proxy.folder().join("data/idempotency.db")).unwrap();
    let state: i64 = store.query_row("SELECT state FROM records", [], |row| row.get(0)).unwrap();
    assert_eq!(state, 1, "done");
}

#[test]
fn records_expire_after_their_time() {
    let origin = charging();
    let proxy = payments(&[origin.address], "ttl: 300ms");
    assert_eq!(proxy.ask(charge("/", "k", "")).text(), "charge 0");
    eventually("its expiry", || proxy.ask(charge("/", "k", "")).text() == "charge 1");
    eventually("its removal", || proxy.metric("ringway_idempotency_records") == 0.0);
}

#[test]
fn a_reload_keeps_what_runs_and_what_is_stored_and_a_new_name_changes_nothing() {
    let (gate, began) = (Barrier::default(), Barrier::default());
    let (open, begin) = (gate.clone(), began.clone());
    let origin = Origin::start(move |ask, peer| {
        if ask.path() == "/slow" {
            begin.open();
            open.wait();
        }
        peer.reply(200, "", &format!("#{}", ask.number));
    });
    let proxy = payments(&[origin.address], "");
    let stored = proxy.ask(charge("/fast", "k", ""));
    let mut running = proxy.connect();
    running.send(charge("/slow", "k", ""));
    began.wait();
    let file = proxy.folder().join("ringway.yaml");
    let renamed = std::fs::read_to_string(&file).unwrap().replace("name: site", "name: checkout");
    std::fs::write(&file, renamed).unwrap();
    assert_eq!(proxy.admin_post("/api/reload", "").status, 200);
    assert_eq!(seen(&proxy.ask(charge("/fast", "k", ""))), seen(&stored));
    assert_eq!(proxy.ask(charge("/slow", "k", "")).problem(), "request-in-progress");
    gate.open();
    assert_eq!(running.answer().status, 200);
    assert!(is_replay(&proxy.ask(charge("/slow", "k", ""))));
    assert_eq!(origin.asked(), 2);
}

#[test]
fn a_restart_keeps_what_is_stored_and_kill_leaves_unknown() {
    let gate = Barrier::default();
    let open = gate.clone();
    let origin = Origin::start(move |ask, peer| {
        if ask.path() == "/slow" {
            open.wait();
        }
        peer.reply(200, "", &format!("#{}", ask.number));
    });
    let folder = tempfile::tempdir().unwrap();
    let store = format!("idempotency_store: {{ path: {}/s.db }}\n", folder.path().display());
    let text = format!("{store}{}", configuration(&[origin.address], "", "timeouts: { first_byte: 1m }"));
    let proxy = Proxy::start(&text);
    let stored = proxy.ask(charge("/fast", "k", ""));
    let mut running = proxy.connect();
    running.send(charge("/slow", "k", ""));
    origin.wait_for(2);
    // SIGKILL.
    drop(proxy);
    let proxy = Proxy::start(&text);
    assert_eq!(seen(&proxy.ask(charge("/fast", "k", ""))), seen(&stored));
    assert_eq!(proxy.ask(charge("/slow", "k", "")).problem(), "outcome-unknown");
    proxy.logs("the proxy that held the claim is gone");
    gate.open();
    assert_eq!(origin.asked(), 2);
}
