//! The demo's nodes: real listeners that answer with their name, and can be stopped and started.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

/// A node of the demo.
pub(super) struct DemoNode {
    pub(super) id: &'static str,
    pub(super) address: SocketAddr,
    served: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl DemoNode {
    pub(super) async fn start(id: &'static str) -> io::Result<DemoNode> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let served = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(serve(listener, id, Arc::clone(&served)));
        Ok(DemoNode { id, address, served, task })
    }

    /// Returns the number of requests to the node, without health checks.
    pub(super) fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    /// Closes the node's listener and all its connections.
    pub(super) async fn stop(&mut self) {
        self.task.abort();
        // Ends by the cancellation before.
        let _ = (&mut self.task).await;
    }

    /// Brings the node back at its old address.
    pub(super) async fn restart(&mut self) -> io::Result<()> {
        let listener = TcpListener::bind(self.address).await?;
        self.task = tokio::spawn(serve(listener, self.id, Arc::clone(&self.served)));
        Ok(())
    }
}

async fn serve(listener: TcpListener, id: &'static str, served: Arc<AtomicU64>) {
    let mut connections = JoinSet::new();
    let notes = Arc::new(AtomicU64::new(1));
    while let Ok((stream, _)) = listener.accept().await {
        let counters = (Arc::clone(&served), Arc::clone(&notes));
        connections.spawn(async move {
            let service =
                service_fn(move |request| answer(request, id, (Arc::clone(&counters.0), Arc::clone(&counters.1))));
            let _ = Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// Answers with the version of the notes, which every POST makes a new one.
fn note(request: &Request<Incoming>, notes: &AtomicU64) -> Response<Full<Bytes>> {
    if request.method() == http::Method::POST {
        notes.fetch_add(1, Ordering::Relaxed);
    }
    Response::new(Full::new(Bytes::from(format!("version {}", notes.load(Ordering::Relaxed)))))
}

/// Answers with the node's name and the number of bytes in the request.
async fn answer(
    request: Request<Incoming>,
    id: &'static str,
    (served, notes): (Arc<AtomicU64>, Arc<AtomicU64>),
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    if request.uri().path() != "/healthz" {
        served.fetch_add(1, Ordering::Relaxed);
    }
    if request.uri().path().starts_with("/notes/") {
        return Ok(note(&request, &notes));
    }
    let received = request.into_body().collect().await?.to_bytes().len();
    let mut response = Response::new(Full::new(Bytes::from(format!("{id} got {received} bytes\n"))));
    response.headers_mut().insert("x-node", http::HeaderValue::from_static(id));
    Ok(response)
}
