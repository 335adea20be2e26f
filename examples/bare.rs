//! A bare proxy: hyper, the ring and nothing else. It shows what a proxy of Ringway's design could reach
//! that had no features: `benches/compare` measures it beside Ringway. Not for use: it trusts everybody,
//! bounds nothing and knows no errors but the end of a connection.
//!
//! ```sh
//! cargo build --release --example bare
//! target/release/examples/bare --listen 127.0.0.1:8080 --node 127.0.0.1:9001 --node 127.0.0.1:9002
//! ```
//!
//! A request goes to the node that owns its URI; what lies below `/hit/` or `/large/` is kept for ever.
//! `--upstream own` speaks HTTP/1.1 with the nodes by hand, in place of hyper's client.

#![allow(missing_docs)]

use bytes::{Buf, Bytes, BytesMut};
use clap::Parser;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderName};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use ringway::ring::{Member, Ring, Seed};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The largest head of an answer.
const MAX_HEAD: usize = 64 << 10;
const MAX_FIELDS: usize = 100;

#[derive(Parser)]
struct Options {
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long = "node", required = true)]
    nodes: Vec<SocketAddr>,
    /// With these it speaks TLS, and HTTP/2 where the client asks for it.
    #[arg(long, requires = "key")]
    chain: Option<PathBuf>,
    #[arg(long)]
    key: Option<PathBuf>,
    #[arg(long, value_enum, default_value = "hyper")]
    upstream: Kind,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum Kind {
    Hyper,
    Own,
}

type Body = Either<Full<Bytes>, Incoming>;

struct Bare {
    ring: Ring,
    nodes: Vec<SocketAddr>,
    kind: Kind,
    kept: RefCell<HashMap<Uri, (HeaderMap, Bytes)>>,
    idle: RefCell<Vec<Vec<SendRequest<Incoming>>>>,
    idle_own: RefCell<Vec<Vec<TcpStream>>>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, serve(options))
}

async fn serve(options: Options) -> Result<()> {
    let ids: Vec<String> = (0..options.nodes.len()).map(|number| format!("node-{number}")).collect();
    let members: Vec<Member<'_>> = ids.iter().map(|id| Member { id, weight: 1 }).collect();
    let bare = Rc::new(Bare {
        ring: Ring::build(Seed::new("bare"), 256, &members),
        idle: RefCell::new(ids.iter().map(|_| Vec::new()).collect()),
        idle_own: RefCell::new(ids.iter().map(|_| Vec::new()).collect()),
        nodes: options.nodes,
        kind: options.upstream,
        kept: RefCell::default(),
    });
    let tls = match (&options.chain, &options.key) {
        (Some(chain), Some(key)) => Some(tokio_rustls::TlsAcceptor::from(Arc::new(tls(chain, key)?))),
        _ => None,
    };
    let listener = TcpListener::bind(options.listen).await?;
    loop {
        let (socket, peer) = listener.accept().await?;
        socket.set_nodelay(true)?;
        let (bare, tls) = (Rc::clone(&bare), tls.clone());
        tokio::task::spawn_local(async move {
            match tls {
                None => speak(bare, socket, peer, None).await,
                Some(tls) => {
                    let Ok(stream) = tls.accept(socket).await else { return };
                    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                    speak(bare, stream, peer, Some(is_http2)).await;
                }
            }
        });
    }
}

fn tls(chain: &PathBuf, key: &PathBuf) -> Result<rustls::ServerConfig> {
    let chain = CertificateDer::pem_file_iter(chain).map_err(Error::other)?;
    let chain = chain.collect::<std::result::Result<_, _>>().map_err(Error::other)?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(Error::other)?;
    // AES-128 before AES-256, as Ringway has it and against what clients offer first.
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| !format!("{:?}", suite.suite()).contains("AES_128_GCM"));
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(Error::other)?;
    config.ignore_client_order = true;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Serves a connection; `is_http2` is `None` where TLS has not settled it.
async fn speak(bare: Rc<Bare>, io: impl AsyncRead + AsyncWrite + Unpin, peer: SocketAddr, is_http2: Option<bool>) {
    let scheme = if is_http2.is_some() { "https" } else { "http" };
    let address = HeaderValue::try_from(peer.ip().to_string()).expect("an address is a field value");
    let service = service_fn(move |request| {
        let (bare, address) = (Rc::clone(&bare), address.clone());
        async move { bare.answer(request, address, HeaderValue::from_static(scheme)).await }
    });
    // A connection that breaks is nobody's loss here.
    if is_http2 == Some(true) {
        let _ = hyper::server::conn::http2::Builder::new(Here).serve_connection(TokioIo::new(io), service).await;
    } else {
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(io), service).await;
    }
}

/// Runs tasks on the only thread.
#[derive(Clone, Copy)]
struct Here;

impl<F: Future + 'static> hyper::rt::Executor<F> for Here {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move { drop(future.await) });
    }
}

