//! The demo's client: one request a connection, written out as it goes over the wire.

use std::io;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// An answer, read to its end.
pub(super) struct Answer {
    pub(super) status: u16,
    head: String,
    pub(super) body: String,
}

impl Answer {
    /// Returns the first value of a field, named in lower case.
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

/// Sends a GET with an `x-user-id`.
pub(super) async fn get(proxy: SocketAddr, path: &str, user: &str) -> io::Result<Answer> {
    send(proxy, &format!("GET {path} HTTP/1.1\r\nhost: {proxy}\r\nx-user-id: {user}\r\nconnection: close\r\n\r\n"), &[])
        .await
}

/// Returns a visit to the shop, with the cookie of an earlier one or without.
pub(super) async fn shop(proxy: SocketAddr, cookie: &str) -> io::Result<Answer> {
    let cookie = if cookie.is_empty() { String::new() } else { format!("cookie: {cookie}\r\n") };
    send(proxy, &format!("GET /shop HTTP/1.1\r\nhost: {proxy}\r\n{cookie}connection: close\r\n\r\n"), &[]).await
}

/// A payment, which runs once however often it is sent.
pub(super) async fn pay(proxy: SocketAddr, key: &str) -> io::Result<Answer> {
    let body = br#"{"amount": 4200, "currency": "eur"}"#;
    let head = format!(
        "POST /payments HTTP/1.1\r\nhost: {proxy}\r\nauthorization: Bearer alice\r\nidempotency-key: \"{key}\"\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    send(proxy, &head, body).await
}

/// Returns a call of the admin API.
pub(super) async fn admin(admin: SocketAddr, method: &str, path: &str) -> io::Result<Answer> {
    send(
        admin,
        &format!("{method} {path} HTTP/1.1\r\nhost: {admin}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"),
        &[],
    )
    .await
}

/// Returns a purge of one URL.
pub(super) async fn purge(admin: SocketAddr, url: &str) -> io::Result<Answer> {
    let order = serde_json::json!({ "url": url }).to_string();
    let length = order.len();
    let head = format!(
        "POST /api/cache/purge HTTP/1.1\r\nhost: {admin}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
    );
    send(admin, &head, order.as_bytes()).await
}

/// Sends a head as it is, then a body, and reads until the proxy closes.
pub(super) async fn send(proxy: SocketAddr, head: &str, body: &[u8]) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(proxy).await?;
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body).await?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await?;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    Ok(Answer { status, head: head.to_owned(), body: body.to_owned() })
}
