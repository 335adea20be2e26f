//! One node of the bus: a connection that publishes, and one that reads. Each is opened anew whenever it breaks or is
//! silent.

use super::core::{Core, NodeState};
use super::event::Event;
use super::gaps::Finding;
use super::queue::{Encoded, Entry as TableEntry};
use super::settings::BusSettings;
use super::stream::{self, BLOCK, Look, PAGE, Position};
use crate::clock;
use crate::io::redis::{Client, Value, bytes, list, text, within_a_second};
use ::redis::Pipeline;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Between two attempts to connect.
const ATTEMPT: Duration = Duration::from_millis(250);
/// The interval of looks at the run of the server and the epoch of the stream.
const LOOK: Duration = Duration::from_secs(1);
/// The pause after a batch of purges or writes, in which more gather.
const GATHER: Duration = Duration::from_millis(2);
/// The most members that the table of a node may have.
const MAX_TABLE: usize = 4096;

/// Connects to a node, by the settings in force.
async fn open(core: &Core, at: usize) -> Result<Client, String> {
    let (login, address) = {
        let settings = core.settings.borrow();
        let found = settings.nodes.iter().find(|(id, _)| *id == core.nodes[at].id);
        (settings.login.clone(), found.map(|(_, address)| address.clone()).unwrap_or_default())
    };
    address.clone_into(&mut core.shared.board.lock().nodes[at].address);
    within_a_second(Client::open(&login, &address)).await
}

/// Waits until the next attempt, or until the settings change.
async fn pause(core: &Core) {
    let mut settings = core.settings.clone();
    settings.mark_unchanged();
    // Closed settings mean that the process ends, which ends this task.
    let _ = tokio::time::timeout(ATTEMPT, settings.changed()).await;
}

/// Publishes the events of a node's queue, for as long as the thread runs.
pub(super) async fn publish(core: Rc<Core>, at: usize) {
    loop {
        let error = match open(&core, at).await {
            Ok(client) => publish_on(&core, at, &client).await,
            Err(error) => error,
        };
        core.state(at, (Some(false), None), Some(&error));
        pause(&core).await;
    }
}

/// Publishes events until the connection ends. Returns why it did.
async fn publish_on(core: &Core, at: usize, client: &Client) -> String {
    let node = &core.nodes[at];
    let mut settings = core.settings.clone();
    settings.mark_unchanged();
    loop {
        let batch = node.queue.borrow().batch();
        if batch.is_empty() {
            tokio::select! {
                biased;
                () = client.closed() => return "the server has closed the connection".to_owned(),
                _ = settings.changed() => return "the settings have changed".to_owned(),
                () = node.filled.notified() => continue,
            }
        }
        let place = node.queue.borrow().place_after(batch.len());
        let began = Instant::now();
        let size = batch.iter().map(|event| event.bytes.len()).sum();
        match client.send(&commands(core, &batch), size).await {
            Err(error) => return error,
            Ok(replies) => match replies.split_first() {
                Some((Value::ServerError(error), _)) => return error.to_string(),
                // The events are in the stream: sent again, they would push others out of it.
                Some((_, of_table)) => note_refused(of_table, &node.id),
                None => {}
            },
        }
        let duration = core.shared.metrics.store_duration.with_label_values(&[&*node.id, "publish"]);
        duration.observe(began.elapsed().as_secs_f64());
        node.queue.borrow_mut().remove_before(place);
        core.state(at, (Some(true), None), None);
        core.shared.published(at, batch.iter().map(|event| event.number));
    }
}

/// Logs that the table of members cannot be kept at a node.
fn note_refused(replies: &[Value], node: &str) {
    if let Some(Value::ServerError(error)) = replies.iter().find(|reply| matches!(reply, Value::ServerError(_))) {
        tracing::warn!(node, %error, "the table of members cannot be kept at a node of the bus");
    }
}

