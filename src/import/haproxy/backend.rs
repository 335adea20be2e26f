//! `backend`: a pool, and what decides on its nodes.

use super::super::draft::{Draft, Node, Pool, host, is_field, is_token, node_address, set, slug};
use super::super::units::haproxy_duration;
use super::super::yaml::{Entries, Value, entries};
use super::syntax::Line;
use super::{Proxy, shown};
use crate::config::values::{DnsName, RetryOn, StatusRange};
use std::time::Duration;

/// A backend as routes use it.
pub(super) struct Target {
    pub(super) pool: String,
    /// The keys of the routes that decide on the node.
    pub(super) route: Entries,
}

/// The settings of a pool that its `server` lines give.
#[derive(Default)]
struct Servers {
    nodes: Vec<Node>,
    /// The keys of a health check besides the request; `None` where no server is checked.
    check: Option<Entries>,
    tls: Option<Entries>,
    is_http2: bool,
    at_most: Option<u64>,
    slow_start: Option<Duration>,
    discovery: Option<String>,
}

/// Returns the pool of a backend.
pub(super) fn target(draft: &mut Draft, backend: &Proxy<'_>) -> Target {
    let mut servers = Servers::default();
    let defaults: Vec<&str> =
        backend.all(&["default-server"]).iter().flat_map(|line| line.from(1)).map(String::as_str).collect();
    for line in &backend.lines {
        match line.word(0) {
            "server" => server(draft, &mut servers, line, &defaults),
            "server-template" => {
                match DnsName::parse(line.word(3)).is_ok() {
                    true => servers.discovery = Some(line.word(3).to_owned()),
                    false => draft.lose(&line.place, line.shown(), "expected a name with a port, or one of a service"),
                }
                options(draft, &mut servers, &mut None, line, &defaults, 4);
            }
            _ => {}
        }
    }
    let mut pool = Pool {
        comments: vec![format!("{}: {}", backend.section.place, backend.section.shown())],
        name: slug(backend.section.name()),
        nodes: servers.nodes,
        entries: Entries::new(),
    };
    let mut add = |key: &str, value: Value| set(&mut pool.entries, key, value);
    if let Some(name) = &servers.discovery {
        add("discovery", Value::Map(entries([("dns", Value::text(name))])));
    }
    if let Some(mut check) = servers.check {
        health_check(draft, backend, &mut check);
        add("health_check", Value::Map(check));
    }
    if let Some(length) = servers.slow_start {
        add("slow_start", shown(length, 86_400));
    }
    if servers.is_http2 {
        add("protocol", Value::text("http2"));
    }
    if let Some(tls) = servers.tls {
        add("tls", Value::Map(tls));
    }
    let mut connections = Entries::new();
    if let Some(count) = servers.at_most.filter(|count| *count > 0) {
        connections.push(("max_per_node".to_owned(), Value::plain(count.min(1_000_000))));
        // Requests wait for a node there; how many is not bounded.
        connections.push(("max_queued".to_owned(), Value::plain(10_000)));
        let wait = backend.timeout("queue").or(backend.timeout("connect"));
        connections.extend(wait.map(|wait| ("queue_timeout".to_owned(), shown(wait, 600))));
    }
    if !connections.is_empty() {
        add("connections", Value::Map(connections));
    }
    let mut timeouts = Entries::new();
    for (name, keys, most) in [
        ("connect", &["connect"][..], 3600),
        ("server", &["first_byte", "idle"][..], 86_400),
        ("tunnel", &["tunnel"][..], 30 * 86_400),
    ] {
        if let Some(length) = backend.timeout(name) {
            timeouts.extend(keys.iter().map(|key| ((*key).to_owned(), shown(length, most))));
        }
    }
    if !timeouts.is_empty() {
        add("timeouts", Value::Map(timeouts));
    }
    let retries = retries(draft, backend);
    if !retries.is_empty() {
        add("retries", Value::Map(retries));
    }
    let route = stickiness(draft, backend, &mut pool.entries);
    Target { pool: draft.pool(pool), route }
}

