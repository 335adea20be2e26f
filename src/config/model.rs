//! Every key of the file, with its default and what it means.

use super::read::{Named, Spanned, choices, settings};
use super::values::{
    CheckPath, DnsName, Factor, HashSource, HostPattern, NodeAddress, Percent, Port, RetryOn, RoutePath, ServerName,
    Size, StatusRange,
};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use ipnet::IpNet;
use std::net::SocketAddr;
use std::time::Duration;

settings! {
    /// The whole configuration of a Ringway proxy.
    Settings {
        /// How many workers serve, each with a thread of its own; 0 means one per core. A change needs a restart.
        workers: u32 = "0" within "0" to "1024";
        /// The networks of proxies in front of this one whose `X-Forwarded-*` fields are believed. Nobody's by default.
        trusted_proxies: Vec<IpNet> = absent;
        /// Where clients connect.
        listeners: Vec<Listener> = required;
        /// The admin listener: status, configuration, metrics and probes.
        admin: Admin = block;
        /// A second, read-only listener with `/metrics`, `/livez` and `/readyz`, for scrapers and probes.
        metrics: Option<Metrics> = absent;
        /// What bounds connections, requests and the time that they may take.
        limits: Limits = block;
        /// A line for every request.
        access_log: AccessLog = block;
        /// What the responses kept by all routes that cache may take.
        cache: Cache = block;
        /// Where the results of requests with an `Idempotency-Key` are kept; opened only if a route uses it.
        idempotency_store: IdempotencyStore = block;
        /// The nodes to forward to, by the name of their pool.
        pools: Named<Pool> = absent;
        /// What happens with a request; the first route that matches wins.
        routes: Vec<Route> = required;
    }
}

settings! {
    /// An address that clients connect to.
    Listener {
        /// The listener's name in metrics and logs.
        name: Spanned<String> = required;
        /// IP address and port.
        address: Spanned<SocketAddr> = required;
        /// Speaks TLS. Off without the block.
        tls: Option<ListenerTls> = absent;
        /// Takes the client's address from a PROXY protocol header (version 1 or 2), which every connection must begin with. Off without the block.
        proxy_protocol: Option<ProxyProtocol> = absent;
    }
}

settings! {
    /// The PROXY protocol.
    ProxyProtocol {
        /// The networks of the load balancers that speak it; connections from elsewhere are closed.
        trusted: Vec<IpNet> = required;
    }
}

choices! {
    /// A version of TLS.
    MinVersion {
        /// TLS 1.2 and 1.3.
        Tls12 = "1.2",
        /// TLS 1.3 alone.
        Tls13 = "1.3",
    }
}

choices! {
    /// Whether a client must show a certificate.
    ClientAuth {
        /// A client without one is refused.
        Required = "required",
        /// A client may show one; what it shows must be valid.
        Optional = "optional",
    }
}

settings! {
    /// TLS of a listener. Its files are followed: a new certificate is used without a reload of this file.
    ListenerTls {
        /// The certificates, chosen by the name that the client asks for (SNI); the first one is for all others.
        certificates: Vec<CertificateFiles> = required;
        /// The lowest version: `1.2` or `1.3`.
        min_version: MinVersion = "'1.2'";
        /// A file with the authorities (PEM) of clients' certificates; asks clients for one. The subject goes to nodes as `X-Client-Cert-Subject`.
        client_ca_file: Option<Spanned<String>> = absent;
        /// `required` or `optional`, where `client_ca_file` is given.
        client_auth: ClientAuth = "required";
        /// A file with the secrets that seal session tickets, one a line, the newest first: proxies with the same file resume each other's sessions. Without it each process has a secret of its own.
        ticket_secret_file: Option<Spanned<String>> = absent;
    }
}

settings! {
    /// A certificate and its key.
    CertificateFiles {
        /// A file with the certificate and those between it and its authority (PEM).
        chain_file: Spanned<String> = required;
        /// A file with the private key (PEM).
        key_file: Spanned<String> = required;
    }
}

settings! {
    /// The admin listener.
    Admin {
        /// IP address and port. An address that is not loopback needs `token_file`.
        address: Spanned<SocketAddr> = "127.0.0.1:9900";
        /// A file with the token that requests to the API must carry as `Authorization: Bearer TOKEN`.
        token_file: Option<Spanned<String>> = absent;
        /// Host names, beside IP addresses and `localhost`, by which the listener may be addressed.
        allowed_hosts: Vec<String> = absent;
    }
}

