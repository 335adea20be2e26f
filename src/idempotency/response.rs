//! A stored result: the response to the client, byte for byte.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

/// A complete response. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredResponse {
    pub(crate) status: u16,
    /// Lines of `name: value`, in the order in which they were sent.
    pub(crate) fields: Bytes,
    pub(crate) body: Bytes,
    /// The same for the fields after the body.
    pub(crate) trailers: Bytes,
}

/// Stored bytes that are no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stored response is damaged")]
pub(crate) struct Damaged;

impl StoredResponse {
    pub(crate) fn new(status: StatusCode, fields: &HeaderMap, body: Bytes, trailers: Option<&HeaderMap>) -> Self {
        StoredResponse {
            status: status.as_u16(),
            fields: write(fields),
            body,
            trailers: trailers.map_or_else(Bytes::new, write),
        }
    }

    /// Returns the response without its body, the body, and the trailers.
    pub(crate) fn take_apart(self) -> Result<(Response<()>, Bytes, Option<HeaderMap>), Damaged> {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(self.status).map_err(|_| Damaged)?;
        *response.headers_mut() = read(&self.fields)?;
        let trailers = (!self.trailers.is_empty()).then(|| read(&self.trailers)).transpose()?;
        Ok((response, self.body, trailers))
    }

    /// Returns a copy that shares its memory with nothing.
    pub(crate) fn alone(&self) -> StoredResponse {
        let copy = |bytes: &Bytes| Bytes::copy_from_slice(bytes);
        let StoredResponse { status, fields, body, trailers } = self;
        StoredResponse { status: *status, fields: copy(fields), body: copy(body), trailers: copy(trailers) }
    }

    /// The memory it takes, in bytes.
    pub(crate) fn size(&self) -> usize {
        self.fields.len() + self.body.len() + self.trailers.len()
    }
}

fn write(fields: &HeaderMap) -> Bytes {
    let length = fields.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    let mut text = BytesMut::with_capacity(length);
    for (name, value) in fields {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            text.extend_from_slice(part);
        }
    }
    text.freeze()
}

/// Values are shared with the text, not copied.
fn read(text: &Bytes) -> Result<HeaderMap, Damaged> {
    let mut fields = HeaderMap::with_capacity(text.iter().filter(|&&byte| byte == b'\n').count() + 4);
    let mut at = 0;
    while at < text.len() {
        let line = text[at..].windows(2).position(|pair| pair == b"\r\n").ok_or(Damaged)?;
        let colon = text[at..at + line].iter().position(|&byte| byte == b':').ok_or(Damaged)?;
        let name = HeaderName::from_bytes(&text[at..at + colon]).map_err(|_| Damaged)?;
        let value = text.slice((at + colon + 2).min(at + line)..at + line);
        fields.append(name, HeaderValue::from_maybe_shared(value).map_err(|_| Damaged)?);
        at += line + 2;
    }
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_response_comes_back_as_it_was() {
        let fields = HeaderMap::from_iter([
            (http::header::SET_COOKIE, HeaderValue::from_static("a=1")),
            (http::header::DATE, HeaderValue::from_static("Tue, 24 Nov 2026 10:00:00 GMT")),
            (HeaderName::from_static("x-empty"), HeaderValue::from_static("")),
            (HeaderName::from_static("x-bytes"), HeaderValue::from_bytes(b"\xe9: \t;").unwrap()),
        ]);
        let mut fields = fields;
        fields.append(http::header::SET_COOKIE, HeaderValue::from_static("b=2"));
        let trailers = HeaderMap::from_iter([(HeaderName::from_static("x-sum"), HeaderValue::from_static("9"))]);
        let stored = StoredResponse::new(StatusCode::CREATED, &fields, Bytes::from_static(b"\0body"), Some(&trailers));
        let (head, body, after) = stored.take_apart().unwrap();
        assert_eq!((head.status(), head.headers(), &body[..]), (StatusCode::CREATED, &fields, &b"\0body"[..]));
        assert_eq!(after, Some(trailers));
        let order = |fields: &HeaderMap| fields.iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>();
        assert_eq!(order(head.headers()), order(&fields));
    }

    proptest! {
        #[test]
        fn damage_is_noticed_or_harmless(bytes: Vec<u8>) {
            let _ = read(&Bytes::from(bytes));
        }
    }
}
