//! The rules that concern several settings: references to missing names, duplicate ids, actions that exclude each
//! other.

use super::diagnostics::{Diagnostics, Span};
use super::model::{
    AccessLog, AffinityCookie, AffinityMode, FieldRules, IdempotencyStore, LogFormat, Pool, RateLimit, Route,
    RouteCache, RouteIdempotency, Settings, StoreKind, UnderscoresInHeaders,
};
use super::read::{Spanned, did_you_mean};
use super::values::HashSource;
use super::{validate_consistency, validate_etcd, validate_fleet, validate_saga};
use crate::http::{fields, head, method, target};
use http::Method;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HOST};
use std::time::Duration;

/// The most points of a pool's ring: 256 MiB.
pub(crate) const MAX_POINTS: u64 = 1 << 24;

/// Returns whether a text can be the id of a node.
pub(crate) fn is_node_id(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The longest time in which a spent burst may be replenished.
const LONGEST_BURST: Duration = Duration::from_secs(365 * 24 * 3600);

/// Validates the settings as a whole.
pub(super) fn validate(settings: &Settings, diagnostics: &mut Diagnostics) {
    listeners(settings, diagnostics);
    for (name, pool) in settings.pools.iter() {
        validate_pool(name, pool, diagnostics);
    }
    routes(settings, diagnostics);
    unused_pools(settings, diagnostics);
    idempotency_store(&settings.idempotency_store, diagnostics);
    if let Some(fleet) = &settings.fleet {
        validate_fleet::fleet(fleet, diagnostics);
    }
    validate_etcd::validate(settings, diagnostics);
    admin(settings, diagnostics);
    access_log(&settings.access_log, diagnostics);
    for route in &settings.routes {
        if let Some(limit) = &route.rate_limit {
            rate_limit(route, limit, diagnostics);
        }
        if let Some(cookie) = &route.affinity_cookie {
            affinity_cookie(route, cookie, diagnostics);
        }
    }
}

fn access_log(log: &AccessLog, diagnostics: &mut Diagnostics) {
    let fields = || log.fields.iter().map(|field| (field.word(), field.span));
    diagnostics.unique("field", fields());
    if let Some((_, span)) = fields().next().filter(|_| log.format != LogFormat::Json) {
        diagnostics.error(span, "`fields` chooses the fields of `format: json`; remove it, or use that format");
    }
}

fn idempotency_store(store: &IdempotencyStore, diagnostics: &mut Diagnostics) {
    let is_postgres = store.kind.value == StoreKind::Postgres;
    if is_postgres && !cfg!(feature = "postgres") {
        diagnostics.error(store.kind.span, "this Ringway was built without PostgreSQL (the feature `postgres`)");
    }
    if is_postgres && store.url_file.is_none() {
        let message = "`kind: postgres` needs `url_file`, a file with `postgres://user:password@host:5432/database`";
        diagnostics.error(store.kind.span, message);
    }
    let is_redis = store.kind.value == StoreKind::Redis;
    if is_redis && !cfg!(feature = "redis") {
        diagnostics.error(store.kind.span, "this Ringway was built without Redis (the feature `redis`)");
    }
    if is_redis && store.address.is_none() {
        diagnostics.error(store.kind.span, "`kind: redis` needs `address`, like `10.0.0.9:6379`, or a list of them");
    }
    for (key, kind, value) in [
        ("url_file", StoreKind::Postgres, &store.url_file),
        ("ca_file", StoreKind::Postgres, &store.ca_file),
        ("username", StoreKind::Redis, &store.username),
        ("password_file", StoreKind::Redis, &store.password_file),
    ] {
        if let Some(value) = value.as_ref().filter(|_| store.kind.value != kind) {
            let hint = if is_redis && key == "ca_file" { "; write `tls: { ca_file: FILE }`" } else { "" };
            diagnostics.error(value.span, format!("`{key}` belongs to `kind: {}`{hint}", kind.word()));
        }
    }
    if let Some(address) = store.address.as_ref().filter(|_| !is_redis) {
        diagnostics.error(address.span, "`address` belongs to `kind: redis`");
    }
    for (key, is_set) in [("tls", store.tls.is_some()), ("durability", store.durability.replicas > 0)] {
        if is_set && !is_redis {
            diagnostics.error(store.kind.span, format!("`{key}` belongs to `kind: redis`"));
        }
    }
    if store.username.is_some() && store.password_file.is_none() {
        diagnostics.error(store.kind.span, "`username` needs `password_file`");
    }
}

fn rate_limit(route: &Route, limit: &RateLimit, diagnostics: &mut Diagnostics) {
    let burst = limit.burst.unwrap_or(limit.requests);
    let full = (limit.per / limit.requests).checked_mul(burst);
    if full.is_none_or(|full| full > LONGEST_BURST) {
        let message = format!(
            "the `burst` of the route `{}` takes longer than a year to come back; lower it, or raise `requests`",
            route.name.value
        );
        diagnostics.error(route.name.span, message);
    }
}

fn affinity_cookie(route: &Route, cookie: &AffinityCookie, diagnostics: &mut Diagnostics) {
    let at = route.name.span;
    if http::HeaderName::from_bytes(cookie.name.as_bytes()).is_err() {
        diagnostics
            .error(cookie.name.span, format!("expected a cookie name like `ringway`, found `{}`", cookie.name.value));
    }
    if route.pool.is_none() {
        diagnostics.error(
            at,
            format!("`affinity_cookie` needs a `pool`, which the route `{}` does not have", route.name.value),
        );
    }
    let always = route.hash_on.iter().find(|source| source.traits().is_always_present);
    match (cookie.mode, &cookie.secret_file, always) {
        (AffinityMode::Soft, _, Some(source)) => {
            let message = format!(
                "the affinity cookie of the route `{}` is never issued: `{source}` is always present",
                route.name.value
            );
            diagnostics.warning(at, message);
        }
        (AffinityMode::Strict, None, _) => {
            diagnostics
                .error(at, "a strict affinity cookie needs a `secret_file`; `openssl rand -hex 32` makes a secret");
        }
        _ => {}
    }
}

fn listeners(settings: &Settings, diagnostics: &mut Diagnostics) {
    // A listener that could not be read is missing here too; its error is already reported.
    if settings.listeners.is_empty() && !diagnostics.has_errors() {
        diagnostics
            .error(Span::start(), "there is no listener; give at least one `name` and `address` under `listeners`");
    }
    let names = settings.listeners.iter().map(|listener| (listener.name.as_str(), listener.name.span));
    diagnostics.unique("listener", names);

    let metrics = settings.metrics.iter().map(|metrics| &metrics.address);
    let addresses =
        settings.listeners.iter().map(|listener| &listener.address).chain([&settings.admin.address]).chain(metrics);
    let texts: Vec<(String, Span)> =
        addresses.filter(|address| address.port() != 0).map(|address| (address.to_string(), address.span)).collect();
    diagnostics.unique("address", texts.iter().map(|(text, span)| (text.as_str(), *span)));
}

fn validate_pool(name: &Spanned<String>, pool: &Pool, diagnostics: &mut Diagnostics) {
    let nodes = pool.listed();
    match (&pool.nodes, &pool.discovery) {
        (None, None) => {
            diagnostics.error(name.span, format!("the pool `{}` needs `nodes`, `discovery`, or both", name.value));
        }
        (Some(nodes), None) if nodes.is_empty() => {
            diagnostics.warning(name.span, format!("the pool `{}` has no nodes; its requests get 503", name.value));
        }
        _ => {}
    }
    diagnostics.unique("node id", nodes.iter().map(|node| (node.id.as_str(), node.id.span)));
    for node in nodes {
        if !is_node_id(&node.id.value) {
            diagnostics.error(node.id.span, "expected a node id of 1 to 128 visible ASCII characters");
        }
    }
    if let Some(file) = &pool.ring.seed_file
        && !pool.ring.seed.is_public()
    {
        let message = format!("the pool `{}` has both `ring.seed` and `ring.seed_file`; give one", name.value);
        diagnostics.error(file.span, message);
    }
    let points = nodes.iter().map(|node| u64::from(node.weight)).sum::<u64>() * u64::from(pool.ring.virtual_nodes);
    if points > MAX_POINTS {
        let message = format!(
            "the ring of this pool would have {points} points, more than {MAX_POINTS}; lower `virtual_nodes` or the weights"
        );
        diagnostics.error(name.span, message);
    }
    if let Some(check) = &pool.health_check {
        if check.expect_status.is_empty() {
            diagnostics
                .error(name.span, format!("`expect_status` of the pool `{}` is empty: no check passes", name.value));
        }
        if check.timeout > check.interval {
            let message = format!(
                "the health check of the pool `{}` may take longer than its `interval`; the next one then begins late",
                name.value
            );
            diagnostics.warning(name.span, message);
        }
    }
    if let Some(retries) = &pool.retries
        && retries.attempts > 0
        && retries.on.is_empty()
    {
        diagnostics
            .warning(name.span, format!("`retries.on` of the pool `{}` is empty: nothing is tried again", name.value));
    }
    let ejection = &pool.outlier_ejection;
    if ejection.max_time < ejection.base_time {
        let message =
            format!("`outlier_ejection.max_time` of the pool `{}` is less than its `base_time`, and holds", name.value);
        diagnostics.warning(name.span, message);
    }
    if pool.connections.max_queued == 0 {
        return;
    }
    let total = pool.timeouts.total;
    if !total.is_zero() && pool.connections.queue_timeout > total {
        let message = format!(
            "`connections.queue_timeout` of the pool `{}` is longer than `timeouts.total`, which holds",
            name.value
        );
        diagnostics.warning(name.span, message);
    }
}

/// Warns where clients can choose their node: they choose their keys and the seed is public.
fn chosen_keys(settings: &Settings, route: &Route, diagnostics: &mut Diagnostics) {
    let Some(pool) = route.pool.as_ref().and_then(|pool| settings.pools.get(pool)) else { return };
    if let Some(source) = route.hash_on.iter().find(|source| source.traits().is_chosen_by_client)
        && pool.ring.seed.is_public()
        && pool.ring.seed_file.is_none()
    {
        let message = format!(
            "clients of the route `{}` choose the key `{source}`, and the ring's seed is the public default: they can aim at a node; set `ring.seed_file`",
            route.name.value
        );
        diagnostics.warning(route.name.span, message);
    }
}

fn routes(settings: &Settings, diagnostics: &mut Diagnostics) {
    if settings.routes.is_empty() && !diagnostics.has_errors() {
        diagnostics.warning(Span::start(), "there are no routes; every request gets 404");
    }
    diagnostics.unique("route", settings.routes.iter().map(|route| (route.name.as_str(), route.name.span)));
    let mut catch_all: Option<&Route> = None;
    for route in &settings.routes {
        validate_route(settings, route, diagnostics);
        chosen_keys(settings, route, diagnostics);
        if let Some(first) = catch_all {
            let message = format!(
                "the route `{}` is never reached: `{}` before it matches every request",
                route.name.value, first.name.value
            );
            diagnostics.warning(route.name.span, message);
        } else if matches_everything(route) {
            catch_all = Some(route);
        }
    }
}

fn matches_everything(route: &Route) -> bool {
    let any_path = route.path.is_none() && route.path_prefix.as_ref().is_none_or(|prefix| prefix.0 == "/");
    any_path
        && route.scheme.is_none()
        && route.hosts.is_empty()
        && route.methods.is_empty()
        && route.headers.entries.is_empty()
}

fn validate_route(settings: &Settings, route: &Route, diagnostics: &mut Diagnostics) {
    let at = route.name.span;
    let actions = usize::from(route.pool.is_some())
        + usize::from(route.redirect.is_some())
        + usize::from(route.respond.is_some())
        + usize::from(route.saga.is_some());
    if actions != 1 {
        let found = if actions == 0 { "none" } else { "several" };
        diagnostics.error(
            at,
            format!(
                "expected exactly one of `pool`, `redirect`, `respond` and `saga` in the route `{}`, found {found}",
                route.name.value
            ),
        );
    }
    if let (Some(_), Some(prefix)) = (&route.path, &route.path_prefix) {
        diagnostics.error(prefix.span, "expected `path` or `path_prefix`, found both");
    }
    if let Some(pool) = &route.pool
        && !settings.pools.names().any(|name| name == pool.value)
    {
        let advice = match did_you_mean(pool, settings.pools.names()) {
            Some(meant) => format!("; did you mean `{meant}`?"),
            None => "; name one of the pools under `pools`".to_owned(),
        };
        diagnostics.error(pool.span, format!("there is no pool `{}`{advice}", pool.value));
    }
    if route.pool.is_none() {
        if !route.hash_on.is_empty() {
            diagnostics
                .error(at, format!("`hash_on` needs a `pool`, which the route `{}` does not have", route.name.value));
        }
        if let Some(prefix) = &route.strip_prefix {
            diagnostics.error(prefix.span, "`strip_prefix` needs a `pool`");
        }
    }
    if let Some(strip) = &route.strip_prefix {
        let path = route.path_prefix.as_ref().or(route.path.as_ref());
        if path.is_none_or(|path| target::strip_prefix(&path.0, &strip.0).is_none()) {
            let message =
                format!("the route does not always begin with `{}`; other paths are forwarded as they are", strip.0);
            diagnostics.warning(strip.span, message);
        }
    }
    if let Some(redirect) = &route.redirect
        && let Some(unknown) = unknown_placeholder(redirect.to.to_str().unwrap_or_default())
    {
        let message = format!("`{unknown}` stands for nothing; known here: {}", PLACEHOLDERS.join(", "));
        diagnostics.error(redirect.to.span, message);
    }
    for (name, _) in route.headers.iter() {
        if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
            diagnostics.error(name.span, format!("expected a field name like `x-edge`, found `{}`", name.value));
        }
    }
    field_rules(&route.request_headers, diagnostics);
    field_rules(&route.response_headers, diagnostics);
    if let Some(cache) = &route.cache {
        route_cache(settings, route, cache, diagnostics);
    }
    if let Some(idempotency) = &route.idempotency {
        route_idempotency(settings, route, idempotency, diagnostics);
    }
    if let Some(saga) = &route.saga {
        validate_saga::validate(settings, route, saga, diagnostics);
    }
    if let Some(consistency) = &route.consistency {
        validate_consistency::validate(settings, route, consistency, diagnostics);
    }
}

