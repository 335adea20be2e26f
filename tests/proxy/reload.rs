//! A new configuration while the old one serves.

use crate::support::{Client, Origin, Proxy, eventually};
use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;

impl Proxy {
    fn file(&self) -> PathBuf {
        self.folder().join("ringway.yaml")
    }

    fn text(&self) -> String {
        fs::read_to_string(self.file()).unwrap()
    }

    /// Writes another configuration over the file, as an editor does.
    fn rewrite(&self, text: &str) {
        let new = self.folder().join("new.yaml");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.file()).unwrap();
    }

    fn post(&self, path: &str) -> (u16, serde_json::Value) {
        let request =
            format!("POST {path} HTTP/1.1\r\nhost: {}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", self.admin);
        let answer = Client::connect(self.admin).request(request);
        (answer.status, answer.json())
    }

    fn reloads(&self, result: &str) -> f64 {
        self.metric(&format!("ringway_config_reloads_total{{result=\"{result}\"}}"))
    }
}

fn named(name: &str) -> Origin {
    Origin::saying(format!("HTTP/1.1 200 OK\r\nx-node: {name}\r\ncontent-length: 0\r\n\r\n"))
}

fn pool(nodes: &[(&str, &Origin)]) -> String {
    let list: String =
        nodes.iter().map(|(id, node)| format!("      - {{ id: {id}, address: \"{}\" }}\n", node.address)).collect();
    format!(
        "listeners: [{{ name: http, address: \"127.0.0.1:0\" }}]\nadmin: {{ address: \"127.0.0.1:0\" }}\naccess_log: {{ format: \"off\" }}\npools:\n  app:\n    nodes:\n{list}routes:\n  - {{ name: site, pool: app, hash_on: [uri] }}\n"
    )
}

fn homes(proxy: &Proxy) -> BTreeMap<usize, String> {
    let mut client = proxy.connect();
    let get = |n: usize| (n, format!("GET /{n} HTTP/1.1\r\nhost: a\r\n\r\n"));
    (0..200).map(get).map(|(n, request)| (n, client.request(request).field("x-node").unwrap())).collect()
}

#[test]
fn a_change_of_the_file_takes_effect() {
    let (a, b, c) = (named("a"), named("b"), named("c"));
    let proxy = Proxy::start_whole(&pool(&[("a", &a), ("b", &b)]));
    let before = homes(&proxy);
    proxy.rewrite(&pool(&[("c", &c), ("b", &b), ("a", &a)]));
    eventually("the reload", || proxy.reloads("success") == 1.0);
    let after = homes(&proxy);
    let (mut to_c, mut elsewhere) = (0, 0);
    for (key, home) in &before {
        match after[key].as_str() {
            same if same == home => {}
            "c" => to_c += 1,
            _ => elsewhere += 1,
        }
    }
    assert!(to_c > 20 && elsewhere == 0, "{to_c} keys went to the new node, {elsewhere} moved otherwise");

    // In place, as `echo >` does it.
    fs::write(proxy.file(), pool(&[("a", &a)])).unwrap();
    eventually("the second reload", || proxy.admin_get("/api/pools").json()[0]["nodes"].as_array().unwrap().len() == 1);
    assert!(homes(&proxy).values().all(|home| home == "a"));
    // What is gone has no series any more.
    let page = proxy.admin_get("/metrics").text();
    assert!(!page.contains("node=\"b\"") && !page.contains("node=\"c\"") && page.contains("node=\"a\""), "{page}");
}

#[test]
fn ring_without_foretells_the_reload() {
    let (a, b, c) = (named("a"), named("b"), named("c"));
    let proxy = Proxy::start_whole(&pool(&[("a", &a), ("b", &b), ("c", &c)]));
    let before = homes(&proxy);
    let told: Vec<String> = (0..200)
        .map(|n| {
            let arguments = [
                "ring",
                "--json",
                "--without",
                "b",
                "--key",
                &format!("/{n}"),
                "--config",
                proxy.file().to_str().unwrap(),
            ]
            .map(str::to_owned);
            let told = std::process::Command::new(env!("CARGO_BIN_EXE_ringway")).args(arguments).output().unwrap();
            let told: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap();
            told["change"]["key"]["order"][0].as_str().unwrap().to_owned()
        })
        .collect();
    proxy.rewrite(&pool(&[("a", &a), ("c", &c)]));
    eventually("the reload", || proxy.reloads("success") == 1.0);
    let after = homes(&proxy);
    for n in 0..200 {
        assert_eq!(after[&n], told[n], "key /{n}");
        assert!(before[&n] == "b" || before[&n] == after[&n]);
    }
}