fn server(draft: &mut Draft, servers: &mut Servers, line: &Line, defaults: &[&str]) {
    let Some(address) = node_address(line.word(2), 80).filter(|_| line.word(2).contains(':')) else {
        draft.lose(&line.place, line.shown(), "expected an address of a node, with a TCP port");
        return;
    };
    let id = if is_token(line.word(1)) { line.word(1).to_owned() } else { slug(line.word(1)) };
    let mut node = Some(Node { id, address, weight: 1, is_down: false });
    options(draft, servers, &mut node, line, defaults, 3);
    servers.nodes.extend(node);
}

/// Reads the options of a `server` line; those of `default-server` stand before its own.
fn options(
    draft: &mut Draft,
    servers: &mut Servers,
    node: &mut Option<Node>,
    line: &Line,
    defaults: &[&str],
    from: usize,
) {
    let own = line.from(from).iter().map(String::as_str);
    let mut words = defaults.iter().copied().chain(own);
    let (mut is_secure, mut tls, mut check, mut is_checked) = (false, Entries::new(), Entries::new(), false);
    let duration = |text: Option<&str>| text.and_then(haproxy_duration);
    while let Some(word) = words.next() {
        match word {
            "check" => is_checked = true,
            "no-check" => is_checked = false,
            "ssl" => is_secure = true,
            "no-ssl" => is_secure = false,
            "weight" => {
                let weight = words.next().and_then(|weight| weight.parse::<u64>().ok());
                node.iter_mut().for_each(|node| node.weight = weight.unwrap_or(1).min(1000));
            }
            "disabled" => node.iter_mut().for_each(|node| node.is_down = true),
            "backup" => {
                node.iter_mut().for_each(|node| node.is_down = true);
                let remark = "Ringway has no nodes that wait for the failure of all others: it is `down`";
                draft.lose(&line.place, line.shown(), remark);
            }
            "inter" => check.extend(
                duration(words.next())
                    .map(|length| ("interval".to_owned(), shown(length.max(Duration::from_millis(10)), 3600))),
            ),
            "rise" => check.extend(count(words.next()).map(|count| ("healthy_after".to_owned(), count))),
            "fall" => check.extend(count(words.next()).map(|count| ("unhealthy_after".to_owned(), count))),
            "port" => check.extend(
                words
                    .next()
                    .and_then(|port| port.parse::<u16>().ok())
                    .map(|port| ("port".to_owned(), Value::plain(port))),
            ),
            "maxconn" => servers.at_most = servers.at_most.max(words.next().and_then(|count| count.parse().ok())),
            "slowstart" => servers.slow_start = servers.slow_start.max(duration(words.next())),
            "proto" => servers.is_http2 |= words.next() == Some("h2"),
            "alpn" => servers.is_http2 |= words.next().is_some_and(|names| names.split(',').next() == Some("h2")),
            "ca-file" => match words.next() {
                Some("@system-ca") | None => {}
                Some(file) => set(&mut tls, "ca_file", Value::text(file)),
            },
            "verifyhost" => tls.extend(words.next().map(|name| ("server_name".to_owned(), Value::text(name)))),
            "sni" => match words.next().and_then(|name| host(name.strip_prefix("str(")?.strip_suffix(')')?)) {
                Some(name) => set(&mut tls, "server_name", Value::text(name)),
                None => draft.lose(
                    &line.place,
                    line.shown(),
                    "`tls.server_name` is a fixed name, by default the node's host",
                ),
            },
            "crt" => {
                if let Some(file) = words.next() {
                    let files = entries([("chain_file", Value::text(file)), ("key_file", Value::text(file))]);
                    set(&mut tls, "certificate", Value::Map(files));
                }
            }
            "verify" => {
                let is_off = words.next() == Some("none");
                if is_off {
                    set(&mut tls, "verify", Value::plain("false"));
                    draft.differ(&line.place, line.shown(), "certificates of nodes are not verified, as before");
                }
            }
            "send-proxy" | "send-proxy-v2" | "send-proxy-v2-ssl" | "send-proxy-v2-ssl-cn" => {
                draft.lose(&line.place, line.shown(), "nodes get the client's address in X-Forwarded-For");
            }
            "cookie" | "fastinter" | "downinter" | "resolvers" | "init-addr" | "resolve-prefer" | "on-marked-down"
            | "on-marked-up" | "observe" | "error-limit" | "on-error" | "pool-max-conn" | "pool-purge-delay"
            | "minconn" | "maxqueue" | "id" | "track" | "agent-port" | "agent-inter" | "agent-addr" | "check-sni"
            | "check-alpn" | "check-proto" | "addr" | "ciphers" | "ciphersuites" | "ssl-min-ver" | "ssl-max-ver"
            | "resolve-opts" | "resolve-net" | "tcp-ut" | "source" | "log-proto" | "pool-low-conn" => {
                words.next();
            }
            // Options without a value that need no counterpart: `check-ssl`, `init-state`, `enabled`, ...
            _ => {}
        }
    }
    if is_checked {
        let all = servers.check.get_or_insert_default();
        check.into_iter().for_each(|(key, value)| set(all, &key, value));
    }
    if is_secure {
        let all = servers.tls.get_or_insert_default();
        tls.into_iter().for_each(|(key, value)| set(all, &key, value));
    }
}

