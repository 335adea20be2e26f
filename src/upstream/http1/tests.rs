//! Whole responses: tables, and properties beside hyper's client, which reads the same bytes.

use super::response::{Asked, BadHead, HeadReader, MAX_HEAD};
use super::whole::{Read, head, read};
use crate::io::chunks::Chunks;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use tokio::io::AsyncWriteExt as _;

const GET: Asked = Asked { is_head: false, wants_interim: true };
const HEAD: Asked = Asked { is_head: true, wants_interim: false };

/// Reads the same with hyper's client; `None` for an error before the head is whole.
fn read_by_hyper(pieces: &[&[u8]], asked: Asked) -> Option<Read> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let (mut node, client) = tokio::io::duplex(1 << 20);
        let mut builder = hyper::client::conn::http1::Builder::new();
        let (mut sender, connection) = builder.max_buf_size(MAX_HEAD).handshake(TokioIo::new(client)).await.unwrap();
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.method_mut() = if asked.is_head { Method::HEAD } else { Method::GET };
        let exchange = async {
            let (head, body) = sender.send_request(request).await.ok()?.into_parts();
            let whole = body.collect().await.ok().map(|whole| {
                let trailers = whole.trailers().cloned().unwrap_or_default();
                (whole.to_bytes().to_vec(), trailers)
            });
            let reason = head.extensions.get::<hyper::ext::ReasonPhrase>().map(|reason| reason.as_bytes().to_vec());
            Some(Read { status: head.status, fields: head.headers, reason, content: whole })
        };
        let answer = async {
            // Bytes before the request would be nobody's answer.
            let mut one = [0];
            tokio::io::AsyncReadExt::read_exact(&mut node, &mut one).await.unwrap();
            for piece in pieces {
                let _ = node.write_all(piece).await;
                tokio::task::yield_now().await;
            }
            let _ = node.shutdown().await;
        };
        tokio::join!(exchange, async { drop(connection.await) }, answer).0
    })
}

fn status_and_content(bytes: &str, asked: Asked) -> Result<Option<(u16, Option<String>)>, BadHead> {
    let read = read(&[bytes.as_bytes()], asked)?;
    Ok(read.map(|read| {
        let text = read.content.map(|(data, _)| String::from_utf8(data).unwrap());
        (read.status.as_u16(), text)
    }))
}

#[test]
fn a_response_is_framed_as_the_rfc_says() {
    let whole = |status: u16, text: &str| Ok(Some((status, Some(text.to_owned()))));
    let cut = |status: u16| Ok(Some((status, None)));
    let malformed = || Err(BadHead::Malformed);
    for (bytes, asked, expected) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", GET, whole(200, "ok")),
        ("\r\n\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", GET, whole(200, "ok")),
        ("HTTP/1.1 200 OK\ncontent-length: 2\n\nok", GET, whole(200, "ok")),
        ("HTTP/1.1 200\r\ncontent-length: 2\r\n\r\nok", GET, whole(200, "ok")),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", HEAD, whole(200, "")),
        ("HTTP/1.1 204 No\r\ncontent-length: 2\r\n\r\nok", GET, whole(204, "")),
        ("HTTP/1.1 304 No\r\ntransfer-encoding: chunked\r\n\r\n2\r\n", GET, whole(304, "")),
        ("HTTP/1.1 200 OK\r\n\r\nok", GET, whole(200, "ok")),
        ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok", GET, cut(200)),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2, 2\r\ncontent-length: 2\r\n\r\nok", GET, whole(200, "ok")),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok", GET, malformed()),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2, 3\r\n\r\nok", GET, malformed()),
        ("HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\nok", GET, malformed()),
        ("HTTP/1.1 200 OK\r\ncontent-length: \r\n\r\nok", GET, malformed()),
        ("HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\nok", GET, malformed()),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", GET, whole(200, "ok")),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 9\r\ntransfer-encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            GET,
            whole(200, "ok"),
        ),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked, gzip\r\n\r\nok", GET, whole(200, "ok")),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: gzip\r\n\r\nok", GET, whole(200, "ok")),
        ("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", GET, malformed()),
        ("HTTP/1.0 200 OK\r\n\r\nok", GET, whole(200, "ok")),
        (
            "HTTP/1.1 103 Hints\r\nlink: x\r\n\r\nHTTP/1.1 100 Go\r\n\r\nHTTP/1.1 200 OK\r\n\r\nok",
            GET,
            whole(200, "ok"),
        ),
        ("HTTP/1.1 103 Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\nok", HEAD, whole(200, "")),
        ("HTTP/1.1 101 Switch\r\nupgrade: x\r\n\r\nother", GET, whole(101, "")),
        ("HTTP/1.1 100 Go\r\n\r\nHTTP/1.1 20", GET, Ok(None)),
        ("HTTP/1.1 200 OK\r\nx: 1\r\n y\r\n\r\n", GET, malformed()),
        ("HTTP/1.1 200 OK\r\nx : 1\r\n\r\n", GET, malformed()),
        ("HTTP/1.1 200 OK\r\nx: a\0b\r\n\r\n", GET, malformed()),
        ("HTTP/1.1 20 OK\r\n\r\n", GET, malformed()),
        ("HTTP/1.1 099 OK\r\n\r\n", GET, malformed()),
        ("HTTP/2.0 200 OK\r\n\r\n", GET, malformed()),
        ("ICY 200 OK", GET, malformed()),
    ] {
        assert_eq!(status_and_content(bytes, asked), expected, "{bytes:?}");
    }
}

