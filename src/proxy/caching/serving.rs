//! Replies from stored responses: the ways in which they are served, conditions and ranges of the client, `Age` and
//! `Cache-Status`.

use crate::cache::{
    Body, CacheStatus, ForwardReason, Milliseconds, NOT_IN_304, Ranges, Reader, Stored, StreamingReader, content_range,
    is_same_for_range, is_unmodified, multipart, ranges,
};
use crate::proxy::exchange::Exchange;
use crate::proxy::respond::Reply;
use crate::proxy::response_body::{Passage, ResponseBody, Rest};
use crate::proxy::snapshot::{CacheResult, CacheRules};
use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use std::rc::Rc;

/// The ways in which a stored response is served; every reply from the store names one. The update by a HEAD and the
/// validation in the background are not listed: they change stored responses, which later look-ups serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ServedFrom {
    /// A fresh response, or a stale one that the client allows.
    LookUp { is_stale: bool },
    /// A stale response that may be validated in the background (RFC 5861 3).
    WhileValidating,
    /// A response that another fetch has stored while this request waited.
    LookUpAfterWait,
    /// A response that a node has just validated, for this request or for the one that it waited for.
    Validation { why: ForwardReason, is_collapsed: bool },
    /// The streaming body of another request's fetch.
    CollapsedFetch { why: ForwardReason },
    /// The streaming body of the request's own fetch.
    OwnFetch { why: ForwardReason, is_stored: bool },
    /// A response that the nodes of the fleet could not verify, where the route says so.
    Unverified,
    /// A stale response in place of a node's error (RFC 5861 4).
    StandIn,
    /// The response to a POST, which later GETs may get (RFC 9110 9.3.3).
    AdoptedPost,
}

impl ServedFrom {
    /// Returns the result in metrics and logs; `None` for a POST.
    fn result(self) -> Option<CacheResult> {
        Some(match self {
            ServedFrom::LookUp { is_stale: false } | ServedFrom::LookUpAfterWait => CacheResult::Hit,
            ServedFrom::LookUp { is_stale: true }
            | ServedFrom::WhileValidating
            | ServedFrom::Unverified
            | ServedFrom::StandIn => CacheResult::Stale,
            ServedFrom::Validation { .. } => CacheResult::Revalidated,
            ServedFrom::CollapsedFetch { .. } => CacheResult::Collapsed,
            ServedFrom::OwnFetch { .. } => CacheResult::Miss,
            ServedFrom::AdoptedPost => return None,
        })
    }

    /// Returns the value of `Cache-Status` (RFC 9211); `None` where that of the forwarded request counts.
    fn status(self, stored: &Stored, now: Milliseconds) -> Option<CacheStatus> {
        let forwarded =
            |why, status, stored, collapsed| Some(CacheStatus::Forwarded { why, status, stored, collapsed });
        match self {
            ServedFrom::LookUp { .. } | ServedFrom::WhileValidating | ServedFrom::LookUpAfterWait => {
                Some(CacheStatus::Hit { ttl: stored.ttl(now) })
            }
            ServedFrom::Validation { why, is_collapsed } => forwarded(why, Some(304), false, is_collapsed),
            ServedFrom::CollapsedFetch { why } => forwarded(why, None, false, true),
            ServedFrom::OwnFetch { why, is_stored } => forwarded(why, None, is_stored, false),
            ServedFrom::Unverified => Some(CacheStatus::Unverified { ttl: stored.ttl(now) }),
            ServedFrom::StandIn => Some(CacheStatus::StandIn { ttl: stored.ttl(now) }),
            ServedFrom::AdoptedPost => None,
        }
    }
}

/// The builder of replies from stored responses to one request.
pub(super) struct ReplyBuilder<'a> {
    pub(super) method: &'a Method,
    pub(super) fields: &'a HeaderMap,
    /// The cache rules of the route, which count the result.
    pub(super) rules: Option<&'a CacheRules>,
    pub(super) exchange: &'a Rc<Exchange>,
    pub(super) now: Milliseconds,
}

