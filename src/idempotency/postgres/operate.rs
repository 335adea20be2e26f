//! The commands of operators: to inspect a store, to adopt it, and to copy its records.

use super::connection::{self, Connection, explain};
use super::rows::{self, Param, signed};
use super::schema::VERSION;
use super::{Settings, promise, sagas};
use crate::idempotency::copy::{Archive, Archived, PAGE};
use crate::idempotency::identity::Id;
use crate::idempotency::remote::{IdentityFile, Known, alone};
use crate::idempotency::saga::SagaRow;
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error};

/// The answer to an operator, in sentences.
pub(crate) type Operated = Result<Vec<String>, String>;

/// Returns what the store promises, and whether it is the one that is known here. Changes nothing.
///
/// # Errors
/// The store cannot be reached, or is not to be used.
pub(crate) fn inspect(settings: &Settings) -> Operated {
    alone(async {
        let connection = connection::open(settings, TargetSessionAttrs::ReadWrite).await?;
        let found = promise::find(&connection.client).await.map_err(|error| explain(&error))?;
        let mut sentences = promise::sentences(&found);
        let file = IdentityFile::new(&settings.identity_file);
        let known = file.read().map_err(|error| connection::file_error(settings, &error))?;
        if known == Known::Nothing {
            file.may_write().map_err(|error| connection::file_error(settings, &error))?;
        }
        match (connection::identity(&connection.client).await, known) {
            (Ok((found, version)), known) => {
                connection::compare(&found, version, &known)?;
                sentences.push(format!("The store is {found}."));
                if version != VERSION {
                    sentences.push(format!(
                        "Its tables have version {version}; the first start brings them to version {VERSION}."
                    ));
                }
            }
            (Err(error), Known::Nothing) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => {
                sentences.push("The database has no tables of Ringway yet; the first start makes them.".to_owned());
            }
            (Err(error), Known::This(_)) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => {
                return Err(connection::EMPTY.to_owned());
            }
            (Err(error), _) => return Err(explain(&error)),
        }
        Ok(sentences)
    })
}

/// Takes the store at the configured address for the right one, and makes its tables where there are none.
///
/// # Errors
/// The store cannot be reached, or its tables cannot be made, or the local file cannot be written.
pub(crate) fn adopt(settings: &Settings) -> Operated {
    alone(async {
        let connection = connection::open(settings, TargetSessionAttrs::ReadWrite).await?;
        let (found, version) = match connection::identity(&connection.client).await {
            Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => {
                connection::create(&connection.client).await?
            }
            found => found.map_err(|error| explain(&error))?,
        };
        connection::compare(&found, version, &Known::Nothing)?;
        if version != VERSION {
            connection::migrate(&connection.client).await?;
        }
        IdentityFile::new(&settings.identity_file).adopt(&found).map(|said| vec![said])
    })
}

/// Opens the database for a copy; makes its tables where it is to be the target.
///
/// # Errors
/// A sentence for operators.
pub(in crate::idempotency) fn archive(settings: &Settings, is_target: bool) -> Result<Box<dyn Archive>, String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    let tasks = tokio::task::LocalSet::new();
    let connection = tasks.block_on(&runtime, async {
        let wanted = if is_target { TargetSessionAttrs::ReadWrite } else { TargetSessionAttrs::Any };
        let connection = connection::open(settings, wanted).await?;
        match connection::identity(&connection.client).await {
            Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) && is_target => {
                connection::create(&connection.client).await?;
            }
            Ok((found, version)) => {
                connection::compare(&found, version, &Known::Nothing)?;
                if version != VERSION {
                    connection::migrate(&connection.client).await?;
                }
            }
            Err(error) => return Err(explain(&error)),
        }
        let works = connection.client.query_typed_one(rows::IS_IN_USE, &[]).await;
        match works.and_then(|row| row.try_get::<_, bool>(0)) {
            Ok(false) => Ok(connection),
            Ok(true) => {
                Err("a proxy works on it; stop all of them first: what they write meanwhile would be missed".to_owned())
            }
            Err(error) => Err(explain(&error)),
        }
    })?;
    Ok(Box::new(PostgresArchive { runtime, tasks, connection }))
}

struct PostgresArchive {
    runtime: tokio::runtime::Runtime,
    tasks: tokio::task::LocalSet,
    connection: Connection,
}

