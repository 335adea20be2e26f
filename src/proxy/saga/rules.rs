//! The saga of a route.

use super::answers::SAGAS;
use crate::config;
use crate::config::read::{Named, Spanned};
use crate::config::values::RoutePath;
use crate::saga::Definition;
use crate::saga::machine::Plan;
use std::sync::Arc;
use std::time::Duration;

/// The time after the deadline by which the client has an answer, whatever the saga has come to.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Returns the route to the states of sagas, where a route runs one.
pub(in crate::proxy) fn states_route(routes: &[config::Route]) -> Option<config::Route> {
    let saga = routes.iter().find(|route| route.saga.is_some())?;
    let Spanned { span, .. } = saga.name;
    Some(config::Route {
        name: Spanned { value: "saga-states".to_owned(), span },
        hosts: Vec::new(),
        path: None,
        path_prefix: Some(Spanned { value: RoutePath(SAGAS.to_owned()), span }),
        methods: Vec::new(),
        scheme: None,
        headers: Named::default(),
        saga: None,
        idempotency: None,
        rate_limit: None,
        cache: None,
        affinity_cookie: None,
        ..saga.clone()
    })
}

/// The saga of a route.
pub(crate) struct SagaRules {
    pub(in crate::proxy) definition: Arc<Definition>,
    /// The copy that a row gets.
    pub(super) text: String,
    pub(super) plan: Arc<Plan>,
}

impl SagaRules {
    pub(in crate::proxy) fn of(route: &str, settings: &config::Saga) -> SagaRules {
        let definition = Arc::new(Definition::of(route, settings));
        let text = String::from_utf8(definition.to_bytes()).expect("JSON is text");
        SagaRules { plan: Arc::new(Plan::of(&definition)), definition, text }
    }

    /// Returns the time by which the client that began a saga is answered.
    pub(super) fn answer_within(&self) -> Duration {
        self.definition.deadline + ANSWER_WITHIN
    }
}
