//! The requests of the demo's tour.

use crate::cli::http_client::{Answer, ClientError, send};
use bytes::Bytes;
use http::request::Builder;
use http::{Method, Request};
use std::net::SocketAddr;

fn request(method: Method, to: SocketAddr, path: &str) -> Builder {
    Request::builder().method(method).uri(format!("http://{to}{path}"))
}

async fn send_body(request: Builder, body: impl Into<Bytes>) -> Result<Answer, ClientError> {
    send(request.body(body.into()).map_err(|error| ClientError::Url(error.to_string()))?).await
}

/// Sends a GET with an `x-user-id`.
pub(super) async fn get(proxy: SocketAddr, path: &str, user: &str) -> Result<Answer, ClientError> {
    send_body(request(Method::GET, proxy, path).header("x-user-id", user), "").await
}

/// Visits the shop, with the cookie of an earlier visit or without.
pub(super) async fn shop(proxy: SocketAddr, cookie: &str) -> Result<Answer, ClientError> {
    let visit = request(Method::GET, proxy, "/shop");
    send_body(if cookie.is_empty() { visit } else { visit.header("cookie", cookie) }, "").await
}

/// Reads or writes a note, with the session of an earlier answer or without.
pub(super) async fn note(method: Method, proxy: SocketAddr, session: &str) -> Result<Answer, ClientError> {
    let note = request(method, proxy, "/notes/1").header("host", "notes.example");
    send_body(if session.is_empty() { note } else { note.header("cookie", session) }, "").await
}

/// Sends a payment, which runs once however often it is sent.
pub(super) async fn pay(proxy: SocketAddr, key: &str) -> Result<Answer, ClientError> {
    let payment = request(Method::POST, proxy, "/payments")
        .header("authorization", "Bearer alice")
        .header("idempotency-key", format!("\"{key}\""))
        .header("content-type", "application/json");
    send_body(payment, r#"{"amount": 4200, "currency": "eur"}"#).await
}

/// Sends an order, whose steps run once however often it is sent.
pub(super) async fn order(proxy: SocketAddr, key: &str, amount: u32) -> Result<Answer, ClientError> {
    let order = request(Method::POST, proxy, "/checkout")
        .header("authorization", "Bearer alice")
        .header("idempotency-key", format!("\"{key}\""))
        .header("content-type", "application/json");
    send_body(order, serde_json::json!({ "items": ["pen"], "amount": amount }).to_string()).await
}

/// Sends a large body.
pub(super) async fn upload(proxy: SocketAddr, size: usize) -> Result<Answer, ClientError> {
    send_body(request(Method::POST, proxy, "/upload").header("x-user-id", "alice"), vec![b'x'; size]).await
}

/// Sends a GET with two `Host` fields.
pub(super) async fn ambiguous(proxy: SocketAddr) -> Result<Answer, ClientError> {
    send_body(request(Method::GET, proxy, "/").header("host", proxy.to_string()).header("host", "elsewhere"), "").await
}

/// Calls the admin API.
pub(super) async fn admin(admin: SocketAddr, method: Method, path: &str) -> Result<Answer, ClientError> {
    send_body(request(method, admin, path), "").await
}

/// Purges one URL.
pub(super) async fn purge(admin: SocketAddr, url: &str) -> Result<Answer, ClientError> {
    let order = serde_json::json!({ "url": url }).to_string();
    send_body(request(Method::POST, admin, "/api/cache/purge"), order).await
}
