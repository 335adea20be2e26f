//! Validation of sagas: references to values that are known, steps with their undos, and the settings that a route with
//! a saga needs or cannot have.

use super::diagnostics::{Diagnostics, Span};
use super::model::{
    Level, OnStoreFailure, OnUnknown, Route, RouteIdempotency, Saga, SagaRequest, SagaStep, Settings, StoreKind,
};
use super::read::{Spanned, Verbatim, did_you_mean};
use super::template_fields::{References, is_credential};
use crate::http::{fields, head, method};
use crate::template::Reference;
use http::header::{CONTENT_LENGTH, HOST};
use http::{HeaderName, Method, StatusCode};

/// The most steps of a saga.
const MAX_STEPS: usize = 8;

/// Validates the saga of a route, and the settings of the route beside it.
pub(super) fn validate(
    settings: &Settings,
    route: &Route,
    saga: &Spanned<Verbatim<Saga>>,
    diagnostics: &mut Diagnostics,
) {
    match &route.idempotency {
        Some(rules) => idempotency(route, rules, diagnostics),
        None => {
            let message = format!(
                "the saga of the route `{}` needs `idempotency: {{ required: true }}`: a repeated request without a key would run every step again",
                route.name.value
            );
            diagnostics.error(saga.span, message);
        }
    }
    surroundings(route, diagnostics);
    store(settings, diagnostics);
    if saga.stuck_after <= saga.deadline {
        diagnostics.error(saga.span, "`stuck_after` of the saga is not longer than its `deadline`");
    }
    let is_causal = |route: &Route| route.level() == Level::Causal;
    if let Some(group) = saga.changes.first().filter(|_| !settings.routes.iter().any(is_causal)) {
        let message = "no route of this file has `consistency: { level: causal }`, so that `changes` changes nothing";
        diagnostics.warning(group.span, message);
    }
    steps(settings, saga, diagnostics);
    if let Some(body) = &saga.respond.body {
        let status = saga.respond.status;
        if [StatusCode::NO_CONTENT, StatusCode::RESET_CONTENT, StatusCode::NOT_MODIFIED].contains(&status) {
            diagnostics.error(saga.span, format!("an answer with the status {} has no body", status.as_u16()));
        }
        Place::answer(saga).references(&body.references, diagnostics);
    }
}

fn idempotency(route: &Route, rules: &RouteIdempotency, diagnostics: &mut Diagnostics) {
    let (at, name) = (route.name.span, &route.name.value);
    if !rules.required {
        let message = format!(
            "the saga of the route `{name}` needs `required: true` under `idempotency`: a repeated request without a key would run every step again"
        );
        diagnostics.error(at, message);
    }
    if rules.on_unknown.value == OnUnknown::Retry {
        let message = "a saga does not go with `on_unknown: retry`: it finds out what became of its steps itself";
        diagnostics.error(rules.on_unknown.span, message);
    }
    if rules.on_store_failure.value == OnStoreFailure::Forward {
        let message = "a saga does not go with `on_store_failure: forward`: without its log nothing could be undone";
        diagnostics.error(rules.on_store_failure.span, message);
    }
    let is_without_key = |method: &&Method| !rules.methods.contains(method);
    let others: Vec<&str> = route.methods.iter().filter(is_without_key).map(Method::as_str).collect();
    if route.methods.is_empty() || !others.is_empty() {
        let found = if route.methods.is_empty() { "all".to_owned() } else { others.join(", ") };
        let message = format!(
            "the saga of the route `{name}` needs `methods`, each of them in `idempotency.methods` too: the route takes {found}"
        );
        diagnostics.error(at, message);
    }
}

/// A saga asks its pools itself, with requests of its own.
fn surroundings(route: &Route, diagnostics: &mut Diagnostics) {
    let rules = &route.request_headers;
    let set = rules.set.entries.first().map(|(name, _)| name.span);
    if let Some(span) = set.or(rules.remove.first().map(|name| name.span)) {
        let message = "`request_headers` belongs to a `pool`; the requests of a saga have `headers` of their own";
        diagnostics.error(span, message);
    }
}

fn store(settings: &Settings, diagnostics: &mut Diagnostics) {
    let reason = match settings.idempotency_store.kind.value {
        StoreKind::Sqlite | StoreKind::Postgres => return,
        StoreKind::Memory => "`memory` forgets on a restart: a saga in its middle could neither go on nor be undone",
        StoreKind::Redis => {
            "`redis` keeps no log that a claim and its saga enter together and that survives a failover"
        }
    };
    let message = format!("the idempotency store cannot keep sagas: {reason}; use `sqlite` or `postgres`");
    diagnostics.error(settings.idempotency_store.kind.span, message);
}

