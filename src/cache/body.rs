//! The body of a stored response: shared pieces, which are never copied for a reader.

use bytes::{Buf, Bytes};
use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;

/// Pieces are joined up to this size when a body is complete.
const SEGMENT: usize = 256 << 10;

/// A complete body.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    One(Bytes),
    Many(Arc<[Bytes]>),
}

impl Default for Body {
    fn default() -> Body {
        Body::One(Bytes::new())
    }
}

impl Body {
    /// Returns a body of the pieces in which it arrived, joined into segments.
    pub(super) fn of(pieces: impl Iterator<Item = Bytes>) -> Body {
        let mut pieces: VecDeque<Bytes> = pieces.filter(|piece| !piece.is_empty()).collect();
        if pieces.len() <= 1 {
            return pieces.pop_front().map_or_else(Body::default, Body::One);
        }
        let mut left: usize = pieces.iter().map(Bytes::len).sum();
        let mut segments = Vec::with_capacity(left.div_ceil(SEGMENT));
        while left > 0 {
            let size = left.min(SEGMENT);
            let mut segment = Vec::with_capacity(size);
            while let Some(piece) = pieces.front_mut() {
                let room = size - segment.len();
                if room == 0 {
                    break;
                }
                segment.extend_from_slice(&piece.split_to(piece.len().min(room)));
                if piece.is_empty() {
                    pieces.pop_front();
                }
            }
            left -= segment.len();
            segments.push(Bytes::from(segment));
        }
        match segments.len() {
            1 => Body::One(segments.swap_remove(0)),
            _ => Body::Many(segments.into()),
        }
    }

    pub(crate) fn len(&self) -> u64 {
        match self {
            Body::One(bytes) => bytes.len() as u64,
            Body::Many(segments) => segments.iter().map(|segment| segment.len() as u64).sum(),
        }
    }

    /// Returns the memory of the body in bytes.
    pub(super) fn size(&self) -> usize {
        match self {
            // The allocator rounds sizes up.
            Body::One(bytes) => bytes.len() + bytes.len() / 16,
            Body::Many(segments) => segments.iter().map(|segment| segment.len() + 64).sum(),
        }
    }

    /// Returns the next piece of the range between two positions; `None` where it is empty.
    pub(super) fn piece(&self, from: u64, end: u64) -> Option<Bytes> {
        let slice = |bytes: &Bytes, start: u64| {
            let (from, end) = ((from - start) as usize, (end - start).min(bytes.len() as u64) as usize);
            bytes.slice(from..end)
        };
        if from >= end {
            return None;
        }
        match self {
            Body::One(bytes) => Some(slice(bytes, 0)),
            Body::Many(segments) => {
                // All but the last segment are of one size.
                let index = (from / SEGMENT as u64) as usize;
                Some(slice(segments.get(index)?, (index * SEGMENT) as u64))
            }
        }
    }
}

/// A part of an answer's body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Bytes of the stored body, from one position up to another.
    Slice(u64, u64),
    /// Bytes besides the stored body, such as the boundaries of `multipart/byteranges`.
    Literal(Bytes),
}

/// An iterator over parts of a stored body.
#[derive(Debug)]
pub(crate) struct Reader {
    body: Body,
    parts: VecDeque<Part>,
    left: u64,
}

impl Reader {
    /// Returns a reader of the complete body.
    pub(crate) fn whole(body: Body) -> Reader {
        let parts = [Part::Slice(0, body.len())].into();
        Reader::of(body, parts)
    }

    pub(crate) fn of(body: Body, parts: VecDeque<Part>) -> Reader {
        let length = |part: &Part| match part {
            Part::Slice(from, end) => end - from,
            Part::Literal(bytes) => bytes.len() as u64,
        };
        Reader { body, left: parts.iter().map(length).sum(), parts }
    }

    /// Returns the number of bytes that are left.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }
}

impl Reader {
    /// Returns the next bytes as they are written at once: a run of segments of up to this length, where more than one
    /// comes next.
    pub(crate) fn next_run(&mut self, most: usize) -> Option<Run> {
        if let (Some(Part::Slice(from, end)), Body::Many(segments)) = (self.parts.front_mut(), &self.body) {
            let left = most.min((*end - *from) as usize);
            let (index, offset) = ((*from / SEGMENT as u64) as usize, (*from % SEGMENT as u64) as usize);
            if offset + left > SEGMENT {
                *from += left as u64;
                self.left -= left as u64;
                return Some(Run::Many(Box::new(Segments { all: Arc::clone(segments), index, offset, left })));
            }
        }
        self.next().map(Run::One)
    }
}

impl Iterator for Reader {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let piece = loop {
            match self.parts.front_mut()? {
                Part::Literal(bytes) => {
                    let bytes = std::mem::take(bytes);
                    self.parts.pop_front();
                    break bytes;
                }
                Part::Slice(from, end) => match self.body.piece(*from, *end) {
                    Some(piece) => {
                        *from += piece.len() as u64;
                        break piece;
                    }
                    None => drop(self.parts.pop_front()),
                },
            }
        };
        self.left -= piece.len() as u64;
        Some(piece)
    }
}

