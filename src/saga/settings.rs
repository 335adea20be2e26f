//! The definition of a saga from the settings of its route, which are valid by then.

use super::definition::{Definition, Respond, Retries, Step, StepRequest};
use crate::config::{self, SagaRequest, SagaStep};

impl Definition {
    /// Returns the definition that a route's settings describe.
    pub(crate) fn of(route: &str, saga: &config::Saga) -> Definition {
        Definition {
            route: route.to_owned(),
            deadline: saga.deadline,
            stuck_after: saga.stuck_after,
            changes: saga.changes.iter().map(|group| group.value.clone()).collect(),
            steps: saga.steps.iter().map(step).collect(),
            respond: Respond {
                status: saga.respond.status,
                body: saga.respond.body.as_ref().map(|body| body.template.clone()),
            },
        }
    }
}

fn step(step: &SagaStep) -> Step {
    Step {
        name: step.name.value.clone(),
        request: request(&step.request),
        compensate: step.compensate.as_ref().and_then(|undo| undo.request()).map(request),
        timeout: step.timeout,
        retries: Retries { attempts: step.retries.attempts, backoff: step.retries.backoff },
    }
}

fn request(request: &SagaRequest) -> StepRequest {
    let headers = request.headers.entries.iter();
    StepRequest {
        pool: request.pool.value.clone(),
        method: request.method.value.clone(),
        path: request.path.template.clone(),
        headers: headers.map(|(name, value)| (name.value.clone(), value.template.clone())).collect(),
        body: request.body.as_ref().map(|body| body.template.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use std::path::Path;

    /// The saga of the golden configuration.
    fn golden() -> config::Saga {
        let text = include_str!("../../tests/config/saga.yaml");
        let settings = Config::settings_of(Path::new("saga.yaml"), text, &|name| Some(format!("value of {name}")));
        settings.routes[0].saga.as_ref().unwrap().value.0.clone()
    }

    #[test]
    fn the_definition_has_all_that_the_settings_say() {
        let definition = Definition::of("checkout", &golden());
        assert_eq!(Definition::from_bytes(&definition.to_bytes()).unwrap(), definition);
        let text = String::from_utf8(definition.to_bytes()).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["route"], "checkout");
        assert_eq!((&json["deadline_ms"], &json["stuck_after_ms"]), (&30_000.into(), &86_400_000.into()));
        assert_eq!(json["changes"][0], "shop.example/stock");
        let reserve = &json["steps"][0];
        assert_eq!(reserve["request"]["headers"][0], serde_json::json!(["authorization", "Bearer ${env.EDGE}"]));
        let body =
            r#"{"items":"${request.body.items}","note":"$${literal} for ${request.body.order}","n":[1.50,null,true]}"#;
        assert_eq!(reserve["request"]["body"], body);
        assert_eq!(reserve["compensate"]["path"], "/reservations/${steps.reserve.key}/undo");
        assert_eq!(
            (&reserve["timeout_ms"], &reserve["attempts"], &reserve["backoff_ms"]),
            (&2000.into(), &3.into(), &100.into())
        );
        assert_eq!(
            (&json["steps"][1]["compensate"], &json["steps"][1]["request"]["method"]),
            (&().into(), &"GET".into())
        );
        assert_eq!((&json["steps"][2]["timeout_ms"], &json["respond"]["status"]), (&5000.into(), &201.into()));
        assert_eq!(definition.pivot(), Some(3));
        assert!(!text.contains("value of EDGE"), "{text}");
    }
}
