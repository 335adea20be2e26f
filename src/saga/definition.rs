//! A saga as the configuration has it. The row of a running saga keeps a copy of its own, so that no reload changes it.

use super::values::Context;
use crate::template::{BadTemplate, Reference, Template, Text, Unresolved, Values};
use http::header::CONTENT_TYPE;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::time::Duration;

/// The version of a definition's bytes.
const VERSION: u32 = 1;

/// A saga: its steps in order, each with its undo, and the answer of the whole.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Definition {
    /// The name of the route, for metrics and logs.
    pub(crate) route: String,
    /// The time for the forward steps; after it the saga turns to compensation.
    pub(crate) deadline: Duration,
    /// The time after which a saga that neither ends nor can be undone waits for a person.
    pub(crate) stuck_after: Duration,
    /// The groups that the saga writes.
    pub(crate) changes: Vec<String>,
    pub(crate) steps: Vec<Step>,
    pub(crate) respond: Respond,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Step {
    pub(crate) name: String,
    pub(crate) request: StepRequest,
    /// The request that undoes the step. A last step without one is the pivot: nothing is undone while its outcome is
    /// unknown.
    pub(crate) compensate: Option<StepRequest>,
    /// The time that one attempt may take.
    pub(crate) timeout: Duration,
    pub(crate) retries: Retries,
}

/// The pauses between attempts with an unknown outcome: `attempts` times `backoff`, then twice the pause before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Retries {
    pub(crate) attempts: u32,
    pub(crate) backoff: Duration,
}

/// A request of a step, with templates.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StepRequest {
    pub(crate) pool: String,
    pub(crate) method: Method,
    /// The path, perhaps with a query.
    pub(crate) path: Text,
    /// Resolved when the request is sent, and kept nowhere.
    pub(crate) headers: Vec<(HeaderName, Text)>,
    pub(crate) body: Option<Template>,
}

/// The answer of a saga that has succeeded.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Respond {
    pub(crate) status: StatusCode,
    pub(crate) body: Option<Template>,
}

/// A request of a step with every template replaced.
#[derive(Clone, PartialEq)]
pub(crate) struct Outgoing {
    pub(crate) pool: String,
    pub(crate) method: Method,
    pub(crate) target: PathAndQuery,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Option<String>,
}

/// The fields may be credentials, and the body belongs in no log.
impl std::fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Outgoing({} {} at {})", self.method, self.target.path(), self.pool)
    }
}

impl Definition {
    /// Returns the index of the pivot: the last step, where it has no `compensate`.
    #[cfg(test)]
    pub(crate) fn pivot(&self) -> Option<usize> {
        let last = self.steps.len().checked_sub(1)?;
        self.steps[last].compensate.is_none().then_some(last)
    }

    /// Returns the pools that the steps and their undos are sent to, each once.
    pub(crate) fn pools(&self) -> BTreeSet<&str> {
        self.requests().map(|request| request.pool.as_str()).collect()
    }

    /// Returns the variables of the environment that the templates name, each once.
    #[cfg(test)]
    pub(crate) fn environment(&self) -> BTreeSet<&str> {
        let all = self.references().into_iter();
        all.filter_map(|reference| match reference {
            Reference::Environment(name) => Some(name.as_str()),
            _ => None,
        })
        .collect()
    }

    /// Returns every reference of the templates, each once.
    pub(crate) fn references(&self) -> BTreeSet<&Reference> {
        let mut found = BTreeSet::new();
        for request in self.requests() {
            request.references(&mut |reference| {
                found.insert(reference);
            });
        }
        if let Some(body) = &self.respond.body {
            body.references(&mut |reference| {
                found.insert(reference);
            });
        }
        found
    }

    /// Returns the requests of the steps and their undos.
    pub(crate) fn requests(&self) -> impl Iterator<Item = &StepRequest> {
        self.steps.iter().flat_map(|step| std::iter::once(&step.request).chain(&step.compensate))
    }
}

impl StepRequest {
    /// Calls a function with every reference of the path, the headers and the body.
    pub(crate) fn references<'a>(&'a self, seen: &mut impl FnMut(&'a Reference)) {
        self.path.references().for_each(&mut *seen);
        self.headers.iter().flat_map(|(_, value)| value.references()).for_each(&mut *seen);
        if let Some(body) = &self.body {
            body.references(seen);
        }
    }

