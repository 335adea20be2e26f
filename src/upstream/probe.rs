//! The prober: health checks of every node at intervals. One per process, on the thread of the admin listener, whatever
//! the number of workers. It speaks HTTP by hyper's client, which is off the path of requests.
//!
//! The nodes of a pool with shared health follow the verdicts of the process that checks for the fleet, where there are
//! verdicts; the others are checked here.

use super::connect::Endpoint;
use super::node::NodeRuntime;
use super::pool::{Node, Pool};
use crate::config::{CheckKind, GrpcCheck, HealthCheck, Protocol};
use crate::fleet::NodeVerdict;
use crate::io::Stream;
use crate::tls::ClientTls;
use bytes::Bytes;
use http::header::{ACCEPT, CONNECTION, CONTENT_TYPE, HOST, TE, USER_AGENT};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::Builder;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// The bytes of a body that are searched for `expect_body`.
const MAX_BODY: usize = 64 << 10;
const MAX_HEAD: usize = 64 << 10;

/// The longest text of a failure that processes share, in bytes.
const MAX_FAILURE: usize = 128;

/// All checks that are going on.
pub(crate) struct Probes {
    runtime: Handle,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By the node's serial.
    running: HashMap<u64, Probe>,
    pools: Vec<Arc<Pool>>,
    /// The verdicts of another process on the nodes of a pool, by the names of both.
    followed: HashMap<String, HashMap<String, NodeVerdict>>,
}

