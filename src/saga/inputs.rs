//! The values of a request and of the steps' answers that are kept, and the rehearsal of every template before the
//! first request is sent.

use super::definition::Definition;
use super::values::{Kept, MAX_KEPT};
use crate::template::{Reference, Unresolved, Values, get, is_json, quoted};
use http::{HeaderMap, StatusCode};
use std::borrow::Cow;

/// A request that a saga cannot run with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadInput {
    #[error("the request's body is not JSON")]
    NoJson,
    #[error(transparent)]
    Unresolved(#[from] Unresolved),
    #[error("the parts of the request that the saga uses come to more than {} KiB", MAX_KEPT >> 10)]
    TooLarge,
}

impl Definition {
    /// Returns the parts of the request that the templates use, after a rehearsal of every template with them.
    ///
    /// # Errors
    ///
    /// Fails where a part is missing, cannot stand where a template has it, or where all are too large: a saga that
    /// could not be carried out is refused before anything is sent.
    pub(crate) fn inputs(&self, fields: &HeaderMap, body: &[u8]) -> Result<Kept, BadInput> {
        let mut kept = Kept::default();
        let mut body_text = None;
        for reference in self.kept_references(Reference::is_of_request) {
            let json = match reference {
                Reference::RequestBody(path) => {
                    let text = match body_text {
                        Some(text) => text,
                        None => std::str::from_utf8(body).ok().filter(|text| is_json(text)).ok_or(BadInput::NoJson)?,
                    };
                    body_text = Some(text);
                    get(text, path).map(str::to_owned)
                }
                Reference::RequestHeader(name) => field(fields, name).map(|text| quoted(&text)),
                _ => None,
            };
            let json = json.ok_or_else(|| Unresolved::Missing(reference.clone()))?;
            kept.insert(reference, json);
            if kept.size() > MAX_KEPT {
                return Err(BadInput::TooLarge);
            }
        }
        self.rehearse(&kept)?;
        Ok(kept)
    }

    /// Returns the parts of a step's answer that the templates use; a part that the answer does not have is left out.
    pub(crate) fn outputs(&self, step: usize, status: StatusCode, body: &[u8]) -> Kept {
        let mut kept = Kept::default();
        let Some(name) = self.steps.get(step).map(|step| step.name.as_str()) else { return kept };
        let body = std::str::from_utf8(body).ok().filter(|text| is_json(text));
        for reference in self.kept_references(|reference| reference.step() == Some(name)) {
            let json = match reference {
                Reference::StepBody(_, path) => body.and_then(|body| get(body, path)).map(str::to_owned),
                Reference::StepStatus(_) => Some(status.as_str().to_owned()),
                _ => None,
            };
            if let Some(json) = json {
                kept.insert(reference, json);
            }
        }
        kept
    }

    /// Returns whether templates use a part of a step's answer.
    pub(crate) fn has_outputs(&self, step: usize) -> bool {
        let name = self.steps.get(step).map(|step| step.name.as_str());
        let is_part =
            |reference: &&Reference| matches!(reference, Reference::StepBody(of, _) if Some(of.as_str()) == name);
        self.references().iter().any(is_part)
    }

    /// Returns the references of a kind that are to be kept: those to a part of what another one names are left out.
    fn kept_references(&self, is_meant: impl Fn(&Reference) -> bool) -> Vec<&Reference> {
        let all = self.references();
        let is_in_another = |reference: &Reference| {
            let levels = reference.path().map_or(0, <[String]>::len);
            (0..levels).any(|levels| reference.ancestor(levels).is_some_and(|above| all.contains(&above)))
        };
        all.iter().copied().filter(|reference| is_meant(reference) && !is_in_another(reference)).collect()
    }

    /// Renders every request with stand-ins for what is not known yet.
    fn rehearse(&self, kept: &Kept) -> Result<(), Unresolved> {
        let rehearsal = Rehearsal(kept);
        self.requests().try_for_each(|request| request.render(&rehearsal).map(drop))?;
        // The answer is lenient, but not about the request.
        match &self.respond.body {
            Some(body) => body.render(&rehearsal).map(drop),
            None => Ok(()),
        }
    }
}

/// Returns the value of a field; the lines of one field are joined.
fn field(fields: &HeaderMap, name: &str) -> Option<String> {
    let lines: Vec<&str> = fields.get_all(name).iter().map(|line| line.to_str().ok()).collect::<Option<_>>()?;
    (!lines.is_empty()).then(|| lines.join(", "))
}

/// The values of a request, and a stand-in for every other one.
struct Rehearsal<'a>(&'a Kept);

