//! Routes: their actions, and the rules of caches, sessions and requests that run once.

use super::consistency::{Consistency, Level};
use super::saga::Saga;
use crate::config::read::{Named, Spanned, Verbatim, choices, settings};
use crate::config::values::{HashSource, HostPattern, RedirectStatus, RoutePath, Size};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use std::time::Duration;

settings! {
    /// A route: the requests that it matches, and their treatment. It has exactly one of `pool`, `redirect`, `respond`
    /// and `saga`.
    Route {
        /// The route's name in metrics and logs.
        name: Spanned<String> = required;
        /// Exact hosts, or `*.example.com` for all names below; by default any host.
        hosts: Vec<HostPattern> = absent;
        /// The exact path.
        path: Option<Spanned<RoutePath>> = absent;
        /// A prefix of the path, in whole segments: `/a` matches `/a` and `/a/b`, not `/ab`.
        path_prefix: Option<Spanned<RoutePath>> = absent;
        /// Methods; by default any.
        methods: Vec<Method> = absent;
        /// `http` or `https`: the scheme of the client's request to this proxy, or to a trusted proxy in front of it;
        /// by default either.
        scheme: Option<Scheme> = absent;
        /// Fields that the request must have, each with this value; `*` stands for any value.
        headers: Named<HeaderValue> = absent;
        /// The pool to forward to.
        pool: Option<Spanned<String>> = absent;
        /// A redirection.
        redirect: Option<Redirect> = absent;
        /// A fixed response.
        respond: Option<Respond> = absent;
        /// A business transaction over several pools, undone where a step fails. Needs `idempotency: { required: true
        /// }`.
        saga: Option<Spanned<Verbatim<Saga>>> = absent;
        /// The sources of the hash key, in order; the first one that is present in the request counts. Without any,
        /// requests are spread at random.
        hash_on: Vec<HashSource> = absent;
        /// A cookie that keeps a client on its node; it takes precedence over `hash_on`.
        affinity_cookie: Option<AffinityCookie> = absent;
        /// Changes to the fields of the request to the node.
        request_headers: FieldRules = block;
        /// Changes to the fields of the response to the client; not to those of the proxy's own problem documents, such
        /// as a 502 or a 429.
        response_headers: FieldRules = block;
        /// Removed from the path before the request is forwarded, in whole segments.
        strip_prefix: Option<Spanned<RoutePath>> = absent;
        /// Runs a request with an `Idempotency-Key` at most once, and replays its result. Off without the block;
        /// `idempotency: {}` uses the defaults.
        idempotency: Option<RouteIdempotency> = absent;
        /// A rate limit per client; further requests get 429. Off without the block.
        rate_limit: Option<RateLimit> = absent;
        /// `false`: requests of the route get no lines in the access log.
        access_log: bool = "true";
        /// Stores responses and answers from them (RFC 9111). Off without the block; `cache: {}` uses the defaults.
        cache: Option<RouteCache> = absent;
        /// The guarantee of responses from the cache. Without the block: `level: eventual`.
        consistency: Option<Consistency> = absent;
    }
}

impl Route {
    /// Returns the guarantee of the route's reads from the cache.
    pub(crate) fn level(&self) -> Level {
        self.consistency.as_ref().map_or(Level::Eventual, |consistency| consistency.level.value)
    }

    /// Returns the time for which a stale response may be served when the node fails.
    pub(crate) fn stale_if_error(&self) -> Duration {
        let default = if self.level() == Level::Strong { Duration::ZERO } else { Duration::from_secs(3600) };
        self.cache.as_ref().and_then(|cache| cache.stale_if_error).unwrap_or(default)
    }

    /// Returns the pools that the route sends requests to.
    pub(crate) fn pools(&self) -> impl Iterator<Item = &Spanned<String>> {
        let steps = self.saga.iter().flat_map(|saga| saga.requests()).map(|request| &request.pool);
        self.pool.iter().chain(steps)
    }
}

choices! {
    /// The scheme of the client's request.
    Scheme {
        /// Cleartext.
        Http = "http",
        /// TLS.
        Https = "https",
    }
}

choices! {
    /// The response to a repetition while the first request still runs.
    OnConcurrent {
        /// 409 at once.
        Reject = "reject",
        /// The result, if it arrives within `wait`; otherwise 409.
        Wait = "wait",
    }
}

choices! {
    /// The response to a repetition of a request that may have run, and whose result is unknown.
    OnUnknown {
        /// 409 until the record expires or an operator releases it: never a second run.
        Reject = "reject",
        /// It is forwarded again with the same key, for nodes that handle the key themselves.
        Retry = "retry",
    }
}

