//! A pool of nodes: who is eligible for a key, connections to them, and requests to them.
//!
//! `dispatch` sends a request to the nodes of a pool, for a client or without one: `attempt` asks one node,
//! `node_response` is its response, and the `observer` hears of the progress.
//!
//! `pool` is a pool as one configuration has it; `pick` decides which node takes a request, by what
//! `health` (active checks, done by `probe`), `circuit` (failed requests) and `ramp` (slow start) say of
//! it. `node` and `group` are what outlives a configuration, found again in the `registry`. `retry` says
//! what may be tried again, `queue` holds the requests that wait for room, `discovery` finds the nodes.
//! `connections` are those of a worker: `connect`, `link`, `idle`, `answer` and `interim` are about one connection,
//! whose messages `http1` writes and reads, `http2` about those that requests share; `replay_body` keeps a body that
//! may have to be sent again.
//!
//! The result of an attempt is a [`link::SendResult`], for everything above rests on the difference
//! between a request that was never sent and one that may have run.

mod answer;
mod attempt;
mod build;
mod circuit;
mod connect;
mod connections;
mod deadlines;
mod discovery;
mod dispatch;
mod group;
mod health;
pub(crate) mod http1;
mod http2;
mod idle;
mod interim;
mod link;
mod node;
mod node_response;
mod observer;
mod pick;
mod pool;
mod probe;
mod queue;
mod ramp;
mod registry;
mod replay_body;
mod retry;
mod sessions;

pub(crate) use answer::{AnswerBody, Broken, ClientPart};
pub(crate) use build::{BadPool, Earlier, ring_of, seed_of};
pub(crate) use connections::NodeConnections;
pub(crate) use deadlines::Deadlines;
pub(crate) use discovery::Discovered;
pub(crate) use dispatch::{Dispatch, DispatchError};
pub(crate) use interim::Interim;
pub(crate) use node::InFlight;
pub(crate) use node_response::NodeResponse;
pub(crate) use observer::{NoClient, Observer};
pub(crate) use pool::{Node, Pool};
pub(crate) use probe::Probes;
pub(crate) use registry::{Registry, StateOverride};
pub(crate) use retry::RetrySafety;

use crate::http::buffered_body::BufferedBody;
use std::fmt;
use std::pin::Pin;

/// Which nodes a request may go to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NodePreference {
    /// Where its key lies on the circle.
    pub(crate) hash: u64,
    /// The node of a strict session, by its index in the pool's list; it comes before the ring.
    pub(crate) pinned: Option<usize>,
    /// A pinned session may go to another node.
    pub(crate) may_leave: bool,
}

/// A body on its way to a node. Most requests have none, and cost no box.
pub(crate) enum Outgoing {
    Empty,
    Stream(Pin<Box<dyn http_body::Body<Data = bytes::Bytes, Error = BodyError>>>),
}

impl From<BufferedBody> for Outgoing {
    fn from(body: BufferedBody) -> Outgoing {
        if body.is_over() { Outgoing::Empty } else { Outgoing::Stream(Box::pin(body)) }
    }
}

/// Why a request's body could not be sent to its end; the fault is the client's or its connection's.
pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;

impl http_body::Body for Outgoing {
    type Data = bytes::Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<bytes::Bytes>, BodyError>>> {
        match self.get_mut() {
            Outgoing::Empty => std::task::Poll::Ready(None),
            Outgoing::Stream(body) => body.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Outgoing::Empty => true,
            Outgoing::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self {
            Outgoing::Empty => http_body::SizeHint::with_exact(0),
            Outgoing::Stream(body) => body.size_hint(),
        }
    }
}

/// The reasons for which an attempt at a node has no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UpstreamError {
    /// The node's address refuses connections.
    ConnectionRefused,
    /// No connection within `timeouts.connect`.
    ConnectTimeout,
    /// Another network error prevented the connection.
    Unreachable,
    /// The node's certificate is not valid, or not that of its name.
    TlsCertificate(CertificateFault),
    /// The TLS handshake with the node has failed otherwise.
    TlsProtocol,
    /// The node closed or reset the connection before its answer began.
    Terminated,
    /// No answer within `timeouts.first_byte`, or `timeouts.total` is over.
    Timeout,
    /// The response is not valid HTTP.
    Malformed,
    /// The head of the response is larger than the limit.
    HeadTooLarge,
    /// The request's own body ended in an error: the client's fault.
    RequestBody,
    /// Half of the idempotency claim's lease has passed before a byte was sent: nothing may be sent any more.
    ClaimLapsed,
}