/// Returns the commands that publish a batch, and keep the table of members. The reply of the first is that of the batch.
fn commands(core: &Core, batch: &[Encoded]) -> Pipeline {
    let mut commands = Pipeline::new();
    commands.add_command(core.keys.publish(batch.iter().map(|event| &event.bytes)));
    for event in batch {
        match event.entry {
            TableEntry::Stays => {}
            TableEntry::IsBeat => {
                let name = core.shared.process.to_string();
                commands.cmd("HSET").arg(&core.keys.members).arg(name).arg(&event.bytes[..]);
            }
            TableEntry::Gone(process) => {
                commands.cmd("HDEL").arg(&core.keys.members).arg(process.to_string());
            }
        }
    }
    commands
}

/// Reads the stream of a node, for as long as the thread runs.
pub(super) async fn read(core: Rc<Core>, at: usize) {
    let mut position = None;
    loop {
        let error = match open(&core, at).await {
            Ok(client) => read_on(&core, at, &client, &mut position).await,
            Err(error) => Err(error),
        };
        core.nodes[at].run.replace(None);
        core.state(at, (None, Some(false)), error.err().as_deref());
        pause(&core).await;
    }
}

/// Reads until the connection ends. Returns why it did; nothing where the settings have changed.
async fn read_on(core: &Core, at: usize, client: &Client, position: &mut Option<Position>) -> Result<(), String> {
    let mut settings = core.settings.clone();
    settings.mark_unchanged();
    let mut looked: Option<Instant> = None;
    loop {
        if looked.is_none_or(|looked| looked.elapsed() >= LOOK) {
            let (sent, began) = (core.shared.now(), Instant::now());
            let look = stream::look(&client.send(&core.keys.look(), 0).await?)?;
            let duration = core.shared.metrics.store_duration.with_label_values(&[&*core.nodes[at].id, "look"]);
            duration.observe(began.elapsed().as_secs_f64());
            check_run(core, at, &look)?;
            match position {
                None => {
                    load_members(core, client).await?;
                    *position = Some(Position::at_end(&look));
                    core.note(at, Finding::Lost(core.shared.now()));
                    core.note(at, Finding::Read(sent));
                }
                Some(position) => {
                    if let Some(reason) = position.resume(&look) {
                        core.lost(at, reason);
                    }
                }
            }
            if looked.is_none() {
                note_facts(core, at, client).await?;
            }
            looked = Some(Instant::now());
            core.state(at, (None, Some(true)), None);
        }
        let Some(position) = position else { continue };
        let sent = core.shared.now();
        let commands = core.keys.read(&position.id);
        let reply = tokio::select! {
            reply = client.send_within(&commands, 0, BLOCK) => reply?.pop(),
            _ = settings.changed() => return Ok(()),
        };
        let entries = match &reply {
            Some(Value::ServerError(error)) => return Err(error.to_string()),
            Some(reply) => stream::entries(reply),
            None => Vec::new(),
        };
        let is_last = entries.len() < PAGE;
        if take(core, at, position, entries) {
            tokio::time::sleep(GATHER).await;
        }
        if is_last {
            core.note(at, Finding::Read(sent));
        }
    }
}

/// Takes entries. Returns whether there were new ones.
fn take(core: &Core, at: usize, position: &mut Position, entries: Vec<Result<stream::Entry, String>>) -> bool {
    let (mut found, mut is_lost) = (Vec::with_capacity(entries.len()), false);
    for entry in entries {
        match entry {
            Ok(entry) => {
                is_lost |= position.pass(&entry);
                found.push(entry);
            }
            Err(id) => {
                core.shared.count("malformed", "heard");
                position.skip(id);
                is_lost = true;
            }
        }
    }
    let is_new = core.take(&found);
    if is_lost {
        core.lost(at, "entries are missing in the stream");
    }
    is_new
}

/// Makes sure that no two nodes are one server, whose acknowledgement would count twice.
///
/// # Errors
/// They are.
fn check_run(core: &Core, at: usize, look: &Look) -> Result<(), String> {
    let is_taken =
        |(other, node): (usize, &NodeState)| other != at && node.run.borrow().as_deref() == Some(look.run.as_str());
    if let Some((_, other)) = core.nodes.iter().enumerate().find(|it| is_taken(*it)) {
        return Err(format!("it is the same server as the node `{}`: give each node a server of its own", other.id));
    }
    core.nodes[at].run.replace(Some(look.run.clone()));
    Ok(())
}

