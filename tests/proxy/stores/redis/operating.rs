//! What operators do with a store in Redis: check it, log in, encrypt, move its records.

use super::*;
use crate::engines::{Postgres, Redis};
use crate::idempotency::is_replay;
use crate::support::{Authority, eventually};
use std::path::Path;
use std::process::{Command, Output};

fn ringway(arguments: &[&str], file: Option<&Path>) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringway"));
    let Output { status, stdout, stderr } = command.args(arguments).args(file).output().unwrap();
    (status.success(), String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr))
}

fn file_of(folder: &Path, text: &str) -> PathBuf {
    let file = folder.join("ringway.yaml");
    std::fs::write(&file, format!("listeners: [{{ name: http, address: \"127.0.0.1:0\" }}]\n{text}")).unwrap();
    file
}

#[test]
fn check_connect_prints_the_promise_and_refuses_a_store_that_is_not_to_be_used() {
    let Some(server) = Redis::start(&["appendonly yes", "appendfsync everysec"]) else { return };
    let site = Site::with(&[server.port], ", durability: { replicas: 1 }");
    let folder = tempfile::tempdir().unwrap();
    let file = file_of(folder.path(), &site.text(([127, 0, 0, 1], 9).into(), ""));
    let (is_good, told) = ringway(&["check", "--connect", "--config"], Some(&file));
    assert!(is_good, "{told}");
    for part in ["`appendfsync` is `everysec`", "new keys are refused until", "holds no store of Ringway yet"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert_eq!(server.execute(&["DBSIZE"]), "0", "nothing is changed");
    std::fs::write(site.identity_file(), "00000000-0000-4000-8000-000000000000").unwrap();
    let (is_good, told) = ringway(&["check", "--connect", "--config"], Some(&file));
    assert!(!is_good && told.contains("adopt"), "{told}");
    let away = file_of(folder.path(), &site.text_at(&[9], ([127, 0, 0, 1], 9).into(), ""));
    let (is_good, told) = ringway(&["check", "--connect", "--config"], Some(&away));
    assert!(!is_good && told.contains("127.0.0.1:9: "), "{told}");
    let (is_good, told) = ringway(&["check", "--config"], Some(&away));
    assert!(is_good, "without --connect nothing is asked: {told}");
}

#[test]
fn a_user_with_a_password_and_few_rights_is_enough_and_a_new_password_needs_no_restart() {
    let Some(server) = Redis::start(&[]) else { return };
    let rules = ["~ringway:*", "+@read", "+@write", "+@scripting", "+info", "+time", "+wait"];
    let user = |password: &str| {
        server.execute(&[&["ACL", "SETUSER", "proxy", "reset", "on", password][..], &rules].concat());
    };
    user(">first-word");
    let folder = tempfile::tempdir().unwrap();
    let password = folder.path().join("password");
    let write = |word: &str| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(&password, word).unwrap();
        std::fs::set_permissions(&password, std::fs::Permissions::from_mode(0o600)).unwrap();
    };
    write("first-word\n");
    let site = Site::with(&[server.port], &format!(", username: proxy, password_file: {}", password.display()));
    let node = Counting::start();
    let proxy = site.proxy(node.address(), "");
    eventually("a connection", || is_up(&proxy));
    assert_eq!(proxy.ask(pay("k")).status, 201);
    assert!(is_replay(&proxy.ask(pay("k"))));
    assert_eq!(proxy.records("k").len(), 1);
    assert!(promise(&proxy).contains("no append-only file"), "{}", promise(&proxy));
    user(">second-word");
    server.execute(&["CLIENT", "KILL", "USER", "proxy"]);
    eventually("the refusal", || !is_up(&proxy));
    write("second-word");
    proxy.admin_post("/api/reload", "");
    eventually("its return", || is_up(&proxy));
    assert!(is_replay(&proxy.ask(pay("k"))));
    let shown = proxy.admin_get("/api/status").text() + &proxy.admin_get("/api/config").text() + &proxy.log();
    assert!(!shown.contains("first-word") && !shown.contains("second-word"), "no password is shown");
}

#[test]
fn a_connection_over_tls_is_verified() {
    let authority = Authority::new();
    let pair = authority.issue("server", &["localhost", "127.0.0.1"]);
    let (chain, key) = (pair.chain.display(), pair.key.display());
    let port = crate::engines::free_port();
    let settings = [
        format!("tls-port {port}"),
        format!("tls-cert-file {chain}"),
        format!("tls-key-file {key}"),
        "tls-auth-clients no".into(),
    ];
    let Some(_server) = Redis::start(&settings.iter().map(String::as_str).collect::<Vec<_>>()) else { return };
    let node = Counting::start();
    let trusting = Site::with(&[port], &format!(", tls: {{ ca_file: {} }}", authority.file().display()));
    let proxy = trusting.proxy(node.address(), "");
    eventually("a connection", || is_up(&proxy));
    assert_eq!(proxy.ask(pay("k")).status, 201);
    let suspicious = Site::with(&[port], ", tls: {}").proxy(node.address(), "");
    assert_eq!(suspicious.ask(pay("k")).problem(), "store-unavailable");
    suspicious.logs("TLS: ");
}

#[test]
fn records_move_between_all_kinds_of_stores() {
    let Some(server) = Redis::start(&[]) else { return };
    let site = Site::new(&[server.port]);
    let node = Counting::start();
    let text = configuration(&[node.address()], "", "timeouts: { connect: 1s }");
    let mut before = Proxy::start(&text);
    for number in 0..30 {
        assert_eq!(before.ask(pay(&format!("k{number}"))).status, 201);
    }
    let file = before.folder().join("data/idempotency.db");
    before.signal("TERM");
    eventually("the end", || before.has_ended());
    let folder = tempfile::tempdir().unwrap();
    let redis = format!("config:{}", file_of(folder.path(), &site.text(node.address(), "")).display());
    let copy = |from: &str, to: &str| {
        let (is_good, told) = ringway(&["store", "copy", "--from", from, "--to", to], None);
        assert!(is_good, "{told}");
        told
    };
    let sqlite = format!("sqlite:{}", file.display());
    let told = copy(&sqlite, &redis);
    assert!(told.contains("30 records read, 30 copied"), "{told}");
    let told = copy(&sqlite, &redis);
    assert!(told.contains("30 records read, 0 copied, 30 were there already"), "{told}");
    let after = site.proxy(node.address(), "");
    eventually("a connection", || is_up(&after));
    assert!((0..30).all(|number| is_replay(&after.ask(pay(&format!("k{number}"))))));
    drop(after);
    // By way of PostgreSQL, where it is installed, into a file again.
    let back = format!("sqlite:{}", folder.path().join("back.db").display());
    match Postgres::shared() {
        None => drop(copy(&redis, &back)),
        Some(postgres) => {
            let place = Place::new(&postgres.database("from_redis"));
            let between = format!("postgres:{}", place.url_file().display());
            let told = copy(&redis, &between);
            assert!(told.contains("30 records read, 30 copied"), "{told}");
            copy(&between, &back);
        }
    }
    let text = format!("idempotency_store: {{ path: {} }}\n{text}", folder.path().join("back.db").display());
    let last = Proxy::start(&text);
    assert!((0..30).all(|number| is_replay(&last.ask(pay(&format!("k{number}"))))));
    assert!(node.twice().is_empty());
}
