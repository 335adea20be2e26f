//! The effects of a write on the cache (RFC 9111 4.4), for the plain and for the idempotent path: the stored responses
//! that it invalidates, and the storage of its own response for later GETs.

use super::request::{caching_route, has_override, order};
use super::serving::{ReplyBuilder, ServedFrom};
use crate::cache::{Cache, FetchToken, Key, KeyRules, LeaderResult, Order, TargetUri};
use crate::fleet::Event;
use crate::http::head::{RequestFields, RequestHead};
use crate::http::method::is_safe;
use crate::http::problem::Problem;
use crate::http::target;
use crate::proxy::forward::RoutedRequest;
use crate::proxy::plan;
use crate::proxy::problems::stopped;
use crate::proxy::respond::Reply;
use crate::proxy::snapshot::Route;
use crate::proxy::upstream::UpstreamRequest;
use crate::proxy::worker_context::WorkerContext;
use crate::upstream::AnswerBody;
use http::header::{CONTENT_LOCATION, LOCATION};
use http::{HeaderMap, HeaderName, Method, StatusCode, Uri};
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Returns the invalidation that a request may cause on a caching route; `None` for a safe method.
pub(in crate::proxy) fn invalidation(
    routed: &RoutedRequest<'_>,
    caching: &Route,
    head: &RequestHead,
) -> Option<Invalidation> {
    if is_safe(&head.method) {
        return None;
    }
    let rules = caching.cache.as_ref()?;
    let target = plan::cache_target(&routed.form, &head.fields);
    let fields = &head.fields;
    let order = order(rules, rules.key.key(target, fields), target, &head.method, fields)
        .for_requester(routed.exchange.requester());
    let base = BaseUri {
        scheme: fields.facts.scheme(),
        host: routed.form.host.to_string(),
        authority: target.authority.to_owned(),
        path: target.path.to_owned(),
        default_port: fields.facts.default_port(),
    };
    // The response to a POST with fields that override its method or URI is not stored for GETs.
    // On a strong route it would need a tag from before the write, which the mark of the write outdates.
    let is_strong = routed.mark.is_some() || caching.consistency.as_ref().is_some_and(|rules| rules.strong.is_some());
    let may_serve_reads = head.method == Method::POST
        && !is_strong
        && !has_override(fields.plain())
        && !rules.bypass_cookies.are_in(fields.plain());
    Some(Invalidation { targets: targets(&rules.key, target), order: Rc::new(order), may_serve_reads, base })
}

/// The stored responses of a route that a write may invalidate.
pub(in crate::proxy) struct Invalidation {
    /// Its URIs and their keys without further parts: with the query as the route normalises it, and with the complete
    /// query, under which an earlier configuration may have stored it.
    targets: [(Key, String); 2],
    order: Rc<Order>,
    /// The response to this POST may be stored for GETs.
    may_serve_reads: bool,
    base: BaseUri,
}

impl Invalidation {
    /// Forwards the write, and invalidates stored responses by its result.
    pub(super) async fn forward(self, upstream_request: Box<UpstreamRequest>) -> Reply {
        let exchange = Rc::clone(upstream_request.exchange());
        let (sender, receiver) = oneshot::channel();
        // In a task of its own, so that it invalidates even if the client disconnects before the response.
        tokio::task::spawn_local(async move { drop(sender.send(self.forwarded(upstream_request).await)) });
        receiver.await.unwrap_or_else(|_| Reply::problem(&stopped(), &exchange))
    }

    /// Returns the reply to the client, after the invalidation.
    async fn forwarded(self, mut upstream_request: Box<UpstreamRequest>) -> Reply {
        let worker = Rc::clone(&upstream_request.context.worker);
        let cache = Arc::clone(&worker.cache);
        let query =
            upstream_request.dispatch.request.as_ref().and_then(|request| request.uri().query().map(str::to_owned));
        let (requested, status) = (cache.now(), upstream_request.cache_status);
        let token = cache.begin(&self.order);
        let answer = Box::pin(async { upstream_request.fetch().await }).await;
        let reply = match answer {
            Err(problem) => Reply::problem(&problem, upstream_request.exchange()),
            Ok(response) => {
                self.carry_out(&worker, response.status(), response.headers(), Some(&token));
                let may_serve_reads = self.may_serve_reads
                    && response.status() == StatusCode::OK
                    && self.is_own(response.headers(), query.as_deref())
                    && !cache.is_outdated(&self.order, response.headers(), &token);
                match may_serve_reads {
                    true => {
                        let (result, arriving) = cache.adopt::<_, Problem>(&self.order, response, requested, token);
                        if let Some(arriving) = arriving {
                            let (cache, order) = (Arc::clone(&cache), Rc::clone(&self.order));
                            tokio::task::spawn_local(async move { cache.receive(&order, arriving).await });
                        }
                        adopted(&upstream_request, result, &cache)
                    }
                    false => upstream_request.context.reply(response),
                }
            }
        };
        reply.with_cache_status(status)
    }

