//! The HTTP client of the commands: one request on its own connection, and its response, complete or line by line.

use bytes::Bytes;
use http::header::{CONNECTION, HOST};
use http::{HeaderMap, HeaderValue, Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::io;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// The longest wait for a response: a reload of a large configuration may take its time.
const TIMEOUT: Duration = Duration::from_secs(60);
/// The longest silence within a stream, whose server gives a sign of life every 15 seconds.
const SILENCE: Duration = Duration::from_secs(45);

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
    #[error("{url} has said nothing for too long")]
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

/// Why a stream of lines ends.
pub(super) enum StreamError {
    /// The response is no success.
    Refused(Answer),
    Failed(ClientError),
    /// A line could not be written.
    Output(io::Error),
}

/// The side that has ended a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StreamEnd {
    /// The function has all that it wants.
    Reader,
    /// The server has nothing more to say.
    Peer,
}

/// Sends a request, and hands on the lines of its response as they arrive, until the function returns false.
pub(super) async fn stream(
    request: Request<Bytes>,
    line: &mut dyn FnMut(&str) -> io::Result<bool>,
) -> Result<StreamEnd, StreamError> {
    let url = request.uri().to_string();
    let failed = |cause| StreamError::Failed(ClientError::Exchange { url: url.clone(), cause });
    let opened = tokio::time::timeout(TIMEOUT, open(request)).await;
    let opened = opened.unwrap_or_else(|_| Err(ClientError::Timeout { url: url.clone() }));
    let (response, _connection) = opened.map_err(StreamError::Failed)?;
    let (head, mut body) = response.into_parts();
    if head.status != http::StatusCode::OK {
        let body = String::from_utf8_lossy(&body.collect().await.map_err(failed)?.to_bytes()).into_owned();
        return Err(StreamError::Refused(Answer { status: head.status.as_u16(), fields: head.headers, body }));
    }
    let mut rest: Vec<u8> = Vec::new();
    loop {
        let frame = tokio::time::timeout(SILENCE, body.frame()).await;
        let frame = frame.map_err(|_| StreamError::Failed(ClientError::Timeout { url: url.clone() }))?;
        let Some(frame) = frame else { return Ok(StreamEnd::Peer) };
        rest.extend_from_slice(frame.map_err(failed)?.data_ref().map_or(&[], |data| data));
        let whole = rest.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        for text in String::from_utf8_lossy(&rest[..whole]).lines() {
            if !line(text).map_err(StreamError::Output)? {
                return Ok(StreamEnd::Reader);
            }
        }
        rest.drain(..whole);
    }
}

async fn exchange(request: Request<Bytes>) -> Result<Answer, ClientError> {
    let url = request.uri().to_string();
    let (response, _connection) = open(request).await?;
    let (head, body) = response.into_parts();
    let body = body.collect().await.map_err(|cause| ClientError::Exchange { url, cause })?.to_bytes();
    let body = String::from_utf8_lossy(&body).into_owned();
    Ok(Answer { status: head.status.as_u16(), fields: head.headers, body })
}

/// The task of a connection, which ends with this.
struct Connected(JoinHandle<hyper::Result<()>>);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Sends a request on a connection of its own. Returns the response, whose body is still to come.
async fn open(request: Request<Bytes>) -> Result<(Response<Incoming>, Connected), ClientError> {
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
    let connection = Connected(tokio::spawn(connection));
    let response = sender.send_request(Request::from_parts(head, Full::new(body))).await.map_err(failed)?;
    Ok((response, connection))
}
