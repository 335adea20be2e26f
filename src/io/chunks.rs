//! The framing of a chunked body (RFC 9112 7.1), read strictly: the digits and extensions of each chunk's line, the
//! line ends, and the trailers.
//!
//! hyper decodes the bodies of clients' requests. Its decoder takes a bare line feed in trailers, and any byte in
//! extensions; a node or a proxy that reads these otherwise sees another message. What passes here means one thing to
//! all. The bodies of nodes' responses are decoded by the same state machine, in `upstream/http1/content.rs`.

/// A body that is not framed by the grammar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the chunked body is malformed")]
pub(crate) struct BadChunk;

/// The state within a chunked body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chunks {
    at: At,
    /// The size of the chunk, or its rest.
    size: u64,
    /// The bytes of extensions so far.
    extensions: u16,
}

/// The most bytes of extensions in a body; hyper allows as many.
const MAX_EXTENSIONS: u16 = 16 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Before the first digit of a size.
    SizeStart,
    Size,
    /// White space behind the size, or behind an extension.
    Space,
    /// Behind `;`.
    NameStart,
    Name,
    NameSpace,
    /// Behind `=`.
    ValueStart,
    Token,
    Quoted,
    Escape,
    SizeLineFeed,
    Data,
    DataReturn,
    DataLineFeed,
    /// At the beginning of a trailer, or of the empty line.
    Trailer,
    TrailerName,
    TrailerValue,
    TrailerLineFeed,
    LastLineFeed,
    /// Behind the body: no byte belongs to it any more.
    End,
}

impl Default for Chunks {
    fn default() -> Chunks {
        Chunks { at: At::SizeStart, size: 0, extensions: 0 }
    }
}

/// The next part of a chunked body, among bytes that have arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Piece {
    /// The bytes of the framing, which come first.
    pub(crate) framing: usize,
    /// Where among them the trailers begin, with the empty line behind them.
    pub(crate) trailers_at: Option<usize>,
    /// The bytes of content behind the framing.
    pub(crate) content: usize,
    /// The body ends with this framing.
    pub(crate) is_last: bool,
}

