//! Sagas that other processes have left, or died with: a worker takes them over and goes on.

use super::executor::Executor;
use crate::idempotency::{Records, SagaRow, TakenSaga};
use crate::proxy::snapshot::Snapshot;
use crate::proxy::worker_context::WorkerContext;
use crate::saga::definition::BadDefinition;
use crate::saga::log::{BadLog, Entry, Progress, Standing, What, decode};
use crate::saga::machine::{Event, Plan};
use crate::saga::{Definition, Kept};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

/// The most sagas that a worker takes over in a round: others have their turn.
const AT_ONCE: usize = 16;

/// Goes on with sagas that are without an owner, and with those that a person has decided about.
pub(crate) fn recover(worker: &Rc<WorkerContext>) {
    if worker.leaving_since().is_some() {
        return;
    }
    let snapshot = worker.snapshot();
    let Some(records) = &snapshot.records else { return };
    while let Some(taken) = records.decided_saga() {
        go_on(worker, records, &snapshot, taken);
    }
    for _ in 0..AT_ONCE {
        if records.is_full_of_sagas() {
            return;
        }
        let Some(row) = records.offered_saga() else { break };
        match read(&row) {
            Ok((definition, _)) if has_pools(&definition, &snapshot) => {
                let (worker, records, snapshot) = (Rc::clone(worker), Arc::clone(records), Arc::clone(&snapshot));
                tokio::task::spawn_local(async move {
                    if let Some(taken) = records.take_over(row).await {
                        tracing::info!(id = %taken.row.id, route = definition.route, "a saga was taken over");
                        go_on(&worker, &records, &snapshot, taken);
                    }
                });
            }
            Ok((definition, _)) => {
                let (id, route) = (row.id, definition.route);
                tracing::debug!(%id, route, "a saga is left to others: the configuration lacks a pool of it");
                records.decline(&row);
            }
            Err(error) => {
                if records.note_unreadable_saga(row.id) {
                    tracing::error!(id = %row.id, %error, "a saga cannot be taken over");
                }
                records.decline(&row);
            }
        }
    }
}

/// A row that cannot be read here.
#[derive(Debug, thiserror::Error)]
enum BadRow {
    #[error(transparent)]
    Definition(#[from] BadDefinition),
    #[error(transparent)]
    Log(#[from] BadLog),
}

/// Reads the definition and the log of a saga.
fn read(row: &SagaRow) -> Result<(Definition, Vec<Entry>), BadRow> {
    Ok((Definition::from_bytes(row.definition.as_bytes())?, decode(&row.log)?))
}

fn has_pools(definition: &Definition, snapshot: &Snapshot) -> bool {
    missing_pool(definition, snapshot).is_none()
}

/// Returns a pool of a saga that a configuration lacks.
pub(crate) fn missing_pool<'a>(definition: &'a Definition, snapshot: &Snapshot) -> Option<&'a str> {
    let has = |name: &str| snapshot.pools.iter().any(|pool| *pool.name == *name);
    definition.pools().into_iter().find(|name| !has(name))
}

/// Carries out a saga from where its log ends.
fn go_on(worker: &Rc<WorkerContext>, records: &Arc<Records>, snapshot: &Arc<Snapshot>, taken: TakenSaga) {
    let TakenSaga { row, open, decision } = taken;
    let (definition, entries) = match read(&row) {
        Ok(read) => read,
        Err(error) => {
            tracing::error!(id = %row.id, %error, "a saga cannot be gone on with");
            return;
        }
    };
    let mut kept = Kept::from_bytes(row.inputs.as_bytes()).unwrap_or_default();
    for entry in &entries {
        if let What::Succeeded { outputs, .. } = &entry.what
            && let Some(outputs) = Kept::from_bytes(outputs.as_bytes())
        {
            // An answer that did not fit before does not fit now.
            let _ = kept.add(outputs);
        }
    }
    let progress = Progress::fold(definition.steps.len(), row.created, &entries);
    let (event, decided) = decision.map_or((Event::Begin, None), |decision| (decision.event, Some(decision.logged)));
    let executor = Executor {
        worker: Rc::clone(worker),
        records: Arc::clone(records),
        plan: Arc::new(Plan::of(&definition)),
        definition: Arc::new(definition),
        seed: row.seed,
        kept,
        open,
        pools: snapshot.pools.clone(),
        standing: Rc::new(Cell::new(Standing::Running)),
        decided,
        mark: Default::default(),
        waiting: None,
    };
    executor.spawn(progress, event);
}
