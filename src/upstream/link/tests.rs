//! Links to scripted nodes: the results of an attempt, and the state in which a link is left.

use super::*;
use http::{HeaderValue, Uri};
use http_body_util::{BodyExt as _, Full};
use std::cell::RefCell;
use std::collections::VecDeque;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};

/// A link, and the node's end of it.
async fn link() -> (Link, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (ours, theirs) = tokio::join!(TcpStream::connect(address), listener.accept());
    (Link::over(Stream::tcp(ours.unwrap())), theirs.unwrap().0)
}

fn request(method: Method, body: Outgoing) -> Option<Request<Outgoing>> {
    let mut request = Request::new(body);
    (*request.method_mut(), *request.uri_mut()) = (method, Uri::from_static("/path"));
    request.headers_mut().insert("host", HeaderValue::from_static("a"));
    Some(request)
}

fn whole(text: &'static str) -> Outgoing {
    Outgoing::Stream(Box::pin(Full::new(Bytes::from(text)).map_err(|never| match never {})))
}

fn limits() -> AttemptLimits {
    let now = Instant::now();
    AttemptLimits { started: now, first_byte: Duration::ZERO, until: Some(now + Duration::from_secs(20)) }
}

async fn send(link: &mut Link, request: &mut Option<Request<Outgoing>>) -> SendResult {
    link.send(request, limits(), None::<fn(Interim)>, || false).await
}

/// Returns a word for a result, and the status of an answer.
fn word(result: &SendResult) -> String {
    match result {
        SendResult::NotSent(failure) => format!("not sent: {failure:?}"),
        SendResult::Unprocessed { .. } => "unprocessed".to_owned(),
        SendResult::Stale(failure) => format!("stale: {failure:?}"),
        SendResult::SentNoAnswer(failure) => format!("sent: {failure:?}"),
        SendResult::Answer(response) => format!("answer: {}", response.status().as_u16()),
    }
}

/// Reads up to the end of this text.
async fn read_to(node: &mut TcpStream, end: &str) -> String {
    let mut read = Vec::new();
    while !read.ends_with(end.as_bytes()) {
        assert_ne!(node.read_buf(&mut read).await.unwrap(), 0, "{:?}", String::from_utf8_lossy(&read));
    }
    String::from_utf8(read).unwrap()
}

/// Reads the content of an answer to its end; `None` where it is not whole.
async fn content(link: &mut Link) -> Option<Vec<u8>> {
    let mut data = Vec::new();
    while let Some(frame) = poll_fn(|cx| link.poll_frame(cx)).await {
        data.extend_from_slice(&frame.ok()?.into_data().unwrap_or_default());
    }
    Some(data)
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn a_kept_connection_that_has_ended_gives_a_bare_request_back() {
    let bare = || Outgoing::Empty;
    for (method, body, end, is_back) in [
        (Method::GET, bare(), "\r\n\r\n", true),
        (Method::POST, bare(), "\r\n\r\n", true),
        (Method::POST, whole("x"), "\r\n\r\nx", false),
    ] {
        let (mut link, mut node) = link().await;
        let mut first = request(Method::GET, Outgoing::Empty);
        let (sent, read) = tokio::join!(send(&mut link, &mut first), async {
            let read = read_to(&mut node, "\r\n\r\n").await;
            node.write_all(OK.as_bytes()).await.unwrap();
            read
        });
        assert_eq!((word(&sent), first.is_some()), ("answer: 200".to_owned(), false));
        assert_eq!(read, "GET /path HTTP/1.1\r\nhost: a\r\n\r\n");
        assert_eq!(content(&mut link).await.unwrap(), b"ok");
        assert!(link.is_reusable() && link.is_quiet());
        let mut second = request(method.clone(), body);
        let (sent, _) = tokio::join!(send(&mut link, &mut second), async {
            read_to(&mut node, end).await;
            drop(node);
        });
        assert_eq!(word(&sent), "stale: Terminated", "{method}");
        assert_eq!(second.is_some(), is_back, "{method}");
        if let Some(second) = second {
            assert_eq!(
                (second.method(), second.uri().path(), &second.headers()["host"]),
                (&method, "/path", &"a".parse().unwrap())
            );
        }
    }
}

#[tokio::test]
async fn a_request_that_was_not_sent_is_whole() {
    let (mut link, mut node) = link().await;
    node.write_all(OK.as_bytes()).await.unwrap();
    std::future::poll_fn(|cx| link.stream.poll_peek(cx)).await;
    let mut early = request(Method::POST, whole("body"));
    assert_eq!(word(&send(&mut link, &mut early).await), "not sent: Terminated", "the node spoke before it was asked");
    let body = early.unwrap().into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "body");
    assert_eq!(link.sent(), 0);
}