impl ReplyBuilder<'_> {
    /// Returns the reply from a stored response.
    pub(super) fn serve(&self, stored: &Stored, from: ServedFrom) -> Reply {
        let (mut head, status) = (stored.head(self.now), self.note(from, stored));
        if is_unmodified(stored, self.fields) {
            return self.not_modified(head, status);
        }
        let length = stored.body_len();
        let (code, body) = match self.ranges(stored, length) {
            Ranges::Whole => {
                self.announce(&mut head, stored, Some(length));
                (
                    stored.status,
                    if self.is_head() { self.nothing() } else { ResponseBody::stored(stored.run(), self.exchange) },
                )
            }
            Ranges::Unsatisfiable => (self.unsatisfiable(&mut head, length), self.nothing()),
            Ranges::Some(parts) => (StatusCode::PARTIAL_CONTENT, self.parts(&mut head, stored.body(), &parts)),
        };
        self.finish(code, head, body, status)
    }

    /// Returns the reply from a response whose body is still arriving. Several ranges are answered by the complete
    /// response. `own` are the fields for the client that began the fetch; `rest` is for a slow reader.
    pub(super) fn serve_arriving(
        &self,
        reader: StreamingReader,
        own: Option<HeaderMap>,
        from: ServedFrom,
        rest: Option<Rest>,
    ) -> Reply {
        let streaming = reader.body();
        let (stored, length) = (streaming.head.clone(), streaming.length);
        let status = self.note(from, &stored);
        let mut head = own.unwrap_or_else(|| stored.head(self.now));
        head.remove(CONTENT_LENGTH);
        if is_unmodified(&stored, self.fields) {
            return self.not_modified(head, status);
        }
        let wanted = length.map_or(Ranges::Whole, |length| self.ranges(&stored, length));
        match (wanted, length) {
            (Ranges::Unsatisfiable, Some(length)) => {
                let code = self.unsatisfiable(&mut head, length);
                self.finish(code, head, self.nothing(), status)
            }
            (Ranges::Some(parts), Some(length)) if parts.len() == 1 => {
                let (from, end) = parts[0];
                insert(&mut head, CONTENT_RANGE, content_range(parts[0], length));
                let body = ResponseBody::arriving(Passage::part(reader, rest, (from, end)), self.exchange);
                self.finish(StatusCode::PARTIAL_CONTENT, head, body, status)
            }
            _ if self.is_head() => {
                self.announce(&mut head, &stored, length);
                self.finish(stored.status, head, self.nothing(), status)
            }
            _ => {
                let body = ResponseBody::arriving(Passage::whole(reader, rest), self.exchange);
                self.finish(stored.status, head, body, status)
            }
        }
    }

    /// Counts and logs a way of serving. Returns its `Cache-Status`.
    fn note(&self, from: ServedFrom, stored: &Stored) -> Option<CacheStatus> {
        if let Some(requester) = self.exchange.requester() {
            requester.serves(stored.causal_tag());
        }
        if let (Some(rules), Some(result)) = (self.rules, from.result()) {
            rules.count(result);
            self.exchange.cached(result.label());
        }
        from.status(stored, self.now)
    }

    fn is_head(&self) -> bool {
        *self.method == Method::HEAD
    }

    fn nothing(&self) -> ResponseBody {
        ResponseBody::empty(self.exchange)
    }

    /// Returns the ranges to serve: they are defined for GET and a 200.
    fn ranges(&self, stored: &Stored, length: u64) -> Ranges {
        let has = self.fields.contains_key(RANGE) && !self.is_head() && stored.status == StatusCode::OK;
        match has && is_same_for_range(stored, self.fields) {
            true => ranges(self.fields, length),
            false => Ranges::Whole,
        }
    }

    /// Adds `Accept-Ranges`, and for a HEAD the length.
    fn announce(&self, head: &mut HeaderMap, stored: &Stored, length: Option<u64>) {
        if stored.status == StatusCode::OK && !head.contains_key(ACCEPT_RANGES) {
            head.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        }
        // A 204 has no `Content-Length` (RFC 9110 8.6).
        if let Some(length) = length.filter(|_| self.is_head() && stored.status != StatusCode::NO_CONTENT) {
            head.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
    }

    fn unsatisfiable(&self, head: &mut HeaderMap, length: u64) -> StatusCode {
        for name in NOT_IN_304 {
            head.remove(name);
        }
        insert(head, CONTENT_RANGE, format!("bytes */{length}"));
        StatusCode::RANGE_NOT_SATISFIABLE
    }

    fn parts(&self, head: &mut HeaderMap, body: Body, parts: &[(u64, u64)]) -> ResponseBody {
        let length = body.len();
        let parts = match parts {
            [(from, end)] => {
                insert(head, CONTENT_RANGE, content_range((*from, *end), length));
                [crate::cache::Part::Slice(*from, *end)].into()
            }
            several => {
                let (parts, media_type) = multipart(several, length, head.get(CONTENT_TYPE));
                head.insert(CONTENT_TYPE, media_type);
                parts
            }
        };
        ResponseBody::parts(Reader::of(body, parts), self.exchange)
    }

    fn not_modified(&self, mut head: HeaderMap, status: Option<CacheStatus>) -> Reply {
        for name in NOT_IN_304 {
            head.remove(name);
        }
        self.finish(StatusCode::NOT_MODIFIED, head, self.nothing(), status)
    }

    fn finish(&self, code: StatusCode, head: HeaderMap, body: ResponseBody, status: Option<CacheStatus>) -> Reply {
        let mut response = Response::new(body);
        *response.status_mut() = code;
        *response.headers_mut() = head;
        Reply::new(response).with_cache_status(status)
    }
}

fn insert(head: &mut HeaderMap, name: http::HeaderName, value: String) {
    if let Ok(value) = HeaderValue::try_from(value) {
        head.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the verification of a stored response that is served in a way, on a strong route with `verify: quorum`. A
    /// new way of serving fails to compile here until it has one.
    fn verification(way: ServedFrom) -> &'static str {
        match way {
            ServedFrom::LookUp { .. } => "VerifiedRead::verified, by the look of the request",
            ServedFrom::WhileValidating => "off: VerifiedRead fetches instead",
            ServedFrom::LookUpAfterWait => "Cache::fetch and Miss::accepts, by the look of the request",
            ServedFrom::Validation { is_collapsed: false, .. } => "a node, for a request of its own",
            ServedFrom::Validation { is_collapsed: true, .. } => "Order::may_wait and Miss::accepts, by the look",
            ServedFrom::CollapsedFetch { .. } => "Order::may_wait and Miss::accepts, by the look",
            ServedFrom::OwnFetch { .. } => "a node, for a request of its own",
            ServedFrom::Unverified => "nothing: the route says so, and the answer too",
            ServedFrom::StandIn => "Cache::stand_in and Miss::fetch_unshared, by the look of the request",
            ServedFrom::AdoptedPost => "off: Invalidation::may_serve_reads",
        }
    }

    #[test]
    fn every_way_says_how_it_is_verified() {
        assert!(verification(ServedFrom::AdoptedPost).starts_with("off"));
        assert!(verification(ServedFrom::StandIn).contains("look"));
    }
}
