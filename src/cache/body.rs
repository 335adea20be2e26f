//! The body of a stored response: shared pieces, which are never copied for a reader.

use bytes::{Buf, Bytes};
use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;

/// The size of the largest segments.
const SEGMENT: usize = 256 << 10;

/// What is smaller than this is no segment.
const LEAST_SEGMENT: usize = 1 << 10;

/// The memory of a segment besides its bytes.
const SEGMENT_OVERHEAD: usize = 64;

/// A complete body: segments, and the rest of less than [`LEAST_SEGMENT`].
///
/// The length of a segment is a power of two, which the allocator stores without a loss; a block of 100,000 bytes
/// would take 131,072. All segments but the last few have [`SEGMENT`] bytes, and the others become smaller.
#[derive(Clone, Debug, Default)]
pub(crate) struct Body {
    pub(super) segments: Option<Arc<[Bytes]>>,
    pub(super) rest: Bytes,
}

impl Body {
    /// Returns a body of the pieces in which it arrived.
    pub(super) fn of<'a>(pieces: impl Iterator<Item = &'a Bytes> + Clone) -> Body {
        let mut left: usize = pieces.clone().map(Bytes::len).sum();
        let mut pieces = pieces.map(|piece| &piece[..]);
        let mut piece = pieces.next().unwrap_or_default();
        let mut next = |size: usize| {
            let mut joined = Vec::with_capacity(size);
            while joined.len() < size {
                if piece.is_empty() {
                    piece = pieces.next().unwrap_or_default();
                }
                let (taken, after) = piece.split_at(piece.len().min(size - joined.len()));
                joined.extend_from_slice(taken);
                piece = after;
            }
            Bytes::from(joined)
        };
        let mut segments = Vec::new();
        while left >= LEAST_SEGMENT {
            let size = SEGMENT.min(1 << left.ilog2());
            segments.push(next(size));
            left -= size;
        }
        Body { segments: (!segments.is_empty()).then(|| segments.into()), rest: next(left) }
    }

    /// Returns all of it as it is written at once, unless it is longer than a segment.
    pub(super) fn into_run(self) -> Result<Run, Body> {
        let left = self.len() as usize;
        match &self.segments {
            None => Ok(Run::One(self.rest)),
            Some(_) if left <= SEGMENT => Ok(Run::Many(Box::new(Segments { body: self, index: 0, offset: 0, left }))),
            Some(_) => Err(self),
        }
    }

    fn segments(&self) -> &[Bytes] {
        self.segments.as_deref().unwrap_or_default()
    }

    /// Returns its parts from one on: the segments and the rest.
    fn parts(&self, index: usize) -> impl Iterator<Item = &Bytes> {
        let segments = self.segments();
        let rest = (index <= segments.len()).then_some(&self.rest);
        segments.get(index..).unwrap_or_default().iter().chain(rest)
    }

    pub(crate) fn len(&self) -> u64 {
        self.parts(0).map(|part| part.len() as u64).sum()
    }

    /// Returns the part of a position, by its number, and the offset there.
    fn place(&self, position: u64) -> (usize, usize) {
        // Before the first smaller segment all have one size.
        let (mut index, mut offset) = ((position / SEGMENT as u64) as usize, (position % SEGMENT as u64) as usize);
        while let Some(segment) = self.segments().get(index).filter(|segment| segment.len() <= offset) {
            offset -= segment.len();
            index += 1;
        }
        (index, offset)
    }

    /// Returns the next piece of the range between two positions; `None` where it is empty.
    pub(super) fn piece(&self, from: u64, end: u64) -> Option<Bytes> {
        if from >= end {
            return None;
        }
        let (index, offset) = self.place(from);
        let part = self.parts(index).next()?;
        Some(part.slice(offset..part.len().min(offset + (end - from) as usize)))
    }
}

/// Returns the memory of segments in bytes.
pub(super) fn size(segments: &[Bytes]) -> usize {
    segments.iter().map(|segment| segment.len() + SEGMENT_OVERHEAD).sum()
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
    /// Returns the next bytes as they are written at once: of several parts of the stored body, up to this length,
    /// where more than one comes next.
    pub(crate) fn next_run(&mut self, most: usize) -> Option<Run> {
        if let Some(Part::Slice(from, end)) = self.parts.front_mut() {
            let left = most.min((*end - *from) as usize);
            let (index, offset) = self.body.place(*from);
            if self.body.parts(index).next().is_some_and(|part| offset + left > part.len()) {
                *from += left as u64;
                self.left -= left as u64;
                return Some(Run::Many(Box::new(Segments { body: self.body.clone(), index, offset, left })));
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
    /// Boxed: what comes from nodes, and many bodies, are of one piece.
    Many(Box<Segments>),
}

impl Default for Run {
    fn default() -> Run {
        Run::One(Bytes::new())
    }
}

/// Bytes of several parts of a stored body.
#[derive(Debug)]
pub(crate) struct Segments {
    body: Body,
    /// The part of the next byte, and its place there.
    index: usize,
    offset: usize,
    left: usize,
}

impl Segments {
    fn chunks(&self) -> impl Iterator<Item = &[u8]> {
        let (mut offset, mut left) = (self.offset, self.left);
        self.body.parts(self.index).map_while(move |part| {
            let chunk = &part[std::mem::take(&mut offset)..];
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
        self.offset += count;
        while let Some(segment) = self.body.segments().get(self.index).filter(|segment| segment.len() <= self.offset) {
            self.offset -= segment.len();
            self.index += 1;
        }
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
            let body = Body::of(pieces.iter());
            prop_assert_eq!(body.len(), total as u64);
            let lengths: Vec<usize> = body.segments().iter().map(Bytes::len).collect();
            prop_assert!(lengths.is_sorted_by(|one, next| one > next || *one == SEGMENT && *next == SEGMENT), "{:?}", lengths);
            prop_assert!(lengths.iter().all(|length| length.is_power_of_two()) && body.rest.len() < LEAST_SEGMENT);
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
            let pieces: Vec<Bytes> = whole.chunks(100_000).map(Bytes::copy_from_slice).collect();
            let body = Body::of(pieces.iter());
            let (from, to) = (from.min(to).min(total), from.max(to).min(total));
            let mut reader = Reader::of(body.clone(), [Part::Slice(from as u64, to as u64), Part::Literal(">".into())].into());
            let (mut read, mut steps) = (Vec::new(), steps.into_iter().cycle());
            while let Some(mut run) = reader.next_run(most) {
                prop_assert!(run.remaining() <= most.max(SEGMENT));
                while run.has_remaining() {
                    let mut slices = [IoSlice::new(&[]); 16];
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