settings! {
    /// The listener for scrapers and probes.
    Metrics {
        /// IP address and port.
        address: Spanned<SocketAddr> = required;
    }
}

settings! {
    /// What bounds connections, requests and time.
    Limits {
        /// Open client connections over all listeners; further ones wait to be accepted.
        connections: u32 = "100000" within "1" to "10000000";
        /// The size of a request's head.
        header_bytes: Size = "64KiB" within "8KiB" to "1MiB";
        /// How many fields a request may have.
        headers: u32 = "100" within "1" to "10000";
        /// The size of a request's body; a larger one is answered 413.
        request_body: Size = "64MiB";
        /// What the whole process holds back of the bodies of requests with an `Idempotency-Key` and of their answers; over it, such requests get 503.
        buffered_bytes: Size = "1GiB" within "1MiB" to "1024GiB";
        /// For the whole head of a request, from its first byte.
        header_timeout: Duration = "10s" within "1ms" to "1h";
        /// Between two pieces of a request's body.
        body_idle_timeout: Duration = "30s" within "1ms" to "1h";
        /// Until a client takes the next piece of a response.
        write_timeout: Duration = "30s" within "1ms" to "1h";
        /// For the next request on a connection.
        keep_alive_timeout: Duration = "75s" within "1ms" to "1d";
        /// Requests on one connection; after that it ends, so that long connections spread anew over proxies and workers. 0 means no limit.
        requests_per_connection: u32 = "100000" within "0" to "1000000000";
        /// From the signal to stop until connections are closed; `/readyz` answers 503 meanwhile, so that load balancers can look away.
        drain_delay: Duration = "0s" within "0s" to "1h";
        /// How long requests in flight may take to end after that.
        drain_timeout: Duration = "30s" within "0s" to "1d";
    }
}

choices! {
    /// How an access log line looks.
    LogFormat {
        /// A JSON object a line.
        Json = "json",
        /// The Common Log Format.
        Common = "common",
        /// No access log.
        Off = "off",
    }
}

settings! {
    /// The access log.
    AccessLog {
        /// `json`, `common` (the Common Log Format) or `off`.
        format: LogFormat = "json";
        /// `stdout`, `stderr` or a file that lines are appended to.
        path: String = "stdout";
    }
}

settings! {
    /// The store of the cache, shared by all routes.
    Cache {
        /// What stored responses may take, with their keys and overhead. A change needs a restart.
        memory: Size = "512MiB" within "1MiB" to "1024GiB";
        /// The largest body that any route stores; larger ones stream through.
        max_object: Size = "64MiB" within "1KiB" to "1GiB";
    }
}

choices! {
    /// What keeps the results.
    StoreKind {
        /// A file, which survives restarts and crashes.
        Sqlite = "sqlite",
        /// The memory of the process: a restart forgets everything.
        Memory = "memory",
    }
}

settings! {
    /// Where the results of requests with an `Idempotency-Key` are kept.
    IdempotencyStore {
        /// `sqlite` (a file, durable) or `memory` (forgets on restart, and runs again). A change needs a restart.
        kind: StoreKind = "sqlite";
        /// The file of `sqlite`, on a local file system; its folder is made where there is none. A change needs a restart.
        path: String = "data/idempotency.db";
    }
}

settings! {
    /// A pool of nodes behind one ring.
    Pool {
        /// The nodes; a pool has these, `discovery`, or both.
        nodes: Option<Vec<Node>> = absent;
        /// Nodes that a name server tells of.
        discovery: Option<Discovery> = absent;
        /// How keys are spread over the nodes.
        ring: RingSettings = block;
        /// Asks every node at intervals whether it is well. Off without the block; `health_check: {}` takes every default.
        health_check: Option<HealthCheck> = absent;
        /// Takes a node out for a while when requests to it fail in a row.
        outlier_ejection: OutlierEjection = block;
        /// A node that joins or comes back gets its keys one by one over this time; 0s gives it all of them at once.
        slow_start: Duration = "0s" within "0s" to "1d";
        /// Where fewer than this share of the `up` nodes are well, health is ignored and all of them are tried; 0% never.
        panic_threshold: Percent = "0%";
        /// Connections to the nodes.
        connections: PoolConnections = block;
        /// How long a node may take.
        timeouts: Timeouts = block;
        /// `http1`, or `http2`: over TLS, or in the clear by prior knowledge.
        protocol: Protocol = "http1";
        /// Speaks TLS with the nodes. Off without the block; `tls: {}` trusts the system's authorities.
        tls: Option<PoolTls> = absent;
        /// Whether a request that failed at one node is tried at the next. Without the block: once, and only where no connection was made.
        retries: Option<Retries> = absent;
    }
}

