//! `location`: routes, in the order in which nginx would choose them.

use super::super::draft::{Draft, PathMatch, Route, is_path, slug};
use super::super::yaml::Value;
use super::Shared;
use super::answer::{answer, condition};
use super::rules::{self, Access};
use super::scope::Scope;
use super::syntax::Directive;
use super::upstream::{self, Target};

/// A server with what its routes have in common.
pub(super) struct Site<'a> {
    pub(super) shared: &'a Shared<'a>,
    pub(super) server: &'a Directive,
    pub(super) scope: &'a Scope<'a>,
    /// The beginning of the routes' names.
    pub(super) prefix: &'a str,
    /// Hosts and scheme.
    pub(super) base: &'a Route,
}

/// A location that routes can match.
struct Found<'a> {
    directive: &'a Directive,
    scope: Scope<'a>,
    path: PathMatch,
    rank: Rank,
}

/// The precedence of nginx: exact paths, prefixes that rule out expressions, expressions, other prefixes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Exact,
    Strong,
    Expression,
    Prefix,
}

/// Returns the routes of a server's locations.
pub(super) fn routes(draft: &mut Draft, site: &Site<'_>) -> Vec<Route> {
    let mut found = Vec::new();
    collect(draft, site.scope, &mut found);
    let root = PathMatch::Prefix("/".to_owned());
    if !found.iter().any(|location| location.path == root) {
        // The server answers the rest itself; it must not reach routes of other servers.
        found.push(Found { directive: site.server, scope: site.scope.clone(), path: root, rank: Rank::Prefix });
    }
    let has_expressions = found.iter().any(|location| location.rank == Rank::Expression);
    let plain: Vec<String> =
        found.iter().filter(|other| other.rank == Rank::Prefix).map(|other| other.path.text().to_owned()).collect();
    found.sort_by_key(|location| {
        let path = location.path.text();
        // The longest prefix wins; its mark rules out expressions only then.
        let has_longer = plain.iter().any(|other| other.len() > path.len() && other.starts_with(path));
        let rank = match location.rank {
            Rank::Strong if !has_expressions || has_longer => Rank::Prefix,
            rank => rank,
        };
        // Expressions keep their order.
        let length = if rank == Rank::Expression { 0 } else { path.len() };
        (rank, std::cmp::Reverse(length))
    });
    let mut routes = Vec::new();
    for location in &found {
        let mut route = site.base.clone();
        route.name = format!("{}{}", site.prefix, slug(location.path.text()));
        route.path = Some(location.path.clone());
        let is_rest = std::ptr::eq(location.directive, site.server);
        let conditions = location.directive.block.iter().filter(|directive| directive.name == "if" && !is_rest);
        for block in conditions {
            routes.extend(condition(draft, &route, block, site.prefix, &location.scope));
        }
        let (place, shown) = (&location.directive.place, location.directive.shown());
        route.comments.push(format!("{place}: {shown}{}", if is_rest { ", the rest" } else { "" }));
        act(draft, site, location, &mut route);
        routes.push(route);
    }
    routes
}

/// Collects the locations of a block and of those inside of it.
fn collect<'a>(draft: &mut Draft, scope: &Scope<'a>, found: &mut Vec<Found<'a>>) {
    for directive in scope.own().iter().filter(|directive| directive.name == "location") {
        let inner = scope.inner(&directive.block);
        collect(draft, &inner, found);
        let (mark, text) = match directive.words.len() {
            0 => continue,
            1 => ("", directive.word(0)),
            _ => (directive.word(0), directive.word(1)),
        };
        let (paths, rank) = match mark {
            "" if text.starts_with('@') => continue,
            "=" => (vec![PathMatch::Exact(text.to_owned())], Rank::Exact),
            "^~" => (vec![PathMatch::Prefix(text.to_owned())], Rank::Strong),
            "~" | "~*" => (expressions(text), Rank::Expression),
            "" => (vec![PathMatch::Prefix(text.to_owned())], Rank::Prefix),
            _ => (Vec::new(), Rank::Prefix),
        };
        let is_free = matches!(rules::access(&inner), Access::Free);
        let paths = match paths.is_empty() || !paths.iter().all(|path| is_path(path.text())) {
            false => paths,
            true => {
                let wider = folder(text).filter(|_| !is_free && rank == Rank::Expression);
                let remark = match (is_free, wider.is_some()) {
                    (true, _) => {
                        "a route has a `path` or a `path_prefix`, no regular expression: its requests reach other routes"
                    }
                    (false, true) => {
                        "it restricts access: everything below its folder is refused, as routes have no regular expression"
                    }
                    (false, false) => {
                        "it restricts access, and its requests reach other routes: let the nodes refuse them"
                    }
                };
                draft.lose(&directive.place, directive.shown(), remark);
                wider.into_iter().collect()
            }
        };
        if mark == "~*" && !paths.is_empty() {
            match is_free {
                true => draft.differ(&directive.place, directive.shown(), "paths are matched with their case"),
                false => {
                    draft.lose(&directive.place, directive.shown(), "it restricts access; other cases of its path pass")
                }
            }
        }
        for path in paths {
            if let PathMatch::Prefix(prefix) = &path
                && !prefix.ends_with('/')
            {
                let remark = format!("`path_prefix` matches whole segments: {prefix} and {prefix}/..., not {prefix}x");
                match is_free {
                    true => draft.differ(&directive.place, directive.shown(), remark),
                    false => draft.lose(&directive.place, directive.shown(), format!("it restricts access; {remark}")),
                }
            }
            found.push(Found { directive, scope: inner.clone(), path, rank });
        }
    }
}

