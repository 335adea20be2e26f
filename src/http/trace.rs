//! Identifiers of a request: `X-Request-Id` and `traceparent` of W3C Trace Context.

use bytes::Bytes;
use http::HeaderValue;

const HEX: &[u8; 16] = b"0123456789abcdef";

/// The identifiers of one request to a node.
#[derive(Clone, Debug)]
pub(crate) struct Ids {
    pub(crate) request_id: HeaderValue,
    pub(crate) traceparent: HeaderValue,
}

/// Returns the identifiers for the node: those of the client where they are well-formed, otherwise new ones. The proxy
/// is always a span of its own.
pub(crate) fn ids(
    request_id: Option<&HeaderValue>,
    traceparent: Option<&HeaderValue>,
    random: &mut fastrand::Rng,
) -> Ids {
    // "00-" trace id "-" parent id "-" flags
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
    match traceparent.map(HeaderValue::as_bytes).filter(|value| is_traceparent(value)) {
        Some(theirs) => {
            text[3..35].copy_from_slice(&theirs[3..35]);
            text[53..55].copy_from_slice(&theirs[53..55]);
        }
        None => {
            write_hex(&mut text[3..19], random.u64(1..));
            write_hex(&mut text[19..35], random.u64(..));
        }
    }
    write_hex(&mut text[36..52], random.u64(1..));
    let shared = Bytes::copy_from_slice(&text);
    let ours = || value(shared.slice(3..35));
    Ids {
        request_id: request_id.filter(|id| is_request_id(id.as_bytes())).cloned().unwrap_or_else(ours),
        traceparent: value(shared.clone()),
    }
}

fn value(text: Bytes) -> HeaderValue {
    HeaderValue::from_maybe_shared(text).expect("hexadecimal digits and dashes are a field value")
}

fn write_hex(out: &mut [u8], number: u64) {
    for (digits, byte) in out.chunks_exact_mut(2).zip(number.to_be_bytes()) {
        digits[0] = HEX[usize::from(byte >> 4)];
        digits[1] = HEX[usize::from(byte & 15)];
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

    #[test]
    fn a_trace_goes_on_and_a_broken_one_begins_anew() {
        let mut random = fastrand::Rng::with_seed(7);
        let theirs = HeaderValue::from_static("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        let ids_now = ids(None, Some(&theirs), &mut random);
        let text = ids_now.traceparent.to_str().unwrap();
        assert!(text.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-") && text.ends_with("-01"), "{text}");
        assert!(!text.contains("00f067aa0ba902b7"));
        assert_eq!(ids_now.request_id, "4bf92f3577b34da6a3ce929d0e0e4736");

        for broken in [
            "",
            "00-0-0-0",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        ] {
            let value = HeaderValue::from_static(broken);
            let fresh = ids(None, Some(&value), &mut random).traceparent;
            assert!(is_traceparent(fresh.as_bytes()), "{fresh:?}");
        }
    }

    #[test]
    fn a_request_id_is_kept_only_where_it_is_harmless() {
        let mut random = fastrand::Rng::with_seed(7);
        let good = HeaderValue::from_static("order-17.a");
        assert_eq!(ids(Some(&good), None, &mut random).request_id, good);
        let long = HeaderValue::from_str(&"x".repeat(129)).unwrap();
        for bad in
            [HeaderValue::from_static("a b"), HeaderValue::from_static("\"}"), long, HeaderValue::from_static("")]
        {
            assert_eq!(ids(Some(&bad), None, &mut random).request_id.len(), 32);
        }
    }
}