#[test]
fn a_bad_file_changes_nothing() {
    let a = named("a");
    let proxy = Proxy::start_whole(&pool(&[("a", &a)]));
    proxy.rewrite(&proxy.text().replace("hash_on", "hash_om"));
    eventually("the failure", || proxy.reloads("failure") == 1.0);
    assert_eq!(proxy.get("/").field("x-node").as_deref(), Some("a"));
    assert_eq!(proxy.metric("ringway_config_last_reload_success"), 0.0);
    let last = &proxy.admin_get("/api/status").json()["last_reload"];
    assert_eq!(last["success"], false);
    let error = last["error"].as_str().unwrap();
    assert!(error.contains("ringway.yaml:9:30: unknown key `hash_om`; did you mean `hash_on`?"), "{error}");
    proxy.logs("hash_om");

    proxy.rewrite(&pool(&[("a", &a)]));
    eventually("the recovery", || proxy.metric("ringway_config_last_reload_success") == 1.0);
}

#[test]
fn the_three_ways_to_ask() {
    let a = named("a");
    let proxy = Proxy::start_whole(&pool(&[("a", &a)]));
    proxy.signal("HUP");
    eventually("SIGHUP's reload", || proxy.reloads("success") == 1.0);
    let (status, said) = proxy.post("/api/reload");
    assert_eq!((status, said["result"].as_str()), (200, Some("success")));
    assert_eq!(proxy.reloads("success"), 2.0);
    fs::write(proxy.file(), "nonsense: [").unwrap();
    let (status, said) = proxy.post("/api/reload");
    assert_eq!((status, said["type"].as_str()), (422, Some("urn:ringway:problem:reload-failed")));
    assert!(said["detail"].as_str().unwrap().contains("not valid YAML"), "{said}");
}

/// Kubernetes swaps a link to a folder, twice removed from the file that the proxy was given.
#[test]
fn a_config_map_is_followed() {
    let (a, b) = (named("a"), named("b"));
    let proxy = Proxy::start_whole(&pool(&[("a", &a)]));
    let folder = proxy.folder();
    let version = |name: &str, node: (&str, &Origin)| {
        fs::create_dir(folder.join(name)).unwrap();
        fs::write(folder.join(name).join("ringway.yaml"), pool(&[node])).unwrap();
    };
    version("..v1", ("a", &a));
    version("..v2", ("b", &b));
    std::os::unix::fs::symlink("..v1", folder.join("..data")).unwrap();
    std::os::unix::fs::symlink("..data/ringway.yaml", folder.join("link")).unwrap();
    fs::rename(folder.join("link"), proxy.file()).unwrap();
    std::os::unix::fs::symlink("..v2", folder.join("..data_tmp")).unwrap();
    fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
    eventually("the swap", || proxy.get("/").field("x-node").as_deref() == Some("b"));
}

#[test]
fn listeners_come_and_go() {
    let a = named("a");
    let proxy = Proxy::start_whole(&pool(&[("a", &a)]));
    let mut kept = proxy.connect();
    assert_eq!(kept.request("GET / HTTP/1.1\r\nhost: a\r\n\r\n").status, 200);
    // A second address opens, the first is untouched.
    let two = "listeners: [{ name: http, address: \"127.0.0.1:0\" }, { name: second, address: \"127.0.0.2:0\" }]";
    let one = "listeners: [{ name: http, address: \"127.0.0.1:0\" }]";
    proxy.rewrite(&proxy.text().replace(one, two));
    let listeners = || proxy.admin_get("/api/status").json()["listeners"].as_array().unwrap().clone();
    eventually("the second listener", || listeners().len() == 2);
    let second = listeners()[1]["address"].as_str().unwrap().parse().unwrap();
    let mut there = Client::connect(second);
    assert_eq!(there.request("GET / HTTP/1.1\r\nhost: a\r\n\r\n").field("connection"), None);
    // It goes again: its connections drain, those of the first do not.
    proxy.rewrite(&proxy.text().replace(two, one));
    eventually("the end of the second listener", || TcpStream::connect(second).is_err());
    let answer = there.request("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!((answer.status, answer.field("connection").as_deref()), (200, Some("close")));
    assert_eq!(kept.request("GET / HTTP/1.1\r\nhost: a\r\n\r\n").field("connection"), None);
    assert_eq!(proxy.get("/").status, 200);

    // An address that is taken keeps the old configuration whole.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let both = format!(
        "listeners: [{{ name: http, address: \"127.0.0.1:0\" }}, {{ name: taken, address: \"{}\" }}]",
        taken.local_addr().unwrap()
    );
    proxy.rewrite(&proxy.text().replace(one, &both));
    eventually("the failure", || proxy.reloads("failure") == 1.0);
    assert_eq!(proxy.get("/").status, 200);
    assert!(proxy.admin_get("/api/status").text().contains("cannot listen on"));
}