/// The fault of a node's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CertificateFault {
    Expired,
    NotYetValid,
    UnknownIssuer,
    OtherName,
    Revoked,
    Invalid,
}

impl CertificateFault {
    pub(crate) fn of(error: &rustls::CertificateError) -> CertificateFault {
        use rustls::CertificateError as Is;
        match error {
            Is::Expired | Is::ExpiredContext { .. } => CertificateFault::Expired,
            Is::NotValidYet | Is::NotValidYetContext { .. } => CertificateFault::NotYetValid,
            // An issuer of the right name with another key is unknown.
            Is::UnknownIssuer | Is::BadSignature => CertificateFault::UnknownIssuer,
            Is::NotValidForName | Is::NotValidForNameContext { .. } => CertificateFault::OtherName,
            Is::Revoked => CertificateFault::Revoked,
            _ => CertificateFault::Invalid,
        }
    }

    fn text(self) -> &'static str {
        match self {
            CertificateFault::Expired => "the node's certificate has expired",
            CertificateFault::NotYetValid => "the node's certificate is not valid yet",
            CertificateFault::UnknownIssuer => "the node's certificate comes from an issuer that is not trusted",
            CertificateFault::OtherName => "the node's certificate is for another name",
            CertificateFault::Revoked => "the node's certificate is revoked",
            CertificateFault::Invalid => "the node's certificate is not valid",
        }
    }
}

impl UpstreamError {
    /// Returns whether it counts against the node. A request that its client did not send completely does not, nor a
    /// response that only exceeds a limit of the proxy.
    pub(crate) fn is_the_nodes(self) -> bool {
        !matches!(self, UpstreamError::RequestBody | UpstreamError::HeadTooLarge | UpstreamError::ClaimLapsed)
    }

    /// Returns the label in metrics and the word in logs.
    pub(crate) fn label(self) -> &'static str {
        match self {
            UpstreamError::ConnectionRefused => "connection_refused",
            UpstreamError::ConnectTimeout => "connect_timeout",
            UpstreamError::Unreachable => "unreachable",
            UpstreamError::TlsCertificate(_) => "tls_certificate",
            UpstreamError::TlsProtocol => "tls_protocol",
            UpstreamError::Terminated => "terminated",
            UpstreamError::Timeout => "timeout",
            UpstreamError::Malformed => "malformed",
            UpstreamError::HeadTooLarge => "head_too_large",
            UpstreamError::RequestBody => "request_body",
            UpstreamError::ClaimLapsed => "claim_lapsed",
        }
    }

    /// RFC 9209's error token.
    pub(crate) fn proxy_status(self) -> &'static str {
        match self {
            UpstreamError::ConnectionRefused => "connection_refused",
            UpstreamError::ConnectTimeout => "connection_timeout",
            UpstreamError::Unreachable => "destination_ip_unroutable",
            UpstreamError::TlsCertificate(_) => "tls_certificate_error",
            UpstreamError::TlsProtocol => "tls_protocol_error",
            UpstreamError::Terminated => "connection_terminated",
            UpstreamError::Timeout => "http_response_timeout",
            UpstreamError::Malformed => "http_protocol_error",
            UpstreamError::HeadTooLarge => "http_response_header_section_size",
            UpstreamError::RequestBody => "http_request_error",
            UpstreamError::ClaimLapsed => "proxy_internal_error",
        }
    }
}

impl fmt::Display for UpstreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            UpstreamError::ConnectionRefused => "the node refused the connection",
            UpstreamError::ConnectTimeout => "the node did not accept a connection in time",
            UpstreamError::Unreachable => "the node cannot be reached",
            UpstreamError::TlsCertificate(fault) => fault.text(),
            UpstreamError::TlsProtocol => "the TLS handshake with the node has failed",
            UpstreamError::Terminated => "the node closed the connection before it answered",
            UpstreamError::Timeout => "the node did not answer in time",
            UpstreamError::Malformed => "the node's answer is not valid HTTP",
            UpstreamError::HeadTooLarge => "the head of the node's answer is too large",
            UpstreamError::RequestBody => "the request's body ended early",
            UpstreamError::ClaimLapsed => {
                "the claim of the request's key was too old to send anything; repeat the request later"
            }
        })
    }
}
