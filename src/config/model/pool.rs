//! Pools of nodes: who they are, their health, and how they are spoken with.

use super::listener::CertificateFiles;
use crate::config::read::{Named, Spanned, choices, settings};
use crate::config::values::{
    CheckPath, DnsName, Factor, NodeAddress, Percent, Port, RetryOn, RingSeed, ServerName, Size, StatusRange,
};
use http::HeaderValue;
use std::net::SocketAddr;
use std::time::Duration;

settings! {
    /// A pool of nodes with a consistent-hash ring.
    Pool {
        /// The nodes; a pool has these, `discovery`, or both.
        nodes: Option<Vec<Node>> = absent;
        /// Nodes that are discovered by DNS.
        discovery: Option<Discovery> = absent;
        /// The consistent-hash ring.
        ring: RingSettings = block;
        /// Active health checks of every node. Off without the block; `health_check: {}` uses the defaults.
        health_check: Option<HealthCheck> = absent;
        /// `local`, or `shared`: one proxy of the fleet checks the nodes for all. It needs `health_check` and
        /// `fleet.etcd`.
        health: Spanned<HealthScope> = "local";
        /// Ejects a node for a while when consecutive requests to it fail.
        outlier_ejection: OutlierEjection = block;
        /// A node that joins or comes back gets its keys gradually over this time; 0s assigns all of them at once.
        slow_start: Duration = "0s" within "0s" to "1d";
        /// With fewer healthy nodes than this share of the `up` nodes, health is ignored and all of them are used
        /// (panic mode); 0% turns that off.
        panic_threshold: Percent = "0%";
        /// Connections to the nodes.
        connections: PoolConnections = block;
        /// Timeouts of requests to the nodes.
        timeouts: Timeouts = block;
        /// `http1`, or `http2`: over TLS, or over cleartext with prior knowledge.
        protocol: Protocol = "http1";
        /// TLS to the nodes. Off without the block; `tls: {}` trusts the system's authorities.
        tls: Option<PoolTls> = absent;
        /// Retries of a request that failed at a node. Without the block: one, where no byte was sent. With and without
        /// the block, a request is also sent again where a kept connection ended before any byte of a response to a
        /// GET, HEAD, OPTIONS, or a PUT or DELETE whose body is still buffered, and where an HTTP/2 node declares the
        /// stream unprocessed. `attempts: 0` turns all retries off.
        retries: Option<Retries> = absent;
    }
}

impl Pool {
    /// Returns the nodes of the file.
    pub(crate) fn listed(&self) -> &[Node] {
        self.nodes.as_deref().unwrap_or_default()
    }
}

settings! {
    /// Nodes that are discovered by DNS; the id of each is its address, so that it keeps its keys.
    Discovery {
        /// `name:port` for the addresses of a name (A and AAAA), `_service._proto.name` for SRV records, whose ports
        /// and weights are used: weights from 1 to 1000 as they are. Where a name server divides a weight of 100 among
        /// the nodes, as Kubernetes does, every weight changes with every node: use addresses there.
        dns: Spanned<DnsName> = required;
        /// The address families to resolve: `any`, `ipv4` or `ipv6`. With `any`, one family is enough; if the lookup of
        /// the other fails, its last nodes stay.
        family: AddressFamily = "any";
        /// The interval of lookups. A failed or empty answer changes nothing.
        refresh: Duration = "10s" within "100ms" to "1d";
        /// The name server, instead of those of `/etc/resolv.conf`.
        server: Option<SocketAddr> = absent;
        /// The timeout of the name server.
        timeout: Duration = "2s" within "10ms" to "1m";
    }
}

choices! {
    /// The address families of a lookup.
    AddressFamily {
        /// IPv4 and IPv6.
        Any = "any",
        /// A records.
        Ipv4 = "ipv4",
        /// AAAA records.
        Ipv6 = "ipv6",
    }
}

choices! {
    /// The kinds of health check.
    CheckKind {
        /// A GET request.
        Http = "http",
        /// A TCP connection without a request.
        Tcp = "tcp",
    }
}

choices! {
    /// The state of a node before its first check.
    Initially {
        /// It gets requests.
        Up = "up",
        /// It gets none until `healthy_after` checks have passed.
        Down = "down",
    }
}

choices! {
    /// The proxies that check the nodes of a pool.
    HealthScope {
        /// Each proxy checks for itself.
        Local = "local",
        /// The leader of the fleet checks for all; each for itself while there is none.
        Shared = "shared",
    }
}

choices! {
    /// The protocols to the nodes.
    Protocol {
        /// HTTP/1.1, one request at a time per connection.
        Http1 = "http1",
        /// HTTP/2, many requests per connection.
        Http2 = "http2",
    }
}

settings! {
    /// TLS to the nodes of a pool. The certificate of a node must be valid and cover its name.
    PoolTls {
        /// The server name (SNI) that the node's certificate must cover; by default the host of the node's address.
        server_name: Option<Spanned<ServerName>> = absent;
        /// A file with the authorities (PEM) of the nodes' certificates; by default those of the system.
        ca_file: Option<Spanned<String>> = absent;
        /// The certificate for nodes that request one from their clients.
        certificate: Option<CertificateFiles> = absent;
        /// `false` accepts any certificate: the connection is encrypted, but the node is not authenticated.
        verify: bool = "true";
    }
}

