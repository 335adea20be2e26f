//! Identifiers of a request: `X-Request-Id` and `traceparent` of W3C Trace Context.

use super::fields::{TRACEPARENT, X_REQUEST_ID};
use bytes::{Bytes, BytesMut};
use http::header::Entry;
use http::{HeaderMap, HeaderValue};

/// The two hexadecimal digits of every byte.
const HEX: [[u8; 2]; 256] = {
    let digits = b"0123456789abcdef";
    let mut all = [[0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        all[byte] = [digits[byte >> 4], digits[byte & 15]];
        byte += 1;
    }
    all
};

/// The room that the identifiers of many requests share: none has an allocation of its own.
const ROOM: usize = 8 << 10;

/// The identifiers of a worker's requests.
#[derive(Default)]
pub(crate) struct Identifiers {
    random: fastrand::Rng,
    room: BytesMut,
}

impl Identifiers {
    /// Sets the identifiers in the fields for the node: those of the client where they are well-formed, otherwise new
    /// ones. The proxy is always a span of its own.
    pub(crate) fn set(&mut self, fields: &mut HeaderMap) {
        // "00-" trace id "-" parent id "-" flags
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        let entry = fields.entry(TRACEPARENT);
        let theirs = match &entry {
            Entry::Occupied(entry) => Some(entry.get().as_bytes()),
            Entry::Vacant(_) => None,
        };
        match theirs.filter(|value| is_traceparent(value)) {
            Some(theirs) => {
                text[3..35].copy_from_slice(&theirs[3..35]);
                text[53..55].copy_from_slice(&theirs[53..55]);
            }
            None => {
                write_hex(&mut text[3..19], self.random.u64(1..));
                write_hex(&mut text[19..35], self.random.u64(..));
            }
        }
        write_hex(&mut text[36..52], self.random.u64(1..));
        let shared = self.keep(&text);
        let request_id = shared.slice(3..35);
        put(entry, shared);
        match fields.entry(X_REQUEST_ID) {
            Entry::Occupied(entry) if is_request_id(entry.get().as_bytes()) => {}
            entry => put(entry, request_id),
        }
    }

    /// Returns a copy of the text in the shared room.
    fn keep(&mut self, text: &[u8]) -> Bytes {
        if self.room.capacity() < text.len() {
            self.room = BytesMut::with_capacity(ROOM);
        }
        self.room.extend_from_slice(text);
        self.room.split().freeze()
    }
}

fn put(entry: Entry<'_, HeaderValue>, text: Bytes) {
    let value = value(text);
    match entry {
        Entry::Occupied(mut entry) => drop(entry.insert(value)),
        Entry::Vacant(entry) => drop(entry.insert(value)),
    }
}

fn value(text: Bytes) -> HeaderValue {
    HeaderValue::from_maybe_shared(text).expect("hexadecimal digits and dashes are a field value")
}

fn write_hex(out: &mut [u8], number: u64) {
    for (digits, byte) in out.chunks_exact_mut(2).zip(number.to_be_bytes()) {
        digits.copy_from_slice(&HEX[usize::from(byte)]);
    }
}

pub(super) fn is_request_id(id: &[u8]) -> bool {
    (1..=128).contains(&id.len()) && id.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:=+/".contains(byte))
}

/// W3C Trace Context, version 00: lower-case hexadecimal, neither id all zeros.
pub(super) fn is_traceparent(value: &[u8]) -> bool {
    let hex = |part: &[u8]| part.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let some = |part: &[u8]| part.iter().any(|&byte| byte != b'0');
    value.len() == 55
        && value.starts_with(b"00-")
        && value[35] == b'-'
        && value[52] == b'-'
        && hex(&value[3..35])
        && hex(&value[36..52])
        && hex(&value[53..55])
        && some(&value[3..35])
        && some(&value[36..52])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The request id and the trace that a node gets where the client has sent these.
    fn identified(request_id: Option<&str>, traceparent: Option<&str>, ids: &mut Identifiers) -> (String, String) {
        let mut fields = HeaderMap::new();
        for (name, value) in [(X_REQUEST_ID, request_id), (TRACEPARENT, traceparent)] {
            fields.extend(value.map(|value| (name, HeaderValue::from_str(value).unwrap())));
        }
        ids.set(&mut fields);
        assert_eq!((fields.len(), fields.keys_len()), (2, 2));
        let text = |name| fields[name].to_str().unwrap().to_owned();
        (text(&X_REQUEST_ID), text(&TRACEPARENT))
    }

    #[test]
    fn a_trace_goes_on_and_a_broken_one_begins_anew() {
        let mut ids = Identifiers { random: fastrand::Rng::with_seed(7), room: BytesMut::new() };
        let theirs = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let (request_id, text) = identified(None, Some(theirs), &mut ids);
        assert!(text.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-") && text.ends_with("-01"), "{text}");
        assert!(!text.contains("00f067aa0ba902b7"));
        assert_eq!(request_id, "4bf92f3577b34da6a3ce929d0e0e4736");

        for broken in [
            "",
            "00-0-0-0",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        ] {
            let (request_id, fresh) = identified(None, Some(broken), &mut ids);
            assert!(is_traceparent(fresh.as_bytes()), "{fresh:?}");
            assert_eq!(request_id, fresh[3..35]);
        }
    }

    #[test]
    fn a_request_id_is_kept_only_where_it_is_harmless() {
        let mut ids = Identifiers { random: fastrand::Rng::with_seed(7), room: BytesMut::new() };
        assert_eq!(identified(Some("order-17.a"), None, &mut ids).0, "order-17.a");
        for bad in ["a b", "\"}", &"x".repeat(129), ""] {
            assert_eq!(identified(Some(bad), None, &mut ids).0.len(), 32);
        }
    }
}