/// The checks of one node, which end with it.
struct Probe {
    check: Arc<HealthCheck>,
    host: Option<Arc<str>>,
    protocol: Protocol,
    tls: Option<(Arc<ClientTls>, ServerName<'static>)>,
    task: AbortHandle,
}

impl Probe {
    /// Returns whether it runs the same checks of this node.
    fn is(&self, check: &HealthCheck, node: &Node) -> bool {
        let tls = node.endpoint.tls.as_ref();
        *self.check == *check
            && self.host == node.endpoint.host
            && self.protocol == node.endpoint.protocol
            && self.tls.as_ref() == tls
            && !self.task.is_finished()
    }
}

impl Drop for Probe {
    /// A check that is under way ends without a result.
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Probes {
    /// Checks will run on this runtime.
    pub(crate) fn new(runtime: Handle) -> Probes {
        Probes { runtime, state: Mutex::default() }
    }

    /// Checks the nodes of these pools from now on. Nodes whose checks are as they were keep their
    /// rhythm.
    pub(crate) fn follow(&self, pools: &[Arc<Pool>]) {
        let mut state = self.state.lock();
        state.pools = pools.to_vec();
        state.followed.retain(|name, _| pools.iter().any(|pool| *pool.name == **name && pool.is_health_shared));
        self.check_others(&mut state);
    }

    /// Has the nodes of a pool follow the verdicts of another process. Nodes without one are checked here; without
    /// verdicts all are.
    pub(crate) fn follow_verdicts(&self, pool: &str, verdicts: Option<&[NodeVerdict]>) {
        let mut state = self.state.lock();
        let is_same = match (state.followed.get(pool), verdicts) {
            (None, None) => true,
            (Some(known), Some(all)) => {
                known.len() == all.len() && all.iter().all(|it| known.get(&it.node) == Some(it))
            }
            _ => false,
        };
        if is_same {
            return;
        }
        let by_name = |all: &[NodeVerdict]| all.iter().map(|it| (it.node.clone(), it.clone())).collect();
        let verdicts: Option<HashMap<String, NodeVerdict>> = verdicts.map(by_name);
        match verdicts {
            Some(verdicts) => state.followed.insert(pool.to_owned(), verdicts),
            None => state.followed.remove(pool),
        };
        self.check_others(&mut state);
    }

    /// Returns the verdicts on the nodes of a pool that this process checks.
    pub(crate) fn verdicts(&self, pool: &str) -> Vec<NodeVerdict> {
        let state = self.state.lock();
        let nodes = state.pools.iter().filter(|known| *known.name == *pool).flat_map(|pool| &pool.nodes);
        let verdict = |node: &Node| {
            let healthy = node.runtime.health.is_healthy();
            let mut failure = node.runtime.checks().failure.filter(|_| !healthy);
            if let Some(text) = &mut failure {
                text.truncate(text.floor_char_boundary(MAX_FAILURE));
            }
            NodeVerdict { node: node.verdict_name(), healthy, failure }
        };
        nodes.filter(|node| node.unresolved.is_none()).map(verdict).collect()
    }

    /// Has nodes follow the verdicts that there are, and checks the others.
    fn check_others(&self, state: &mut State) {
        let mut before = std::mem::take(&mut state.running);
        for pool in &state.pools {
            let Some(check) = &pool.health_check else { continue };
            let followed = state.followed.get(&*pool.name);
            for node in pool.nodes.iter().filter(|node| node.unresolved.is_none()) {
                if let Some(verdict) = followed.and_then(|verdicts| verdicts.get(&node.verdict_name())) {
                    // A check that is under way ends.
                    drop(before.remove(&node.runtime.serial));
                    node.runtime.follow(verdict);
                    continue;
                }
                let kept = before.remove(&node.runtime.serial).filter(|probe| probe.is(check, node));
                let probe = kept.unwrap_or_else(|| self.check(node, check, pool.is_health_shared));
                state.running.insert(node.runtime.serial, probe);
            }
        }
    }

    /// Begins to check a node. All processes of a fleet begin at the same time where the leader is gone: the first
    /// check of each comes at a moment of its own.
    fn check(&self, node: &Node, check: &Arc<HealthCheck>, is_shared: bool) -> Probe {
        let (runtime, check) = (Arc::clone(&node.runtime), Arc::clone(check));
        let endpoint = check.port.map_or_else(|| node.endpoint.clone(), |port| node.endpoint.at(port.0));
        let (host, protocol, tls) = (endpoint.host.clone(), endpoint.protocol, endpoint.tls.clone());
        let first = if is_shared { check.interval } else { check.interval / 10 };
        let task = self.runtime.spawn(watch(runtime, Arc::clone(&check), endpoint, first)).abort_handle();
        Probe { check, host, protocol, tls, task }
    }
}

/// Checks one node until the task is aborted, for the first time within so long.
async fn watch(node: Arc<NodeRuntime>, check: Arc<HealthCheck>, endpoint: Endpoint, first: Duration) {
    // Not of all nodes at once.
    let mut at = Instant::now() + part_of(first);
    loop {
        tokio::time::sleep_until(at).await;
        let asked = tokio::time::timeout(check.timeout, check_node(&check, &endpoint)).await;
        let result = asked.unwrap_or_else(|_| Err(format!("no answer within {:?}", check.timeout)));
        node.checked(result, &check);
        at = (at + check.interval - part_of(check.interval / 10)).max(Instant::now());
    }
}

/// Returns a random part of a time.
fn part_of(whole: Duration) -> Duration {
    whole.mul_f64(fastrand::f64())
}

/// Runs one check; returns the reason of its failure.
async fn check_node(check: &HealthCheck, endpoint: &Endpoint) -> Result<(), String> {
    let stream = endpoint.connect().await.map_err(|(_, error)| error)?;
    match check.kind {
        CheckKind::Tcp => Ok(()),
        CheckKind::Http if let Some(grpc) = &check.grpc => {
            check_grpc(grpc, request(check, endpoint)?, endpoint, stream).await
        }
        CheckKind::Http if endpoint.protocol == Protocol::Http2 => check_http2(check, endpoint, stream).await,
        CheckKind::Http => {
            let told = |error: hyper::Error| error.to_string();
            let (mut sender, connection) =
                Builder::new().max_buf_size(MAX_HEAD).handshake(TokioIo::new(stream)).await.map_err(told)?;
            let request = request(check, endpoint)?;
            let answer = async {
                let response = sender.send_request(request).await.map_err(told)?;
                judge(check, response).await
            };
            let (mut answer, mut connection) = (pin!(answer), pin!(connection));
            let mut ended = false;
            loop {
                tokio::select! {
                    biased;
                    verdict = &mut answer => return verdict,
                    // The response is read all the same.
                    _ = &mut connection, if !ended => ended = true,
                }
            }
        }
    }
}

/// The same over HTTP/2.
async fn check_http2(check: &HealthCheck, endpoint: &Endpoint, stream: Stream) -> Result<(), String> {
    let told = |error: hyper::Error| error.to_string();
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(told)?;
    // Ends with the sender, or with this check.
    let connection = tokio::spawn(connection);
    let _guard = AbortAtEnd(connection.abort_handle());
    let (mut head, body) = request(check, endpoint)?.into_parts();
    let host = head.headers.remove(HOST).unwrap_or(HeaderValue::from_static("localhost"));
    head.headers.remove(CONNECTION);
    let scheme = if endpoint.tls.is_some() { "https" } else { "http" };
    let uri = Uri::builder().scheme(scheme).authority(host.as_bytes()).path_and_query(check.path.0.as_str()).build();
    head.uri = uri.map_err(|error| error.to_string())?;
    let response = sender.send_request(Request::from_parts(head, body)).await.map_err(told)?;
    judge(check, response).await
}

/// The health service of gRPC (grpc.health.v1): one call of `Check`, whose answer must be `SERVING`.
async fn check_grpc(
    grpc: &GrpcCheck,
    request: Request<Empty<Bytes>>,
    endpoint: &Endpoint,
    stream: Stream,
) -> Result<(), String> {
    let told = |error: hyper::Error| error.to_string();
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(told)?;
    let connection = tokio::spawn(connection);
    let _guard = AbortAtEnd(connection.abort_handle());
    let (mut head, _) = request.into_parts();
    let host = head.headers.remove(HOST).unwrap_or(HeaderValue::from_static("localhost"));
    head.headers.remove(CONNECTION);
    head.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    head.headers.insert(TE, HeaderValue::from_static("trailers"));
    head.method = Method::POST;
    let scheme = if endpoint.tls.is_some() { "https" } else { "http" };
    let uri = Uri::builder().scheme(scheme).authority(host.as_bytes()).path_and_query(GRPC_CHECK).build();
    head.uri = uri.map_err(|error| error.to_string())?;
    let call = Full::new(Bytes::from(grpc_call(&grpc.service)));
    let response = sender.send_request(Request::from_parts(head, call)).await.map_err(told)?;
    if response.status() != StatusCode::OK {
        return Err(format!("the status is {}", response.status().as_u16()));
    }
    let in_head = response.headers().get(GRPC_STATUS).cloned();
    let whole = Limited::new(response.into_body(), MAX_BODY).collect().await.map_err(|error| error.to_string())?;
    let status = whole.trailers().and_then(|trailers| trailers.get(GRPC_STATUS).cloned()).or(in_head);
    match status {
        Some(status) if status == "0" => {}
        Some(status) => {
            return Err(format!("the call ends with the status {}", String::from_utf8_lossy(status.as_bytes())));
        }
        None => return Err("the call ends without a status".to_owned()),
    }
    match serving_status(&whole.to_bytes()) {
        Some(SERVING) => Ok(()),
        found => Err(format!("the service is not serving (status {})", found.unwrap_or_default())),
    }
}

const GRPC_CHECK: &str = "/grpc.health.v1.Health/Check";
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const SERVING: u8 = 1;

/// Returns a message with the name of a service, as gRPC frames it: no compression, its length, field 1 as a string.
fn grpc_call(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push(length as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    [&[0][..], &length.to_be_bytes(), &message].concat()
}

/// Returns the status in the response: field 1, a small number; absent means 0.
fn serving_status(answer: &[u8]) -> Option<u8> {
    match *answer {
        [0, 0, 0, 0, 0] => Some(0),
        [0, 0, 0, 0, 2, 0x08, status] => Some(status),
        _ => None,
    }
}

/// Aborts a task when dropped.
struct AbortAtEnd(AbortHandle);

impl Drop for AbortAtEnd {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn request(check: &HealthCheck, endpoint: &Endpoint) -> Result<Request<Empty<Bytes>>, String> {
    let port = endpoint.address.port();
    let name = endpoint.host.as_ref().filter(|name| name.parse::<std::net::IpAddr>().is_err());
    let own = name.map_or_else(|| endpoint.address.to_string(), |name| format!("{name}:{port}"));
    let own = || HeaderValue::try_from(own).map_err(|error| error.to_string());
    let host = check.host.clone().map_or_else(own, Ok)?;
    let agent = concat!("ringway/", env!("CARGO_PKG_VERSION"), " (health check)");
    let mut request = Request::get(check.path.0.as_str())
        .header(HOST, host)
        .header(USER_AGENT, agent)
        .header(ACCEPT, "*/*")
        .header(CONNECTION, "close")
        .body(Empty::new())
        .map_err(|error| error.to_string())?;
    for (name, value) in check.headers.iter() {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|error| error.to_string())?;
        request.headers_mut().insert(name, value.clone());
    }
    Ok(request)
}

async fn judge(check: &HealthCheck, response: Response<Incoming>) -> Result<(), String> {
    let status = response.status();
    if !check.expect_status.iter().any(|range| range.holds(status)) {
        return Err(format!("the status is {}", status.as_u16()));
    }
    let Some(expected) = &check.expect_body else { return Ok(()) };
    let mut body = Limited::new(response.into_body(), MAX_BODY);
    let mut read = Vec::new();
    while let Some(frame) = body.frame().await {
        // Bytes after the limit are not searched.
        let Ok(frame) = frame else { break };
        read.extend(frame.into_data().unwrap_or_default());
    }
    let found = read.windows(expected.len().max(1)).any(|window| window == expected.as_bytes());
    match found || expected.is_empty() {
        true => Ok(()),
        false => Err(format!("the body does not hold `{expected}`")),
    }
}
