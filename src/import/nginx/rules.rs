//! The rules of a route: fields, paths, cache, limits and access.

use super::super::draft::{Draft, PathMatch, Route, is_field, is_path, is_token, set};
use super::super::units::{nginx_duration, shown_duration};
use super::super::yaml::{Entries, Value, entries};
use super::Shared;
use super::scope::Scope;
use super::syntax::Directive;
use super::upstream::hash_source;
use std::time::Duration;

/// The access to a location.
pub(super) enum Access<'a> {
    Free,
    /// Every client is denied.
    Denied,
    /// Only nginx itself.
    Internal,
    /// Some clients, by a rule that Ringway does not have.
    Restricted(&'a Directive),
}

/// Returns the access to a location.
pub(super) fn access<'a>(scope: &Scope<'a>) -> Access<'a> {
    if scope.own().iter().any(|directive| directive.name == "internal") {
        return Access::Internal;
    }
    let rules = scope.all(&["allow", "deny"]);
    match rules.iter().find(|rule| rule.name == "deny") {
        Some(_) if rules.iter().all(|rule| rule.name == "deny" && rule.word(0) == "all") => return Access::Denied,
        Some(deny) => return Access::Restricted(deny),
        None => {}
    }
    const RESTRICTING: [&str; 3] = ["secure_link", "limit_except", "valid_referers"];
    const HARMLESS: [&str; 4] = ["auth_basic_user_file", "auth_request_set", "auth_delay", "auth_http"];
    let restricts = |name: &str| {
        let checks = name.starts_with("auth_") || name.starts_with("access_by_lua") || name.starts_with("js_access");
        (checks && !HARMLESS.contains(&name)) || RESTRICTING.contains(&name)
    };
    let found = scope.in_effect(restricts);
    found.into_iter().find(|directive| directive.word(0) != "off").map_or(Access::Free, Access::Restricted)
}

/// Sets the paths, fields and cache of a route by the directives in effect.
pub(super) fn rules(draft: &mut Draft, scope: &Scope<'_>, pass: &Directive, route: &mut Route) {
    path(draft, pass, route);
    request_fields(draft, scope, route);
    response_fields(draft, scope, route);
    if let Some(cache) = cache(draft, scope) {
        route.set("cache", Value::Map(cache));
    }
    let is_off = |log: &Value| matches!(log, Value::Map(entries) if entries.iter().any(|(key, _)| key == "format"));
    if scope.find("access_log").is_some_and(|log| log.word(0) == "off")
        && !draft.access_log.as_ref().is_some_and(is_off)
    {
        route.set("access_log", Value::plain("false"));
    }
}

/// The path behind the host of `proxy_pass` replaces the one of the location.
fn path(draft: &mut Draft, pass: &Directive, route: &mut Route) {
    let rest = pass.word(0).split_once("://").map_or(pass.word(0), |(_, rest)| rest);
    let Some(at) = rest.find('/').filter(|_| pass.name == "proxy_pass") else { return };
    let (uri, own) = (&rest[at..], route.path.as_ref().map_or("/", PathMatch::text));
    if uri == own {
        return;
    }
    let strips = uri == "/" && matches!(route.path, Some(PathMatch::Prefix(_))) && own.len() > 1;
    match own.trim_end_matches('/') {
        own if strips && is_path(own) => route.set("strip_prefix", Value::text(own)),
        _ => {
            let remark = "the path is forwarded unchanged: Ringway only removes a prefix (`strip_prefix`)";
            draft.lose(&pass.place, pass.shown(), remark);
        }
    }
}