#[test]
fn a_head_is_bounded() {
    let with = |count: usize, length: usize| {
        format!("HTTP/1.1 200 OK\r\n{}\r\n", format!("x: {}\r\n", "y".repeat(length)).repeat(count))
    };
    for (count, length, is_fine) in [(100, 1, true), (101, 1, false), (1, 60 << 10, true), (1, 64 << 10, false)] {
        let bytes = with(count, length);
        let found = read(&[bytes.as_bytes()], GET).map(|read| read.is_some());
        assert_eq!(found, if is_fine { Ok(true) } else { Err(BadHead::TooLarge) }, "{count} of {length}");
    }
    let endless = with(1, 64 << 10);
    let pieces: Vec<_> = endless.as_bytes()[..MAX_HEAD].chunks(1000).collect();
    assert_eq!(read(&pieces, GET), Err(BadHead::TooLarge), "the end is not waited for");
}

#[test]
fn a_connection_persists_where_both_sides_know_the_end() {
    for (head, persists) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n", true),
        ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: x, Close\r\n", false),
        ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\nconnection: keep-alive\r\n", false),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n", true),
        ("HTTP/1.1 200 OK\r\n", false),
        ("HTTP/1.1 101 Switch\r\n", false),
        ("HTTP/1.1 204 No\r\n", true),
        ("HTTP/1.0 200 OK\r\ncontent-length: 0\r\n", false),
        ("HTTP/1.0 200 OK\r\ncontent-length: 0\r\nconnection: keep-alive\r\n", true),
        ("HTTP/1.0 200 OK\r\ncontent-length: 0\r\nconnection: keep-alive\r\nconnection: close\r\n", false),
    ] {
        let bytes = format!("{head}\r\n");
        let (found, ..) = self::head(&[bytes.as_bytes()], GET).unwrap().unwrap();
        assert_eq!(found.persists, persists, "{head}");
    }
}