#[tokio::test]
async fn an_attempt_comes_to_a_result() {
    let large = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(64 << 10));
    for (answer, expected) in [
        ("", "sent: Terminated"),
        ("HTTP/1.1 200 O", "sent: Terminated"),
        ("HTTP/1.1 100 Continue\r\n\r\n", "sent: Terminated"),
        ("ICY 200 OK\r\n", "sent: Malformed"),
        ("HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n", "sent: Malformed"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nx", "sent: Malformed"),
        (&large, "sent: HeadTooLarge"),
        ("HTTP/1.1 103 Hints\r\n\r\nHTTP/1.1 204 No\r\n\r\n", "answer: 204"),
        ("HTTP/1.1 200 OK\r\n\r\n", "answer: 200"),
    ] {
        let (mut link, mut node) = link().await;
        let mut request = request(Method::GET, Outgoing::Empty);
        let (sent, ()) = tokio::join!(send(&mut link, &mut request), async {
            read_to(&mut node, "\r\n\r\n").await;
            // A link that has read enough ends.
            let _ = node.write_all(answer.as_bytes()).await;
            drop(node);
        });
        assert_eq!((word(&sent).as_str(), request.is_some()), (expected, false), "{answer:.60}");
    }
}

#[tokio::test]
async fn interim_responses_without_end_are_no_answer() {
    for piece in ["HTTP/1.1 103 Hints\r\nx: y\r\n\r\n", "\r\n"] {
        let (mut link, mut node) = link().await;
        let mut request = request(Method::GET, Outgoing::Empty);
        let pieces = piece.repeat(4096);
        let sent = send(&mut link, &mut request);
        let mut sent = pin!(sent);
        let endless = async { while node.write_all(pieces.as_bytes()).await.is_ok() {} };
        tokio::select! {
            sent = &mut sent => assert_eq!(word(&sent), "sent: HeadTooLarge", "{piece:?}"),
            () = endless => panic!("the link has ended without a result"),
        }
    }
}

#[tokio::test]
async fn only_a_link_that_is_in_step_takes_another_request() {
    for (answer, is_reusable) in [
        (OK, true),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokmore", false),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok", false),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", true),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nHTTP", false),
        ("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", false),
    ] {
        let (mut link, mut node) = link().await;
        let mut request = request(Method::GET, Outgoing::Empty);
        let (sent, _) = tokio::join!(send(&mut link, &mut request), async {
            read_to(&mut node, "\r\n\r\n").await;
            node.write_all(answer.as_bytes()).await.unwrap();
        });
        assert_eq!(word(&sent), "answer: 200");
        assert_eq!(content(&mut link).await.unwrap(), b"ok", "{answer}");
        assert_eq!(link.is_reusable(), is_reusable, "{answer}");
    }
}

/// The request is not whole when its answer is: the next request would stand in its content.
#[tokio::test]
async fn a_link_in_the_middle_of_a_request_takes_no_other() {
    let (mut link, mut node) = link().await;
    let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
    let late = futures_body(async { receiver.await.map(|()| Bytes::from("late")).ok() });
    let mut request = request(Method::POST, late);
    let (sent, _) = tokio::join!(send(&mut link, &mut request), async {
        read_to(&mut node, "\r\n\r\n").await;
        node.write_all(OK.as_bytes()).await.unwrap();
    });
    assert_eq!(word(&sent), "answer: 200");
    assert_eq!(content(&mut link).await.unwrap(), b"ok");
    assert!(!link.is_reusable());
    drop(sender);
}

/// A body of one piece that comes later.
fn futures_body(piece: impl Future<Output = Option<Bytes>> + 'static) -> Outgoing {
    struct Later<F>(Option<Pin<Box<F>>>);
    impl<F: Future<Output = Option<Bytes>>> http_body::Body for Later<F> {
        type Data = Bytes;
        type Error = super::super::BodyError;
        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            let Some(piece) = &mut self.0 else { return Poll::Ready(None) };
            let piece = ready!(piece.as_mut().poll(cx));
            self.0 = None;
            Poll::Ready(Some(piece.map(Frame::data).ok_or_else(|| "the client left".into())))
        }
    }
    Outgoing::Stream(Box::pin(Later(Some(Box::pin(piece)))))
}

#[tokio::test]
async fn a_request_whose_content_fails_has_no_answer() {
    let (mut link, mut node) = link().await;
    let mut request = request(Method::POST, futures_body(std::future::ready(None)));
    assert_eq!(word(&send(&mut link, &mut request).await), "not sent: RequestBody");
    assert!(request.is_none(), "a part of it is gone");
    drop(link);
    let mut read = Vec::new();
    node.read_to_end(&mut read).await.unwrap();
    assert!(!read.ends_with(b"0\r\n\r\n"), "a request that broke off must not look whole");
}

