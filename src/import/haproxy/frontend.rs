//! `frontend`: listeners, and the routes of its rules in their order.

use super::super::Place;
use super::super::draft::{Draft, Route, slug};
use super::super::yaml::{Entries, Value, entries};
use super::acl::Acls;
use super::backend::{self, Target};
use super::fields::{FIELD_ACTIONS, Fields, NEEDLESS_ACTIONS};
use super::syntax::Line;
use super::{Proxy, shown};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Translates the frontends with the backends that they use. Returns the places of the sections that were not.
pub(super) fn translate(draft: &mut Draft, proxies: &[Proxy<'_>]) -> Vec<Place> {
    let fronts: Vec<&Proxy<'_>> = proxies.iter().filter(|proxy| proxy.is_frontend()).collect();
    let schemes: Vec<Vec<&'static str>> = fronts.iter().map(|front| schemes(front)).collect();
    let mut unread = Vec::new();
    let has = |scheme: &str| schemes.iter().flatten().any(|other| *other == scheme);
    let has_both = has("http") && has("https");
    let mut backends = Backends { proxies, used: HashMap::new() };
    let (mut taken, mut translated): (Vec<&str>, Vec<&Proxy<'_>>) = (Vec::new(), Vec::new());
    for (front, schemes) in fronts.iter().zip(&schemes) {
        if schemes.iter().any(|scheme| taken.contains(scheme)) {
            let remark = "another frontend has routes for the same scheme: routes of Ringway do not know the port";
            draft.lose(&front.section.place, front.section.shown(), remark);
            unread.push(front.section.place.clone());
            continue;
        }
        taken.extend(schemes);
        listeners(draft, front);
        translated.push(*front);
        let scheme = match &schemes[..] {
            [scheme] if has_both => Some(*scheme),
            _ => None,
        };
        routes(draft, front, &Route { scheme, ..Route::default() }, &mut backends);
    }
    limits(draft, &translated);
    let unused = proxies.iter().filter(|proxy| proxy.section.kind() == "backend");
    for proxy in unused.filter(|proxy| !backends.used.contains_key(proxy.section.name())) {
        draft.lose(&proxy.section.place, proxy.section.shown(), "no rule that was translated uses it");
        unread.push(proxy.section.place.clone());
    }
    unread
}

/// Returns the schemes of a frontend's listeners.
fn schemes(front: &Proxy<'_>) -> Vec<&'static str> {
    let of = |line: &&Line| if line.has("ssl") { "https" } else { "http" };
    let mut schemes: Vec<_> = front.all(&["bind"]).iter().map(of).collect();
    schemes.sort_unstable();
    schemes.dedup();
    schemes
}

/// The backends, each translated when it is first used.
struct Backends<'a> {
    proxies: &'a [Proxy<'a>],
    used: HashMap<&'a str, (Target, &'a Proxy<'a>)>,
}

impl<'a> Backends<'a> {
    fn get(&mut self, draft: &mut Draft, name: &str) -> Option<&(Target, &'a Proxy<'a>)> {
        let proxy = self.proxies.iter().find(|proxy| proxy.is_backend() && proxy.section.name() == name)?;
        Some(self.used.entry(proxy.section.name()).or_insert_with(|| (backend::target(draft, proxy), proxy)))
    }
}

/// Adds the listeners of a frontend.
fn listeners(draft: &mut Draft, front: &Proxy<'_>) {
    for line in front.all(&["bind"]) {
        for text in line.word(1).split(',') {
            let Some(address) = address(text) else {
                draft.lose(&line.place, line.shown(), "a listener is an IP address and one TCP port");
                continue;
            };
            let listener = draft.listener(address, format!("{}: {}", line.place, line.shown()));
            if line.has("accept-proxy") {
                listener.proxy_protocol = Some(vec!["127.0.0.0/8".to_owned()]);
            }
            let is_secure = line.has("ssl");
            if is_secure {
                let tls = listener.tls.get_or_insert_default();
                for files in line.words.windows(2).filter(|words| words[0] == "crt") {
                    // One file has the chain and the key.
                    let pair = (files[1].clone(), files[1].clone());
                    if !tls.certificates.contains(&pair) {
                        tls.certificates.push(pair);
                    }
                }
                if line.after("ssl-min-ver") == Some("TLSv1.3") {
                    tls.min_version = Some("1.3");
                }
                if let (Some(file), Some(verify)) =
                    (line.after("ca-file"), line.after("verify").filter(|verify| *verify != "none"))
                {
                    tls.client_ca_file = Some(file.to_owned());
                    tls.is_client_auth_optional = verify == "optional";
                }
                if tls.certificates.is_empty() || line.has("crt-list") {
                    draft.lose(&line.place, line.shown(), "list the certificates under `tls.certificates`");
                }
                let is_folder = |name: &&str| !name.rsplit('/').next().unwrap_or_default().contains('.');
                if let Some(name) = line.after("crt").filter(is_folder) {
                    draft.differ(
                        &line.place,
                        line.shown(),
                        format!("if {name} is a folder, list its files: each has a chain and a key"),
                    );
                }
            }
            if line.has("accept-proxy") {
                let remark =
                    "name the load balancers in `proxy_protocol.trusted`: HAProxy accepted the header from anywhere";
                draft.differ(&line.place, line.shown(), remark);
            }
        }
    }
}

/// Returns the address of `bind`: `:80`, `*:80`, `10.0.0.1:80`, `[::]:80`.
fn address(text: &str) -> Option<SocketAddr> {
    let text = text.strip_prefix("ipv4@").or_else(|| text.strip_prefix("ipv6@")).unwrap_or(text);
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let (name, port) = text.rsplit_once(':')?;
    let ip = match name {
        "" | "*" => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
        "::" => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        name => name.parse().ok()?,
    };
    Some(SocketAddr::new(ip, port.parse().ok()?))
}

/// Sets the timeouts of clients, which hold for the whole process: the longest of all frontends.
fn limits(draft: &mut Draft, fronts: &[&Proxy<'_>]) {
    for (name, keys, most) in [
        ("http-request", &["header_timeout"][..], 3600),
        ("client", &["body_idle_timeout", "write_timeout"][..], 3600),
        ("http-keep-alive", &["keep_alive_timeout"][..], 86_400),
    ] {
        if let Some(longest) = fronts.iter().filter_map(|front| front.timeout(name)).max() {
            draft.limits.extend(keys.iter().map(|key| ((*key).to_owned(), shown(longest, most))));
        }
    }
}

fn routes(draft: &mut Draft, front: &Proxy<'_>, base: &Route, backends: &mut Backends<'_>) {
    let acls = Acls::new(&front.lines);
    let fields = Fields::of(draft, front);
    let name = slug(front.section.name());
    // Rules of requests come before those that choose the backend.
    let (answered, _) = answered(draft, front, &acls, &Route { name: name.clone(), ..base.clone() });
    draft.routes.extend(answered);
    for line in front.all(&["use_backend"]) {
        let backend = line.word(1);
        let base = Route { name: slug(backend), ..base.clone() };
        for alternative in acls.condition(line.from(2), &base) {
            if alternative.unknown.is_any() {
                draft.lose(&line.place, line.shown(), NOT_CONDITION);
                continue;
            }
            differ(draft, line, alternative.difference);
            for route in alternative.routes {
                forward(draft, backends, &fields, line, backend, route);
            }
        }
    }
    // The default one counts wherever it stands.
    if let Some(line) = front.find(&["default_backend"]) {
        let route = Route { name: slug(line.word(1)), ..base.clone() };
        forward(draft, backends, &fields, line, line.word(1), route);
    } else if front.section.kind() == "listen" {
        let line = Line { place: front.section.place.clone(), words: front.section.words.clone() };
        let route = Route { name, ..base.clone() };
        forward(draft, backends, &fields, &line, front.section.name(), route);
    }
}

/// Returns the routes of a section's rules that answer requests, and whether one of them answers all that `base` matches.
///
/// A refusal with a condition that routes cannot make is kept wider where it can be, and where it is for all but some
/// clients: then everything is refused. Other rules with such a condition are left out. Both are listed.
fn answered(draft: &mut Draft, proxy: &Proxy<'_>, acls: &Acls<'_>, base: &Route) -> (Vec<Route>, bool) {
    let (mut routes, mut is_all) = (Vec::new(), false);
    // HAProxy evaluates `redirect` after all of `http-request`.
    let mut lines = proxy.lines.clone();
    lines.sort_by_key(|line| line.word(0) == "redirect");
    for line in &lines {
        let from = match line.word(0) {
            "redirect" => 1,
            "http-request" => 2,
            _ => continue,
        };
        let action = if from == 1 { "redirect" } else { line.word(1) };
        let Some((key, value)) = answer(draft, line, action, from) else { continue };
        let is_refusal = REFUSALS.contains(&action);
        for alternative in
            acls.condition(&line.words, &Route { name: format!("{}-{action}", base.name), ..base.clone() })
        {
            let unknown = alternative.unknown;
            if unknown.is_any() {
                let text = line.shown() + &acls.text(&line.words);
                let is_rate = ["sc_", "sc0_", "sc1_", "sc2_", "_rate("].iter().any(|counter| text.contains(counter));
                let is_kept = is_refusal && !is_rate && (!unknown.is_all || unknown.has_negative);
                let remark = match (is_kept, is_rate) {
                    (true, _) => {
                        "only a part of the condition could be translated: more requests are refused than before"
                    }
                    (false, true) => RATE,
                    (false, false) => NOT_CONDITION,
                };
                draft.lose(&line.place, line.shown(), remark);
                if !is_kept {
                    continue;
                }
            }
            match alternative.difference {
                Some(difference) if is_refusal => {
                    draft.lose(&line.place, line.shown(), format!("it refuses less than before: {difference}"));
                }
                difference => differ(draft, line, difference),
            }
            for mut route in alternative.routes {
                // Without it the redirection would lead to itself.
                if matches!(&value, Value::Map(to) if to.iter().any(|(_, to)| *to == Value::text("https://{host}{uri}")))
                {
                    route.scheme = Some("http");
                }
                let is_same = |a: &Route, b: &Route| {
                    (&a.path, &a.hosts, &a.methods, a.scheme, &a.headers)
                        == (&b.path, &b.hosts, &b.methods, b.scheme, &b.headers)
                };
                is_all |= is_same(&route, base);
                route.comments.push(format!("{}: {}", line.place, line.shown()));
                route.entries = Entries::from([(key.to_owned(), value.clone())]);
                routes.push(route);
            }
        }
    }
    (routes, is_all)
}

/// The rules that refuse requests.
const REFUSALS: [&str; 5] = ["deny", "tarpit", "reject", "silent-drop", "auth"];

const RATE: &str = "use `rate_limit` of a route, or `limits.connections_per_address`";

const NOT_CONDITION: &str =
    "a route matches host, path, prefix, method, scheme and fields: this condition has something else";

fn differ(draft: &mut Draft, line: &Line, difference: Option<&'static str>) {
    if let Some(difference) = difference {
        draft.differ(&line.place, line.shown(), difference);
    }
}

/// Adds a route to a backend.
fn forward(draft: &mut Draft, backends: &mut Backends<'_>, front: &Fields, line: &Line, name: &str, mut route: Route) {
    let Some((target, proxy)) = backends.get(draft, name) else {
        draft.lose(&line.place, line.shown(), "there is no HTTP backend of this name");
        return;
    };
    let proxy = *proxy;
    route.comments.push(format!("{}: {}", line.place, line.shown()));
    route.set("pool", Value::text(target.pool.clone()));
    target.route.iter().for_each(|(key, value)| route.set(key, value.clone()));
    let mut fields = front.clone();
    if proxy.section.kind() == "backend" {
        let own = Fields::of(draft, proxy);
        fields.add(own);
        let (answered, is_all) = answered(draft, proxy, &Acls::new(&proxy.lines), &route);
        draft.routes.extend(answered);
        if is_all {
            return;
        }
    }
    fields.write(&mut route);
    draft.routes.push(route);
}

/// Returns what to do about a rule of requests that could not be translated.
fn remark(action: &str) -> &'static str {
    match action {
        "set-path" | "replace-path" | "set-uri" | "replace-uri" | "set-pathq" | "replace-pathq" => {
            "Ringway only removes a prefix of the path: `strip_prefix` of the route"
        }
        action if action.starts_with("track-sc") || action.starts_with("sc-") => RATE,
        _ => "it has no counterpart in Ringway",
    }
}

/// Returns the key and value of a rule that answers requests; lists those that are not translated.
fn answer(draft: &mut Draft, line: &Line, action: &str, from: usize) -> Option<(&'static str, Value)> {
    let lost = |draft: &mut Draft, remark: &str| {
        draft.lose(&line.place, line.shown(), remark);
        None
    };
    match action {
        action if FIELD_ACTIONS.contains(&action) || NEEDLESS_ACTIONS.contains(&action) => None,
        "redirect" => {
            let (kind, value) = (line.word(from), line.word(from + 1));
            let to = match kind {
                "scheme" if value == "https" || value == "http" => format!("{value}://{{host}}{{uri}}"),
                "prefix" => format!("{}{{uri}}", value.trim_end_matches('/')),
                "location" => value
                    .replace("%[path]", "{path}")
                    .replace("%[pathq]", "{uri}")
                    .replace("%[req.hdr(host)]", "{host}"),
                _ => return lost(draft, "a redirection has {host}, {path} and {uri}, nothing else of the request"),
            };
            let known = to.replace("{host}", "").replace("{path}", "").replace("{uri}", "");
            if known.contains(['%', '{', '}']) || http::HeaderValue::from_str(&to).is_err() {
                return lost(draft, "a redirection has {host}, {path} and {uri}, nothing else of the request");
            }
            let status = line.after("code").unwrap_or("302");
            let status = if ["301", "302", "303", "307", "308"].contains(&status) { status } else { "302" };
            Some(("redirect", Value::Map(entries([("to", Value::text(to)), ("status", Value::plain(status))]))))
        }
        "auth" => {
            let remark = "Ringway checks no passwords: the requests are refused. Let the nodes check them";
            draft.lose(&line.place, line.shown(), remark);
            Some(("respond", Value::Map(entries([("status", Value::plain(403))]))))
        }
        "deny" | "tarpit" | "reject" | "silent-drop" => {
            let status = line.after("deny_status").or(line.after("status")).unwrap_or("403");
            let status = status.parse::<u16>().ok().filter(|status| (200..600).contains(status)).unwrap_or(403);
            Some(("respond", Value::Map(entries([("status", Value::plain(status))]))))
        }
        "return" => {
            let status =
                line.after("status").unwrap_or("200").parse::<u16>().ok().filter(|status| (200..600).contains(status));
            let mut response = entries([("status", Value::plain(status.unwrap_or(200)))]);
            match line.after("string").or(line.after("lf-string")) {
                Some(body) if body.contains("%[") => return lost(draft, "the text of a response has no samples"),
                Some(body) => response.push(("body".to_owned(), Value::text(body))),
                None if line.has("file") || line.has("lf-file") => {
                    return lost(draft, "a fixed response has its text in `body`");
                }
                None => {}
            }
            Some(("respond", Value::Map(response)))
        }
        action => lost(draft, remark(action)),
    }
}