fn steps(settings: &Settings, saga: &Spanned<Verbatim<Saga>>, diagnostics: &mut Diagnostics) {
    // A step that could not be read is missing here too, but that has been told.
    if saga.steps.is_empty() && !diagnostics.has_errors() {
        diagnostics.error(saga.span, "a saga needs at least one step");
    }
    if let Some(step) = saga.steps.get(MAX_STEPS) {
        diagnostics.error(step.name.span, format!("a saga has at most {MAX_STEPS} steps, found {}", saga.steps.len()));
    }
    diagnostics.unique("step", saga.steps.iter().map(|step| (step.name.as_str(), step.name.span)));
    for (index, step) in saga.steps.iter().enumerate() {
        let name = &step.name;
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if name.is_empty() || name.len() > 64 || !name.bytes().all(is_plain) {
            diagnostics.error(name.span, "expected a step name of 1 to 64 letters, digits, `-` and `_`");
        }
        let is_last = index + 1 == saga.steps.len();
        if step.compensate.is_none() && !is_last {
            let message = format!(
                "the step `{}` has no `compensate`, and a step after it may fail: say how it is undone, or write `compensate: none`",
                name.value
            );
            diagnostics.error(name.span, message);
        }
        request(settings, &Place::step(saga, index), &step.request, diagnostics);
        if let Some(undo) = step.compensate.as_ref().and_then(|compensate| compensate.request()) {
            request(settings, &Place::undo(saga, index), undo, diagnostics);
        }
    }
}

fn request(settings: &Settings, place: &Place<'_>, request: &SagaRequest, diagnostics: &mut Diagnostics) {
    let pool = &request.pool;
    if !settings.pools.names().any(|name| name == pool.value) {
        let advice = match did_you_mean(pool, settings.pools.names()) {
            Some(meant) => format!("; did you mean `{meant}`?"),
            None => "; name one of the pools under `pools`".to_owned(),
        };
        diagnostics.error(pool.span, format!("there is no pool `{}`{advice}", pool.value));
    }
    let verb = &request.method.value;
    if [Method::CONNECT, Method::TRACE].contains(verb) {
        diagnostics.error(request.method.span, format!("a step cannot be a {verb}"));
    } else if request.body.is_some() && method::is_safe(verb) {
        diagnostics.error(request.method.span, format!("a {verb} has no body"));
    }
    place.references(&request.path.references, diagnostics);
    if let Some(body) = &request.body {
        place.references(&body.references, diagnostics);
    }
    let mut seen: Vec<&HeaderName> = Vec::new();
    for (name, value) in &request.headers.entries {
        if fields::is_hop_by_hop(name) || [CONTENT_LENGTH, HOST].contains(name) || head::is_claim(name.as_str()) {
            diagnostics.error(name.span, format!("the proxy sets `{}` itself", name.value));
        } else if name.as_str() == "idempotency-key" {
            let message = "the proxy gives every step an `idempotency-key` of its own";
            diagnostics.error(name.span, message);
        } else if is_credential(name) && !value.is_from_environment() && value.references.unknown.is_empty() {
            let message = format!(
                "the steps of a saga are stored, and `{}` would be too: take it from the environment, with `${{env.NAME}}`",
                name.value
            );
            diagnostics.error(name.span, message);
        }
        if seen.contains(&&name.value) {
            diagnostics.error(name.span, format!("the field `{}` is set twice", name.value));
        }
        seen.push(&name.value);
        place.references(&value.references, diagnostics);
    }
}

/// A place of templates, and the steps whose answers are known there.
struct Place<'a> {
    saga: &'a Saga,
    /// The number of steps that have been done.
    done: usize,
    /// The step that is sent or undone, whose key is known.
    current: Option<(&'a SagaStep, Sending)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sending {
    Step,
    Undo,
}

