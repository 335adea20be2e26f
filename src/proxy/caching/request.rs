//! The traits of a request that decide on caching: its route, its key, and its requester.

use crate::cache::{Key, Order, RequestDirectives, RequestTraits, TargetUri};
use crate::http::head::{RequestFields, RequestHead};
use crate::http::method::is_safe;
use crate::proxy::forward::RoutedRequest;
use crate::proxy::route::Query;
use crate::proxy::snapshot::{CacheRules, Route, Snapshot};
use http::header::{AUTHORIZATION, COOKIE};
use http::{HeaderMap, HeaderName, Method};
use std::sync::Arc;

/// Returns the route whose cache a request concerns: its own, or, for an unsafe method, that of a GET for the same URI.
pub(in crate::proxy) fn route_of(
    snapshot: &Snapshot,
    routed: &RoutedRequest<'_>,
    head: &RequestHead,
) -> Option<Arc<Route>> {
    let own = || routed.route.cache.is_some().then(|| Arc::clone(routed.route));
    if is_safe(&head.method) {
        return own();
    }
    let (host, path) = (&*routed.form.host, &*routed.form.path);
    caching_route(snapshot, host, path, &head.fields).or_else(own)
}

/// Returns the caching route of a GET.
pub(super) fn caching_route(snapshot: &Snapshot, host: &str, path: &str, fields: &RequestFields) -> Option<Arc<Route>> {
    let index = snapshot.table.find(Query { host, path, method: &Method::GET, fields })?;
    let route = &snapshot.routes[index];
    route.cache.is_some().then(|| Arc::clone(route))
}

/// Returns whether the method may be answered from the store.
pub(super) fn is_read(method: &Method) -> bool {
    *method == Method::GET || *method == Method::HEAD
}

/// Returns the order for the fetch of a request.
pub(super) fn order(
    rules: &CacheRules,
    key: Key,
    target: TargetUri<'_>,
    method: &Method,
    fields: &RequestFields,
) -> Order {
    let plain = fields.plain();
    Order {
        key,
        uri: rules.key.uri(target),
        has_parts: rules.key.has_parts(),
        request: fields.clone(),
        traits: RequestTraits {
            is_post: !is_read(method),
            has_authorization: plain.contains_key(AUTHORIZATION),
            has_cookie: plain.contains_key(COOKIE),
            no_store: RequestDirectives::of(plain).no_store,
        },
        policy: Arc::clone(&rules.policy),
        requester: None,
        base: None,
    }
}

/// Fields by which some nodes override the method or URI of a request. They are not part of the key, so a shared fetch
/// is sent without them (cache poisoning). Fields that the configuration sets are kept.
pub(super) const OVERRIDES: [HeaderName; 14] = [
    HeaderName::from_static("front-end-https"),
    HeaderName::from_static("x-host"),
    HeaderName::from_static("x-http-host-override"),
    HeaderName::from_static("x-http-method"),
    HeaderName::from_static("x-http-method-override"),
    HeaderName::from_static("x-http-path-override"),
    HeaderName::from_static("x-method-override"),
    HeaderName::from_static("x-middleware-subrequest"),
    HeaderName::from_static("x-original-host"),
    HeaderName::from_static("x-original-url"),
    HeaderName::from_static("x-original-uri"),
    HeaderName::from_static("x-rewrite-url"),
    HeaderName::from_static("x-scheme"),
    HeaderName::from_static("x-url-scheme"),
];

/// Returns whether a request has a field of [`OVERRIDES`].
pub(super) fn has_override(fields: &HeaderMap) -> bool {
    OVERRIDES.iter().any(|name| fields.contains_key(name))
}
