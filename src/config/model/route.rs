//! What happens with requests: routes, what they do, and the rules of caches, sessions and requests that run once.

use crate::config::read::{Named, Spanned, choices, settings};
use crate::config::values::{HashSource, HostPattern, RedirectStatus, RoutePath, Size};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use std::time::Duration;

settings! {
    /// What happens with the requests that match. A route has exactly one of `pool`, `redirect` and `respond`.
    Route {
        /// The route's name in metrics and logs.
        name: Spanned<String> = required;
        /// Exact hosts, or `*.example.com` for all names below; any host without the key.
        hosts: Vec<HostPattern> = absent;
        /// The exact path.
        path: Option<Spanned<RoutePath>> = absent;
        /// The path's beginning, in whole segments: `/a` matches `/a` and `/a/b`, not `/ab`.
        path_prefix: Option<Spanned<RoutePath>> = absent;
        /// Methods; any without the key.
        methods: Vec<Method> = absent;
        /// `http` or `https`: what the client speaks with us, or with a trusted proxy before us; either without the key.
        scheme: Option<Scheme> = absent;
        /// Fields that the request must have, each with this value; `*` stands for any value.
        headers: Named<HeaderValue> = absent;
        /// The pool to forward to.
        pool: Option<Spanned<String>> = absent;
        /// A redirection.
        redirect: Option<Redirect> = absent;
        /// A fixed answer.
        respond: Option<Respond> = absent;
        /// The sources of the hash key. The first one that the request has decides; without any, requests are spread at random.
        hash_on: Vec<HashSource> = absent;
        /// A cookie that keeps a client with its node; goes before `hash_on`.
        affinity_cookie: Option<AffinityCookie> = absent;
        /// Changes to the fields that the node gets.
        request_headers: FieldRules = block;
        /// Changes to the fields that the client gets; not to those of the proxy's own problem documents, such as a 502 or a 429.
        response_headers: FieldRules = block;
        /// Taken away from the path before it is forwarded, in whole segments.
        strip_prefix: Option<Spanned<RoutePath>> = absent;
        /// Runs a request with an `Idempotency-Key` once, and replays its result. Off without the block; `idempotency: {}` takes every default.
        idempotency: Option<RouteIdempotency> = absent;
        /// How often a client may ask; further requests get 429. Off without the block.
        rate_limit: Option<RateLimit> = absent;
        /// Stores responses and answers from them (RFC 9111). Off without the block; `cache: {}` takes every default.
        cache: Option<RouteCache> = absent;
    }
}

choices! {
    /// How a client asks.
    Scheme {
        /// In the clear.
        Http = "http",
        /// Over TLS.
        Https = "https",
    }
}

choices! {
    /// What a repetition gets while the first request still runs.
    OnConcurrent {
        /// 409 at once.
        Reject = "reject",
        /// The result, if it is there within `wait`; else 409.
        Wait = "wait",
    }
}

choices! {
    /// What happens with a request that may have run, and whose result nobody knows.
    OnUnknown {
        /// 409 until the record expires or an operator releases it: never a second run.
        Reject = "reject",
        /// It is forwarded again, with the same key: for nodes that know the key themselves.
        Retry = "retry",
    }
}

choices! {
    /// What happens with a request while the store is out of order.
    OnStoreFailure {
        /// 503, and nothing is forwarded.
        Reject = "reject",
        /// It is forwarded without protection, and counted.
        Forward = "forward",
    }
}

choices! {
    /// What makes two requests with one key the same.
    FingerprintKind {
        /// Query, content type and body, byte by byte.
        Exact = "exact",
        /// The same without what carries no meaning in JSON and `multipart` bodies.
        Canonical = "canonical",
    }
}