    /// Returns the request to send. A body is JSON, and `content-type` says so unless the template sets it.
    ///
    /// # Errors
    ///
    /// Fails where a value is missing, or is of no use where it stands.
    pub(crate) fn render(&self, values: &dyn Values) -> Result<Outgoing, Unresolved> {
        let path = self.path.render_path(values)?;
        // A literal part that is no path is refused with the configuration.
        let target = PathAndQuery::try_from(path).map_err(|_| self.blame(&self.path, Unresolved::PathSegment))?;
        let mut headers = HeaderMap::new();
        for (name, template) in &self.headers {
            let text = template.render(values)?;
            let mut value = HeaderValue::try_from(text).map_err(|_| self.blame(template, Unresolved::FieldValue))?;
            value.set_sensitive(true);
            headers.append(name.clone(), value);
        }
        let body = self.body.as_ref().map(|body| body.render(values)).transpose()?;
        if body.is_some() && !headers.contains_key(CONTENT_TYPE) {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        Ok(Outgoing { pool: self.pool.clone(), method: self.method.clone(), target, headers, body })
    }

    /// Returns the error of a template's first reference.
    fn blame(&self, text: &Text, error: fn(Reference) -> Unresolved) -> Unresolved {
        let first = text.references().next().cloned();
        error(first.unwrap_or(Reference::RequestBody(Vec::new())))
    }
}

impl Respond {
    /// Returns the body of the answer. The saga has succeeded, so a value that no answer had is null, and nothing
    /// inside a text.
    pub(crate) fn render(&self, context: &Context<'_>) -> Option<String> {
        self.body.as_ref().map(|body| body.render(&OrNull(context)).unwrap_or_else(|_| "null".to_owned()))
    }
}

/// Values of which none is missing.
struct OrNull<'a>(&'a Context<'a>);

impl Values for OrNull<'_> {
    fn value(&self, reference: &Reference) -> Option<Cow<'_, str>> {
        Some(self.0.value(reference).unwrap_or(Cow::Borrowed("null")))
    }

    fn is_lenient(&self) -> bool {
        true
    }
}

/// Bytes that are no definition, or one of a version that this Ringway does not know.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadDefinition {
    #[error("the definition is damaged: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the definition has version {0}, which this Ringway does not know")]
    Version(u32),
    #[error("the definition has a damaged template: {0}")]
    Template(#[from] BadTemplate),
    #[error("the definition has a damaged {0}")]
    Value(&'static str),
}

#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    route: String,
    deadline_ms: u64,
    stuck_after_ms: u64,
    #[serde(default)]
    changes: Vec<String>,
    steps: Vec<StoredStep>,
    respond: StoredRespond,
}

#[derive(Serialize, Deserialize)]
struct StoredStep {
    name: String,
    request: StoredRequest,
    compensate: Option<StoredRequest>,
    timeout_ms: u64,
    attempts: u32,
    backoff_ms: u64,
}

#[derive(Serialize, Deserialize)]
struct StoredRequest {
    pool: String,
    method: String,
    path: String,
    #[serde(default)]
    headers: Vec<(String, String)>,
    /// The template as JSON in a text, so that numbers keep their digits.
    body: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct StoredRespond {
    status: u16,
    body: Option<String>,
}

impl Definition {
    /// Returns the definition as bytes: JSON with a version, and templates as the configuration has them.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let steps = self.steps.iter().map(|step| StoredStep {
            name: step.name.clone(),
            request: StoredRequest::of(&step.request),
            compensate: step.compensate.as_ref().map(StoredRequest::of),
            timeout_ms: milliseconds(step.timeout),
            attempts: step.retries.attempts,
            backoff_ms: milliseconds(step.retries.backoff),
        });
        let stored = Stored {
            version: VERSION,
            route: self.route.clone(),
            deadline_ms: milliseconds(self.deadline),
            stuck_after_ms: milliseconds(self.stuck_after),
            changes: self.changes.clone(),
            steps: steps.collect(),
            respond: StoredRespond {
                status: self.respond.status.as_u16(),
                body: self.respond.body.as_ref().map(Template::to_string),
            },
        };
        serde_json::to_vec(&stored).expect("texts and numbers are JSON")
    }

    /// Reads a definition from its bytes.
    ///
    /// # Errors
    ///
    /// Fails where the bytes are damaged, or have a version that this Ringway does not know.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Definition, BadDefinition> {
        let Versioned { version } = serde_json::from_slice(bytes)?;
        if version != VERSION {
            return Err(BadDefinition::Version(version));
        }
        let stored: Stored = serde_json::from_slice(bytes)?;
        let steps = stored.steps.into_iter().map(|step| {
            Ok(Step {
                name: step.name,
                request: step.request.read()?,
                compensate: step.compensate.map(StoredRequest::read).transpose()?,
                timeout: Duration::from_millis(step.timeout_ms),
                retries: Retries { attempts: step.attempts, backoff: Duration::from_millis(step.backoff_ms) },
            })
        });
        let status = StatusCode::from_u16(stored.respond.status).map_err(|_| BadDefinition::Value("status"))?;
        Ok(Definition {
            route: stored.route,
            deadline: Duration::from_millis(stored.deadline_ms),
            stuck_after: Duration::from_millis(stored.stuck_after_ms),
            changes: stored.changes,
            steps: steps.collect::<Result<_, BadDefinition>>()?,
            respond: Respond { status, body: stored.respond.body.as_deref().map(Template::parse).transpose()? },
        })
    }
}

