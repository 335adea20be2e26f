//! The statements of every transaction and look-up, prepared: to parse and plan them takes longer than to carry them
//! out.
//!
//! A prepared statement belongs to one process of the server. A pooler may lead each transaction to another one, which
//! does not know it, or knows a different statement by its name. So statements are prepared only where the connection
//! leads to one process of the server: there the number of that process is the one in the connection's own key for
//! cancellation, and a pooler makes such keys itself.

use super::{rows, sagas};
use std::cell::Cell;
use std::future::{Future, Ready, poll_fn, ready};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error, Statement};

/// The answer to a message of a pipeline, which is sent when this is first polled.
pub(super) type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + 'a>>;

/// The statements that are prepared, with the types of their parameters.
const STATEMENTS: [(&str, &[Type]); 10] = [
    (rows::SAME_STORE, &[Type::TEXT]),
    (rows::BEAT, &[Type::INT8, Type::TEXT]),
    (
        rows::CLAIM,
        &[
            Type::BYTEA_ARRAY,
            Type::INT8_ARRAY,
            Type::INT8_ARRAY,
            Type::INT8_ARRAY,
            Type::INT8_ARRAY,
            Type::BYTEA_ARRAY,
            Type::TEXT_ARRAY,
            Type::TEXT_ARRAY,
            Type::TEXT_ARRAY,
            Type::TEXT_ARRAY,
            Type::TEXT_ARRAY,
            Type::INT8,
            Type::TEXT,
        ],
    ),
    (rows::READ_OTHERS, &[Type::BYTEA_ARRAY]),
    (rows::READ, &[Type::BYTEA_ARRAY]),
    (
        rows::COMPLETE,
        &[
            Type::BYTEA_ARRAY,
            Type::INT8_ARRAY,
            Type::INT8_ARRAY,
            Type::INT2_ARRAY,
            Type::INT8_ARRAY,
            Type::INT4_ARRAY,
            Type::BYTEA_ARRAY,
            Type::BYTEA_ARRAY,
            Type::BYTEA_ARRAY,
        ],
    ),
    (rows::RELEASE, &[Type::BYTEA_ARRAY, Type::INT8_ARRAY, Type::INT8_ARRAY]),
    (sagas::BEGIN, &sagas::BEGIN_TYPES),
    (sagas::APPEND, &sagas::APPEND_TYPES),
    (sagas::END, &sagas::END_TYPES),
];

/// Plans are kept while tables grow: one that reads a whole small table would stay until the statistics are renewed.
/// And no plan is worth compiling.
const PLANNING: &str = "SET enable_seqscan = off; SET jit = off";

/// The prepared statements of a connection; none behind a pooler.
#[derive(Default)]
pub(super) struct Prepared {
    statements: Vec<(&'static str, Statement)>,
    /// Cleared where the server does not know a statement that was prepared.
    may_prepare: Rc<Cell<bool>>,
}

impl Prepared {
    /// Prepares the statements, where the connection leads to one process of the server.
    ///
    /// # Errors
    /// The server refuses one, or the connection has ended.
    pub(super) async fn on(client: &Client, may_prepare: Rc<Cell<bool>>) -> Result<Prepared, Error> {
        if !may_prepare.get() || !is_direct(client).await? {
            return Ok(Prepared { statements: Vec::new(), may_prepare });
        }
        client.batch_execute(PLANNING).await?;
        let prepared =
            STATEMENTS.iter().map(|(text, types)| Box::pin(client.prepare_typed(text, types)) as Answer<'_, _>);
        let prepared = pipelined(prepared.collect()).await?;
        let statements = STATEMENTS.iter().map(|(text, _)| *text).zip(prepared).collect();
        Ok(Prepared { statements, may_prepare })
    }

    pub(super) fn get(&self, text: &str) -> Option<&Statement> {
        self.statements.iter().find(|(prepared, _)| *prepared == text).map(|(_, statement)| statement)
    }

    /// Notes a statement that the server does not know: a pooler stands between that was not seen.
    pub(super) fn note(&self, error: &Error) {
        let codes = [SqlState::INVALID_SQL_STATEMENT_NAME, SqlState::DUPLICATE_PSTATEMENT];
        if error.code().is_some_and(|code| codes.contains(code)) {
            self.may_prepare.set(false);
        }
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.statements.len()
    }
}

/// Sends what it is given without waiting between. Returns the answers, or the first error.
pub(super) async fn pipelined<T>(mut sent: Vec<Answer<'_, T>>) -> Result<Vec<T>, Error> {
    let mut answers: Vec<Option<T>> = sent.iter().map(|_| None).collect();
    poll_fn(|cx| {
        let mut is_ready = true;
        for (one, answer) in sent.iter_mut().zip(&mut answers) {
            if answer.is_none() {
                match one.as_mut().poll(cx) {
                    Poll::Ready(result) => *answer = Some(result?),
                    Poll::Pending => is_ready = false,
                }
            }
        }
        if is_ready { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await?;
    Ok(answers.into_iter().flatten().collect())
}

/// Returns whether the process of the server that answers is the one that the connection was made to.
async fn is_direct(client: &Client) -> Result<bool, Error> {
    let row = client.query_typed_one("SELECT pg_backend_pid()", &[]).await?;
    Ok(process_of(client).await == Some(row.try_get(0)?))
}

/// Returns the process of the server, as the connection's key for cancellation names it. The client shows the key in a
/// request for cancellation alone: one is written here, to nowhere.
async fn process_of(client: &Client) -> Option<i32> {
    let (ours, mut theirs) = tokio::io::duplex(64);
    // The answer to the question whether TLS is spoken.
    theirs.write_all(b"S").await.ok()?;
    client.cancel_token().cancel_query_raw(Nowhere(ours), NoHandshake).await.ok()?;
    let mut written = Vec::new();
    theirs.read_to_end(&mut written).await.ok()?;
    // Length, code, process and secret, of four bytes each.
    let request = written.last_chunk::<16>()?;
    let (_, key) = request.split_last_chunk::<8>()?;
    Some(i32::from_be_bytes(*key.first_chunk()?))
}

/// A stream that ends in this process.
struct Nowhere(DuplexStream);

/// TLS without a handshake, over such a stream.
struct NoHandshake;

impl TlsConnect<Nowhere> for NoHandshake {
    type Stream = Nowhere;
    type Error = io::Error;
    type Future = Ready<io::Result<Nowhere>>;

    fn connect(self, stream: Nowhere) -> Ready<io::Result<Nowhere>> {
        ready(Ok(stream))
    }
}

impl TlsStream for Nowhere {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl AsyncRead for Nowhere {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Nowhere {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::{PgBouncer, Postgres};
    use crate::idempotency::postgres::{connection, settings};
    use crate::idempotency::remote::{Status, Use, alone};

    /// Returns how many statements a connection to a URL has prepared.
    fn prepared(url: &str) -> usize {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(url, None, &folder.path().join("store.id")).unwrap();
        let connected = async {
            let (status, may_prepare) = (Status::default(), Rc::new(Cell::new(true)));
            let connection = connection::connect(&settings, Use::Writing, None, &status, &may_prepare).await?;
            Ok(connection.prepared.count())
        };
        alone(connected).unwrap()
    }

    #[test]
    fn statements_are_prepared_where_one_process_of_the_server_answers_and_not_behind_a_pooler() {
        let Some(server) = Postgres::shared() else { return };
        let direct = server.database("prepared");
        assert_eq!(prepared(&direct), STATEMENTS.len());
        let Some(pooler) = PgBouncer::before(server) else { return };
        assert_eq!(prepared(&pooler.url("prepared")), 0);
    }
}
