//! The admin API's paths.

use super::BODY_TIMEOUT;
use super::body::Body;
use super::connections::AdminConnection;
use super::dashboard;
use super::event_stream;
use super::fleet;
use super::orders::{decision, person, purge_order};
use super::query;
use super::tap_stream;
use crate::config::NodeState;
use crate::control::{CommandResult, Control, Decided, HeardBy, Purged, Release, RingKey, SagaDecision};
use crate::http::problem::{Problem, ProblemKind};
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use serde::Serialize;
use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::watch;

/// The words for the states of a saga.
const SAGA_STATES: [&str; 5] = ["running", "compensating", "succeeded", "compensated", "stuck"];

/// The largest body of a request here, and of a plan, which may be a whole file.
const MAX_BODY: usize = 64 << 10;
const MAX_PLAN: usize = 4 << 20;
/// The slices of a ring without `slices`, and the most of them.
const SLICES: u64 = 720;
const MAX_SLICES: u64 = 4096;

pub(super) async fn answer(
    control: &dyn Control,
    mut request: Request<Incoming>,
    peer: SocketAddr,
    (place, paused): (&Arc<AdminConnection>, &watch::Receiver<bool>),
) -> Result<Response<Body>, Problem> {
    let path = request.uri().path().to_owned();
    let segments: Option<Vec<Cow<'_, str>>> =
        path.split('/').skip(1).map(|segment| percent_decode_str(segment).decode_utf8().ok()).collect();
    let segments = segments.ok_or_else(not_found)?;
    let segments: Vec<&str> = segments.iter().map(AsRef::as_ref).collect();
    if *request.method() == Method::GET && *segments == ["api", "events"] {
        let reading = place.read().ok_or_else(too_many_readers)?;
        return Ok(event_stream::respond(control.events(), request.headers(), reading, paused.clone()));
    }
    if *request.method() == Method::GET && *segments == ["api", "tap"] {
        let (filter, sampling) = query::tap(request.uri().query(), |key| control.places(key))?;
        let reading = place.read().ok_or_else(too_many_readers)?;
        let reader = control.observers().tap.open(filter, sampling).ok_or_else(too_many_readers)?;
        return Ok(tap_stream::respond(reader, reading, paused.clone()));
    }
    match *request.method() {
        Method::GET | Method::HEAD => place.working(read(control, &request, &segments)).await,
        Method::POST => {
            let scope = scope(&request)?;
            change(control, &segments, request.body_mut(), (peer, place, scope)).await
        }
        Method::DELETE => place.working(remove(control, &segments, peer)).await,
        _ => Err(wrong_method("GET, HEAD, POST, DELETE")),
    }
}

async fn read(
    control: &dyn Control,
    request: &Request<Incoming>,
    segments: &[&str],
) -> Result<Response<Body>, Problem> {
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
        ["api", "pools", pool, "ring"] => ring(control, request, pool),
        ["api", "history"] => {
            let after = query::number(request.uri().query(), "after", 0)?;
            Ok(respond(
                StatusCode::OK,
                "application/json",
                serde_json::to_vec(&control.history(after)).unwrap_or_default().into(),
            ))
        }
        ["api", "top"] => {
            let (by, measure, most) = query::top(request.uri().query())?;
            Ok(as_json(&control.observers().top.ask(by, measure, most, Instant::now())))
        }
        ["api", "check"] => {
            let unreadable = |error| Problem::new(ProblemKind::ReloadFailed, error);
            control.check().await.map(|found| as_json(&found)).map_err(unreadable)
        }
        ["api", "idempotency"] => match parameter(request, "key") {
            None if parameter(request, "state").as_deref() == Some("unknown") => {
                control.unknown().await.map(|found| as_json(&found)).map_err(store_failed)
            }
            Some(key) => control.idempotency(&key).await.map(|found| as_json(&found)).map_err(store_failed),
            None => Err(missing_key()),
        },
        ["api", "sagas"] => {
            let state = parameter(request, "state");
            if let Some(state) = state.as_deref().filter(|state| !SAGA_STATES.contains(state)) {
                let detail = format!("there is no state `{state}`: use one of {}", SAGA_STATES.join(", "));
                return Err(Problem::new(ProblemKind::BadDecision, detail));
            }
            control.sagas(state.as_deref()).await.map(|found| as_json(&found)).map_err(store_failed)
        }
        ["api", "fleet", "groups", ref group @ ..] if !group.is_empty() => {
            Ok(as_json(&control.group(&group.join("/"))))
        }
        ["api", "fleet"] => control.fleet().map(|fleet| as_json(&fleet)).ok_or_else(no_fleet),
        ["api", "events" | "tap"] => Err(wrong_method("GET")),
        ["api", "idempotency", _] => Err(wrong_method("DELETE")),
        ["api", "reload" | "drain" | "plan"]
        | ["api", "fleet", _, "forget"]
        | ["api", "sagas", _, "retry" | "resolve"]
        | ["api", "cache", "purge"]
        | ["api", "pools", _, "nodes", _, "up" | "drain" | "down"] => Err(wrong_method("POST")),
        _ => dashboard::respond(request.uri().path(), request.headers()).ok_or_else(not_found),
    }
}