/// Adds the members that a node knows.
async fn load_members(core: &Core, client: &Client) -> Result<(), String> {
    let mut command = ::redis::cmd("HVALS");
    command.arg(&core.keys.members);
    let reply = client.ask(command).await?;
    let now = core.shared.now();
    let clock = u64::try_from(clock::since_1970().as_millis()).unwrap_or(u64::MAX);
    let mut known = 0;
    let mut forgotten = ::redis::cmd("HDEL");
    forgotten.arg(&core.keys.members);
    let mut has_forgotten = false;
    for value in list(&reply) {
        let Some(Ok((process, _, Event::Heartbeat(beat)))) = bytes(value).map(Event::decode) else { continue };
        let age = clock.saturating_sub(beat.clock);
        if age > super::members::REMEMBERED {
            forgotten.arg(process.to_string());
            has_forgotten = true;
        } else if process != core.shared.process && known < MAX_TABLE {
            known += 1;
            core.shared.members.lock().add(process, *beat, now.saturating_sub(age));
        }
    }
    if has_forgotten {
        client.ask(forgotten).await?;
    }
    Ok(())
}

/// Notes what the server promises, in words.
async fn note_facts(core: &Core, at: usize, client: &Client) -> Result<(), String> {
    let info = client.ask(::redis::cmd("INFO")).await?;
    let words = words(&core.nodes[at].id, &text(&info).unwrap_or_default())?;
    core.shared.board.lock().facts[at] = Some(words);
    Ok(())
}

/// Returns what a server promises, in a sentence.
///
/// # Errors
/// The server cannot be a node of the bus.
pub(super) fn words(id: &str, info: &str) -> Result<String, String> {
    let field = |name| stream::field(info, name).unwrap_or_default();
    if field("cluster_enabled") == "1" {
        return Err("it is in cluster mode; the bus needs servers of their own".to_owned());
    }
    if field("role") != "master" {
        return Err("it is a replica, which takes no events; name a primary".to_owned());
    }
    let keeps = match field("aof_enabled") {
        "1" => "keeps events over a restart, as far as its append-only file was written",
        _ => "loses events at a restart; the proxies notice",
    };
    let evicts = match field("maxmemory_policy") {
        "" | "noeviction" => "",
        _ => "; it may evict the stream when memory is short (`maxmemory-policy`), which the proxies notice",
    };
    let (version, valkey) = (field("redis_version"), field("valkey_version"));
    let program = if valkey.is_empty() { format!("Redis {version}") } else { format!("Valkey {valkey}") };
    Ok(format!("{id}: {program} {keeps}{evicts}"))
}

/// Asks each node of the bus for its promise. Returns a sentence for each, or why it cannot be used.
pub(crate) fn inspect(settings: &BusSettings) -> Vec<Result<String, String>> {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return vec![Err(error.to_string())],
    };
    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&runtime, async {
        let (mut runs, mut told) = (Vec::new(), Vec::new());
        for (id, address) in settings.chosen() {
            let found = within_a_second(async {
                let client = Client::open(&settings.login, &address).await?;
                Ok(text(&client.ask(::redis::cmd("INFO")).await?).unwrap_or_default())
            });
            let judged = found.await.and_then(|info| {
                let run = stream::field(&info, "run_id").unwrap_or_default().to_owned();
                if let Some((other, _)) = runs.iter().find(|(_, known)| *known == run) {
                    return Err(format!("it is the same server as the node `{other}`"));
                }
                runs.push((id.clone(), run));
                words(&id, &info)
            });
            told.push(judged.map_err(|error| format!("{id} at {address}: {error}")));
        }
        told
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_judged_by_its_info() {
        let info = |text: &str| words("r1", &text.replace(' ', "\r\n"));
        let said = info("redis_version:7.0.15 role:master aof_enabled:0 cluster_enabled:0 maxmemory_policy:noeviction");
        assert_eq!(said.unwrap(), "r1: Redis 7.0.15 loses events at a restart; the proxies notice");
        assert!(info("role:master aof_enabled:1").unwrap().contains("append-only"));
        assert!(info("role:master maxmemory_policy:allkeys-lru").unwrap().contains("evict"));
        assert!(info("role:slave").is_err());
        assert!(info("role:master cluster_enabled:1").is_err());
    }
}
