//! The admin listener: the dashboard, probes, metrics and the API, for people and scripts on the same machine.
//!
//! Requests that a browser was tricked into sending are refused: the Host must be one that the
//! listener answers to, and an Origin must be the listener's own.

mod body;
mod connections;
mod dashboard;
mod event_stream;
mod fleet;
mod orders;
mod query;
mod routes;
mod socket;
mod tap_stream;

use crate::control::{Access, Control};
use crate::http::problem::{Problem, ProblemKind};
use body::Body;
use connections::{AdminConnection, AdminConnections};
use http::header::{AUTHORIZATION, CONNECTION, HOST, ORIGIN};
use http::{HeaderMap, HeaderValue, Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1::{Builder, Connection};
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket::Patient;
use socket2::{Domain, Protocol, Socket, Type};
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;
use subtle::ConstantTimeEq;
use tokio::net::TcpListener;
use tokio::sync::watch;

const BACKLOG: i32 = 128;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// The time that a client may take to send a body, and to read a response.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// The time that an idle connection may take for another request, once the listener pauses.
const LAST_REQUEST: Duration = Duration::from_secs(1);

/// The paths that a listener offers.
#[derive(Clone, Copy)]
pub(crate) enum Reach {
    /// The admin listener.
    Everything,
    /// The metrics listener: `/metrics`, `/livez`, `/readyz`.
    ReadOnly,
}

/// Binds a listener; port 0 takes a free one.
pub(crate) fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Serves until the listener pauses, whereupon connections close after their next response.
pub(crate) async fn serve(
    listener: TcpListener,
    control: Arc<dyn Control>,
    reach: Reach,
    mut pause: watch::Receiver<bool>,
) {
    let connections = Arc::new(AdminConnections::default());
    loop {
        let paused = pause.clone();
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = pause.wait_for(|pause| *pause) => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection to the admin listener");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let control = Arc::clone(&control);
        let entry = Arc::new(AdminConnections::take(&connections));
        let (closing, is_reading) = (entry.closing(), entry.is_reading());
        let serving = async move {
            let leaving = paused.clone();
            let service = service_fn(move |request| {
                let (control, leaving, entry) = (Arc::clone(&control), leaving.clone(), Arc::clone(&entry));
                async move {
                    let mut answer = answer(&*control, reach, request, peer, (&entry, &leaving)).await;
                    if *leaving.borrow() {
                        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                    }
                    Ok::<_, Infallible>(answer)
                }
            });
            let served = Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(64 << 10)
                .serve_connection(TokioIo::new(Patient::new(stream, WRITE_TIMEOUT, is_reading)), service);
            if let Err(error) = until_paused(pin!(served), paused).await {
                tracing::debug!(%error, "an admin connection ended early");
            }
        };
        tokio::spawn(async move {
            tokio::select! {
                () = serving => {}
                () = closing.notified() => tracing::debug!("an admin connection made room for another"),
            }
        });
    }
}

/// Serves a connection. After the pause it serves one more request, if that arrives soon: hyper would close at once a
/// connection whose request is still on its way.
async fn until_paused<S>(
    mut connection: Pin<&mut Connection<TokioIo<Patient>, S>>,
    mut paused: watch::Receiver<bool>,
) -> hyper::Result<()>
where
    S: HttpService<Incoming, ResBody = Body>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    tokio::select! {
        served = connection.as_mut() => return served,
        _ = paused.wait_for(|paused| *paused) => {}
    }
    if let Ok(served) = tokio::time::timeout(LAST_REQUEST, connection.as_mut()).await {
        return served;
    }
    connection.as_mut().graceful_shutdown();
    connection.await
}

async fn answer(
    control: &dyn Control,
    reach: Reach,
    request: Request<Incoming>,
    peer: SocketAddr,
    connection: (&Arc<AdminConnection>, &watch::Receiver<bool>),
) -> Response<Body> {
    let path = request.uri().path();
    let is_probe = matches!(path, "/livez" | "/readyz");
    let allowed = match reach {
        Reach::ReadOnly if is_probe || path == "/metrics" => Ok(()),
        Reach::ReadOnly => Err(routes::not_found()),
        Reach::Everything => control.access().check(&request, is_probe || dashboard::has(path)),
    };
    let answered = match allowed {
        Ok(()) => routes::answer(control, request, peer, connection).await,
        Err(problem) => Err(problem),
    };
    answered.unwrap_or_else(|problem| {
        let (mut fields, body) = problem.render();
        fields.remove(crate::http::fields::PROXY_STATUS);
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = problem.status();
        *response.headers_mut() = fields;
        response
    })
}