/// Translates `rewrite`. Returns whether it is the answer of the route.
pub(super) fn rewrite(draft: &mut Draft, route: &mut Route, directive: &Directive) -> bool {
    let (from, to) = (directive.word(0), directive.word(1));
    let status = match directive.word(2) {
        "permanent" => 301,
        _ => 302,
    };
    let is_all = ["^", "^(.*)$", "^/(.*)$", "^(.*)", "^/(.*)", "(.*)", "^.*$", ".*"].contains(&from);
    if to.contains("://") || to.starts_with("$scheme") {
        let taken = to.replace("/$1", "$request_uri").replace("$1", "$request_uri");
        if let Some(to) = Some(taken).filter(|_| is_all).and_then(|to| location(&to)) {
            route.entries = Entries::from([("redirect".to_owned(), redirect(to, status))]);
            return true;
        }
    }
    let prefix = from.strip_prefix('^').and_then(|from| {
        let ends = ["/(.*)$", "/(.*)", "(/.*)$", "(/.*)", "/?(.*)$", "/?(.*)", "(/|$)(.*)"];
        ends.iter().find_map(|end| from.strip_suffix(end))
    });
    let prefix = prefix.filter(|prefix| is_path(prefix) && !prefix.contains(['(', '[', '.', '*', '+', '?', '\\']));
    if directive.word(2) == "last" || directive.word(2).is_empty() {
        draft.differ(&directive.place, directive.shown(), "the new path is not searched for among the locations again");
    }
    match prefix {
        Some(prefix) if matches!(to, "/$1" | "$1" | "/$2") => route.set("strip_prefix", Value::text(prefix)),
        _ => {
            draft.lose(&directive.place, directive.shown(), "use `strip_prefix` or `redirect`, or let the nodes do it")
        }
    }
    false
}

/// Returns the `Location` of a URL with nginx's variables.
pub(super) fn location(url: &str) -> Option<String> {
    if url.contains(['{', '}']) && !url.contains("${") {
        return None;
    }
    let mut to = url.replace("${", "$").replace('}', "");
    for (variable, placeholder) in [
        ("$uri$is_args$args", "{uri}"),
        ("$request_uri", "{uri}"),
        ("$document_uri", "{path}"),
        ("$uri", "{path}"),
        ("$http_host", "{host}"),
        ("$server_name", "{host}"),
        ("$host", "{host}"),
    ] {
        to = to.replace(variable, placeholder);
    }
    // The scheme of the request: a reference without one (RFC 3986 4.2).
    if let Some(rest) = to.strip_prefix("$scheme://") {
        to = format!("//{rest}");
    }
    (!to.contains('$') && http::HeaderValue::from_str(&to).is_ok()).then_some(to)
}

/// Returns the block of a redirection.
pub(super) fn redirect(to: String, status: u16) -> Value {
    Value::Map(entries([("to", Value::text(to)), ("status", Value::plain(status))]))
}

fn request_fields(draft: &mut Draft, scope: &Scope<'_>, route: &mut Route) {
    let (mut sets, mut removes, mut has_host) = (Entries::new(), Vec::new(), false);
    for directive in scope.all(&["proxy_set_header", "grpc_set_header"]) {
        let (name, value) = (directive.word(0).to_ascii_lowercase(), directive.word(1));
        has_host |= name == "host";
        let is_default = match &*name {
            "host" => matches!(value, "$host" | "$http_host" | "$host:$server_port" | "$server_name"),
            "x-forwarded-for" => {
                matches!(value, "$proxy_add_x_forwarded_for" | "$remote_addr" | "$http_x_forwarded_for")
            }
            "x-forwarded-proto" | "x-forwarded-scheme" => value.starts_with('$'),
            "x-forwarded-host" => matches!(value, "$host" | "$http_host"),
            "x-request-id" => value == "$request_id",
            "connection" | "upgrade" | "keep-alive" | "te" | "content-length" => true,
            _ => false,
        };
        if is_default {
            continue;
        }
        if name == "x-real-ip" || name == "x-forwarded-port" {
            let remark = "nodes get the client's address in X-Forwarded-For, and scheme and host beside it";
            draft.lose(&directive.place, directive.shown(), remark);
        } else if value.is_empty() && is_field(&name, "") {
            removes.push(name);
        } else if value.contains('$') || !is_field(&name, value) {
            draft.lose(&directive.place, directive.shown(), "a field is set to a fixed value, without variables");
            // A client must not choose what nginx set.
            if name != "host" && is_field(&name, "") {
                removes.push(name);
            }
        } else {
            set(&mut sets, &name, Value::text(value));
        }
    }
    if !has_host && let Some(pass) = scope.all(&["proxy_pass"]).first() {
        let remark = "nodes get the client's Host; nginx sent the name that stands here";
        draft.differ(&pass.place, pass.shown(), remark);
    }
    route.change_fields("request_headers", sets, removes);
}