choices! {
    /// The response while the store is not available.
    OnStoreFailure {
        /// 503, and nothing is forwarded.
        Reject = "reject",
        /// It is forwarded without protection, and counted.
        Forward = "forward",
    }
}

choices! {
    /// The comparison of two requests with the same key.
    FingerprintKind {
        /// Query, content type and body, byte by byte.
        Exact = "exact",
        /// The same, ignoring differences without meaning in JSON and `multipart` bodies.
        Canonical = "canonical",
    }
}

settings! {
    /// Runs requests with an `Idempotency-Key` at most once.
    RouteIdempotency {
        /// A part of the identity of each record: routes with equal namespaces share their records.
        namespace: Spanned<String> = "default";
        /// The methods that are protected.
        methods: Vec<Method> = "[POST, PATCH]";
        /// Answers a request without a key by 400; otherwise it is forwarded without protection.
        required: bool = "false";
        /// The time for which a result is kept and replayed.
        ttl: Duration = "24h" within "100ms" to "365d";
        /// The comparison of two requests with the same key: `exact`, or `canonical`, which ignores the order of keys
        /// and the white space of JSON, and the boundary of `multipart` bodies. After a change of it, repetitions of
        /// earlier requests differ (422).
        fingerprint: FingerprintKind = "exact";
        /// The request field with the key.
        key_header: HeaderName = "idempotency-key";
        /// The time without a heartbeat after which a proxy's running requests count as UNKNOWN; the death of a proxy
        /// on the same machine is noticed at once.
        lease: Duration = "10s" within "100ms" to "1h";
        /// The identity of the caller: `header:NAME`, `cookie:NAME`, `query:NAME`, `client_ip`. A request without any
        /// of them is refused; with `[]` all callers share their keys.
        scope: Vec<HashSource> = "[header:authorization]";
        /// `reject` (409) or `wait`, for a repetition while the first one runs.
        on_concurrent: OnConcurrent = "reject";
        /// The longest time of `wait`.
        wait: Duration = "10s" within "0s" to "5m";
        /// `reject` (409) or `retry`, for a request that may have run.
        on_unknown: Spanned<OnUnknown> = "reject";
        /// `reject` (503) or `forward`, while the store is not available.
        on_store_failure: Spanned<OnStoreFailure> = "reject";
        /// Statuses by which a node declares that it has not run the request: the response is passed on, and the next
        /// request with the key runs.
        release_on: Vec<StatusCode> = "[425, 429]";
        /// The largest body of a request with a key; a larger one is answered 413.
        max_request: Size = "1MiB" within "0B" to "256MiB";
        /// The largest response body that is kept; a larger one is passed on, and repetitions get 409.
        max_response: Size = "1MiB" within "0B" to "256MiB";
    }
}

settings! {
    /// A rate limit per client on a route. Responses carry `RateLimit` and `RateLimit-Policy`.
    RateLimit {
        /// The number of requests per `per`, evenly spread.
        requests: u32 = required within "1" to "1000000000";
        /// The time window of `requests`.
        per: Duration = "1s" within "1ms" to "1d";
        /// The number of requests at once; by default that of `requests`.
        burst: Option<u32> = absent within "1" to "1000000000";
        /// The identity of the client; the first source that is present, and if none is, the client's address (for IPv6
        /// its /64).
        key: Vec<HashSource> = "[client_ip]";
        /// Counts responses from the cache too.
        cache_hits: bool = "true";
        /// Counts replays of stored results too.
        replays: bool = "true";
        /// The number of clients that are counted separately at a time; further ones share a limit.
        max_keys: u32 = "100000" within "1" to "10000000";
    }
}

choices! {
    /// The directives of a request's own `Cache-Control` that are followed.
    ClientDirectives {
        /// `no-store` and `only-if-cached`; all other ones are ignored.
        Ignore = "ignore",
        /// All: also `no-cache`, `max-age`, `min-fresh` and `max-stale`, and `Pragma: no-cache`.
        Honour = "honour",
    }
}

