//! `ringway explain`

use super::explain_saga::explain_saga;
use super::{Outcome, load, shown};
use crate::cache::{BypassCookies, KeyRules};
use crate::clock;
use crate::config::values::Size;
use crate::config::{
    AffinityMode, ClientDirectives, Config, Consistency, Level, NodeState, OnConcurrent, OnConcurrentWrite,
    OnQuorumLoss, OnStoreFailure, OnUnknown, OnWriteQuorumLoss, RateLimit, Reads, Route,
};
use crate::consistency::group_id;
use crate::consistency::quorum::{ALL, slot_of};
use crate::http::head::{Peer, RequestFields, RequestHead};
use crate::http::method::is_safe;
use crate::http::target;
use crate::idempotency::key_of;
use crate::proxy::affinity::{Affinity, Session};
use crate::proxy::plan::{self, CacheBypass, Candidates, ChosenBy};
use crate::proxy::{
    Bounds, Form, GroupedRequest, ScopeSources, Table, enter, find_key, redirect_target, underscores, uri_group,
};
use crate::server::quorum_rules;
use crate::upstream::ring_of;
use http::{HeaderName, HeaderValue, Method, Request, Uri};
use std::io::{Write, stdout};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(clap::Args)]
pub(super) struct Options {
    /// The configuration file [default: ringway.yaml, config/ringway.yaml or /etc/ringway/ringway.yaml]
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The request's method
    method: String,
    /// The request's URL, with scheme and host
    url: String,
    /// A field of the request; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// The address that the request comes from
    #[arg(long, default_value = "127.0.0.1")]
    from: IpAddr,
}

pub(super) fn run(options: Options) -> Outcome {
    let Some((config, _)) = load(options.config.clone()) else { return Ok(ExitCode::FAILURE) };
    let (head, _) = request(&options)?.into_parts();
    let settings = &config.settings;
    let uri = head.uri.clone();
    let protected_fields = config.protected_fields();
    let peer = Peer {
        address: options.from,
        is_secure: uri.scheme_str() == Some("https"),
        certificate: None,
        trusted_proxies: &settings.trusted_proxies,
        underscores: underscores(settings.limits.underscores_in_headers),
        protected: &protected_fields,
    };
    let bounds = Bounds { body: settings.limits.request_body.0, body_follows: None };
    let mut out = stdout().lock();
    let (head, form) = match enter(head, &uri, None, peer, bounds) {
        Ok(entered) => entered,
        Err(problem) => {
            writeln!(out, "refused: {} {}", problem.status().as_u16(), problem.detail)?;
            return Ok(ExitCode::FAILURE);
        }
    };
    let query = form.query.as_deref().map_or(String::new(), |query| format!("?{query}"));
    writeln!(out, "request      {} {}{}{query}", head.method, form.authority, form.path)?;
    let table = Table::new(&settings.routes);
    let Some(route) = plan::route(&table, &head, &form).map(|index| &settings.routes[index]) else {
        writeln!(out, "route        none: 404 no-route")?;
        return Ok(ExitCode::SUCCESS);
    };
    writeln!(out, "route        {}", route.name.value)?;
    if let Some(redirect) = &route.redirect {
        writeln!(
            out,
            "answer       {} to {}",
            redirect.status.0.as_u16(),
            redirect_target(&redirect.to.value, &form).to_str().unwrap_or_default()
        )?;
    }
    if let Some(respond) = &route.respond {
        writeln!(out, "answer       {} with {} bytes", respond.status.as_u16(), respond.body.len())?;
    }
    if let Some(strip) = &route.strip_prefix {
        let path = target::strip_prefix(&form.path, &strip.0).unwrap_or(&form.path);
        writeln!(out, "forwards     {path}{query}")?;
    }
    explain_idempotency(&mut out, route, &form, &head, settings.limits.request_body)?;
    if let Some(limit) = &route.rate_limit {
        explain_rate_limit(&mut out, limit)?;
    }
    if let Some(saga) = &route.saga {
        return explain_saga(&mut out, saga).map(|()| ExitCode::SUCCESS).map_err(Into::into);
    }
    explain_cache(&mut out, &config, route, &form, &head)?;
    explain_consistency(&mut out, &config, route, &form, &head.fields)?;
    explain_node(&mut out, &config, route, &form, &head.fields)?;
    Ok(ExitCode::SUCCESS)
}