/// Returns the nodes of a key or of its place, or the owners of the slices of a ring.
fn ring(control: &dyn Control, request: &Request<Incoming>, pool: &str) -> Result<Response<Body>, Problem> {
    let owners = |key: RingKey<'_>| control.owners(pool, key).map(|owners| as_json(&owners)).ok_or_else(not_found);
    let place = |digits: String| u64::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 16);
    match (parameter(request, "key"), parameter(request, "key_hash"), parameter(request, "slices")) {
        (Some(key), ..) => owners(RingKey::Text(&key)),
        (None, Some(digits), _) => owners(RingKey::Place(place(digits).ok_or_else(missing_key)?)),
        (None, None, Some(_)) => {
            let count = query::number(request.uri().query(), "slices", SLICES)?.clamp(1, MAX_SLICES);
            let slices = control.slices(pool, usize::try_from(count).unwrap_or_default()).ok_or_else(not_found)?;
            Ok(respond(StatusCode::OK, "application/json", serde_json::to_vec(&slices).unwrap_or_default().into()))
        }
        (None, None, None) => Err(missing_key()),
    }
}

async fn change(
    control: &dyn Control,
    segments: &[&str],
    body: &mut Incoming,
    (peer, place, scope): (SocketAddr, &AdminConnection, Scope),
) -> Result<Response<Body>, Problem> {
    match *segments {
        ["api", "cache", "purge"] => {
            let order = purge_order(&read_body(body).await?).map_err(bad_purge)?;
            let purged = order.to_string();
            let purged_by = place.working(control.purge(order)).await;
            let Purged { responses, heard_by, unmarked } = purged_by.map_err(bad_purge)?;
            let noun = if responses == 1 { "response" } else { "responses" };
            let heard = heard_by.as_ref().map(in_words).unwrap_or_default();
            let stamps = match unmarked {
                Some(true) => "; unmarked: too few nodes of `fleet.redis` have its stamp, and get it later",
                _ => "",
            };
            let responses_of = Some(responses);
            let result = CommandResult { responses: responses_of, heard_by, unmarked, ..CommandResult::success() };
            Ok(as_json(&result.with_detail(format!("purged {purged}: {responses} stored {noun}{heard}{stamps}"))))
        }
        ["api", "fleet", process, "forget"] => {
            place.working(fleet::forget(control, process)).await.map(|result| as_json(&result))
        }
        ["api", "reload" | "drain"] if scope == Scope::Fleet => {
            let detail = "a reload and a drain are for one proxy: `scope=fleet` is for the states of nodes";
            Err(bad_decision(detail.to_owned()))
        }
        ["api", "reload"] => match place.working(control.reload()).await {
            Ok(said) => Ok(as_json(&CommandResult::success().with_detail(said))),
            Err(said) => Err(Problem::new(ProblemKind::ReloadFailed, said)),
        },
        ["api", "drain"] => {
            control.drain();
            Ok(as_json(&CommandResult::success().with_detail("draining")))
        }
        ["api", "pools", pool, "nodes", id, word] => {
            let state = NodeState::from_word(word).ok_or_else(not_found)?;
            if scope == Scope::Fleet {
                let by = by(person(&read_body(body).await?).map_err(bad_decision)?, peer);
                let set = place.working(fleet::set_state(control, (pool, id), state, &by)).await;
                return set.map(|result| as_json(&result));
            }
            match control.set_node_state(pool, id, state) {
                Some(true) => {
                    let [pool, node, state] = [pool, id, word].map(|text| Some(text.to_owned()));
                    Ok(as_json(&CommandResult { pool, node, state, ..CommandResult::success() }))
                }
                None => {
                    let detail = "another process takes over; say it again on a new connection";
                    Err(Problem::new(ProblemKind::BeingReplaced, detail).retry_after(1).closing())
                }
                Some(false) => {
                    let detail = format!("the pool `{pool}` has no node `{id}`, or there is no such pool");
                    Err(Problem::new(ProblemKind::NoSuchNode, detail))
                }
            }
        }
        ["api", "plan"] => {
            let bad = |detail| Problem::new(ProblemKind::BadPlan, detail);
            let order = serde_json::from_slice(&read_up_to(body, MAX_PLAN).await?);
            let order = order.map_err(|error| bad(format!("expected a JSON object with a plan: {error}")))?;
            place.working(control.plan(order)).await.map(|plan| as_json(&plan)).map_err(bad)
        }
        ["api", "sagas", id, word @ ("retry" | "resolve")] => {
            let (decision, name) = decision(word, &read_body(body).await?).map_err(bad_decision)?;
            let by = by(name, peer);
            decide(id, decision, place.working(control.decide(id, decision, &by)).await.map_err(store_failed)?)
        }
        ["api", "idempotency", _] => Err(wrong_method("DELETE")),
        ["api", "events" | "fleet" | "sagas" | "tap" | "top" | "history" | "check"] => Err(wrong_method("GET")),
        _ => Err(not_found()),
    }
}

