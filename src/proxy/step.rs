//! The results of a step of the pipeline: a reply, a request for the nodes, or a future that replies.

use super::exchange::Exchange;
use super::respond::{Reply, finish};
use super::response_body::ResponseBody;
use super::upstream::UpstreamRequest;
use http::Response;
use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

/// The result of the synchronous part of the pipeline.
#[expect(clippy::large_enum_variant, reason = "it lives for one match")]
pub(super) enum Step {
    Reply(Reply),
    Forward(Box<UpstreamRequest>),
    Later(ReplyFuture),
}

/// A reply that is waited for.
pub(super) type ReplyFuture = Pin<Box<dyn Future<Output = Reply>>>;

/// The response to one request: ready, or once its reply has come.
pub(crate) enum ResponseFuture {
    /// `None` once it is taken.
    Ready(Option<Response<ResponseBody>>),
    Pending {
        reply: PendingReply,
        exchange: Rc<Exchange>,
    },
    /// A response that the connection makes of another one: a WebSocket over HTTP/2.
    Upgrade(Pin<Box<dyn Future<Output = Response<ResponseBody>>>>),
}

/// A reply of the pipeline's, for [`ResponseFuture`] alone.
pub(crate) struct PendingReply(pub(super) ReplyFuture);

impl ResponseFuture {
    /// Returns the response to a request whose steps are through.
    pub(super) fn ready(reply: Reply, exchange: &Rc<Exchange>) -> ResponseFuture {
        ResponseFuture::Ready(Some(finish(reply, exchange)))
    }
}

impl Future for ResponseFuture {
    type Output = Result<Response<ResponseBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            ResponseFuture::Ready(response) => {
                Poll::Ready(Ok(response.take().expect("a response future is polled until it is ready, once")))
            }
            ResponseFuture::Pending { reply, exchange } => {
                let reply = ready!(reply.0.as_mut().poll(cx));
                Poll::Ready(Ok(finish(reply, exchange)))
            }
            ResponseFuture::Upgrade(response) => response.as_mut().poll(cx).map(Ok),
        }
    }
}