#[tokio::test]
async fn interim_answers_are_told_before_the_content_goes_out() {
    let (mut link, mut node) = link().await;
    let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
    let sender = RefCell::new(Some(sender));
    let body = futures_body(async { receiver.await.map(|()| Bytes::from("body")).ok() });
    let mut request = request(Method::POST, body);
    let told = |interim: Interim| {
        assert!(interim.is_continue());
        sender.take().unwrap().send(()).unwrap();
    };
    let (sent, read) = tokio::join!(link.send(&mut request, limits(), Some(told), || false), async {
        read_to(&mut node, "\r\n\r\n").await;
        node.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
        let read = read_to(&mut node, "0\r\n\r\n").await;
        node.write_all(OK.as_bytes()).await.unwrap();
        read
    });
    assert_eq!((word(&sent).as_str(), read.as_str()), ("answer: 200", "4\r\nbody\r\n0\r\n\r\n"));
}

/// Much more than sockets hold, both ways at once: neither side waits for the other to end.
#[tokio::test]
async fn content_streams_both_ways() {
    const PIECES: usize = 400;
    const PIECE: usize = 50_000;
    let (mut link, node) = link().await;
    let pieces = VecDeque::from_iter((0..PIECES).map(|n| Bytes::from(vec![n as u8; PIECE])));
    struct Pieces(VecDeque<Bytes>);
    impl http_body::Body for Pieces {
        type Data = Bytes;
        type Error = super::super::BodyError;
        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
        }
    }
    let mut request = request(Method::POST, Outgoing::Stream(Box::pin(Pieces(pieces))));
    let echo = async {
        let (mut read, mut write) = node.into_split();
        let mut head = [0; 64];
        let length = "POST /path HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n".len();
        read.read_exact(&mut head[..length]).await.unwrap();
        write.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
        tokio::io::copy(&mut read.take((PIECES * (PIECE + 8) + 5) as u64), &mut write).await.unwrap();
        write
    };
    let exchange = async {
        assert_eq!(word(&send(&mut link, &mut request).await), "answer: 200");
        content(&mut link).await.unwrap()
    };
    let (data, _write) = tokio::join!(exchange, echo);
    assert_eq!(data.len(), PIECES * PIECE);
    assert!(data.chunks(PIECE).enumerate().all(|(n, piece)| piece.iter().all(|&byte| byte == n as u8)));
    assert!(link.is_reusable());
}

#[tokio::test]
async fn bytes_behind_a_switch_are_the_tunnels() {
    let (mut link, mut node) = link().await;
    let mut request = request(Method::GET, Outgoing::Empty);
    let (sent, ()) = tokio::join!(send(&mut link, &mut request), async {
        read_to(&mut node, "\r\n\r\n").await;
        node.write_all(b"HTTP/1.1 101 Switching\r\nupgrade: x\r\n\r\nfirst").await.unwrap();
    });
    assert_eq!(word(&sent), "answer: 101");
    assert!(!link.is_reusable());
    let mut stream = link.into_switched().unwrap();
    node.write_all(b" second").await.unwrap();
    drop(node);
    let mut read = Vec::new();
    stream.read_to_end(&mut read).await.unwrap();
    assert_eq!(read, b"first second");
}

#[tokio::test]
async fn a_node_that_takes_no_more_has_answered() {
    let (mut link, mut node) = link().await;
    let pieces = futures_body(std::future::ready(Some(Bytes::from(vec![0; 32 << 20]))));
    let mut request = request(Method::POST, pieces);
    let (sent, ()) = tokio::join!(send(&mut link, &mut request), async {
        let mut some = [0; 1000];
        node.read_exact(&mut some).await.unwrap();
        node.write_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno").await.unwrap();
        drop(node);
    });
    assert_eq!(word(&sent), "answer: 413");
    assert_eq!(content(&mut link).await.unwrap(), b"no");
    assert!(!link.is_reusable());
}

#[tokio::test]
async fn time_limits_hold() {
    let (mut link, _node) = link().await;
    let mut silent = request(Method::GET, Outgoing::Empty);
    let limits = AttemptLimits { first_byte: Duration::from_millis(30), ..limits() };
    let sent = link.send(&mut silent, limits, None::<fn(Interim)>, || false).await;
    assert_eq!(word(&sent), "sent: Timeout");
    assert!(link.last_activity().elapsed() >= Duration::from_millis(30));
}
