//! `server`: listeners, the hosts of routes, and what holds for all locations.

use super::super::draft::{Draft, PathMatch, Route, Tls, host, is_network};
use super::Shared;
use super::answer;
use super::location::{self, Site};
use super::rules;
use super::scope::Scope;
use super::syntax::Directive;
use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A `server` that is to be translated.
#[derive(Clone)]
struct Server<'a> {
    scope: Scope<'a>,
    directive: &'a Directive,
    /// Empty for any host.
    hosts: Vec<String>,
    /// `None` where both schemes reach it.
    scheme: Option<&'static str>,
    is_default: bool,
    /// Its routes would be reached by more clients than before.
    is_closed: bool,
}

/// Translates the servers; routes are matched from the top, so that exact hosts come before wildcards, longer wildcards
/// before shorter ones, and servers for any host last.
pub(super) fn translate(draft: &mut Draft, shared: &Shared<'_>, servers: &[(Scope<'_>, &Directive)]) {
    let mut found = Vec::new();
    for (index, (scope, directive)) in servers.iter().enumerate() {
        let (plain, secure) = schemes(scope);
        let Some((hosts, is_default)) = hosts(draft, scope) else {
            let remark = "none of its names can be translated, so that none of its routes is";
            draft.lose(&directive.place, "server", remark);
            continue;
        };
        if hosts.is_empty() && !is_default && index > 0 {
            let remark = "it is for any host here; nginx sent other hosts to its default server, the first one";
            draft.differ(&directive.place, "server", remark);
        }
        let scheme = match (plain, secure) {
            (true, false) => Some("http"),
            (false, true) => Some("https"),
            _ => None,
        };
        found.push(Server { scope: scope.clone(), directive, hosts, scheme, is_default, is_closed: false });
    }
    let has = |scheme: &str| found.iter().any(|server| server.scheme.is_none_or(|own| own == scheme));
    let has_both = has("http") && has("https");
    without_doubles(draft, &mut found);
    close_narrow_ones(draft, &mut found);
    if !has_both {
        found.iter_mut().for_each(|server| server.scheme = None);
    }
    let several = found.len() > 1;
    if !found.iter().any(|server| server.hosts.is_empty() || server.is_default)
        && several
        && let Some(first) = found.first()
    {
        let remark = "requests for other hosts reached the first server; here they get 404";
        draft.differ(&first.directive.place, "server", remark);
    }
    for server in &found {
        listeners(draft, &server.scope, server.directive);
    }
    draft.listeners.sort_by_key(|listener| listener.tls.is_some());
    let is_wild = |host: &String| host.starts_with("*.");
    let has_wild = found.iter().any(|server| server.hosts.iter().any(is_wild));
    let mut parts: Vec<Server<'_>> = Vec::new();
    for server in found {
        let (wild, exact): (Vec<_>, Vec<_>) = server.hosts.iter().cloned().partition(is_wild);
        let is_any = server.hosts.is_empty() || server.is_default;
        // The names of a default server matter only where a wildcard of another one could take them.
        let named = if has_wild || !is_any { vec![exact, wild] } else { Vec::new() };
        let named = named.into_iter().filter(|hosts| !hosts.is_empty());
        parts.extend(named.map(|hosts| Server { hosts, ..server.clone() }));
        if is_any {
            parts.push(Server { hosts: Vec::new(), ..server });
        }
    }
    parts.sort_by_key(|server| {
        let longest = server.hosts.iter().filter(|host| is_wild(host)).map(String::len).max();
        (server.hosts.is_empty(), longest.is_some(), std::cmp::Reverse(longest))
    });
    for server in &parts {
        routes(draft, shared, server, several);
    }
}

