//! The calls that wait, carried out together: one pipeline, and behind the writes of it one `WAIT`.
//!
//! Writes are torn where their fate is unknown: the connection broke or was silent, or fewer replicas than are asked
//! for have acknowledged. They are sent again, and write again. The connection is used for nothing else: `WAIT` answers
//! for the writes of its own connection.

use super::Redis;
use super::connection::{Connection, EMPTY, ask_pulse};
use super::facts::Refusal;
use super::scripts::Script;
use super::values::{self, Strange, holder_text, list, number, token_text};
use crate::clock::BootTime;
use crate::idempotency::clock::{grace, millis};
use crate::idempotency::identity::Id;
use crate::idempotency::record::{Finish, ReleaseWay, State};
use crate::idempotency::remote::{Call, Pending};
use crate::idempotency::store::{Authorised, BATCH, ClaimReply, Claimed, StoreError, Tended};
use crate::idempotency::warn_unknown;
use ::redis::{Cmd, Pipeline, ServerError, Value};
use std::time::Duration;

/// The time for which the server waits for its replicas; less than it may be silent.
const REPLICATION: Duration = Duration::from_millis(700);
/// The same for results that are looked up: shorter than a request waits for one.
const CONFIRMATION: Duration = Duration::from_millis(300);
/// The age at which the pulse of a server is asked for with the next writes.
const PULSE: Duration = Duration::from_millis(250);
/// The age at which claims wait for a new pulse.
const OLD_PULSE: Duration = Duration::from_secs(1);
/// The longest time for which records are kept.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);

const BURIED: &str = "the proxy that held the claim is gone, or has been silent for its whole lease";

/// Why a call was not carried out.
enum Trouble {
    /// The connection is of no use any more; the call itself changed nothing.
    Broken(String),
    /// The server refused it: nothing was changed.
    Refused(StoreError),
    /// It may have been carried out in part.
    Torn(String),
}

impl Trouble {
    fn of(error: &ServerError) -> Trouble {
        let text = format!("{} {}", error.code(), error.details().unwrap_or_default());
        match error.code() {
            // Failovers and restarts, and stores that have lost their identity: a new connection finds out.
            "READONLY" | "LOADING" | "MASTERDOWN" | "NOSCRIPT" | "UNBLOCKED" | "NOAUTH" | "BUSY" => {
                Trouble::Broken(text)
            }
            "FORGOT" => Trouble::Broken(EMPTY.to_owned()),
            "OOM" => Trouble::Refused(StoreError::Full),
            "NOREPLICAS" => Trouble::Refused(StoreError::Away(text)),
            "MISCONF" | "NOPERM" | "WRONGTYPE" => Trouble::Refused(StoreError::Failed(text)),
            _ => Trouble::Torn(text),
        }
    }
}

/// Carries out calls, and removes those that it has answered.
pub(super) async fn carry_out(
    engine: &Redis,
    connection: &mut Connection,
    calls: &mut Vec<Pending>,
) -> Result<(), String> {
    let batch = Batch { engine, connection };
    batch.read(calls).await?;
    batch.write(calls).await?;
    batch.tend(calls).await
}

struct Batch<'a> {
    engine: &'a Redis,
    connection: &'a Connection,
}

fn kept(ttl: Duration) -> u64 {
    let ttl = ttl.min(LONGEST);
    millis(ttl + grace(ttl))
}

fn is_read(call: &Call) -> bool {
    matches!(call, Call::LookUp(..) | Call::Find(..) | Call::Running(_))
}

fn is_write(call: &Call) -> bool {
    matches!(call, Call::Claim(..) | Call::Complete(..) | Call::Release(..) | Call::Authorise(..) | Call::Beat(_))
}

