//! The admin API's paths.

use crate::config::NodeState;
use crate::control::Control;
use crate::http::problem::Problem;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use serde_json::{Value as Json, json};

pub(super) async fn answer(
    control: &dyn Control,
    request: &Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Problem> {
    let segments: Vec<&str> = request.uri().path().split('/').skip(1).collect();
    match *request.method() {
        Method::GET | Method::HEAD => read(control, request, &segments),
        Method::POST => change(control, &segments).await,
        _ => Err(wrong_method("GET, HEAD, POST")),
    }
}

fn read(
    control: &dyn Control,
    request: &Request<Incoming>,
    segments: &[&str],
) -> Result<Response<Full<Bytes>>, Problem> {
    match *segments {
        ["livez"] => Ok(text(StatusCode::OK, "ok\n")),
        ["readyz"] if control.is_ready() => Ok(text(StatusCode::OK, "ready\n")),
        ["readyz"] => Ok(text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n")),
        ["metrics"] => {
            let page = Bytes::from(control.metrics());
            Ok(respond(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", page))
        }
        ["api", "status"] => Ok(as_json(&control.status())),
        ["api", "config"] => Ok(as_json(&control.config())),
        ["api", "pools"] => Ok(as_json(&control.pools())),
        ["api", "pools", pool, "ring"] => match parameter(request, "key") {
            Some(key) => control.owners(pool, &key).map(|owners| as_json(&owners)).ok_or_else(not_found),
            None => {
                let detail = "give the key as `?key=KEY`";
                Err(Problem::new(StatusCode::BAD_REQUEST, "missing-key", "http_request_error", detail))
            }
        },
        ["api", "reload" | "drain"] | ["api", "pools", _, "nodes", _, "up" | "drain" | "down"] => {
            Err(wrong_method("POST"))
        }
        _ => Err(not_found()),
    }
}

async fn change(control: &dyn Control, segments: &[&str]) -> Result<Response<Full<Bytes>>, Problem> {
    match *segments {
        ["api", "reload"] => match control.reload().await {
            Ok(said) => Ok(as_json(&json!({ "result": "success", "detail": said }))),
            Err(said) => {
                Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "reload-failed", "proxy_configuration_error", said))
            }
        },
        ["api", "drain"] => {
            control.drain();
            Ok(as_json(&json!({ "result": "success", "detail": "draining" })))
        }
        ["api", "pools", pool, "nodes", id, word] => {
            let state = NodeState::from_word(word).ok_or_else(not_found)?;
            match control.set_node_state(pool, id, state) {
                true => Ok(as_json(&json!({ "result": "success", "pool": pool, "node": id, "state": word }))),
                false => {
                    let detail = format!("the pool `{pool}` has no node `{id}`, or there is no such pool");
                    Err(Problem::new(StatusCode::NOT_FOUND, "no-such-node", "destination_not_found", detail))
                }
            }
        }
        _ => Err(not_found()),
    }
}

fn wrong_method(allowed: &str) -> Problem {
    let detail = format!("use one of {allowed} here");
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "http_request_error", detail)
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

fn as_json(value: &Json) -> Response<Full<Bytes>> {
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
