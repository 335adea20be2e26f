//! Metrics, the access log, the admin listener and the metrics listener.

use crate::support::{Client, Origin, Proxy, eventually, have};
use std::io::Write;
use std::process::{Command, Stdio};

#[test]
fn requests_are_counted_where_they_went() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    let mut client = proxy.connect();
    for _ in 0..3 {
        client.request("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello");
    }
    client.request("BREW / HTTP/1.1\r\nhost: a\r\n\r\n");
    for (series, value) in [
        ("ringway_requests_total{code=\"200\",method=\"POST\",route=\"site\"}", 3.0),
        ("ringway_requests_total{code=\"200\",method=\"OTHER\",route=\"site\"}", 1.0),
        ("ringway_request_duration_seconds_count{route=\"site\"}", 4.0),
        ("ringway_requests_in_flight", 0.0),
        ("ringway_connections{listener=\"http\"}", 1.0),
        ("ringway_connections_total{listener=\"http\"}", 1.0),
        ("ringway_request_bytes_total", 15.0),
        ("ringway_upstream_requests_total{node=\"n0\",outcome=\"answer\",pool=\"app\"}", 4.0),
        ("ringway_upstream_duration_seconds_count{node=\"n0\",pool=\"app\"}", 4.0),
        ("ringway_upstream_connections{node=\"n0\",pool=\"app\",state=\"active\"}", 0.0),
        ("ringway_upstream_connections{node=\"n0\",pool=\"app\",state=\"idle\"}", 1.0),
        ("ringway_node_in_flight{node=\"n0\",pool=\"app\"}", 0.0),
        ("ringway_ring_share_ratio{node=\"n0\",pool=\"app\"}", 1.0),
        (concat!("ringway_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}"), 1.0),
    ] {
        assert_eq!(proxy.metric(series), value, "{series}\n{}", proxy.admin_get("/metrics").text());
    }
    assert!(proxy.metric("ringway_response_bytes_total") > 0.0);
}

#[test]
fn promtool_accepts_the_metrics() {
    if !have("promtool", "prometheus") {
        return;
    }
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    proxy.get("/");
    proxy.connect().request("G@T / HTTP/1.1\r\n\r\n");
    let page = proxy.admin_get("/metrics").body;
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    promtool.stdin.take().unwrap().write_all(&page).unwrap();
    let checked = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&checked.stdout).into_owned() + &String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success() && said.trim().is_empty(), "{said}");
}

fn log_lines(proxy: &Proxy, count: usize) -> Vec<String> {
    eventually("the log lines", || proxy.output().lines().count() >= count);
    proxy.output().lines().map(str::to_owned).collect()
}

#[test]
fn the_json_log_tells_each_request() {
    let node = Origin::echo();
    let proxy = Proxy::start(&format!("access_log: {{ format: json }}\n{}", Proxy::pool(&[node.address], "")));
    let mut client = proxy.connect();
    client.request(
        "POST /a?b=%22 HTTP/1.1\r\nhost: shop.example\r\nuser-agent: test \"1\"\r\ncontent-length: 2\r\n\r\nhi",
    );
    client.request("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n");
    let lines: Vec<serde_json::Value> =
        log_lines(&proxy, 2).iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let first = &lines[0];
    for (key, value) in [
        ("listener", "http"),
        ("client", "127.0.0.1"),
        ("method", "POST"),
        ("host", "shop.example"),
        ("uri", "/a?b=%22"),
        ("protocol", "HTTP/1.1"),
        ("route", "site"),
        ("pool", "app"),
        ("node", "n0"),
        ("user_agent", "test \"1\""),
        ("ended_by", "completed"),
    ] {
        assert_eq!(first[key], value, "{key} in {first}");
    }
    assert_eq!((&first["status"], &first["request_bytes"], &first["attempts"]), (&200.into(), &2.into(), &1.into()));
    for timer in ["duration", "connect", "first_byte"] {
        assert!(first[timer].as_f64().is_some_and(|seconds| (0.0..10.0).contains(&seconds)), "{timer} in {first}");
    }
    assert_eq!(first["request_id"].as_str().unwrap().len(), 32);
    assert_eq!((&lines[1]["status"], &lines[1]["error"]), (&400.into(), &"bad-host".into()));
}

#[test]
fn the_log_says_who_ended_a_request() {
    let node = Origin::by_connection(|peer| {
        let Some(head) = peer.request() else { return };
        if head.contains("/cut") {
            peer.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\ncut");
        } else {
            peer.client.has_ended();
        }
    });
    let proxy =
        Proxy::start(&format!("workers: 1\naccess_log: {{ format: json }}\n{}", Proxy::pool(&[node.address], "")));
    proxy.connect().request("GET /cut HTTP/1.1\r\nhost: a\r\n\r\n");
    let mut leaver = proxy.connect();
    leaver.send("GET /hang HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("the request", || node.requests().len() == 2);
    drop(leaver);
    let lines: Vec<serde_json::Value> =
        log_lines(&proxy, 2).iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&lines[0]["ended_by"], &lines[0]["status"]), (&"upstream".into(), &200.into()));
    assert_eq!((&lines[1]["ended_by"], &lines[1]["status"]), (&"client".into(), &499.into()));
}