/// The placeholders of `redirect.to`.
const PLACEHOLDERS: [&str; 3] = ["{host}", "{path}", "{uri}"];

/// Returns the first placeholder in a text that is not defined.
fn unknown_placeholder(text: &str) -> Option<&str> {
    let in_braces = text.match_indices('{').map(|(at, _)| {
        let end = text[at..].find('}').map_or(text.len(), |end| at + end + 1);
        &text[at..end]
    });
    in_braces.into_iter().find(|found| !PLACEHOLDERS.contains(found))
}

fn route_idempotency(settings: &Settings, route: &Route, rules: &RouteIdempotency, diagnostics: &mut Diagnostics) {
    let (at, name) = (route.name.span, &route.name.value);
    if route.pool.is_none() && route.saga.is_none() {
        diagnostics.error(at, format!("`idempotency` needs a `pool`, which the route `{name}` does not have"));
    }
    let namespace = &rules.namespace;
    if namespace.is_empty() || namespace.len() > 128 || !namespace.bytes().all(|byte| byte.is_ascii_graphic()) {
        diagnostics.error(namespace.span, "expected a namespace of 1 to 128 visible ASCII characters");
    }
    idempotency_methods(route, rules, diagnostics);
    idempotency_key_header(settings, route, rules, diagnostics);
    idempotency_scope(route, rules, diagnostics);
    idempotency_release(route, rules, diagnostics);
    if rules.scope.is_empty() {
        let message =
            format!("`scope: []` on the route `{name}`: all callers are one, and whoever knows a key gets its result");
        diagnostics.warning(at, message);
    }
    idempotency_sizes(settings, route, rules, diagnostics);
    if settings.idempotency_store.kind.value == StoreKind::Memory {
        let message = format!(
            "the idempotency store is `memory`: a restart forgets what the route `{name}` has run, and runs it again"
        );
        diagnostics.warning(at, message);
    }
}

