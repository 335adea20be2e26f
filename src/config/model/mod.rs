//! Every key of the file, with its default and what it means.

mod consistency;
mod etcd;
mod fleet;
mod listener;
mod pool;
mod route;
mod saga;

pub(crate) use consistency::{Consistency, Level, OnConcurrentWrite, OnQuorumLoss, OnWriteQuorumLoss, Reads, Verify};
pub(crate) use etcd::FleetEtcd;
pub(crate) use fleet::{Fleet, FleetNode, FleetRedis, FormerRedis, Quorum};
pub(crate) use listener::{
    CertificateFiles, ClientAuth, Listener, ListenerTls, MinVersion, ProxyProtocol, SniMismatch,
};
pub(crate) use pool::{
    AddressFamily, CheckKind, Discovery, GrpcCheck, HealthCheck, HealthScope, Initially, NodeState, OutlierEjection,
    Pool, PoolConnections, PoolTls, Protocol, Retries, Timeouts,
};
pub(crate) use route::{
    AffinityCookie, AffinityMode, CacheKey, ClientDirectives, FieldRules, FingerprintKind, IgnoredDirective,
    OnConcurrent, OnGone, OnStoreFailure, OnUnknown, RateLimit, Route, RouteCache, RouteIdempotency, Scheme,
};

pub(crate) use saga::{Saga, SagaRequest, SagaStep};

use super::read::{Named, Spanned, choices, settings};
use super::values::{Percent, ServerAddresses, Size};
use ipnet::IpNet;
use std::net::SocketAddr;
use std::time::Duration;

settings! {
    /// The whole configuration of a Ringway proxy.
    Settings {
        /// The number of workers, each with a thread of its own; 0 means one per core. A change needs a restart.
        workers: u32 = "0" within "0" to "1024";
        /// The networks of trusted proxies in front of this one, whose `X-Forwarded-*` fields are used. None by
        /// default.
        trusted_proxies: Vec<IpNet> = absent;
        /// The addresses that clients connect to.
        listeners: Vec<Listener> = required;
        /// The admin listener: status, configuration, metrics and probes.
        admin: Admin = block;
        /// A second, read-only listener with `/metrics`, `/livez` and `/readyz`, for scrapers and probes.
        metrics: Option<Metrics> = absent;
        /// Limits of connections, requests and their duration.
        limits: Limits = block;
        /// The access log: a line for every request.
        access_log: AccessLog = block;
        /// The log of the proxy's own events, on stderr. The environment variable `RUST_LOG` sets the level.
        process_log: ProcessLog = block;
        /// The store of the cache, shared by all routes.
        cache: Cache = block;
        /// The store of the results of requests with an `Idempotency-Key`; opened only if a route uses it.
        idempotency_store: IdempotencyStore = block;
        /// The fleet that this proxy belongs to: purges and invalidations reach all its proxies.
        fleet: Option<Fleet> = absent;
        /// The pools of nodes to forward to, by name.
        pools: Named<Pool> = absent;
        /// The routes; the first one that matches a request wins.
        routes: Vec<Route> = required;
    }
}

