//! The bodies of requests to the admin API, as orders: purges, and decisions on sagas.

use crate::control::{PurgeOrder, PurgeTarget, SagaDecision};
use serde_json::Value as Json;

/// Returns the decision that a path and a body stand for, and the name of the person; or why it makes no sense.
pub(super) fn decision(word: &str, body: &[u8]) -> Result<(SagaDecision, Option<String>), String> {
    const EXPECTED: &str = r#"expected a JSON object with "outcome": "succeeded" or "compensated" for `resolve`, and perhaps "by" with a name of at most 128 characters"#;
    let given = match body.trim_ascii() {
        b"" => serde_json::Map::new(),
        body => match serde_json::from_slice(body) {
            Ok(Json::Object(given)) => given,
            _ => return Err(EXPECTED.to_owned()),
        },
    };
    let (mut outcome, mut by) = (None, None);
    for (key, value) in &given {
        match (key.as_str(), value.as_str()) {
            ("outcome", Some("succeeded")) if word == "resolve" => outcome = Some(SagaDecision::ResolveSucceeded),
            ("outcome", Some("compensated")) if word == "resolve" => outcome = Some(SagaDecision::ResolveCompensated),
            ("by", Some(name)) if is_name(name) => by = Some(name.to_owned()),
            _ => return Err(format!("`{key}` is not known here, or has another value; {EXPECTED}")),
        }
    }
    let retry = (word == "retry").then_some(SagaDecision::Retry);
    Ok((retry.or(outcome).ok_or(EXPECTED)?, by))
}

/// Returns the name of the person that an order comes from, where its body has one; or why the body makes no sense.
pub(super) fn person(body: &[u8]) -> Result<Option<String>, String> {
    const EXPECTED: &str = r#"expected no body, or a JSON object with "by": a name of at most 128 characters"#;
    let given = match body.trim_ascii() {
        b"" => return Ok(None),
        body => match serde_json::from_slice(body) {
            Ok(Json::Object(given)) => given,
            _ => return Err(EXPECTED.to_owned()),
        },
    };
    match given.get("by").and_then(Json::as_str) {
        Some(name) if given.len() == 1 && is_name(name) => Ok(Some(name.to_owned())),
        None if given.is_empty() => Ok(None),
        _ => Err(EXPECTED.to_owned()),
    }
}

/// Returns whether a text can stand in a log as the name of a person.
fn is_name(text: &str) -> bool {
    (1..=128).contains(&text.chars().count()) && !text.chars().any(char::is_control)
}

/// Returns the purge that a body requests, or the reason for which it is invalid.
pub(super) fn purge_order(body: &[u8]) -> Result<PurgeOrder, String> {
    const EXPECTED: &str = r#"expected a JSON object with one of "url", "prefix", "tag" (each a text) and "all": true, and perhaps "soft": true"#;
    let Ok(Json::Object(given)) = serde_json::from_slice(body) else { return Err(EXPECTED.to_owned()) };
    let mut what = None;
    let mut soft = false;
    for (key, value) in &given {
        let text = || match value {
            Json::String(text) if !text.is_empty() => Ok(text.clone()),
            _ => Err(format!("expected a text for \"{key}\"; {EXPECTED}")),
        };
        let target = match key.as_str() {
            "url" => Some(PurgeTarget::Url(text()?)),
            "prefix" => Some(PurgeTarget::Prefix(text()?)),
            "tag" => Some(PurgeTarget::Tag(text()?)),
            "all" if *value == Json::Bool(true) => Some(PurgeTarget::All),
            "all" | "soft" if !value.is_boolean() => return Err(format!("expected true or false for \"{key}\"")),
            "all" => None,
            "soft" => {
                soft = *value == Json::Bool(true);
                None
            }
            _ => return Err(format!("`{key}` is not known; {EXPECTED}")),
        };
        if target.is_some() && what.is_some() {
            return Err(EXPECTED.to_owned());
        }
        what = what.or(target);
    }
    what.map(|what| PurgeOrder { what, soft }).ok_or_else(|| EXPECTED.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_says_what_became_of_the_saga() {
        let read = |word, body: &str| decision(word, body.as_bytes());
        let by = |name: &str| Some(name.to_owned());
        assert_eq!(read("retry", ""), Ok((SagaDecision::Retry, None)));
        assert_eq!(read("retry", r#" {"by": "ann"} "#), Ok((SagaDecision::Retry, by("ann"))));
        let (succeeded, compensated) = (SagaDecision::ResolveSucceeded, SagaDecision::ResolveCompensated);
        assert_eq!(read("resolve", r#"{"outcome": "succeeded"}"#), Ok((succeeded, None)));
        assert_eq!(read("resolve", r#"{"outcome": "compensated", "by": "b"}"#), Ok((compensated, by("b"))));
        for (word, bad) in [
            ("resolve", ""),
            ("resolve", "{}"),
            ("resolve", r#"{"outcome": "stuck"}"#),
            ("retry", r#"{"outcome": "succeeded"}"#),
            ("retry", r#"{"by": "a\nb"}"#),
            ("retry", r#"{"by": ""}"#),
            ("retry", r#"{"who": "ann"}"#),
            ("retry", "[]"),
            ("retry", "no JSON"),
        ] {
            assert!(read(word, bad).is_err(), "{word} {bad}");
        }
    }

    #[test]
    fn an_order_may_name_a_person() {
        assert_eq!(person(b""), Ok(None));
        assert_eq!(person(b"{}"), Ok(None));
        assert_eq!(person(br#"{"by": "ann"}"#), Ok(Some("ann".to_owned())));
        for bad in ["[]", r#"{"by": ""}"#, r#"{"by": 1}"#, r#"{"by": "a", "x": 1}"#, r#"{"x": "a"}"#] {
            assert!(person(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn purges_say_one_thing() {
        let read = |text: &str| purge_order(text.as_bytes());
        let order = |what, soft| Ok(PurgeOrder { what, soft });
        assert_eq!(read(r#"{"url": "http://a/b"}"#), order(PurgeTarget::Url("http://a/b".into()), false));
        assert_eq!(read(r#"{"prefix": "/a", "soft": true}"#), order(PurgeTarget::Prefix("/a".into()), true));
        assert_eq!(read(r#"{"soft": false, "tag": "t"}"#), order(PurgeTarget::Tag("t".into()), false));
        assert_eq!(read(r#"{"all": true}"#), order(PurgeTarget::All, false));
        for bad in [
            "",
            "[]",
            "{}",
            r#"{"all": false}"#,
            r#"{"all": 1}"#,
            r#"{"url": ""}"#,
            r#"{"url": 1}"#,
            r#"{"url": "/a", "tag": "b"}"#,
            r#"{"tags": "b"}"#,
            r#"{"all": true, "soft": "yes"}"#,
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
