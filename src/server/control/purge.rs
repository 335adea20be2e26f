//! An operator's URLs in the form in which stored responses are found.

use crate::cache::TargetUri;
use crate::http::target::{normalize_path, normalize_query, parse_authority, respell_query};
use crate::proxy::Snapshot;

/// The URIs that a URL is stored under: routes may leave out parts of its query.
pub(in crate::server) fn urls(snapshot: &Snapshot, url: &str) -> Result<Vec<String>, String> {
    let (origin, rest) = split(url)?;
    let rest = rest.split('#').next().unwrap_or_default();
    let (path, query) = match rest.split_once('?') {
        Some((path, query)) => (path, Some(normalize_query(query))),
        None => (rest, None),
    };
    let query = query.as_deref();
    let path = normal_path(if path.is_empty() { "/" } else { path })?;
    let spelt = query.map(respell_query).unwrap_or_default();
    let mut found = vec![[&*origin, &path, query.map_or("", |_| "?"), &spelt].concat()];
    for rules in snapshot.routes.iter().filter_map(|route| route.cache.as_ref()) {
        let (scheme, authority) = origin.split_once("://").unwrap_or_default();
        let uri = rules.key.uri(TargetUri { scheme, authority, path: &path, query });
        found.push(if origin.is_empty() { uri.trim_start_matches("://").to_owned() } else { uri });
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// Returns a prefix of URIs.
pub(in crate::server) fn prefix(text: &str) -> Result<String, String> {
    let (origin, rest) = split(text)?;
    // A host is one host, and not all whose names begin so.
    let rest = if rest.is_empty() { "/" } else { rest };
    // The last segment may be only a part of one.
    let cut = rest.rfind(['/', '?']).map_or(0, |at| at + 1);
    let whole = rest.split('?').next().unwrap_or_default();
    match cut <= whole.len() && cut > 0 {
        true => Ok([&origin, &*normal_path(&rest[..cut])?, &*respell_query(&rest[cut..])].concat()),
        false => Ok([&origin, &*respell_query(rest)].concat()),
    }
}

/// Scheme and authority in normal form, and the rest. Without them, the text begins with `/`.
fn split(url: &str) -> Result<(String, &str), String> {
    if url.starts_with('/') {
        return Ok((String::new(), url));
    }
    let expected = || format!("expected a URL like `http://example.com/a` or a path like `/a`, found `{url}`");
    let (scheme, rest) = url.split_once("://").ok_or_else(expected)?;
    let default_port = match scheme {
        "http" => 80,
        "https" => 443,
        _ => return Err(expected()),
    };
    let (authority, rest) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let authority = parse_authority(authority, default_port).map_err(|error| format!("{}: {error}", expected()))?;
    Ok((format!("{scheme}://{}", authority.to_text()), rest))
}

fn normal_path(path: &str) -> Result<String, String> {
    normalize_path(path).map(|path| path.into_owned()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_normalised_as_far_as_they_are_whole() {
        for (given, normal) in [
            ("http://EXAMPLE.com:80/a/%62/c%2", "http://example.com/a/b/c%2"),
            ("http://example.com", "http://example.com/"),
            ("https://example.com:8443/a", "https://example.com:8443/a"),
            ("/a/../b/", "/b/"),
            ("/a", "/a"),
            ("/a?x=/b", "/a?x=/b"),
            ("/a/caf\u{e9}", "/a/caf%C3%A9"),
            ("/a/caf%c3%a9", "/a/caf%C3%A9"),
            ("/a?x=%c3%a9", "/a?x=%C3%A9"),
        ] {
            assert_eq!(prefix(given).as_deref(), Ok(normal), "{given}");
        }
        for bad in ["example.com/a", "ftp://a/b", "http:///a", "", "*"] {
            assert!(prefix(bad).is_err(), "{bad}");
        }
    }
}
