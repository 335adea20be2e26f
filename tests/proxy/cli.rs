//! The command line, with its exit codes.

use crate::support::{Authority, Origin, Proxy, eventually};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn ringway(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringway")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn file(content: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("edge.yaml");
    std::fs::write(&path, content).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (folder, path)
}

const GOOD: &str = "
listeners: [{ name: http, address: 127.0.0.1:8080 }]
pools:
  app:
    nodes:
      - { id: app-1, address: 127.0.0.1:9001 }
      - { id: app-2, address: 127.0.0.1:9002 }
      - { id: app-3, address: 127.0.0.1:9003, state: drain }
    ring: { seed: \"a seed of our own\" }
routes:
  - { name: old, path: /old, redirect: { to: /new } }
  - { name: pay, path_prefix: /pay, strip_prefix: /pay, pool: app, hash_on: [cookie:session, client_ip] }
  - { name: any, hosts: [\"*.example.com\"], pool: app }
";

#[test]
fn check_says_where_and_what() {
    let (_folder, good) = file(GOOD);
    let checked = ringway(&["check", "--config", &good]);
    assert!(checked.status.success(), "{}", text(&checked.stdout));
    assert!(text(&checked.stdout).ends_with("edge.yaml: valid\n"));

    let (_folder, bad) = file(&GOOD.replace("strip_prefix", "strip_prefx").replace("9002", "nine"));
    let checked = ringway(&["check", "--config", &bad]);
    assert_eq!(checked.status.code(), Some(1));
    let said = text(&checked.stdout);
    assert!(said.contains("edge.yaml:12:37: unknown key `strip_prefx`; did you mean `strip_prefix`?\n"), "{said}");
    assert!(said.contains("edge.yaml:7:31: expected an address with a port"), "{said}");
    assert!(said.ends_with("2 errors\n"), "{said}");

    let missing = ringway(&["check", "--config", "/nowhere.yaml"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stdout).contains("/nowhere.yaml: cannot read the configuration: No such file"));
}

/// Standard input is checked like a file in the current folder.
#[test]
fn check_reads_standard_input() {
    let check = |content: &str| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ringway"))
            .args(["check", "--config", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(content.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        (output.status.code(), text(&output.stdout))
    };
    assert_eq!(check(GOOD), (Some(0), "<stdin>: valid\n".to_owned()));
    let (code, said) = check(&GOOD.replace("strip_prefix", "strip_prefx"));
    assert!(code == Some(1) && said.starts_with("<stdin>:12:37: unknown key `strip_prefx`"), "{said}");
}

/// Without `--config` a file is looked for, the nearest first; where there is none, the error says where, and what to
/// do.
#[test]
fn a_configuration_is_looked_for() {
    let folder = tempfile::tempdir().unwrap();
    let check = |command: &str| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_ringway")).arg(command).current_dir(folder.path()).output().unwrap();
        (output.status.code(), text(&output.stdout) + &text(&output.stderr))
    };
    if !Path::new("/etc/ringway/ringway.yaml").exists() {
        for command in ["check", "run", "ring"] {
            let (code, said) = check(command);
            let expected = "ringway: there is no configuration: none of `ringway.yaml`, `config/ringway.yaml`, `/etc/ringway/ringway.yaml` exists; name one with `--config FILE`\n";
            assert_eq!((code, said.as_str()), (Some(1), expected), "{command}");
        }
    }
    std::fs::create_dir(folder.path().join("config")).unwrap();
    std::fs::write(folder.path().join("config/ringway.yaml"), GOOD).unwrap();
    assert_eq!(check("check"), (Some(0), "config/ringway.yaml: valid\n".to_owned()));
    std::fs::write(folder.path().join("ringway.yaml"), GOOD).unwrap();
    assert_eq!(check("check"), (Some(0), "ringway.yaml: valid\n".to_owned()));
}

/// Every kind of file with a secret is warned about where others can read it.
#[test]
fn check_warns_of_secrets_that_others_can_read() {
    use std::os::unix::fs::PermissionsExt;
    let content = "
listeners:
  - name: https
    address: 127.0.0.1:8443
    tls: { certificates: [{ chain_file: edge.pem, key_file: edge.key }], ticket_secret_file: tickets.key }
admin: { token_file: admin.token }
pools:
  app:
    nodes: [{ id: a, address: 127.0.0.1:9001 }]
    ring: { seed_file: ring.seed }
    tls: { certificate: { chain_file: own.pem, key_file: own.key } }
routes:
  - { name: site, pool: app, affinity_cookie: { mode: strict, secret_file: affinity.key } }
";
    let (folder, path) = file(content);
    Authority::new().provide(folder.path(), content);
    let check = || text(&ringway(&["check", "--config", &path]).stdout);
    assert!(check().ends_with(": valid\n"), "{}", check());
    for secret in ["edge.key", "tickets.key", "admin.token", "ring.seed", "own.key", "affinity.key"] {
        let secret = folder.path().join(secret);
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o644)).unwrap();
        let said = check();
        let name = secret.file_name().unwrap().to_str().unwrap();
        assert!(
            said.contains(&format!("in `{name}` can be read by anybody")) && said.ends_with("1 warning\n"),
            "{said}"
        );
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
}

#[test]
fn run_refuses_a_bad_file_and_a_taken_port() {
    let (_folder, bad) = file("listeners: 7\nroutes: []\n");
    let refused = ringway(&["run", "--config", &bad]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("edge.yaml:1:12: expected a list, found `7`"), "{}", text(&refused.stderr));

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let (_folder, bad) = file(&format!(
        "listeners: [{{ name: edge, address: \"{address}\" }}]\nadmin: {{ address: 127.0.0.1:0 }}\nroutes: []\n"
    ));
    let refused = ringway(&["run", "--config", &bad]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        text(&refused.stderr).contains(&format!("cannot listen on {address} (edge): Address already in use")),
        "{}",
        text(&refused.stderr)
    );
}

#[test]
fn explain_shows_route_key_and_node() {
    let (_folder, good) = file(GOOD);
    let explain = |arguments: &[&str]| text(&ringway(&[&["explain", "--config", &good], arguments].concat()).stdout);
    let said = explain(&["POST", "http://shop.example/%70ay/1?x=y", "-H", "Cookie: session=abc"]);
    for line in [
        "request      POST shop.example/pay/1?x=y",
        "route        pay",
        "forwards     /1?x=y",
        "hash key     abc (from cookie:session)",
        "pool         app",
    ] {
        assert!(said.contains(line), "{line}\n{said}");
    }
    assert!(said.contains("app-3 (drain)"), "{said}");
    assert!(
        explain(&["GET", "http://a/pay", "--from", "192.0.2.7"]).contains("hash key     192.0.2.7 (from client_ip)")
    );
    assert!(explain(&["GET", "http://a/old"]).contains("answer       308 to /new"));
    assert!(explain(&["GET", "http://a/none"]).contains("route        none: 404"));
    assert!(explain(&["GET", "https://www.example.com/"]).contains("a random one a request"));
    assert_eq!(ringway(&["explain", "--config", &good, "GET", "/no-host"]).status.code(), Some(1));
}

#[test]
fn ring_foretells_a_change() {
    let (_folder, good) = file(GOOD);
    let json = |arguments: &[&str]| -> serde_json::Value {
        let told = ringway(&[&["ring", "--json", "--config", &good], arguments].concat());
        assert!(told.status.success(), "{}", text(&told.stderr));
        serde_json::from_slice(&told.stdout).unwrap()
    };
    let now = json(&["--key", "k"]);
    assert_eq!((now["points"].as_u64(), now["key"]["order"].as_array().unwrap().len()), (Some(768), 3));
    let without = json(&["--without", "app-2"]);
    let moved = without["change"]["moved"].as_f64().unwrap();
    assert_eq!(moved, now["nodes"][1]["share"].as_f64().unwrap());
    assert!(without["change"]["transfers"].as_array().unwrap().iter().all(|transfer| transfer["from"] == "app-2"));
    let with = json(&["--with", "app-4=2"]);
    assert!(with["change"]["transfers"].as_array().unwrap().iter().all(|transfer| transfer["to"] == "app-4"));
    let table = text(&ringway(&["ring", "--config", &good, "--without", "app-1", "--key", "k"]).stdout);
    assert!(
        table.contains("pool app: 3 nodes, 768 points") && table.contains("of the keys have another node"),
        "{table}"
    );
    let wrong = ringway(&["ring", "--config", &good, "--without", "app-9"]);
    assert_eq!(
        (wrong.status.code(), text(&wrong.stderr)),
        (Some(1), "ringway: --without app-9: the pool has no such node\n".to_owned())
    );
}

#[test]
fn schema_is_a_json_schema() {
    let schema: serde_json::Value = serde_json::from_slice(&ringway(&["schema"]).stdout).unwrap();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    assert_eq!(
        schema["properties"]["pools"]["additionalProperties"]["properties"]["ring"]["properties"]["virtual_nodes"]["default"],
        256
    );
}

#[test]
fn wrong_usage_exits_with_2() {
    assert_eq!(ringway(&["serve"]).status.code(), Some(2));
    assert!(ringway(&["--help"]).status.success());
}

/// What the repository ships has to be valid. It cannot hold a secret: the warning about the public seed stays.
#[test]
fn the_shipped_configurations_are_valid() {
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    let mut count = 0;
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("config")).unwrap() {
        let shipped = entry.unwrap().path();
        // What a proxy or an operator has left there, git does not know.
        if shipped.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let path = folder.path().join(shipped.file_name().unwrap());
        let content = std::fs::read_to_string(&shipped).unwrap();
        authority.provide(folder.path(), &content);
        std::fs::write(&path, content).unwrap();
        let checked = ringway(&["check", "--config", path.to_str().unwrap()]);
        let said = text(&checked.stdout);
        let warnings = said.lines().filter(|line| line.contains(": warning: "));
        let others = warnings.filter(|line| !line.contains("set `ring.seed_file`")).count();
        assert!(checked.status.success() && others == 0, "{said}");
        count += 1;
    }
    assert!(count >= 4);
}

#[test]
fn check_warns_of_a_cookie_that_is_never_issued_and_wants_a_secret() {
    let (_folder, soft) =
        file(&GOOD.replace("hash_on: [cookie:session, client_ip]", "hash_on: [client_ip], affinity_cookie: {}"));
    let checked = ringway(&["check", "--config", &soft]);
    assert!(checked.status.success());
    assert!(
        text(&checked.stdout)
            .contains("the affinity cookie of the route `pay` is never issued: `client_ip` is always present")
    );
    let (_folder, strict) = file(&GOOD.replace("strip_prefix: /pay,", "affinity_cookie: { mode: strict },"));
    let checked = ringway(&["check", "--config", &strict]);
    assert_eq!(checked.status.code(), Some(1));
    assert!(
        text(&checked.stdout).contains("a strict affinity cookie needs a `secret_file`"),
        "{}",
        text(&checked.stdout)
    );
}

#[test]
fn a_running_proxy_is_asked_and_told() {
    let node = Origin::echo();
    let mut proxy = Proxy::before(&[node.address]);
    let admin = format!("http://{}", proxy.admin);
    let told = |arguments: &[&str]| ringway(&[arguments, &["--admin", &admin]].concat());
    let status = text(&told(&["status"]).stdout);
    for part in ["  ready  ", "in force", "pool app", "n0", "100.00 %", "  not checked\n"] {
        assert!(status.contains(part), "{part}\n{status}");
    }
    assert!(!status.contains('\x1b'), "colours into a pipe");
    let json: serde_json::Value = serde_json::from_slice(&told(&["status", "--json"]).stdout).unwrap();
    assert_eq!(json["status"]["ready"], true);

    assert_eq!(text(&told(&["reload"]).stdout), "reloaded; nothing has changed\n");
    let file = proxy.folder().join("ringway.yaml");
    let more = "  - { name: hello, path: /hello, respond: { body: hi } }\nlimits: { headers: 77 }\nworkers: 3\n";
    std::fs::write(&file, std::fs::read_to_string(&file).unwrap() + more).unwrap();
    let reloaded = "reloaded; routes: 1 added (`hello`); workers; limits";
    proxy.logs(reloaded);
    let status: serde_json::Value = serde_json::from_slice(&told(&["status", "--json"]).stdout).unwrap();
    assert_eq!(status["status"]["last_reload"]["needs_restart"], serde_json::json!(["workers"]));
    assert_eq!(text(&told(&["drain", "app", "n0"]).stdout), "app/n0: drain\n");
    assert_eq!(proxy.get("/").status, 503);
    assert_eq!(text(&told(&["node", "app", "n0", "up"]).stdout), "app/n0: up\n");
    assert_eq!(proxy.get("/").status, 200);
    let refused = told(&["node", "app", "n7", "up"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("the pool `app` has no node `n7`"), "{}", text(&refused.stderr));

    std::fs::write(proxy.folder().join("ringway.yaml"), "routes: 7\n").unwrap();
    let refused = told(&["reload"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        text(&refused.stderr).contains("ringway.yaml:1:1: the key `listeners` is missing here (and 1 more)"),
        "{}",
        text(&refused.stderr)
    );
    assert!(text(&told(&["status"]).stdout).contains("not in force: "));

    assert_eq!(text(&told(&["drain"]).stdout), "draining\n");
    eventually("the end of the process", || proxy.has_ended());
    let nobody = told(&["status"]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(text(&nobody.stderr).contains("no proxy answers at http://127.0.0.1:"), "{}", text(&nobody.stderr));
}

/// A proxy without sagas says so; a decision on none of them is refused, and says why.
#[test]
fn sagas_are_asked_for_and_decided_on() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    let admin = format!("http://{}", proxy.admin);
    let told = |arguments: &[&str]| ringway(&[arguments, &["--admin", &admin]].concat());
    assert_eq!(text(&told(&["sagas"]).stdout), "no sagas\n");
    assert_eq!(text(&told(&["sagas", "--state", "stuck", "--json"]).stdout), "[]\n");
    for (arguments, code, why) in [
        (&["sagas", "retry", "a/b"][..], 1, "there is no saga `a/b`"),
        (&["sagas", "resolve", "x", "--as", "succeeded"], 1, "there is no saga `x`"),
        (&["sagas", "resolve", "x"], 2, "--as <OUTCOME>"),
        (&["sagas", "resolve", "x", "--as", "stuck"], 2, "[possible values: succeeded, compensated]"),
        (&["sagas", "--state", "done"], 2, "possible values: running, compensating, succeeded, compensated, stuck"),
    ] {
        let refused = told(arguments);
        let said = text(&refused.stderr);
        assert!(refused.status.code() == Some(code) && said.contains(why), "{arguments:?}: {said}");
    }
    for (path, status, name) in
        [("/api/sagas?state=done", 400, "bad-decision"), ("/api/sagas/x/retry", 405, "method-not-allowed")]
    {
        let answer = proxy.admin_get(path);
        assert_eq!(answer.status, status, "{path}");
        assert!(answer.text().contains(&format!("urn:ringway:problem:{name}")), "{}", answer.text());
    }
}

#[test]
fn shells_get_completions() {
    for shell in ["bash", "zsh", "fish"] {
        let script = text(&ringway(&["completions", shell]).stdout);
        assert!(script.contains("ringway") && script.contains("sagas") && script.contains("resolve"), "{shell}");
    }
}

/// A reader that has seen enough ends a command well.
#[test]
fn completions_end_well_without_a_reader() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ringway"))
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
}