/// Returns a number of checks.
fn count(word: Option<&str>) -> Option<Value> {
    word.and_then(|word| word.parse::<u64>().ok()).map(|count| Value::plain(count.clamp(1, 100)))
}

/// Adds the request of the health checks.
fn health_check(draft: &mut Draft, backend: &Proxy<'_>, check: &mut Entries) {
    if !backend.has_option("httpchk") {
        check.insert(0, ("kind".to_owned(), Value::text("tcp")));
        return;
    }
    let line = backend.find(&["option", "httpchk"]);
    let words = line.map_or(&[][..], |line| line.from(2));
    // `option httpchk URI`, or `option httpchk METHOD URI VERSION`.
    let uri = words.get(usize::from(words.len() > 1)).map(String::as_str);
    let send = backend.find(&["http-check", "send"]);
    let uri = send.and_then(|send| send.after("uri")).or(uri).unwrap_or("/");
    let method =
        send.and_then(|send| send.after("meth")).or(words.first().filter(|_| words.len() > 1).map(|word| &**word));
    if let (Some(method), Some(line)) = (method.filter(|method| *method != "GET"), send.or(line)) {
        draft.differ(&line.place, line.shown(), format!("the check is a GET, not {method}"));
    }
    match uri.starts_with('/') && uri.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => check.insert(0, ("path".to_owned(), Value::text(uri))),
        false => check.insert(0, ("path".to_owned(), Value::text("/"))),
    }
    let host = send.and_then(|send| {
        let at = send.words.windows(3).position(|words| words[0] == "hdr" && words[1].eq_ignore_ascii_case("host"))?;
        Some(send.word(at + 2))
    });
    if let Some(host) = host.filter(|host| is_field("host", host) && !host.contains('%')) {
        check.push(("host".to_owned(), Value::text(host)));
    }
    for line in backend.all(&["http-check", "expect"]) {
        match (line.word(2), line.word(3)) {
            ("status", statuses) if statuses.split(',').all(|status| StatusRange::parse(status).is_ok()) => {
                set(check, "expect_status", Value::texts(statuses.split(',')));
            }
            ("string", text) if !text.is_empty() => set(check, "expect_body", Value::text(text)),
            _ => draft.lose(&line.place, line.shown(), "a check has `expect_status` and `expect_body`"),
        }
    }
    if let Some(length) = backend.timeout("check") {
        check.push(("timeout".to_owned(), shown(length, 600)));
    }
}

fn retries(draft: &mut Draft, backend: &Proxy<'_>) -> Entries {
    let mut retries = Entries::new();
    if let Some(count) = backend.find(&["retries"]).and_then(|line| line.word(1).parse::<u64>().ok()) {
        retries.push(("attempts".to_owned(), Value::plain(count.min(100))));
    }
    let mut on = vec!["connect_failure".to_owned()];
    if let Some(line) = backend.find(&["retry-on"]) {
        for word in line.from(1) {
            match &**word {
                "conn-failure" => {}
                "empty-response" | "junk-response" => on.push("reset".to_owned()),
                "response-timeout" => on.push("timeout".to_owned()),
                "all-retryable-errors" => {
                    on.extend(["reset", "timeout", "500", "502", "503", "504"].map(str::to_owned))
                }
                "none" => return entries([("attempts", Value::plain(0))]),
                code if RetryOn::parse(code).is_ok() => on.push(code.to_owned()),
                _ => draft.lose(&line.place, line.shown(), format!("`{word}` is no condition of a retry")),
            }
        }
    }
    if !retries.is_empty() || on.len() > 1 {
        on.dedup();
        retries.push(("on".to_owned(), Value::List(on.into_iter().map(Value::text).collect())));
    }
    retries
}