impl StoredRequest {
    fn of(request: &StepRequest) -> StoredRequest {
        StoredRequest {
            pool: request.pool.clone(),
            method: request.method.to_string(),
            path: request.path.to_string(),
            headers: request.headers.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
            body: request.body.as_ref().map(Template::to_string),
        }
    }

    fn read(self) -> Result<StepRequest, BadDefinition> {
        let headers = self.headers.iter().map(|(name, value)| {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| BadDefinition::Value("field name"))?;
            Ok((name, Text::parse(value)?))
        });
        Ok(StepRequest {
            pool: self.pool,
            method: Method::from_bytes(self.method.as_bytes()).map_err(|_| BadDefinition::Value("method"))?,
            path: Text::parse(&self.path)?,
            headers: headers.collect::<Result<_, BadDefinition>>()?,
            body: self.body.as_deref().map(Template::parse).transpose()?,
        })
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn request(pool: &str, path: &str, body: Option<&str>) -> StepRequest {
        StepRequest {
            pool: pool.to_owned(),
            method: Method::POST,
            path: Text::parse(path).unwrap(),
            headers: Vec::new(),
            body: body.map(|body| Template::parse(body).unwrap()),
        }
    }

    fn step(name: &str, request: StepRequest, compensate: Option<StepRequest>) -> Step {
        Step {
            name: name.to_owned(),
            request,
            compensate,
            timeout: Duration::from_secs(2),
            retries: Retries { attempts: 3, backoff: Duration::from_millis(100) },
        }
    }