fn idempotency_methods(route: &Route, rules: &RouteIdempotency, diagnostics: &mut Diagnostics) {
    let (at, name) = (route.name.span, &route.name.value);
    for method in rules.methods.iter().filter(|method| method::is_safe(method) || *method == Method::CONNECT) {
        let message =
            format!("expected methods that change something under `idempotency` of the route `{name}`, found {method}");
        diagnostics.error(at, message);
    }
    if rules.methods.is_empty() {
        diagnostics.warning(at, format!("`idempotency` of the route `{name}` is for no method at all"));
    }
    if let Some(route_methods) = (!route.methods.is_empty()).then_some(&route.methods)
        && !rules.methods.is_empty()
        && !rules.methods.iter().any(|method| route_methods.contains(method))
    {
        let message = format!("`idempotency` of the route `{name}` is for none of the methods that the route takes");
        diagnostics.warning(at, message);
    }
}

fn idempotency_key_header(settings: &Settings, route: &Route, rules: &RouteIdempotency, diagnostics: &mut Diagnostics) {
    let (at, name) = (route.name.span, &route.name.value);
    let key_header = &rules.key_header;
    let means_something_else = [HOST, CONTENT_LENGTH, CONTENT_TYPE, AUTHORIZATION, COOKIE].contains(key_header);
    if means_something_else || fields::is_hop_by_hop(key_header) || head::is_claim(key_header.as_str()) {
        let message =
            format!("expected a field of its own in `key_header` of the route `{name}`, found `{key_header}`");
        diagnostics.error(at, message);
    }
    if key_header.as_str().contains('_') && settings.limits.underscores_in_headers != UnderscoresInHeaders::Allow {
        let message = format!(
            "the `key_header` of the route `{name}` has an underscore, and no request has such a field while `limits.underscores_in_headers` is `{}`",
            settings.limits.underscores_in_headers.word()
        );
        diagnostics.error(at, message);
    }
    let key = rules.key_header.as_str();
    let changed = route.request_headers.set.entries.iter().map(|(field, _)| (field.as_str(), field.span));
    let removed = route.request_headers.remove.iter().map(|field| (field.value.as_str(), field.span));
    for (_, span) in changed.chain(removed).filter(|(field, _)| field.eq_ignore_ascii_case(key)) {
        diagnostics.error(span, format!("the node must get the `{key}` of its client on the route `{name}`"));
    }
}