impl Pool {
    /// The nodes that the file names.
    pub(crate) fn listed(&self) -> &[Node] {
        self.nodes.as_deref().unwrap_or_default()
    }
}

settings! {
    /// Nodes that a name server tells of; each one's id is its address, so that it keeps its keys.
    Discovery {
        /// `name:port` for the addresses of a name (A and AAAA), `_service._proto.name` for SRV records, whose ports and weights are taken.
        dns: Spanned<DnsName> = required;
        /// How often the name is asked for. An answer that fails or is empty changes nothing.
        refresh: Duration = "10s" within "100ms" to "1d";
        /// The name server, instead of those of `/etc/resolv.conf`.
        server: Option<SocketAddr> = absent;
        /// How long the name server may take.
        timeout: Duration = "2s" within "10ms" to "1m";
    }
}

choices! {
    /// How a node is asked whether it is well.
    CheckKind {
        /// A GET request.
        Http = "http",
        /// A connection, and nothing more.
        Tcp = "tcp",
    }
}

choices! {
    /// What a node is taken for before it was checked.
    Initially {
        /// It takes requests.
        Up = "up",
        /// It takes none until `healthy_after` checks have passed.
        Down = "down",
    }
}

choices! {
    /// What nodes are spoken with.
    Protocol {
        /// HTTP/1.1, a connection a request.
        Http1 = "http1",
        /// HTTP/2, many requests on a connection.
        Http2 = "http2",
    }
}

settings! {
    /// TLS with the nodes of a pool. A node's certificate must be valid and cover its name.
    PoolTls {
        /// The name that nodes are asked for (SNI) and must show; without the key the host of the node's address.
        server_name: Option<Spanned<ServerName>> = absent;
        /// A file with the authorities (PEM) that nodes' certificates come from; the system's without the key.
        ca_file: Option<Spanned<String>> = absent;
        /// What the proxy shows nodes that ask for a certificate.
        certificate: Option<CertificateFiles> = absent;
        /// `false` takes any certificate from whoever answers: encryption without knowing with whom.
        verify: bool = "true";
    }
}

settings! {
    /// Asks every node of a pool whether it is well; one prober a process, however many workers.
    HealthCheck {
        /// `http` (a GET) or `tcp` (a connection).
        kind: CheckKind = "http";
        /// The target that is asked for, with its query.
        path: CheckPath = "/healthz";
        /// The `Host` that is asked for; the node's address without the key.
        host: Option<HeaderValue> = absent;
        /// The port that is asked, where it is not the node's own.
        port: Option<Port> = absent;
        /// From the start of one check to the start of the next, less a random part of up to a tenth, so that checks of many nodes spread.
        interval: Duration = "2s" within "10ms" to "1h";
        /// For the whole check.
        timeout: Duration = "1s" within "1ms" to "10m";
        /// How many checks in a row must pass until a node is well again; where no node of the pool is well, one is enough.
        healthy_after: u32 = "2" within "1" to "100";
        /// How many checks in a row must fail until a node is not well any more.
        unhealthy_after: u32 = "3" within "1" to "100";
        /// The statuses of a node that is well: codes and ranges.
        expect_status: Vec<StatusRange> = "[200-399]";
        /// A text that the first 64 KiB of the body must hold; any body without the key.
        expect_body: Option<String> = absent;
        /// `up` or `down`: what a node is taken for before it was checked.
        initially: Initially = "up";
    }
}

settings! {
    /// Takes a node out for a while when requests to it fail in a row: connections refused or reset, timeouts, 502, 503 and 504.
    OutlierEjection {
        /// How many failures in a row; 0 never takes a node out.
        consecutive_failures: u32 = "5" within "0" to "10000";
        /// How long the first time; the second in a row twice as long, then three times. After that one request at a time tries the node, until one succeeds.
        base_time: Duration = "30s" within "1ms" to "1d";
        /// How long at most.
        max_time: Duration = "5m" within "1ms" to "7d";
        /// The largest share of a pool's `up` nodes that may be out at a time.
        max_ejected: Percent = "50%";
    }
}

