//! The response of a node whose head has come: it is opened for its body, or its connection becomes a tunnel.

use super::UpstreamError;
use super::answer::{AnswerBody, Carrier, Keep};
use super::connections::NodeConnections;
use super::node::InFlight;
use super::observer::Observer;
use super::pool::Pool;
use crate::http::fields::{self, TransferCoding};
use crate::io::Stream;
use http::header::{CONTENT_LENGTH, TRAILER};
use http::{Response, StatusCode, Version, response};
use std::rc::Rc;
use std::time::Instant;

/// The head of a node's response, and the connection that its body comes over.
pub(crate) struct NodeResponse {
    pub(crate) head: Response<()>,
    pub(super) carrier: Carrier,
    pub(super) in_flight: InFlight,
    /// When the attempt began.
    pub(super) started: Instant,
    /// The node that has responded, by its index in the pool's list.
    pub(crate) node: usize,
    /// The node of the request's strict session could not be reached.
    pub(crate) has_lost_pinned: bool,
}

impl NodeResponse {
    /// Returns the response without the parts that concern its connection. A 101 is malformed here.
    pub(super) fn open(
        self,
        pool: &Pool,
        until: Option<Instant>,
        connections: &NodeConnections,
        observer: &impl Observer,
    ) -> Result<Response<AnswerBody>, UpstreamError> {
        let NodeResponse { head, carrier, in_flight, started, .. } = self;
        if head.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(UpstreamError::Malformed);
        }
        let (mut head, ()) = head.into_parts();
        if !carrier.has_plain_head() {
            clean(&mut head, matches!(carrier, Carrier::Shared(_)), observer.takes_trailers())?;
        }
        if head.status == StatusCode::NO_CONTENT {
            head.headers.remove(CONTENT_LENGTH);
        }
        let rules = &pool.connections;
        let keep = Keep {
            links: Rc::clone(&connections.idle),
            timeout: rules.idle_timeout,
            max_idle: rules.max_idle_per_node,
        };
        let times = (pool.timeouts.idle, until);
        let body = AnswerBody::new(carrier, in_flight, started, times, keep, observer.client_part());
        head.version = Version::HTTP_11;
        Ok(Response::from_parts(head, body))
    }

    /// Returns the head of a 101, the socket after it, and the node's permit, which the tunnel keeps.
    pub(crate) fn into_switched(self) -> Result<(Response<()>, Stream, InFlight), UpstreamError> {
        // HTTP/2 has no 101.
        let Carrier::Own(link) = self.carrier else { return Err(UpstreamError::Malformed) };
        let stream = link.into_switched().ok_or(UpstreamError::Terminated)?;
        let mut in_flight = self.in_flight;
        in_flight.finished();
        in_flight.count_now();
        Ok((self.head, stream, in_flight))
    }
}

/// Removes the fields of the connection from a head, and makes its lengths one. An error where its framing is
/// malformed.
fn clean(head: &mut response::Parts, is_stream: bool, takes_trailers: bool) -> Result<(), UpstreamError> {
    let coding = fields::transfer_coding(&head.headers);
    match coding {
        TransferCoding::Unsupported => return Err(UpstreamError::Malformed),
        // The chunks define the body; a length beside them must be ignored (RFC 9112 6.3).
        TransferCoding::Chunked => drop(head.headers.remove(CONTENT_LENGTH)),
        TransferCoding::None => {
            fields::unify_content_length(&mut head.headers).map_err(|_| UpstreamError::Malformed)?;
        }
    }
    if let Some(named) = fields::strip_response(&mut head.headers).named {
        head.extensions.insert(named);
    }
    // Only content in chunks, or on a stream, may be followed by trailers.
    if (coding == TransferCoding::Chunked || is_stream) && !takes_trailers {
        head.headers.remove(TRAILER);
    }
    Ok(())
}