/// The proxies that an order is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    Proxy,
    Fleet,
}

/// Returns the proxies that an order is for, by `scope` in the query.
fn scope(request: &Request<Incoming>) -> Result<Scope, Problem> {
    match parameter(request, "scope").as_deref() {
        None | Some("proxy") => Ok(Scope::Proxy),
        Some("fleet") => Ok(Scope::Fleet),
        Some(other) => Err(bad_decision(format!("there is no scope `{other}`: use `proxy` or `fleet`"))),
    }
}

/// Returns the person and the address that an order comes from.
fn by(name: Option<String>, peer: SocketAddr) -> String {
    name.map_or_else(|| peer.to_string(), |name| format!("{name} at {peer}"))
}

fn decide(id: &str, decision: SagaDecision, decided: Decided) -> Result<Response<Body>, Problem> {
    match decided {
        Decided::Accepted => {
            let result = CommandResult { id: Some(id.to_owned()), ..CommandResult::success() };
            Ok(as_json(&result.with_detail(format!("{}: {id}", decision.words()))))
        }
        Decided::Unfit => {
            let detail = format!(
                "the saga `{id}` is not stuck, or has turned back and cannot be resolved as succeeded; see `/api/sagas`"
            );
            Err(Problem::new(ProblemKind::SagaNotStuck, detail))
        }
        Decided::LacksPool(pool) => {
            let detail = format!("this proxy has no pool `{pool}`, which the saga `{id}` uses: decide at another one");
            Err(Problem::new(ProblemKind::SagaElsewhere, detail))
        }
        Decided::Absent => {
            let detail = format!("there is no saga `{id}`; see `/api/sagas`");
            Err(Problem::new(ProblemKind::NoSuchSaga, detail))
        }
    }
}

fn bad_decision(detail: String) -> Problem {
    Problem::new(ProblemKind::BadDecision, detail)
}

