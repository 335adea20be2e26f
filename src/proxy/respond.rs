//! The last step: the reply of a step, the fields that the proxy adds to it, and the proxy's own replies.

use super::downstream::Phase;
use super::exchange::Exchange;
use super::request::Form;
use super::response_body::ResponseBody;
use super::snapshot::{Action, Route};
use crate::cache::CacheStatus;
use crate::http::fields::CACHE_STATUS;
use crate::http::problem::{Problem, ProblemKind};
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, LOCATION, SET_COOKIE};
use http::{HeaderMap, HeaderValue, Response, StatusCode, Version};
use http_body::Body as _;
use serde::Serialize;
use std::rc::Rc;

/// A response of a step, with what [`finish`] adds.
pub(super) struct Reply {
    response: Response<ResponseBody>,
    additions: Additions,
}

/// The header fields that a reply gets when it leaves.
#[derive(Default)]
struct Additions {
    /// The route's `response_headers` apply.
    takes_route_fields: bool,
    cache_status: Option<CacheStatus>,
    /// An affinity cookie.
    cookie: Option<HeaderValue>,
}

impl Reply {
    /// Returns a reply that a node, the cache or the configuration has made: the route's response fields apply to it.
    pub(super) fn new(response: Response<ResponseBody>) -> Reply {
        let additions = Additions { takes_route_fields: true, ..Additions::default() };
        Reply { response, additions }
    }

    /// Returns a reply to which the route's response fields do not apply: a stored result has them already.
    pub(super) fn complete(response: Response<ResponseBody>) -> Reply {
        Reply { response, additions: Additions::default() }
    }

    /// Returns the reply to a request that the proxy refuses or could not bring to a node.
    pub(super) fn problem(problem: &Problem, exchange: &Rc<Exchange>) -> Reply {
        exchange.refused(problem.name());
        let (fields, body) = problem.render();
        Reply::complete(respond(problem.status(), fields, body, exchange))
    }

    pub(super) fn with_cache_status(mut self, status: Option<CacheStatus>) -> Reply {
        self.additions.cache_status = status;
        self
    }

    /// Says where the state of what was asked for is.
    pub(super) fn with_location(mut self, location: HeaderValue) -> Reply {
        self.response.headers_mut().insert(LOCATION, location);
        self
    }

    pub(super) fn with_cookie(mut self, cookie: Option<HeaderValue>) -> Reply {
        self.additions.cookie = cookie;
        self
    }
}

/// Adds the fields that [`finish`] adds to every response of a route, for a result that is stored with them.
pub(super) fn add_route_fields(fields: &mut HeaderMap, exchange: &Exchange, cache_status: Option<CacheStatus>) {
    exchange.apply_response_fields(fields);
    add_cache_status(fields, cache_status);
}

fn add_cache_status(fields: &mut HeaderMap, status: Option<CacheStatus>) {
    if let Some(status) = status {
        fields.append(CACHE_STATUS, status.to_value());
    }
}

