//! The step that begins a saga: key, fingerprint, the values that its templates use, and the claim.

use super::answers;
use super::executor::{Ending, Executor};
use super::rules::SagaRules;
use crate::http::budget::Share;
use crate::http::head::RequestHead;
use crate::http::problem::{Problem, ProblemKind};
use crate::idempotency::{
    Claim, Fingerprint, Fingerprinting, Id, KeyedRequest, NewSaga, Pieces, Refused, Started, StoredResponse, Subject,
    repeat, start,
};
use crate::proxy::body::{BodyRules, RequestBody};
use crate::proxy::client_body::BodyFault;
use crate::proxy::downstream::Downstream;
use crate::proxy::exchange::Exchange;
use crate::proxy::idempotent::{self, FIRST_SHARE, Identified};
use crate::proxy::problems::{body_problem, over_budget};
use crate::proxy::rate_limit::Uncounted;
use crate::proxy::request::Form;
use crate::proxy::respond::Reply;
use crate::proxy::snapshot::{IdempotencyResult, IdempotencyRules};
use crate::proxy::step::Step;
use crate::proxy::worker_context::WorkerContext;
use crate::saga::log::{Progress, Standing};
use crate::saga::machine::Event;
use crate::saga::{BadInput, Kept};
use bytes::Bytes;
use http::HeaderMap;
use http_body_util::BodyExt;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::oneshot;

/// A request that has found a route with a saga.
pub(in crate::proxy) struct SagaRequest<'a> {
    pub(in crate::proxy) worker: &'a Rc<WorkerContext>,
    pub(in crate::proxy) downstream: &'a Rc<Downstream>,
    pub(in crate::proxy) exchange: &'a Rc<Exchange>,
    pub(in crate::proxy) saga: &'a Arc<SagaRules>,
    pub(in crate::proxy) rules: Option<&'a Arc<IdempotencyRules>>,
    pub(in crate::proxy) form: Form<'a>,
    pub(in crate::proxy) uncounted: Option<Uncounted>,
    pub(in crate::proxy) body_rules: BodyRules,
}

/// Refuses a request by its head, or begins what answers it.
pub(in crate::proxy) fn begin(request: SagaRequest<'_>, head: &RequestHead) -> Result<Step, Problem> {
    let SagaRequest { worker, downstream, exchange, saga, rules, form, uncounted, body_rules } = request;
    let rules = rules.ok_or_else(|| {
        Problem::new(ProblemKind::MethodNotAllowed, "a saga runs for the methods of `idempotency.methods` alone")
    })?;
    let Identified { id, subject } = idempotent::identify(rules, exchange, &form, head)?;
    let announced = form.content_length.unwrap_or_default();
    let held = worker.budget.share(announced.min(FIRST_SHARE)).ok_or_else(over_budget)?;
    let begin = if rules.is_canonical { Fingerprint::canonical } else { Fingerprint::exact };
    let fingerprint = begin(form.query.as_deref(), head.fields.plain());
    let mut fields = head.fields.plain().clone();
    worker.identifiers.borrow_mut().set(&mut fields);
    exchange.identified(head.fields.facts.address, &fields);
    let body_rules = BodyRules { limit: rules.max_request.min(body_rules.limit), ..body_rules };
    let body = form.has_body.then(|| RequestBody::new(downstream, exchange, None, body_rules));
    let keyed = Box::new(KeyedSaga {
        worker: Rc::clone(worker),
        exchange: Rc::clone(exchange),
        saga: Arc::clone(saga),
        rules: Arc::clone(rules),
        fields,
        body_limit: body_rules.limit,
        held,
        id,
        subject,
        fingerprint,
        uncounted,
    });
    Ok(Step::Later(Box::pin(keyed.reply(body))))
}

/// A request that is to run as a saga.
struct KeyedSaga {
    worker: Rc<WorkerContext>,
    exchange: Rc<Exchange>,
    saga: Arc<SagaRules>,
    rules: Arc<IdempotencyRules>,
    /// The fields that the templates may name.
    fields: HeaderMap,
    body_limit: u64,
    /// For the body.
    held: Share,
    id: Id,
    subject: Arc<Subject>,
    fingerprint: Fingerprinting,
    uncounted: Option<Uncounted>,
}

impl KeyedSaga {
    async fn reply(mut self: Box<Self>, body: Option<RequestBody>) -> Reply {
        let exchange = Rc::clone(&self.exchange);
        let replied = async {
            let body = match body {
                Some(body) => self.read(body).await?,
                None => Bytes::new(),
            };
            self.find(body).await
        };
        replied.await.unwrap_or_else(|problem| Reply::problem(&problem, &exchange))
    }

