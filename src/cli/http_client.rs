//! The HTTP client of the commands: one request on its own connection, and its complete response.

use bytes::Bytes;
use http::header::{CONNECTION, HOST};
use http::{HeaderMap, HeaderValue, Request, Uri};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::io;
use std::time::Duration;
use tokio::net::TcpStream;

/// The longest wait for a response: a reload of a large configuration may take its time.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A response, read to its end.
pub(super) struct Answer {
    pub(super) status: u16,
    fields: HeaderMap,
    pub(super) body: String,
}

impl Answer {
    /// Returns the first value of a field.
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name)?.to_str().ok()
    }
}

/// A request that got no response.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error("expected a URL like http://HOST:PORT, found `{0}`")]
    Url(String),
    #[error("cannot connect to {url}: {cause}")]
    Connect { url: String, cause: io::Error },
    #[error("{url} does not answer in HTTP: {cause}")]
    Exchange { url: String, cause: hyper::Error },
    #[error("{url} has not answered for {TIMEOUT:?}")]
    Timeout { url: String },
}

impl From<ClientError> for io::Error {
    fn from(error: ClientError) -> io::Error {
        io::Error::other(error)
    }
}

/// Sends a request whose target is an `http://` URL, with a `Host` field where it has none.
pub(super) async fn send(request: Request<Bytes>) -> Result<Answer, ClientError> {
    let url = request.uri().to_string();
    tokio::time::timeout(TIMEOUT, exchange(request)).await.unwrap_or(Err(ClientError::Timeout { url }))
}

async fn exchange(request: Request<Bytes>) -> Result<Answer, ClientError> {
    let url = request.uri().to_string();
    let (mut head, body) = request.into_parts();
    let Some(authority) = head.uri.authority().filter(|_| head.uri.scheme_str() == Some("http")) else {
        return Err(ClientError::Url(url));
    };
    let host = HeaderValue::from_str(authority.as_str()).map_err(|_| ClientError::Url(url.clone()))?;
    let name = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    let address = (name, authority.port_u16().unwrap_or(80));
    if !head.headers.contains_key(HOST) {
        head.headers.insert(HOST, host);
    }
    head.headers.insert(CONNECTION, HeaderValue::from_static("close"));
    head.uri = head.uri.path_and_query().map_or_else(Uri::default, |target| Uri::from(target.clone()));

    let connected = TcpStream::connect(address).await;
    let stream = connected.map_err(|cause| ClientError::Connect { url: url.clone(), cause })?;
    let failed = |cause| ClientError::Exchange { url: url.clone(), cause };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let connection = tokio::spawn(connection);
    let response = sender.send_request(Request::from_parts(head, Full::new(body))).await.map_err(failed)?;
    let (head, body) = response.into_parts();
    let body = body.collect().await.map_err(failed)?.to_bytes();
    connection.abort();
    let body = String::from_utf8_lossy(&body).into_owned();
    Ok(Answer { status: head.status.as_u16(), fields: head.headers, body })
}
