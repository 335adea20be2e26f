//! The sagas in the admin API: their states, and a person's decision on one that is stuck.

use crate::control::{Decided, Event as ControlEvent, Events, SagaDecision, SagaStatus};
use crate::idempotency::{Id, Records};
use crate::proxy::{Snapshot, missing_pool, status_of};
use crate::saga::Definition;
use crate::saga::log::{Outcome, Standing, decode};
use crate::saga::machine::Event;

/// Returns the sagas in a state, or all of them.
pub(super) async fn listed(records: &Records, state: Option<&str>) -> Result<Vec<SagaStatus>, String> {
    if !records.keeps_sagas() {
        return Ok(Vec::new());
    }
    let standing = state.and_then(|word| Standing::ALL.into_iter().find(|standing| standing.word() == word));
    let found = records.sagas(standing).await.map_err(|error| error.to_string())?;
    Ok(found.iter().filter_map(status_of).collect())
}

/// Has a stuck saga go on as a person has decided.
pub(super) async fn decide(
    (records, snapshot): (&Records, &Snapshot),
    events: &Events,
    id: &str,
    decision: SagaDecision,
    by: &str,
) -> Result<Decided, String> {
    let Some(id) = Id::parse(id).filter(|_| records.keeps_sagas()) else { return Ok(Decided::Absent) };
    let Some(row) = records.saga(id).await.map_err(|error| error.to_string())? else { return Ok(Decided::Absent) };
    let definition = Definition::from_bytes(row.definition.as_bytes()).ok();
    if let Some(pool) = definition.as_ref().and_then(|definition| missing_pool(definition, snapshot)) {
        return Ok(Decided::LacksPool(pool.to_owned()));
    }
    let has_turned = decode(&row.log).is_ok_and(|log| log.iter().any(|entry| entry.is_turn()));
    let event = match decision {
        SagaDecision::Retry => Event::Retry { by: by.to_owned() },
        SagaDecision::ResolveSucceeded if has_turned => return Ok(Decided::Unfit),
        SagaDecision::ResolveSucceeded => Event::Resolve { by: by.to_owned(), outcome: Outcome::Succeeded },
        SagaDecision::ResolveCompensated => Event::Resolve { by: by.to_owned(), outcome: Outcome::Compensated },
    };
    // Logged before as well, as the store may carry it out after the request has been abandoned.
    tracing::info!(%id, by, decision = decision.words(), "a person asks for a decision on a saga");
    if !records.decide(id, event).await.map_err(|error| error.to_string())? {
        tracing::info!(%id, by, decision = decision.words(), "the decision was refused: the saga is not stuck");
        return Ok(Decided::Unfit);
    }
    tracing::warn!(%id, by, decision = decision.words(), "a person has decided on a saga");
    let (id, decision, by) = (id.to_string(), decision.words().to_owned(), by.to_owned());
    events.record(ControlEvent::SagaDecided { id, decision, by });
    Ok(Decided::Accepted)
}
