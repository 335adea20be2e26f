//! A request body that may have to be sent again: the bytes read are kept, up to a bound and within the process's
//! budget, and are sent first in the next attempt.

use super::{BodyError, Outgoing};
use crate::http::budget::Share;
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

/// The part of a body that is kept while attempts may follow.
pub(crate) struct ReplayBody(Rc<RefCell<ReplaySource>>);

struct ReplaySource {
    body: Pin<Box<dyn Body<Data = Bytes, Error = BodyError>>>,
    /// A copy, as a piece may be a small part of a large buffer.
    read: Vec<u8>,
    trailers: Option<HeaderMap>,
    limit: u64,
    share: Share,
    /// The body is larger than the bound, so that nothing is kept.
    is_over: bool,
    ended: bool,
}

impl ReplayBody {
    /// Returns a body that is kept up to `limit` bytes; the given one where it is certainly larger.
    pub(crate) fn new(
        body: Pin<Box<dyn Body<Data = Bytes, Error = BodyError>>>,
        limit: u64,
        share: Share,
    ) -> Result<ReplayBody, Outgoing> {
        if body.size_hint().lower() > limit {
            return Err(Outgoing::Stream(body));
        }
        let source =
            ReplaySource { body, read: Vec::new(), trailers: None, limit, share, is_over: false, ended: false };
        Ok(ReplayBody(Rc::new(RefCell::new(source))))
    }

    /// Returns whether all bytes read are kept.
    pub(crate) fn is_whole(&self) -> bool {
        !self.0.borrow().is_over
    }

    /// Returns the body from its beginning.
    pub(crate) fn outgoing(&self) -> Outgoing {
        Outgoing::Stream(Box::pin(Replay { source: Rc::clone(&self.0), sent: 0, gave_trailers: false }))
    }
}

impl ReplaySource {
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(self.body.as_mut().poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => self.keep(frame),
            // A body that ended in an error is incomplete.
            Some(Err(_)) => self.release(),
            None => self.ended = true,
        }
        self.ended |= self.body.is_end_stream();
        Poll::Ready(frame)
    }

    fn keep(&mut self, frame: &Frame<Bytes>) {
        if self.is_over {
            return;
        }
        if let Some(data) = frame.data_ref() {
            let length = (self.read.len() + data.len()) as u64;
            // A growing vector may have twice the capacity of its content.
            match length <= self.limit && self.share.cover(2 * length) {
                true => self.read.extend_from_slice(data),
                false => self.release(),
            }
        } else if let Some(trailers) = frame.trailers_ref() {
            self.trailers = Some(trailers.clone());
        }
    }

    fn release(&mut self) {
        self.is_over = true;
        self.read = Vec::new();
        drop(self.share.take());
    }
}

/// The body of one attempt: first the kept bytes, then the rest.
struct Replay {
    source: Rc<RefCell<ReplaySource>>,
    /// The bytes of the kept part that this attempt has sent.
    sent: usize,
    gave_trailers: bool,
}

impl Body for Replay {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let mut source = this.source.borrow_mut();
        if this.sent < source.read.len() {
            let again = Bytes::copy_from_slice(&source.read[this.sent..]);
            this.sent = source.read.len();
            return Poll::Ready(Some(Ok(Frame::data(again))));
        }
        if source.ended {
            let trailers = source.trailers.clone().filter(|_| !std::mem::replace(&mut this.gave_trailers, true));
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let frame = ready!(source.poll_more(cx));
        this.sent = source.read.len();
        this.gave_trailers |= matches!(&frame, Some(Ok(frame)) if frame.is_trailers());
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let source = self.source.borrow();
        let has_trailers = source.trailers.is_some() && !self.gave_trailers;
        self.sent >= source.read.len() && !has_trailers && (source.ended || source.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let source = self.source.borrow();
        let again = source.read.len().saturating_sub(self.sent) as u64;
        let rest = if source.ended { SizeHint::with_exact(0) } else { source.body.size_hint() };
        match rest.exact() {
            Some(rest) => SizeHint::with_exact(rest + again),
            None => {
                let mut hint = SizeHint::new();
                hint.set_lower(rest.lower() + again);
                hint
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::budget::Budget;
    use std::collections::VecDeque;
    use std::task::Waker;

    /// A body of given pieces, with an error at the end of some.
    struct Pieces(VecDeque<Result<&'static str, &'static str>>);

    impl Body for Pieces {
        type Data = Bytes;
        type Error = BodyError;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            let piece = self.0.pop_front();
            Poll::Ready(piece.map(|piece| piece.map(|text| Frame::data(text.into())).map_err(Into::into)))
        }
    }

    fn held(pieces: &[Result<&'static str, &'static str>], limit: u64, budget: &std::sync::Arc<Budget>) -> ReplayBody {
        let body = Box::pin(Pieces(pieces.iter().copied().collect()));
        ReplayBody::new(body, limit, budget.nothing()).ok().unwrap()
    }

    /// Reads up to `most` pieces.
    fn read(body: &mut Outgoing, most: usize) -> String {
        let mut text = String::new();
        for _ in 0..most {
            match Pin::new(&mut *body).poll_frame(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Some(Ok(frame))) => text += std::str::from_utf8(frame.data_ref().unwrap()).unwrap(),
                Poll::Ready(Some(Err(error))) => return format!("{text}!{error}"),
                Poll::Ready(None) => return text,
                Poll::Pending => unreachable!("the body is all there"),
            }
        }
        text
    }

    #[test]
    fn each_attempt_reads_the_whole_body() {
        let budget = Budget::new(1000);
        let held = held(&[Ok("one "), Ok("two "), Ok("three")], 100, &budget);
        assert_eq!(read(&mut held.outgoing(), 2), "one two ", "an attempt that was cut short");
        assert_eq!(budget.held(), 16);
        let mut second = held.outgoing();
        assert_eq!(http_body::Body::size_hint(&second).lower(), 8);
        assert_eq!(read(&mut second, 9), "one two three");
        assert_eq!(read(&mut held.outgoing(), 9), "one two three");
        assert!(held.is_whole());
        drop((second, held));
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn what_is_too_large_goes_out_once() {
        for (limit, budget) in [(6, 1000), (100, 12)] {
            let budget = Budget::new(budget);
            let held = held(&[Ok("one "), Ok("two "), Ok("three")], limit, &budget);
            assert_eq!(read(&mut held.outgoing(), 9), "one two three");
            assert!(!held.is_whole());
            assert_eq!(budget.held(), 0, "nothing is kept in vain");
        }
    }

    #[test]
    fn a_body_that_broke_is_not_sent_again() {
        let held = held(&[Ok("one "), Err("gone")], 100, &Budget::new(1000));
        assert_eq!(read(&mut held.outgoing(), 9), "one !gone");
        assert!(!held.is_whole());
    }
}
