//! The state of a saga, for the caller that began it and for operators.

use super::answers::SAGAS;
use crate::control::{SagaFailure, SagaStatus, SagaStepStatus};
use crate::http::head::RequestHead;
use crate::http::problem::{Problem, ProblemKind};
use crate::idempotency::{Id, SagaRow, StoreError};
use crate::proxy::exchange::Exchange;
use crate::proxy::request::Form;
use crate::proxy::respond::{self, Reply};
use crate::proxy::snapshot::Snapshot;
use crate::proxy::step::Step;
use crate::saga::Definition;
use crate::saga::log::{Entry, Fate, Millis, Progress, What, decode};
use http::Method;
use std::rc::Rc;
use std::sync::Arc;
use time::OffsetDateTime;

/// Answers `GET /.ringway/sagas/{id}` in the scope of the caller.
pub(in crate::proxy) fn show(
    snapshot: &Arc<Snapshot>,
    form: &Form<'_>,
    exchange: &Rc<Exchange>,
    head: &RequestHead,
) -> Result<Step, Problem> {
    if !matches!(head.method, Method::GET | Method::HEAD) {
        return Err(Problem::method_not_allowed("the state of a saga can only be read", "GET, HEAD"));
    }
    let id = form.path.strip_prefix(SAGAS).and_then(Id::parse).ok_or_else(absent)?;
    let records = snapshot.records.clone().ok_or_else(absent)?;
    // The scopes of the routes that run sagas: the id tells which of them began it.
    let scopes: Vec<_> = snapshot.routes.iter().filter_map(|route| route.saga_scope(form, &head.fields)).collect();
    let exchange = Rc::clone(exchange);
    Ok(Step::Later(Box::pin(async move {
        let found = records.saga(id).await;
        let status = found.map_err(|error| unavailable(&error)).and_then(|row| {
            let row = row.ok_or_else(absent)?;
            let subject = row.subject.as_ref().ok_or_else(absent)?;
            let is_callers = scopes.iter().any(|scope| subject.identify(scope) == id);
            if is_callers { status_of(&row).ok_or_else(absent) } else { Err(absent()) }
        });
        match status {
            Ok(status) => respond::json(&status, &exchange),
            Err(problem) => Reply::problem(&problem, &exchange),
        }
    })))
}

fn absent() -> Problem {
    Problem::new(ProblemKind::NoSuchSaga, "there is no saga with this id, or it is another caller's")
}

fn unavailable(error: &StoreError) -> Problem {
    tracing::debug!(%error, "the state of a saga cannot be read");
    Problem::new(ProblemKind::StoreUnavailable, "the store of the sagas does not work; ask again later").retry_after(1)
}

/// Returns the state of a saga; nothing where its row cannot be read.
pub(crate) fn status_of(row: &SagaRow) -> Option<SagaStatus> {
    let definition = Definition::from_bytes(row.definition.as_bytes()).ok()?;
    let entries = decode(&row.log).ok()?;
    let progress = Progress::fold(definition.steps.len(), row.created, &entries);
    let name = |step: usize| definition.steps.get(step).map_or(String::new(), |step| step.name.clone());
    let failed = progress.turn.map(|turn| {
        let cause = serde_json::to_value(turn.cause).ok().and_then(|cause| cause.as_str().map(str::to_owned));
        SagaFailure { step: name(turn.step), status: turn.status, cause: cause.unwrap_or_default() }
    });
    let steps = progress.fates.iter().enumerate().map(|(step, fate)| {
        let (status, since) = history(step, &entries);
        let state = match fate {
            Fate::Untouched => "untouched",
            Fate::Started => "started",
            Fate::Done => "done",
            Fate::Undone => "undone",
        };
        SagaStepStatus { name: name(step), state: state.to_owned(), status, since: since.map(instant) }
    });
    Some(SagaStatus {
        id: row.id.to_string(),
        route: definition.route.clone(),
        state: progress.standing().word().to_owned(),
        started: instant(row.created),
        ended: progress.outcome.and(entries.last()).map(|entry| instant(entry.at)),
        failed,
        steps: steps.collect(),
    })
}

/// Returns the status by which a step is done, and the time of the last entry about it.
fn history(step: usize, entries: &[Entry]) -> (Option<u16>, Option<Millis>) {
    let (mut status, mut since) = (None, None);
    for entry in entries {
        let is_about = match &entry.what {
            What::Started { step: of } | What::Undone { step: of } => *of == step,
            What::Succeeded { step: of, status: found, .. } if *of == step => {
                status = Some(*found);
                true
            }
            What::Turned(turn) => turn.step == step && !turn.is_unknown,
            _ => false,
        };
        if is_about {
            since = Some(entry.at);
        }
    }
    (status, since)
}

fn instant(at: Millis) -> String {
    let format =
        time::macros::format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(at) * 1_000_000);
    at.ok().and_then(|at| at.format(&format).ok()).unwrap_or_default()
}