#[test]
fn the_common_log_goes_to_a_file() {
    let node = Origin::echo();
    let proxy = Proxy::start(&format!(
        "access_log: {{ format: common, path: access.log }}\n{}",
        Proxy::pool(&[node.address], "")
    ));
    assert_eq!(proxy.get("/x").status, 200);
    let file = proxy.folder().join("access.log");
    eventually("the line", || std::fs::read_to_string(&file).is_ok_and(|text| text.contains('\n')));
    let line = std::fs::read_to_string(&file).unwrap();
    assert!(line.starts_with("127.0.0.1 - - [") && line.contains("\"GET /x HTTP/1.1\" 200 "), "{line}");
}

#[test]
fn the_admin_listener_tells_what_runs() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    assert_eq!((proxy.admin_get("/livez").status, proxy.admin_get("/readyz").status), (200, 200));
    let status = proxy.admin_get("/api/status").json();
    assert_eq!((&status["version"], &status["ready"]), (&env!("CARGO_PKG_VERSION").into(), &true.into()));
    assert_eq!(status["listeners"][0]["address"], proxy.address.to_string());
    let config = proxy.admin_get("/api/config").json();
    assert_eq!(config["limits"]["header_timeout"], "10s");
    let pools = proxy.admin_get("/api/pools").json();
    let shown = &pools[0]["nodes"][0];
    assert_eq!((&shown["id"], &shown["state"], &shown["share"]), (&"n0".into(), &"up".into(), &1.0.into()));
    assert_eq!(proxy.admin_get("/api/nothing").status, 404);
    assert_eq!(proxy.admin_get("/api/pools/none/ring?key=k").status, 404);
    assert_eq!(proxy.admin_get("/api/pools/app/ring").status, 400);
    // An order for one proxy is not taken for one to all.
    for path in ["/api/drain?scope=fleet", "/api/reload?scope=fleet", "/api/reload?scope=all"] {
        assert_eq!(proxy.admin_post(path, "").status, 400, "{path}");
    }
    assert_eq!(proxy.admin_get("/api/status").json()["draining"], false);
}

#[test]
fn the_admin_listener_refuses_strangers() {
    let node = Origin::echo();
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "correct-horse-battery\n").unwrap();
    let text = Proxy::pool(&[node.address], "");
    let proxy = Proxy::start_whole(&format!(
        "listeners: [{{ name: http, address: \"127.0.0.1:0\" }}]\naccess_log: {{ format: \"off\" }}\nadmin: {{ address: \"127.0.0.1:0\", token_file: {}, allowed_hosts: [edge.internal] }}\n{text}",
        token.display()
    ));
    let status = |lines: &str| {
        Client::connect(proxy.admin)
            .request(format!("GET /api/status HTTP/1.1\r\nconnection: close\r\n{lines}\r\n"))
            .status
    };
    let good = "authorization: Bearer correct-horse-battery\r\n";
    assert_eq!(status(&format!("host: localhost\r\n{good}")), 200);
    assert_eq!(status(&format!("host: edge.internal:9900\r\n{good}")), 200);
    assert_eq!(status("host: localhost\r\n"), 401);
    assert_eq!(status("host: localhost\r\nauthorization: Bearer wrong\r\n"), 401);
    assert_eq!(status(&format!("host: rebound.evil.example\r\n{good}")), 421);
    assert_eq!(status(&format!("host: localhost\r\norigin: https://evil.example\r\n{good}")), 403);
    assert_eq!(proxy.admin_get("/readyz").status, 200);
    assert_eq!(proxy.admin_get("/metrics").status, 401);
    // The token stands nowhere but in its file.
    for path in ["/api/config", "/api/status", "/metrics"] {
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{good}\r\n");
        let told = Client::connect(proxy.admin).request(request);
        assert!(told.status == 200 && !told.text().contains("correct-horse"), "{told:?}");
    }
    assert!(!proxy.log().contains("correct-horse"));
}

#[test]
fn the_metrics_listener_is_read_only() {
    let node = Origin::echo();
    let proxy = Proxy::start(&format!("metrics: {{ address: \"127.0.0.1:0\" }}\n{}", Proxy::pool(&[node.address], "")));
    proxy.logs("metrics and probes");
    let log = proxy.log();
    let line = log.lines().find(|line| line.contains("metrics and probes")).unwrap();
    let address = line.split("address=").nth(1).unwrap().trim().parse().unwrap();
    let get = |path: &str| {
        Client::connect(address)
            .request(format!("GET {path} HTTP/1.1\r\nhost: anything\r\nconnection: close\r\n\r\n"))
            .status
    };
    assert_eq!(
        ["/metrics", "/livez", "/readyz", "/api/status", "/api/config", "/"].map(get),
        [200, 200, 200, 404, 404, 404]
    );
}