fn explain_idempotency(
    out: &mut impl Write,
    route: &Route,
    form: &Form<'_>,
    head: &RequestHead,
    body_limit: Size,
) -> std::io::Result<()> {
    let Some(rules) = &route.idempotency else { return writeln!(out, "idempotency  nothing on this route") };
    if !rules.methods.contains(&head.method) {
        return writeln!(out, "idempotency  not for {}", head.method);
    }
    let key = match key_of(head.fields.plain(), &rules.key_header) {
        Ok(Some(key)) => key,
        Ok(None) if rules.required => return writeln!(out, "idempotency  refused: 400 idempotency-key-missing"),
        Ok(None) => return writeln!(out, "idempotency  not without a field `{}`", rules.key_header),
        Err(bad) => return writeln!(out, "idempotency  refused: 400 idempotency-key-invalid: {bad}"),
    };
    let sources = ScopeSources::of(&rules.scope);
    let Some(scope) = sources.read(form, &head.fields) else {
        return writeln!(out, "idempotency  refused: 400 scope-missing");
    };
    let caller = if rules.scope.is_empty() { "all callers are one".to_owned() } else { sources.names().join(" and ") };
    let subject = plan::subject(&rules.namespace.value, head, form, key);
    writeln!(out, "idempotency  key `{}`, namespace {}, caller: {caller}", subject.key, subject.namespace)?;
    writeln!(out, "             record {}, kept for {}", subject.identify(&scope), shown(rules.ttl))?;
    let concurrent = match rules.on_concurrent {
        OnConcurrent::Reject => "409".to_owned(),
        OnConcurrent::Wait => format!("waits up to {}", shown(rules.wait)),
    };
    let unknown = match rules.on_unknown.value {
        OnUnknown::Reject => "409, never a second run",
        OnUnknown::Retry => "forwarded again",
    };
    let failure = match rules.on_store_failure.value {
        OnStoreFailure::Reject => "503",
        OnStoreFailure::Forward => "forwarded without protection",
    };
    writeln!(
        out,
        "             while the first runs: {concurrent}; outcome unknown: {unknown}; store out of order: {failure}"
    )?;
    let released: Vec<&str> = rules.release_on.iter().map(http::StatusCode::as_str).collect();
    let released = if released.is_empty() { "none".to_owned() } else { released.join(", ") };
    writeln!(
        out,
        "             bodies up to {} and {}; statuses that release the key: {released}",
        rules.max_request.min(body_limit),
        rules.max_response
    )
}

fn explain_rate_limit(out: &mut impl Write, limit: &RateLimit) -> std::io::Result<()> {
    let keys: Vec<String> = limit.key.iter().map(ToString::to_string).collect();
    let burst = limit.burst.unwrap_or(limit.requests);
    let by = if keys.is_empty() { "client_ip".to_owned() } else { keys.join(", else ") };
    write!(out, "limit        {} requests in {}, {burst} at once, by {by}", limit.requests, shown(limit.per))?;
    for (counted, what) in [(limit.cache_hits, "hits of the cache"), (limit.replays, "replays")] {
        if !counted {
            write!(out, "; {what} do not count")?;
        }
    }
    writeln!(out)
}

