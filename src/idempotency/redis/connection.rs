//! A connection to Redis: to the server that takes writes if there is one, and only to the store that is known.

use super::facts::{self, Facts, Pulse};
use super::scripts::Script;
use super::values::{list, text};
use super::{Settings, promise};
use crate::idempotency::remote::{IdentityFile, Known, SILENCE, Use};
use crate::idempotency::store_identity::new_identity;
use crate::io::redis::{Client, within_a_second};
use ::redis::{Cmd, Pipeline, Value};
use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// The time for which other servers may still answer after one that takes writes has.
const GRACE: Duration = Duration::from_millis(100);
/// The version of the keys and fields that this Ringway reads and writes.
const VERSION: &str = "1";

/// A connection to the store.
pub(super) struct Connection {
    client: Client,
    pub(super) address: String,
    pub(super) facts: Facts,
    prefix: String,
    /// The version and the identity of the store, as its key has them.
    pub(super) store: String,
    /// The server's names for the scripts, in their order.
    names: Vec<String>,
    /// The replicas that must have a write.
    pub(super) replicas: u32,
    pub(super) pulse: RefCell<Pulse>,
    pub(super) pulse_at: Cell<Instant>,
}

impl Connection {
    /// Returns when the connection has ended.
    pub(super) async fn closed(&self) {
        self.client.closed().await;
    }

    /// Returns the name of a key.
    pub(super) fn key(&self, name: &str) -> Vec<u8> {
        (self.prefix.clone() + name).into_bytes()
    }

    /// Returns the call of a script, to which its arguments are added.
    pub(super) fn script(&self, script: Script) -> Cmd {
        let name = self.names.get(script as usize).map_or("", String::as_str);
        let mut command = ::redis::cmd("EVALSHA");
        command.arg(name).arg(1).arg(self.key("store")).arg(&self.store);
        command
    }

    /// Sends commands, as [`Client::send`] does.
    ///
    /// # Errors
    /// The connection broke, or was silent.
    pub(super) async fn send(&self, commands: &Pipeline, bytes: usize) -> Result<Vec<Value>, String> {
        self.client.send(commands, bytes).await
    }

    /// Sends one command.
    ///
    /// # Errors
    /// As for [`Connection::send`], and where the server refuses it.
    pub(super) async fn ask(&self, command: Cmd) -> Result<Value, String> {
        self.client.ask(command).await
    }

    /// Notes the pulse of the server. Returns the promise where it is another one by that.
    pub(super) fn note_pulse(&self, info: &Value) -> Option<Vec<String>> {
        let pulse = Pulse::of(&text(info)?);
        self.pulse_at.set(Instant::now());
        let before = self.pulse.replace(pulse.clone());
        (before.settings() != pulse.settings()).then(|| self.promise())
    }

    /// Returns what can be lost and when, in sentences.
    pub(super) fn promise(&self) -> Vec<String> {
        let facts = Facts { pulse: self.pulse.borrow().clone(), ..self.facts.clone() };
        promise::sentences(&facts, self.replicas, &self.address)
    }
}

/// Returns the command that tells the pulse of a server.
pub(super) fn ask_pulse() -> Cmd {
    let mut command = ::redis::cmd("INFO");
    command.arg("replication").arg("memory");
    command
}

/// Connects to a server, and makes sure that it holds the store.
///
/// # Errors
/// A sentence for operators.
pub(super) async fn connect(settings: &Settings, what_for: Use) -> Result<Connection, String> {
    let mut connection = find(settings, what_for).await?;
    let file = IdentityFile::new(&settings.identity_file);
    let known = file.read().map_err(|error| file_error(settings, &error))?;
    match (stored(&connection).await?, &known) {
        (Some(store), _) => connection.store = store,
        (None, Known::This(_)) => return Err(EMPTY.to_owned()),
        (None, Known::Nothing) if connection.facts.is_primary => connection.store = name(&connection).await?,
        (None, Known::Nothing) => return Err("the server holds no store yet".to_owned()),
    }
    let identity = identity_of(&connection.store)?;
    compare(identity, &known)?;
    if known == Known::Nothing && what_for == Use::Writing {
        file.write(identity).map_err(|error| file_error(settings, &error))?;
    }
    if what_for == Use::Writing {
        note_move(&connection).await?;
    }
    Ok(connection)
}