/// One pool's outage is no reason for load balancers to turn all traffic away.
#[test]
fn a_proxy_with_one_usable_pool_is_ready() {
    let node = Origin::echo();
    let proxy = Proxy::start(&format!(
        "pools: {{ good: {{ nodes: [{{ id: a, address: \"{}\" }}] }}, bad: {{ nodes: [{{ id: b, address: \"127.0.0.1:1\", state: down }}] }} }}\nroutes:\n  - {{ name: bad, path_prefix: /bad, pool: bad }}\n  - {{ name: good, pool: good }}\n",
        node.address
    ));
    assert_eq!([proxy.get("/bad").status, proxy.get("/").status, proxy.admin_get("/readyz").status], [503, 200, 200]);
}

#[test]
fn an_answer_to_a_head_is_complete_whoever_gives_it() {
    let node = Origin::echo();
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let text = Proxy::pool(&[node.address], "").replace("pools:\n", &format!("pools:\n  dead: {{ nodes: [{{ id: d, address: \"{dead}\" }}] }}\n")).replace(
        "routes:\n",
        "routes:\n  - { name: fixed, path: /fixed, respond: { body: hello } }\n  - { name: dead, path: /dead, pool: dead }\n",
    );
    let proxy = Proxy::start(&format!("access_log: {{ format: json }}\n{text}"));
    for (path, status) in [("/fixed", 200), ("/dead", 502), ("/", 200)] {
        let mut client = proxy.connect();
        client.send(format!("HEAD {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"));
        assert_eq!(client.answer_to_head().status, status);
    }
    for line in log_lines(&proxy, 3) {
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(line["ended_by"], "completed", "{line}");
    }
}

#[test]
fn every_attempt_and_every_request_counts_once_and_has_a_duration() {
    let node = Origin::by_connection(|peer| {
        while let Some(head) = peer.request() {
            match head.contains("/stalls") {
                true => {
                    peer.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf");
                    peer.client.has_ended();
                }
                false => peer.answer("whole"),
            }
        }
    });
    let proxy = Proxy::start(&Proxy::pool(&[node.address], "    timeouts: { idle: 200ms }\n"));
    assert!(proxy.get("/stalls").truncated);
    assert_eq!(proxy.get("/whole").text(), "whole");
    // It cannot be read.
    assert_eq!(proxy.connect().request("G\u{1}T / HTTP/1.1\r\n\r\n").status, 400);
    eventually("all requests to be counted", || proxy.metric("ringway_requests_in_flight") == 0.0);
    let attempts = |outcome: &str| {
        proxy.metric(&format!("ringway_upstream_requests_total{{node=\"n0\",outcome=\"{outcome}\",pool=\"app\"}}"))
    };
    assert_eq!((attempts("answer"), attempts("stalled")), (1.0, 1.0));
    assert_eq!(proxy.metric("ringway_upstream_duration_seconds_count{node=\"n0\",pool=\"app\"}"), 2.0);
    let page = proxy.admin_get("/metrics").text();
    let sum = |family: &str| -> f64 {
        let lines = page.lines().filter(|line| line.starts_with(family));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    };
    assert_eq!(sum("ringway_requests_total{"), 3.0);
    assert_eq!(sum("ringway_request_duration_seconds_count{"), 3.0);
}

#[test]
fn nodes_whose_ids_need_spelling_can_be_addressed() {
    let node = Origin::echo();
    for id in ["a/b", "a?b", "a#b", "a<b", "a%2Fb"] {
        let proxy = Proxy::start(&Proxy::pool(&[node.address], "").replace("id: n0", &format!("id: \"{id}\"")));
        let admin = format!("http://{}", proxy.admin);
        let done = std::process::Command::new(env!("CARGO_BIN_EXE_ringway"))
            .args(["node", "app", id, "drain", "--admin", &admin])
            .output()
            .unwrap();
        assert!(done.status.success(), "{id}: {done:?}");
        assert_eq!(proxy.node(id)["state"], "drain", "{id}");
    }
}

/// The chosen fields in their order, for the routes that have a log; a sample keeps what went wrong.
#[test]
fn the_log_can_be_smaller() {
    let node = Origin::several(1).remove(0);
    let routes = "routes:\n  - { name: quiet, path_prefix: /quiet, pool: app, access_log: false }\n";
    let text = Proxy::pool(&[node.address], "").replace("routes:\n", routes);
    let log = "access_log: { fields: [status, uri, error], sample: 0%, slow: 1h }\n";
    let proxy = Proxy::start(&format!("{log}{text}"));
    for path in ["/well", "/quiet", "/well"] {
        proxy.get(path);
    }
    proxy.send("TRACE", "/refused", "");
    node.does(crate::support::Does::Answer(500));
    proxy.get("/quiet/ill");
    proxy.get("/ill");
    let mut lines = log_lines(&proxy, 2);
    // Each worker writes its own lines, in its own time.
    lines.sort_unstable();
    let expected = [
        r#"{"status":405,"uri":"/refused","error":"method-not-allowed"}"#,
        r#"{"status":500,"uri":"/ill","error":null}"#,
    ];
    assert_eq!(lines, expected);
}
