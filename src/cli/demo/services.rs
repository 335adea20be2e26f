//! The three services of the demo's checkout. Each keeps what a service owes to a saga: once per key, an undo for what
//! never happened, and no step after its undo.

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;

/// A charge of more than this is declined.
const LIMIT: i64 = 1000;

/// The services, and the names of their pools.
pub(super) struct Services {
    pub(super) pools: [(&'static str, SocketAddr); 3],
    books: Arc<Mutex<Books>>,
}

/// Returns the verbs for a service's step and for its undo.
fn verbs(name: &str) -> [&'static str; 2] {
    match name {
        "inventory" => ["reserves", "releases"],
        "payments" => ["charges", "refunds"],
        _ => ["ships", "recalls"],
    }
}

/// The books of all three: what was done and what was undone, by service and key; and what they saw, in order.
#[derive(Default)]
struct Books {
    done: BTreeMap<(&'static str, String), bool>,
    seen: Vec<String>,
}

impl Services {
    pub(super) async fn start() -> io::Result<Services> {
        let books = Arc::<Mutex<Books>>::default();
        let mut pools = Vec::new();
        for name in ["inventory", "payments", "shipping"] {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            pools.push((name, listener.local_addr()?));
            tokio::spawn(serve(listener, name, Arc::clone(&books)));
        }
        let pools = pools.try_into().map_err(|_| io::Error::other("three services have three addresses"))?;
        Ok(Services { pools, books })
    }

    /// Returns what the services saw since the last call.
    pub(super) fn seen(&self) -> Vec<String> {
        std::mem::take(&mut self.books.lock().seen)
    }

    /// Returns how many reservations, charges and shipments stand.
    pub(super) fn standing(&self) -> [usize; 3] {
        let books = self.books.lock();
        self.pools
            .map(|(name, _)| books.done.iter().filter(|((service, _), stands)| *service == name && **stands).count())
    }
}

async fn serve(listener: TcpListener, name: &'static str, books: Arc<Mutex<Books>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let books = Arc::clone(&books);
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, name, Arc::clone(&books)));
            let _ = Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    name: &'static str,
    books: Arc<Mutex<Books>>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let (status, json) = match head.uri.path().strip_suffix("/undo").and_then(|path| path.rsplit('/').next()) {
        Some(key) => undo(name, key, &mut books.lock()),
        None => {
            let key = head.headers.get("idempotency-key").and_then(|key| key.to_str().ok()).unwrap_or_default();
            carry_out(name, key.trim_matches('"'), &body, &mut books.lock())
        }
    };
    let mut response = Response::new(Full::new(Bytes::from(json.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
    Ok(response)
}

fn carry_out(name: &'static str, key: &str, body: &[u8], books: &mut Books) -> (StatusCode, Json) {
    let amount = serde_json::from_slice::<Json>(body).ok().and_then(|body| body["amount"].as_i64());
    let id = (name, key.to_owned());
    match books.done.get(&id) {
        Some(false) => return (StatusCode::GONE, json!({ "error": "this was undone" })),
        Some(true) => {}
        None if amount.is_some_and(|amount| amount > LIMIT) => {
            books.seen.push(format!("{name} declines"));
            return (StatusCode::PAYMENT_REQUIRED, json!({ "error": "declined" }));
        }
        None => {
            books.seen.push(format!("{name} {}", verbs(name)[0]));
            books.done.insert(id, true);
        }
    }
    (StatusCode::CREATED, json!({ "id": format!("{name}-{}", key.get(..6).unwrap_or(key)) }))
}

fn undo(name: &'static str, key: &str, books: &mut Books) -> (StatusCode, Json) {
    if books.done.insert((name, key.to_owned()), false) == Some(true) {
        books.seen.push(format!("{name} {}", verbs(name)[1]));
    }
    (StatusCode::OK, json!({}))
}
