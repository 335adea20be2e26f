//! Stores that are away, wrong, empty, full or read-only: each has a clear answer, and nothing runs twice.

use super::*;
use crate::engines::{Link, Postgres};
use crate::idempotency::is_replay;
use crate::support::eventually;
use std::process::Command;
use std::time::{Duration, Instant};

/// The URL of a database through a link.
fn through(link: &Link, database: &str) -> String {
    url_of(&[link.port()], database)
}

fn adopt(text: &str) -> std::process::Output {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ringway.yaml");
    std::fs::write(&file, format!("listeners: [{{ name: http, address: \"127.0.0.1:0\" }}]\n{text}")).unwrap();
    Command::new(env!("CARGO_BIN_EXE_ringway")).args(["store", "adopt", "--config"]).arg(&file).output().unwrap()
}

#[test]
fn a_store_that_is_away_at_the_start_refuses_or_forwards_at_once_and_comes_back_by_itself() {
    let Some(server) = Postgres::shared() else { return };
    server.database("away");
    let link = Link::to(server.port);
    link.cut(true);
    let place = Place::new(&through(&link, "away"));
    let node = Counting::start();
    let proxy = place.proxy(node.address(), "");
    let forwarding = place.proxy(node.address(), "on_store_failure: forward");
    for _ in 0..3 {
        let began = Instant::now();
        let refused = proxy.ask(pay("k"));
        assert_eq!((refused.status, refused.problem().as_str()), (503, "store-unavailable"));
        assert!(refused.field("retry-after").is_some());
        assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
    }
    assert!(!is_up(&proxy));
    assert_eq!(node.charged(), 0);
    assert_eq!(forwarding.ask(pay("f")).status, 201);
    assert_eq!(forwarding.ask(pay("f")).status, 201, "at least once, as configured");
    proxy.logs("the idempotency store cannot be used");
    let told = proxy.log().matches("the idempotency store cannot be used").count();
    assert_eq!(told, 1, "said once");
    assert_eq!(proxy.get("/nothing").status, 201, "other requests are served");
    link.cut(false);
    eventually("its return", || is_up(&proxy) && is_up(&forwarding));
    assert_eq!(proxy.ask(pay("k")).status, 201);
    assert!(is_replay(&proxy.ask(pay("k"))));
}

#[test]
fn a_claim_whose_answer_is_lost_is_sent_again_and_runs_once() {
    let Some(server) = Postgres::shared() else { return };
    server.database("lost");
    let link = Link::to(server.port);
    let place = Place::new(&through(&link, "lost"));
    let node = Counting::start();
    let proxy = place.proxy(node.address(), "");
    eventually("a connection", || is_up(&proxy));
    // Broken off in the middle of replies, at every length that a short reply may have.
    for bytes in 0..40 {
        let key = format!("cut-{bytes}");
        link.cut_after(bytes * 5);
        let mut answer = proxy.ask(pay(&key));
        eventually("an answer", || {
            if answer.status == 503 || answer.status == 409 {
                answer = proxy.ask(pay(&key));
            }
            answer.status == 201
        });
        assert_eq!(node.of(&key), 1, "{key}");
    }
    // A reply that never comes: the connection is replaced after a second.
    link.hold_replies(true);
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| proxy.ask(pay("silent")));
        eventually("the claim", || {
            server.execute("lost", "SELECT count(*) FROM ringway_records WHERE key = 'silent'") == "1"
        });
        link.cut(true);
        link.hold_replies(false);
        link.cut(false);
        assert_eq!(asked.join().unwrap().status, 201);
    });
    assert_eq!(node.of("silent"), 1);
}

#[test]
fn results_are_replayed_while_the_store_can_only_be_read() {
    let Some(server) = Postgres::shared() else { return };
    server.database("readonly");
    let place = Place::new(&server.url("readonly"));
    let node = Counting::start();
    let proxy = place.proxy(node.address(), "");
    eventually("a connection", || is_up(&proxy));
    assert_eq!(proxy.ask(pay("k")).status, 201);
    server.execute("postgres", "ALTER DATABASE readonly SET default_transaction_read_only = on");
    server.execute(
        "postgres",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'readonly' AND pid <> pg_backend_pid()",
    );
    eventually("the loss", || !is_up(&proxy));
    assert_eq!(proxy.ask(pay("new")).problem(), "store-unavailable");
    eventually("a connection to read", || is_replay(&proxy.ask(pay("k"))));
    server.execute("postgres", "ALTER DATABASE readonly RESET default_transaction_read_only");
    eventually("its return", || is_up(&proxy));
    assert_eq!(proxy.ask(pay("new")).status, 201);
    assert_eq!((node.of("k"), node.of("new")), (1, 1));
}

