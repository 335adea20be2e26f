//! The step that answers from the cache at once, or says what is to be fetched.
//!
//! A hit ends here, without a task and without waiting for anybody. Everything else goes on to
//! `filling`, which asks the nodes.

use super::answer::{self, ResponseBody};
use super::engine::{Begun, Engine};
use super::filling::{Change, Miss, has_override};
use super::forward::RoutedRequest;
use super::route::Query;
use super::serving::Asking;
use super::snapshot::{CacheResult, CacheRules, Route, Snapshot};
use crate::cache::{
    self, Asker, CacheStatus, ForwardReason, Joined, Key, KeyRules, Known, Order, RequestDirectives, Reuse, Target,
};
use crate::http::fields::CACHE_STATUS;
use crate::http::head::{RequestFields, RequestHead};
use crate::http::method::is_safe;
use crate::http::problem::Problem;
use crate::http::target;
use http::header::{AUTHORIZATION, COOKIE};
use http::{Method, Response, StatusCode, Uri};
use std::rc::Rc;
use std::sync::Arc;

/// Returns the route whose cache a request concerns: its own, or, where it changes something, the one that
/// reads of the same URI take.
pub(super) fn concerns(snapshot: &Snapshot, routed: &RoutedRequest<'_>, head: &RequestHead) -> Option<Arc<Route>> {
    let own = || routed.route.cache.is_some().then(|| Arc::clone(routed.route));
    if is_safe(&head.method) {
        return own();
    }
    let (host, path) = (&*routed.form.host, &*routed.form.path);
    caching_route(snapshot, host, path, &head.fields).or_else(own)
}

/// The caching route that a GET takes.
fn caching_route(snapshot: &Snapshot, host: &str, path: &str, fields: &RequestFields) -> Option<Arc<Route>> {
    let index = snapshot.table.find(Query { host, path, method: &Method::GET, fields })?;
    let route = &snapshot.routes[index];
    route.cache.is_some().then(|| Arc::clone(route))
}

fn is_read(method: &Method) -> bool {
    *method == Method::GET || *method == Method::HEAD
}

/// Answers from the store, or begins what fills it.
pub(super) fn begin(routed: &RoutedRequest<'_>, caching: &Arc<Route>, head: RequestHead) -> Result<Begun, Problem> {
    let Some(rules) = &caching.cache else { return routed.begin(head) };
    if !is_read(&head.method) {
        return other_method(routed, caching, head);
    }
    let scheme = head.fields.facts.scheme();
    let query = routed.form.query.as_deref();
    let target = Target { scheme, authority: &routed.form.authority, path: &routed.form.path, query };
    let fields = &head.fields;
    let engine = routed.engine;
    let directives = RequestDirectives::of(fields.plain());
    let honoured = rules.policy.honours_clients.then_some(&directives);
    if routed.form.has_body || rules.bypass_cookies.are_in(fields.plain()) {
        if directives.only_if_cached {
            return Ok(Begun::Answer(refused(routed, rules)));
        }
        return bypass(routed, rules, head);
    }
    let key = rules.key.key(target, fields);
    let now = engine.cache.at(routed.exchange.started);
    // A request to switch protocols is between this client and the node.
    let is_private = fields.facts.upgrade().is_some();
    let asking =
        Asking { method: &head.method, fields: fields.plain(), route: routed.route, exchange: routed.exchange, now };
    let why = match engine.cache.look_up(key, fields) {
        Known::Response(held) => match held.reuse(now, honoured) {
            Reuse::Yes { stale } => {
                note(routed, rules, if stale { CacheResult::Stale } else { CacheResult::Hit });
                held.note_use(now);
                return Ok(Begun::Answer(asking.serve(&held, CacheStatus::Hit { ttl: held.ttl(now) })));
            }
            Reuse::WhileValidating => {
                note(routed, rules, CacheResult::Stale);
                held.note_use(now);
                let answer = asking.serve(&held, CacheStatus::Hit { ttl: held.ttl(now) });
                if !is_private && !held.is_pausing(now) && !directives.no_store {
                    let order = order(rules, key, target, &head.method, fields);
                    // One validation at a time is enough.
                    if let Joined::Lead(lead) = engine.cache.join(engine.cache.group(&order), &order)
                        && let Ok(miss) = miss(routed, caching, order, head, ForwardReason::Stale)
                    {
                        miss.validate_in_background(lead);
                    }
                }
                return Ok(Begun::Answer(answer));
            }
            Reuse::AfterValidation if held.is_pausing(now) && held.stands_in(now) && !directives.only_if_cached => {
                note(routed, rules, CacheResult::Stale);
                return Ok(Begun::Answer(asking.serve(&held, CacheStatus::StandIn { ttl: held.ttl(now) })));
            }
            Reuse::AfterValidation if held.is_fresh(now) => ForwardReason::Request,
            Reuse::AfterValidation => ForwardReason::Stale,
        },
        Known::Others => ForwardReason::VaryMiss,
        Known::Nothing => ForwardReason::UriMiss,
    };
    if directives.only_if_cached {
        return Ok(Begun::Answer(refused(routed, rules)));
    }
    if is_private {
        return bypass(routed, rules, head);
    }
    let order = order(rules, key, target, &head.method, fields);
    let miss = miss(routed, caching, order, head, why)?;
    Ok(Begun::Later(Box::pin(miss.answer())))
}