/// Lists the servers that were reached on some listeners of their scheme only, and refuses the requests of those that
/// were closed by that: by loopback addresses, or by client certificates.
fn close_narrow_ones(draft: &mut Draft, servers: &mut [Server<'_>]) {
    let all: Vec<(Option<&str>, HashSet<String>)> =
        servers.iter().map(|server| (server.scheme, addresses(&server.scope))).collect();
    let asks =
        |server: &Server<'_>| server.scope.find("ssl_verify_client").is_some_and(|verify| verify.word(0) == "on");
    let others_ask_not = servers.iter().any(|server| !asks(server) && server.scheme != Some("http"));
    for (index, server) in servers.iter_mut().enumerate() {
        let own = &all[index].1;
        let mut others =
            all.iter().filter(|(scheme, _)| *scheme == server.scheme || scheme.is_none() || server.scheme.is_none());
        if others.all(|(_, addresses)| addresses.is_subset(own)) {
            continue;
        }
        let is_public = |addresses: &HashSet<String>| !addresses.iter().all(|address| is_loopback(address));
        let widens = !is_public(own) && all.iter().any(|(_, addresses)| is_public(addresses));
        server.is_closed = widens || (asks(server) && others_ask_not);
        let remark = match server.is_closed {
            true => "routes do not know the port: all listeners of the scheme would reach it, so that it is refused",
            false => "routes do not know the port: all listeners of the scheme reach it, not only its own",
        };
        draft.lose(&server.directive.place, "server", remark);
    }
}

fn is_loopback(address: &str) -> bool {
    address.starts_with("127.") || address.starts_with("[::1]")
}

/// Returns the addresses that a server listens on; all of a port are one.
fn addresses(scope: &Scope<'_>) -> HashSet<String> {
    let shown = |address: SocketAddr| match address.ip().is_unspecified() {
        true => address.port().to_string(),
        false => address.to_string(),
    };
    let own: HashSet<String> = listens(scope).filter_map(|listen| address(listen.word(0))).map(shown).collect();
    if own.is_empty() { HashSet::from(["80".to_owned()]) } else { own }
}

/// Drops hosts that an earlier server has for the same scheme: routes do not know the port.
fn without_doubles(draft: &mut Draft, servers: &mut Vec<Server<'_>>) {
    let mut known: HashSet<(String, &str)> = HashSet::new();
    // A server that is named as the default one wins over those before it.
    let mut order: Vec<usize> = (0..servers.len()).collect();
    order.sort_by_key(|index| !servers[*index].is_default);
    let mut dropped = HashSet::new();
    for index in order {
        let server = &mut servers[index];
        let schemes = server.scheme.map_or(vec!["http", "https"], |scheme| vec![scheme]);
        let mut all = server.hosts.clone();
        if server.hosts.is_empty() {
            all.push("*".to_owned());
        }
        let is_new = |host: &String| schemes.iter().any(|scheme| !known.contains(&(host.clone(), *scheme)));
        let new: Vec<String> = all.into_iter().filter(is_new).collect();
        known.extend(new.iter().flat_map(|host| schemes.iter().map(|scheme| (host.clone(), *scheme))));
        if new.is_empty() {
            let remark = "another server has the same hosts: routes of Ringway do not know the port";
            draft.lose(&server.directive.place, "server", remark);
            dropped.insert(index);
        } else if !server.hosts.is_empty() {
            server.hosts = new;
        }
    }
    let mut index = 0;
    servers.retain(|_| {
        index += 1;
        !dropped.contains(&(index - 1))
    });
}

/// Returns whether a server has plain listeners, and ones with TLS.
fn schemes(scope: &Scope<'_>) -> (bool, bool) {
    let own: Vec<bool> = listens(scope).map(|listen| is_secure(scope, listen)).collect();
    (own.is_empty() || own.contains(&false), own.contains(&true))
}

/// Returns the `listen` directives over TCP.
fn listens<'a>(scope: &Scope<'a>) -> impl Iterator<Item = &'a Directive> {
    let is_tcp = |listen: &&Directive| !listen.words.iter().any(|word| word == "quic");
    scope.own().iter().filter(|directive| directive.name == "listen").filter(is_tcp)
}

fn is_secure(scope: &Scope<'_>, listen: &Directive) -> bool {
    listen.words.iter().any(|word| word == "ssl") || scope.find("ssl").is_some_and(|ssl| ssl.word(0) == "on")
}

/// Adds the listeners of a server.
fn listeners(draft: &mut Draft, scope: &Scope<'_>, server: &Directive) {
    let own: Vec<&Directive> = scope.own().iter().filter(|directive| directive.name == "listen").collect();
    if own.is_empty() {
        let comment = format!("{}: server without listen", server.place);
        draft.listener(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 80)), comment);
    }
    let mut asks_all = false;
    for directive in own {
        let has = |word: &str| directive.words.iter().any(|other| other == word);
        if has("quic") {
            draft.lose(&directive.place, directive.shown(), "Ringway does not speak HTTP/3");
            continue;
        }
        let Some(address) = address(directive.word(0)) else {
            draft.lose(&directive.place, directive.shown(), "a listener is an IP address and a TCP port");
            continue;
        };
        let listener = draft.listener(address, format!("{}: {}", directive.place, directive.shown()));
        if is_secure(scope, directive) {
            let known = listener.tls.as_ref().map(|tls| tls.client_ca_file.clone());
            let tls = listener.tls.get_or_insert_default();
            add_tls(tls, scope);
            asks_all |= known.is_some_and(|before| tls.client_ca_file != before);
        }
        if !has("proxy_protocol") {
            continue;
        }
        let mut trusted = scope.all(&["set_real_ip_from"]);
        trusted.retain(|from| is_network(from.word(0)));
        let named = !trusted.is_empty();
        listener.proxy_protocol = Some(match named {
            true => trusted.iter().map(|from| from.word(0).to_owned()).collect(),
            false => vec!["127.0.0.0/8".to_owned()],
        });
        if !named {
            let remark = "name the load balancers in `proxy_protocol.trusted`: nginx accepted the header from anywhere";
            draft.differ(&directive.place, directive.shown(), remark);
        }
    }
    if asks_all {
        let remark = "client certificates are requested by a listener: from the clients of all its hosts";
        draft.differ(&server.place, "server", remark);
    }
    if schemes(scope).1 && scope.find("ssl_certificate").is_none() {
        draft.lose(&server.place, "server", "a listener with TLS needs an `ssl_certificate`");
    }
}

