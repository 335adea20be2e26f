//! The normal form of hosts and paths, in which routing, forwarding and keys compare them (RFC 3986 6.2.2, RFC 9110
//! 4.2.3).

use std::borrow::Cow;
use std::net::Ipv6Addr;

/// The reasons for which a path or host is ambiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadTarget {
    #[error("the path has a `%` that is not followed by two hexadecimal digits")]
    Percent,
    #[error("the host is not a valid name or address")]
    Host,
    #[error("the port is not a number from 1 to 65535")]
    Port,
}

/// Returns a query with its non-ASCII characters percent-encoded. Borrows where nothing changes.
pub(crate) fn normalize_query(query: &str) -> Cow<'_, str> {
    if query.is_ascii() { Cow::Borrowed(query) } else { Cow::Owned(encode_beyond_ascii(query)) }
}

fn encode_beyond_ascii(text: &str) -> String {
    const NONE: &percent_encoding::AsciiSet = &percent_encoding::AsciiSet::EMPTY;
    percent_encoding::utf8_percent_encode(text, NONE).to_string()
}

/// Returns a query in its normal spelling: escapes of unreserved characters decoded, other escapes in upper case.
/// Invalid escapes are kept.
pub(crate) fn respell_query(query: &str) -> Cow<'_, str> {
    if !query.contains('%') {
        return normalize_query(query);
    }
    let query = normalize_query(query);
    let mut out = String::with_capacity(query.len());
    let mut rest = &*query;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let length = rest.len().min(at + 3);
        match decode_unreserved(&rest[at..length]) {
            Ok(escape) => {
                out.push_str(&escape);
                rest = &rest[length..];
            }
            Err(_) => {
                out.push('%');
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// Returns a path in its normal form: non-ASCII characters percent-encoded, escapes of unreserved characters decoded,
/// other escapes in upper case, dot segments resolved. Borrows where nothing changes.
pub(crate) fn normalize_path(path: &str) -> Result<Cow<'_, str>, BadTarget> {
    if !path.is_ascii() {
        return Ok(Cow::Owned(normalize_path(&encode_beyond_ascii(path))?.into_owned()));
    }
    let bytes = path.as_bytes();
    let escaped = bytes.contains(&b'%');
    if !escaped && !bytes.windows(2).any(|pair| pair == b"/.") {
        return Ok(Cow::Borrowed(path));
    }
    let decoded = if escaped { Cow::Owned(decode_unreserved(path)?) } else { Cow::Borrowed(path) };
    Ok(match decoded.contains("/.") {
        true => Cow::Owned(resolve_dots(&decoded)),
        false => decoded,
    })
}

fn decode_unreserved(path: &str) -> Result<String, BadTarget> {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let digits = rest.as_bytes().get(at + 1..at + 3).ok_or(BadTarget::Percent)?;
        let value = hex(digits[0]).zip(hex(digits[1])).map(|(high, low)| high << 4 | low).ok_or(BadTarget::Percent)?;
        if value.is_ascii_alphanumeric() || matches!(value, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(value));
        } else {
            out.push('%');
            out.extend(digits.iter().map(|digit| char::from(digit.to_ascii_uppercase())));
        }
        rest = &rest[at + 3..];
    }
    out.push_str(rest);
    Ok(out)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

/// Removes the dot segments of an absolute path (RFC 3986 5.2.4).
fn resolve_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    kept.pop();
                }
                if last {
                    kept.push("");
                }
            }
            _ => kept.push(segment),
        }
    }
    let mut out = String::with_capacity(path.len());
    for segment in kept {
        out.push('/');
        out.push_str(segment);
    }
    if out.is_empty() {
        out.push('/');
    }
    out
}

/// A parsed authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Authority<'a> {
    /// In lower case, without a trailing dot; an IPv6 address keeps its brackets.
    pub(crate) host: Cow<'a, str>,
    /// The port, unless it is the scheme's default.
    pub(crate) port: Option<u16>,
    /// The text had the normal form already.
    pub(crate) normal: bool,
}

impl Authority<'_> {
    /// Returns the authority as it is forwarded and used in keys.
    pub(crate) fn to_text(&self) -> String {
        match self.port {
            Some(port) => format!("{}:{port}", self.host),
            None => self.host.to_string(),
        }
    }
}

/// Returns a parsed `host[:port]`; an error for user information, white space and all other invalid characters.
pub(crate) fn parse_authority(text: &str, default_port: u16) -> Result<Authority<'_>, BadTarget> {
    let (host, port_text) = match text.strip_prefix('[') {
        Some(rest) => {
            let end = rest.find(']').ok_or(BadTarget::Host)?;
            let after = &rest[end + 1..];
            let port = if after.is_empty() { None } else { Some(after.strip_prefix(':').ok_or(BadTarget::Host)?) };
            (&text[..end + 2], port)
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = match port_text {
        None | Some("") => None,
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => match digits.parse::<u16>() {
            Ok(0) | Err(_) => return Err(BadTarget::Port),
            Ok(port) => Some(port),
        },
        Some(_) => return Err(BadTarget::Port),
    };
    let bare = host.strip_suffix('.').unwrap_or(host);
    if !is_host(bare) {
        return Err(BadTarget::Host);
    }
    let lower = match bare.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => Cow::Owned(bare.to_ascii_lowercase()),
        false => Cow::Borrowed(bare),
    };
    let shown = port.filter(|&port| port != default_port);
    let normal =
        matches!(lower, Cow::Borrowed(_)) && bare.len() == host.len() && port_text.is_some() == shown.is_some();
    Ok(Authority { host: lower, port: shown, normal })
}