settings! {
    /// How a request that failed at one node is tried at the next ones of its key.
    Retries {
        /// How many attempts after the first one.
        attempts: u32 = "2" within "0" to "100";
        /// Retries that each request pays for, as a share. A pool saves up to ten of them, and gets one a second however few requests there are.
        budget: Percent = "20%";
        /// What is tried again: `connect_failure` (nothing was sent: any method), and for methods that may be repeated (GET, HEAD, OPTIONS, PUT, DELETE) `reset`, `timeout` and statuses.
        on: Vec<RetryOn> = "[connect_failure, reset, 502, 503]";
        /// The largest body that is held back to be sent again, within `limits.buffered_bytes`; a request with a larger one is tried again only where nothing was sent.
        max_body: Size = "64KiB" within "0B" to "256MiB";
    }
}

choices! {
    /// Whether a node takes requests.
    NodeState {
        /// Takes requests.
        Up = "up",
        /// Takes no new keys; what it has, it finishes.
        Drain = "drain",
        /// Takes nothing.
        Down = "down",
    }
}

settings! {
    /// One node of a pool.
    Node {
        /// The node's identity on the ring; its place in the list and its address play no part.
        id: Spanned<String> = required;
        /// IP address or host name, and port. A name is resolved when the configuration is loaded.
        address: Spanned<NodeAddress> = required;
        /// The node's part of the keys beside the others'; 0 means none.
        weight: u32 = "1" within "0" to "1000";
        /// `up`, `drain` (no new keys) or `down`.
        state: NodeState = "up";
    }
}

settings! {
    /// The consistent-hash ring of a pool.
    RingSettings {
        /// Points per unit of weight. More points spread keys more evenly and take more memory.
        virtual_nodes: u32 = "256" within "1" to "65536";
        /// The secret of the hash: proxies with the same seed agree on every key.
        seed: String = "ringway";
        /// No node gets more than this many times its part of the requests in flight; keys over it spill to the next node. Off without the key.
        bounded_load: Option<Factor> = absent;
    }
}

settings! {
    /// Connections to the nodes of a pool.
    PoolConnections {
        /// Requests and tunnels in flight to one node, over all workers.
        max_per_node: u32 = "1024" within "1" to "1000000";
        /// Requests that wait, over all workers, while every node that could take them has as many as it may; further ones get 503.
        max_queued: u32 = "0" within "0" to "1000000";
        /// How long a request waits so before it gets 503.
        queue_timeout: Duration = "1s" within "1ms" to "10m";
        /// Kept connections to one node, over all workers.
        max_idle_per_node: u32 = "128" within "0" to "1000000";
        /// How long a kept connection may stay unused.
        idle_timeout: Duration = "60s" within "1ms" to "1d";
    }
}

settings! {
    /// How long a node may take; 0s means no limit.
    Timeouts {
        /// For a connection to be established.
        connect: Duration = "2s" within "0s" to "1h";
        /// From the last byte of the request that was sent to the head of the answer.
        first_byte: Duration = "30s" within "0s" to "1d";
        /// Between two pieces of an answer.
        idle: Duration = "60s" within "0s" to "1d";
        /// For everything, retries included.
        total: Duration = "0s" within "0s" to "7d";
        /// For a tunnel (WebSocket) in which nothing moves.
        tunnel: Duration = "1h" within "0s" to "30d";
    }
}

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
        /// Where the hash key comes from; the first source that is present wins. Without any, requests are spread at random.
        hash_on: Vec<HashSource> = absent;
        /// A cookie that keeps a client with its node; goes before `hash_on`.
        affinity_cookie: Option<AffinityCookie> = absent;
        /// Changes to the fields that the node gets.
        request_headers: FieldRules = block;
        /// Changes to the fields that the client gets.
        response_headers: FieldRules = block;
        /// Taken away from the path before it is forwarded, in whole segments.
        strip_prefix: Option<Spanned<RoutePath>> = absent;
        /// Runs a request with an `Idempotency-Key` once, and replays its result. Off without the block; `idempotency: {}` takes every default.
        idempotency: Option<RouteIdempotency> = absent;
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
        /// Whether a request's own `Cache-Control` counts: `ignore` or `honour`.
        client_directives: ClientDirectives = "ignore";
        /// Whether a response with `Set-Cookie` is stored, cookie included.
        store_set_cookie: bool = "false";
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
        status: Spanned<StatusCode> = "308";
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
