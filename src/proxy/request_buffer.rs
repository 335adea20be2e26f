//! A small request body that is read completely before a node gets the request, so that a slow client occupies no node.
//! Larger bodies, and those of unknown length, stream.

use crate::http::budget::Share;
use crate::upstream::{BodyError, Outgoing};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// The part of a body that has arrived, and the rest of it.
struct Awaited {
    first: Option<Bytes>,
    /// The share of the budget for the read bytes.
    _share: Share,
    rest: Outgoing,
}

/// Returns whether a body is certainly small enough to be buffered.
pub(super) fn is_small(body: &Outgoing, limit: u64) -> bool {
    body.size_hint().exact().is_some_and(|length| (1..=limit).contains(&length))
}

/// Reads a small body completely, or as much of it as the share allows; the rest streams.
pub(super) async fn wait_for(mut body: Outgoing, mut share: Share) -> Result<Outgoing, BodyError> {
    let length = body.size_hint().exact().unwrap_or_default();
    let mut here = Vec::new();
    let mut first = None;
    while (here.len() as u64) < length {
        let Some(frame) = body.frame().await.transpose()? else { break };
        // Trailers come behind the length, and stay where they are.
        let Ok(data) = frame.into_data() else { break };
        if data.len() as u64 == length {
            // Most bodies have one piece, which is passed on as it is.
            share.cover(length);
            first = Some(data);
            break;
        }
        here.extend_from_slice(&data);
        if !share.cover(here.capacity() as u64) {
            break;
        }
    }
    let first = first.or_else(|| (!here.is_empty()).then(|| Bytes::from(here)));
    Ok(Outgoing::Stream(Box::pin(Awaited { first, _share: share, rest: body })))
}

impl Body for Awaited {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        Poll::Ready(ready!(Pin::new(&mut self.rest).poll_frame(cx)))
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let first = self.first.as_ref().map_or(0, Bytes::len) as u64;
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + first);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + first);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::budget::Budget;
    use http_body_util::{Full, StreamBody};

    fn stream(pieces: &[&'static str]) -> Outgoing {
        struct Sized<B>(B, u64);
        impl<B: Body<Data = Bytes, Error = BodyError> + Unpin> Body for Sized<B> {
            type Data = Bytes;
            type Error = BodyError;
            fn poll_frame(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
                let frame = ready!(Pin::new(&mut self.0).poll_frame(cx));
                if let Some(Ok(frame)) = &frame {
                    self.1 -= frame.data_ref().map_or(0, Bytes::len) as u64;
                }
                Poll::Ready(frame)
            }
            fn size_hint(&self) -> SizeHint {
                SizeHint::with_exact(self.1)
            }
        }
        let length = pieces.iter().map(|piece| piece.len() as u64).sum();
        let frames: Vec<_> = pieces.iter().map(|piece| Ok(Frame::data(Bytes::from_static(piece.as_bytes())))).collect();
        Outgoing::Stream(Box::pin(Sized(StreamBody::new(tokio_stream::iter(frames)), length)))
    }

    #[tokio::test]
    async fn a_body_is_whole_whatever_it_came_in() {
        for (pieces, limit) in
            [(&["all"][..], 100), (&["in ", "three ", "pieces"], 100), (&["too ", "much ", "for it"], 8)]
        {
            let budget = Budget::new(limit);
            let body = stream(pieces);
            assert!(is_small(&body, 100) && !is_small(&body, 2));
            let awaited = wait_for(body, budget.nothing()).await.unwrap();
            let whole: String = pieces.concat();
            assert_eq!(awaited.size_hint().exact(), Some(whole.len() as u64));
            assert_eq!(awaited.collect().await.unwrap().to_bytes(), whole);
            assert_eq!(budget.held(), 0);
        }
        let full = Full::new(Bytes::new()).map_err(|never| match never {});
        assert!(!is_small(&Outgoing::Stream(Box::pin(full)), 100), "there is nothing to wait for");
    }
}
