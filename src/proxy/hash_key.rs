//! The key that decides on a node: the first source that the request has.

use super::request::Form;
use crate::config::values::HashSource;
use crate::http::head::RequestFields;
use crate::idempotency::Scope;
use http::HeaderMap;
use http::header::COOKIE;
use std::borrow::Cow;

/// Where a key came from: the place in `hash_on`, and the key itself.
#[derive(Debug)]
pub(crate) struct KeySource<'a> {
    pub(crate) source: &'a HashSource,
    pub(crate) key: Cow<'a, [u8]>,
}

/// Looks for the first source that is present; an empty value counts as absent.
pub(crate) fn find_key<'a>(
    sources: &'a [HashSource],
    form: &'a Form<'_>,
    fields: &'a RequestFields,
) -> Option<KeySource<'a>> {
    sources.iter().find_map(|source| {
        let key: Cow<'a, [u8]> = match source {
            HashSource::Cookie(name) => cookie(fields.plain(), name)?.into(),
            HashSource::Header(name) => fields.value(name)?,
            HashSource::Query(name) => query_parameters(form.query.as_deref()?, name).next()?.as_bytes().into(),
            HashSource::ClientIp => fields.facts.address.to_string().into_bytes().into(),
            HashSource::Host => form.host.as_bytes().into(),
            HashSource::Path => form.path.as_bytes().into(),
            HashSource::Uri => match form.query.as_deref() {
                None => form.path.as_bytes().into(),
                Some(query) => [form.path.as_bytes(), b"?", query.as_bytes()].concat().into(),
            },
        };
        (!key.is_empty()).then_some(KeySource { source, key })
    })
}

/// The sources of the caller's identity: by their names, in a canonical order, so that their order in the file does not
/// change any identity.
pub(crate) struct ScopeSources(Vec<(String, HashSource)>);

impl ScopeSources {
    pub(crate) fn of(sources: &[HashSource]) -> ScopeSources {
        let mut named: Vec<_> = sources.iter().map(|source| (source.to_string(), source.clone())).collect();
        named.sort_by(|(one, _), (other, _)| one.cmp(other));
        named.dedup();
        ScopeSources(named)
    }

    /// Returns the caller's scope; `None` where all sources are absent.
    pub(crate) fn read(&self, form: &Form<'_>, fields: &RequestFields) -> Option<Scope> {
        let mut scope = Scope::default();
        for (name, source) in &self.0 {
            let values = scope_values(source, form, fields);
            scope.add(name, values.iter().map(AsRef::as_ref));
        }
        (self.0.is_empty() || scope.is_known()).then_some(scope)
    }

    /// Returns the names of all sources.
    pub(crate) fn names(&self) -> Vec<&str> {
        self.0.iter().map(|(name, _)| name.as_str()).collect()
    }
}

/// Returns all values of a source of the caller's identity.
fn scope_values<'a>(source: &'a HashSource, form: &'a Form<'_>, fields: &'a RequestFields) -> Vec<Cow<'a, [u8]>> {
    match source {
        HashSource::Cookie(name) => cookies(fields.plain(), name).map(Cow::from).collect(),
        HashSource::Header(name) => fields.values(name).collect(),
        HashSource::Query(name) => query_parameters(form.query.as_deref().unwrap_or_default(), name)
            .map(|value| value.as_bytes().into())
            .collect(),
        HashSource::ClientIp => vec![fields.facts.address.to_string().into_bytes().into()],
        // Validation refuses these: they are part of every record's identity anyway.
        HashSource::Host | HashSource::Path | HashSource::Uri => Vec::new(),
    }
}

/// Returns the first cookie of a name.
fn cookie<'a>(fields: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    cookies(fields, name).next()
}

/// Returns the cookies of a name, over all `Cookie` fields (RFC 6265 5.4).
pub(super) fn cookies<'a>(fields: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a [u8]> {
    let pairs = fields.get_all(COOKIE).iter().flat_map(|value| value.as_bytes().split(|&byte| byte == b';'));
    pairs.map(<[u8]>::trim_ascii).filter_map(move |pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

fn query_parameters<'a>(query: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    query.split('&').filter_map(move |pair| pair.strip_prefix(name)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn the_first_source_that_is_present_wins() {
        let sources = [
            HashSource::Cookie("session".into()),
            HashSource::Header("x-user-id".parse().unwrap()),
            HashSource::Query("tenant".into()),
            HashSource::ClientIp,
        ];
        let form = |query: Option<&'static str>| Form {
            host: "h".into(),
            path: "/p".into(),
            query: query.map(Into::into),
            ..Form::default()
        };
        for (cookies, user, query, expected) in [
            ("a=1; session=s1; session=s2", "u", Some("tenant=t"), "s1"),
            ("xsession=s1", "u", Some("tenant=t"), "u"),
            ("session=", "u", None, "u"),
            ("", "", Some("a=1&tenant=t&tenant=x"), "t"),
            ("", "", Some("xtenant=t"), "192.0.2.7"),
            ("", "", None, "192.0.2.7"),
        ] {
            let mut fields = HeaderMap::new();
            fields.insert(COOKIE, HeaderValue::from_static(cookies));
            fields.insert("x-user-id", HeaderValue::from_static(user));
            let form = form(query);
            let mut fields = RequestFields::from(fields);
            fields.facts.address = "192.0.2.7".parse().unwrap();
            let found = find_key(&sources, &form, &fields).unwrap();
            assert_eq!(found.key, expected.as_bytes(), "{cookies} {user} {query:?}");
        }
    }

    #[test]
    fn host_path_and_uri_are_the_normal_ones() {
        let form = Form { host: "h".into(), path: "/p".into(), query: Some("b=1".into()), ..Form::default() };
        let mut fields = RequestFields::from(HeaderMap::new());
        fields.facts.address = "::1".parse().unwrap();
        let key = |source: HashSource| {
            let sources = [source];
            let found = find_key(&sources, &form, &fields).unwrap();
            String::from_utf8(found.key.into_owned()).unwrap()
        };
        assert_eq!(
            [key(HashSource::Host), key(HashSource::Path), key(HashSource::Uri), key(HashSource::ClientIp)],
            ["h", "/p", "/p?b=1", "::1"]
        );
    }
}
