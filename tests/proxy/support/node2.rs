use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

pub type Body2 = BoxBody<Bytes, Infallible>;

/// A node that speaks HTTP/2 in the clear: it echoes bodies and trailers as they come, or does what its path says.
pub struct Node2 {
    pub address: SocketAddr,
    connections: Arc<AtomicUsize>,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Node2 {
    pub fn start() -> Node2 {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let node =
            Node2 { address: listener.local_addr().unwrap(), connections: Arc::default(), heads: Arc::default() };
        let (connections, heads) = (Arc::clone(&node.connections), Arc::clone(&node.heads));
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                while let Ok((socket, _)) = listener.accept().await {
                    connections.fetch_add(1, Ordering::SeqCst);
                    let heads = Arc::clone(&heads);
                    tokio::spawn(async move {
                        let service = service_fn(move |request| answer(request, Arc::clone(&heads)));
                        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                        let _ = builder.serve_connection(TokioIo::new(socket), service).await;
                    });
                }
            });
        });
        node
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Requests that have arrived: method, target and fields.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

async fn answer(request: Request<Incoming>, heads: Arc<Mutex<Vec<String>>>) -> Result<Response<Body2>, std::io::Error> {
    let (head, body) = request.into_parts();
    heads.lock().unwrap().push(format!("{} {} {:?}", head.method, head.uri, head.headers));
    let path = head.uri.path().to_owned();
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

fn full(text: &'static str) -> Body2 {
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

/// A body that is fed piece by piece; it ends when its feeder is dropped.
pub fn pieces() -> (tokio::sync::mpsc::UnboundedSender<Bytes>, Pieces) {
    let (feed, pieces) = tokio::sync::mpsc::unbounded_channel();
    (feed, Pieces(pieces))
}

pub struct Pieces(tokio::sync::mpsc::UnboundedReceiver<Bytes>);

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}