fn add_tls(tls: &mut Tls, scope: &Scope<'_>) {
    let (chains, keys) = (scope.all(&["ssl_certificate"]), scope.all(&["ssl_certificate_key"]));
    for (chain, key) in chains.iter().zip(keys) {
        let pair = (chain.word(0).to_owned(), key.word(0).to_owned());
        if !tls.certificates.contains(&pair) {
            tls.certificates.push(pair);
        }
    }
    if let Some(versions) = scope.find("ssl_protocols") {
        let is_old = |version: &String| ["SSLv3", "TLSv1", "TLSv1.1", "TLSv1.2"].contains(&&**version);
        if !versions.words.iter().any(is_old) {
            tls.min_version = Some("1.3");
        }
    }
    let verify = scope.find("ssl_verify_client").map_or("off", |verify| verify.word(0));
    if let Some(file) = scope.find("ssl_client_certificate").filter(|_| verify != "off") {
        // Where one host requires a certificate, all do.
        let is_optional = verify.starts_with("optional");
        tls.is_client_auth_optional = is_optional && (tls.client_ca_file.is_none() || tls.is_client_auth_optional);
        tls.client_ca_file = Some(file.word(0).to_owned());
    }
}

/// Returns the address of `listen`: `80`, `*:80`, `127.0.0.1`, `[::]:80`, `localhost:80`.
fn address(text: &str) -> Option<SocketAddr> {
    if let Ok(port) = text.parse::<u16>() {
        return Some(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)));
    }
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') || name.ends_with(']') => (name, port.parse().ok()?),
        _ => (text, 80),
    };
    let ip = match name {
        "*" => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
        name => match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
            Some(inner) => IpAddr::V6(inner.parse::<Ipv6Addr>().ok()?),
            None => IpAddr::V4(name.parse::<Ipv4Addr>().ok()?),
        },
    };
    Some(SocketAddr::new(ip, port))
}

/// Returns the hosts of a server, none for any, and whether it is named as the default one; `None` where it has only
/// names that are no hosts.
fn hosts(draft: &mut Draft, scope: &Scope<'_>) -> Option<(Vec<String>, bool)> {
    let own = |name: &'static str| scope.own().iter().filter(move |directive| directive.name == name);
    let is_default_word = |word: &String| word == "default_server" || word == "default";
    let is_default = own("listen").any(|listen| listen.words.iter().any(is_default_word));
    let mut hosts = Vec::new();
    let mut is_any = own("server_name").next().is_none();
    for directive in own("server_name") {
        for name in &directive.words {
            let found = match &**name {
                "_" | "" | "*" => {
                    is_any = true;
                    continue;
                }
                name if name.starts_with('.') => host(&name[1..]).map(|name| vec![name.clone(), format!("*.{name}")]),
                name => host(name).map(|name| vec![name]),
            };
            match found {
                Some(found) => hosts.extend(found),
                None => {
                    draft.lose(&directive.place, format!("server_name {name}"), "a host is a name, or `*.` and a name")
                }
            }
        }
    }
    if is_any {
        hosts.clear();
    }
    (is_any || is_default || !hosts.is_empty()).then_some((hosts, is_default))
}

fn routes(draft: &mut Draft, shared: &Shared<'_>, server: &Server<'_>, has_others: bool) {
    let prefix = match server.hosts.first() {
        Some(host) if has_others => format!("{}-", host.trim_start_matches("*.")),
        _ => String::new(),
    };
    let base = Route { hosts: server.hosts.clone(), scheme: server.scheme, ..Route::default() };
    let mut made = Vec::new();
    if server.is_closed {
        let mut route =
            Route { path: Some(PathMatch::Prefix("/".to_owned())), name: format!("{prefix}closed"), ..base };
        route.comments.push(format!("{}: server", server.directive.place));
        route.refuse(403, "");
        draft.routes.push(route);
        return;
    }
    for directive in server.scope.own() {
        match &*directive.name {
            "if" => made.extend(answer::condition(draft, &base, directive, &prefix, &server.scope)),
            // It ends every request of the server, so that no location is reached.
            "return" => {
                let mut route = base.clone();
                route.path = Some(PathMatch::Prefix("/".to_owned()));
                route.name = format!("{prefix}all");
                answer::answer(draft, &mut route, directive);
                rules::response_fields(draft, &server.scope, &mut route);
                made.push(route);
                draft.routes.extend(made);
                return;
            }
            "rewrite" => {
                let remark = "use `redirect` or `strip_prefix` of a route";
                draft.lose(&directive.place, directive.shown(), remark);
            }
            _ => {}
        }
    }
    let site = Site { shared, server: server.directive, scope: &server.scope, prefix: &prefix, base: &base };
    made.extend(location::routes(draft, &site));
    draft.routes.extend(made);
}
