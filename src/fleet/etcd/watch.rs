//! The stream of changes below a prefix.

use super::client::Client;
use super::connection::Connection;
use super::error::{EtcdError, refusal};
use super::wire::{self, KeyValue, Streamed, WatchReply};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::json;
use std::time::Duration;

/// The longest message, in bytes.
const MAX_MESSAGE: usize = 16 << 20;
/// The longest wait for the beginning of a stream.
const OPENING: Duration = Duration::from_secs(2);

/// A watch; it ends with its owner.
pub(in crate::fleet) struct Watch {
    body: Incoming,
    unread: BytesMut,
    _connection: Option<Connection>,
}

/// Changes of one message, all of those of its revisions.
#[derive(Debug, Default)]
pub(in crate::fleet) struct Batch {
    /// The keys that were set; or removed, where the flag is false.
    pub(in crate::fleet) changes: Vec<(KeyValue, bool)>,
}

impl Watch {
    /// Watches the keys with a prefix from a revision on.
    ///
    /// # Errors
    /// The endpoint in use does not answer, or refuses; the next call uses the next one.
    pub(in crate::fleet) async fn open(client: &mut Client, prefix: &str, from: u64) -> Result<Watch, EtcdError> {
        let create = json!({
            "key": wire::encode(prefix),
            "range_end": wire::encode(wire::end_of(prefix)),
            "start_revision": from.to_string(),
        });
        let body = Bytes::from(json!({ "create_request": create }).to_string());
        let opened = tokio::time::timeout(OPENING, client.begin("/v3/watch", &body)).await;
        let opened = opened.unwrap_or_else(|_| Err(EtcdError::Unreachable("a watch is not answered".to_owned())));
        match opened {
            Ok((response, _)) if response.status() == http::StatusCode::OK => {
                let _connection = client.take_connection();
                Ok(Watch { body: response.into_body(), unread: BytesMut::new(), _connection })
            }
            Ok((response, _)) => {
                let status = response.status();
                client.next_endpoint();
                Err(refusal(status, b""))
            }
            Err(error) => {
                client.next_endpoint();
                Err(error)
            }
        }
    }

    /// Returns the next changes. Safe to drop while it waits.
    ///
    /// # Errors
    /// The stream has ended, for instance because its revisions are compacted: read all keys anew.
    pub(in crate::fleet) async fn next(&mut self) -> Result<Batch, EtcdError> {
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.unread) {
                let line = self.unread.split_to(end + 1);
                return batch(&line);
            }
            // The gateway of some versions ends a message without a line break before the next one arrives.
            if self.unread.ends_with(b"}}")
                && let Ok(batch) = batch(&self.unread)
            {
                self.unread.clear();
                return Ok(batch);
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    let data = frame.into_data().unwrap_or_default();
                    if self.unread.len() + data.len() > MAX_MESSAGE {
                        return Err(EtcdError::Malformed("a message is too long".to_owned()));
                    }
                    self.unread.extend_from_slice(&data);
                }
                Some(Err(error)) => return Err(EtcdError::Unreachable(error.to_string())),
                None => return Err(EtcdError::Unreachable("the stream has ended".to_owned())),
            }
        }
    }
}

/// Returns the changes of a message.
fn batch(line: &[u8]) -> Result<Batch, EtcdError> {
    if line.trim_ascii().is_empty() {
        return Ok(Batch::default());
    }
    let message: Streamed<WatchReply> =
        serde_json::from_slice(line).map_err(|error| EtcdError::Malformed(error.to_string()))?;
    let Some(reply) = message.result else {
        return Err(EtcdError::Unreachable(message.error.unwrap_or_default().to_string()));
    };
    if reply.canceled {
        let cause = match reply.compact_revision {
            0 => format!("etcd has ended the watch: {}", reply.cancel_reason),
            compacted => format!("the revisions before {compacted} are compacted"),
        };
        return Err(EtcdError::Unreachable(cause));
    }
    let changes = reply.events.into_iter().map(|event| {
        let is_set = event.kind != "DELETE";
        (event.kv, is_set)
    });
    Ok(Batch { changes: changes.collect() })
}
