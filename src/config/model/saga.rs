//! Sagas: a route's steps, their undos and the answer of the whole. Texts in them may be templates, which
//! `config/template_fields.rs` reads.

use crate::config::read::{Field, Reader, Spanned, settings};
use crate::config::template_fields::{BodyTemplate, HeaderTemplates, PathTemplate};
use crate::config::tree::{Node, Value};
use http::{Method, StatusCode};
use serde_json::{Value as Json, json};
use std::time::Duration;

settings! {
    /// A business transaction: idempotent requests to several pools in order, each with its undo. If a step fails,
    /// those before it are undone in reverse order. `${...}` in its templates is a dotted path: `request.body`,
    /// `request.header.NAME`, `steps.NAME.body`, `steps.NAME.status`, `steps.NAME.key`, `env.NAME`; nothing else is
    /// replaced inside `saga`.
    Saga {
        /// The time for all steps together; after it the saga turns to compensation.
        deadline: Duration = "30s" within "100ms" to "1h";
        /// The time for which an undo, or a last step without `compensate`, is retried; after it the saga is `stuck`,
        /// and an operator decides.
        stuck_after: Duration = "24h" within "1s" to "365d";
        /// The groups that the saga writes, where routes with `consistency` cache them, like `shop.example/stock`.
        changes: Vec<Spanned<String>> = absent;
        /// The steps, in order; at most 8.
        steps: Vec<SagaStep> = required;
        /// The answer once all steps are done.
        respond: SagaRespond = block;
    }
}

impl Saga {
    /// Returns the requests of the steps and their undos.
    pub(crate) fn requests(&self) -> impl Iterator<Item = &SagaRequest> {
        let steps = self.steps.iter();
        steps.flat_map(|step| {
            let undo = step.compensate.as_ref().and_then(SagaCompensate::request);
            std::iter::once(&step.request).chain(undo)
        })
    }
}

settings! {
    /// A step of a saga.
    SagaStep {
        /// The step's name: letters, digits, `-` and `_`.
        name: Spanned<String> = required;
        /// The request of the step.
        request: SagaRequest = required;
        /// The request that undoes the step, also where its outcome is unknown; `none` if there is nothing to undo.
        /// Only the last step may omit the key: then nothing is undone once that step may have run.
        compensate: Option<SagaCompensate> = absent;
        /// The time for one attempt, from the connection to the end of the response.
        timeout: Duration = "5s" within "10ms" to "10m";
        /// The retries of a step whose outcome is unknown.
        retries: SagaRetries = block;
    }
}

settings! {
    /// The pauses between attempts of a step whose outcome is unknown. Every attempt has the same `Idempotency-Key`.
    SagaRetries {
        /// The number of pauses of the length `backoff`; later ones double, up to a second, until the deadline.
        attempts: u32 = "3" within "0" to "100";
        /// The pause before the next attempt.
        backoff: Duration = "100ms" within "1ms" to "1s";
    }
}

settings! {
    /// A request of a saga. It carries an `Idempotency-Key` of its own.
    SagaRequest {
        /// The pool that it is sent to.
        pool: Spanned<String> = required;
        /// The method.
        method: Spanned<Method> = "POST";
        /// The path, perhaps with a query. Values in it are percent-encoded.
        path: PathTemplate = required;
        /// Fields of the request, such as credentials. They are resolved when the request is sent, and never stored or
        /// logged.
        headers: HeaderTemplates = absent;
        /// The body, as YAML that is sent as JSON. A text that is one `${...}` and nothing else becomes the value
        /// itself, with its type.
        body: Option<BodyTemplate> = absent;
    }
}

settings! {
    /// The answer of a saga whose steps are all done.
    SagaRespond {
        /// The status code.
        status: StatusCode = "200";
        /// The body, as YAML that is sent as JSON; none without the key.
        body: Option<BodyTemplate> = absent;
    }
}

/// The word for a step that leaves nothing to undo.
const NONE: &str = "none";

/// The undo of a step.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum SagaCompensate {
    /// `none`: the step leaves nothing to undo.
    Nothing,
    Request(Box<SagaRequest>),
}

impl SagaCompensate {
    /// Returns the request that undoes the step.
    pub(crate) fn request(&self) -> Option<&SagaRequest> {
        match self {
            SagaCompensate::Nothing => None,
            SagaCompensate::Request(request) => Some(request),
        }
    }
}

impl Field for SagaCompensate {
    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        match &node.value {
            Value::Mapping(_) => SagaRequest::read(node, reader).map(|request| SagaCompensate::Request(request.into())),
            Value::Scalar { text, .. } if text == NONE => Some(SagaCompensate::Nothing),
            _ => {
                let message =
                    format!("expected a request like `{{ pool: p, path: /undo }}`, or `none`, found {}", node.kind());
                reader.diagnostics.error(node.span, message);
                Some(SagaCompensate::Nothing)
            }
        }
    }
    fn schema() -> Json {
        let mut request = SagaRequest::schema();
        request["title"] = "request, or `none`".into();
        json!({ "title": "request, or `none`", "if": { "type": "object" }, "then": request, "else": { "const": NONE } })
    }
    fn show(&self) -> Json {
        match self {
            SagaCompensate::Nothing => NONE.into(),
            SagaCompensate::Request(request) => request.show(),
        }
    }
}
