//! What client, node, access log and metrics tell of the same requests is the same, to the request and the byte.

use crate::support::{Client, Origin, Proxy, eventually};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

const CLIENTS: usize = 4;
const REQUESTS: usize = 120;

/// What a client has seen of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    status: u16,
    sent: usize,
    received: usize,
    is_whole: bool,
}

/// What the node does with a request, by the first segment of its path.
const DEEDS: [&str; 6] = ["whole", "chunked", "error", "cut", "reset", "none"];

fn node(received: &Arc<Mutex<HashMap<String, usize>>>) -> Origin {
    let received = Arc::clone(received);
    Origin::by_connection(move |peer| {
        while let Some(head) = peer.request() {
            let body = peer.body_of(&head);
            let path = head.split(' ').nth(1).unwrap().to_owned();
            received.lock().unwrap().insert(path.clone(), body.len());
            let size: usize = path.rsplit('/').next().unwrap().parse().unwrap();
            let text = "x".repeat(size);
            match path.split('/').nth(1).unwrap() {
                "whole" => peer.answer(&text),
                "chunked" => peer.send(format!(
                    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{size:x}\r\n{text}\r\n0\r\n\r\n"
                )),
                "error" => peer.reply(503, "", &text),
                "cut" => {
                    peer.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", size + 10));
                    return;
                }
                "reset" => return peer.reset(),
                _ => peer.reply(204, "", ""),
            }
        }
    })
}

#[test]
fn client_node_log_and_metrics_agree_under_faults() {
    let received: Arc<Mutex<HashMap<String, usize>>> = Arc::default();
    let node = node(&received);
    // Each attempt reaches the node, on a connection of its own.
    let pool = "    connections: { max_idle_per_node: 0 }\n    outlier_ejection: { consecutive_failures: 0 }\n";
    let proxy = Proxy::start(&format!("access_log: {{ format: json }}\n{}", Proxy::pool(&[node.address], pool)));
    let ask = |client: usize| -> HashMap<String, Seen> {
        let mut random = fastrand::Rng::with_seed(client as u64);
        let one = |number: usize| {
            let (deed, size) = (DEEDS[random.usize(..DEEDS.len())], random.usize(1..70_000));
            let path = format!("/{deed}/{client}-{number}/{size}");
            let body = "y".repeat(if random.bool() { random.usize(..5_000) } else { 0 });
            let method = if body.is_empty() { "GET" } else { "POST" };
            let answer = Client::connect(proxy.address).request(format!(
                "{method} {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            ));
            let received = answer.body.len();
            (path, Seen { status: answer.status, sent: body.len(), received, is_whole: !answer.truncated })
        };
        (0..REQUESTS).map(one).collect()
    };
    let seen: HashMap<String, Seen> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|client| scope.spawn(move || ask(client))).collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    assert_eq!(seen.len(), CLIENTS * REQUESTS);
    eventually("all lines", || proxy.output().lines().count() == seen.len());
    let lines: Vec<serde_json::Value> =
        proxy.output().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (mut attempts, mut by_code) = (0, HashMap::<u64, u64>::new());
    for line in &lines {
        let seen = &seen[line["uri"].as_str().unwrap()];
        let told = Seen {
            status: line["status"].as_u64().unwrap() as u16,
            sent: line["request_bytes"].as_u64().unwrap() as usize,
            received: line["response_bytes"].as_u64().unwrap() as usize,
            is_whole: line["ended_by"] == "completed",
        };
        assert_eq!(told, *seen, "{line}");
        attempts += line["attempts"].as_u64().unwrap();
        *by_code.entry(line["status"].as_u64().unwrap()).or_default() += 1;
    }
    // The node has seen each attempt, and each body.
    assert_eq!(node.requests().len() as u64, attempts);
    for (path, length) in &*received.lock().unwrap() {
        assert_eq!(seen[path].sent, *length, "{path}");
    }
    // So have the metrics.
    let page = proxy.admin_get("/metrics").text();
    let sum = |family: &str, part: &str| -> u64 {
        let lines = page.lines().filter(|line| line.starts_with(family) && line.contains(part));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64).sum()
    };
    for (code, count) in by_code {
        assert_eq!(sum("ringway_requests_total{", &format!("code=\"{code}\"")), count, "{code}");
    }
    assert_eq!(sum("ringway_request_duration_seconds_count{", ""), seen.len() as u64);
    assert_eq!(sum("ringway_upstream_requests_total{", ""), attempts);
    assert_eq!(sum("ringway_request_bytes_total ", ""), seen.values().map(|seen| seen.sent as u64).sum::<u64>());
    assert_eq!(sum("ringway_response_bytes_total ", ""), seen.values().map(|seen| seen.received as u64).sum::<u64>());
    assert_eq!(sum("ringway_requests_in_flight ", "") + sum("ringway_node_in_flight{", ""), 0);
}
