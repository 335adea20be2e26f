//! Whole responses, read in pieces: for tests and fuzzers.

use super::content::Part;
use super::response::{Asked, BadHead, FinalHead, Head, HeadReader};
use bytes::BytesMut;
use http::{HeaderMap, StatusCode};

/// A response as it was read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Read {
    pub(crate) status: StatusCode,
    pub(crate) fields: HeaderMap,
    pub(crate) reason: Option<Vec<u8>>,
    /// The content and its trailers, where it came whole.
    pub(crate) content: Option<(Vec<u8>, HeaderMap)>,
}

/// Reads the head of a response that arrives in these pieces. Returns it with its fields, the number of pieces so far,
/// and the bytes behind it.
pub(crate) fn head(pieces: &[&[u8]], asked: Asked) -> Result<Option<(FinalHead, HeaderMap, usize, BytesMut)>, BadHead> {
    let (mut input, mut heads, mut fields) = (BytesMut::new(), HeadReader::default(), HeaderMap::new());
    for (index, piece) in pieces.iter().enumerate() {
        input.extend_from_slice(piece);
        while let Some(head) = heads.take(&mut input, asked, &mut fields)? {
            match head {
                Head::Interim(interim) => assert_eq!(interim.is_some(), asked.wants_interim),
                Head::Final(head) => return Ok(Some((head, fields, index + 1, input))),
            }
        }
    }
    Ok(None)
}

/// Reads a response that arrives in these pieces, and then the end of the connection.
pub(crate) fn read(pieces: &[&[u8]], asked: Asked) -> Result<Option<Read>, BadHead> {
    let Some((head, fields, used, mut input)) = head(pieces, asked)? else { return Ok(None) };
    let (mut content, mut data, mut trailers) = (head.content, Vec::new(), HeaderMap::new());
    let mut is_whole = content.check(&input).is_ok();
    let mut rest = pieces[used..].iter();
    while is_whole && !content.is_over() {
        match content.take(&mut input) {
            Ok(Part::Data(piece)) => data.extend_from_slice(&piece),
            Ok(Part::Trailers(all)) => trailers = all,
            Ok(Part::End) => {}
            Ok(Part::Missing) => match rest.next() {
                Some(piece) => input.extend_from_slice(piece),
                None => is_whole = content.end().is_ok(),
            },
            Err(_) => is_whole = false,
        }
    }
    let reason = head.reason.map(|reason| reason.as_bytes().to_vec());
    Ok(Some(Read { status: head.status, fields, reason, content: is_whole.then_some((data, trailers)) }))
}