#[test]
fn another_store_is_refused_until_it_is_adopted() {
    let Some(server) = Postgres::shared() else { return };
    let (right, wrong) = (server.database("right"), server.database("wrong"));
    let place = Place::new(&right);
    let node = Counting::start();
    let first = place.proxy(node.address(), "");
    eventually("a connection", || is_up(&first));
    assert_eq!(first.ask(pay("k")).status, 201);
    drop(first);
    // The file knows the store of the process before.
    place.moves_to(&wrong);
    let proxy = place.proxy(node.address(), "");
    assert_eq!(proxy.ask(pay("k")).problem(), "store-unavailable");
    proxy.logs("ringway store adopt");
    assert!(!is_up(&proxy));
    // One that was made anew is not the same, either.
    server.execute("right", "DROP TABLE ringway_store, ringway_records, ringway_holders");
    place.moves_to(&right);
    let other = place.proxy(node.address(), "");
    assert_eq!(other.ask(pay("k")).problem(), "store-unavailable");
    other.logs("it was restarted empty");
    let adopted = adopt(&place.text(node.address(), ""));
    let told = String::from_utf8_lossy(&adopted.stdout).into_owned() + &String::from_utf8_lossy(&adopted.stderr);
    assert!(adopted.status.success() && told.contains("in the place of"), "{told}");
    eventually("the adoption", || is_up(&other));
    assert_eq!(other.ask(pay("k")).text(), "charged k as 1", "the lost store alone remembered it");
}

#[test]
fn a_new_password_is_the_same_store_and_needs_no_restart() {
    let Some(server) = Postgres::shared() else { return };
    let place = Place::new(&server.database("rotated"));
    let node = Counting::start();
    let proxy = place.proxy(node.address(), "");
    eventually("a connection", || is_up(&proxy));
    assert_eq!(proxy.ask(pay("k")).status, 201);
    server.execute(
        "rotated",
        "CREATE ROLE successor LOGIN PASSWORD 'secret-word'; GRANT ALL ON ALL TABLES IN SCHEMA public TO successor",
    );
    place.moves_to(&server.url("rotated").replace("ringway@", "successor:secret-word@"));
    let reloaded = proxy.admin_post("/api/reload", "");
    assert!(!reloaded.text().contains("restart"), "{}", reloaded.text());
    let user = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'rotated' AND usename = 'successor'";
    eventually("the new role", || server.execute("postgres", user) == "2");
    assert!(is_replay(&proxy.ask(pay("k"))));
    assert_eq!(proxy.ask(pay("new")).status, 201);
    let shown = proxy.admin_get("/api/status").text() + &proxy.admin_get("/api/config").text() + &proxy.log();
    assert!(!shown.contains("secret-word"), "no password is shown");
}

#[test]
fn a_server_without_room_refuses_new_keys_and_gives_true_answers() {
    let Some(server) = Postgres::shared() else { return };
    let place = Place::new(&server.database("full"));
    let node = Counting::start();
    let proxy = place.proxy(node.address(), "lease: 2s");
    eventually("a connection", || is_up(&proxy));
    assert_eq!(proxy.ask(pay("before")).status, 201);
    // What the server says where its disk is full.
    let trap = |event: &str| {
        format!(
            "CREATE OR REPLACE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$;
             DROP TRIGGER IF EXISTS no_room ON ringway_records;
             CREATE TRIGGER no_room BEFORE {event} ON ringway_records FOR EACH ROW EXECUTE FUNCTION no_room()"
        )
    };
    server.execute("full", &trap("INSERT"));
    let refused = proxy.ask(pay("new"));
    assert_eq!((refused.status, refused.problem().as_str()), (503, "store-unavailable"));
    assert!(is_replay(&proxy.ask(pay("before"))), "what is known is replayed");
    assert_eq!(node.of("new"), 0);
    server.execute("full", &trap("UPDATE"));
    let answer = proxy.ask(pay("half"));
    assert_eq!((answer.status, answer.text().as_str()), (201, "charged half as 1"), "the true answer");
    server.execute("full", "DROP TRIGGER no_room ON ringway_records");
    eventually("the end of the record", || proxy.records("half")[0]["state"] == "unknown");
    assert_eq!(proxy.ask(pay("half")).problem(), "outcome-unknown");
    assert_eq!(node.of("half"), 1);
}