impl Values for Rehearsal<'_> {
    fn value(&self, reference: &Reference) -> Option<Cow<'_, str>> {
        match reference.is_of_request() {
            true => self.0.get(reference).map(Cow::Borrowed),
            false => Some(Cow::Borrowed("0")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::saga::definition::tests::{checkout, request};
    use crate::saga::values::Context;
    use http::HeaderValue;

    fn shown(kept: &Kept) -> String {
        String::from_utf8(kept.to_bytes()).unwrap()
    }

    #[test]
    fn only_what_templates_use_is_kept() {
        let definition = checkout();
        let body = br#"{ "items": [ {"sku": "a", "price": 1.10} ], "amount": 10.10, "order": null, "card": "4111" }"#;
        let mut kept = definition.inputs(&HeaderMap::new(), body).unwrap();
        let expected = concat!(
            r#"{"request.body.amount":10.10,"request.body.items":[ {"sku": "a", "price": 1.10} ],"#,
            r#""request.body.order":null}"#
        );
        assert_eq!(shown(&kept), expected);
        assert_eq!(Kept::from_bytes(&kept.to_bytes()).as_ref(), Some(&kept));
        assert_eq!(Kept::from_bytes(b"[]"), None);
        assert_eq!(Kept::from_bytes(b"{"), None);
        assert_eq!(Kept::from_bytes(b"{}"), Some(Kept::default()));

        let answer = definition.outputs(0, StatusCode::CREATED, br#"{"place":"b7","more":1}"#);
        assert_eq!(shown(&answer), r#"{"steps.reserve.body.place":"b7"}"#);
        assert!(kept.add(answer));
        assert_eq!(shown(&definition.outputs(1, StatusCode::CREATED, br#"{"place":1}"#)), "{}");
        assert_eq!(shown(&definition.outputs(2, StatusCode::OK, b"")), r#"{"steps.ship.status":200}"#);
        assert_eq!(shown(&definition.outputs(9, StatusCode::OK, b"")), "{}");
    }

    #[test]
    fn a_part_of_what_is_kept_is_kept_once() {
        let mut definition = checkout();
        definition.steps[0].request = request("inventory", "/${request.body.a.b}", Some(r#""${request.body.a}""#));
        definition.steps[1].request.body = None;
        definition.steps[2].request = request("shipping", "/", Some(r#"["${request.body.a.b}"]"#));
        let kept = definition.inputs(&HeaderMap::new(), br#"{"a": {"b": 7}}"#).unwrap();
        assert_eq!(shown(&kept), r#"{"request.body.a":{"b": 7}}"#);
        let context = Context { kept: &kept, key: &|_| None, environment: &|_| None };
        assert_eq!(definition.steps[0].request.render(&context).unwrap().target, "/7");
        assert_eq!(definition.steps[2].request.render(&context).unwrap().body.as_deref(), Some("[7]"));
    }

    #[test]
    fn a_request_that_the_saga_could_not_carry_out_is_refused_at_once() {
        let definition = checkout();
        let fields = HeaderMap::new();
        let told = |body: &str| definition.inputs(&fields, body.as_bytes()).unwrap_err().to_string();
        assert_eq!(told("{"), "the request's body is not JSON");
        assert_eq!(told(r#"{"items":1,"amount":1}"#), "there is no `request.body.order`");
        let large = format!(r#"{{"items":"{}","amount":1,"order":2}}"#, "x".repeat(MAX_KEPT));
        assert_eq!(told(&large), "the parts of the request that the saga uses come to more than 64 KiB");

        let mut definition = checkout();
        definition.steps[2].request.path = crate::template::Text::parse("/${request.header.x-tenant}/x").unwrap();
        let told = |fields: &HeaderMap| {
            definition.inputs(fields, br#"{"items":1,"amount":1,"order":2}"#).map_err(|error| error.to_string())
        };
        assert_eq!(told(&fields), Err("there is no `request.header.x-tenant`".to_owned()));
        let with = |values: &[&'static str]| {
            let mut fields = HeaderMap::new();
            values.iter().for_each(|value| {
                fields.append("x-tenant", HeaderValue::from_static(value));
            });
            fields
        };
        let dots = "`request.header.x-tenant` leaves a segment of a path empty, or makes it a dot segment";
        assert_eq!(told(&with(&[".."])), Err(dots.to_owned()));
        let kept = told(&with(&["a", "b"])).unwrap();
        assert!(shown(&kept).contains(r#""request.header.x-tenant":"a, b""#), "{}", shown(&kept));
    }

    #[test]
    fn the_answers_of_steps_count_against_the_same_bound() {
        let definition = checkout();
        let body = format!(r#"{{"items":"{}","amount":1,"order":2}}"#, "x".repeat(MAX_KEPT - 200));
        let mut kept = definition.inputs(&HeaderMap::new(), body.as_bytes()).unwrap();
        let before = kept.clone();
        let answer = format!(r#"{{"place":"{}"}}"#, "y".repeat(200));
        assert!(!kept.add(definition.outputs(0, StatusCode::OK, answer.as_bytes())));
        assert!(kept == before);
        assert!(kept.add(definition.outputs(0, StatusCode::OK, br#"{"place":"y"}"#)));
    }
}
