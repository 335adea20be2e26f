//! An origin that speaks HTTP/2 in the clear.

use super::Peer;
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::cell::RefCell;
use std::convert::Infallible;

type Body = BoxBody<Bytes, Infallible>;

/// Serves one connection: echoes bodies and trailers as they come, or does what the path says.
pub(super) fn serve(peer: &mut Peer) {
    let socket = peer.client.stream.try_clone().unwrap();
    socket.set_nonblocking(true).unwrap();
    // A timeout of the peer's own reads means nothing to the runtime.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let peer = RefCell::new(peer);
    runtime.block_on(async {
        let socket = tokio::net::TcpStream::from_std(socket).unwrap();
        let service = service_fn(|request: Request<Incoming>| {
            let (head, body) = request.into_parts();
            peer.borrow_mut().note(&format!("{} {} {:?}", head.method, head.uri, head.headers));
            answer(head.uri.path().to_owned(), body)
        });
        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ = builder.serve_connection(TokioIo::new(socket), service).await;
    });
}

async fn answer(path: String, body: Incoming) -> Result<Response<Body>, std::io::Error> {
    let response = Response::builder().header("x-node", "two").header("content-type", "application/grpc");
    match path.as_str() {
        "/healthz" => Ok(response.body(full("well")).unwrap()),
        "/hang" => std::future::pending().await,
        "/reset" => Err(std::io::Error::other("reset")),
        "/503" => Ok(response.status(503).body(full("busy")).unwrap()),
        // Well as a whole; one of its services is not, and others it does not know.
        "/grpc.health.v1.Health/Check" => {
            let call = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
            let serving = match &call[..] {
                b"\0\0\0\0\0" => 1,
                b"\0\0\0\0\x06\x0a\x04sick" => 2,
                _ => return Ok(response.header("grpc-status", "5").body(full("")).unwrap()),
            };
            let told = Bytes::from(vec![0, 0, 0, 0, 2, 8, serving]);
            let trailers = async { Some(Ok(status())) };
            Ok(response.body(Full::new(told).with_trailers(trailers).boxed()).unwrap())
        }
        // Whole at once, and the rest of the request is neither read nor refused.
        "/early" => {
            tokio::spawn(async move {
                let _unread = body;
                std::future::pending::<()>().await;
            });
            Ok(response.body(full("early")).unwrap())
        }
        // Whole first, and then the answer with its trailers.
        "/unary" => {
            let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
            let trailers = async { Some(Ok(status())) };
            Ok(response.body(Full::new(body).with_trailers(trailers).boxed()).unwrap())
        }
        // Piece by piece, as they come.
        _ => Ok(response.body(BodyExt::boxed(Echo(Some(body)))).unwrap()),
    }
}

fn full(text: &'static str) -> Body {
    Full::new(Bytes::from_static(text.as_bytes())).boxed()
}

fn status() -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    trailers
}

/// A body that comes back, and trailers behind it.
struct Echo(Option<Incoming>);

impl http_body::Body for Echo {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        use std::task::Poll;
        let Some(body) = &mut self.0 else { return Poll::Ready(None) };
        match std::task::ready!(std::pin::Pin::new(body).poll_frame(cx)) {
            Some(Ok(frame)) if frame.is_data() => Poll::Ready(Some(Ok(frame))),
            _ => {
                self.0 = None;
                Poll::Ready(Some(Ok(Frame::trailers(status()))))
            }
        }
    }
}
