//! `upstream` and the addresses of `proxy_pass`: pools, and what decides on a node.

use super::super::draft::{Draft, Node, Pool, host, is_token, node_address, set, slug};
use super::super::units::{nginx_duration, shown_duration};
use super::super::yaml::{Entries, Value, entries};
use super::scope::Scope;
use super::syntax::Directive;
use crate::config::values::RetryOn;
use std::time::Duration;

/// The way in which requests reach a pool.
pub(super) struct Target {
    pub(super) pool: String,
    /// The keys of the route that decide on the node.
    pub(super) route: Entries,
}

/// Returns the pool of a `proxy_pass` or `grpc_pass`, with the settings of its place.
///
/// `authority`: a name of an `upstream`, or a host with a port.
pub(super) fn target(
    draft: &mut Draft,
    upstreams: &[&Directive],
    scope: &Scope<'_>,
    pass: &Directive,
    authority: &str,
    is_secure: bool,
) -> Option<Target> {
    let (mut pool, route) = match upstreams.iter().find(|upstream| upstream.word(0) == authority) {
        Some(upstream) => upstream_pool(draft, upstream),
        None => {
            let port = if is_secure { 443 } else { 80 };
            let address = node_address(authority, port)?;
            let node = Node { id: address.clone(), address, weight: 1, is_down: false };
            let comment = format!("{}: {}", pass.place, pass.shown());
            let name = slug(authority);
            (Pool { comments: vec![comment], name, nodes: vec![node], entries: Vec::new() }, Vec::new())
        }
    };
    pool.entries.extend(timeouts(draft, scope));
    if pass.name == "grpc_pass" {
        pool.entries.push(("protocol".to_owned(), Value::text("http2")));
    }
    if is_secure {
        pool.entries.push(("tls".to_owned(), Value::Map(node_tls(draft, scope, authority, upstreams))));
    }
    pool.entries.extend(retries(draft, scope));
    Some(Target { pool: draft.pool(pool), route })
}

fn upstream_pool(draft: &mut Draft, upstream: &Directive) -> (Pool, Entries) {
    let mut pool = Pool {
        comments: vec![format!("{}: {}", upstream.place, upstream.shown())],
        name: slug(upstream.word(0)),
        nodes: Vec::new(),
        entries: Vec::new(),
    };
    let (mut route, mut failures, mut time, mut at_most) = (Vec::new(), None, None, None);
    for directive in &upstream.block {
        match &*directive.name {
            "server" => {
                let mut node = Node { id: String::new(), address: String::new(), weight: 1, is_down: false };
                let Some(address) = node_address(directive.word(0), 80) else {
                    draft.lose(&directive.place, directive.shown(), "expected an address of a node, with a TCP port");
                    continue;
                };
                (node.id, node.address) = (address.clone(), address);
                for word in &directive.words[1..] {
                    match word.split_once('=').unwrap_or((word, "")) {
                        ("weight", weight) => node.weight = weight.parse().unwrap_or(1).min(1000),
                        ("down", _) => node.is_down = true,
                        ("max_fails", count) => failures = failures.max(count.parse::<u64>().ok()),
                        ("fail_timeout", length) => time = time.max(nginx_duration(length)),
                        ("max_conns", count) => {
                            at_most = at_most.or(count.parse::<u64>().ok().filter(|count| *count > 0))
                        }
                        ("backup", _) => {
                            node.is_down = true;
                            let remark = "Ringway has no nodes that wait for the failure of all others: it is `down`";
                            draft.lose(&directive.place, directive.shown(), remark);
                        }
                        ("resolve", _) => {
                            let remark =
                                "its name is resolved when the file is loaded; `discovery` of a pool follows DNS";
                            draft.differ(&directive.place, directive.shown(), remark);
                        }
                        ("slow_start", length) => {
                            if let Some(length) = nginx_duration(length) {
                                let length = shown_duration(length, Duration::ZERO, Duration::from_secs(86_400));
                                set(&mut pool.entries, "slow_start", Value::plain(length));
                            }
                        }
                        _ => draft.lose(&directive.place, directive.shown(), format!("`{word}` has no counterpart")),
                    }
                }
                pool.nodes.push(node);
            }
            "hash" => hash(draft, directive, &mut route),
            "ip_hash" => route.push(("hash_on".to_owned(), Value::texts(["client_ip"]))),
            "least_conn" | "least_time" => {
                let remark = "nodes are chosen at random by weight, none with more than 1.25 times its share in flight";
                draft.differ(&directive.place, directive.shown(), remark);
                let ring = entries([("bounded_load", Value::plain("1.25"))]);
                pool.entries.push(("ring".to_owned(), Value::Map(ring)));
            }
            "sticky" => sticky(draft, directive, &mut route),
            _ => {}
        }
    }
    if failures.is_some() || time.is_some() {
        let mut ejection = Entries::new();
        if let Some(failures) = failures {
            ejection.push(("consecutive_failures".to_owned(), Value::plain(failures.min(10_000))));
        }
        if let Some(time) = time {
            let time = shown_duration(time, Duration::from_millis(1), Duration::from_secs(300));
            ejection.push(("base_time".to_owned(), Value::plain(time)));
        }
        pool.entries.push(("outlier_ejection".to_owned(), Value::Map(ejection)));
    }
    if let Some(at_most) = at_most {
        let connections = entries([("max_per_node", Value::plain(at_most.min(1_000_000)))]);
        pool.entries.push(("connections".to_owned(), Value::Map(connections)));
    }
    (pool, route)
}