settings! {
    /// The caching of a route's responses.
    RouteCache {
        /// The cache key, besides scheme, host, port, path and the response's `Vary`.
        key: CacheKey = block;
        /// The freshness lifetime of a response without any of its own; not of responses to requests with a Cookie.
        default_ttl: Duration = "0s" within "0s" to "365d";
        /// The longest heuristic freshness of a response with only `Last-Modified`: a tenth of the time since then. 0s
        /// turns it off, so that `default_ttl` applies.
        heuristic_max: Duration = "24h" within "0s" to "365d";
        /// The time for which a stale response may be served while it is validated in the background, unless the
        /// response sets its own.
        stale_while_revalidate: Duration = "0s" within "0s" to "365d";
        /// The time for which a stale response may be served when the node fails, unless the response sets its own; by
        /// default 1h, and 0s on strong routes.
        stale_if_error: Option<Duration> = absent within "0s" to "365d";
        /// `default_ttl` for 404, 405, 410, 414, 451 and 501.
        negative_ttl: Duration = "0s" within "0s" to "1d";
        /// The largest body that is stored; larger ones are streamed without being stored.
        max_object: Size = "8MiB" within "1KiB" to "1GiB";
        /// The time for which a request waits for another one that fetches the same response.
        lock_timeout: Duration = "5s" within "0s" to "5m";
        /// `honour` follows a request's own `Cache-Control`; `ignore` follows only its `no-store` and `only-if-cached`.
        client_directives: ClientDirectives = "ignore";
        /// Stores responses with `Set-Cookie`, with the cookie.
        store_set_cookie: bool = "false";
        /// Serves a response with `s-maxage` stale if it has `stale-while-revalidate` or `stale-if-error` itself, as
        /// frameworks send both. RFC 9111 4.2.4 forbids that.
        allow_stale_with_s_maxage: bool = "false";
        /// Cookies whose presence makes a request bypass the cache: it is neither answered from it nor stored.
        /// `session_*` stands for all names with that prefix.
        bypass_cookies: Vec<Spanned<String>> = absent;
        /// Overrides of the responses' own directives.
        r#override: Option<CacheOverride> = absent;
    }
}

settings! {
    /// Overrides of the responses' own directives. `check` warns of it: a response that its origin marks private may be
    /// specific to one user.
    CacheOverride {
        /// The freshness lifetime of responses with a status below 400; it overrides their own.
        ttl: Option<Duration> = absent within "0s" to "365d";
        /// Directives that are ignored: `private`, `no-cache`, `no-store`.
        ignore: Vec<IgnoredDirective> = absent;
    }
}

choices! {
    /// A directive of responses that is ignored.
    IgnoredDirective {
        /// The response is for one user.
        Private = "private",
        /// The response is validated before each use.
        NoCache = "no-cache",
        /// The response is not stored.
        NoStore = "no-store",
    }
}

settings! {
    /// The cache key.
    CacheKey {
        /// Query parameters that are not part of the key; they are still forwarded. `utm_*` stands for all names with
        /// that prefix.
        ignore_query: Vec<Spanned<String>> = absent;
        /// The only query parameters that are part of the key, in the same notation.
        only_query: Vec<Spanned<String>> = absent;
        /// Ignores the order of query parameters.
        sort_query: bool = "false";
        /// Request fields that are part of the key.
        headers: Vec<HeaderName> = absent;
        /// Cookies that are part of the key.
        cookies: Vec<String> = absent;
    }
}

choices! {
    /// The content of an affinity cookie.
    AffinityMode {
        /// A random key, which is hashed like any other; issued only where no source of `hash_on` is present.
        Soft = "soft",
        /// The node itself, encrypted.
        Strict = "strict",
    }
}

choices! {
    /// The response to a request of a strict session whose node is down.
    OnGone {
        /// 503.
        Reject = "reject",
        /// The session moves to the next node.
        Next = "next",
    }
}

settings! {
    /// A cookie that keeps a client on its node.
    AffinityCookie {
        /// The cookie's name.
        name: Spanned<String> = "ringway";
        /// The lifetime of a session.
        ttl: Duration = "1h" within "1s" to "365d";
        /// `soft` (a random key that is hashed) or `strict` (the node, encrypted).
        mode: AffinityMode = "soft";
        /// A file with the secrets of `strict`, one per line, the newest first; older ones still decrypt cookies.
        secret_file: Option<Spanned<String>> = absent;
        /// `reject` (503) or `next`, when the node of a strict session is down.
        on_gone: OnGone = "reject";
    }
}

settings! {
    /// A redirection.
    Redirect {
        /// The value of `Location`. `{host}` stands for the request's host, `{path}` for its path, and `{uri}` for path
        /// and query.
        to: Spanned<HeaderValue> = required;
        /// 301, 302, 303, 307 or 308.
        status: RedirectStatus = "308";
    }
}

settings! {
    /// A fixed response.
    Respond {
        /// The status code.
        status: StatusCode = "200";
        /// The body, sent as `text/plain; charset=utf-8` unless `response_headers` sets `content-type`.
        body: String = "''";
    }
}

settings! {
    /// Changes to the fields of a message: first `remove`, then `set`.
    FieldRules {
        /// Fields to set; existing ones are replaced.
        set: Named<HeaderValue> = absent;
        /// Fields to remove.
        remove: Vec<Spanned<HeaderName>> = absent;
    }
}
