//! Answers from the store: the client's conditions and ranges, the age, and what the cache did.

use super::answer::{Passage, ResponseBody, Rest};
use super::exchange::Exchange;
use super::snapshot::Route;
use crate::cache::{
    Body, CacheStatus, Milliseconds, NOT_IN_304, Ranges, Reader, Stored, StreamingReader, content_range,
    is_same_for_range, is_unmodified, multipart, ranges,
};
use crate::http::fields::CACHE_STATUS;
use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use std::rc::Rc;

/// Who is answered.
pub(super) struct Asking<'a> {
    pub(super) method: &'a Method,
    pub(super) fields: &'a HeaderMap,
    pub(super) route: &'a Route,
    pub(super) exchange: &'a Rc<Exchange>,
    pub(super) now: Milliseconds,
}

impl Asking<'_> {
    /// Returns a stored response.
    pub(super) fn serve(&self, stored: &Stored, status: CacheStatus) -> Response<ResponseBody> {
        let (mut head, status) = (stored.head(self.now), Some(status));
        if is_unmodified(stored, self.fields) {
            return self.not_modified(head, status);
        }
        let body = stored.body();
        let length = body.len();
        let (code, body) = match self.ranges(stored, length) {
            Ranges::Whole => {
                self.announce(&mut head, stored, Some(length));
                (stored.status, if self.is_head() { self.nothing() } else { ResponseBody::stored(body, self.exchange) })
            }
            Ranges::Unsatisfiable => (self.unsatisfiable(&mut head, length), self.nothing()),
            Ranges::Some(parts) => (StatusCode::PARTIAL_CONTENT, self.parts(&mut head, body, &parts)),
        };
        self.finish(code, head, body, status)
    }

    /// A response whose body is still arriving. Several ranges at once are not made of it; such a
    /// client gets the whole. `own` are the fields for the client that had it fetched; without a status
    /// somebody else tells it. `rest` is for a reader that is left behind.
    pub(super) fn serve_arriving(
        &self,
        reader: StreamingReader,
        own: Option<HeaderMap>,
        status: Option<CacheStatus>,
        rest: Option<Rest>,
    ) -> Response<ResponseBody> {
        let growing = reader.growing();
        let (stored, length) = (growing.head.clone(), growing.length);
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

    fn is_head(&self) -> bool {
        *self.method == Method::HEAD
    }

    fn nothing(&self) -> ResponseBody {
        ResponseBody::empty(self.exchange)
    }

    /// Ranges are defined for GET, and made of whole successes.
    fn ranges(&self, stored: &Stored, length: u64) -> Ranges {
        let has = self.fields.contains_key(RANGE) && !self.is_head() && stored.status == StatusCode::OK;
        match has && is_same_for_range(stored, self.fields) {
            true => ranges(self.fields, length),
            false => Ranges::Whole,
        }
    }

    /// Says how long the body is where no body says it.
    fn announce(&self, head: &mut HeaderMap, stored: &Stored, length: Option<u64>) {
        if stored.status == StatusCode::OK && !head.contains_key(ACCEPT_RANGES) {
            head.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        }
        // A 204 has no length, not even none (RFC 9110 8.6).
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

    fn parts(&self, head: &mut HeaderMap, body: &Body, parts: &[(u64, u64)]) -> ResponseBody {
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

    fn not_modified(&self, mut head: HeaderMap, status: Option<CacheStatus>) -> Response<ResponseBody> {
        for name in NOT_IN_304 {
            head.remove(name);
        }
        self.finish(StatusCode::NOT_MODIFIED, head, self.nothing(), status)
    }

    fn finish(
        &self,
        code: StatusCode,
        mut head: HeaderMap,
        body: ResponseBody,
        status: Option<CacheStatus>,
    ) -> Response<ResponseBody> {
        self.route.response_fields.apply(&mut head);
        if let Some(status) = status {
            head.append(CACHE_STATUS, status.to_value());
        }
        let mut response = Response::new(body);
        *response.status_mut() = code;
        *response.headers_mut() = head;
        response
    }
}

fn insert(head: &mut HeaderMap, name: http::HeaderName, value: String) {
    if let Ok(value) = HeaderValue::try_from(value) {
        head.insert(name, value);
    }
}
