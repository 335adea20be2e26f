//! Carries out a saga that this process owns: the effects of [`step`], one after the other, until the saga is over or
//! stuck, or another process owns it.
//!
//! When the process is about to end, the saga is left to another process between two attempts, so that no step is sent
//! without need; a client that waits keeps it here for a moment.

use super::answers;
use super::kill::{self, Side};
use crate::clock::BootTime;
use crate::control::Event as ControlEvent;
use crate::fleet::quorum::Mark;
use crate::idempotency::{LostSaga, OpenSaga, Records, StoredResponse};
use crate::proxy::session;
use crate::proxy::strong::MarkOrder;
use crate::proxy::worker_context::WorkerContext;
use crate::saga::keys::Seed;
use crate::saga::log::{Entry, Millis, Outcome, Progress, Standing, What};
use crate::saga::machine::{Answer, Effect, Event, Plan, State, Way, step};
use crate::saga::{Definition, Kept};
use crate::upstream::Pool;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// For how long a client that waits keeps a saga with a process that is about to end.
const LAST_MOMENT: Duration = Duration::from_secs(2);

/// Another process owns the saga now.
pub(super) type Lost = LostSaga;

/// The result of the work on a saga.
pub(super) enum Ending {
    Answer(StoredResponse),
    Stuck,
    /// Another process goes on with it.
    Left,
}

/// The mark of a saga.
#[derive(Default)]
pub(super) struct SagaMark {
    pub(super) held: Option<(Rc<MarkOrder>, Mark)>,
    /// The time from which a step may not be sent under it.
    pub(super) send_by: Option<BootTime>,
    /// A request was not answered, and may still take effect.
    pub(super) is_open: bool,
}

/// A saga that this process works on.
pub(super) struct Executor {
    pub(super) worker: Rc<WorkerContext>,
    pub(super) records: Arc<Records>,
    pub(super) definition: Arc<Definition>,
    pub(super) plan: Arc<Plan>,
    pub(super) seed: Seed,
    /// The values that templates use.
    pub(super) kept: Kept,
    pub(super) open: OpenSaga,
    /// The pools of the configuration that was in force when the work began.
    pub(super) pools: Vec<Arc<Pool>>,
    pub(super) standing: Rc<Cell<Standing>>,
    /// Told once a person's decision is in the log.
    pub(super) decided: Option<oneshot::Sender<()>>,
    pub(super) mark: SagaMark,
    /// The client that waits for the end.
    pub(super) waiting: Option<oneshot::Sender<Ending>>,
}

impl Executor {
    /// Goes on with a saga, in a task of its own.
    pub(super) fn spawn(mut self, progress: Progress, event: Event) {
        let here = Rc::clone(&self.worker.tasks);
        tokio::task::spawn_local(async move {
            let ending = self.run(progress, event).await.unwrap_or(Ending::Left);
            self.end_mark(!matches!(ending, Ending::Left)).await;
            let Executor { open, waiting, .. } = self;
            if matches!(ending, Ending::Left) {
                open.give_up().await;
            } else {
                drop(open);
            }
            if let Some(waiting) = waiting {
                let _ = waiting.send(ending);
            }
            drop(here);
        });
    }

    async fn run(&mut self, progress: Progress, event: Event) -> Result<Ending, Lost> {
        let state = State::begin(self.open.created, progress);
        let plan = Arc::clone(&self.plan);
        let (mut state, mut effect) = step(&plan, &state, event, self.open.now());
        let mut answer = None;
        while let Some(next) = effect {
            let event = match next {
                Effect::Append(entries) => {
                    answer = self.append(&state.progress, entries).await?;
                    Event::Durable
                }
                Effect::Send { step, way, give_up } => {
                    if self.is_to_leave() {
                        return Ok(Ending::Left);
                    }
                    let answer = self.attempt_marked(step, way, give_up).await?;
                    self.count_attempt(step, way, &answer);
                    Event::Answer(answer)
                }
                Effect::Wait { until } => {
                    if !self.wait_marked(until).await {
                        return Ok(Ending::Left);
                    }
                    Event::Due
                }
            };
            (state, effect) = step(&plan, &state, event, self.open.now());
        }
        Ok(answer.map_or(Ending::Stuck, Ending::Answer))
    }

