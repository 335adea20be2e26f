//! The observer of a dispatch: it follows the progress of a request on behalf of its client.

use super::answer::ClientPart;
use super::interim::Interim;
use std::rc::Weak;
use std::sync::Arc;
use std::time::Duration;

/// Hears of a request on its way to the nodes. Each method has a default, which is that of a request without a client.
pub(crate) trait Observer {
    /// The request goes to this node of this pool, as the attempt of this number, from 1.
    fn sent_to(&self, _pool: &Arc<str>, _node: &Arc<str>, _attempt: u32) {}

    /// A connection was opened for the request, in this time.
    fn connected(&self, _time: Duration) {}

    /// The head of a node's response is here, after this time.
    fn responded(&self, _time: Duration) {}

    /// Returns whether interim responses are wanted; they are passed to [`Observer::interim`].
    fn wants_interim(&self) -> bool {
        false
    }

    /// A node has sent an interim response.
    fn interim(&self, _interim: &Interim) {}

    /// The request goes out on a connection whose interim responses are not read.
    fn cannot_hear_interim(&self) {}

    /// Returns whether the request's body waits for its client. The node does not count as slow meanwhile.
    fn is_client_slow(&self) -> bool {
        false
    }

    /// Returns whether the request's body has failed. Later failures are not the node's.
    fn has_body_failed(&self) -> bool {
        false
    }

    /// Returns whether the response may announce trailers.
    fn takes_trailers(&self) -> bool {
        false
    }

    /// Returns the client's part of the exchange, for the body of the response.
    fn client_part(&self) -> Weak<dyn ClientPart> {
        Weak::<NoClient>::new()
    }
}

/// The observer of a request that has no client.
pub(crate) struct NoClient;

impl Observer for NoClient {}

impl ClientPart for NoClient {
    fn has_failed(&self) -> bool {
        false
    }

    fn is_awaited(&self) -> bool {
        false
    }
}