/// Returns the paths of an expression that is a text with `^`, and with `$` or an open end; it may have one group of
/// texts, as in `^/(a|b)/`. Of other expressions it returns none.
fn expressions(text: &str) -> Vec<PathMatch> {
    let group = text.find('(').and_then(|start| {
        let (before, rest) = text.split_at(start);
        let (inner, after) = rest[1..].split_once(')')?;
        inner.contains('|').then(|| (before, inner.trim_start_matches("?:"), after))
    });
    let texts = match group {
        Some((before, inner, after)) => inner.split('|').map(|choice| format!("{before}{choice}{after}")).collect(),
        None => vec![text.to_owned()],
    };
    texts.iter().map(|text| expression(text)).collect::<Option<_>>().unwrap_or_default()
}

/// The characters of expressions that stand for something else.
const SPECIAL: [char; 13] = ['.', '*', '+', '?', '(', ')', '[', ']', '|', '\\', '$', '^', '{'];

fn expression(text: &str) -> Option<PathMatch> {
    let text = text.strip_prefix('^')?;
    let (text, is_exact) = match text.strip_suffix('$') {
        Some(text) => (text, true),
        None => (text, false),
    };
    let open = text.strip_suffix("(.*)").or_else(|| text.strip_suffix(".*"));
    let literal = open.unwrap_or(text).replace("\\.", "\u{0}").replace("\\-", "-").replace("\\/", "/");
    if literal.contains(SPECIAL) {
        return None;
    }
    let literal = literal.replace('\u{0}', ".");
    Some(if is_exact && open.is_none() { PathMatch::Exact(literal) } else { PathMatch::Prefix(literal) })
}

/// Returns the folder in which all paths of an expression are, if that is not all paths.
fn folder(text: &str) -> Option<PathMatch> {
    let literal = text.strip_prefix('^')?.split(SPECIAL).next()?;
    let folder = &literal[..=literal.rfind('/')?];
    // A choice at the top has other folders.
    (folder.len() > 1 && is_path(folder) && !text.contains('|')).then(|| PathMatch::Prefix(folder.to_owned()))
}

/// Sets the action and the rules of a route.
fn act(draft: &mut Draft, site: &Site<'_>, location: &Found<'_>, route: &mut Route) {
    let (scope, own) = (&location.scope, location.directive);
    let named = |name: &str| own.block.iter().find(|directive| directive.name == name);
    if let Some(answered) = named("return") {
        answer(draft, route, answered);
        rules::response_fields(draft, scope, route);
        if let Some(kind) = named("default_type") {
            draft.differ(
                &kind.place,
                kind.shown(),
                "a body is sent as text/plain: set content-type by `response_headers`",
            );
        }
        return;
    }
    let is_rest = std::ptr::eq(own, site.server);
    let rewrites = own.block.iter().filter(|directive| directive.name == "rewrite" && !is_rest);
    for rewrite in rewrites {
        if rules::rewrite(draft, route, rewrite) {
            return;
        }
    }
    if refuses(draft, scope, route) {
        return;
    }
    match pass(draft, site, location) {
        Pass::Node(pass, pass_scope, target) => {
            // A named location has rules of its own.
            let is_named = !std::ptr::eq(pass_scope.own(), scope.own());
            if is_named && refuses(draft, &pass_scope, route) {
                return;
            }
            let inner = pass_scope.own().iter().find(|inner| is_named && matches!(&*inner.name, "if" | "rewrite"));
            if let Some(inner) = inner {
                draft.lose(&inner.place, inner.shown(), "it stands in a named location: the route is refused");
                return route.refuse(501, "not translated");
            }
            route.set("pool", Value::text(target.pool));
            target.route.into_iter().for_each(|(key, value)| route.set(&key, value));
            rules::rules(draft, &pass_scope, pass, route);
            rules::limits(draft, site.shared, scope, route);
        }
        Pass::Unknown => route.refuse(501, "not translated"),
        Pass::Nothing => route.refuse(404, ""),
    }
}