    /// Makes entries durable, with the final answer where they end the saga. Returns the answer.
    async fn append(&mut self, before: &Progress, entries: Vec<Entry>) -> Result<Option<StoredResponse>, Lost> {
        let mut after = before.clone();
        for entry in &entries {
            after.apply(entry);
            if let What::Succeeded { outputs, .. } = &entry.what {
                self.keep(outputs);
            }
        }
        let answer = after.outcome.map(|outcome| self.answer(outcome, &after));
        kill::at(Side::Before);
        self.open.append(&entries, after.standing(), answer.clone()).await?;
        kill::at(Side::After);
        if let Some(decided) = self.decided.take() {
            let _ = decided.send(());
        }
        self.standing.set(after.standing());
        self.tell(before, &after);
        Ok(answer)
    }

    fn keep(&mut self, outputs: &str) {
        if let Some(outputs) = Kept::from_bytes(outputs.as_bytes()) {
            // They were measured when the answer came.
            let _ = self.kept.add(outputs);
        }
    }

    fn answer(&self, outcome: Outcome, progress: &Progress) -> StoredResponse {
        match (outcome, progress.turn) {
            (Outcome::Compensated, Some(turn)) => answers::compensated(&self.definition, turn),
            _ => {
                let snapshot = self.worker.snapshot();
                self.with_context(|context| answers::succeeded(&self.definition, context, &snapshot))
            }
        }
    }

    /// Counts and logs that a saga has ended, or is stuck.
    fn tell(&self, before: &Progress, after: &Progress) {
        let standing = after.standing();
        if standing == before.standing() || !(standing.is_end() || standing == Standing::Stuck) {
            return;
        }
        if !self.definition.changes.is_empty() {
            session::announce(&self.worker.causality, self.worker.bus.as_ref(), &self.definition.changes);
        }
        let (id, route) = (self.open.id, self.definition.route.as_str());
        self.worker.recorder.metrics().sagas.with_label_values(&[route, standing.word()]).inc();
        if standing == Standing::Succeeded {
            return;
        }
        let failed = after.turn.map(|turn| turn.step).or(after.current());
        let step = failed.and_then(|step| self.definition.steps.get(step)).map(|step| step.name.clone());
        let status = after.turn.and_then(|turn| turn.status);
        let cause = after.turn.map(|turn| turn.cause);
        let by = step.as_deref();
        match standing {
            Standing::Stuck => {
                tracing::error!(%id, route, step = by, status, ?cause, "a saga is stuck, and waits for a person");
            }
            _ => tracing::warn!(%id, route, step = by, status, ?cause, "a saga was compensated"),
        }
        let (id, route, state) = (id.to_string(), route.to_owned(), standing.word().to_owned());
        self.records.record(ControlEvent::Saga { id, route, state, step, status });
    }

    fn count_attempt(&self, step: usize, way: Way, answer: &Answer) {
        let outcome = match (answer, way) {
            (Answer::Success { .. }, Way::Do) => "done",
            (Answer::Success { .. }, Way::Undo) => "undone",
            (answer, Way::Do) if answer.is_temporary() => "postponed",
            (Answer::Status { status, .. }, Way::Do) if (400..500).contains(status) => "refused",
            (Answer::Status { .. } | Answer::None, Way::Do) => "unknown",
            (Answer::NotSent | Answer::Unresolved, Way::Do) => "not_sent",
            (_, Way::Undo) => "undo_failed",
        };
        let labels = [self.definition.route.as_str(), self.definition.steps[step].name.as_str(), outcome];
        self.worker.recorder.metrics().saga_steps.with_label_values(&labels).inc();
    }

    /// Returns whether a client waits for the end.
    fn has_client(&self) -> bool {
        self.waiting.as_ref().is_some_and(|waiting| !waiting.is_closed())
    }

    /// Returns whether the saga is to be left to another process.
    fn is_to_leave(&self) -> bool {
        self.worker.leaving_since().is_some_and(|since| !self.has_client() || since.elapsed() >= LAST_MOMENT)
    }

    /// Waits until a time of the store. Returns whether the saga stays here.
    pub(super) async fn wait(&mut self, until: Millis) -> bool {
        loop {
            if self.is_to_leave() {
                return false;
            }
            let left = Duration::from_millis(until.saturating_sub(self.open.now()));
            if left.is_zero() {
                return true;
            }
            let is_leaving = self.worker.leaving_since().is_some();
            let left = if is_leaving { left.min(LAST_MOMENT / 20) } else { left };
            let wake = Instant::now() + left;
            tokio::select! {
                () = tokio::time::sleep_until(wake.into()) => {}
                () = self.worker.leaving(), if !is_leaving => {}
            }
        }
    }
}