/// Sets the changes of a route's response fields by the directives in effect.
pub(super) fn response_fields(draft: &mut Draft, scope: &Scope<'_>, route: &mut Route) {
    let (mut sets, mut removes) = (Entries::new(), Vec::new());
    for directive in scope.all(&["add_header"]) {
        let (name, value) = (directive.word(0).to_ascii_lowercase(), directive.word(1));
        if name == "x-cache-status" || value == "$upstream_cache_status" {
            draft.differ(
                &directive.place,
                directive.shown(),
                "responses of cached routes have Cache-Status (RFC 9211)",
            );
        } else if ["set-cookie", "vary", "link"].contains(&&*name) {
            draft.lose(&directive.place, directive.shown(), "a field that is set takes the place of those of the node");
        } else if value.contains('$') || !is_field(&name, value) {
            draft.lose(&directive.place, directive.shown(), "a field is set to a fixed value, without variables");
        } else {
            set(&mut sets, &name, Value::text(value));
        }
    }
    for directive in scope.all(&["proxy_hide_header"]) {
        let name = directive.word(0).to_ascii_lowercase();
        match is_field(&name, "") {
            true => removes.push(name),
            false => draft.lose(&directive.place, directive.shown(), "expected the name of a field"),
        }
    }
    route.change_fields("response_headers", sets, removes);
}

fn cache(draft: &mut Draft, scope: &Scope<'_>) -> Option<Entries> {
    let zone = scope.find("proxy_cache").filter(|zone| zone.word(0) != "off")?;
    draft.differ(
        &zone.place,
        zone.shown(),
        "stored responses are in memory, `cache.memory` in all, and shared by all routes",
    );
    let mut cache = Entries::new();
    let year = Duration::from_secs(365 * 86_400);
    let mut key = Entries::new();
    if let Some(directive) = scope.find("proxy_cache_key") {
        let (mut cookies, mut headers) = (Vec::new(), Vec::new());
        let parts: Vec<&str> = directive.words.iter().flat_map(|word| word.split('$')).skip(1).collect();
        for part in parts.iter().map(|part| part.trim_matches(['{', '}', ':', '/', '|', '-', '?'])) {
            match hash_source(&format!("${part}")).as_deref().and_then(|source| source.split_once(':')) {
                Some(("cookie", name)) => cookies.push(name.to_owned()),
                Some(("header", name)) => headers.push(name.to_owned()),
                _ if ["scheme", "proxy_host", "host", "http_host", "request_uri", "uri", "is_args", "args"]
                    .contains(&part) => {}
                _ if ["request_method", "server_name", "server_port"].contains(&part) => {}
                _ => draft.lose(&directive.place, directive.shown(), format!("`${part}` is no part of a cache key")),
            }
        }
        if !parts.iter().any(|part| part.starts_with("request_uri") || part.starts_with("args")) {
            draft.differ(
                &directive.place,
                directive.shown(),
                "the query is a part of the key: `cache.key.only_query` restricts it",
            );
        }
        for (name, values) in [("cookies", cookies), ("headers", headers)] {
            if !values.is_empty() {
                key.push((name.to_owned(), Value::texts(values)));
            }
        }
    }
    if !key.is_empty() {
        cache.push(("key".to_owned(), Value::Map(key)));
    }
    for directive in scope.all(&["proxy_cache_valid"]) {
        let Some((length, statuses)) = directive.words.split_last() else { continue };
        let Some(length) = nginx_duration(length) else {
            draft.lose(&directive.place, directive.shown(), "expected a duration");
            continue;
        };
        let has = |status: &str| statuses.iter().any(|word| word == status || word == "any");
        if statuses.is_empty() || has("200") || has("301") || has("302") {
            set(&mut cache, "default_ttl", Value::plain(shown_duration(length, Duration::ZERO, year)));
        }
        if has("404") || has("410") {
            let day = Duration::from_secs(86_400);
            set(&mut cache, "negative_ttl", Value::plain(shown_duration(length, Duration::ZERO, day)));
        }
    }
    let mut bypass: Vec<String> = Vec::new();
    for name in ["proxy_cache_bypass", "proxy_no_cache"] {
        for directive in scope.all(&[name]) {
            for word in directive.words.iter().filter(|word| *word != "$http_upgrade") {
                let Some(cookie) = word.strip_prefix("$cookie_").filter(|name| is_token(name)) else {
                    // Without its exceptions the cache could give pages of one client to others.
                    let remark = "`bypass_cookies` has the names of cookies: the route is not cached";
                    draft.lose(&directive.place, directive.shown(), remark);
                    return None;
                };
                if !bypass.iter().any(|known| known == cookie) {
                    bypass.push(cookie.to_owned());
                }
            }
        }
    }
    if !bypass.is_empty() {
        cache.push(("bypass_cookies".to_owned(), Value::texts(bypass)));
    }
    ignored_fields(draft, scope, &mut cache);
    let stale = scope.find("proxy_cache_use_stale");
    if let Some(stale) = stale.filter(|stale| stale.words.iter().any(|word| word != "off")) {
        let remark = "a stale response is served for an hour when the nodes fail (`stale_if_error`)";
        draft.differ(&stale.place, stale.shown(), remark);
        if stale.words.iter().any(|word| word == "updating") {
            cache.push(("stale_while_revalidate".to_owned(), Value::plain("1m")));
        }
    }
    Some(cache)
}