/// A response as nodes may send it, with faults here and there.
fn response() -> impl Strategy<Value = String> {
    let line_end = prop_oneof![12 => Just("\r\n"), 1 => Just("\n")];
    let start = prop_oneof![
        6 => Just("HTTP/1.1 200 OK"),
        1 => Just("HTTP/1.1 204 No Content"),
        1 => Just("HTTP/1.1 304 Not Modified"),
        1 => Just("HTTP/1.1 404 Nowhere"),
        1 => Just("HTTP/1.0 200 OK"),
        1 => Just("HTTP/1.1 200 "),
        1 => Just("HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK"),
        1 => Just("\r\nHTTP/1.1 200 OK"),
    ];
    let field = prop_oneof![
        3 => Just("content-length: 5".to_owned()),
        1 => Just("Content-Length: 5, 5".to_owned()),
        3 => Just("transfer-encoding: chunked".to_owned()),
        1 => Just("transfer-encoding: gzip, Chunked".to_owned()),
        1 => Just("connection: close".to_owned()),
        1 => "[a-z]{1,3}[ :]{1,2}[a-z \t]{0,4}",
        1 => "content-length: [0-9+, ]{1,3}",
    ];
    let content = prop_oneof![
        2 => Just("hello".to_owned()),
        3 => Just("5\r\nhello\r\n0\r\n\r\n".to_owned()),
        1 => Just("2;a=b\r\nhe\r\n3\r\nllo\r\n0\r\nx-sum: 1\r\n\r\n".to_owned()),
        1 => "([0-3](;[a-b]=?[a-c]?)?\r?\n[a-z]{0,3}\r?\n){0,3}(0\r\n(x: ?[a-z]\r?\n)?\r?\n)?",
    ];
    (start, prop::collection::vec((field, line_end.clone()), 0..4), (line_end.clone(), line_end), content).prop_map(
        |(start, fields, (first, last), content)| {
            let fields: String = fields.into_iter().map(|(field, end)| field + end).collect();
            format!("{start}{first}{fields}{last}{content}")
        },
    )
}

proptest! {
    /// All that is accepted is read in the same way by hyper; hyper alone accepts some malformed chunks.
    #[test]
    fn responses_are_read_as_hyper_reads_them(bytes in response(), cut in 0usize..60, is_head in any::<bool>()) {
        let asked = Asked { is_head, wants_interim: false };
        let cut = cut.min(bytes.len());
        let pieces = [&bytes.as_bytes()[..cut], &bytes.as_bytes()[cut..]];
        let (ours, theirs) = (read(&pieces, asked), read_by_hyper(&pieces, asked));
        match (&ours, &theirs) {
            (Ok(Some(ours)), Some(theirs)) => {
                prop_assert_eq!((&ours.fields, ours.status), (&theirs.fields, theirs.status));
                prop_assert_eq!(&ours.reason, &theirs.reason);
                match &ours.content {
                    Some(content) => prop_assert_eq!(Some(content), theirs.content.as_ref()),
                    None if theirs.content.is_some() => {
                        let ends = [("\n\r\n", 3), ("\n\n", 2)];
                        let begin = ends.iter().filter_map(|(end, length)| Some(bytes.find(end)? + length));
                        let mut chunks = begin.map(|at| Chunks::default().pass(&bytes.as_bytes()[at..]));
                        prop_assert!(chunks.any(|chunks| chunks.is_err()), "the chunks are fine");
                    }
                    None => {}
                }
            }
            (Ok(None) | Err(_), None) => {}
            _ => prop_assert!(false, "{:?} and {:?}", ours, theirs),
        }
    }

    /// Earlier responses on a connection do not change how a head is read.
    #[test]
    fn a_head_is_read_as_a_new_connection_reads_it(responses in prop::collection::vec(response(), 1..6)) {
        let asked = Asked { is_head: false, wants_interim: true };
        let mut heads = HeadReader::default();
        for bytes in responses {
            let (mut kept, mut kept_fields) = (BytesMut::from(bytes.as_bytes()), HeaderMap::new());
            let (mut new, mut new_fields) = (kept.clone(), HeaderMap::new());
            let again = heads.take(&mut kept, asked, &mut kept_fields);
            prop_assert_eq!(&again, &HeadReader::default().take(&mut new, asked, &mut new_fields));
            prop_assert_eq!((kept, kept_fields), (new, new_fields));
            // An incomplete or malformed head ends its connection.
            if !matches!(again, Ok(Some(_))) {
                heads = HeadReader::default();
            }
        }
    }

    /// Where a response is cut makes no difference.
    #[test]
    fn pieces_are_read_like_the_whole(bytes in response(), is_head in any::<bool>()) {
        let asked = Asked { is_head, wants_interim: true };
        let bytes = bytes.as_bytes();
        let whole = read(&[bytes], asked);
        for cut in 0..=bytes.len() {
            prop_assert_eq!(&read(&[&bytes[..cut], &bytes[cut..]], asked), &whole, "{}", cut);
        }
        let single: Vec<_> = bytes.chunks(1).collect();
        prop_assert_eq!(&read(&single, asked), &whole);
    }
}