impl PostgresArchive {
    fn wait<T>(&self, answer: impl Future<Output = Result<T, Error>>) -> Result<T, String> {
        self.tasks.block_on(&self.runtime, answer).map_err(|error| explain(&error))
    }
}

impl Archive for PostgresArchive {
    fn count(&mut self) -> Result<u64, String> {
        let text = "SELECT count(*) FROM ringway_records WHERE state <> 4";
        self.wait(async { self.connection.client.query_typed_one(text, &[]).await?.try_get::<_, i64>(0) })
            .map(|count| u64::try_from(count).unwrap_or_default())
    }

    fn read(&mut self, after: Option<Id>) -> Result<Vec<Archived>, String> {
        let after = after.map_or_else(Vec::new, |id| id.0.to_vec());
        let params: [Param<'_>; 2] = [(&after, Type::BYTEA), (&PAGE, Type::INT8)];
        let page = self.wait(self.connection.client.query_typed(rows::PAGE, &params))?;
        page.iter().map(rows::archived).collect::<Result<_, Error>>().map_err(|error| explain(&error))
    }

    fn open_sagas(&mut self) -> Result<u64, String> {
        self.wait(async { self.connection.client.query_typed_one(sagas::OPEN, &[]).await?.try_get::<_, i64>(0) })
            .map(|count| u64::try_from(count).unwrap_or_default())
    }

    fn read_sagas(&mut self, after: Option<Id>) -> Result<Vec<SagaRow>, String> {
        let after = after.map_or_else(Vec::new, |id| id.0.to_vec());
        let text = sagas::page();
        let params: [Param<'_>; 2] = [(&after, Type::BYTEA), (&PAGE, Type::INT8)];
        let page = self.wait(self.connection.client.query_typed(&text, &params))?;
        page.iter().map(sagas::row).collect::<Result<_, Error>>().map_err(|error| explain(&error))
    }

    fn write_sagas(&mut self, rows: &[SagaRow]) -> Result<(), String> {
        let client = &self.connection.client;
        self.wait(async {
            client.batch_execute(rows::BEGIN).await?;
            for row in rows {
                sagas::add(client, row).await?;
            }
            client.batch_execute("COMMIT").await
        })
    }

    fn write(&mut self, records: &[Archived]) -> Result<u64, String> {
        let client = &self.connection.client;
        self.wait(async {
            client.batch_execute(rows::BEGIN).await?;
            let mut added = 0;
            for archived in records {
                added += add(client, archived).await?;
            }
            client.batch_execute("COMMIT").await?;
            Ok(added)
        })
    }
}

/// Adds one record where there is none. Returns how many it added.
async fn add(client: &Client, archived: &Archived) -> Result<u64, Error> {
    let Archived { id, subject, record, lease, response } = archived;
    let (id, fingerprint) = (&id.0[..], &record.fingerprint.0[..]);
    let (holder, number) = (signed(record.token.holder), signed(record.token.number));
    let (created, expires) = (signed(record.created), signed(record.expires));
    let dead_holder = record.dead.map(|token| signed(token.holder));
    let dead_number = record.dead.map(|token| signed(token.number));
    let (state, status) = (record.state.code(), response.as_ref().map(|response| i32::from(response.status)));
    let fields = response.as_ref().map(|response| &response.fields[..]);
    let body = response.as_ref().map(|response| &response.body[..]);
    let trailers = response.as_ref().map(|response| &response.trailers[..]);
    let params: [Param<'_>; 19] = [
        (&id, Type::BYTEA),
        (&state, Type::INT2),
        (&holder, Type::INT8),
        (&number, Type::INT8),
        (lease, Type::INT8),
        (&created, Type::INT8),
        (&expires, Type::INT8),
        (&fingerprint, Type::BYTEA),
        (&subject.namespace, Type::TEXT),
        (&subject.method, Type::TEXT),
        (&subject.authority, Type::TEXT),
        (&subject.path, Type::TEXT),
        (&subject.key, Type::TEXT),
        (&dead_holder, Type::INT8),
        (&dead_number, Type::INT8),
        (&status, Type::INT4),
        (&fields, Type::BYTEA),
        (&body, Type::BYTEA),
        (&trailers, Type::BYTEA),
    ];
    Ok(client.query_typed(rows::ADD, &params).await?.len() as u64)
}
