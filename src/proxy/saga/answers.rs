//! The responses to the clients of a saga: its final answer, and problems while there is none.

use crate::clock;
use crate::http::date;
use crate::http::problem::{Problem, ProblemKind};
use crate::idempotency::{Id, StoredResponse};
use crate::proxy::snapshot::Snapshot;
use crate::saga::log::{Cause, Standing, Turn};
use crate::saga::{Context, Definition};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, DATE};
use http::{HeaderMap, HeaderValue};
use serde_json::Value;

/// The path of a saga's state, before its id.
pub(in crate::proxy) const SAGAS: &str = "/.ringway/sagas/";

/// Returns the place of a saga's state.
pub(super) fn location(id: Id) -> HeaderValue {
    HeaderValue::try_from(format!("{SAGAS}{id}")).expect("hexadecimal digits can stand in a field")
}

/// Returns the problem of a saga that has no final answer yet.
pub(super) fn problem(standing: Standing) -> Problem {
    let (kind, detail) = match standing {
        Standing::Compensating => (
            ProblemKind::SagaCompensating,
            "a step has failed, and the steps before it are being undone; repeat the request with the same key later",
        ),
        Standing::Stuck => (
            ProblemKind::SagaStuck,
            "a step can be neither finished nor undone, and a person has to decide; ask for its state later",
        ),
        Standing::Running | Standing::Succeeded | Standing::Compensated => (
            ProblemKind::SagaRunning,
            "the steps of the request with this Idempotency-Key are still running; repeat it later",
        ),
    };
    let problem = Problem::new(kind, detail);
    // No client can tell when a person decides.
    if standing == Standing::Stuck { problem } else { problem.retry_after(1) }
}

/// Returns the final answer of a saga whose steps are done.
pub(super) fn succeeded(definition: &Definition, context: &Context<'_>, snapshot: &Snapshot) -> StoredResponse {
    let mut fields = HeaderMap::new();
    let body = definition.respond.render(context);
    if body.is_some() {
        fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    let route = snapshot.routes.iter().find(|route| *route.label.name == *definition.route);
    if let Some(route) = route {
        route.label.response_fields.apply(&mut fields);
    }
    stored(definition.respond.status, fields, body.unwrap_or_default().into())
}

/// Returns the final answer of a saga whose steps are undone: the step that has failed, and its status.
pub(super) fn compensated(definition: &Definition, turn: Turn) -> StoredResponse {
    let step = definition.steps.get(turn.step).map_or("", |step| step.name.as_str());
    let status = turn.status.map_or(String::new(), |status| format!(" with status {status}"));
    let why = match turn.cause {
        Cause::Refused => format!("the step `{step}` was refused{status}"),
        Cause::Deadline if turn.status.is_some() => format!("the step `{step}` failed until the deadline{status}"),
        Cause::Deadline => format!("the step `{step}` was not done by the deadline"),
        Cause::Unresolved => format!("the request of the step `{step}` needs a value that no answer had"),
        Cause::Operator => format!("the step `{step}` was not carried out, as a person has found"),
    };
    let problem = Problem::new(ProblemKind::SagaCompensated, format!("{why}; all steps before it are undone"));
    let (fields, body) = problem.render();
    let body = match serde_json::from_slice(&body) {
        Ok(Value::Object(mut members)) => {
            members.insert("step".to_owned(), step.into());
            members.insert("step_status".to_owned(), turn.status.into());
            Value::Object(members).to_string().into()
        }
        _ => body,
    };
    stored(problem.status(), fields, body)
}

fn stored(status: http::StatusCode, mut fields: HeaderMap, body: Bytes) -> StoredResponse {
    if let Some(now) = date::format(clock::unix_seconds().cast_signed()) {
        fields.insert(DATE, now);
    }
    StoredResponse::new(status, &fields, body, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::saga::definition::tests::checkout;

    fn detail(turn: Turn) -> (u16, Value) {
        let response = compensated(&checkout(), turn);
        (response.status, serde_json::from_slice(&response.body).unwrap())
    }

    #[test]
    fn a_compensated_saga_names_the_step_that_failed() {
        let turn = Turn { step: 1, status: Some(402), is_unknown: false, cause: Cause::Refused };
        let (status, body) = detail(turn);
        assert_eq!((status, &body["type"]), (409, &"urn:ringway:problem:saga-compensated".into()));
        assert_eq!((&body["step"], &body["step_status"]), (&"charge".into(), &402.into()));
        assert_eq!(body["detail"], "the step `charge` was refused with status 402; all steps before it are undone");
        let silent = Turn { status: None, is_unknown: true, cause: Cause::Deadline, ..turn };
        let (_, body) = detail(silent);
        assert_eq!(body["step_status"], Value::Null);
        assert!(body["detail"].as_str().unwrap().contains("not done by the deadline"));
    }

    #[test]
    fn a_saga_without_an_answer_has_a_problem_for_each_state() {
        let name = |standing| problem(standing).name();
        assert_eq!(name(Standing::Running), "saga-running");
        assert_eq!(name(Standing::Compensating), "saga-compensating");
        assert_eq!(name(Standing::Stuck), "saga-stuck");
    }
}