settings! {
    /// The admin listener.
    Admin {
        /// IP address and port. An address that is not loopback needs `token_file`.
        address: Spanned<SocketAddr> = "127.0.0.1:9900";
        /// A file with the token that requests to the API must carry as `Authorization: Bearer TOKEN`.
        token_file: Option<Spanned<String>> = absent;
        /// Host names, besides IP addresses and `localhost`, by which the listener may be addressed.
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
    /// Limits of connections, requests and their duration.
    Limits {
        /// Open client connections over all listeners; further ones wait to be accepted.
        connections: u32 = "100000" within "1" to "10000000";
        /// Open connections of one client address; further ones are closed. 0 means no limit, as behind a load balancer
        /// from whose address all connections come. An IPv6 address counts by its /64. `trusted_proxies` are exempt.
        connections_per_address: u32 = "0" within "0" to "10000000";
        /// Points for HTTP/2 misbehaviour that honest clients rarely show: resets, pings, empty frames and the like. At
        /// half of the limit the connection gets GOAWAY, at the limit it is aborted; the points expire over 10 s. 0
        /// means no limit. `trusted_proxies` are exempt.
        http2_glitches: u32 = "200" within "0" to "1000000" formerly "oddities";
        /// The size of a request's head. A larger one is answered 431.
        header_bytes: Size = "64KiB" within "8KiB" to "1MiB";
        /// The number of fields of a request. More are answered 431.
        headers: u32 = "100" within "1" to "10000";
        /// Fields with `_` in their names, which CGI-style servers cannot tell from those with `-`: `drop` removes
        /// them, `reject` answers 400, `allow` forwards them unless they could be taken for a field that the proxy
        /// protects.
        underscores_in_headers: UnderscoresInHeaders = "drop";
        /// The size of a request's body; a larger one is answered 413.
        request_body: Size = "64MiB";
        /// The memory of the whole process for buffered bodies: of requests that are buffered, of HTTP/2 requests that
        /// are received and not yet read, of responses to requests with an `Idempotency-Key`, and of responses that
        /// arrive in the cache. Above it new bodies wait, stream without being stored, or are answered 503.
        buffered_bytes: Size = "1GiB" within "1MiB" to "1024GiB";
        /// The time for the complete head of a request, from its first byte.
        header_timeout: Duration = "10s" within "1ms" to "1h";
        /// A request body with an announced length up to this is buffered completely, within `buffered_bytes`, before a
        /// node gets the request, so that slow clients occupy no node. 0B streams every body.
        request_buffer: Size = "64KiB" within "0B" to "16MiB" formerly "held_body";
        /// The least rate of a request's body in bytes per second, over the time that the proxy waits for it, after the
        /// first `body_idle_timeout`. 0B means no limit; gRPC has none.
        body_min_rate: Size = "240B" within "0B" to "1GiB";
        /// The time between two pieces of a request's body.
        body_idle_timeout: Duration = "30s" within "1ms" to "1h";
        /// The time until a client takes the next piece of a response.
        write_timeout: Duration = "30s" within "1ms" to "1h";
        /// The time until the next request on a connection.
        keep_alive_timeout: Duration = "75s" within "1ms" to "1d";
        /// The number of requests on one connection, after which it is closed, so that long-lived connections spread
        /// anew over proxies and workers. 0 means no limit.
        requests_per_connection: u32 = "100000" within "0" to "1000000000";
        /// The time from the signal to stop until connections are closed. `/readyz` answers 503 meanwhile, so that load
        /// balancers stop sending requests.
        drain_delay: Duration = "0s" within "0s" to "1h";
        /// The time that requests in flight may take after that.
        drain_timeout: Duration = "30s" within "0s" to "1d";
    }
}

choices! {
    /// The treatment of fields with `_` in their names.
    UnderscoresInHeaders {
        /// The fields are removed.
        Drop = "drop",
        /// The request is answered 400.
        Reject = "reject",
        /// The fields are forwarded.
        Allow = "allow",
    }
}

choices! {
    /// The format of the access log.
    LogFormat {
        /// A JSON object per line.
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
        /// `stdout`, `stderr` or a file to append to.
        path: String = "stdout";
        /// The fields of a line of `json`, in this order; all of them without the key.
        fields: Vec<Spanned<LogField>> = absent;
        /// The share of requests that get a line. Those with status 500 and above, with a problem document of the
        /// proxy, not completed, or slower than `slow` always get one.
        sample: Percent = "100%";
        /// The duration from which a request gets a line whatever `sample` says.
        slow: Duration = "1s" within "0s" to "1h";
    }
}

choices! {
    /// A field of a line of the access log.
    LogField {
        /// The end of the request, in RFC 3339.
        Time = "time",
        /// The name of the listener.
        Listener = "listener",
        /// The client's address.
        Client = "client",
        /// The method.
        Method = "method",
        /// The host.
        Host = "host",
        /// The path and the query.
        Uri = "uri",
        /// The version of HTTP.
        Protocol = "protocol",
        /// The status.
        Status = "status",
        /// The bytes of the request's body.
        RequestBytes = "request_bytes",
        /// The bytes of the response's body.
        ResponseBytes = "response_bytes",
        /// The time from the head of the request to the end of the response, in seconds, as all times.
        Duration = "duration",
        /// The time for the connection to the node.
        Connect = "connect",
        /// The time to the first byte of the node's response.
        FirstByte = "first_byte",
        /// The route.
        Route = "route",
        /// The pool.
        Pool = "pool",
        /// The node.
        Node = "node",
        /// The attempts at nodes.
        Attempts = "attempts",
        /// The id of the request.
        RequestId = "request_id",
        /// The client's `User-Agent`.
        UserAgent = "user_agent",
        /// The type of the proxy's problem document.
        Error = "error",
        /// The result of the cache.
        Cache = "cache",
        /// The result for the `Idempotency-Key`.
        Idempotency = "idempotency",
        /// What the route's `consistency` said of the stored response: `fresh`, `session`, `superseded`, `concurrent`,
        /// `strong`; with `verify: quorum` `fresh`, `changed`, `marked`, `quorum_lost` or `unverified`.
        Consistency = "consistency",
        /// The side that ended the request: `completed`, `client`, `upstream` or `proxy`.
        EndedBy = "ended_by",
    }
}

choices! {
    /// The format of the process log.
    ProcessLogFormat {
        /// For people; a message may have several lines.
        Text = "text",
        /// A JSON object per line.
        Json = "json",
    }
}

settings! {
    /// The process log.
    ProcessLog {
        /// `text`, or `json`: one object per event, on a line of its own. A change needs a restart.
        format: ProcessLogFormat = "text";
    }
}

settings! {
    /// The store of the cache, shared by all routes.
    Cache {
        /// The memory of stored responses, with their keys and overhead. A change needs a restart.
        memory: Size = "512MiB" within "1MiB" to "1024GiB";
        /// The largest body that any route stores; larger ones are streamed without being stored.
        max_object: Size = "64MiB" within "1KiB" to "1GiB";
    }
}

choices! {
    /// The kinds of store.
    StoreKind {
        /// A file, which survives restarts and crashes.
        Sqlite = "sqlite",
        /// The memory of the process: a restart forgets everything.
        Memory = "memory",
        /// A PostgreSQL database, which several proxies share.
        Postgres = "postgres",
        /// A Redis or Valkey server, which several proxies share.
        Redis = "redis",
    }
}

settings! {
    /// The store of the results of requests with an `Idempotency-Key`.
    IdempotencyStore {
        /// `sqlite` (a file, durable), `memory` (lost on restart, after which requests run again), `postgres` or
        /// `redis` (servers that the proxies of a fleet share). A change needs a restart.
        kind: Spanned<StoreKind> = "sqlite";
        /// The file of `sqlite`, on a local file system; a missing folder is created. A change needs a restart.
        path: String = "data/idempotency.db";
        /// For `postgres`: a file with the URL of the database, `postgres://user:password@host:5432/database`. Several
        /// hosts, separated by commas, are tried in turn for one that accepts writes. A change of address or password
        /// needs no restart.
        url_file: Option<Spanned<String>> = absent;
        /// For `postgres`: a file with the certificate authorities (PEM) of the server's certificate; those of the
        /// system by default.
        ca_file: Option<Spanned<String>> = absent;
        /// For `redis`: the address of the server, or a list of addresses, one of which accepts writes. A change of
        /// address, login or TLS needs no restart.
        address: Option<Spanned<ServerAddresses>> = absent;
        /// For `redis`: the user of the server's access control list; without the key the default one.
        username: Option<Spanned<String>> = absent;
        /// For `redis`: a file with the password.
        password_file: Option<Spanned<String>> = absent;
        /// For `redis`: TLS to the server. Off without the block; `tls: {}` trusts the system's authorities.
        tls: Option<PoolTls> = absent;
        /// For `redis`: the acknowledgements that a claim needs before its request is sent.
        durability: Durability = block;
        /// For `postgres` and `redis`: a local file that keeps the identity of the store, so that another store, or one
        /// that was restarted empty, is refused.
        identity_file: String = "data/idempotency-store.id";
    }
}

settings! {
    /// The acknowledgements that a claim needs before its request is sent.
    Durability {
        /// The number of replicas that must acknowledge each claim and each result (`WAIT`). With fewer connected ones,
        /// new keys are refused. 0 does not survive a failover.
        replicas: u32 = "0" within "0" to "16";
    }
}