#[test]
fn what_is_in_flight_stays() {
    let slow = Origin::by_connection(|peer| {
        while let Some(head) = peer.request() {
            if head.contains("websocket") {
                peer.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n");
                while !peer.client.has_ended() {
                    let byte = peer.client.exactly(1);
                    peer.send(byte);
                }
                return;
            }
            peer.send("HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nhalf");
            while !peer.client.has_ended() {}
        }
    });
    let other = named("other");
    let proxy = Proxy::start_whole(&pool(&[("slow", &slow)]));
    let mut tunnel = proxy.connect();
    tunnel.send("GET /chat HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n");
    tunnel.head();
    let mut download = proxy.connect();
    download.send("GET /big HTTP/1.1\r\nhost: a\r\n\r\n");
    download.head();
    assert_eq!(download.exactly(4), b"half");
    for round in 0..10 {
        proxy.rewrite(&pool(&[("other", &other)]).replace("name: site", &format!("name: site-{round}")));
        eventually("the reload", || proxy.reloads("success") == f64::from(round + 1));
    }
    tunnel.send("x");
    assert_eq!(tunnel.exactly(1), b"x");
    assert!(download.is_open());
    assert_eq!(proxy.get("/").field("x-node").as_deref(), Some("other"));
}

/// A state that somebody set holds until the file says something new about that node.
#[test]
fn a_nodes_state_outlives_reloads() {
    let (a, b) = (named("a"), named("b"));
    let proxy = Proxy::start_whole(&pool(&[("a", &a), ("b", &b)]));
    let state = |id: &str| {
        let pools = proxy.admin_get("/api/pools").json();
        let nodes = pools[0]["nodes"].as_array().unwrap().clone();
        nodes.iter().find(|node| node["id"] == id).unwrap()["state"].as_str().unwrap().to_owned()
    };
    for word in ["drain", "down"] {
        let (status, said) = proxy.post(&format!("/api/pools/app/nodes/b/{word}"));
        assert_eq!((status, said["state"].as_str()), (200, Some(word)));
        assert!(homes(&proxy).values().all(|home| home == "a"), "{word}");
    }
    assert_eq!(proxy.post("/api/pools/app/nodes/nobody/up").0, 404);
    assert_eq!(proxy.post("/api/pools/nowhere/nodes/b/up").0, 404);
    assert_eq!(proxy.post("/api/pools/app/nodes/b/sideways").0, 404);

    assert_eq!(proxy.post("/api/reload").0, 200);
    assert_eq!(state("b"), "down");
    // The file says something new about the node: that holds.
    proxy.rewrite(&proxy.text().replace("{ id: b,", "{ state: drain, id: b,"));
    eventually("the file's state", || state("b") == "drain");
    proxy.rewrite(&proxy.text().replace("state: drain, ", ""));
    eventually("the old file's state", || state("b") == "up");
    assert!(homes(&proxy).values().any(|home| home == "b"));
}

#[test]
fn the_access_log_is_opened_anew_on_sighup() {
    let a = named("a");
    let text = pool(&[("a", &a)]).replace("format: \"off\"", "format: common, path: access.log");
    // One worker, so that what one request shows holds for the next.
    let proxy = Proxy::start_whole(&format!("workers: 1\n{text}"));
    let (log, old) = (proxy.folder().join("access.log"), proxy.folder().join("access.log.1"));
    proxy.get("/first");
    eventually("the first line", || fs::read_to_string(&log).is_ok_and(|text| text.contains("/first")));
    fs::rename(&log, &old).unwrap();
    proxy.signal("HUP");
    eventually("the reload", || proxy.reloads("success") == 1.0);
    eventually("a line in the new file", || {
        proxy.get("/second");
        fs::read_to_string(&log).is_ok_and(|text| text.contains("/second"))
    });
    // From then on nothing goes to the old file.
    proxy.get("/third");
    eventually("the third line", || fs::read_to_string(&log).is_ok_and(|text| text.contains("/third")));
    assert!(!fs::read_to_string(&old).unwrap().contains("/third"));
}