async fn remove(control: &dyn Control, segments: &[&str], peer: SocketAddr) -> Result<Response<Body>, Problem> {
    let ["api", "idempotency", id] = *segments else { return Err(wrong_method("GET, HEAD, POST")) };
    match control.release(id, peer).await.map_err(store_failed)? {
        Release::Released => {
            let released = CommandResult { id: Some(id.to_owned()), ..CommandResult::success() };
            Ok(as_json(&released.with_detail("released")))
        }
        Release::Running => {
            let detail = "a proxy still works on this request; what it comes to will be known";
            Err(Problem::new(ProblemKind::RecordRunning, detail))
        }
        Release::Absent => {
            let detail = format!("there is no record `{id}`; see `/api/idempotency?key=KEY`");
            Err(Problem::new(ProblemKind::NoSuchRecord, detail))
        }
    }
}

fn too_many_readers() -> Problem {
    let detail = "as many clients read streams as may; end one of them, or ask again later";
    Problem::new(ProblemKind::TooManyReaders, detail).retry_after(5)
}

fn missing_key() -> Problem {
    let detail = "give the key as `?key=KEY`; for a ring, its place as `?key_hash=` with 16 hexadecimal digits will do";
    Problem::new(ProblemKind::MissingKey, detail)
}

fn store_failed(error: String) -> Problem {
    let detail = format!("the idempotency store does not work: {error}");
    Problem::new(ProblemKind::StoreUnavailable, detail)
}

/// Returns a small body, complete.
async fn read_body(body: &mut Incoming) -> Result<Bytes, Problem> {
    read_up_to(body, MAX_BODY).await
}

/// Returns a body of at most so many bytes, complete.
async fn read_up_to(body: &mut Incoming, most: usize) -> Result<Bytes, Problem> {
    let Ok(whole) = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, most).collect()).await else {
        let detail = format!("the body did not arrive within {BODY_TIMEOUT:?}");
        return Err(Problem::new(ProblemKind::RequestTimeout, detail).closing());
    };
    whole.map(http_body_util::Collected::to_bytes).map_err(|_| {
        let detail = format!("the body is larger than {most} bytes, or did not arrive whole");
        Problem::new(ProblemKind::ContentTooLarge, detail)
    })
}

/// Returns which proxies have applied a purge, as the end of a sentence.
fn in_words(heard_by: &HeardBy) -> String {
    let HeardBy { members, of, missing, complete, published } = heard_by;
    let mut words = format!("; heard by {members} of {of} proxies");
    if !missing.is_empty() {
        words += &format!("; missing: {}", missing.join(", "));
    }
    if !published {
        words += "; not yet published: too few nodes of the bus have it, and it is sent again until they do";
    } else if !complete && missing.is_empty() {
        words += "; the bus does not work, so that there may be others";
    }
    words
}

fn no_fleet() -> Problem {
    Problem::new(ProblemKind::NoSuchMember, "no fleet is configured: the block `fleet` adds this proxy to one")
}

fn bad_purge(detail: String) -> Problem {
    Problem::new(ProblemKind::BadPurge, detail)
}

fn wrong_method(allowed: &'static str) -> Problem {
    Problem::method_not_allowed(format!("use one of {allowed} here"), allowed)
}

pub(super) fn not_found() -> Problem {
    let detail = "there is nothing at this path; see `/`, `/api/status`, `/api/config`, `/api/pools`, `/metrics`";
    Problem::new(ProblemKind::NotFound, detail)
}

/// Returns a query parameter, percent-decoded.
fn parameter(request: &Request<Incoming>, name: &str) -> Option<String> {
    let query = request.uri().query()?;
    let raw = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
    Some(percent_encoding::percent_decode_str(&raw.replace('+', " ")).decode_utf8_lossy().into_owned())
}

fn as_json(value: &impl Serialize) -> Response<Body> {
    let mut body = serde_json::to_vec_pretty(value).unwrap_or_default();
    body.push(b'\n');
    respond(StatusCode::OK, "application/json", body.into())
}

fn text(status: StatusCode, body: &'static str) -> Response<Body> {
    respond(status, "text/plain; charset=utf-8", Bytes::from_static(body.as_bytes()))
}

fn respond(status: StatusCode, media_type: &'static str, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
