//! The admin API's paths.

use crate::control::Control;
use crate::http::problem::Problem;
use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use serde_json::Value as Json;

pub(super) fn answer(control: &dyn Control, request: &Request<Incoming>) -> Result<Response<Full<Bytes>>, Problem> {
    let segments: Vec<&str> = request.uri().path().split('/').skip(1).collect();
    let read: Result<Response<Full<Bytes>>, Problem> = match segments[..] {
        ["livez"] => Ok(text(StatusCode::OK, "ok\n")),
        ["readyz"] if control.is_ready() => Ok(text(StatusCode::OK, "ready\n")),
        ["readyz"] => Ok(text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n")),
        ["metrics"] => {
            let page = Bytes::from(control.metrics());
            Ok(respond(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", page))
        }
        ["api", "status"] => Ok(json(&control.status())),
        ["api", "config"] => Ok(json(&control.config())),
        ["api", "pools"] => Ok(json(&control.pools())),
        ["api", "pools", pool, "ring"] => match parameter(request, "key") {
            Some(key) => control.owners(pool, &key).map(|owners| json(&owners)).ok_or_else(not_found),
            None => Err(Problem::new(
                StatusCode::BAD_REQUEST,
                "missing-key",
                "http_request_error",
                "give the key as `?key=KEY`",
            )),
        },
        _ => Err(not_found()),
    };
    let response = read?;
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return Ok(response);
    }
    let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "use GET\n");
    refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    Ok(refused)
}

pub(super) fn not_found() -> Problem {
    let detail = "there is nothing at this path; see `/api/status`, `/api/config`, `/api/pools`, `/metrics`";
    Problem::new(StatusCode::NOT_FOUND, "not-found", "destination_not_found", detail)
}

/// A query parameter, percent-decoded.
fn parameter(request: &Request<Incoming>, name: &str) -> Option<String> {
    let query = request.uri().query()?;
    let raw = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
    Some(percent_encoding::percent_decode_str(&raw.replace('+', " ")).decode_utf8_lossy().into_owned())
}

fn json(value: &Json) -> Response<Full<Bytes>> {
    let mut body = serde_json::to_vec_pretty(value).unwrap_or_default();
    body.push(b'\n');
    respond(StatusCode::OK, "application/json", body.into())
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    respond(status, "text/plain; charset=utf-8", Bytes::from_static(body.as_bytes()))
}

fn respond(status: StatusCode, media_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
