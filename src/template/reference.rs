//! References: the dotted paths between `${` and `}`, to values of the request, of an earlier step or of the
//! environment.

use http::HeaderName;
use std::fmt;

/// The most segments that a path has.
const MAX_SEGMENTS: usize = 32;

/// A dotted path to a value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reference {
    /// `request.body`, or a value in it: `request.body.items.0.sku`.
    RequestBody(Vec<String>),
    /// `request.header.NAME`, in lower case.
    RequestHeader(String),
    /// `steps.NAME.body`, or a value in it.
    StepBody(String, Vec<String>),
    /// `steps.NAME.status`, the status code of the step's answer.
    StepStatus(String),
    /// `steps.NAME.key`, the `Idempotency-Key` that the step is sent with.
    StepKey(String),
    /// `env.NAME`, a variable of the process's environment.
    Environment(String),
}

impl Reference {
    /// Returns the reference that a path stands for; nothing where it stands for none.
    pub(crate) fn parse(path: &str) -> Option<Reference> {
        let segments: Vec<&str> = path.split('.').collect();
        let is_segment = |segment: &&str| {
            !segment.is_empty()
                && segment.trim() == *segment
                && !segment.chars().any(|c| c.is_control() || matches!(c, '$' | '{' | '}'))
        };
        if segments.len() > MAX_SEGMENTS || !segments.iter().all(is_segment) {
            return None;
        }
        let owned = |segments: &[&str]| segments.iter().map(|&segment| segment.to_owned()).collect::<Vec<_>>();
        match *segments.as_slice() {
            ["request", "body", ref rest @ ..] => Some(Reference::RequestBody(owned(rest))),
            ["request", "header", _, ..] => {
                let name = path.strip_prefix("request.header.")?;
                HeaderName::from_bytes(name.as_bytes()).ok().map(|name| Reference::RequestHeader(name.to_string()))
            }
            ["steps", step, "body", ref rest @ ..] => Some(Reference::StepBody(step.to_owned(), owned(rest))),
            ["steps", step, "status"] => Some(Reference::StepStatus(step.to_owned())),
            ["steps", step, "key"] => Some(Reference::StepKey(step.to_owned())),
            ["env", name] => Some(Reference::Environment(name.to_owned())),
            _ => None,
        }
    }

    /// Returns the step that the value belongs to.
    pub(crate) fn step(&self) -> Option<&str> {
        match self {
            Reference::StepBody(step, _) | Reference::StepStatus(step) | Reference::StepKey(step) => Some(step),
            _ => None,
        }
    }

    /// Returns whether the value is a part of the client's request.
    pub(crate) fn is_of_request(&self) -> bool {
        matches!(self, Reference::RequestBody(_) | Reference::RequestHeader(_))
    }

    /// Returns the same reference to the value so many levels below the body, for values in bodies.
    pub(crate) fn ancestor(&self, levels: usize) -> Option<Reference> {
        match self {
            Reference::RequestBody(path) => Some(Reference::RequestBody(path.get(..levels)?.to_vec())),
            Reference::StepBody(step, path) => Some(Reference::StepBody(step.clone(), path.get(..levels)?.to_vec())),
            _ => None,
        }
    }

    /// Returns the path in the body, for values in bodies.
    pub(crate) fn path(&self) -> Option<&[String]> {
        match self {
            Reference::RequestBody(path) | Reference::StepBody(_, path) => Some(path),
            _ => None,
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let below =
            |f: &mut fmt::Formatter<'_>, path: &[String]| path.iter().try_for_each(|segment| write!(f, ".{segment}"));
        match self {
            Reference::RequestBody(path) => {
                f.write_str("request.body")?;
                below(f, path)
            }
            Reference::RequestHeader(name) => write!(f, "request.header.{name}"),
            Reference::StepBody(step, path) => {
                write!(f, "steps.{step}.body")?;
                below(f, path)
            }
            Reference::StepStatus(step) => write!(f, "steps.{step}.status"),
            Reference::StepKey(step) => write!(f, "steps.{step}.key"),
            Reference::Environment(name) => write!(f, "env.{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stand_for_values() {
        for (path, expected) in [
            ("request.body", "request.body"),
            ("request.body.items.0.sku", "request.body.items.0.sku"),
            ("request.header.X-Tenant", "request.header.x-tenant"),
            ("request.header.a.b", "request.header.a.b"),
            ("steps.ship.body.id", "steps.ship.body.id"),
            ("steps.ship.status", "steps.ship.status"),
            ("steps.ship.key", "steps.ship.key"),
            ("env.TOKEN", "env.TOKEN"),
        ] {
            let reference = Reference::parse(path).expect(path);
            assert_eq!(reference.to_string(), expected);
            assert_eq!(Reference::parse(expected), Some(reference));
        }
        for path in [
            "",
            "TOKEN",
            "request",
            "request.bodi",
            "request.header",
            "request.header.a b",
            "steps",
            "steps.ship",
            "steps.ship.status.x",
            "steps.ship.key.x",
            "env",
            "env.A.B",
            "request.body.",
            "request..body",
            " request.body",
            "request.body.a\n",
        ] {
            assert_eq!(Reference::parse(path), None, "{path:?}");
        }
        assert_eq!(Reference::parse(&format!("request.body{}", ".a".repeat(MAX_SEGMENTS))), None);
    }
}