impl Batch<'_> {
    /// Returns the command for a call.
    fn command(&self, call: &Call) -> Cmd {
        let own = holder_text(self.engine.holder);
        match call {
            Call::Claim(claim, _) => {
                let mut command = self.connection.script(Script::Claim);
                command.arg(&claim.id.0).arg(token_text(claim.token)).arg(&claim.fingerprint.0);
                command.arg(u8::from(claim.retake)).arg(millis(claim.lease)).arg(kept(claim.ttl));
                let subject = &claim.subject;
                for text in [&subject.namespace, &subject.method, &subject.authority, &subject.path, &subject.key] {
                    command.arg(text);
                }
                command.arg(&self.engine.name);
                command
            }
            Call::Complete(completion, _) => {
                let mut command = self.connection.script(Script::Complete);
                command.arg(&completion.id.0).arg(token_text(completion.token));
                command.arg(completion.finish.state().code()).arg(kept(completion.ttl));
                if let Some(response) = completion.response.as_ref().filter(|_| completion.finish == Finish::Done) {
                    command.arg(response.status).arg(&response.fields[..]);
                    command.arg(&response.body[..]).arg(&response.trailers[..]);
                }
                command
            }
            Call::Release(release, _) => {
                let way = match release.way {
                    ReleaseWay::Plain => "plain",
                    ReleaseWay::Entombed => "entombed",
                    ReleaseWay::Retaken => "retaken",
                };
                let mut command = self.connection.script(Script::Release);
                command.arg(&release.id.0).arg(token_text(release.token)).arg(kept(release.ttl)).arg(way);
                command
            }
            Call::Authorise(id, _) => {
                let mut command = self.connection.script(Script::Authorise);
                command.arg(&id.0).arg(own);
                command
            }
            Call::Beat(_) => self.beat(),
            Call::Tend(_) => {
                let mut command = self.connection.script(Script::Tend);
                command.arg(own).arg(BATCH);
                command
            }
            Call::Running(_) => {
                let mut command = self.connection.script(Script::Running);
                command.arg(own).arg(BATCH);
                command
            }
            Call::LookUp(id, _) => {
                let mut command = self.connection.script(Script::LookUp);
                command.arg(&id.0);
                command
            }
            Call::Find(key, _) => {
                let (mut first, mut last) = ([0; Id::LENGTH], [0xff; Id::LENGTH]);
                first[..Id::PREFIX].copy_from_slice(&Id::prefix(key));
                last[..Id::PREFIX].copy_from_slice(&Id::prefix(key));
                let mut command = self.connection.script(Script::Find);
                command.arg(&first).arg(&last).arg(key).arg(BATCH);
                command
            }
            Call::Append(..) | Call::TakeOver(..) | Call::Sagas(..) => unreachable!("the adapter refuses sagas"),
        }
    }

    /// Answers look-ups and searches.
    async fn read(&self, calls: &mut Vec<Pending>) -> Result<(), String> {
        let mut commands = Pipeline::new();
        for pending in calls.iter().filter(|pending| is_read(&pending.call)) {
            commands.add_command(self.command(&pending.call));
        }
        if commands.is_empty() {
            return Ok(());
        }
        let replies = self.connection.send(&commands, 0).await?;
        let reads: Vec<Pending> = calls.extract_if(.., |pending| is_read(&pending.call)).collect();
        let mut broken = Ok(());
        let mut results = Vec::new();
        for (pending, reply) in reads.into_iter().zip(replies) {
            match refused(&reply) {
                None if self.may_be_lost(&pending.call, &reply) => results.push((pending, reply)),
                None => answer_read(pending.call, &reply),
                Some(Trouble::Broken(reason)) => {
                    broken = Err(reason);
                    calls.push(pending);
                }
                Some(Trouble::Refused(error)) => pending.call.fail(error),
                Some(Trouble::Torn(text)) => pending.call.fail(StoreError::Failed(text)),
            }
        }
        if !results.is_empty() {
            let confirmed = self.confirm().await;
            for (pending, reply) in results {
                match &confirmed {
                    Ok(true) => answer_read(pending.call, &reply),
                    Ok(false) => pending.call.fail(StoreError::Away("its replicas do not confirm a result".to_owned())),
                    Err(_) => calls.push(pending),
                }
            }
            broken = broken.and(confirmed.map(drop));
        }
        broken
    }

    /// Returns whether a call has found a result that could be lost with the server: replicas may not have it yet. What
    /// a replica shows is not.
    fn may_be_lost(&self, call: &Call, reply: &Value) -> bool {
        let Connection { replicas, facts, .. } = self.connection;
        let is_late = |time| time >= self.engine.confirmed.get();
        *replicas > 0 && facts.is_primary && result_time(call, reply).is_some_and(is_late)
    }

    /// Makes sure that as many replicas as are asked for have all that was read before: by a write that waits for them.
    /// Without that, a result that one client got could be lost with the server. Returns whether they have it.
    async fn confirm(&self) -> Result<bool, String> {
        let replicas = self.connection.replicas;
        let mut commands = Pipeline::new();
        commands.add_command(self.beat());
        commands.cmd("WAIT").arg(replicas).arg(millis(CONFIRMATION));
        let replies = self.connection.send(&commands, 0).await?;
        let [beat, acknowledged] = &replies[..] else { return Err("the server gave no reply".to_owned()) };
        match refused(beat).or_else(|| refused(acknowledged)) {
            Some(Trouble::Broken(reason)) => return Err(reason),
            Some(_) => return Ok(false),
            None => {}
        }
        let is_confirmed = number(acknowledged).is_some_and(|acknowledged| acknowledged >= u64::from(replicas));
        if is_confirmed {
            self.note_confirmed(beat);
        }
        Ok(is_confirmed)
    }

    /// Notes that replicas have whatever was written before a heartbeat.
    fn note_confirmed(&self, beat: &Value) {
        let confirmed = &self.engine.confirmed;
        confirmed.set(number(beat).unwrap_or_default().max(confirmed.get()));
    }

    fn beat(&self) -> Cmd {
        let mut command = self.connection.script(Script::Beat);
        command.arg(holder_text(self.engine.holder)).arg(&self.engine.name);
        command
    }

    /// Carries out claims, completions, releases, releases by operators and heartbeats, in the order in which they
    /// came.
    async fn write(&self, calls: &mut Vec<Pending>) -> Result<(), String> {
        let connection = self.connection;
        self.refuse_claims(calls).await?;
        let mut writes: Vec<Pending> = calls.extract_if(.., |pending| is_write(&pending.call)).collect();
        if writes.is_empty() {
            return Ok(());
        }
        // A heartbeat alone need not wait for replicas.
        let waits = connection.replicas > 0 && writes.iter().any(|pending| !matches!(pending.call, Call::Beat(_)));
        let asks_pulse = connection.pulse_at.get().elapsed() >= PULSE;
        let mut commands = Pipeline::new();
        for pending in &writes {
            commands.add_command(self.command(&pending.call));
        }
        if waits {
            // Claims that find results write nothing, and replicas acknowledge writes alone.
            commands.add_command(self.beat());
            commands.cmd("WAIT").arg(connection.replicas).arg(millis(REPLICATION));
        }
        if asks_pulse {
            commands.add_command(ask_pulse());
        }
        let sent = BootTime::now();
        let bytes = writes.iter().map(|pending| pending.call.size()).sum();
        let mut replies = match connection.send(&commands, bytes).await {
            Ok(replies) => replies,
            Err(reason) => {
                writes.iter_mut().for_each(|pending| pending.is_resent = true);
                calls.append(&mut writes);
                return Err(reason);
            }
        };
        if asks_pulse && let Some(info) = replies.pop() {
            self.note_pulse(&info);
        }
        let mut broken = None;
        let is_torn = waits && {
            let waited = replies.pop().unwrap_or_default();
            if let Some(Trouble::Broken(reason)) = refused(&waited) {
                broken = Some(reason);
            }
            let is_short = number(&waited).is_none_or(|acknowledged| acknowledged < u64::from(connection.replicas));
            if let Some(beat) = replies.pop().filter(|_| !is_short) {
                self.note_confirmed(&beat);
            }
            is_short
        };
        if is_torn {
            tracing::debug!(replicas = connection.replicas, "too few replicas acknowledge: the calls are sent again");
            // Looked at before the next claims.
            connection.pulse_at.set(connection.pulse_at.get() - OLD_PULSE);
        }
        for (mut pending, reply) in writes.into_iter().zip(replies) {
            match refused(&reply) {
                None if is_torn && has_written(&pending.call, &reply) => {
                    pending.is_resent = true;
                    calls.push(pending);
                }
                // Replicas may lack the result.
                None if is_torn && self.may_be_lost(&pending.call, &reply) => calls.push(pending),
                None => answer_write(pending, &reply, sent),
                Some(Trouble::Broken(reason)) => {
                    broken = Some(reason);
                    calls.push(pending);
                }
                Some(Trouble::Refused(error)) => {
                    tracing::error!(%error, "a call to the idempotency store failed");
                    pending.refuse(&error);
                }
                Some(Trouble::Torn(text)) => {
                    tracing::error!(error = text, "a call to the idempotency store failed");
                    pending.call.fail(StoreError::Torn(text));
                }
            }
        }
        broken.map_or(Ok(()), Err)
    }

    fn note_pulse(&self, info: &Value) {
        if let Some(promise) = self.connection.note_pulse(info) {
            self.engine.status.promises(promise);
        }
    }

    /// Refuses new claims where too few replicas are connected, or too little memory is left.
    async fn refuse_claims(&self, calls: &mut Vec<Pending>) -> Result<(), String> {
        let is_new_claim = |pending: &Pending| matches!(pending.call, Call::Claim(..)) && !pending.is_resent;
        if !calls.iter().any(is_new_claim) {
            return Ok(());
        }
        let connection = self.connection;
        let refuses = || {
            let pulse = connection.pulse.borrow();
            (pulse.refuses(connection.replicas), pulse.evicts())
        };
        if connection.pulse_at.get().elapsed() >= OLD_PULSE || refuses() != (None, false) {
            let info = connection.ask(ask_pulse()).await?;
            self.note_pulse(&info);
        }
        let (refusal, evicts) = refuses();
        if evicts {
            return Err("the server has begun to evict records".to_owned());
        }
        if let Some(refusal) = refusal {
            for pending in calls.extract_if(.., |pending| is_new_claim(pending)) {
                pending.call.fail(match &refusal {
                    Refusal::TooFewReplicas(reason) => StoreError::Away(reason.clone()),
                    Refusal::NoMemory => StoreError::Full,
                });
            }
        }
        Ok(())
    }

    /// Carries out upkeep. Redis works on one script at a time, so that proxies do not meet here.
    async fn tend(&self, calls: &mut Vec<Pending>) -> Result<(), String> {
        while let Some(at) = calls.iter().position(|pending| matches!(pending.call, Call::Tend(_))) {
            let reply = self.connection.ask(self.command(&calls[at].call)).await?;
            let Call::Tend(done) = calls.swap_remove(at).call else { continue };
            let (expired, count, buried) = match list(&reply) {
                [expired, count, buried] => (number(expired), number(count), list(buried)),
                _ => (None, None, &[][..]),
            };
            buried.iter().filter_map(values::buried).for_each(|(id, subject)| warn_unknown(id, &subject, BURIED));
            self.engine.status.counted(count.unwrap_or_default());
            let expired = expired.and_then(|expired| usize::try_from(expired).ok()).unwrap_or_default();
            done(Ok(Tended { expired, more: expired.max(buried.len()) >= BATCH as usize }));
        }
        Ok(())
    }
}

