//! The body of a stored response: shared pieces, which are never copied for a reader.

use bytes::Bytes;
use std::collections::VecDeque;
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
    pub(crate) fn whole(body: &Body) -> Reader {
        Reader::of(body, [Part::Slice(0, body.len())].into())
    }

    pub(crate) fn of(body: &Body, parts: VecDeque<Part>) -> Reader {
        let length = |part: &Part| match part {
            Part::Slice(from, end) => end - from,
            Part::Literal(bytes) => bytes.len() as u64,
        };
        Reader { body: body.clone(), left: parts.iter().map(length).sum(), parts }
    }

    /// Returns the number of bytes that are left.
    pub(crate) fn left(&self) -> u64 {
        self.left
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
            let reader = Reader::of(&body, [Part::Literal("<".into()), Part::Slice(from, to)].into());
            prop_assert_eq!(reader.left(), 1 + to - from);
            let read: Vec<u8> = reader.flatten().collect();
            prop_assert_eq!(&read[1..], &whole[from as usize..to as usize]);
        }
    }
}