impl Chunks {
    /// Parses the next bytes. Returns how many of them belong to the body, where it ends among them.
    pub(crate) fn pass(&mut self, bytes: &[u8]) -> Result<Option<usize>, BadChunk> {
        let mut index = 0;
        while index < bytes.len() {
            let piece = self.next(&bytes[index..])?;
            index += piece.framing + piece.content;
            if piece.is_last {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }

    /// Reads on to the end of the next content, or of the body, or of these bytes.
    pub(crate) fn next(&mut self, bytes: &[u8]) -> Result<Piece, BadChunk> {
        let mut piece = Piece { trailers_at: self.is_in_trailers().then_some(0), ..Piece::default() };
        while let Some(&byte) = bytes.get(piece.framing) {
            if self.at == At::Data {
                let here = self.size.min((bytes.len() - piece.framing) as u64);
                self.size -= here;
                piece.content = here as usize;
                if self.size == 0 {
                    self.at = At::DataReturn;
                }
                break;
            }
            piece.framing += 1;
            match self.step(byte)? {
                Some(at) => {
                    self.at = at;
                    self.bound_extensions()?;
                }
                None => {
                    self.at = At::End;
                    piece.is_last = true;
                    break;
                }
            }
            if self.at == At::Trailer && piece.trailers_at.is_none() {
                piece.trailers_at = Some(piece.framing);
            }
        }
        Ok(piece)
    }

    fn is_in_trailers(&self) -> bool {
        use At::{LastLineFeed, Trailer, TrailerLineFeed, TrailerName, TrailerValue};
        matches!(self.at, Trailer | TrailerName | TrailerValue | TrailerLineFeed | LastLineFeed)
    }

    /// Counts a byte of an extension, and refuses one too many.
    fn bound_extensions(&mut self) -> Result<(), BadChunk> {
        use At::{Escape, Name, NameSpace, NameStart, Quoted, Space, Token, ValueStart};
        if matches!(self.at, Space | NameStart | Name | NameSpace | ValueStart | Token | Quoted | Escape) {
            self.extensions += 1;
        }
        if self.extensions > MAX_EXTENSIONS { Err(BadChunk) } else { Ok(()) }
    }

    /// Returns the state behind a byte outside of data; `None` at the end of the body.
    fn step(&mut self, byte: u8) -> Result<Option<At>, BadChunk> {
        Ok(Some(match (self.at, byte) {
            (At::SizeStart | At::Size, digit) if digit.is_ascii_hexdigit() => {
                let value = u64::from(char::from(digit).to_digit(16).unwrap_or_default());
                self.size = self.size.checked_mul(16).ok_or(BadChunk)? | value;
                At::Size
            }
            (At::Size | At::Space | At::Token | At::NameSpace, b' ' | b'\t') => match self.at {
                At::NameSpace => At::NameSpace,
                _ => At::Space,
            },
            (At::Size | At::Space | At::Name | At::NameSpace | At::Token, b';') => At::NameStart,
            (At::Size | At::Space | At::Name | At::NameSpace | At::Token, b'\r') => At::SizeLineFeed,
            (At::NameStart, b' ' | b'\t') => At::NameStart,
            (At::NameStart | At::Name, byte) if is_token(byte) => At::Name,
            (At::Name, b' ' | b'\t') => At::NameSpace,
            (At::Name | At::NameSpace, b'=') => At::ValueStart,
            (At::ValueStart, b' ' | b'\t') => At::ValueStart,
            (At::ValueStart, b'"') => At::Quoted,
            (At::ValueStart | At::Token, byte) if is_token(byte) => At::Token,
            (At::Quoted, b'"') => At::Space,
            (At::Quoted, b'\\') => At::Escape,
            (At::Quoted | At::Escape, byte) if is_text(byte) => At::Quoted,
            (At::SizeLineFeed, b'\n') if self.size == 0 => At::Trailer,
            (At::SizeLineFeed, b'\n') => At::Data,
            (At::DataReturn, b'\r') => At::DataLineFeed,
            (At::DataLineFeed, b'\n') => At::SizeStart,
            (At::Trailer, b'\r') => At::LastLineFeed,
            (At::Trailer | At::TrailerName, byte) if is_token(byte) => At::TrailerName,
            (At::TrailerName, b':') => At::TrailerValue,
            (At::TrailerValue, b'\r') => At::TrailerLineFeed,
            (At::TrailerValue, byte) if is_text(byte) => At::TrailerValue,
            (At::TrailerLineFeed, b'\n') => At::Trailer,
            (At::LastLineFeed, b'\n') => return Ok(None),
            _ => return Err(BadChunk),
        }))
    }
}

/// A character of a token (RFC 9110 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A character of a field's value or a quoted string.
fn is_text(byte: u8) -> bool {
    matches!(byte, b'\t' | b' '..=b'~' | 0x80..)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn whole(body: &[u8]) -> Result<Option<usize>, BadChunk> {
        Chunks::default().pass(body)
    }

    #[test]
    fn the_grammar_is_the_rfcs() {
        for body in [
            "0\r\n\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
            "005\r\nhello\r\n000\r\n\r\n",
            "A\r\n0123456789\r\n0\r\n\r\n",
            "5;a\r\nhello\r\n0;b=c\r\n\r\n",
            "5 ; a = b ; c=\"d;\\\"\te\" ;f\r\nhello\r\n0\r\n\r\n",
            "5  \r\nhello\r\n0\t\r\n\r\n",
            "2\r\n\r\n\r\n0\r\n\r\n",
            "0\r\nx-sum: 9\r\ny:\r\nz: a:b \t\u{e4}\r\n\r\n",
        ] {
            assert_eq!(whole(body.as_bytes()), Ok(Some(body.len())), "{body:?}");
            let behind = format!("{body}GET / HTTP/1.1\r\n");
            assert_eq!(whole(behind.as_bytes()), Ok(Some(body.len())), "{body:?}");
        }
        for body in [
            "\r\n",
            " 5\r\nhello\r\n",
            "+5\r\nhello\r\n",
            "0x5\r\nhello\r\n",
            "5\nhello\r\n",
            "5\rhello",
            "5\r\nhello\n0\r\n",
            "5\r\nhelloo\r\n",
            "5;\r\nhello\r\n",
            "5; \r\nhello\r\n",
            "5;;a\r\nhello\r\n",
            "5;a=\r\nhello\r\n",
            "5;a\0\r\nhello\r\n",
            "5;a=\"b\r\n\"\r\n",
            "5;a=\"b\"c\r\n",
            "5 5\r\nhello",
            "5;a\nhello\r\n",
            "0\r\nx: 1\n\r\n",
            "0\r\nx: 1\n\n",
            "0\r\n\n",
            "0\r\nx\r\n\r\n",
            "0\r\nx : 1\r\n\r\n",
            "0\r\n x: 1\r\n\r\n",
            "0\r\nx: a\0\r\n\r\n",
            "0\r\n: a\r\n\r\n",
            "11111111111111111\r\n",
        ] {
            assert_eq!(whole(body.as_bytes()), Err(BadChunk), "{body:?}");
        }
        for body in ["", "5", "5\r", "5\r\nhel", "5\r\nhello\r\n0\r\n", "5;a=\"b", "0\r\nx: 1\r\n"] {
            assert_eq!(whole(body.as_bytes()), Ok(None), "{body:?}");
        }
    }

    proptest! {
        /// Where a body is cut makes no difference.
        #[test]
        fn pieces_are_read_like_the_whole(
            body in "([0-9]{1,2}(;[a-b]=?\"?[a-c]?\"?)?\r?\n[a-z]{0,5}\r?\n){0,3}(0\r\n(x: ?[a-z]\r?\n)?\r?\n)?[a-z]{0,3}",
            cuts in prop::collection::vec(0usize..40, 0..5),
        ) {
            let bytes = body.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).chain([0, bytes.len()]).collect();
            cuts.sort_unstable();
            let mut chunks = Chunks::default();
            let mut outcome = Ok(None);
            for piece in cuts.windows(2) {
                outcome = chunks.pass(&bytes[piece[0]..piece[1]]).map(|end| end.map(|end| end + piece[0]));
                if outcome != Ok(None) {
                    break;
                }
            }
            prop_assert_eq!(outcome, whole(bytes));
        }
    }
}