/// Returns the keys of a route that decide on the node.
fn stickiness(draft: &mut Draft, backend: &Proxy<'_>, pool: &mut Entries) -> Entries {
    let mut route = Entries::new();
    if let Some(line) = backend.find(&["balance"]) {
        let argument = line.word(1).split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
        let source = match line.word(1).split('(').next().unwrap_or_default() {
            "source" => Some("client_ip".to_owned()),
            "uri" if line.has("whole") => Some("uri".to_owned()),
            "uri" => Some("path".to_owned()),
            "url_param" => Some(line.word(2)).filter(|name| is_token(name)).map(|name| format!("query:{name}")),
            "hdr" => argument.filter(|name| is_token(name)).map(|name| match name.eq_ignore_ascii_case("host") {
                true => "host".to_owned(),
                false => format!("header:{name}"),
            }),
            "hash" => hash_source(line.word(2)),
            "leastconn" => {
                let remark = "nodes are chosen at random by weight, none with more than 1.25 times its share in flight";
                draft.differ(&line.place, line.shown(), remark);
                set(pool, "ring", Value::Map(entries([("bounded_load", Value::plain("1.25"))])));
                None
            }
            _ => None,
        };
        let is_even = matches!(line.word(1), "roundrobin" | "static-rr" | "leastconn" | "first" | "random")
            || line.word(1).starts_with("random(");
        match source {
            Some(source) => route.push(("hash_on".to_owned(), Value::texts([source]))),
            None if is_even => {}
            None => draft.lose(&line.place, line.shown(), "no hash source has this value: see `hash_on`"),
        }
    }
    if let Some(line) = backend.find(&["hash-type"]).filter(|line| line.word(1) == "map-based") {
        draft.differ(&line.place, line.shown(), "Ringway hashes consistently: keys move once, when you change over");
    }
    for line in backend.lines.iter().filter(|line| line.word(0) == "stick") {
        match (line.word(1), hash_source(line.word(2))) {
            ("on" | "match", Some(source)) => set(&mut route, "hash_on", Value::texts([source])),
            _ => draft.lose(
                &line.place,
                line.shown(),
                "use `hash_on` or `affinity_cookie`: sessions are kept in no table",
            ),
        }
    }
    if let Some(line) = backend.find(&["cookie"]) {
        if line.has("prefix") || line.has("rewrite") || !is_token(line.word(1)) {
            draft.lose(&line.place, line.shown(), "use `affinity_cookie`, or `hash_on` with the cookie of the nodes");
        } else {
            let mut cookie = entries([("name", Value::text(line.word(1)))]);
            let life = line.after("maxlife").or(line.after("maxidle")).and_then(haproxy_duration);
            cookie.extend(life.map(|life| ("ttl".to_owned(), shown(life.max(Duration::from_secs(1)), 365 * 86_400))));
            draft.differ(&line.place, line.shown(), "Ringway sets a cookie of its own: sessions begin anew");
            route.push(("affinity_cookie".to_owned(), Value::Map(cookie)));
        }
    }
    route
}

/// Returns the hash source of a sample.
fn hash_source(sample: &str) -> Option<String> {
    let sample = sample.split(',').next()?;
    let (name, argument) = match sample.split_once('(') {
        Some((name, argument)) => (name, argument.strip_suffix(')')?),
        None => (sample, ""),
    };
    let is_token = !argument.is_empty()
        && argument.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    Some(match name {
        "src" => "client_ip".to_owned(),
        "path" => "path".to_owned(),
        "pathq" | "url" => "uri".to_owned(),
        "req.cook" | "cookie" | "cook" if is_token => format!("cookie:{argument}"),
        "req.hdr" | "hdr" | "req.fhdr" if argument.eq_ignore_ascii_case("host") => "host".to_owned(),
        "req.hdr" | "hdr" | "req.fhdr" if is_token => format!("header:{argument}"),
        "url_param" | "urlp" if is_token => format!("query:{argument}"),
        _ => return None,
    })
}