fn hash(draft: &mut Draft, directive: &Directive, route: &mut Entries) {
    match hash_source(directive.word(0)) {
        Some(source) => {
            if directive.word(1) != "consistent" {
                let remark = "Ringway hashes consistently: keys move once, when you change over";
                draft.differ(&directive.place, directive.shown(), remark);
            }
            route.push(("hash_on".to_owned(), Value::texts([source])));
        }
        None => draft.lose(&directive.place, directive.shown(), "no hash source has this value: see `hash_on`"),
    }
}

fn sticky(draft: &mut Draft, directive: &Directive, route: &mut Entries) {
    if directive.word(0) != "cookie" || !is_token(directive.word(1)) {
        draft.lose(
            &directive.place,
            directive.shown(),
            "use `affinity_cookie`, or `hash_on` with the cookie of the nodes",
        );
        return;
    }
    let mut cookie = entries([("name", Value::text(directive.word(1)))]);
    let expires = directive.words.iter().find_map(|word| word.strip_prefix("expires=")).and_then(nginx_duration);
    if let Some(expires) = expires {
        let expires = shown_duration(expires, Duration::from_secs(1), Duration::from_secs(365 * 86_400));
        cookie.push(("ttl".to_owned(), Value::plain(expires)));
    }
    draft.differ(&directive.place, directive.shown(), "Ringway sets a cookie of its own: sessions begin anew");
    route.push(("affinity_cookie".to_owned(), Value::Map(cookie)));
}

/// Returns the hash source of a variable.
pub(super) fn hash_source(variable: &str) -> Option<String> {
    let name = variable.strip_prefix('$')?.trim_start_matches('{').trim_end_matches('}');
    let is_name =
        |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if !is_name(name) {
        return None;
    }
    let named = |prefix: &str| name.strip_prefix(prefix).filter(|rest| is_name(rest));
    Some(match name {
        "remote_addr" | "binary_remote_addr" | "realip_remote_addr" => "client_ip".to_owned(),
        "host" | "http_host" | "server_name" => "host".to_owned(),
        "uri" | "document_uri" => "path".to_owned(),
        "request_uri" => "uri".to_owned(),
        _ => match (named("cookie_"), named("http_"), named("arg_")) {
            (Some(cookie), ..) => format!("cookie:{cookie}"),
            (_, Some(field), _) => format!("header:{}", field.replace('_', "-")),
            (.., Some(parameter)) => format!("query:{parameter}"),
            _ => return None,
        },
    })
}