    /// Reads the request's body to its end.
    async fn read(&mut self, mut body: RequestBody) -> Result<Bytes, Problem> {
        let mut pieces = Pieces::default();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| {
                let fault = self.exchange.body_fault.get().unwrap_or(BodyFault::ClientGone);
                body_problem(fault, self.body_limit)
            })?;
            if let Ok(data) = frame.into_data() {
                if !self.held.cover(pieces.length + data.len() as u64) {
                    return Err(over_budget().closing());
                }
                pieces.push(data);
            }
        }
        Ok(pieces.join())
    }

    async fn find(&mut self, body: Bytes) -> Result<Reply, Problem> {
        let fingerprint = self.fingerprint.clone().finish(&body);
        let asked = KeyedRequest { id: self.id, subject: Arc::clone(&self.subject), fingerprint };
        let records = Arc::clone(&self.rules.records);
        let inputs = match self.saga.definition.inputs(&self.fields, &body) {
            Ok(inputs) => inputs,
            // The record of the key decides first: a reload may have changed what the saga needs.
            Err(bad) => match repeat(&records, &asked, &self.rules.policy).await {
                Some(started) => return self.answer(started).await,
                None => {
                    self.note(IdempotencyResult::Invalid);
                    return Err(bad_input(&bad));
                }
            },
        };
        let seed = seed()?;
        let new = NewSaga {
            seed,
            definition: self.saga.text.clone(),
            inputs: String::from_utf8(inputs.to_bytes()).unwrap_or_default(),
            ttl: self.rules.policy.ttl,
        };
        match start(&records, &asked, &self.rules.policy, Some(&new)).await {
            Started::First(claim) => {
                self.note(IdempotencyResult::First);
                self.run(claim, seed, inputs).await
            }
            started => self.answer(started).await,
        }
    }

    /// Returns the answer to a request that begins no saga.
    async fn answer(&self, started: Started) -> Result<Reply, Problem> {
        match started {
            Started::Replay(response) => {
                self.note(IdempotencyResult::Replayed);
                self.restore(response, true)
            }
            Started::Refused(Refused::Running) => {
                self.note(IdempotencyResult::Conflict);
                let standing = self.rules.records.saga(self.id).await.ok().flatten().map(|row| row.standing);
                Ok(self.unfinished(standing.unwrap_or(Standing::Running)))
            }
            Started::Refused(refused) => {
                self.note(idempotent::result_of(&refused));
                Err(idempotent::refusal(&refused, false))
            }
            Started::Unprotected(error) => {
                self.note(IdempotencyResult::StoreFailure);
                Err(idempotent::refusal(&Refused::StoreFailed(error), false))
            }
            // Dropped, the claim is released.
            Started::First(_) => Ok(self.unfinished(Standing::Running)),
        }
    }

    fn note(&self, result: IdempotencyResult) {
        idempotent::note(&self.rules, &self.exchange, result);
    }

    /// Carries the saga out, and waits for its end.
    async fn run(&mut self, claim: Claim, seed: [u8; 16], kept: Kept) -> Result<Reply, Problem> {
        let counted = self.uncounted.take().map_or(Ok(()), |uncounted| self.exchange.count(uncounted));
        // Dropped, the claim and its saga are released.
        counted?;
        let answer_by = Instant::now() + self.saga.answer_within();
        let (waiting, ended) = oneshot::channel();
        let standing = Rc::new(Cell::new(Standing::Running));
        let open = claim.into_saga();
        let steps = self.saga.definition.steps.len();
        let progress = Progress::new(steps, open.created);
        let executor = Executor {
            worker: Rc::clone(&self.worker),
            records: Arc::clone(&self.rules.records),
            definition: Arc::clone(&self.saga.definition),
            plan: Arc::clone(&self.saga.plan),
            seed,
            kept,
            open,
            pools: self.worker.snapshot().pools.clone(),
            standing: Rc::clone(&standing),
            decided: None,
            mark: Default::default(),
            waiting: Some(waiting),
        };
        executor.spawn(progress, Event::Begin);
        match tokio::time::timeout_at(answer_by.into(), ended).await {
            Ok(Ok(Ending::Answer(response))) => self.restore(response, false),
            Ok(Ok(Ending::Stuck)) => Ok(self.unfinished(Standing::Stuck)),
            // Another process goes on with it; or the time is up.
            Ok(Ok(Ending::Left) | Err(_)) | Err(_) => Ok(self.unfinished(standing.get())),
        }
    }

    /// Returns the final answer.
    fn restore(&self, response: StoredResponse, is_replayed: bool) -> Result<Reply, Problem> {
        let share = self.worker.budget.share(response.body.len() as u64).ok_or_else(over_budget)?;
        idempotent::replay(response, share, &self.exchange, is_replayed)
    }

    /// Returns the answer where there is no final one yet.
    fn unfinished(&self, standing: Standing) -> Reply {
        Reply::problem(&answers::problem(standing), &self.exchange).with_location(answers::location(self.id))
    }
}

fn seed() -> Result<[u8; 16], Problem> {
    let mut seed = [0; 16];
    getrandom::fill(&mut seed).map_err(|error| {
        tracing::error!(%error, "the system has no randomness");
        Problem::new(ProblemKind::StoreUnavailable, "no saga can begin; repeat the request later").retry_after(1)
    })?;
    Ok(seed)
}

fn bad_input(bad: &BadInput) -> Problem {
    let kind = match bad {
        BadInput::TooLarge => ProblemKind::SagaInputTooLarge,
        BadInput::NoJson | BadInput::Unresolved(_) => ProblemKind::SagaInput,
    };
    Problem::new(kind, bad.to_string())
}