fn explain_cache(
    out: &mut impl Write,
    config: &Config,
    route: &Route,
    form: &Form<'_>,
    head: &RequestHead,
) -> std::io::Result<()> {
    let Some(cache) = &route.cache else { return writeln!(out, "cache        none on this route") };
    if is_safe(&head.method) && head.method != Method::GET && head.method != Method::HEAD {
        return writeln!(out, "cache        not for {}, which changes nothing either", head.method);
    }
    if !is_safe(&head.method) {
        return writeln!(out, "cache        not for {}; if it succeeds, what is stored of the URI goes", head.method);
    }
    let bypasses = BypassCookies::of(cache.bypass_cookies.iter().map(|name| name.as_str()));
    if let Some(bypass) = plan::cache_bypass(form, &head.fields, &bypasses) {
        let why = match bypass {
            CacheBypass::Body => "a body",
            CacheBypass::Cookie => "a cookie of `bypass_cookies`",
        };
        return writeln!(out, "cache        passed by, for the request has {why}");
    }
    write!(out, "cache        {}", KeyRules::of(&cache.key).uri(plan::cache_target(form, &head.fields)))?;
    for name in &cache.key.headers {
        write!(out, ", field {name}")?;
    }
    for name in &cache.key.cookies {
        write!(out, ", cookie {name}")?;
    }
    writeln!(out, ", then by Vary")?;
    let size = cache.max_object.min(config.settings.cache.max_object);
    let clients = match cache.client_directives {
        ClientDirectives::Ignore => "ignored but for no-store and only-if-cached",
        ClientDirectives::Honour => "honoured",
    };
    writeln!(out, "             bodies up to {size}; the request's Cache-Control is {clients}")?;
    writeln!(
        out,
        "             where the response does not say: fresh {}, negative {}, stale-while-revalidate {}, stale-if-error {}, guessed at most {}",
        shown(cache.default_ttl),
        shown(cache.negative_ttl),
        shown(cache.stale_while_revalidate),
        shown(route.stale_if_error()),
        shown(cache.heuristic_max)
    )?;
    if let Some(overrides) = &cache.r#override {
        let ttl = overrides.ttl.map(|ttl| format!("fresh {}", shown(ttl)));
        let ignored = overrides.ignore.iter().map(|directive| format!("{} counts for nothing", directive.word()));
        let rules: Vec<String> = ttl.into_iter().chain(ignored).collect();
        writeln!(out, "             whatever the response says: {}", rules.join(", "))?;
    }
    let barred = |name: http::HeaderName, why: &str| head.fields.plain().contains_key(name).then(|| why.to_owned());
    let notes = [
        barred(http::header::AUTHORIZATION, "has Authorization: stored only if public, must-revalidate or s-maxage"),
        barred(http::header::COOKIE, "has a Cookie: stored only with a freshness of its own"),
    ];
    notes.into_iter().flatten().try_for_each(|note| writeln!(out, "             {note}"))
}