settings! {
    /// How a route runs requests with an `Idempotency-Key` once.
    RouteIdempotency {
        /// A part of each record's identity: routes with equal namespaces share their records.
        namespace: Spanned<String> = "default";
        /// The methods that it is for.
        methods: Vec<Method> = "[POST, PATCH]";
        /// Whether a request without a key is refused (400); else it is forwarded without protection.
        required: bool = "false";
        /// How long a result is kept and replayed.
        ttl: Duration = "24h" within "100ms" to "365d";
        /// What makes two requests with one key the same: `exact`, or `canonical`, which overlooks the order of keys and the white space of JSON, and the boundary of `multipart` bodies. A change of it makes requests that are repeated across it differ (422).
        fingerprint: FingerprintKind = "exact";
        /// The request field that holds the key.
        key_header: HeaderName = "idempotency-key";
        /// How long a proxy may be silent before its running requests are taken for UNKNOWN; a proxy that died on the same machine is noticed at once.
        lease: Duration = "10s" within "100ms" to "1h";
        /// What tells callers apart: `header:NAME`, `cookie:NAME`, `query:NAME`, `client_ip`. A request without any of them is refused; `[]` says that all callers are one.
        scope: Vec<HashSource> = "[header:authorization]";
        /// `reject` (409) or `wait`, for a repetition while the first one runs.
        on_concurrent: OnConcurrent = "reject";
        /// How long `wait` waits.
        wait: Duration = "10s" within "0s" to "5m";
        /// `reject` (409) or `retry`, for a request that may have run.
        on_unknown: OnUnknown = "reject";
        /// `reject` (503) or `forward`, while the store is out of order.
        on_store_failure: OnStoreFailure = "reject";
        /// Statuses by which a node says that it did nothing: passed on, and the next request runs.
        release_on: Vec<StatusCode> = "[425, 429]";
        /// The largest body of a request with a key; a larger one is answered 413.
        max_request: Size = "1MiB" within "0B" to "256MiB";
        /// The largest body of an answer that is kept; a larger one is passed on, and its repetitions get 409.
        max_response: Size = "1MiB" within "0B" to "256MiB";
    }
}

settings! {
    /// How often a client may ask on a route. Answers tell it in `RateLimit` and `RateLimit-Policy`.
    RateLimit {
        /// How many requests may come in the time of `per`, evenly.
        requests: u32 = required within "1" to "1000000000";
        /// The time that `requests` is for.
        per: Duration = "1s" within "1ms" to "1d";
        /// How many may come at once; as many as `requests` without the key.
        burst: Option<u32> = absent within "1" to "1000000000";
        /// What tells clients apart; the first source that is present, and where none is, the client's address (for IPv6 its /64).
        key: Vec<HashSource> = "[client_ip]";
        /// Whether answers from the cache count.
        cache_hits: bool = "true";
        /// Whether replays of stored results count.
        replays: bool = "true";
        /// How many clients are told apart at a time; beyond it they share.
        max_keys: u32 = "100000" within "1" to "10000000";
    }
}

choices! {
    /// What a request's own `Cache-Control` may ask of the cache.
    ClientDirectives {
        /// `no-store` and `only-if-cached`; everything else is advice that is not taken.
        Ignore = "ignore",
        /// Everything: `no-cache`, `max-age`, `min-fresh` and `max-stale` too, and `Pragma: no-cache`.
        Honour = "honour",
    }
}