impl<'a> Place<'a> {
    fn step(saga: &'a Saga, index: usize) -> Place<'a> {
        Place { saga, done: index, current: Some((&saga.steps[index], Sending::Step)) }
    }

    fn undo(saga: &'a Saga, index: usize) -> Place<'a> {
        Place { saga, done: index, current: Some((&saga.steps[index], Sending::Undo)) }
    }

    fn answer(saga: &'a Saga) -> Place<'a> {
        Place { saga, done: saga.steps.len(), current: None }
    }

    /// Reports references to values that are not known here.
    fn references(&self, references: &References, diagnostics: &mut Diagnostics) {
        for unknown in &references.unknown {
            let advice = match self.meant(unknown) {
                Some(meant) => format!("; did you mean `${{{meant}}}`?"),
                None => format!("; known here: {}", self.known().join(", ")),
            };
            diagnostics.error(unknown.span, format!("`${{{}}}` stands for nothing{advice}", unknown.value));
        }
        for reference in &references.known {
            self.reference(&reference.value, reference.span, diagnostics);
        }
    }

    fn reference(&self, reference: &Reference, span: Span, diagnostics: &mut Diagnostics) {
        if let Reference::RequestHeader(name) = reference
            && name.parse::<HeaderName>().is_ok_and(|name| is_credential(&name))
        {
            let message = format!(
                "`${{{reference}}}` would be stored with the saga, and a client's credentials are not: use `${{env.NAME}}`"
            );
            diagnostics.error(span, message);
        }
        let Some(step) = reference.step() else { return };
        let is_own = self.current.is_some_and(|(own, _)| own.name.value == step);
        let is_key = matches!(reference, Reference::StepKey(_));
        if self.saga.steps[..self.done].iter().any(|done| done.name.value == step) || (is_own && is_key) {
            return;
        }
        let exists = self.saga.steps.iter().any(|other| other.name.value == step);
        let message = match self.current {
            _ if !exists => {
                let advice = match did_you_mean(step, self.saga.steps.iter().map(|step| step.name.as_str())) {
                    Some(meant) => format!("; did you mean `{meant}`?"),
                    None => format!("; known here: {}", self.known().join(", ")),
                };
                format!("there is no step `{step}`{advice}")
            }
            Some((_, Sending::Undo)) if is_own => format!(
                "the answer of `{step}` may never have been seen when it is undone; `${{steps.{step}.key}}` is always known"
            ),
            Some((current, sending)) => {
                let done = if sending == Sending::Undo { "undone" } else { "sent" };
                format!(
                    "`${{{reference}}}` is not known when `{}` is {done}; known here: {}",
                    current.name.value,
                    self.known().join(", ")
                )
            }
            None => return,
        };
        diagnostics.error(span, message);
    }

    /// Returns the paths that are known here, without those below them.
    fn known(&self) -> Vec<String> {
        let mut known = ["request.body", "request.header.NAME", "env.NAME"].map(str::to_owned).to_vec();
        for step in &self.saga.steps[..self.done] {
            known.extend(["body", "status", "key"].map(|part| format!("steps.{}.{part}", step.name.value)));
        }
        known.extend(self.current.map(|(current, _)| format!("steps.{}.key", current.name.value)));
        known
    }

    /// Returns the path that an unknown one is probably meant to be.
    fn meant(&self, unknown: &str) -> Option<String> {
        let segments: Vec<&str> = unknown.split('.').collect();
        let (&first, rest) = segments.split_first()?;
        let steps = || self.saga.steps.iter().map(|step| step.name.as_str());
        let near = |word: &str, words: &[&'static str]| did_you_mean(word, words.iter().copied());
        let joined =
            |head: &str, rest: &[&str]| std::iter::once(head).chain(rest.iter().copied()).collect::<Vec<_>>().join(".");
        let candidate = if rest.is_empty() && std::env::var_os(first).is_some() {
            format!("env.{first}")
        } else if steps().any(|step| step == first) {
            format!("steps.{unknown}")
        } else if matches!(first, "body" | "header" | "headers") {
            joined(&format!("request.{}", first.trim_end_matches('s')), rest)
        } else {
            match near(first, &["request", "steps", "env"])? {
                "request" => {
                    let (&part, below) = rest.split_first()?;
                    match near(part, &["body", "header"]) {
                        Some(part) => joined(&format!("request.{part}"), below),
                        None => joined("request.body", rest),
                    }
                }
                "steps" => {
                    let (&step, below) = rest.split_first()?;
                    let step = did_you_mean(step, steps())?;
                    let (&part, below) = below.split_first()?;
                    match near(part, &["body", "status", "key"]) {
                        Some(part) => joined(&format!("steps.{step}.{part}"), below),
                        None => joined(&format!("steps.{step}.body.{part}"), below),
                    }
                }
                root => joined(root, rest),
            }
        };
        (candidate != unknown && Reference::parse(&candidate).is_some()).then_some(candidate)
    }
}