fn explain_consistency(
    out: &mut impl Write,
    config: &Config,
    route: &Route,
    form: &Form<'_>,
    fields: &RequestFields,
) -> std::io::Result<()> {
    let Some(rules) = &route.consistency else { return Ok(()) };
    match rules.level.value {
        Level::Eventual => return Ok(()),
        Level::Strong if rules.is_by_quorum() => writeln!(
            out,
            "consistency  strong: a hit is served where the stamps of its groups are those from before its fetch"
        )?,
        Level::Strong => return writeln!(out, "consistency  strong: each hit is validated at a node"),
        Level::Causal => writeln!(out, "consistency  causal: a session never sees an older version than it has seen")?,
    }
    let own = rules.groups.iter().map(|group| group.value.clone());
    let subject = GroupedRequest { form, fields };
    let mut groups: Vec<String> = Vec::new();
    for group in own.chain([uri_group()]).map(|group| group.render(&subject)) {
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    writeln!(out, "             groups {}", groups.join(", "))?;
    if rules.is_by_quorum() {
        explain_quorum(out, config, rules, &groups)?;
    }
    if rules.on_concurrent_write.value == OnConcurrentWrite::Reject {
        writeln!(out, "             a write whose session does not know of another one: 409")?;
    }
    Ok(())
}

fn explain_quorum(
    out: &mut impl Write,
    config: &Config,
    consistency: &Consistency,
    groups: &[String],
) -> std::io::Result<()> {
    let Some(rules) = quorum_rules(config) else { return Ok(()) };
    let slots = groups.iter().map(|group| (group.as_str(), slot_of(group_id(group)))).chain([("everything", ALL)]);
    for (group, slot) in slots {
        let nodes: Vec<&str> = rules
            .nodes(slot)
            .iter()
            .filter_map(|node| rules.settings.ids.get(usize::from(node)))
            .map(|id| &**id)
            .collect();
        writeln!(out, "             slot {slot} ({group}) on {}", nodes.join(", "))?;
    }
    writeln!(out, "             {}", rules.settings.current.quorum.tolerance())?;
    let reads = match (consistency.reads(), consistency.on_quorum_loss()) {
        (Reads::Origin, _) => "a read is validated at a node, for `reads: origin`",
        (_, OnQuorumLoss::Origin) => "a read without R nodes goes to a node",
        (_, OnQuorumLoss::Reject) => "a read without R nodes: 503",
        (_, OnQuorumLoss::Stale) => "a read without R nodes gets the stored response, unverified",
    };
    let writes = match consistency.on_write_quorum_loss() {
        OnWriteQuorumLoss::Reject => "503",
        OnWriteQuorumLoss::Forward => "forwarded unmarked",
    };
    writeln!(out, "             {reads}; a write without W nodes: {writes}")
}

fn explain_node(
    out: &mut impl Write,
    config: &Config,
    route: &Route,
    form: &Form<'_>,
    fields: &RequestFields,
) -> std::io::Result<()> {
    let Some((name, pool)) = route.pool.as_ref().and_then(|name| Some((name, config.settings.pools.get(name)?))) else {
        return Ok(());
    };
    if let Some(cookie) = &route.affinity_cookie {
        let held = match cookie.mode {
            AffinityMode::Soft => "a random key, issued where no source of `hash_on` is present",
            AffinityMode::Strict => "the node, sealed",
        };
        writeln!(out, "affinity     the cookie `{}` goes before the hash key; it holds {held}", cookie.name.value)?;
    }
    let ring = ring_of(name.as_str(), pool, &config.secrets);
    let find = |id: &str| pool.listed().iter().position(|node| node.id.as_str() == id);
    let affinity = route.affinity_cookie.as_ref().map(|cookie| Affinity::new(cookie, &config.secrets));
    let candidates = Candidates { pool: name.as_str(), ring: &ring, affinity: affinity.as_ref(), find: &find };
    let now = clock::unix_seconds();
    if let Some(affinity) = &affinity
        && pool.discovery.is_some()
        && let Session::Strict { node, .. } = affinity.read(fields.plain(), name.as_str(), now)
        && find(&node).is_none()
    {
        writeln!(out, "session      of the node {node}, if `discovery` finds it")?;
    }
    let key = find_key(&route.hash_on, form, fields);
    let choice = plan::choice(&candidates, fields, key.as_ref(), now, || 0);
    let hash = choice.wanted.hash;
    match (choice.by, &key) {
        (ChosenBy::AffinityCookie, _) => {
            writeln!(out, "hash key     the affinity cookie's, hash {hash:016x}")?;
        }
        (_, Some(found)) => {
            let text = String::from_utf8_lossy(&found.key);
            writeln!(out, "hash key     {text} (from {}), hash {hash:016x}", found.source)?;
        }
        (_, None) => writeln!(out, "hash key     none of the sources is present: a random one a request")?,
    }
    if let Some(node) = choice.wanted.pinned {
        let node = &pool.listed()[node].id;
        let gone = if choice.wanted.may_leave { "the next node takes its place" } else { "503" };
        writeln!(out, "session      of the node {}; while that is down: {gone}", node.value)?;
    }
    if choice.by == ChosenBy::Random {
        let others = match choice.wanted.pinned {
            Some(_) if choice.wanted.may_leave => "the session's node, else any node, by share",
            Some(_) => "the session's node alone",
            None => "any node, by share",
        };
        return writeln!(out, "pool         {}: {others}", name.value);
    }
    let ring_order = ring.walk(hash).filter(|member| choice.wanted.pinned != Some(*member));
    let others = ring_order.take_while(|_| choice.wanted.may_leave);
    let order: Vec<String> = choice
        .wanted
        .pinned
        .into_iter()
        .chain(others)
        .map(|member| match pool.listed()[member].state {
            NodeState::Up => pool.listed()[member].id.value.clone(),
            state => format!("{} ({})", pool.listed()[member].id.value, state.word()),
        })
        .collect();
    writeln!(out, "pool         {}", name.value)?;
    if let Some(discovery) = &pool.discovery {
        writeln!(out, "             and the nodes that `{}` tells of, which are not known here", discovery.dns.value)?;
    }
    writeln!(out, "nodes        {}", order.join(" -> "))
}

/// Returns the request that the arguments describe. The authority of the URL is in the target, as in the absolute form;
/// `Host` only has to exist.
fn request(options: &Options) -> Result<Request<()>, String> {
    let method =
        Method::from_bytes(options.method.as_bytes()).map_err(|_| format!("`{}` is not a method", options.method))?;
    let uri: Uri = options.url.parse().map_err(|error| format!("`{}` is not a URL: {error}", options.url))?;
    if uri.authority().is_none() || uri.scheme().is_none() {
        return Err(format!("expected a whole URL like `http://example.com/path`, found `{}`", options.url));
    }
    let mut request = Request::builder()
        .method(method)
        .version(http::Version::HTTP_10)
        .uri(uri)
        .body(())
        .map_err(|error| error.to_string())?;
    for line in &options.headers {
        let (name, value) = line.split_once(':').ok_or_else(|| format!("expected `Name: value`, found `{line}`"))?;
        let name =
            HeaderName::from_bytes(name.trim().as_bytes()).map_err(|_| format!("`{name}` is not a field name"))?;
        let value = HeaderValue::from_str(value.trim()).map_err(|_| format!("`{value}` is not a field value"))?;
        request.headers_mut().append(name, value);
    }
    Ok(request)
}