/// Returns why the server refused a command.
fn refused(reply: &Value) -> Option<Trouble> {
    match reply {
        Value::ServerError(error) => Some(Trouble::of(error)),
        _ => None,
    }
}

fn strange(_: Strange) -> StoreError {
    StoreError::Failed("the store gave a strange reply".to_owned())
}

fn answer_read(call: Call, reply: &Value) {
    match call {
        Call::LookUp(_, done) => done(values::found(reply).map_err(strange)),
        Call::Find(_, done) => done(values::listed(reply).map_err(strange)),
        Call::Running(done) => done(Ok(list(reply).iter().filter_map(values::running).collect())),
        call => call.fail(strange(Strange)),
    }
}

/// Returns whether a call has changed the store, so that its answer waits for the replicas.
fn has_written(call: &Call, reply: &Value) -> bool {
    match call {
        Call::Claim(..) => matches!(list(reply).first().and_then(number), Some(1 | 2)),
        Call::Complete(..) => number(reply) == Some(1),
        Call::Release(release, _) => number(reply) == Some(1) || release.way != ReleaseWay::Plain,
        Call::Authorise(..) => list(reply).first().and_then(number) == Some(1),
        _ => false,
    }
}

/// Returns the time of the result that a call has found, where it has found one, in microseconds. One that is not known
/// counts as later than any other.
fn result_time(call: &Call, reply: &Value) -> Option<u64> {
    let values = match call {
        Call::Claim(..) => list(reply).get(2).map_or(&[][..], list),
        Call::LookUp(..) => list(reply),
        _ => &[],
    };
    let state = values.first().and_then(number).and_then(|code| i16::try_from(code).ok());
    let has_result = matches!(state.and_then(State::of), Some(State::Done | State::DoneWithoutBody));
    has_result.then(|| values.get(10).and_then(number).unwrap_or(u64::MAX))
}

