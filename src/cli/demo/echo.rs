//! `ringway demo --nodes`: three nodes for a first configuration. Each answers any request with its name, the request,
//! and the number of times that it has run a payment. JSON it answers with JSON, as services of a saga do.

use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::net::TcpListener;

/// The nodes, as the configurations in `config/` name them.
const IDS: [&str; 3] = ["app-1", "app-2", "app-3"];

/// A node and its books.
struct EchoNode {
    id: &'static str,
    /// The number of runs of each idempotency key.
    payments: Mutex<BTreeMap<String, u64>>,
    /// The number of answers in JSON.
    documents: AtomicU64,
}

/// Serves until the process is stopped. With port 0 each node gets any free port.
pub(super) async fn serve(first_port: u16) -> Result<(), Box<dyn std::error::Error>> {
    for (id, offset) in IDS.into_iter().zip(0..) {
        let port = if first_port == 0 { 0 } else { first_port.checked_add(offset).ok_or("the --port is too large")? };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let listener = TcpListener::bind(address)
            .await
            .map_err(|error| format!("cannot listen on {address}: {error}; name another --port"))?;
        tell!("{id} on http://{}", listener.local_addr()?);
        tokio::spawn(accept(
            listener,
            Arc::new(EchoNode { id, payments: Mutex::default(), documents: AtomicU64::new(0) }),
        ));
    }
    tell!("Each answers with what it has received. Ctrl-C ends them.");
    Ok(())
}

async fn accept(listener: TcpListener, node: Arc<EchoNode>) {
    while let Ok((stream, _)) = listener.accept().await {
        let node = Arc::clone(&node);
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, Arc::clone(&node)));
            // A client that leaves is no error of a node's.
            let _ = Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(request: Request<Incoming>, node: Arc<EchoNode>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (head, body) = request.into_parts();
    let length = body.collect().await?.to_bytes().len();
    let is_json = head.headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
    let mut text = format!("{} has received:\n\n{} {}\n", node.id, head.method, head.uri);
    for (name, value) in &head.headers {
        let _ = writeln!(text, "{name}: {}", String::from_utf8_lossy(value.as_bytes()));
    }
    let _ = writeln!(text, "\na body of {length} bytes");
    if let Some(key) = head.headers.get("idempotency-key") {
        let key = String::from_utf8_lossy(key.as_bytes()).into_owned();
        let mut payments = node.payments.lock();
        let runs = payments.entry(key.clone()).or_default();
        *runs += 1;
        let times = if *runs == 1 { "once".to_owned() } else { format!("{runs} times") };
        let _ = writeln!(text, "{} has run the payment {key} {times}", node.id);
    }
    if is_json {
        let number = node.documents.fetch_add(1, Ordering::Relaxed) + 1;
        text = format!("{{\"id\":\"{}-{number}\"}}\n", node.id);
    }
    if head.uri.path() != "/healthz" {
        tell!("{}  {} {}", node.id, head.method, head.uri);
    }
    let mut response = Response::new(Full::new(Bytes::from(text)));
    let fields = response.headers_mut();
    fields.insert("x-node", HeaderValue::from_static(node.id));
    let kind = if is_json { "application/json" } else { "text/plain; charset=utf-8" };
    fields.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    if head.method == Method::GET && head.uri.path().starts_with("/assets") {
        fields.insert(CACHE_CONTROL, HeaderValue::from_static("max-age=60"));
    }
    Ok(response)
}