    /// Invalidates stored responses after a write with this response; an error status invalidates nothing. `token` is
    /// that of the write itself, whose response may be stored.
    pub(in crate::proxy) fn carry_out(
        &self,
        worker: &WorkerContext,
        status: StatusCode,
        answer: &HeaderMap,
        token: Option<&FetchToken>,
    ) {
        if !(status.is_success() || status.is_redirection()) {
            return;
        }
        let named = [LOCATION, CONTENT_LOCATION].map(|name| {
            text(answer, &name).and_then(|reference| self.base.named(worker, reference, &self.order.request))
        });
        let targets = || self.targets.iter().chain(named.iter().flatten().flatten());
        for (key, uri) in targets() {
            worker.cache.invalidate(*key, uri, token);
        }
        let order = &self.order;
        let written =
            order.requester.as_ref().zip(order.base.as_ref()).and_then(|(requester, base)| requester.wrote(base));
        if let Some(bus) = &worker.bus {
            let mut uris: Vec<String> = targets().map(|(_, uri)| uri.clone()).collect();
            uris.sort_unstable();
            uris.dedup();
            bus.publish(Event::Write { uris, causal: written.map(|write| write.encode().into()) });
        }
    }

    fn is_own(&self, answer: &HeaderMap, query: Option<&str>) -> bool {
        text(answer, &CONTENT_LOCATION).is_some_and(|reference| self.base.is_own(reference, query))
    }
}

/// Returns the reply to the client from a response that is stored for GETs.
fn adopted(upstream_request: &UpstreamRequest, result: LeaderResult<AnswerBody, Problem>, cache: &Cache) -> Reply {
    match result {
        LeaderResult::Streaming { reader, own, .. } => {
            // Conditions and ranges do not apply to a POST.
            let (fields, now) = (HeaderMap::new(), cache.now());
            let exchange = upstream_request.exchange();
            let replies = ReplyBuilder { method: &Method::POST, fields: &fields, rules: None, exchange, now };
            replies.serve_arriving(reader, Some(own), ServedFrom::AdoptedPost, None)
        }
        LeaderResult::Private(response) => upstream_request.context.reply(response),
        LeaderResult::Confirmed { .. } | LeaderResult::StandIn(_) | LeaderResult::Failed(_) => {
            unreachable!("a response that is adopted is there already")
        }
    }
}

/// Returns the URIs that a change of a resource invalidates, with the query as the route normalises it and with the
/// complete one, and their keys without further parts.
fn targets(rules: &KeyRules, target: TargetUri<'_>) -> [(Key, String); 2] {
    [rules, &KeyRules::default()].map(|rules| (rules.of_uri(target), rules.uri(target)))
}

/// The URI of a request, against which references in its response are resolved (RFC 3986 5.1).
struct BaseUri {
    scheme: &'static str,
    host: String,
    authority: String,
    path: String,
    default_port: u16,
}

impl BaseUri {
    /// Returns the normal path and the query of a reference; `None` where it is of another origin.
    fn resolve(&self, reference: &str) -> Option<(String, Option<String>)> {
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

    /// Returns whether a reference is the request's own URI.
    fn is_own(&self, reference: &str, query: Option<&str>) -> bool {
        self.resolve(reference).is_some_and(|(path, named)| path == self.path && named.as_deref() == query)
    }

    /// Returns the stored responses of a URI of the same origin, by keys and URIs.
    fn named(&self, worker: &WorkerContext, reference: &str, fields: &RequestFields) -> Option<[(Key, String); 2]> {
        let (path, query) = self.resolve(reference)?;
        let snapshot = worker.snapshot();
        let route = caching_route(&snapshot, &self.host, &path, fields)?;
        let rules = route.cache.as_ref()?;
        let target =
            TargetUri { scheme: self.scheme, authority: &self.authority, path: &path, query: query.as_deref() };
        Some(targets(&rules.key, target))
    }
}

fn text<'a>(fields: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    fields.get(name).and_then(|value| value.to_str().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn references_are_resolved_within_the_origin() {
        let base = BaseUri {
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
            let resolved = base.resolve(reference);
            let resolved = resolved.as_ref().map(|(path, query)| (path.as_str(), query.as_deref()));
            assert_eq!(resolved, expected, "{reference}");
        }
        assert!(base.is_own("http://a.example:8080/x/y", None) && !base.is_own("/x/y", Some("q")));
    }

    proptest! {
        #[test]
        fn any_reference_is_within_the_origin_or_none(reference in "\\PC{0,40}") {
            let base = BaseUri { scheme: "http", host: "a.example".into(), authority: "a.example".into(), path: "/x/y".into(), default_port: 80 };
            if let Some((path, _)) = base.resolve(&reference) {
                prop_assert!(path.starts_with('/'), "{path}");
            }
        }
    }
}