fn idempotency_scope(route: &Route, rules: &RouteIdempotency, diagnostics: &mut Diagnostics) {
    let (at, name) = (route.name.span, &route.name.value);
    let key_header = &rules.key_header;
    let of_every_request = [key_header.as_str(), "idempotency-key", "host", "content-length", "content-type"];
    for source in &rules.scope {
        let is_of_every_request =
            matches!(source, HashSource::Header(field) if of_every_request.contains(&field.as_str()));
        if is_of_every_request || !source.traits().tells_callers_apart {
            let message = format!(
                "expected one of {} in `scope` of the route `{name}`, found {source}: it does not tell callers apart",
                HashSource::forms(|traits| traits.tells_callers_apart)
            );
            diagnostics.error(at, message);
        }
    }
}

fn idempotency_release(route: &Route, rules: &RouteIdempotency, diagnostics: &mut Diagnostics) {
    let (at, name) = (route.name.span, &route.name.value);
    for status in &rules.release_on {
        let message = |what| format!("{} in `release_on` of the route `{name}` {what}", status.as_u16());
        match status.as_u16() {
            ..400 => diagnostics.error(at, message("says that the request was carried out: it would run again")),
            500 | 502 | 504 => {
                diagnostics.warning(at, message("does not say that nothing was done: a request may run twice"));
            }
            _ => {}
        }
    }
}