fn answer_write(pending: Pending, reply: &Value, sent: BootTime) {
    let is_resent = pending.is_resent;
    let code = list(reply).first().and_then(number);
    match pending.call {
        Call::Claim(claim, done) => {
            if let Some(buried) = list(reply).get(1).filter(|buried| !list(buried).is_empty()) {
                warn_unknown(claim.id, &values::subject(list(buried)), BURIED);
            }
            let found = || list(reply).get(2).map_or(Err(Strange), values::found);
            let claimed = match code {
                // A copy cannot tell whether the first one took the place of an unknown outcome.
                Some(1) if !(is_resent && claim.retake) => Ok(Claimed::First),
                Some(1 | 2) => Ok(Claimed::Again),
                Some(3) => Err(StoreError::Released),
                _ => {
                    found().map_err(strange).and_then(|found| found.map(Claimed::Found).ok_or_else(|| strange(Strange)))
                }
            };
            done(claimed.map(|claimed| ClaimReply { claimed, sent, is_resent, began: None }));
        }
        Call::Complete(_, done) | Call::Release(_, done) => done(Ok(number(reply) == Some(1))),
        Call::Authorise(id, done) => {
            if let Some(buried) = list(reply).get(1).filter(|buried| !list(buried).is_empty()) {
                warn_unknown(id, &values::subject(list(buried)), BURIED);
            }
            done(Ok(match code {
                Some(1) => Authorised::Released,
                Some(2) => Authorised::Running,
                // An earlier copy of it has removed the record.
                _ if is_resent => Authorised::Released,
                _ => Authorised::Absent,
            }));
        }
        Call::Beat(done) => done(Ok(())),
        call => call.fail(strange(Strange)),
    }
}
