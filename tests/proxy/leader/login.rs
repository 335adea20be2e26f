//! The connections of the proxies to etcd: users with passwords, TLS, certificates of their own; and the report of
//! `check --connect`.

use super::{Fleet, leader_of};
use crate::engines::Etcd;

use crate::support::{Authority, Proxy, eventually, write_private};
use std::path::Path;
use std::process::Command;

fn configuration(etcd: &Etcd, more: &str) -> String {
    let endpoints: Vec<String> = etcd.endpoints().iter().map(|url| format!("\"{url}\"")).collect();
    format!(
        "workers: 1\nfleet: {{ id: t, etcd: {{ endpoints: [{}], {more} }} }}\npools: {{ app: {{ nodes: [{{ id: n0, address: \"127.0.0.1:1\" }}] }} }}\nroutes: [{{ name: site, pool: app }}]\n",
        endpoints.join(", ")
    )
}

/// Returns what `check --connect` says, and whether all is well.
fn check(text: &str) -> (String, bool) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ringway.yaml");
    std::fs::write(&file, format!("listeners: [{{ name: http, address: \"127.0.0.1:0\" }}]\n{text}")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringway"));
    let told = command.args(["check", "--connect", "--config"]).arg(&file).output().unwrap();
    (String::from_utf8(told.stdout).unwrap(), told.status.success())
}

#[test]
fn a_user_needs_its_password_and_gets_a_new_token_where_the_old_one_is_gone() {
    let Some(mut etcd) = Etcd::start(1) else { return };
    for command in [
        &["user", "add", "root:secret"][..],
        &["user", "add", "ringway:hush"],
        &["role", "add", "fleet"],
        &["role", "grant-permission", "fleet", "readwrite", "--prefix=true", "ringway/t/"],
        &["user", "grant-role", "ringway", "fleet"],
        &["user", "grant-role", "root", "root"],
        &["auth", "enable"],
    ] {
        etcd.execute(command);
    }
    etcd.log_in(&["--user=root:secret"]);
    let folder = tempfile::tempdir().unwrap();
    let password = folder.path().join("password");
    write_private(&password, "hush\n");
    let with = |file: &Path| configuration(&etcd, &format!("username: ringway, password_file: \"{}\"", file.display()));
    let proxy = Proxy::start(&with(&password));
    let is_up = |proxy: &Proxy| proxy.admin_get("/api/fleet").json()["leader"]["up"] == true;
    let leads = |proxy: &Proxy| proxy.admin_get("/api/fleet").json()["leader"]["leads"] == true;
    eventually("etcd to let it in", || is_up(&proxy) && leads(&proxy));
    let (told, is_well) = check(&with(&password));
    assert!(is_well && told.contains("can write below `ringway/t/`"), "{told}");

    // Tokens are in the memory of etcd: none that it gave out is left.
    let text = with(&password);
    etcd.kill_all();
    eventually("etcd to be away", || !is_up(&proxy));
    etcd.run_all();
    eventually("a new token", || is_up(&proxy) && leads(&proxy));
    assert_eq!(proxy.admin_post("/api/pools/app/nodes/n0/drain?scope=fleet", "").status, 200);

    let wrong = folder.path().join("wrong");
    write_private(&wrong, "not this\n");
    let (told, is_well) = check(&text.replace("/password\"", "/wrong\""));
    assert!(!is_well && told.contains("error"), "{told}");
    assert!(!told.contains("not this") && !proxy.log().contains("hush"));
}

#[test]
fn etcd_over_tls_may_ask_for_a_certificate() {
    let authority = Authority::new();
    let server = authority.issue("etcd", &["127.0.0.1", "localhost"]);
    let own = authority.issue("proxy", &["ringway"]);
    let ca = authority.file().display().to_string();
    let (chain, key) = (server.chain.display().to_string(), server.key.display().to_string());
    let arguments = ["--cert-file", &chain, "--key-file", &key, "--trusted-ca-file", &ca, "--client-cert-auth"];
    let Some(etcd) = Etcd::start_with(1, "https", &arguments) else { return };
    let with = |own: &str| configuration(&etcd, &format!("tls: {{ ca_file: \"{ca}\"{own} }}"));
    let certificate = format!(", certificate: {}", own.setting());
    let proxy = Proxy::start(&with(&certificate));
    eventually("a leader", || proxy.admin_get("/api/fleet").json()["leader"]["leads"] == true);
    let (told, is_well) = check(&with(&certificate));
    assert!(is_well, "{told}");
    let (told, is_well) = check(&with(""));
    assert!(!is_well && told.contains("error"), "{told}");
}

#[test]
fn check_tells_the_version_and_what_cannot_be_reached() {
    let Some(fleet) = Fleet::start(3) else { return };
    let (told, is_well) = check(&fleet.configuration(&fleet.etcd.ports()));
    assert!(is_well && told.contains(": etcd 3.") && told.contains(", leads"), "{told}");
    assert!(told.contains("too young to tell whether it compacts"), "{told}");
    let (told, is_well) = check(&fleet.configuration(&[1]));
    assert!(!is_well && told.contains("http://127.0.0.1:1"), "{told}");
}

/// A proxy follows other endpoints by a reload, and says what it cannot follow.
#[test]
fn a_reload_changes_endpoints() {
    let Some(mut fleet) = Fleet::start(3) else { return };
    let members = fleet.proxies(2);
    let one = fleet.configuration(&fleet.etcd.ports()[..1]);
    members[0].proxy.reconfigure(&one);
    members[0].cut(true);
    assert_eq!(members[0].set("n0", "drain").json()["applied_by"]["complete"], true);
    leader_of(&members);
    let answer = members[0].proxy.admin_get("/api/status").json();
    assert_eq!(answer["last_reload"]["needs_restart"].as_array().unwrap().len(), 0);
    fleet.lease = "5s";
    members[0].proxy.reconfigure(&fleet.configuration(&fleet.etcd.ports()));
    let answer = members[0].proxy.admin_get("/api/status").json();
    assert_eq!(answer["last_reload"]["needs_restart"][0], "fleet.etcd");
}