fn idempotency_sizes(settings: &Settings, route: &Route, rules: &RouteIdempotency, diagnostics: &mut Diagnostics) {
    let (at, name) = (route.name.span, &route.name.value);
    if rules.max_request > settings.limits.request_body {
        let message = format!(
            "the route `{name}` takes bodies up to {}, as `limits.request_body` allows no more",
            settings.limits.request_body
        );
        diagnostics.warning(at, message);
    }
    for (key, size) in [("max_request", rules.max_request), ("max_response", rules.max_response)] {
        if size > settings.limits.buffered_bytes {
            let message = format!(
                "`{key}` of the route `{name}` is more than `limits.buffered_bytes` ever holds, which is {}",
                settings.limits.buffered_bytes
            );
            diagnostics.warning(at, message);
        }
    }
}

fn route_cache(settings: &Settings, route: &Route, cache: &RouteCache, diagnostics: &mut Diagnostics) {
    let (at, name) = (route.name.span, &route.name.value);
    if route.pool.is_none() {
        diagnostics.error(at, format!("`cache` needs a `pool`, which the route `{name}` does not have"));
    }
    if cache.max_object > settings.cache.max_object {
        let message = format!(
            "the route `{name}` stores bodies up to {}, as `cache.max_object` allows no more",
            settings.cache.max_object
        );
        diagnostics.warning(at, message);
    }
    if let (Some(ignored), false) = (cache.key.ignore_query.first(), cache.key.only_query.is_empty()) {
        diagnostics.error(ignored.span, "expected `ignore_query` or `only_query`, found both");
    }
    let parameters = cache.key.ignore_query.iter().chain(&cache.key.only_query).map(|name| (name, "a parameter's"));
    for (name, whose) in parameters.chain(cache.bypass_cookies.iter().map(|name| (name, "a cookie's"))) {
        let star = name.find('*');
        if name.is_empty() || star.is_some_and(|star| star + 1 < name.len()) {
            let message = format!("expected {whose} name, or its beginning and `*`, found `{}`", name.value);
            diagnostics.error(name.span, message);
        }
    }
    if let Some(overrides) = &cache.r#override {
        let mut said: Vec<String> = overrides.ttl.iter().map(|_| "how long they are fresh".to_owned()).collect();
        said.extend(overrides.ignore.iter().map(|directive| format!("`{}`", directive.word())));
        let message = format!(
            "`cache.override` on the route `{}` stands against what its responses say of {}: one user's page may be given to others",
            route.name.value,
            said.join(", ")
        );
        if !said.is_empty() {
            diagnostics.warning(at, message);
        }
    }
}