/// Refuses the requests of a place that restricted access. Returns whether it did.
fn refuses(draft: &mut Draft, scope: &Scope<'_>, route: &mut Route) -> bool {
    match rules::access(scope) {
        Access::Free => return false,
        Access::Denied => route.refuse(403, ""),
        Access::Internal => {
            let directive = scope.own().iter().find(|directive| directive.name == "internal");
            if let Some(internal) = directive {
                draft.differ(
                    &internal.place,
                    internal.shown(),
                    "it is refused; `X-Accel-Redirect` of nodes is not followed",
                );
            }
            route.refuse(404, "");
        }
        Access::Restricted(directive) => {
            let remark =
                "Ringway does not check this: the route is refused. Let the nodes check it, and give it its pool";
            draft.lose(&directive.place, directive.shown(), remark);
            route.refuse(403, "");
        }
    }
    true
}

/// The destination of a location's requests.
enum Pass<'a> {
    Node(&'a Directive, Scope<'a>, Target),
    /// It could not be translated.
    Unknown,
    /// Files, or nothing.
    Nothing,
}

fn pass<'a>(draft: &mut Draft, site: &Site<'a>, location: &Found<'a>) -> Pass<'a> {
    let own = location.directive;
    let of = |block: &'a [Directive]| block.iter().find(|found| matches!(&*found.name, "proxy_pass" | "grpc_pass"));
    let mut found = of(&own.block).map(|pass| (pass, location.scope.clone()));
    let files = own.block.iter().find(|found| matches!(&*found.name, "try_files" | "root" | "alias"));
    // `try_files $uri @app`: what is no file goes to the nodes.
    let fallback = own.block.iter().find(|found| found.name == "try_files");
    if let (None, Some(files)) = (&found, fallback) {
        let name = files.words.last().filter(|name| name.starts_with('@'));
        let mut locations = site.scope.own().iter().filter(|found| found.name == "location");
        let block = name.and_then(|name| locations.find(|location| location.words == [name.clone()]));
        if let Some(block) = block {
            found = of(&block.block).map(|pass| (pass, site.scope.inner(&block.block)));
            let remark = "all requests go to the nodes: Ringway serves no files";
            draft.differ(&files.place, files.shown(), remark);
        }
    }
    if let Some((pass, scope)) = found {
        let Some((authority, is_secure)) = authority(pass) else {
            draft.lose(
                &pass.place,
                pass.shown(),
                "a pool has the addresses of its nodes: no variables, no Unix sockets",
            );
            return Pass::Unknown;
        };
        return match upstream::target(draft, &site.shared.upstreams, &scope, pass, authority, is_secure) {
            Some(target) => Pass::Node(pass, scope, target),
            None => {
                draft.lose(&pass.place, pass.shown(), "expected a host with a port, or the name of an `upstream`");
                Pass::Unknown
            }
        };
    }
    let gateway = ["fastcgi_pass", "uwsgi_pass", "scgi_pass", "memcached_pass"];
    if let Some(gateway) = own.block.iter().find(|found| gateway.contains(&&*found.name)) {
        draft.lose(&gateway.place, gateway.shown(), "Ringway speaks HTTP to its nodes, and no other protocol");
        return Pass::Unknown;
    }
    if let Some(status) = own.block.iter().find(|found| found.name == "stub_status") {
        draft.lose(&status.place, status.shown(), "the admin listener has the metrics, at /metrics");
        return Pass::Nothing;
    }
    if files.is_none() && std::ptr::eq(own, site.server) {
        return Pass::Nothing;
    }
    let directive = files.unwrap_or(own);
    draft.lose(&directive.place, directive.shown(), "Ringway serves no files: let a node do it");
    Pass::Nothing
}

/// Returns the host or upstream of a `proxy_pass`, and whether it is spoken to by TLS.
fn authority(pass: &Directive) -> Option<(&str, bool)> {
    let url = pass.word(0);
    let (is_secure, rest) = match url.split_once("://") {
        Some(("http" | "grpc", rest)) => (false, rest),
        Some(("https" | "grpcs", rest)) => (true, rest),
        Some(_) => return None,
        None if pass.name == "grpc_pass" => (false, url),
        None => return None,
    };
    let authority = rest.split('/').next().unwrap_or_default();
    (!authority.contains('$') && !authority.starts_with("unix:")).then_some((authority, is_secure))
}