fn timeouts(draft: &mut Draft, scope: &Scope<'_>) -> Entries {
    let (mut found, hour) = (Entries::new(), Duration::from_secs(3600));
    for (names, keys, most) in [
        (["proxy_connect_timeout", "grpc_connect_timeout"], &["connect"][..], hour),
        (["proxy_read_timeout", "grpc_read_timeout"], &["first_byte", "idle"][..], 24 * hour),
    ] {
        let Some(directive) = scope.all(&names).into_iter().next() else { continue };
        let Some(length) = nginx_duration(directive.word(0)) else {
            draft.lose(&directive.place, directive.shown(), "expected a duration");
            continue;
        };
        let length = shown_duration(length, Duration::ZERO, most);
        found.extend(keys.iter().map(|key| ((*key).to_owned(), Value::plain(&length))));
    }
    if found.is_empty() { found } else { entries([("timeouts", Value::Map(found))]) }
}

fn node_tls(draft: &mut Draft, scope: &Scope<'_>, authority: &str, upstreams: &[&Directive]) -> Entries {
    let mut tls = Entries::new();
    let word = |name: &str| scope.find(name).map(|directive| directive.word(0).to_owned());
    let is_upstream = upstreams.iter().any(|upstream| upstream.word(0) == authority);
    match word("proxy_ssl_name") {
        Some(name) if host(&name).is_some() => tls.push(("server_name".to_owned(), Value::text(name))),
        _ if is_upstream && host(authority).is_some() => {
            tls.push(("server_name".to_owned(), Value::text(authority)));
        }
        _ => {}
    }
    if word("proxy_ssl_verify").as_deref() == Some("on") {
        if let Some(file) = word("proxy_ssl_trusted_certificate") {
            tls.push(("ca_file".to_owned(), Value::text(file)));
        }
    } else {
        // As nginx has it.
        tls.push(("verify".to_owned(), Value::plain("false")));
        if let Some(pass) = scope.all(&["proxy_pass", "grpc_pass"]).first() {
            let remark =
                "certificates of nodes are not verified, as by nginx; `verify: true` is the default of Ringway";
            draft.differ(&pass.place, pass.shown(), remark);
        }
    }
    if let (Some(chain), Some(key)) = (word("proxy_ssl_certificate"), word("proxy_ssl_certificate_key")) {
        let files = entries([("chain_file", Value::text(chain)), ("key_file", Value::text(key))]);
        tls.push(("certificate".to_owned(), Value::Map(files)));
    }
    tls
}

fn retries(draft: &mut Draft, scope: &Scope<'_>) -> Entries {
    let (next, tries) = (scope.find("proxy_next_upstream"), scope.find("proxy_next_upstream_tries"));
    let tries = tries.and_then(|tries| tries.word(0).parse::<u64>().ok()).filter(|tries| *tries > 0);
    let mut retries = Entries::new();
    if let Some(tries) = tries {
        retries.push(("attempts".to_owned(), Value::plain(tries.saturating_sub(1).min(100))));
    }
    if let Some(next) = next {
        if next.words.iter().any(|word| word == "off") {
            return entries([("retries", Value::Map(entries([("attempts", Value::plain(0))])))]);
        }
        let mut on = Vec::new();
        for word in &next.words {
            match &**word {
                "error" => on.extend(["connect_failure".to_owned(), "reset".to_owned()]),
                "timeout" => on.push("timeout".to_owned()),
                "non_idempotent" => {
                    let remark = "Ringway never sends a POST or PATCH again that a node may have received";
                    draft.lose(&next.place, next.shown(), remark);
                }
                word => match word.strip_prefix("http_").filter(|code| RetryOn::parse(code).is_ok()) {
                    Some(code) => on.push(code.to_owned()),
                    None => draft.lose(&next.place, next.shown(), format!("`{word}` is no condition of a retry")),
                },
            }
        }
        retries.push(("on".to_owned(), Value::List(on.into_iter().map(Value::text).collect())));
    }
    if retries.is_empty() { retries } else { entries([("retries", Value::Map(retries))]) }
}
