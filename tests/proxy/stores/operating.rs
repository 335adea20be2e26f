//! What operators do with a shared store: check it, make its tables, move its records.

use super::*;
use crate::engines::{Postgres, as_engine, give_to_engine};
use crate::idempotency::is_replay;
use crate::support::{Authority, eventually};
use std::path::Path;
use std::process::{Command, Output};

fn ringway(arguments: &[&str], file: Option<&Path>) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringway"));
    let Output { status, stdout, stderr } = command.args(arguments).args(file).output().unwrap();
    (status.success(), String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr))
}

fn file_of(folder: &Path, text: &str) -> std::path::PathBuf {
    let file = folder.join("ringway.yaml");
    std::fs::write(&file, format!("listeners: [{{ name: http, address: \"127.0.0.1:0\" }}]\n{text}")).unwrap();
    file
}

#[test]
fn check_connect_prints_the_promise_and_refuses_a_store_that_is_not_to_be_used() {
    let Some(server) = Postgres::shared() else { return };
    let place = Place::new(&server.database("checked"));
    let folder = tempfile::tempdir().unwrap();
    let text = place.text(([127, 0, 0, 1], 9).into(), "");
    let file = file_of(folder.path(), &text);
    let (is_good, told) = ringway(&["check", "--connect", "--config"], Some(&file));
    assert!(is_good, "{told}");
    for part in ["replication lag", "`fsync` is off", "no tables of Ringway yet"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    std::fs::write(place.identity_file(), "00000000-0000-4000-8000-000000000000").unwrap();
    let (is_good, told) = ringway(&["check", "--connect", "--config"], Some(&file));
    assert!(!is_good && told.contains("adopt"), "{told}");
    place.moves_to("postgres://ringway@127.0.0.1:9/nothing?sslmode=disable");
    let (is_good, told) = ringway(&["check", "--connect", "--config"], Some(&file));
    assert!(!is_good && told.contains("refused"), "{told}");
    let (is_good, told) = ringway(&["check", "--config"], Some(&file));
    assert!(is_good, "without --connect nothing is asked: {told}");
}

#[test]
fn check_connect_says_where_the_file_that_names_the_store_cannot_be_written() {
    let Some(server) = Postgres::shared() else { return };
    let place = Place::new(&server.database("unwritable"));
    let folder = tempfile::tempdir().unwrap();
    let text = place.text(([127, 0, 0, 1], 9).into(), "");
    let (known, below) = (place.identity_file(), place.url_file().join("store.id"));
    let text = text.replace(&known.display().to_string(), &below.display().to_string());
    let (is_good, told) = ringway(&["check", "--connect", "--config"], Some(&file_of(folder.path(), &text)));
    assert!(!is_good && told.contains(&format!("the file `{}`", below.display())), "{told}");
}

#[test]
fn check_connect_says_where_the_user_may_not_make_the_file_that_names_the_store() {
    use std::os::unix::fs::PermissionsExt;
    let Some(server) = Postgres::shared() else { return };
    let place = Place::new(&server.database("forbidden"));
    let (folder, closed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::set_permissions(closed.path(), std::fs::Permissions::from_mode(0o555)).unwrap();
    let text = place.text(([127, 0, 0, 1], 9).into(), "");
    let identity = closed.path().join("store.id");
    let text = text.replace(&place.identity_file().display().to_string(), &identity.display().to_string());
    let file = file_of(folder.path(), &text);
    for folder in [folder.path(), place.url_file().parent().unwrap()] {
        give_to_engine(folder);
    }
    // A user who is not root: of root no folder is closed.
    let check = || {
        let mut command = as_engine(Path::new(env!("CARGO_BIN_EXE_ringway")));
        let Output { status, stdout, stderr } =
            command.args(["check", "--connect", "--config"]).arg(&file).output().unwrap();
        (status.success(), String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr))
    };
    let (is_good, told) = check();
    assert!(!is_good && told.contains(&format!("the file `{}`", identity.display())), "{told}");
    assert!(told.contains("ermission denied"), "{told}");
    std::fs::set_permissions(closed.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let (is_good, told) = check();
    assert!(is_good, "{told}");
    assert!(!identity.exists(), "a check makes nothing");
}

#[test]
fn status_prints_the_store_and_its_promise() {
    let Some(server) = Postgres::shared() else { return };
    let place = Place::new(&server.database("status"));
    let node = Counting::start();
    let proxy = place.proxy(node.address(), "");
    eventually("a connection", || is_up(&proxy));
    let admin = format!("http://{}", proxy.admin);
    let (is_good, told) = ringway(&["status", "--admin", &admin], None);
    let place = format!("store   postgres 127.0.0.1:{}/status (works", server.port);
    assert!(is_good && told.contains(&place) && told.contains("replication lag"), "{told}");
    let local = Proxy::start(&crate::idempotency::configuration(&[node.address()], "", "timeouts: { connect: 1s }"));
    let (_, told) = ringway(&["status", "--admin", &format!("http://{}", local.admin)], None);
    assert!(told.contains("At most once on this machine"), "{told}");
}

#[test]
fn a_result_that_ended_here_is_replayed_by_a_look_up_and_a_record_that_was_deleted_is_not() {
    let Some(server) = Postgres::shared() else { return };
    let place = Place::new(&server.database("looked-up"));
    let node = Counting::start();
    let proxy = place.proxy(node.address(), "");
    eventually("a first request", || proxy.ask(pay("k")).status == 201);
    let calls =
        |op: &str| proxy.metric(&format!("ringway_store_duration_seconds_count{{op=\"{op}\",store=\"idempotency\"}}"));
    let (claims, looks) = (calls("claim"), calls("look_up"));
    for _ in 0..3 {
        assert!(is_replay(&proxy.ask(pay("k"))));
    }
    assert_eq!((calls("claim"), calls("look_up")), (claims, looks + 3.0));
    let other = proxy.ask(crate::idempotency::charge("/pay", "k", "other"));
    assert_eq!(other.problem(), "idempotency-key-reused");
    // Released by an operator on any proxy, the key is claimed anew.
    server.execute("looked-up", "DELETE FROM ringway_records WHERE key = 'k'");
    let again = proxy.ask(pay("k"));
    assert!(again.status == 201 && !is_replay(&again));
    assert_eq!(node.of("k"), 2);
}

#[test]
fn the_printed_schema_serves_a_role_that_may_make_no_tables() {
    let Some(server) = Postgres::shared() else { return };
    server.database("schema");
    server.execute("schema", "CREATE ROLE plain LOGIN; REVOKE CREATE ON SCHEMA public FROM PUBLIC");
    let place = Place::new(&server.url("schema").replace("ringway@", "plain@"));
    let node = Counting::start();
    let proxy = place.proxy(node.address(), "");
    assert_eq!(proxy.ask(pay("k")).problem(), "store-unavailable");
    proxy.logs("ringway store schema");
    let (_, script) = ringway(&["store", "schema"], None);
    server.execute("schema", &script);
    server.execute("schema", "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO plain");
    eventually("its return", || is_up(&proxy));
    assert_eq!(proxy.ask(pay("k")).status, 201);
}

#[test]
fn records_move_from_a_file_to_a_database_and_back() {
    let Some(server) = Postgres::shared() else { return };
    let place = Place::new(&server.database("moved"));
    let node = Counting::start();
    let text = crate::idempotency::configuration(&[node.address()], "", "timeouts: { connect: 1s }");
    let mut before = Proxy::start(&text);
    for number in 0..30 {
        assert_eq!(before.ask(pay(&format!("k{number}"))).status, 201);
    }
    let file = before.folder().join("data/idempotency.db");
    let (from, to) = (format!("sqlite:{}", file.display()), format!("postgres:{}", place.url_file().display()));
    let (is_good, told) = ringway(&["store", "copy", "--from", &from, "--to", &to], None);
    assert!(!is_good && told.contains("a running Ringway has it open"), "{told}");
    before.signal("TERM");
    eventually("the end", || before.has_ended());
    let (is_good, told) = ringway(&["store", "copy", "--from", &from, "--to", &to], None);
    assert!(is_good && told.contains("30 records read, 30 copied"), "{told}");
    let (is_good, told) = ringway(&["store", "copy", "--from", &from, "--to", &to], None);
    assert!(is_good && told.contains("30 records read, 0 copied, 30 were there already"), "{told}");
    // A rehearsal leaves nothing behind that says less than the last copy.
    server.execute("moved", "UPDATE ringway_records SET expires = now() - interval '1 hour' WHERE key IN ('k1', 'k2')");
    server.execute("moved", "UPDATE ringway_records SET state = 3, status = NULL WHERE key = 'k3'");
    let (is_good, told) = ringway(&["store", "copy", "--from", &from, "--to", &to], None);
    assert!(is_good && told.contains("30 records read, 3 copied, 27 were there already"), "{told}");
    let after = place.proxy(node.address(), "");
    eventually("a connection", || is_up(&after));
    for number in 0..30 {
        assert!(is_replay(&after.ask(pay(&format!("k{number}")))), "{number}");
    }
    drop(after);
    let folder = tempfile::tempdir().unwrap();
    let back = format!("sqlite:{}", folder.path().join("back.db").display());
    let (is_good, told) = ringway(&["store", "copy", "--from", &to, "--to", &back], None);
    assert!(is_good && told.contains("30 records read, 30 copied"), "{told}");
    let text = format!("idempotency_store: {{ path: {} }}\n{text}", folder.path().join("back.db").display());
    let last = Proxy::start(&text);
    assert!((0..30).all(|number| is_replay(&last.ask(pay(&format!("k{number}"))))));
    assert!(node.twice().is_empty());
}

#[test]
fn a_connection_over_tls_is_verified() {
    let authority = Authority::new();
    let pair = authority.issue("server", &["localhost", "127.0.0.1"]);
    let Some(mut server) = Postgres::start() else { return };
    server.kill();
    server.use_tls(&pair.chain, &pair.key);
    server.database("tls");
    let url = server.url("tls").replace("sslmode=disable", "sslmode=require").replace("127.0.0.1", "localhost");
    let place = Place::new(&url);
    let node = Counting::start();
    let rules = crate::idempotency::configuration(&[node.address()], "", "timeouts: { connect: 1s }");
    let ca = format!(", ca_file: {}", authority.file().display());
    let trusting = Proxy::start(&(place.block(&ca) + &rules));
    eventually("a connection", || is_up(&trusting));
    assert_eq!(trusting.ask(pay("k")).status, 201);
    assert_eq!(
        server.execute(
            "tls",
            "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'ringway'"
        ),
        "t"
    );
    let suspicious = Proxy::start(&(place.block("") + &rules));
    assert_eq!(suspicious.ask(pay("k")).problem(), "store-unavailable");
    suspicious.logs("certificate");
}
