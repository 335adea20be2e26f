//! Servers that cannot be nodes of strong reads, and configurations that say so.

use super::{Nodes, Shop, routes};
use crate::engines::Redis;
use std::process::Command;

/// The output of `check --connect` for a configuration, and whether it passed.
fn check(text: &str) -> (String, bool) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ringway.yaml");
    let listener = "listeners: [{ name: http, address: \"127.0.0.1:0\" }]\n";
    std::fs::write(&file, listener.to_owned() + text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringway"));
    let output = command.args(["check", "--connect", "--config"]).arg(&file).output().unwrap();
    (String::from_utf8(output.stdout).unwrap(), output.status.success())
}

#[test]
fn a_server_that_may_forget_marks_is_refused() {
    let Some(mut nodes) = Nodes::start(2) else { return };
    let shop = Shop::start();
    nodes.nodes.push(Redis::start(&["maxmemory 100mb", "maxmemory-policy allkeys-lru"]).unwrap());
    let (said, passed) = check(&(nodes.block() + &routes(&shop, "")));
    assert!(!passed && said.contains("its `maxmemory-policy` is `allkeys-lru`"), "{said}");
    assert!(said.contains("strong reads, N=3 W=2 R=2: hits go on with one node away, writes go on"), "{said}");
    nodes.nodes[2] = Redis::start(&[]).unwrap();
    let text = nodes.block() + &routes(&shop, "");
    let (said, passed) = check(&text);
    assert!(passed && said.contains("r2: counts for strong reads once it has run for 4 s"), "{said}");
    let (said, passed) = check(&text.replacen(
        &format!("127.0.0.1:{}", nodes.nodes[1].port),
        &format!("localhost:{}", nodes.nodes[0].port),
        1,
    ));
    assert!(!passed && said.contains("it is the same server as the node `r0`"), "{said}");
    let _replica = nodes.nodes[0].replica(&[]);
    let (said, passed) = check(&text);
    assert!(!passed && said.contains("it has a replica"), "{said}");
}