/// Finds a server: the one that takes writes, else, to read from, any other.
///
/// # Errors
/// A sentence for operators.
pub(super) async fn find(settings: &Settings, what_for: Use) -> Result<Connection, String> {
    let mut opened = open_all(settings).await;
    let servers: Vec<Option<Facts>> =
        opened.iter().map(|opened| opened.as_ref().ok().map(|connection| connection.facts.clone())).collect();
    let is_usable = |facts: &Facts| !facts.is_loading && facts.refusal().is_none();
    let any = || servers.iter().position(|facts| facts.as_ref().is_some_and(is_usable));
    let chosen = facts::choose(&servers, settings.replicas).or_else(|| any().filter(|_| what_for == Use::Reading));
    let Some(chosen) = chosen else { return Err(outage(settings, &opened)) };
    let mut connection = opened.swap_remove(chosen)?;
    if let Some(refusal) = connection.facts.refusal() {
        return Err(format!("{}: {refusal}", connection.address));
    }
    connection.load(what_for).await?;
    Ok(connection)
}

/// Connects to all servers at once. Where one takes writes, those that are silent are not waited for.
async fn open_all(settings: &Settings) -> Vec<Result<Connection, String>> {
    let mut attempts = JoinSet::new();
    for (at, address) in settings.addresses.iter().enumerate() {
        let (settings, address) = (settings.clone(), address.clone());
        attempts.spawn_local(async move { (at, within_a_second(open(&settings, &address)).await) });
    }
    let mut opened: Vec<_> = settings.addresses.iter().map(|_| Err("it does not answer".to_owned())).collect();
    let mut until = Instant::now() + 2 * SILENCE;
    while let Ok(Some(attempt)) = tokio::time::timeout_at(until.into(), attempts.join_next()).await {
        let Ok((at, attempt)) = attempt else { continue };
        if attempt.as_ref().is_ok_and(|connection| connection.facts.is_primary) {
            until = until.min(Instant::now() + GRACE);
        }
        opened[at] = attempt;
    }
    opened
}

/// Returns why no server can be used, in a sentence.
fn outage(settings: &Settings, opened: &[Result<Connection, String>]) -> String {
    let told = settings.addresses.iter().zip(opened).map(|(address, opened)| match opened {
        Ok(connection) if connection.facts.is_loading => format!("{address}: it is reading its data"),
        Ok(connection) => {
            let refusal = connection.facts.refusal();
            format!("{address}: {}", refusal.unwrap_or_else(|| "it is a replica and takes no writes".to_owned()))
        }
        Err(error) => format!("{address}: {error}"),
    });
    told.collect::<Vec<_>>().join("; ")
}

/// Connects to one server, and asks for its facts.
async fn open(settings: &Settings, address: &str) -> Result<Connection, String> {
    let client = Client::open(&settings.login, address).await?;
    let mut connection = Connection {
        client,
        address: address.to_owned(),
        facts: Facts::default(),
        prefix: settings.prefix(),
        store: String::new(),
        names: Vec::new(),
        replicas: settings.replicas,
        pulse: RefCell::default(),
        pulse_at: Cell::new(Instant::now()),
    };
    let info = connection.ask(::redis::cmd("INFO")).await?;
    connection.facts = Facts::of(&text(&info).unwrap_or_default());
    if !connection.facts.is_loading && connection.facts.refusal().is_none() {
        connection.facts.moves = moves(&connection).await?.0;
    }
    connection.pulse.replace(connection.facts.pulse.clone());
    Ok(connection)
}

