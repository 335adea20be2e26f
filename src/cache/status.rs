//! `Cache-Status` (RFC 9211): how the cache handled a request.

use http::HeaderValue;
use std::io::Write;

/// The reason for which a request went to a node (the parameter `fwd`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ForwardReason {
    /// The cache does not handle this request.
    Bypass,
    /// The method of the request is never answered from the store.
    Method,
    /// No response is stored for the URI.
    UriMiss,
    /// Only responses of other variants are stored.
    VaryMiss,
    /// The stored response is stale.
    Stale,
    /// The request requires validation, such as by `no-cache`.
    Request,
    /// The session may have seen a newer response, or a write is known that the stored one does not include.
    Causal,
    /// The route serves no stored response without validation, or a write may have changed it.
    Strong,
    /// A write of the response's groups is under way.
    Marked,
    /// The nodes of the fleet cannot verify the stored response.
    Unverifiable,
}

impl ForwardReason {
    fn token(self) -> &'static str {
        match self {
            ForwardReason::Bypass => "bypass",
            ForwardReason::Method => "method",
            ForwardReason::UriMiss => "uri-miss",
            ForwardReason::VaryMiss => "vary-miss",
            ForwardReason::Stale => "stale",
            ForwardReason::Request
            | ForwardReason::Causal
            | ForwardReason::Strong
            | ForwardReason::Marked
            | ForwardReason::Unverifiable => "request",
        }
    }

    /// Returns the parameter `detail`.
    fn detail(self) -> Option<&'static str> {
        match self {
            ForwardReason::Causal => Some("causal"),
            ForwardReason::Strong => Some("strong"),
            ForwardReason::Marked => Some("marked"),
            ForwardReason::Unverifiable => Some("unverifiable"),
            _ => None,
        }
    }
}

/// The `Cache-Status` of a response (RFC 9211).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CacheStatus {
    /// A response from the store; `ttl` is the number of seconds until it is stale.
    Hit { ttl: i64 },
    /// A response from the store that should have been verified, and could not be.
    Unverified { ttl: i64 },
    /// A stale response in place of a node's error.
    StandIn { ttl: i64 },
    /// No response was stored, and the request has `only-if-cached`.
    Refused,
    Forwarded {
        why: ForwardReason,
        /// The status of the node, where it is not that of the response.
        status: Option<u16>,
        stored: bool,
        collapsed: bool,
    },
}

impl CacheStatus {
    pub(crate) fn forwarded(why: ForwardReason) -> CacheStatus {
        CacheStatus::Forwarded { why, status: None, stored: false, collapsed: false }
    }

    /// Returns the value of the field.
    pub(crate) fn to_value(self) -> HeaderValue {
        if let CacheStatus::Hit { ttl } = self {
            return hit(ttl);
        }
        let mut text = [0u8; 128];
        let mut rest = &mut text[..];
        // All values are shorter than the array.
        let _ = match self {
            CacheStatus::Hit { .. } => Ok(()),
            CacheStatus::Unverified { ttl } => write!(rest, "ringway; hit; ttl={ttl}; detail=unverified"),
            CacheStatus::StandIn { ttl } => write!(rest, "ringway; hit; ttl={ttl}; detail=stale-if-error"),
            CacheStatus::Refused => write!(rest, "ringway; detail=only-if-cached"),
            CacheStatus::Forwarded { why, status, stored, collapsed } => {
                let _ = write!(rest, "ringway; fwd={}", why.token());
                if let Some(status) = status {
                    let _ = write!(rest, "; fwd-status={status}");
                }
                if stored {
                    let _ = write!(rest, "; stored");
                }
                if collapsed {
                    let _ = write!(rest, "; collapsed");
                }
                why.detail().map_or(Ok(()), |detail| write!(rest, "; detail={detail}"))
            }
        };
        let left = rest.len();
        let length = text.len() - left;
        HeaderValue::from_bytes(&text[..length]).expect("tokens and numbers are a field value")
    }
}

/// Returns the value of a hit without formatting machinery.
fn hit(ttl: i64) -> HeaderValue {
    const BEFORE: &[u8] = b"ringway; hit; ttl=";
    let mut digits = itoa::Buffer::new();
    let digits = digits.format(ttl).as_bytes();
    let mut text = [0u8; BEFORE.len() + 20];
    text[..BEFORE.len()].copy_from_slice(BEFORE);
    text[BEFORE.len()..BEFORE.len() + digits.len()].copy_from_slice(digits);
    HeaderValue::from_bytes(&text[..BEFORE.len() + digits.len()]).expect("digits are a field value")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_a_structured_field() {
        for (status, text) in [
            (CacheStatus::Hit { ttl: 30 }, "ringway; hit; ttl=30"),
            (CacheStatus::Hit { ttl: 0 }, "ringway; hit; ttl=0"),
            (CacheStatus::Hit { ttl: -999_999_999_999_999 }, "ringway; hit; ttl=-999999999999999"),
            (CacheStatus::StandIn { ttl: -5 }, "ringway; hit; ttl=-5; detail=stale-if-error"),
            (CacheStatus::Refused, "ringway; detail=only-if-cached"),
            (CacheStatus::forwarded(ForwardReason::Causal), "ringway; fwd=request; detail=causal"),
            (CacheStatus::forwarded(ForwardReason::Strong), "ringway; fwd=request; detail=strong"),
            (CacheStatus::Unverified { ttl: 7 }, "ringway; hit; ttl=7; detail=unverified"),
            (CacheStatus::forwarded(ForwardReason::Marked), "ringway; fwd=request; detail=marked"),
            (CacheStatus::forwarded(ForwardReason::Unverifiable), "ringway; fwd=request; detail=unverifiable"),
            (CacheStatus::forwarded(ForwardReason::UriMiss), "ringway; fwd=uri-miss"),
            (
                CacheStatus::Forwarded { why: ForwardReason::Stale, status: Some(304), stored: true, collapsed: true },
                "ringway; fwd=stale; fwd-status=304; stored; collapsed",
            ),
        ] {
            let value = status.to_value();
            assert_eq!(value, text);
            assert!(sfv::Parser::new(value.as_bytes()).parse::<sfv::List>().is_ok());
        }
    }
}