#[test]
fn a_connection_that_comes_to_lead_to_another_store_grants_nothing() {
    let Some(server) = Postgres::shared() else { return };
    let place = Place::new(&server.database("swapped"));
    let node = Counting::start();
    let proxy = place.proxy(node.address(), "");
    eventually("a connection", || is_up(&proxy));
    assert_eq!(proxy.ask(pay("k")).status, 201);
    // The tables are made anew under an open connection; and the file that names the store is lost.
    let anew = "TRUNCATE ringway_records, ringway_holders; UPDATE ringway_store SET identity = gen_random_uuid()::text";
    server.execute("swapped", anew);
    std::fs::remove_file(place.identity_file()).unwrap();
    for _ in 0..3 {
        assert_eq!(proxy.ask(pay("k")).problem(), "store-unavailable");
    }
    proxy.logs("ringway store adopt");
    eventually("the metric", || !is_up(&proxy));
    assert_eq!(node.of("k"), 1);
}

#[test]
fn a_host_that_accepts_and_is_silent_is_passed_over() {
    let Some(server) = Postgres::shared() else { return };
    server.database("silent");
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let place = Place::new(&url_of(&[silent.local_addr().unwrap().port(), server.port], "silent"));
    let node = Counting::start();
    let proxy = place.proxy(node.address(), "");
    assert_eq!(proxy.ask(pay("k")).problem(), "store-unavailable", "not yet");
    assert!(!is_up(&proxy));
    eventually("the other host", || is_up(&proxy));
    assert_eq!(proxy.ask(pay("k")).status, 201);
}

#[test]
fn a_row_that_is_locked_holds_up_no_other_key() {
    let Some(server) = Postgres::shared() else { return };
    let place = Place::new(&server.database("locked"));
    let node = Counting::start();
    let proxy = place.proxy(node.address(), "ttl: 1h, on_unknown: retry");
    eventually("a connection", || is_up(&proxy));
    assert_eq!(proxy.ask(pay("locked")).status, 201);
    server.execute("locked", "UPDATE ringway_records SET expires = now() - interval '1 minute'");
    std::thread::scope(|scope| {
        let lock = "BEGIN; SELECT pg_sleep(3) FROM (SELECT 1 FROM ringway_records FOR UPDATE) locked; COMMIT";
        let locked = scope.spawn(|| server.execute("locked", lock));
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = 'locked'";
        eventually("the lock", || server.execute("postgres", waits) == "1");
        let asked = scope.spawn(|| proxy.ask(pay("locked")));
        for number in 0..10 {
            assert_eq!(proxy.ask(pay(&format!("free-{number}"))).status, 201);
        }
        assert!(!locked.is_finished(), "the other keys did not wait");
        asked.join().unwrap();
        locked.join().unwrap();
    });
    eventually("its turn", || proxy.ask(pay("locked")).status == 201);
}

#[test]
fn a_password_is_never_shown() {
    let Some(server) = Postgres::shared() else { return };
    let node = Counting::start();
    for url in [
        "postgresql+psycopg://app:hunter2secret@db/pay?sslmode=require",
        "postgres://app:pa@ss-hunter2secret@127.0.0.1/pay?sslmode=disable",
        "postgres://app:hunter2secret@127.0.0.1:1/pay?sslmode=disable&unknown=1",
        &format!("postgres://app:hunter2secret@127.0.0.1:{}/pay?sslmode=disable", server.port),
    ] {
        let place = Place::new(url);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ringway.yaml");
        let text = place.text(node.address(), "");
        std::fs::write(&file, format!("listeners: [{{ name: http, address: \"127.0.0.1:0\" }}]\n{text}")).unwrap();
        let ringway = |arguments: &[&str]| {
            let ran = Command::new(env!("CARGO_BIN_EXE_ringway")).args(arguments).arg(&file).output().unwrap();
            String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr)
        };
        for arguments in
            [&["check", "--config"][..], &["check", "--connect", "--config"], &["store", "adopt", "--config"]]
        {
            let told = ringway(arguments);
            assert!(!told.contains("hunter2"), "{told}");
        }
    }
}