impl Bare {
    async fn answer(
        &self,
        request: Request<Incoming>,
        peer: HeaderValue,
        scheme: HeaderValue,
    ) -> Result<Response<Body>> {
        let path = request.uri().path();
        if !path.starts_with("/hit/") && !path.starts_with("/large/") {
            return self.forward(request, peer, scheme).await;
        }
        let uri = request.uri().clone();
        if let Some((fields, body)) = self.kept.borrow().get(&uri) {
            let mut response = Response::new(Either::Left(Full::new(body.clone())));
            *response.headers_mut() = fields.clone();
            return Ok(response);
        }
        let (head, body) = self.forward(request, peer, scheme).await?.into_parts();
        let body = body.collect().await.map_err(Error::other)?.to_bytes();
        self.kept.borrow_mut().insert(uri, (head.headers.clone(), body.clone()));
        Ok(Response::from_parts(head, Either::Left(Full::new(body))))
    }

    async fn forward(
        &self,
        mut request: Request<Incoming>,
        peer: HeaderValue,
        scheme: HeaderValue,
    ) -> Result<Response<Body>> {
        let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
        let node = self.ring.owner(self.ring.hash_key(target.as_bytes())).unwrap_or_default();
        let target = Uri::try_from(target).map_err(Error::other)?;
        let authority = request.uri().authority().map(|authority| authority.as_str().to_owned());
        *request.uri_mut() = target;
        *request.version_mut() = http::Version::HTTP_11;
        let fields = request.headers_mut();
        fields.remove(CONNECTION);
        fields.reserve(4);
        if let Some(authority) = authority {
            fields.insert(HOST, HeaderValue::try_from(authority).map_err(Error::other)?);
        }
        let host = fields.get(HOST).cloned().unwrap_or_else(|| HeaderValue::from_static(""));
        fields.insert(HeaderName::from_static("x-forwarded-for"), peer);
        fields.insert(HeaderName::from_static("x-forwarded-proto"), scheme);
        fields.insert(HeaderName::from_static("x-forwarded-host"), host);
        match self.kind {
            Kind::Hyper => self.by_hyper(node, request).await,
            Kind::Own => self.by_hand(node, request).await,
        }
    }

    async fn by_hyper(&self, node: usize, request: Request<Incoming>) -> Result<Response<Body>> {
        let idle = self.idle.borrow_mut()[node].pop();
        let mut sender = match idle.filter(SendRequest::is_ready) {
            Some(sender) => sender,
            None => {
                let socket = TcpStream::connect(self.nodes[node]).await?;
                socket.set_nodelay(true)?;
                let io = TokioIo::new(socket);
                let (sender, connection) = hyper::client::conn::http1::handshake(io).await.map_err(Error::other)?;
                tokio::task::spawn_local(connection);
                sender
            }
        };
        let mut response = sender.send_request(request).await.map_err(Error::other)?;
        response.headers_mut().remove(CONNECTION);
        self.idle.borrow_mut()[node].push(sender);
        Ok(response.map(Either::Right))
    }

    /// HTTP/1.1 by hand: one write of the head and the body, and reads until a body of known length is here.
    async fn by_hand(&self, node: usize, request: Request<Incoming>) -> Result<Response<Body>> {
        let (head, body) = request.into_parts();
        let mut out = Vec::with_capacity(1024);
        out.extend_from_slice(head.method.as_str().as_bytes());
        out.push(b' ');
        out.extend_from_slice(head.uri.path_and_query().map_or("/", |target| target.as_str()).as_bytes());
        out.extend_from_slice(b" HTTP/1.1\r\n");
        for (name, value) in &head.headers {
            for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                out.extend_from_slice(part);
            }
        }
        out.extend_from_slice(b"\r\n");
        if !hyper::body::Body::is_end_stream(&body) {
            out.extend_from_slice(&body.collect().await.map_err(Error::other)?.to_bytes());
        }
        let idle = self.idle_own.borrow_mut()[node].pop();
        let mut socket = match idle {
            Some(socket) => socket,
            None => TcpStream::connect(self.nodes[node]).await?,
        };
        socket.write_all(&out).await?;
        let mut read = BytesMut::with_capacity(8 << 10);
        let (mut response, length) = loop {
            if socket.read_buf(&mut read).await? == 0 || read.len() > MAX_HEAD {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            if let Some(found) = parse(&mut read)? {
                break found;
            }
        };
        while read.len() < length {
            if socket.read_buf(&mut read).await? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        self.idle_own.borrow_mut()[node].push(socket);
        *response.body_mut() = Either::Left(Full::new(read.freeze()));
        Ok(response)
    }
}

/// Takes a head off what was read; with it goes the length of the body.
fn parse(read: &mut BytesMut) -> Result<Option<(Response<Body>, usize)>> {
    let mut lines = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut head = httparse::Response::new(&mut lines);
    let httparse::Status::Complete(size) = head.parse(read).map_err(Error::other)? else { return Ok(None) };
    let mut response = Response::new(Either::Left(Full::default()));
    *response.status_mut() = StatusCode::from_u16(head.code.unwrap_or_default()).map_err(Error::other)?;
    let fields = response.headers_mut();
    fields.reserve(head.headers.len());
    for line in head.headers.iter() {
        let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(Error::other)?;
        if name != CONNECTION {
            fields.append(name, HeaderValue::from_bytes(line.value).map_err(Error::other)?);
        }
    }
    let length = fields.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let length = length.ok_or(ErrorKind::InvalidData)?;
    read.advance(size);
    Ok(Some((response, length)))
}
