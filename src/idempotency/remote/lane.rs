//! A queue of a remote store: its connection, and the waiting calls.

use super::{ATTEMPT, BATCH, BATCH_BYTES, Engine, Pending, State, Status, Use};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep_until;

/// The reason for which a store is away, in a sentence for operators.
type Outage = String;

/// One of the two queues.
pub(super) struct Lane<'a, E: Engine> {
    pub(super) name: &'static str,
    pub(super) engine: &'a E,
    pub(super) what_for: Use,
    pub(super) queue: mpsc::Receiver<Pending>,
    pub(super) settings: watch::Receiver<E::Settings>,
    pub(super) status: Arc<Status>,
}

/// The end of a wait.
enum Waited<C> {
    Connected(C),
    /// The attempt failed.
    Failed(Outage),
    /// The store has no user any more.
    Ended,
}

impl<E: Engine> Lane<'_, E> {
    /// Carries out calls until the store is dropped.
    pub(super) async fn run(mut self) {
        let mut waiting = Vec::new();
        // Known since the last attempt: calls fail at once.
        let mut outage: Option<Outage> = None;
        let mut attempt_at = Instant::now();
        loop {
            let mut connection = match self.connect(&mut waiting, outage.as_ref(), attempt_at).await {
                Waited::Connected(connection) => connection,
                Waited::Failed(reason) => {
                    self.is_away(&reason);
                    give_up(&mut waiting, &reason, |pending| !pending.is_resent);
                    outage = Some(reason);
                    attempt_at = Instant::now() + ATTEMPT;
                    continue;
                }
                Waited::Ended => return end(waiting),
            };
            outage = None;
            // Calls of unknown fate show whether the store confirms anything.
            if waiting.is_empty() {
                self.look(&connection);
            }
            let mut has_served = false;
            match self.serve(&mut connection, &mut waiting, &mut has_served).await {
                Some(reason) if waiting.is_empty() => {
                    tracing::debug!(store = self.name, reason, "a connection of the store is replaced");
                    self.is_unknown();
                }
                Some(reason) => {
                    self.is_away(&reason);
                    // One that has served nothing is an attempt that failed.
                    if !has_served {
                        outage = Some(reason);
                    }
                }
                None => return end(waiting),
            }
            let pause = if outage.is_some() { ATTEMPT } else { Duration::ZERO };
            attempt_at = Instant::now() + pause;
        }
    }

    /// Connects. Calls that arrive meanwhile fail at once while the store is known to be away, otherwise after a
    /// moment.
    async fn connect(
        &mut self,
        waiting: &mut Vec<Pending>,
        outage: Option<&Outage>,
        attempt_at: Instant,
    ) -> Waited<E::Connection> {
        let settings = self.settings.borrow_and_update().clone();
        let (engine, what_for) = (self.engine, self.what_for);
        let mut attempt = pin!(async move {
            sleep_until(attempt_at.into()).await;
            engine.connect(&settings, what_for).await
        });
        let hold_until = Instant::now() + ATTEMPT;
        let mut is_held = outage.is_none();
        let reason = outage.map_or("it has not answered yet", |reason| reason);
        loop {
            let next_end = waiting.iter().map(|pending| pending.give_up).min();
            tokio::select! {
                biased;
                connected = &mut attempt => return match connected {
                    Ok(connection) => Waited::Connected(connection),
                    Err(reason) => Waited::Failed(reason),
                },
                call = self.queue.recv() => match call {
                    None => return Waited::Ended,
                    Some(pending) if is_held => waiting.push(pending),
                    Some(pending) => pending.give_up(reason),
                },
                () = sleep_until(hold_until.into()), if is_held => {
                    is_held = false;
                    self.is_away(reason);
                    give_up(waiting, reason, |pending| !pending.is_resent);
                }
                () = sleep_until(next_end.unwrap_or(hold_until).into()), if next_end.is_some() => {
                    let now = Instant::now();
                    give_up(waiting, reason, |pending| pending.give_up <= now);
                }
            }
        }
    }

    /// Carries out calls until the connection ends. Returns why it did; nothing where the store has no user any more.
    async fn serve(
        &mut self,
        connection: &mut E::Connection,
        waiting: &mut Vec<Pending>,
        has_served: &mut bool,
    ) -> Option<Outage> {
        loop {
            if waiting.is_empty() {
                tokio::select! {
                    biased;
                    () = self.engine.closed(connection) => return Some("the server has closed the connection".into()),
                    _ = self.settings.changed() => return Some("the settings have changed".into()),
                    call = self.queue.recv() => waiting.push(call?),
                }
            }
            let mut bytes: usize = waiting.iter().map(|pending| pending.call.size()).sum();
            while waiting.len() < BATCH && bytes < BATCH_BYTES {
                let Ok(pending) = self.queue.try_recv() else { break };
                bytes += pending.call.size();
                waiting.push(pending);
            }
            let now = Instant::now();
            give_up(waiting, "it did not answer in time", |pending| pending.give_up <= now);
            if !waiting.is_empty() {
                if let Err(reason) = self.engine.carry_out(connection, waiting).await {
                    return Some(reason);
                }
                if waiting.is_empty() {
                    *has_served = true;
                    self.look(connection);
                }
            }
        }
    }

    /// Notes whether the store accepts claims on a working connection.
    fn look(&self, connection: &E::Connection) {
        match self.engine.refusal(connection) {
            None => self.is_here(),
            Some(reason) => self.is_away(&reason),
        }
    }

    /// Notes that the store confirms calls, and logs a change.
    fn is_here(&self) {
        if self.what_for == Use::Writing && self.status.set(State::Up) != State::Up {
            let promise = self.status.promise().join(" ");
            tracing::info!(store = self.name, promise, "the idempotency store takes claims");
        }
    }

    /// Notes that the state is unknown until the next connection.
    fn is_unknown(&self) {
        if self.what_for == Use::Writing {
            self.status.set(State::Unknown);
        }
    }

    /// Notes that the store cannot be used, and logs a change.
    fn is_away(&self, reason: &str) {
        if self.what_for == Use::Writing && self.status.set(State::Down) != State::Down {
            tracing::error!(store = self.name, reason, "the idempotency store cannot be used");
        }
    }
}

/// Answers some of the waiting calls: those of unknown fate as torn, the others as not sent.
fn give_up(waiting: &mut Vec<Pending>, reason: &str, is_over: impl Fn(&Pending) -> bool) {
    for pending in waiting.extract_if(.., |pending| is_over(pending)) {
        pending.give_up(reason);
    }
}

fn end(waiting: Vec<Pending>) {
    waiting.into_iter().for_each(|pending| pending.give_up("this process ends"));
}
