//! The step that makes a request ready for a node: its key, its target and its fields.

use super::body::{BodyRules, Gate, RequestBody};
use super::downstream::Downstream;
use super::exchange::Exchange;
use super::hash_key::find_key;
use super::min_rate::MinRate;
use super::plan::{self, Candidates, Choice, ChosenBy};
use super::rate_limit::Uncounted;
use super::request::Form;
use super::respond::Reply;
use super::response_body::ResponseBody;
use super::snapshot::Route;
use super::step::Step;
use super::strong::MarkOrder;
use super::upstream::{ExchangeObserver, UpstreamContext, UpstreamRequest};
use super::worker_context::WorkerContext;
use crate::clock;
use crate::config::Protocol;
use crate::http::fields;
use crate::http::head::{RequestFields, RequestHead, Underscores};
use crate::http::problem::{Problem, ProblemKind};
use crate::http::target;
use crate::upstream::{Deadlines, Dispatch, Outgoing, Pool, RetrySafety};
use bytes::Bytes;
use http::header::{CONNECTION, EXPECT, MAX_FORWARDS, TE, TRANSFER_ENCODING, UPGRADE, VIA};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;

/// The head of a node's request.
type NodeHead = (Method, Uri, HeaderMap);

/// A request that has found its route and pool.
pub(super) struct RoutedRequest<'a> {
    pub(super) worker: &'a Rc<WorkerContext>,
    pub(super) downstream: &'a Rc<Downstream>,
    pub(super) exchange: &'a Rc<Exchange>,
    pub(super) route: &'a Arc<Route>,
    pub(super) pool: &'a Arc<Pool>,
    pub(super) form: Form<'a>,
    /// The treatment of fields and trailers with `_` in their names.
    pub(super) underscores: Underscores,
    pub(super) body_limit: u64,
    pub(super) request_buffer: u64,
    /// Set where the rate limit counts the request only when it is sent to a node.
    pub(super) uncounted: Option<Uncounted>,
    /// The rate at which its body must arrive.
    pub(super) min_rate: MinRate,
    /// The mark that it needs, where it may change what a strong route caches.
    pub(super) mark: Option<Rc<MarkOrder>>,
}

