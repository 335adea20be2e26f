//! The commands of operators: to inspect a store, to adopt it, and to copy its records.

use super::Settings;
use super::connection::{self, Connection};
use super::scripts::Script;
use super::values::{archived, list, number, token_text};
use crate::idempotency::copy::{Archive, Archived, PAGE};
use crate::idempotency::identity::{Id, Subject};
use crate::idempotency::remote::{IdentityFile, Known, Use, alone};
use ::redis::{Cmd, Pipeline, Value};

/// The bytes of results that are sent at a time.
const CHUNK: usize = 4 << 20;

/// The answer to an operator, in sentences.
type Operated = Result<Vec<String>, String>;

/// Returns what the store promises, and whether it is the one that is known here. Changes nothing.
///
/// # Errors
/// The store cannot be reached, or is not to be used.
pub(crate) fn inspect(settings: &Settings) -> Operated {
    alone(async {
        let connection = connection::find(settings, Use::Writing).await?;
        let mut sentences = connection.promise();
        let file = IdentityFile::new(&settings.identity_file);
        let known = file.read().map_err(|error| connection::file_error(settings, &error))?;
        if known == Known::Nothing {
            file.may_write().map_err(|error| connection::file_error(settings, &error))?;
        }
        match (connection::stored(&connection).await?, known) {
            (Some(store), known) => {
                let found = connection::identity_of(&store)?;
                connection::compare(found, &known)?;
                sentences.push(format!("The store is {found}."));
            }
            (None, Known::Nothing) => {
                sentences.push("The server holds no store of Ringway yet; the first start makes it.".to_owned());
            }
            (None, Known::This(_)) => return Err(connection::EMPTY.to_owned()),
        }
        Ok(sentences)
    })
}

/// Takes the store at the configured address for the right one, and makes it where there is none.
///
/// # Errors
/// The store cannot be reached, or the local file cannot be written.
pub(crate) fn adopt(settings: &Settings) -> Operated {
    alone(async {
        let connection = connection::find(settings, Use::Writing).await?;
        let store = match connection::stored(&connection).await? {
            Some(store) => store,
            None => connection::name(&connection).await?,
        };
        let found = connection::identity_of(&store)?;
        IdentityFile::new(&settings.identity_file).adopt(found).map(|said| vec![said])
    })
}

/// Opens the store for a copy; makes it where it is to be the target.
///
/// # Errors
/// A sentence for operators.
pub(in crate::idempotency) fn archive(settings: &Settings, is_target: bool) -> Result<Box<dyn Archive>, String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    let tasks = tokio::task::LocalSet::new();
    let connection = tasks.block_on(&runtime, async {
        let what_for = if is_target { Use::Writing } else { Use::Reading };
        let mut connection = connection::find(settings, what_for).await?;
        connection.store = match connection::stored(&connection).await? {
            None if is_target => connection::name(&connection).await?,
            None => return Err("the server holds no store of Ringway".to_owned()),
            Some(store) => store,
        };
        connection::identity_of(&connection.store)?;
        Ok::<_, String>(connection)
    })?;
    Ok(Box::new(RedisArchive { runtime, tasks, connection }))
}

struct RedisArchive {
    runtime: tokio::runtime::Runtime,
    tasks: tokio::task::LocalSet,
    connection: Connection,
}

impl Archive for RedisArchive {
    fn count(&mut self) -> Result<u64, String> {
        let mut command = ::redis::cmd("ZCARD");
        command.arg(self.connection.key("ids"));
        let count = self.tasks.block_on(&self.runtime, self.connection.ask(command))?;
        Ok(number(&count).unwrap_or_default())
    }

    fn read(&mut self, after: Option<Id>) -> Result<Vec<Archived>, String> {
        let mut start = vec![b'-'];
        if let Some(after) = after {
            start = [b"(", &after.0[..]].concat();
        }
        let mut command = self.connection.script(Script::Page);
        command.arg(start).arg(PAGE).arg(CHUNK);
        let page = self.tasks.block_on(&self.runtime, self.connection.ask(command))?;
        let records: Option<Vec<Archived>> = list(&page).iter().map(archived).collect();
        records.ok_or_else(|| "a record cannot be read".to_owned())
    }

    fn write(&mut self, records: &[Archived]) -> Result<u64, String> {
        let (mut added, mut rest) = (0, records);
        while !rest.is_empty() {
            let (mut commands, mut bytes) = (Pipeline::new(), 0);
            while let Some((archived, others)) = rest.split_first().filter(|_| bytes < CHUNK) {
                bytes += archived.response.as_ref().map_or(0, |response| response.size());
                commands.add_command(self.add(archived));
                rest = others;
            }
            if self.connection.replicas > 0 {
                commands.cmd("WAIT").arg(self.connection.replicas).arg(500);
            }
            let mut replies = self.tasks.block_on(&self.runtime, self.connection.send(&commands, bytes))?;
            if self.connection.replicas > 0 {
                let waited = replies.pop().as_ref().and_then(number).unwrap_or_default();
                if waited < u64::from(self.connection.replicas) {
                    return Err("too few replicas have acknowledged the records".to_owned());
                }
            }
            for reply in &replies {
                match reply {
                    Value::ServerError(error) => return Err(error.to_string()),
                    reply => added += number(reply).unwrap_or_default(),
                }
            }
        }
        Ok(added)
    }
}

impl RedisArchive {
    /// Returns the command that adds one record where there is none.
    fn add(&self, archived: &Archived) -> Cmd {
        let Archived { id, subject, record, lease, response } = archived;
        let Subject { namespace, method, authority, path, key } = subject;
        let mut command = self.connection.script(Script::Add);
        command.arg(&id.0).arg(record.state.code()).arg(token_text(record.token)).arg(&record.fingerprint.0);
        command.arg(record.created).arg(record.expires).arg(*lease);
        for text in [namespace, method, authority, path, key] {
            command.arg(text);
        }
        command.arg(record.dead.map(token_text).unwrap_or_default());
        if let Some(response) = response {
            command.arg(response.status).arg(&response.fields[..]).arg(&response.body[..]).arg(&response.trailers[..]);
        }
        command
    }
}