#[test]
fn a_setting_that_needs_a_restart_says_so() {
    let a = named("a");
    let proxy = Proxy::start_whole(&pool(&[("a", &a)]));
    proxy.rewrite(&format!("workers: 3\n{}", proxy.text()));
    eventually("the reload", || proxy.reloads("success") == 1.0);
    assert_eq!(proxy.admin_get("/api/status").json()["last_reload"]["needs_restart"], serde_json::json!(["workers"]));
}

/// A file that was replaced again while it was being read used to stay out of force.
#[test]
fn the_last_of_many_changes_is_the_one_in_force() {
    let node = named("a");
    let base = pool(&[("a", &node)]);
    let proxy = Proxy::start_whole(&base);
    let answer = |status: u32, more: usize| {
        let routes: String = (0..more).map(|n| format!("  - {{ name: r{n}, path: /r{n}, respond: {{}} }}\n")).collect();
        format!(
            "{}{routes}",
            base.replace("pool: app, hash_on: [uri]", &format!("path: /, respond: {{ status: {status} }}"))
        )
    };
    for round in 0..12u32 {
        // A large one takes a while to read; the small one comes in the middle of that.
        proxy.rewrite(&answer(299, 2000));
        std::thread::sleep(std::time::Duration::from_millis(u64::from(45 + round * 3)));
        let last = 200 + round % 2;
        proxy.rewrite(&answer(last, 0));
        eventually("the last change", || proxy.get("/").status == last as u16);
    }
}

#[test]
fn a_listener_moves_to_all_addresses_in_one_reload() {
    let node = named("a");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let text = |listeners: &str| {
        format!(
            "listeners: [{listeners}]\nadmin: {{ address: \"127.0.0.1:0\" }}\naccess_log: {{ format: \"off\" }}\n{}",
            Proxy::pool(&[node.address], "")
        )
    };
    let one = |address: &str| format!("{{ name: http, address: \"{address}:{port}\" }}");
    let proxy = Proxy::start_whole(&text(&one("127.0.0.1")));
    let reload = |listeners: &str| {
        std::fs::write(proxy.folder().join("ringway.yaml"), text(listeners)).unwrap();
        let answer = proxy.admin_post("/api/reload", "");
        assert_eq!(answer.status, 200, "{answer:?}");
    };
    let get = |address: &str| {
        let address: SocketAddr = format!("{address}:{port}").parse().unwrap();
        Client::connect(address).request("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").status
    };
    let mut kept = Client::connect(format!("127.0.0.1:{port}").parse().unwrap());
    assert_eq!(kept.request("GET / HTTP/1.1\r\nhost: a\r\n\r\n").status, 200);
    reload(&one("0.0.0.0"));
    assert_eq!((get("127.0.0.1"), get("127.0.0.2")), (200, 200));
    assert_eq!(kept.request("GET / HTTP/1.1\r\nhost: a\r\n\r\n").status, 200, "what was open ends well");
    reload(&one("127.0.0.1"));
    assert_eq!(get("127.0.0.1"), 200);
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        eprintln!("skipped: this machine has no IPv6");
        return;
    }
    // Both families, each by a listener of its own, and by one alone.
    let both = format!("{{ name: v4, address: \"0.0.0.0:{port}\" }}, {{ name: v6, address: \"[::]:{port}\" }}");
    for listeners in [both.clone(), one("[::]"), both] {
        reload(&listeners);
        assert_eq!((get("127.0.0.1"), get("[::1]")), (200, 200), "{listeners}");
    }
}

#[test]
fn a_refused_file_leaves_no_series_behind() {
    let node = named("a");
    let proxy = Proxy::start(&Proxy::pool(&[node.address], ""));
    proxy.get("/");
    let series = || proxy.admin_get("/metrics").text().lines().filter(|line| line.contains("refused")).count();
    let file = proxy.folder().join("ringway.yaml");
    let good = std::fs::read_to_string(&file).unwrap();
    // Its last listener cannot be bound: all before it is built by then.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for number in 0..5 {
        let bad = good
            .replace("name: site", &format!("name: refused{number}"))
            .replace("id: n0,", &format!("id: refused{number},"))
            .replace("listeners: [", &format!("listeners: [{{ name: refused, address: \"{taken}\" }}, "));
        assert_ne!(bad, good);
        let _held = std::net::TcpListener::bind(taken).unwrap();
        std::fs::write(&file, bad).unwrap();
        assert_eq!(proxy.admin_post("/api/reload", "").status, 422);
    }
    assert_eq!(series(), 0, "{}", proxy.admin_get("/metrics").text());
}