/// Bytes of a body that are written at once.
#[derive(Debug)]
pub(crate) enum Run {
    One(Bytes),
    /// Boxed, for most bodies are of one segment.
    Many(Box<Segments>),
}

/// Bytes of several segments of a stored body.
#[derive(Debug)]
pub(crate) struct Segments {
    all: Arc<[Bytes]>,
    /// The segment of the next byte, and its place there.
    index: usize,
    offset: usize,
    left: usize,
}

impl Segments {
    fn chunks(&self) -> impl Iterator<Item = &[u8]> {
        let (mut offset, mut left) = (self.offset, self.left);
        self.all[self.index..].iter().map_while(move |segment| {
            let chunk = &segment[std::mem::take(&mut offset)..];
            let chunk = &chunk[..chunk.len().min(left)];
            left -= chunk.len();
            (!chunk.is_empty()).then_some(chunk)
        })
    }
}

impl Buf for Segments {
    fn remaining(&self) -> usize {
        self.left
    }

    fn chunk(&self) -> &[u8] {
        self.chunks().next().unwrap_or_default()
    }

    fn chunks_vectored<'a>(&'a self, dst: &mut [IoSlice<'a>]) -> usize {
        dst.iter_mut().zip(self.chunks()).map(|(slice, chunk)| *slice = IoSlice::new(chunk)).count()
    }

    fn advance(&mut self, count: usize) {
        assert!(count <= self.left, "advanced beyond the end");
        self.left -= count;
        let at = self.offset + count;
        // All but the last segment are of one size.
        (self.index, self.offset) = (self.index + at / SEGMENT, at % SEGMENT);
    }
}

impl Buf for Run {
    fn remaining(&self) -> usize {
        match self {
            Run::One(bytes) => bytes.len(),
            Run::Many(segments) => segments.remaining(),
        }
    }

    fn chunk(&self) -> &[u8] {
        match self {
            Run::One(bytes) => bytes,
            Run::Many(segments) => segments.chunk(),
        }
    }

    fn chunks_vectored<'a>(&'a self, dst: &mut [IoSlice<'a>]) -> usize {
        match self {
            Run::One(bytes) => bytes.chunks_vectored(dst),
            Run::Many(segments) => segments.chunks_vectored(dst),
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Run::One(bytes) => bytes.advance(count),
            Run::Many(segments) => segments.advance(count),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_slice_of_any_pieces_is_the_slice_of_the_whole(
            lengths in proptest::collection::vec(0..200_000usize, 0..8),
            (from, to) in (0..1_000_000u64, 0..1_000_000u64),
        ) {
            let total: usize = lengths.iter().sum();
            let whole: Vec<u8> = (0..total).map(|index| (index % 251) as u8).collect();
            let mut rest = &whole[..];
            let pieces: Vec<Bytes> = lengths.iter().map(|&length| {
                let (piece, after) = rest.split_at(length);
                rest = after;
                Bytes::copy_from_slice(piece)
            }).collect();
            let body = Body::of(pieces.into_iter());
            prop_assert_eq!(body.len(), total as u64);
            let (from, to) = (from.min(total as u64), to.min(total as u64));
            let (from, to) = (from.min(to), to);
            let reader = Reader::of(body.clone(), [Part::Literal("<".into()), Part::Slice(from, to)].into());
            prop_assert_eq!(reader.left(), 1 + to - from);
            let read: Vec<u8> = reader.flatten().collect();
            prop_assert_eq!(&read[1..], &whole[from as usize..to as usize]);
        }

        #[test]
        fn runs_are_the_same_bytes(
            total in 0..1_500_000usize,
            (from, to) in (0..1_500_000usize, 0..1_500_000usize),
            most in 1..1_200_000usize,
            steps in proptest::collection::vec(1..600_000usize, 1..5),
        ) {
            let whole: Vec<u8> = (0..total).map(|index| (index % 251) as u8).collect();
            let body = Body::of(whole.chunks(100_000).map(Bytes::copy_from_slice));
            let (from, to) = (from.min(to).min(total), from.max(to).min(total));
            let mut reader = Reader::of(body.clone(), [Part::Slice(from as u64, to as u64), Part::Literal(">".into())].into());
            let (mut read, mut steps) = (Vec::new(), steps.into_iter().cycle());
            while let Some(mut run) = reader.next_run(most) {
                prop_assert!(run.remaining() <= most.max(SEGMENT));
                while run.has_remaining() {
                    let mut slices = [IoSlice::new(&[]); 8];
                    let count = run.chunks_vectored(&mut slices);
                    let seen: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.iter().copied()).collect();
                    prop_assert_eq!(seen.len(), run.remaining());
                    prop_assert_eq!(&seen[..run.chunk().len()], run.chunk());
                    let step = steps.next().unwrap_or(1).min(run.remaining());
                    read.extend_from_slice(&seen[..step]);
                    run.advance(step);
                }
            }
            prop_assert_eq!(reader.left(), 0);
            prop_assert_eq!(read.split_last(), Some((&b'>', &whole[from..to])));
        }
    }
}