/// Forwards a request that the store neither answers nor learns from.
fn bypass(routed: &RoutedRequest<'_>, rules: &CacheRules, head: RequestHead) -> Result<Begun, Problem> {
    note(routed, rules, CacheResult::Bypass);
    let mut upstream_request = routed.upstream_request(head)?;
    upstream_request.cache_status = Some(CacheStatus::forwarded(ForwardReason::Bypass));
    Ok(Begun::Forward(upstream_request))
}

/// Answers a request that asks not to go further.
fn refused(routed: &RoutedRequest<'_>, rules: &CacheRules) -> Response<ResponseBody> {
    note(routed, rules, CacheResult::Refused);
    let mut response = answer::problem(&not_cached(), routed.exchange);
    response.headers_mut().append(CACHE_STATUS, CacheStatus::Refused.to_value());
    response
}

fn note(routed: &RoutedRequest<'_>, rules: &CacheRules, result: CacheResult) {
    rules.count(result);
    routed.exchange.cached(result.label());
}

fn order(rules: &CacheRules, key: Key, target: Target<'_>, method: &Method, fields: &RequestFields) -> Order {
    let plain = fields.plain();
    Order {
        key,
        uri: rules.key.uri(target),
        has_parts: rules.key.has_parts(),
        request: fields.clone(),
        asker: Asker {
            is_post: !is_read(method),
            has_authorization: plain.contains_key(AUTHORIZATION),
            has_cookie: plain.contains_key(COOKIE),
            no_store: RequestDirectives::of(plain).no_store,
        },
        policy: Arc::clone(&rules.policy),
    }
}

fn miss(
    routed: &RoutedRequest<'_>,
    caching: &Arc<Route>,
    order: Order,
    head: RequestHead,
    why: ForwardReason,
) -> Result<Miss, Problem> {
    let method = head.method.clone();
    let upstream_request = routed.upstream_request(head)?;
    Ok(Miss::new(upstream_request, Arc::clone(caching), Rc::new(order), method, why))
}

/// Forwards what a cache does not answer; where it changes something, what is stored of it goes.
fn other_method(routed: &RoutedRequest<'_>, caching: &Route, head: RequestHead) -> Result<Begun, Problem> {
    let own = routed.route.cache.as_ref();
    if let Some(own) = own {
        note(routed, own, CacheResult::Bypass);
    }
    let status = own.map(|_| CacheStatus::forwarded(ForwardReason::Method));
    if is_safe(&head.method) {
        return match routed.begin(head)? {
            Begun::Forward(mut upstream_request) => {
                upstream_request.cache_status = status;
                Ok(Begun::Forward(upstream_request))
            }
            other => Ok(other),
        };
    }
    let change = change(routed, caching, &head);
    let mut upstream_request = routed.upstream_request(head)?;
    upstream_request.cache_status = status;
    match change {
        Some(change) => Ok(Begun::Later(Box::pin(change.carry_out(upstream_request)))),
        None => Ok(Begun::Forward(upstream_request)),
    }
}

/// What a request may make untrue of what a route has stored.
pub(super) fn change(routed: &RoutedRequest<'_>, caching: &Route, head: &RequestHead) -> Option<Change> {
    if is_safe(&head.method) {
        return None;
    }
    let rules = caching.cache.as_ref()?;
    let scheme = head.fields.facts.scheme();
    let query = routed.form.query.as_deref();
    let target = Target { scheme, authority: &routed.form.authority, path: &routed.form.path, query };
    let fields = &head.fields;
    let order = order(rules, rules.key.key(target, fields), target, &head.method, fields);
    let place = Place {
        scheme,
        host: routed.form.host.to_string(),
        authority: target.authority.to_owned(),
        path: target.path.to_owned(),
        default_port: fields.facts.default_port(),
    };
    // A POST with fields that override its method or URI has no answer for reads.
    let may_serve_reads =
        head.method == Method::POST && !has_override(fields.plain()) && !rules.bypass_cookies.are_in(fields.plain());
    Some(Change { targets: targets(&rules.key, target), order: Rc::new(order), may_serve_reads, place })
}

