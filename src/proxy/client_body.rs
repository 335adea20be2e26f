//! The body of a client's request, as its connection hands it over: the one place that names the bodies of protocols.
//! The pipeline reads it through [`RequestBody`](super::body::RequestBody), which has the limits.

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

/// The body of a request. A protocol, or a request of the proxy's own, that brings another kind adds a variant.
pub(crate) enum ClientBody {
    /// HTTP/1 and HTTP/2, as hyper reads them.
    Hyper(Incoming),
}

/// The reasons for which a request's body did not arrive completely.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BodyFault {
    #[error("the body is larger than allowed")]
    TooLarge,
    #[error("the body stopped arriving, or came too slowly")]
    Stalled,
    #[error("the body's chunks are malformed")]
    Malformed,
    #[error("the client closed the connection in the middle of the body")]
    ClientGone,
    #[error("the answer had ended before the body")]
    Answered,
}

impl From<Incoming> for ClientBody {
    fn from(incoming: Incoming) -> ClientBody {
        ClientBody::Hyper(incoming)
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = BodyFault;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        match self.get_mut() {
            ClientBody::Hyper(incoming) => Pin::new(incoming)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(|error| fault_of(&error)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            ClientBody::Hyper(incoming) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ClientBody::Hyper(incoming) => incoming.size_hint(),
        }
    }
}

/// Returns whether the client left or sent a malformed body: the io error inside hyper's tells them apart.
fn fault_of(error: &hyper::Error) -> BodyFault {
    let cause = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
    match cause.map(io::Error::kind) {
        Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) => BodyFault::Malformed,
        _ => BodyFault::ClientGone,
    }
}
