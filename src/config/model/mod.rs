//! Every key of the file, with its default and what it means.

mod listener;
mod pool;
mod route;

pub(crate) use listener::{
    CertificateFiles, ClientAuth, Listener, ListenerTls, MinVersion, ProxyProtocol, SniMismatch,
};
pub(crate) use pool::{
    AddressFamily, CheckKind, Discovery, GrpcCheck, HealthCheck, Initially, NodeState, OutlierEjection, Pool,
    PoolConnections, PoolTls, Protocol, Retries, Timeouts,
};
pub(crate) use route::{
    AffinityCookie, AffinityMode, CacheKey, ClientDirectives, FieldRules, FingerprintKind, IgnoredDirective,
    OnConcurrent, OnGone, OnStoreFailure, OnUnknown, RateLimit, Route, RouteCache, RouteIdempotency, Scheme,
};

use super::read::{Named, Spanned, choices, settings};
use super::values::{ServerAddresses, Size};
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
        /// The log of what the proxy itself does, on stderr; `RUST_LOG` chooses the level.
        process_log: ProcessLog = block;
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
        /// Open connections of one client address; further ones are closed. 0 means no limit, as behind a load balancer that speaks for all. For IPv6 an address is its /64. `trusted_proxies` are exempt.
        connections_per_address: u32 = "0" within "0" to "10000000";
        /// What an HTTP/2 connection may do of what honest clients seldom do, in points: resets, pings, empty frames and the like. At half of it the connection is told to end, at the whole it is cut; 10 s forgive the whole. 0 means no limit. `trusted_proxies` are exempt.
        http2_glitches: u32 = "200" within "0" to "1000000" formerly "oddities";
        /// The size of a request's head.
        header_bytes: Size = "64KiB" within "8KiB" to "1MiB";
        /// How many fields a request may have.
        headers: u32 = "100" within "1" to "10000";
        /// Fields with `_` in their names, which servers in the manner of CGI cannot tell from those with `-`: `drop` removes them, `reject` answers 400, `allow` passes those on that pass for no field that the proxy protects.
        underscores_in_headers: UnderscoresInHeaders = "drop";
        /// The size of a request's body; a larger one is answered 413.
        request_body: Size = "64MiB";
        /// What the whole process holds in memory of bodies: of requests that are held back, of those that HTTP/2 clients have sent and nobody has read yet, of answers with an `Idempotency-Key`, and of responses that are arriving in the cache. Over it what is new waits, streams by without being stored, or gets 503.
        buffered_bytes: Size = "1GiB" within "1MiB" to "1024GiB";
        /// For the whole head of a request, from its first byte.
        header_timeout: Duration = "10s" within "1ms" to "1h";
        /// A request's body whose announced length is up to this is awaited whole, within `buffered_bytes`, before a node is asked: slow clients then hold no node. 0B has every body stream.
        request_buffer: Size = "64KiB" within "0B" to "16MiB" formerly "held_body";
        /// Bytes a second that a request's body must bring at least, over the time that it is waited for, after the first `body_idle_timeout`. 0B means no limit; gRPC has none.
        body_min_rate: Size = "240B" within "0B" to "1GiB";
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

choices! {
    /// How an event of the process log looks.
    ProcessLogFormat {
        /// For people; a message may have several lines.
        Text = "text",
        /// A JSON object a line.
        Json = "json",
    }
}

settings! {
    /// The process log.
    ProcessLog {
        /// `text`, or `json`: an object for each event, on a line of its own. A change needs a restart.
        format: ProcessLogFormat = "text";
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
        /// A PostgreSQL database, which several proxies share.
        Postgres = "postgres",
        /// A Redis or Valkey server, which several proxies share.
        Redis = "redis",
    }
}

settings! {
    /// Where the results of requests with an `Idempotency-Key` are kept.
    IdempotencyStore {
        /// `sqlite` (a file, durable), `memory` (forgets on restart, and runs again), `postgres` or `redis` (servers that the proxies of a fleet share). A change needs a restart.
        kind: Spanned<StoreKind> = "sqlite";
        /// The file of `sqlite`, on a local file system; its folder is made where there is none. A change needs a restart.
        path: String = "data/idempotency.db";
        /// For `postgres`: a file with the URL of the database, `postgres://user:password@host:5432/database`. Several hosts, separated by commas, are tried in turn for one that takes writes. A change of address or password needs no restart.
        url_file: Option<Spanned<String>> = absent;
        /// For `postgres`: a file with the authorities, in PEM, that the server's certificate may come from; those of the system by default.
        ca_file: Option<Spanned<String>> = absent;
        /// For `redis`: the address of the server, or a list of addresses, one of which takes writes. A change of address, login or TLS needs no restart.
        address: Option<Spanned<ServerAddresses>> = absent;
        /// For `redis`: the user of the server's access control list; without the key the default one.
        username: Option<Spanned<String>> = absent;
        /// For `redis`: a file with the password.
        password_file: Option<Spanned<String>> = absent;
        /// For `redis`: speaks TLS with the server. Off without the block; `tls: {}` trusts the system's authorities.
        tls: Option<PoolTls> = absent;
        /// For `redis`: what must have a claim before its request is sent.
        durability: Durability = block;
        /// For `postgres` and `redis`: a local file that keeps the identity of the store, so that another one, or one that was restarted empty, is refused.
        identity_file: String = "data/idempotency-store.id";
    }
}

settings! {
    /// What must have a claim before its request is sent.
    Durability {
        /// How many replicas must acknowledge each claim and each result (`WAIT`). With fewer connected, new keys are refused. 0 does not survive a failover.
        replicas: u32 = "0" within "0" to "16";
    }
}
