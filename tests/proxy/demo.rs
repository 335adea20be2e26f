//! The demo's tour holds, step by step, its hints can be run, and its nodes show what a first configuration does.

use crate::support::{Client, Proxy, eventually, have};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

#[test]
fn the_tour_holds() {
    let told = Command::new(env!("CARGO_BIN_EXE_ringway")).args(["demo", "--once"]).output().unwrap();
    let said = String::from_utf8_lossy(&told.stdout);
    assert!(told.status.success(), "{said}");
    assert!(said.matches("ok   ").count() >= 5 && !said.contains("FAIL"), "{said}");
    if have("redis-server", "redis-server") {
        assert!(said.contains("ok   A purge reaches every proxy."), "{said}");
    }
}

/// A demo that stays up, ended when dropped.
struct Demo {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Demo {
    fn start(arguments: &[&str]) -> Demo {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringway"));
        let mut child = command.arg("demo").args(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let lines: Arc<Mutex<Vec<String>>> = Arc::default();
        let (stdout, written) = (child.stdout.take().unwrap(), Arc::clone(&lines));
        std::thread::spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).for_each(|line| written.lock().unwrap().push(line));
        });
        let demo = Demo { child, lines };
        eventually("the demo to be up", || demo.said().contains("Ctrl-C"));
        demo
    }

    fn said(&self) -> String {
        self.lines.lock().unwrap().join("\n")
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A hint names the program as it was called: a copy of it into a shell works.
#[test]
fn the_hints_can_be_run() {
    let demo = Demo::start(&[]);
    let said = demo.said();
    let hints: Vec<&str> = said.lines().filter(|line| line.contains(" --admin http://")).map(str::trim).collect();
    assert_eq!(hints.len(), 3, "{said}");
    for hint in hints {
        let ran = Command::new("sh").args(["-c", hint]).output().unwrap();
        assert!(ran.status.success(), "{hint}: {}", String::from_utf8_lossy(&ran.stderr));
    }
}

/// The demo's three nodes, and where they listen.
fn nodes() -> (Demo, Vec<SocketAddr>) {
    let demo = Demo::start(&["--nodes", "--port", "0"]);
    let said = demo.said();
    let found = said.lines().filter_map(|line| line.split("http://").nth(1)?.parse().ok());
    let nodes: Vec<SocketAddr> = found.collect();
    assert_eq!(nodes.len(), 3, "{said}");
    (demo, nodes)
}

/// They are the services of the sample with a saga.
#[test]
fn an_order_goes_through_the_nodes() {
    let (_demo, nodes) = nodes();
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config/checkout.yaml")).unwrap();
    let mut text = text.replace("127.0.0.1:8080", "127.0.0.1:0").replace("data/idempotency.db", "idempotency.db");
    for (node, port) in nodes.iter().zip(9001..) {
        text = text.replace(&format!("127.0.0.1:{port}"), &node.to_string());
    }
    let proxy = Proxy::start_whole(&format!("admin: {{ address: \"127.0.0.1:0\" }}\n{text}"));
    let body = r#"{"items": ["pen"], "amount": 4.20, "order": 1234}"#;
    let answer = proxy.connect().request(format!(
        "POST /checkout HTTP/1.1\r\nhost: a\r\nauthorization: alice\r\nidempotency-key: \"1\"\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    ));
    assert_eq!((answer.status, answer.text().as_str()), (201, r#"{"shipment":"app-3-1"}"#), "{answer:?}");
}

#[test]
fn the_nodes_show_what_they_receive() {
    let (_demo, nodes) = nodes();
    let proxy = Proxy::start(&Proxy::pool(&nodes, "").replace(
        "  - { name: site",
        "  - { name: payments, path_prefix: /payments, pool: app, idempotency: {} }\n  - { name: assets, path_prefix: /assets, pool: app, cache: {} }\n  - { name: site",
    ));
    let page = proxy.get_with("/a", "cookie: session=alice").text();
    for part in ["app-", " has received:\n\nGET /a\n", "cookie: session=alice\n", "x-forwarded-proto: http\n"] {
        assert!(page.contains(part), "{part}\n{page}");
    }
    let pay = |address: SocketAddr| {
        let key = "authorization: alice\r\nidempotency-key: \"order-1\"\r\ncontent-length: 3\r\nconnection: close";
        Client::connect(address).request(format!("POST /payments HTTP/1.1\r\nhost: a\r\n{key}\r\n\r\na=1"))
    };
    let (first, again) = (pay(proxy.address), pay(proxy.address));
    assert!(
        first.text().contains("a body of 3 bytes\n") && first.text().contains("has run the payment \"order-1\" once")
    );
    assert_eq!(again.field("idempotent-replayed").as_deref(), Some("true"));
    // Past the proxy it runs again.
    let charged = nodes.iter().map(|&node| pay(node).text()).filter(|text| text.contains("2 times")).count();
    assert_eq!(charged, 1);
    proxy.get("/assets/a");
    assert!(proxy.get("/assets/a").field("cache-status").unwrap().contains("hit"));
}