impl Connection {
    /// Loads the scripts, and asks for the settings that `INFO` does not tell, where the server allows that.
    async fn load(&mut self, what_for: Use) -> Result<(), String> {
        let mut commands = Pipeline::new();
        for script in Script::ALL {
            commands.cmd("SCRIPT").arg("LOAD").arg(script.text());
        }
        if what_for == Use::Writing {
            commands.cmd("CONFIG").arg("GET").arg("appendfsync").arg("no-appendfsync-on-rewrite");
        }
        let replies = self.send(&commands, 0).await?;
        for reply in &replies[..Script::ALL.len().min(replies.len())] {
            match reply {
                Value::ServerError(error) => return Err(format!("it takes no scripts: {error}")),
                name => self.names.push(text(name).unwrap_or_default()),
            }
        }
        for pair in replies.get(Script::ALL.len()).map_or(&[][..], list).chunks(2) {
            match (pair.first().and_then(text).as_deref(), pair.get(1).and_then(text)) {
                (Some("appendfsync"), value) => self.facts.fsync = value,
                (Some("no-appendfsync-on-rewrite"), Some(value)) => {
                    self.facts.skips_fsync_on_rewrite = Some(value == "yes");
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Returns the version and the identity of the store, where there is one.
pub(super) async fn stored(connection: &Connection) -> Result<Option<String>, String> {
    let mut command = ::redis::cmd("GET");
    command.arg(connection.key("store"));
    connection.ask(command).await.map(|value| text(&value))
}

/// Gives a new store an identity. Where another proxy does at the same time, one of the two does.
pub(super) async fn name(connection: &Connection) -> Result<String, String> {
    let identity = new_identity().map_err(|error| error.to_string())?;
    let mut command = ::redis::cmd("SET");
    command.arg(connection.key("store")).arg(format!("{VERSION} {identity}")).arg("NX");
    connection.ask(command).await?;
    let stored = stored(connection).await?;
    tracing::info!(server = connection.address, "the idempotency store was made");
    stored.ok_or_else(|| EMPTY.to_owned())
}

/// Returns how often proxies have moved to another server, and the history of writes of the last one.
async fn moves(connection: &Connection) -> Result<(u64, String), String> {
    let mut command = ::redis::cmd("GET");
    command.arg(connection.key("moves"));
    let value = connection.ask(command).await?;
    let told = text(&value).unwrap_or_default();
    let (count, history) = told.split_once(' ').unwrap_or_default();
    Ok((count.parse().unwrap_or_default(), history.to_owned()))
}

/// Notes a server that proxies have not written to since it was started or promoted. One that was left lacks the note,
/// and is known by that where both take writes.
async fn note_move(connection: &Connection) -> Result<(), String> {
    let (count, history) = moves(connection).await?;
    if history != connection.facts.history {
        let mut command = ::redis::cmd("SET");
        command.arg(connection.key("moves")).arg(format!("{} {}", count + 1, connection.facts.history));
        connection.ask(command).await?;
    }
    Ok(())
}

/// Returns the identity of a store.
///
/// # Errors
/// Its keys have another version.
pub(super) fn identity_of(store: &str) -> Result<&str, String> {
    match store.split_once(' ') {
        Some((VERSION, identity)) => Ok(identity),
        _ => Err(format!("the store is `{store}`, and this Ringway knows version {VERSION}: run one that fits")),
    }
}

/// The server that is known lacks the store.
pub(super) const EMPTY: &str = "the server holds no store of Ringway, though this machine knows one: it was restarted \
     empty, or it is another server; a request that the lost store remembered would run again. If that is meant, run \
     `ringway store adopt`";

/// Compares the store that was found with the one that is known.
///
/// # Errors
/// It is another one.
pub(super) fn compare(found: &str, known: &Known) -> Result<(), String> {
    match known {
        Known::This(known) if known != found => Err(format!(
            "the server holds another store ({found}) than the one that this machine knows ({known}): the address leads \
             to a wrong server, or the store was made anew; if that is meant, run `ringway store adopt`"
        )),
        _ => Ok(()),
    }
}

pub(super) fn file_error(settings: &Settings, error: &std::io::Error) -> String {
    format!("the file `{}`, which names the store that is known here: {error}", settings.identity_file.display())
}

#[cfg(test)]
mod tests;