fn field_rules(rules: &FieldRules, diagnostics: &mut Diagnostics) {
    let names = rules.set.entries.iter().map(|(name, _)| (name.as_str(), name.span));
    for (text, span) in names.chain(rules.remove.iter().map(|name| (name.value.as_str(), name.span))) {
        match http::HeaderName::from_bytes(text.as_bytes()) {
            Err(_) => diagnostics.error(span, format!("expected a field name like `x-edge`, found `{text}`")),
            Ok(name) if fields::is_hop_by_hop(&name) || name == CONTENT_LENGTH => {
                diagnostics.error(span, format!("`{name}` belongs to the connection; the proxy sets it itself"));
            }
            Ok(_) => {}
        }
    }
}

fn unused_pools(settings: &Settings, diagnostics: &mut Diagnostics) {
    for (name, _) in settings.pools.iter() {
        if !settings.routes.iter().any(|route| route.pools().any(|pool| pool.value == name.value)) {
            diagnostics.warning(name.span, format!("no route uses the pool `{}`", name.value));
        }
    }
}

fn admin(settings: &Settings, diagnostics: &mut Diagnostics) {
    let admin = &settings.admin;
    if admin.token_file.is_none() && !admin.address.ip().is_loopback() {
        let message = format!(
            "`{}` is not a loopback address; whoever reaches it controls the proxy: give a `token_file`",
            admin.address.value
        );
        diagnostics.error(admin.address.span, message);
    }
}
