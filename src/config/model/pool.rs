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
        /// Retries of a request that failed at a node. Without the block: one, where no byte was sent. With and without the block, a request is also sent again where a kept connection ended before any byte of a response to a GET, HEAD, OPTIONS, or a PUT or DELETE whose body is still held, and where an HTTP/2 node declares the stream unprocessed. `attempts: 0` turns all retries off.
        retries: Option<Retries> = absent;
    }
}

impl Pool {
    /// Returns the nodes that the file names.
    pub(crate) fn listed(&self) -> &[Node] {
        self.nodes.as_deref().unwrap_or_default()
    }
}

settings! {
    /// Nodes that a name server tells of; each one's id is its address, so that it keeps its keys.
    Discovery {
        /// `name:port` for the addresses of a name (A and AAAA), `_service._proto.name` for SRV records, whose ports and weights are taken: weights as they are, from 1 to 1000. Where a name server gives each node its part of a hundred, as Kubernetes does, every weight changes with every node: ask for addresses there.
        dns: Spanned<DnsName> = required;
        /// The addresses that are asked for: `any`, `ipv4` or `ipv6`. Of `any` one family is enough; where the other cannot be asked for, its last nodes stay.
        family: AddressFamily = "any";
        /// How often the name is asked for. An answer that fails or is empty changes nothing.
        refresh: Duration = "10s" within "100ms" to "1d";
        /// The name server, instead of those of `/etc/resolv.conf`.
        server: Option<SocketAddr> = absent;
        /// How long the name server may take.
        timeout: Duration = "2s" within "10ms" to "1m";
    }
}

choices! {
    /// Which addresses of a name are asked for.
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
        /// The `Host` that is asked for; the node's name and port, as the file has them, without the key.
        host: Option<HeaderValue> = absent;
        /// More fields of the request.
        headers: Named<HeaderValue> = absent;
        /// Asks the health service of gRPC (grpc.health.v1) over HTTP/2 in place of a GET.
        grpc: Option<GrpcCheck> = absent;
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
    /// A check by the health service of gRPC.
    GrpcCheck {
        /// The service that is asked for; without the key the whole node.
        service: String = "''";
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
        /// The key of the hash: proxies with the same seed agree on every key. Who knows it can choose a key for a node; without the key it is public.
        seed: RingSeed = "ringway";
        /// A file that holds the seed, in place of `seed`: at least 32 characters; `openssl rand -hex 32` makes one.
        seed_file: Option<Spanned<String>> = absent;
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