impl RoutedRequest<'_> {
    /// Returns the request for a node, or a reply that needs no node.
    pub(super) fn begin(&self, head: RequestHead) -> Result<Step, Problem> {
        if is_last_hop(&head) {
            let mut response = Response::new(ResponseBody::empty(self.exchange));
            *response.status_mut() = StatusCode::NO_CONTENT;
            return Ok(Step::Reply(Reply::complete(response)));
        }
        self.upstream_request(head).map(Step::Forward)
    }

    /// Returns the request for a node.
    pub(super) fn upstream_request(&self, head: RequestHead) -> Result<Box<UpstreamRequest>, Problem> {
        let gate = self.form.expects_continue.then(|| Rc::new(Gate::new()));
        let outgoing = self.outgoing(gate.clone());
        let mut upstream_request = self.upstream_request_with(head, outgoing)?;
        upstream_request.context.observer.gate = gate;
        Ok(upstream_request)
    }

    /// Returns the request for a node, with another body.
    pub(super) fn upstream_request_with(
        &self,
        head: RequestHead,
        body: Outgoing,
    ) -> Result<Box<UpstreamRequest>, Problem> {
        let choice = self.choose(&head.fields);
        let version = head.version;
        let takes_trailers = version == Version::HTTP_2 || head.fields.facts.takes_trailers;
        let (head, may_switch) = self.prepare(head)?;
        let mut request = Request::new(body);
        (*request.method_mut(), *request.uri_mut(), *request.headers_mut()) = head;
        let deadlines = Deadlines::from(self.exchange.started, self.pool);
        let (pool, wanted) = (Arc::clone(self.pool), choice.wanted);
        // Boxed, for it is large and is passed on often.
        Ok(Box::new(UpstreamRequest {
            context: UpstreamContext {
                worker: Rc::clone(self.worker),
                observer: ExchangeObserver {
                    exchange: Rc::clone(self.exchange),
                    gate: None,
                    // An HTTP/1.0 client would take an interim response for the final one, and HTTP/2 has another form
                    // for it.
                    wants_interim: version == Version::HTTP_11,
                    takes_trailers,
                },
                route: Arc::clone(self.route),
                choice,
                body_limit: self.body_limit,
            },
            dispatch: Dispatch::new(pool, wanted, request, deadlines, RetrySafety::ByMethod),
            may_switch,
            request_buffer: self.request_buffer,
            uncounted: self.uncounted.clone(),
            mark: self.mark.clone(),
            cache_status: None,
        }))
    }

    /// Returns the choice of a node for this request.
    fn choose(&self, fields: &RequestFields) -> Choice {
        let (pool, random) = (self.pool, || self.worker.random.borrow_mut().u64(..));
        let find = |id: &str| pool.nodes.iter().position(|node| *node.id == *id);
        let affinity = self.route.affinity.as_ref();
        let candidates = Candidates { pool: &pool.name, ring: &pool.ring, affinity, find: &find };
        let key = find_key(&self.route.hash_on, &self.form, fields);
        // Only a cookie has an expiry.
        let now = if affinity.is_some() { clock::unix_seconds() } else { 0 };
        let choice = plan::choice(&candidates, fields, key.as_ref(), now, random);
        if choice.by != ChosenBy::Random {
            self.exchange.hashed(choice.wanted.hash);
        }
        choice
    }

    /// Returns the head for the node, and whether the node may switch protocols.
    fn prepare(&self, head: RequestHead) -> Result<(NodeHead, bool), Problem> {
        let RequestHead { method, uri, version, fields } = head;
        let (address, has_trailers) = (fields.facts.address, fields.facts.takes_trailers);
        let (mut fields, upgrade) = fields.for_node(self.downstream.connection.peer_text());
        let target = self.new_target(&uri)?.unwrap_or(uri);
        let upgrade = upgrade.filter(|to| self.may_upgrade(version, to));
        if method == Method::OPTIONS
            && let Some(left) = max_forwards(&fields)
        {
            fields.insert(MAX_FORWARDS, HeaderValue::from(left.saturating_sub(1)));
        }
        if self.form.has_body && self.form.content_length.is_none() {
            // The framing of content whose length the client has not announced.
            fields.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        if self.form.has_expectation && !self.form.expects_continue {
            fields.remove(EXPECT);
        }
        self.worker.identifiers.borrow_mut().set(&mut fields);
        self.exchange.identified(address, &fields);
        fields.append(VIA, via(version));
        self.route.request_fields.apply(&mut fields);
        let may_switch = upgrade.is_some();
        if let Some(protocol) = upgrade {
            fields.insert(UPGRADE, protocol);
            fields.append(CONNECTION, HeaderValue::from_static("upgrade"));
        }
        if has_trailers {
            fields.insert(TE, HeaderValue::from_static("trailers"));
            fields.append(CONNECTION, HeaderValue::from_static("te"));
        }
        Ok(((method, target, fields), may_switch))
    }

    /// Returns the target in origin form, where it differs from that of the client.
    fn new_target(&self, uri: &Uri) -> Result<Option<Uri>, Problem> {
        let path = match &self.route.strip_prefix {
            Some(prefix) => target::strip_prefix(&self.form.path, prefix).unwrap_or(&self.form.path),
            None => &self.form.path,
        };
        // `http://host?query` has no path, and a path and query without a slash.
        let has_path = uri.path_and_query().is_none_or(|target| !target.as_str().starts_with('?'));
        if has_path && uri.path() == path && !matches!(self.form.query, Some(Cow::Owned(_))) {
            let Some(_) = uri.authority() else { return Ok(None) };
            let mut parts = http::uri::Parts::default();
            parts.path_and_query = uri.path_and_query().cloned();
            if let Ok(own) = Uri::from_parts(parts) {
                return Ok(Some(own));
            }
        }
        let text = match &self.form.query {
            Some(query) => [path, "?", query].concat(),
            None => path.to_owned(),
        };
        let parsed = Uri::from_maybe_shared(Bytes::from(text));
        parsed
            .map(Some)
            .map_err(|_| Problem::bad_request(ProblemKind::BadTarget, "the request's target is not a valid path"))
    }

    /// Returns whether a request may switch protocols: never to cleartext HTTP/2, which would be a second HTTP
    /// connection without the rules of this one.
    fn may_upgrade(&self, version: Version, protocol: &HeaderValue) -> bool {
        version >= Version::HTTP_11
            && self.pool.protocol == Protocol::Http1
            && !protocol.is_empty()
            && !fields::list_has(protocol, "h2c")
    }

    /// Returns the rules for the request's body, with a limit of its size.
    pub(super) fn body_rules(&self, limit: u64) -> BodyRules {
        BodyRules { limit, min_rate: self.min_rate, underscores: self.underscores }
    }

    fn outgoing(&self, gate: Option<Rc<Gate>>) -> Outgoing {
        if !self.form.has_body {
            return Outgoing::Empty;
        }
        let (downstream, exchange) = (self.downstream, self.exchange);
        let rules = self.body_rules(self.body_limit);
        Outgoing::Stream(Box::pin(RequestBody::new(downstream, exchange, gate, rules)))
    }
}

/// Returns whether an OPTIONS request must not be forwarded (RFC 9110 7.6.2).
fn is_last_hop(head: &RequestHead) -> bool {
    head.method == Method::OPTIONS && max_forwards(head.fields.plain()) == Some(0)
}

fn max_forwards(fields: &HeaderMap) -> Option<u32> {
    fields.get(MAX_FORWARDS).and_then(|value| value.to_str().ok()?.parse().ok())
}

/// Returns the `Via` entry for a message received in this version.
fn via(version: Version) -> HeaderValue {
    HeaderValue::from_static(match version {
        Version::HTTP_10 => "1.0 ringway",
        Version::HTTP_2 => "2.0 ringway",
        _ => "1.1 ringway",
    })
}