settings! {
    /// Health checks of every node of a pool; one prober per process, whatever the number of workers.
    HealthCheck {
        /// `http` (a GET) or `tcp` (a connection).
        kind: CheckKind = "http";
        /// The target of the request, with its query.
        path: CheckPath = "/healthz";
        /// The `Host` of the request; by default the node's name and port, as they stand in the file.
        host: Option<HeaderValue> = absent;
        /// Further fields of the request.
        headers: Named<HeaderValue> = absent;
        /// Uses the gRPC health service (grpc.health.v1) over HTTP/2 in place of a GET.
        grpc: Option<GrpcCheck> = absent;
        /// The port of the check, where it is not the node's own.
        port: Option<Port> = absent;
        /// The time from the start of one check to the start of the next, less a random part of up to a tenth, which
        /// spreads the checks of many nodes.
        interval: Duration = "2s" within "10ms" to "1h";
        /// The timeout of the whole check.
        timeout: Duration = "1s" within "1ms" to "10m";
        /// The number of consecutive passed checks after which a node is healthy; where no node of the pool is healthy,
        /// one is enough.
        healthy_after: u32 = "2" within "1" to "100";
        /// The number of consecutive failed checks after which a node is unhealthy.
        unhealthy_after: u32 = "3" within "1" to "100";
        /// The statuses of a healthy node: codes and ranges.
        expect_status: Vec<StatusRange> = "[200-399]";
        /// A text that the first 64 KiB of the body must contain; by default any body passes.
        expect_body: Option<String> = absent;
        /// `up` or `down`: the state of a node before its first check.
        initially: Initially = "up";
    }
}

settings! {
    /// A check by the gRPC health service.
    GrpcCheck {
        /// The name of the service; by default the whole node.
        service: String = "''";
    }
}

settings! {
    /// Ejects a node for a while when consecutive requests to it fail: connections refused or reset, timeouts, 502, 503
    /// and 504.
    OutlierEjection {
        /// The number of consecutive failures; 0 never ejects a node.
        consecutive_failures: u32 = "5" within "0" to "10000";
        /// The time of the first ejection; the second in a row takes twice as long, the next three times. After it, one
        /// request at a time is sent to the node, until one succeeds.
        base_time: Duration = "30s" within "1ms" to "1d";
        /// The longest time of an ejection.
        max_time: Duration = "5m" within "1ms" to "7d";
        /// The largest share of a pool's `up` nodes that may be ejected at a time.
        max_ejected: Percent = "50%";
    }
}

settings! {
    /// Retries of a request that failed at one node, at the next ones of its key.
    Retries {
        /// The number of attempts after the first one.
        attempts: u32 = "2" within "0" to "100";
        /// The retry budget: retries as a share of requests. Up to ten unused retries are kept, and one is added every
        /// second whatever the number of requests.
        budget: Percent = "20%";
        /// The conditions of a retry: `connect_failure` (nothing was sent: any method), and for idempotent methods
        /// (GET, HEAD, OPTIONS, PUT, DELETE) `reset`, `timeout` and statuses.
        on: Vec<RetryOn> = "[connect_failure, reset, 502, 503]";
        /// The largest body that is buffered for a retry, within `limits.buffered_bytes`; a request with a larger one
        /// is retried only where nothing was sent.
        max_body: Size = "64KiB" within "0B" to "256MiB";
    }
}

choices! {
    /// The administrative state of a node.
    NodeState {
        /// It gets requests.
        Up = "up",
        /// It gets no new keys, and finishes its requests and sessions.
        Drain = "drain",
        /// It gets nothing.
        Down = "down",
    }
}

settings! {
    /// One node of a pool.
    Node {
        /// The identity of the node on the ring; neither its position in the list nor its address matters.
        id: Spanned<String> = required;
        /// IP address or host name, and port. A name is resolved when the configuration is loaded.
        address: Spanned<NodeAddress> = required;
        /// The share of keys relative to other nodes; 0 means none.
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
        /// The key of the hash: proxies with the same seed assign every key alike. Anyone who knows it can choose a key
        /// for a node; the default is public.
        seed: RingSeed = "ringway";
        /// A file that holds the seed, in place of `seed`: at least 32 characters; `openssl rand -hex 32` makes one.
        seed_file: Option<Spanned<String>> = absent;
        /// Bounded load: no node gets more than this many times its share of the requests in flight; further requests
        /// go to the next node. Off without the key.
        bounded_load: Option<Factor> = absent;
    }
}

settings! {
    /// Connections to the nodes of a pool.
    PoolConnections {
        /// Requests and tunnels in flight to one node, over all workers.
        max_per_node: u32 = "1024" within "1" to "1000000";
        /// The number of requests that wait, over all workers, while every possible node is at its limit; further ones
        /// get 503.
        max_queued: u32 = "0" within "0" to "1000000";
        /// The time for which a request waits before it gets 503.
        queue_timeout: Duration = "1s" within "1ms" to "10m";
        /// Idle connections to one node, over all workers.
        max_idle_per_node: u32 = "128" within "0" to "1000000";
        /// The time for which a connection may be idle.
        idle_timeout: Duration = "60s" within "1ms" to "1d";
    }
}

settings! {
    /// Timeouts of a node; 0s means no limit.
    Timeouts {
        /// The time until a connection is established.
        connect: Duration = "2s" within "0s" to "1h";
        /// The time from the last byte of the request to the head of the response.
        first_byte: Duration = "30s" within "0s" to "1d";
        /// The time between two pieces of a response.
        idle: Duration = "60s" within "0s" to "1d";
        /// The time for the whole request, including retries.
        total: Duration = "0s" within "0s" to "7d";
        /// The time for which a tunnel (WebSocket) may be idle.
        tunnel: Duration = "1h" within "0s" to "30d";
    }
}