    /// The saga of the manual: reserve, charge, ship.
    pub(crate) fn checkout() -> Definition {
        let mut reserve = request("inventory", "/reservations", Some(r#"{"items":"${request.body.items}"}"#));
        reserve.headers = vec![(http::header::AUTHORIZATION, Text::parse("Bearer ${env.INVENTORY_TOKEN}").unwrap())];
        let undo = |pool, path| Some(request(pool, path, None));
        Definition {
            route: "checkout".to_owned(),
            deadline: Duration::from_secs(30),
            stuck_after: Duration::from_secs(86_400),
            changes: vec!["shop.example/stock".to_owned()],
            steps: vec![
                step("reserve", reserve, undo("inventory", "/reservations/${steps.reserve.key}/undo")),
                step(
                    "charge",
                    request("payments", "/charges", Some(r#"{"amount":"${request.body.amount}"}"#)),
                    undo("payments", "/charges/${steps.charge.key}/undo"),
                ),
                step(
                    "ship",
                    request("shipping", "/shipments/${steps.reserve.body.place}", Some(r#""${request.body.order}""#)),
                    None,
                ),
            ],
            respond: Respond {
                status: StatusCode::CREATED,
                body: Some(
                    Template::parse(r#"{"shipment":"${steps.ship.body.id}","was":"${steps.ship.status}"}"#).unwrap(),
                ),
            },
        }
    }

    #[test]
    fn a_definition_reads_back_from_its_bytes() {
        let definition = checkout();
        let bytes = definition.to_bytes();
        assert_eq!(Definition::from_bytes(&bytes).unwrap(), definition);
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.contains("${env.INVENTORY_TOKEN}"), "{text}");
        let later = text.replacen(r#""version":1"#, r#""version":2"#, 1);
        assert!(matches!(Definition::from_bytes(later.as_bytes()), Err(BadDefinition::Version(2))));
        for (part, damaged) in [
            ("${env.INVENTORY_TOKEN}", "${nothing}"),
            (r#""method":"POST""#, r#""method":"P T""#),
            (r#""authorization""#, r#""a b""#),
            (r#""status":201"#, r#""status":1"#),
            (r#""route""#, r#""rout""#),
        ] {
            assert!(text.contains(part), "{part}");
            assert!(Definition::from_bytes(text.replacen(part, damaged, 1).as_bytes()).is_err(), "{part}");
        }
    }

    #[test]
    fn a_definition_says_what_it_needs() {
        let mut definition = checkout();
        assert_eq!(definition.pools().into_iter().collect::<Vec<_>>(), ["inventory", "payments", "shipping"]);
        assert_eq!(definition.environment().into_iter().collect::<Vec<_>>(), ["INVENTORY_TOKEN"]);
        assert_eq!(definition.pivot(), Some(2));
        definition.steps[2].compensate = Some(request("shipping", "/", None));
        assert_eq!(definition.pivot(), None);
    }

    #[test]
    fn requests_are_rendered_with_their_credentials_hidden() {
        let definition = checkout();
        let kept = definition.inputs(&HeaderMap::new(), br#"{"items":[1.50],"amount":3,"order":"a"}"#).unwrap();
        let key = |step: &str| Some(format!("key-of-{step}"));
        let environment = |name: &str| (name == "INVENTORY_TOKEN").then(|| "s3cret".to_owned());
        let context = Context { kept: &kept, key: &key, environment: &environment };
        let reserve = definition.steps[0].request.render(&context).unwrap();
        assert_eq!(reserve.target, "/reservations");
        assert_eq!(reserve.body.as_deref(), Some(r#"{"items":[1.50]}"#));
        assert_eq!(reserve.headers[http::header::AUTHORIZATION], "Bearer s3cret");
        assert_eq!(reserve.headers[CONTENT_TYPE], "application/json");
        assert!(reserve.headers[http::header::AUTHORIZATION].is_sensitive());
        let logged = format!("{reserve:?} {kept:?}");
        assert!(!logged.contains("s3cret") && !logged.contains("1.50"), "{logged}");
        let undo = definition.steps[0].compensate.as_ref().unwrap().render(&context).unwrap();
        assert_eq!(undo.target, "/reservations/key-of-reserve/undo");
        assert!(undo.body.is_none() && undo.headers.is_empty());
        let ship = definition.steps[2].request.render(&context).unwrap_err();
        assert_eq!(ship.to_string(), "there is no `steps.reserve.body.place`");
        let nothing = Context { environment: &|_| None, ..context };
        let reserve = definition.steps[0].request.render(&nothing).unwrap_err();
        assert_eq!(reserve.to_string(), "there is no `env.INVENTORY_TOKEN`");
        let broken = Context { environment: &|_| Some("a\r\nb: c".to_owned()), ..context };
        let reserve = definition.steps[0].request.render(&broken).unwrap_err();
        assert_eq!(reserve.to_string(), "`env.INVENTORY_TOKEN` holds characters that a field cannot have");
    }

    #[test]
    fn an_answer_is_rendered_whatever_is_missing() {
        let definition = checkout();
        let kept = definition.outputs(2, StatusCode::OK, b"no JSON");
        let context = Context { kept: &kept, key: &|_| None, environment: &|_| None };
        assert_eq!(definition.respond.render(&context).as_deref(), Some(r#"{"shipment":null,"was":200}"#));
        let body = Template::parse(r#""${steps.ship.body.id}/${steps.ship.body.tags}""#).unwrap();
        let respond = Respond { status: StatusCode::OK, body: Some(body) };
        let definition = Definition { respond: respond.clone(), ..definition };
        let kept = definition.outputs(2, StatusCode::OK, br#"{"tags":["a"]}"#);
        let context = Context { kept: &kept, ..context };
        assert_eq!(respond.render(&context).as_deref(), Some(r#""/[\"a\"]""#));
    }

    proptest! {
        /// No bytes make the reader panic, and what it takes reads back.
        #[test]
        fn any_bytes_are_read_or_refused(at in 0_usize..600, byte: u8) {
            let mut bytes = checkout().to_bytes();
            let at = at % bytes.len();
            bytes[at] = byte;
            if let Ok(read) = Definition::from_bytes(&bytes) {
                prop_assert_eq!(Definition::from_bytes(&read.to_bytes()).unwrap(), read);
            }
        }
    }
}