/// Returns whether a text is a host name (letters, digits, `-`, `_` and dots between labels), an IPv4
/// address, or an IPv6 address in brackets.
pub(crate) fn is_host(text: &str) -> bool {
    if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return inner.parse::<Ipv6Addr>().is_ok();
    }
    let mut label = 0;
    for byte in text.bytes() {
        match byte {
            b'.' if label > 0 => label = 0,
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' if label < 63 => label += 1,
            _ => return false,
        }
    }
    label > 0 && text.len() <= 253
}

/// Returns a path without a prefix of whole segments; the result begins with `/`.
/// `None` where the path does not begin with the prefix.
pub(crate) fn strip_prefix<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(prefix.strip_suffix('/').unwrap_or(prefix))?;
    match rest {
        "" if !prefix.ends_with('/') || prefix == "/" => Some("/"),
        _ if rest.starts_with('/') => Some(rest),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn queries_have_one_spelling() {
        for (given, spelt) in [
            ("a=1", "a=1"),
            ("a=caf\u{e9}", "a=caf%C3%A9"),
            ("a=caf%c3%a9", "a=caf%C3%A9"),
            ("%61=%2f%7e", "a=%2F~"),
            ("a=%", "a=%"),
            ("a=%4", "a=%4"),
            ("a=%zz%41", "a=%zzA"),
            ("a=%%41", "a=%A"),
        ] {
            assert_eq!(respell_query(given), spelt, "{given}");
        }
    }

    #[test]
    fn paths_have_one_form() {
        for (given, normal) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/%70ayments", "/payments"),
            ("/a%2fb", "/a%2Fb"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/%2e%2E/b", "/b"),
            ("/../../b", "/b"),
            ("/a/..", "/"),
            ("/a/.", "/a/"),
            ("/a/b/..", "/a/"),
            ("/.well-known/x", "/.well-known/x"),
            ("/a//b", "/a//b"),
            ("/..a/...", "/..a/..."),
            ("/%7Euser", "/~user"),
            ("/%00", "/%00"),
            ("/%252e", "/%252e"),
            ("/\u{e4}/./b", "/%C3%A4/b"),
            ("/%c3%a4", "/%C3%A4"),
        ] {
            assert_eq!(normalize_path(given).as_deref(), Ok(normal), "{given}");
        }
        for broken in ["/%", "/%4", "/%zz", "/a%4g", "/%%41"] {
            assert_eq!(normalize_path(broken), Err(BadTarget::Percent), "{broken}");
        }
    }

    #[test]
    fn authorities_have_one_form() {
        for (given, host, port, normal) in [
            ("example.com", "example.com", None, true),
            ("EXAMPLE.com", "example.com", None, false),
            ("example.com.", "example.com", None, false),
            ("example.com:80", "example.com", None, false),
            ("example.com:", "example.com", None, false),
            ("example.com:8080", "example.com", Some(8080), true),
            ("[::1]:8080", "[::1]", Some(8080), true),
            ("127.0.0.1", "127.0.0.1", None, true),
        ] {
            let authority = parse_authority(given, 80).unwrap();
            assert_eq!((&*authority.host, authority.port, authority.normal), (host, port, normal), "{given}");
        }
        for bad in [
            "",
            ":80",
            "a b",
            "user@host",
            "a/b",
            "host:0",
            "host:65536",
            "host:8a",
            "host:+1",
            "[::1",
            "[::1]x",
            "[x]",
            "a..b",
            ".",
            "a,b",
            "exa\u{e4}mple",
        ] {
            assert!(parse_authority(bad, 80).is_err(), "{bad}");
        }
    }

    #[test]
    fn prefixes_are_taken_in_whole_segments() {
        for (path, prefix, rest) in [
            ("/a/b", "/a", Some("/b")),
            ("/a", "/a", Some("/")),
            ("/ab", "/a", None),
            ("/a/b", "/", Some("/a/b")),
            ("/", "/", Some("/")),
            ("/a/b", "/a/", Some("/b")),
            ("/a", "/a/", None),
        ] {
            assert_eq!(strip_prefix(path, prefix), rest, "{path} {prefix}");
        }
    }

    proptest! {
        #[test]
        fn normalizing_twice_changes_nothing(path in "/[a-z./%0-9A-F~]{0,40}") {
            if let Ok(once) = normalize_path(&path) {
                let twice = normalize_path(&once).unwrap();
                prop_assert_eq!(&*twice, &*once);
                prop_assert!(once.starts_with('/'));
                prop_assert!(!once.split('/').any(|segment| segment == "." || segment == ".."));
            }
        }
    }
}