/// The one exit: returns the response for the connection, and completes the exchange.
pub(super) fn finish(reply: Reply, exchange: &Rc<Exchange>) -> Response<ResponseBody> {
    let reply = match reply.response.status().is_success() && exchange.downstream().is_connect() {
        true => Reply::problem(&no_switch(), exchange),
        false => reply,
    };
    let Reply { mut response, additions } = reply;
    let Additions { takes_route_fields, cache_status, cookie } = additions;
    let fields = response.headers_mut();
    if takes_route_fields {
        exchange.apply_response_fields(fields);
    }
    if let Some(cookie) = cookie {
        fields.append(SET_COOKIE, cookie);
    }
    add_cache_status(fields, cache_status);
    if let Some(session) = exchange.session() {
        let given = &exchange.downstream().connection.session;
        session.finish(response.headers_mut(), given, !takes_route_fields);
    }
    let downstream = exchange.downstream();
    // A connection that switches protocols has no next request.
    if downstream.stream.is_some() {
        if exchange.is_head() {
            response.body_mut().leave_out();
        }
        // HTTP/2 announces the end of a connection by GOAWAY.
        response.headers_mut().remove(CONNECTION);
    } else if (downstream.connection.leaving.get() || downstream.connection.is_spent.get())
        && response.status() != StatusCode::SWITCHING_PROTOCOLS
    {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if downstream.http1.is_http10.get()
        && response.body().size_hint().exact().is_none()
        && !response.headers().contains_key(CONTENT_LENGTH)
    {
        // The end of the response is the end of the connection. hyper would add `keep-alive` to an HTTP/1.1 response.
        *response.version_mut() = Version::HTTP_10;
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if exchange.is_head() {
        // The body of an answer to a HEAD is never polled.
        exchange.ended("completed");
    }
    exchange.add_rate_limit(response.headers_mut());
    exchange.answered(response.status());
    downstream.offer(true);
    downstream.http1.phase.set(Phase::Answer);
    response
}

/// The request for a WebSocket got a response that is none.
fn no_switch() -> Problem {
    let detail = "the node answered the WebSocket handshake, and did not switch protocols";
    Problem::new(ProblemKind::UpstreamFailed, detail).with_token("http_upgrade_failed")
}

/// Returns the reply of a route without a pool.
///
/// `None` for a route with a pool; a problem where a redirection needs a host and the request names none.
pub(super) fn fixed(route: &Route, form: &Form<'_>, exchange: &Rc<Exchange>) -> Result<Option<Reply>, Problem> {
    let mut fields = HeaderMap::new();
    let (status, body) = match &route.action {
        Action::Forward(_) | Action::Saga(_) | Action::SagaStates => return Ok(None),
        Action::Redirect { to, .. }
            if form.host.is_empty() && to.as_bytes().windows(6).any(|part| part == b"{host}") =>
        {
            return Err(Problem::bad_request(
                ProblemKind::BadHost,
                "the redirection needs a host, and the request names none",
            ));
        }
        Action::Redirect { to, status } => {
            fields.insert(LOCATION, redirect_target(to, form));
            (*status, Bytes::new())
        }
        Action::Respond { status, body } => {
            if !body.is_empty() {
                fields.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            }
            (*status, body.clone())
        }
    };
    // These statuses have no content, whatever the configuration is (RFC 9110 6.4.1).
    let has_content = !matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED);
    let body = if has_content { body } else { Bytes::new() };
    Ok(Some(Reply::new(respond(status, fields, body, exchange))))
}

/// Where a redirection leads: the configured place, with parts of the request in it.
pub(crate) fn redirect_target(to: &HeaderValue, form: &Form<'_>) -> HeaderValue {
    let Some(text) = to.to_str().ok().filter(|text| text.contains('{')) else { return to.clone() };
    let query = form.query.as_deref().map_or(String::new(), |query| format!("?{query}"));
    let uri = format!("{}{query}", form.path);
    // One pass, so that nothing of the request is taken for a placeholder.
    let mut target = String::with_capacity(text.len() + uri.len());
    let mut rest = text;
    while let Some(at) = rest.find('{') {
        target.push_str(&rest[..at]);
        rest = &rest[at..];
        let parts = [("{host}", &*form.host), ("{path}", &*form.path), ("{uri}", uri.as_str())];
        match parts.into_iter().find(|(name, _)| rest.starts_with(name)) {
            Some((name, value)) => {
                target.push_str(value);
                rest = &rest[name.len()..];
            }
            None => {
                target.push('{');
                rest = &rest[1..];
            }
        }
    }
    target.push_str(rest);
    // Parts of a request that was read are made of visible characters.
    HeaderValue::try_from(target).unwrap_or_else(|_| to.clone())
}

/// Returns a reply of the proxy's own in JSON, which no cache keeps.
pub(super) fn json(value: &impl Serialize, exchange: &Rc<Exchange>) -> Reply {
    let mut fields = HeaderMap::new();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let body = serde_json::to_vec(value).unwrap_or_default();
    Reply::complete(respond(StatusCode::OK, fields, body.into(), exchange))
}

fn respond(status: StatusCode, fields: HeaderMap, body: Bytes, exchange: &Rc<Exchange>) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::full(body, exchange));
    *response.status_mut() = status;
    *response.headers_mut() = fields;
    response
}
