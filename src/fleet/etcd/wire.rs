//! The JSON of etcd's gateway: 64-bit numbers are texts, keys and values are in base64, and zeros are left out.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::de::{Deserializer, Error};
use serde::{Deserialize, Serialize};

/// Returns bytes as the gateway has them.
pub(super) fn encode(bytes: impl AsRef<[u8]>) -> String {
    BASE64.encode(bytes)
}

/// Returns the first key after all keys with a prefix.
pub(super) fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    // A single zero stands for the end of all keys.
    vec![0]
}

fn number<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Text(String),
        Number(u64),
    }
    match Either::deserialize(from)? {
        Either::Text(text) => text.parse().map_err(Error::custom),
        Either::Number(number) => Ok(number),
    }
}

/// A time to live: at most 0 for a lease that is over.
fn ttl<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let text = String::deserialize(from)?;
    text.parse::<i64>().map(|seconds| seconds.max(0).unsigned_abs()).map_err(Error::custom)
}

fn bytes<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
    BASE64.decode(String::deserialize(from)?).map_err(Error::custom)
}

fn text<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    bytes(from).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// The state of the cluster with a reply.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::fleet) struct Header {
    #[serde(deserialize_with = "number")]
    pub(in crate::fleet) cluster_id: u64,
    #[serde(deserialize_with = "number")]
    pub(in crate::fleet) member_id: u64,
    #[serde(deserialize_with = "number")]
    pub(in crate::fleet) revision: u64,
}

/// A key with its value.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::fleet) struct KeyValue {
    #[serde(deserialize_with = "text")]
    pub(in crate::fleet) key: String,
    #[serde(deserialize_with = "bytes")]
    pub(in crate::fleet) value: Vec<u8>,
    #[serde(deserialize_with = "number")]
    pub(in crate::fleet) create_revision: u64,
    #[serde(deserialize_with = "number")]
    pub(in crate::fleet) mod_revision: u64,
    #[serde(deserialize_with = "number")]
    pub(in crate::fleet) lease: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Range {
    pub(super) header: Header,
    pub(super) kvs: Vec<KeyValue>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct TxnReply {
    pub(super) header: Header,
    pub(super) succeeded: bool,
    pub(super) responses: Vec<Response>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Response {
    pub(super) response_range: Option<Range>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Lease {
    #[serde(rename = "ID", deserialize_with = "number")]
    pub(super) id: u64,
    #[serde(rename = "TTL", deserialize_with = "ttl")]
    pub(super) ttl: u64,
}

/// A message of a stream: a result, or an error that ends the stream.
#[derive(Debug, Deserialize)]
pub(super) struct Streamed<T> {
    pub(super) result: Option<T>,
    pub(super) error: Option<serde_json::Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct WatchReply {
    pub(super) canceled: bool,
    #[serde(deserialize_with = "number")]
    pub(super) compact_revision: u64,
    pub(super) cancel_reason: String,
    pub(super) events: Vec<WatchEvent>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct WatchEvent {
    /// `DELETE`; left out for a put.
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) kv: KeyValue,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    pub(super) header: Header,
    pub(super) version: String,
    #[serde(rename = "dbSize", deserialize_with = "number")]
    pub(super) size: u64,
    #[serde(deserialize_with = "number")]
    pub(super) leader: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Token {
    pub(super) token: String,
}

/// Why the gateway refuses a call; `code` is that of gRPC.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Refusal {
    pub(super) code: u64,
    pub(super) message: String,
    pub(super) error: String,
}

#[derive(Serialize)]
pub(super) struct Login<'a> {
    pub(super) name: &'a str,
    pub(super) password: &'a str,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Replies of etcd 3.4.23, as they were.
    #[test]
    fn replies_are_read() {
        let text = r#"{"header":{"cluster_id":"10144879847569953045","member_id":"12428976124636271536","revision":"2","raft_term":"2"},"responses":[{"response_range":{"header":{"revision":"2"},"kvs":[{"key":"YQ==","create_revision":"2","mod_revision":"2","version":"1","value":"eA=="}],"count":"1"}}]}"#;
        let reply: TxnReply = serde_json::from_str(text).unwrap();
        assert_eq!((reply.succeeded, reply.header.revision), (false, 2));
        let found = &reply.responses[0].response_range.as_ref().unwrap().kvs[0];
        assert_eq!((&*found.key, &*found.value, found.create_revision, found.lease), ("a", &b"x"[..], 2, 0));
        let over = r#"{"result":{"header":{"revision":"2"},"ID":"12345"}}"#;
        let over: Streamed<Lease> = serde_json::from_str(over).unwrap();
        assert_eq!(over.result.map(|lease| (lease.id, lease.ttl)), Some((12345, 0)));
        let lost = r#"{"ID":"1","TTL":"-1"}"#;
        assert_eq!(serde_json::from_str::<Lease>(lost).unwrap().ttl, 0);
        let compacted = r#"{"result":{"header":{"revision":"4"},"canceled":true,"compact_revision":"4"}}"#;
        let compacted = serde_json::from_str::<Streamed<WatchReply>>(compacted).unwrap().result.unwrap();
        assert!(compacted.canceled && compacted.compact_revision == 4);
        let gone = r#"{"result":{"header":{"revision":"4"},"events":[{"type":"DELETE","kv":{"key":"YQ==","mod_revision":"4"}}]}}"#;
        let gone = serde_json::from_str::<Streamed<WatchReply>>(gone).unwrap().result.unwrap();
        assert_eq!((&*gone.events[0].kind, gone.events[0].kv.mod_revision), ("DELETE", 4));
    }

    #[test]
    fn the_end_of_a_prefix_is_the_next_key() {
        assert_eq!(end_of("a/"), b"a0");
        assert_eq!(end_of(""), [0]);
    }
}
