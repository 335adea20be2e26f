//! A body in memory, with its trailers.

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll};

/// The largest piece.
const PIECE: usize = 64 << 10;

/// A complete body.
#[derive(Clone, Debug, Default)]
pub(crate) struct BufferedBody {
    pub(crate) data: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
    was_cut: bool,
}

impl BufferedBody {
    pub(crate) fn new(data: Bytes, trailers: Option<HeaderMap>) -> BufferedBody {
        BufferedBody { data, trailers, was_cut: false }
    }

    /// Returns the next piece; never an error.
    pub(crate) fn next<E>(&mut self) -> Option<Result<Frame<Bytes>, E>> {
        if !self.data.is_empty() {
            // In pieces: the reader buffers little, and the rest stays here, where it is counted.
            let piece = self.data.split_to(self.data.len().min(PIECE));
            let is_last_of_many = self.data.is_empty() && self.was_cut;
            self.was_cut |= !self.data.is_empty();
            // Copied, as the last piece must not keep the others alive.
            return Some(Ok(Frame::data(if is_last_of_many { Bytes::copy_from_slice(&piece) } else { piece })));
        }
        self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers)))
    }

    pub(crate) fn is_over(&self) -> bool {
        self.data.is_empty() && self.trailers.is_none()
    }

    /// Returns the length where there are no trailers: with trailers a body is sent in chunks.
    pub(crate) fn length(&self) -> Option<u64> {
        self.trailers.is_none().then_some(self.data.len() as u64)
    }
}

impl Body for BufferedBody {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(self.next())
    }

    fn is_end_stream(&self) -> bool {
        self.is_over()
    }

    fn size_hint(&self) -> SizeHint {
        self.length().map_or_else(
            || {
                let mut hint = SizeHint::new();
                hint.set_lower(self.data.len() as u64);
                hint
            },
            SizeHint::with_exact,
        )
    }
}
