//! `return` and `if`: fixed responses and redirections, and the conditions that routes can make.

use super::super::draft::{Draft, PathMatch, Route, host, is_field, slug};
use super::super::yaml::{Value, entries};
use super::rules;
use super::scope::Scope;
use super::syntax::Directive;

/// Sets the response of a route by `return`.
pub(super) fn answer(draft: &mut Draft, route: &mut Route, directive: &Directive) {
    if route.comments.is_empty() {
        route.comments.push(format!("{}: {}", directive.place, directive.shown()));
    }
    let (status, text) = match directive.word(0).parse::<u16>() {
        Ok(status) => (status, directive.word(1)),
        // Only a URL stands there.
        Err(_) => (302, directive.word(0)),
    };
    if [301, 302, 303, 307, 308].contains(&status) && !text.is_empty() {
        if text.contains("$server_name") {
            draft.differ(
                &directive.place,
                directive.shown(),
                "$server_name is the host of the request, not the first name",
            );
        }
        match rules::location(text) {
            Some(to) => route.set("redirect", rules::redirect(to, status)),
            None => {
                let remark = "a redirection has {host}, {path} and {uri}, no other variables: the route is refused";
                draft.lose(&directive.place, directive.shown(), remark);
                route.refuse(501, "not translated");
            }
        }
        return;
    }
    // nginx's own status closes the connection.
    let status = if status == 444 { 403 } else { status };
    if !(200..600).contains(&status) {
        draft.lose(&directive.place, directive.shown(), "expected a status code");
        return route.refuse(501, "not translated");
    }
    let mut response = entries([("status", Value::plain(status))]);
    match text.contains('$') {
        true => draft.lose(&directive.place, directive.shown(), "the text of a response has no variables"),
        false if text.is_empty() => {}
        false => response.push(("body".to_owned(), Value::text(text))),
    }
    route.set("respond", Value::Map(response));
}

/// The methods that a route can name in place of all others.
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"];

/// Returns the route of an `if` with a `return`, where its condition is one that routes have.
pub(super) fn condition(
    draft: &mut Draft,
    base: &Route,
    directive: &Directive,
    prefix: &str,
    scope: &Scope<'_>,
) -> Option<Route> {
    let text = directive.words.join(" ");
    let text = text.trim().trim_start_matches('(').trim_end_matches(')').trim();
    let mut words = text.splitn(3, ' ').map(|word| word.trim_matches(['"', '\'']));
    let (variable, operator, value) =
        (words.next()?, words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let answered = directive.block.iter().find(|inner| inner.name == "return");
    let mut route = Route { comments: Vec::new(), entries: Vec::new(), ..base.clone() };
    let fits = match (variable, operator) {
        ("$host" | "$http_host" | "$server_name", "=") => host(value).is_some_and(|host| {
            let is_own = route.hosts.is_empty() || route.hosts.contains(&host);
            route.hosts = vec![host];
            is_own
        }),
        ("$scheme", "=") if value == "http" || value == "https" => {
            route.scheme = Some(if value == "http" { "http" } else { "https" });
            true
        }
        ("$scheme" | "$http_x_forwarded_proto", "!=") if value == "https" => {
            route.scheme = Some("http");
            true
        }
        ("$http_x_forwarded_proto", "=") if value == "http" => {
            route.scheme = Some("http");
            true
        }
        ("$request_method", "!~") => {
            let allowed = value.trim_start_matches(['^', '(']).trim_end_matches(['$', ')']);
            let is_allowed = |method: &&str| allowed.split('|').any(|other| other == *method);
            route.methods =
                METHODS.iter().filter(|method| !is_allowed(method)).map(|&method| method.to_owned()).collect();
            allowed.split('|').all(|method| METHODS.contains(&method)) && !route.methods.is_empty()
        }
        ("$request_method", "=") if value.bytes().all(|byte| byte.is_ascii_uppercase()) && !value.is_empty() => {
            route.methods = vec![value.to_owned()];
            true
        }
        (variable, "=") => match variable.strip_prefix("$http_").map(|name| name.replace('_', "-")) {
            Some(name) if is_field(&name, value) && !value.is_empty() => {
                route.headers = vec![(name, Value::text(value))];
                true
            }
            _ => false,
        },
        _ => false,
    };
    let Some(answered) = answered.filter(|_| fits) else {
        // An answer that only some clients did not get is now that of all.
        let is_custom = !variable.starts_with("$http_") && !variable.starts_with("$arg") && variable != "$request_uri";
        let is_closing =
            matches!(operator, "!=" | "!~" | "!~*") || (operator == "=" && (is_custom || value.is_empty()));
        let refusal = answered.filter(|answered| {
            is_closing && answered.word(0).parse::<u16>().is_ok_and(|status| (400..500).contains(&status))
        });
        let remark = match refusal {
            Some(_) => "only some clients got another answer: it is now that of all, until the nodes check them",
            None => "a condition is one of host, scheme, method or a field with `=`, and answers with `return`",
        };
        draft.lose(&directive.place, directive.shown(), remark);
        let mut route = Route { comments: Vec::new(), entries: Vec::new(), ..base.clone() };
        route.path.get_or_insert_with(|| PathMatch::Prefix("/".to_owned()));
        route.name = format!("{prefix}refused");
        answer(draft, &mut route, refusal?);
        return Some(route);
    };
    if route.path.is_none() {
        route.path = Some(PathMatch::Prefix("/".to_owned()));
    }
    route.name = format!("{prefix}{}", slug(&format!("if {}", variable.trim_start_matches('$'))));
    route.comments.push(format!("{}: {}", directive.place, directive.shown()));
    answer(draft, &mut route, answered);
    rules::response_fields(draft, &scope.inner(&directive.block), &mut route);
    if variable == "$request_method" && operator == "!~" {
        draft.lose(&directive.place, directive.shown(), "the other standard methods are refused; unknown ones pass");
    }
    if variable == "$http_x_forwarded_proto" {
        let remark = "name the load balancer in `trusted_proxies`: only its X-Forwarded-Proto is believed";
        draft.differ(&directive.place, directive.shown(), remark);
    }
    Some(route)
}