fn ignored_fields(draft: &mut Draft, scope: &Scope<'_>, cache: &mut Entries) {
    for directive in scope.all(&["proxy_ignore_headers"]) {
        for word in &directive.words {
            match &*word.to_ascii_lowercase() {
                "set-cookie" => set(cache, "store_set_cookie", Value::plain("true")),
                "cache-control" => {
                    let ignored = entries([("ignore", Value::texts(["private", "no-cache", "no-store"]))]);
                    set(cache, "override", Value::Map(ignored));
                }
                "vary" => draft.lose(&directive.place, directive.shown(), "Vary is always observed (RFC 9111 4.1)"),
                "expires" => draft.lose(&directive.place, directive.shown(), "`cache.override.ttl` overrides Expires"),
                _ => {}
            }
        }
    }
}

/// Sets the limits of a route by the directives in effect.
pub(super) fn limits(draft: &mut Draft, shared: &Shared<'_>, scope: &Scope<'_>, route: &mut Route) {
    let limits = scope.all(&["limit_req"]);
    for (index, directive) in limits.iter().enumerate() {
        let option = |name: &str| directive.words.iter().find_map(|word| word.strip_prefix(name));
        let of_zone = |zone: &&&Directive| {
            let is_own =
                |word: &String| word.strip_prefix("zone=").and_then(|zone| zone.split(':').next()) == option("zone=");
            zone.words.iter().any(is_own)
        };
        let zone = shared.request_zones.iter().find(of_zone);
        let rate = zone.and_then(|zone| zone.words.iter().find_map(|word| word.strip_prefix("rate=")));
        let rate = rate.and_then(|rate| match rate.split_at(rate.len().saturating_sub(3)) {
            (count, "r/s") => count.parse::<u32>().ok().map(|count| (count, "1s")),
            (count, "r/m") => count.parse::<u32>().ok().map(|count| (count, "1m")),
            _ => None,
        });
        let source = zone.and_then(|zone| hash_source(zone.word(0)));
        let (Some((count, per)), Some(source), 0) = (rate.filter(|(count, _)| *count > 0), source, index) else {
            draft.lose(
                &directive.place,
                directive.shown(),
                "a route has one `rate_limit`, by a source as of `hash_on`",
            );
            continue;
        };
        let burst = option("burst=").and_then(|burst| burst.parse::<u32>().ok()).unwrap_or(0).saturating_add(1);
        if burst > 1 && !directive.words.iter().any(|word| word == "nodelay") {
            draft.differ(&directive.place, directive.shown(), "requests of a burst are not delayed");
        }
        let mut limit = entries([
            ("requests", Value::plain(count)),
            ("per", Value::plain(per)),
            ("burst", Value::plain(burst.min(1_000_000_000))),
        ]);
        if source != "client_ip" {
            limit.push(("key".to_owned(), Value::texts([source])));
        }
        route.set("rate_limit", Value::Map(limit));
    }
    for directive in scope.all(&["limit_conn"]) {
        let zone = shared.connection_zones.iter().find(|zone| {
            zone.words.iter().any(|word| {
                word.strip_prefix("zone=").and_then(|word| word.split(':').next()) == Some(directive.word(0))
            })
        });
        let is_by_address = zone.and_then(|zone| hash_source(zone.word(0))).as_deref() == Some("client_ip");
        match directive.word(1).parse::<u64>() {
            Ok(count) if is_by_address => {
                draft.differ(&directive.place, directive.shown(), "it counts connections, for the whole proxy");
                set(&mut draft.limits, "connections_per_address", Value::plain(count.min(10_000_000)));
            }
            _ => {
                draft.lose(&directive.place, directive.shown(), "only connections by the client's address are limited")
            }
        }
    }
}