settings! {
    /// How the responses of a route are cached.
    RouteCache {
        /// What makes two requests one, beside scheme, host, port, path and the response's `Vary`.
        key: CacheKey = block;
        /// How long a response without any freshness of its own is fresh; never to a request with a Cookie.
        default_ttl: Duration = "0s" within "0s" to "365d";
        /// How long a response is fresh at most that says nothing of its freshness but when it was modified last: a tenth of the time since then. 0s turns that off, so that `default_ttl` holds.
        heuristic_max: Duration = "24h" within "0s" to "365d";
        /// How long a stale response may be served while it is validated in the background, where it does not say so itself.
        stale_while_revalidate: Duration = "0s" within "0s" to "365d";
        /// How long a stale response may be served when the node fails, where it does not say so itself.
        stale_if_error: Duration = "1h" within "0s" to "365d";
        /// `default_ttl` for 404, 405, 410, 414, 451 and 501.
        negative_ttl: Duration = "0s" within "0s" to "1d";
        /// The largest body that is stored; larger ones stream through.
        max_object: Size = "8MiB" within "1KiB" to "1GiB";
        /// How long a request waits for another one that is fetching the same thing.
        lock_timeout: Duration = "5s" within "0s" to "5m";
        /// Whether a request's own `Cache-Control` counts: `honour`, or `ignore`, which obeys `no-store` and `only-if-cached` alone.
        client_directives: ClientDirectives = "ignore";
        /// Whether a response with `Set-Cookie` is stored, cookie included.
        store_set_cookie: bool = "false";
        /// Whether a response with `s-maxage` may be served stale where it says `stale-while-revalidate` or `stale-if-error` itself, as frameworks send both. RFC 9111 4.2.4 forbids it.
        allow_stale_with_s_maxage: bool = "false";
        /// Cookies whose presence has a request pass by the cache: it is neither answered from it nor stored. `session_*` means all that begin so.
        bypass_cookies: Vec<Spanned<String>> = absent;
        /// What holds in place of what responses say of themselves.
        r#override: Option<CacheOverride> = absent;
    }
}

settings! {
    /// What holds in place of what responses say of themselves. `check` warns of it: what an origin calls private may be one user's.
    CacheOverride {
        /// How long responses with a status below 400 are fresh, whatever they say.
        ttl: Option<Duration> = absent within "0s" to "365d";
        /// Directives that count for nothing: `private`, `no-cache`, `no-store`.
        ignore: Vec<IgnoredDirective> = absent;
    }
}

choices! {
    /// A directive of responses that counts for nothing.
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
    /// What makes two requests one for the cache.
    CacheKey {
        /// Query parameters that play no part; they are still forwarded. `utm_*` means all that begin so.
        ignore_query: Vec<Spanned<String>> = absent;
        /// The only query parameters that play a part, written in the same way.
        only_query: Vec<Spanned<String>> = absent;
        /// Whether the order of query parameters plays no part.
        sort_query: bool = "false";
        /// Request fields that play a part.
        headers: Vec<HeaderName> = absent;
        /// Cookies that play a part.
        cookies: Vec<String> = absent;
    }
}

choices! {
    /// What an affinity cookie holds.
    AffinityMode {
        /// A random key, which is hashed like any other; issued only where no source of `hash_on` is present.
        Soft = "soft",
        /// The node itself, sealed.
        Strict = "strict",
    }
}

choices! {
    /// What happens to a strict session whose node is down.
    OnGone {
        /// 503.
        Reject = "reject",
        /// The session moves to the next node.
        Next = "next",
    }
}

settings! {
    /// A cookie that keeps a client with its node.
    AffinityCookie {
        /// The cookie's name.
        name: Spanned<String> = "ringway";
        /// How long a session lasts.
        ttl: Duration = "1h" within "1s" to "365d";
        /// `soft` (a random key that is hashed) or `strict` (the node, sealed).
        mode: AffinityMode = "soft";
        /// A file with the secrets of `strict`, one a line, the newest first; older ones still open cookies.
        secret_file: Option<Spanned<String>> = absent;
        /// `reject` (503) or `next`, when the node of a strict session is down.
        on_gone: OnGone = "reject";
    }
}

settings! {
    /// A redirection.
    Redirect {
        /// The value of `Location`. In it `{host}` stands for the request's host, `{path}` for its path, and `{uri}` for path and query.
        to: Spanned<HeaderValue> = required;
        /// 301, 302, 303, 307 or 308.
        status: RedirectStatus = "308";
    }
}

settings! {
    /// A fixed answer.
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
        /// Fields that are set, in place of any that are there.
        set: Named<HeaderValue> = absent;
        /// Fields that are removed.
        remove: Vec<Spanned<HeaderName>> = absent;
    }
}