impl Access {
    /// Refuses what does not come from a client of this listener. Probes and the dashboard's files are open to all that
    /// reach it.
    fn check<B>(&self, request: &Request<B>, is_open: bool) -> Result<(), Problem> {
        let fields = request.headers();
        let mut hosts = fields.get_all(HOST).iter().map(|value| value.to_str().unwrap_or_default());
        let (host, is_one) = (hosts.next().unwrap_or_default(), hosts.next().is_none());
        // A target in absolute form has a host of its own, which counts (RFC 9112 3.2.2).
        let is_same = request.uri().authority().is_none_or(|authority| authority.as_str().eq_ignore_ascii_case(host));
        if !is_one || !is_same || !self.answers_to(host) {
            let detail = "the admin listener does not answer to this Host; name it under `admin.allowed_hosts`";
            return Err(Problem::new(ProblemKind::ForeignHost, detail));
        }
        if let Some(origin) = fields.get(ORIGIN) {
            let origin = origin.to_str().unwrap_or_default();
            if origin.strip_prefix("http://").or(origin.strip_prefix("https://")) != Some(host) {
                let detail = "requests from other sites' pages are refused";
                return Err(Problem::new(ProblemKind::CrossSite, detail));
            }
        }
        match &self.token {
            Some(token) if !is_open && !has_token(fields, token) => {
                let detail = "send the token as `Authorization: Bearer TOKEN`";
                Err(Problem::unauthorized(detail, "Bearer"))
            }
            _ => Ok(()),
        }
    }

    /// A host name could be rebound to this address by an attacker's DNS, so only configured names are accepted.
    fn answers_to(&self, host: &str) -> bool {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.ends_with(':') => name,
            _ => host,
        };
        let bare = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(name);
        bare.parse::<IpAddr>().is_ok()
            || name.eq_ignore_ascii_case("localhost")
            || self.allowed_hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(name))
    }
}

fn has_token(fields: &HeaderMap, token: &str) -> bool {
    let given = fields.get(AUTHORIZATION).and_then(|value| value.as_bytes().split_first_chunk::<7>());
    given.is_some_and(|(scheme, given)| {
        scheme.eq_ignore_ascii_case(b"Bearer ") && bool::from(given.trim_ascii_start().ct_eq(token.as_bytes()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn check(access: &Access, lines: &[(&'static str, &'static str)], is_probe: bool) -> Result<(), u16> {
        let mut request = Request::new(());
        for &(name, value) in lines {
            match name {
                ":target" => *request.uri_mut() = value.parse().unwrap(),
                _ => _ = request.headers_mut().append(name, HeaderValue::from_static(value)),
            }
        }
        access.check(&request, is_probe).map_err(|problem| problem.status().as_u16())
    }

    #[test]
    fn only_known_hosts_same_origins_and_the_token_pass() {
        let open = Access { token: None, allowed_hosts: vec!["edge.internal".into()] };
        for host in ["127.0.0.1:9900", "localhost:9900", "LOCALHOST", "[::1]:9900", "10.0.0.1", "edge.internal:9900"] {
            assert_eq!(check(&open, &[("host", host)], false), Ok(()), "{host}");
        }
        for host in ["evil.example", "127.0.0.1.evil.example:9900", "localhost.evil.example", ""] {
            assert_eq!(check(&open, &[("host", host)], false), Err(421), "{host}");
        }
        let host = ("host", "127.0.0.1:9900");
        assert_eq!(check(&open, &[host, ("host", "evil.example")], false), Err(421));
        assert_eq!(check(&open, &[host, (":target", "http://127.0.0.1:9900/api/status")], false), Ok(()));
        assert_eq!(check(&open, &[host, (":target", "http://evil.example/api/status")], false), Err(421));
        assert_eq!(check(&open, &[host, ("origin", "http://127.0.0.1:9900")], false), Ok(()));
        assert_eq!(check(&open, &[host, ("origin", "http://evil.example")], false), Err(403));
        assert_eq!(check(&open, &[host, ("origin", "null")], false), Err(403));

        let closed = Access { token: Some("0123456789abcdef".into()), allowed_hosts: Vec::new() };
        assert_eq!(check(&closed, &[host], false), Err(401));
        assert_eq!(check(&closed, &[host, ("authorization", "Bearer 0123456789abcdeX")], false), Err(401));
        assert_eq!(check(&closed, &[host, ("authorization", "Bearer 0123456789abcdef")], false), Ok(()));
        assert_eq!(check(&closed, &[host, ("authorization", "bearer 0123456789abcdef")], false), Ok(()));
        assert_eq!(check(&closed, &[host, ("authorization", "Bearer")], false), Err(401));
        assert_eq!(check(&closed, &[host], true), Ok(()));
    }
}
