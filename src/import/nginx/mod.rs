//! An nginx configuration as a Ringway file.
//!
//! Blocks become: `upstream` a pool (`upstream`), `server` listeners and hosts (`server`), `location` a route
//! (`location`, with `return` and `if` in `answer`) with its fields, cache and limits (`rules`).
//! `directives` has the treatment of every directive.

mod answer;
mod directives;
mod location;
mod rules;
mod scope;
mod server;
mod syntax;
mod upstream;

use super::draft::{Draft, is_network};
use super::units::{nginx_duration, shown_duration, shown_size, size};
use super::yaml::{Value, entries};
use super::{Files, Import, ImportError, Place};
use directives::{Treatment, treatment};
use scope::Scope;
use std::path::Path;
use std::time::Duration;
use syntax::Directive;

pub(crate) use syntax::AS_IN_A_SHELL;

/// Translates an nginx configuration, or what `nginx -T` prints.
///
/// A file without an `http` block, like those of `sites-enabled`, counts as the content of one.
///
/// # Errors
///
/// The first place that cannot be parsed, or an included file that cannot be read.
pub(crate) fn import(file: &Path, text: &str, files: &dyn Files) -> Result<Import, ImportError> {
    let main = syntax::parse(file, text, files)?;
    let mut draft = Draft::default();
    let blocks: Vec<&[Directive]> = match main.iter().any(|directive| directive.name == "http") {
        true => main.iter().filter(|directive| directive.name == "http").map(|http| &*http.block).collect(),
        false => vec![&main],
    };
    if let Some(count) = main.iter().find(|directive| directive.name == "worker_processes") {
        draft.workers = count.word(0).parse().ok().filter(|count| (1..=1024).contains(count));
    }
    let mut servers: Vec<(Scope<'_>, &Directive)> = Vec::new();
    for block in &blocks {
        let scope = Scope::new(block);
        process(&mut draft, &scope);
        let own = block.iter().filter(|directive| directive.name == "server");
        servers.extend(own.map(|server| (scope.inner(&server.block), server)));
    }
    if servers.is_empty() {
        let place = Place { file: file.display().to_string().into(), line: 1 };
        return Err(ImportError { place, message: "there is no `server` block to translate".to_owned() });
    }
    let of_name = |name: &'static str| {
        let all = blocks.iter().flat_map(|block| block.iter());
        all.filter(move |directive| directive.name == name).collect::<Vec<_>>()
    };
    let shared = Shared {
        upstreams: of_name("upstream"),
        request_zones: of_name("limit_req_zone"),
        connection_zones: of_name("limit_conn_zone"),
    };
    server::translate(&mut draft, &shared, &servers);
    list_untranslated(&mut draft, &main);
    Ok(draft.finish(&format!("the nginx configuration {}", file.display())))
}

/// The blocks and zones that servers name.
struct Shared<'a> {
    upstreams: Vec<&'a Directive>,
    request_zones: Vec<&'a Directive>,
    connection_zones: Vec<&'a Directive>,
}

/// Lists every directive without a counterpart.
fn list_untranslated(draft: &mut Draft, block: &[Directive]) {
    for directive in block {
        match treatment(&directive.name) {
            Treatment::Lost(remark) if !is_upgrade_map(directive) => {
                draft.lose(&directive.place, directive.shown(), remark);
            }
            Treatment::Translated
                if matches!(&*directive.name, "http" | "server" | "location" | "if" | "limit_except") =>
            {
                list_untranslated(draft, &directive.block);
            }
            _ => {}
        }
    }
}

/// Returns whether a `map` is the usual one for WebSocket, which needs no counterpart.
fn is_upgrade_map(directive: &Directive) -> bool {
    directive.name == "map" && directive.word(0) == "$http_upgrade"
}

/// Translates what holds for the whole process: limits, trusted proxies, the access log.
fn process(draft: &mut Draft, http: &Scope<'_>) {
    let mut blocks = vec![http.own()];
    let servers = http.own().iter().filter(|directive| directive.name == "server");
    for server in servers {
        blocks.push(&server.block);
        let locations = server.block.iter().filter(|directive| directive.name == "location");
        blocks.extend(locations.map(|location| &*location.block));
    }
    let all = |name: &'static str| blocks.iter().flat_map(|block| block.iter()).filter(move |found| found.name == name);
    for (name, key, most) in [
        ("client_header_timeout", "header_timeout", 3600),
        ("client_body_timeout", "body_idle_timeout", 3600),
        ("send_timeout", "write_timeout", 3600),
        ("keepalive_timeout", "keep_alive_timeout", 86_400),
    ] {
        let found = all(name).filter_map(|directive| nginx_duration(directive.word(0))).max();
        if let Some(length) = found {
            let length = shown_duration(length, Duration::from_millis(1), Duration::from_secs(most));
            draft.limits.push((key.to_owned(), Value::plain(length)));
        }
        one_of_many(draft, all(name), key);
    }
    let bodies: Vec<_> = all("client_max_body_size").filter_map(|found| size(found.word(0))).collect();
    if let Some(largest) = bodies.iter().max() {
        // 0 means any size.
        let largest = if bodies.contains(&0) { 1 << 40 } else { *largest };
        draft.limits.push(("request_body".to_owned(), Value::plain(shown_size(largest))));
        one_of_many(draft, all("client_max_body_size"), "request_body");
    }
    if let Some(count) = all("keepalive_requests").filter_map(|found| found.word(0).parse::<u64>().ok()).max() {
        draft.limits.push(("requests_per_connection".to_owned(), Value::plain(count.clamp(1, 1_000_000_000))));
    }
    if all("underscores_in_headers").any(|found| found.word(0) == "on") {
        draft.limits.push(("underscores_in_headers".to_owned(), Value::text("allow")));
    }
    for directive in all("set_real_ip_from") {
        match is_network(directive.word(0)) {
            true if draft.trusted.iter().all(|known| known != directive.word(0)) => {
                draft.trusted.push(directive.word(0).to_owned());
            }
            true => {}
            false => draft.lose(&directive.place, directive.shown(), "a trusted proxy is an address or a network"),
        }
    }
    for directive in all("real_ip_header") {
        if !["x-forwarded-for", "proxy_protocol"].contains(&&*directive.word(0).to_ascii_lowercase()) {
            let remark =
                "Ringway takes the address of the client from X-Forwarded-For or Forwarded of `trusted_proxies`";
            draft.lose(&directive.place, directive.shown(), remark);
        }
    }
    if let Some(log) = http.own().iter().find(|directive| directive.name == "access_log") {
        let log = match log.word(0) {
            "off" => entries([("format", Value::text("off"))]),
            path if path.is_empty() || path.starts_with("syslog:") || path.contains('$') => {
                draft.lose(&log.place, log.shown(), "the access log is a file, stdout or stderr");
                return;
            }
            path => {
                entries([("path", Value::text(path.replace("/dev/stdout", "stdout").replace("/dev/stderr", "stderr")))])
            }
        };
        draft.access_log = Some(Value::Map(log));
    }
}

/// Remarks that different values of places have become one value of the process: the largest.
fn one_of_many<'a>(draft: &mut Draft, found: impl Iterator<Item = &'a Directive>, key: &str) {
    let found: Vec<_> = found.collect();
    let Some(first) = found.first() else { return };
    for other in &found[1..] {
        if other.word(0) != first.word(0) {
            let remark = format!("`limits.{key}` is one value for the whole proxy: the largest of them");
            draft.differ(&other.place, other.shown(), remark);
        }
    }
}