/// What is struck by a change of a resource: its URI, with the query as the route takes it and as it stands, and the keys
/// that are made of these alone.
fn targets(rules: &KeyRules, target: Target<'_>) -> [(Key, String); 2] {
    [rules, &KeyRules::default()].map(|rules| (rules.of_uri(target), rules.uri(target)))
}

/// Where a request went, for the references in its answer.
pub(super) struct Place {
    scheme: &'static str,
    host: String,
    authority: String,
    path: String,
    default_port: u16,
}

impl Place {
    /// Returns a reference of the same origin as a path in the proxy's form, and a query.
    pub(super) fn resolve(&self, reference: &str) -> Option<(String, Option<String>)> {
        let reference = reference.split('#').next().unwrap_or_default().trim();
        let absolute = reference.contains("://") || reference.starts_with("//");
        let text = match reference {
            "" => self.path.clone(),
            _ if absolute || reference.starts_with('/') => reference.trim_start_matches("//").to_owned(),
            _ if reference.starts_with('?') => [&self.path, reference].concat(),
            _ => {
                let folder = &self.path[..=self.path.rfind('/')?];
                [folder, reference].concat()
            }
        };
        let uri: Uri =
            if reference.starts_with("//") { format!("{}://{text}", self.scheme) } else { text }.parse().ok()?;
        if let Some(authority) = uri.authority() {
            let parsed = target::parse_authority(authority.as_str(), self.default_port).ok()?;
            if parsed.to_text() != self.authority {
                return None;
            }
        }
        let path = if uri.path().is_empty() { "/" } else { uri.path() };
        Some((
            target::normalize_path(path).ok()?.into_owned(),
            uri.query().map(|query| target::normalize_query(query).into_owned()),
        ))
    }

    /// Returns whether a reference means the request's own URI.
    pub(super) fn is_own(&self, reference: &str, query: Option<&str>) -> bool {
        self.resolve(reference).is_some_and(|(path, asked)| path == self.path && asked.as_deref() == query)
    }

    /// Forgets what is stored of a URI of the same origin, but for what the change itself brings.
    pub(super) fn invalidate(
        &self,
        engine: &Engine,
        reference: &str,
        fields: &RequestFields,
        but: Option<&cache::Begun>,
    ) {
        let Some((path, query)) = self.resolve(reference) else { return };
        let snapshot = engine.snapshot();
        let Some(route) = caching_route(&snapshot, &self.host, &path, fields) else { return };
        let Some(rules) = &route.cache else { return };
        let target = Target { scheme: self.scheme, authority: &self.authority, path: &path, query: query.as_deref() };
        for (key, uri) in targets(&rules.key, target) {
            engine.cache.invalidate(key, &uri, but);
        }
    }
}

/// 504 for `only-if-cached`, where nothing is (RFC 9111 5.2.1.7).
fn not_cached() -> Problem {
    let detail = "nothing is stored that may answer this request, and it asks not to go further";
    Problem::new(StatusCode::GATEWAY_TIMEOUT, "not-cached", "http_request_denied", detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn references_are_resolved_within_the_origin() {
        let place = Place {
            scheme: "http",
            host: "a.example".into(),
            authority: "a.example:8080".into(),
            path: "/x/y".into(),
            default_port: 80,
        };
        for (reference, expected) in [
            ("/b", Some(("/b", None))),
            ("b?q=1", Some(("/x/b", Some("q=1")))),
            ("?q", Some(("/x/y", Some("q")))),
            ("", Some(("/x/y", None))),
            ("../b#c", Some(("/b", None))),
            ("http://A.example:8080/%62", Some(("/b", None))),
            ("https://a.example:8080", Some(("/", None))),
            ("//a.example:8080/b", Some(("/b", None))),
            ("http://a.example/b", None),
            ("http://b.example:8080/b", None),
            ("//b.example/b", None),
        ] {
            let resolved = place.resolve(reference);
            let resolved = resolved.as_ref().map(|(path, query)| (path.as_str(), query.as_deref()));
            assert_eq!(resolved, expected, "{reference}");
        }
        assert!(place.is_own("http://a.example:8080/x/y", None) && !place.is_own("/x/y", Some("q")));
    }

    proptest! {
        #[test]
        fn any_reference_is_within_the_origin_or_none(reference in "\\PC{0,40}") {
            let place = Place { scheme: "http", host: "a.example".into(), authority: "a.example".into(), path: "/x/y".into(), default_port: 80 };
            if let Some((path, _)) = place.resolve(&reference) {
                prop_assert!(path.starts_with('/'), "{path}");
            }
        }
    }
}
