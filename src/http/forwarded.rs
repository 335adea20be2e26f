//! The client's address behind trusted proxies.

use super::fields::{X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO};
use http::header::FORWARDED;
use http::{HeaderMap, HeaderValue};
use ipnet::IpNet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Returns whether a peer is one of the trusted proxies.
pub(crate) fn is_trusted(peer: IpAddr, trusted: &[IpNet]) -> bool {
    let peer = peer.to_canonical();
    trusted.iter().any(|net| net.contains(&peer))
}

/// The origin of a request according to trusted proxies, from `X-Forwarded-*` or, without these, from `Forwarded` (RFC
/// 7239).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The client's address: the first one from the right that is not a trusted proxy's. An invalid entry ends the
    /// search, and the proxy that added it counts as the client.
    pub(crate) address: IpAddr,
    /// `true` where the client used TLS; `None` where no proxy forwards the scheme.
    pub(crate) is_secure: Option<bool>,
    /// The addresses before the peer's own, as in `X-Forwarded-For`.
    pub(crate) chain: Option<HeaderValue>,
}

impl Origin {
    /// Returns the origin of a request whose peer is a trusted proxy.
    pub(crate) fn of(peer: IpAddr, fields: &HeaderMap, trusted: &[IpNet]) -> Origin {
        let mut origin = Origin { address: peer.to_canonical(), is_secure: None, chain: None };
        let names = [X_FORWARDED_FOR, X_FORWARDED_PROTO, X_FORWARDED_HOST];
        if names.iter().any(|name| fields.contains_key(name)) {
            origin.read_x_forwarded(fields, trusted);
        } else if fields.contains_key(FORWARDED) {
            origin.read_forwarded(fields, trusted);
        }
        origin
    }

    fn read_x_forwarded(&mut self, fields: &HeaderMap, trusted: &[IpNet]) {
        let lines: Vec<&[u8]> = fields.get_all(X_FORWARDED_FOR).iter().map(HeaderValue::as_bytes).collect();
        let entries = lines.iter().rev().flat_map(|line| line.rsplit(|&byte| byte == b','));
        for entry in entries {
            let Some(address) = parse_entry(entry) else { break };
            self.address = address;
            if !is_trusted(address, trusted) {
                break;
            }
        }
        if !lines.is_empty() {
            self.chain = HeaderValue::from_bytes(&lines.join(&b", "[..])).ok();
        }
        // Each proxy of a chain may have added a scheme; the first one is the client's.
        let first = fields.get(X_FORWARDED_PROTO).and_then(|value| value.as_bytes().split(|&byte| byte == b',').next());
        self.is_secure = first.and_then(is_secure);
    }

    fn read_forwarded(&mut self, fields: &HeaderMap, trusted: &[IpNet]) {
        let mut chain = Vec::new();
        for line in fields.get_all(FORWARDED).iter().rev() {
            for element in split_unquoted(line.as_bytes(), b',').into_iter().rev() {
                let Some(address) = parameter(element, b"for").and_then(|node| parse_entry(&node)) else {
                    return self.set_chain(chain);
                };
                self.address = address;
                self.is_secure = parameter(element, b"proto").and_then(|scheme| is_secure(&scheme));
                chain.push(address.to_string());
                if !is_trusted(address, trusted) {
                    return self.set_chain(chain);
                }
            }
        }
        self.set_chain(chain);
    }

    fn set_chain(&mut self, mut from_the_right: Vec<String>) {
        from_the_right.reverse();
        if !from_the_right.is_empty() {
            self.chain = HeaderValue::try_from(from_the_right.join(", ")).ok();
        }
    }
}

/// Returns whether a scheme uses TLS; `None` for other schemes than HTTP's.
fn is_secure(scheme: &[u8]) -> Option<bool> {
    let scheme = scheme.trim_ascii();
    let is = |name: &[u8]| scheme.eq_ignore_ascii_case(name);
    match () {
        () if is(b"https") || is(b"wss") => Some(true),
        () if is(b"http") || is(b"ws") => Some(false),
        () => None,
    }
}

/// Splits at a separator outside of quoted strings.
fn split_unquoted(text: &[u8], separator: u8) -> Vec<&[u8]> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    text.split(|&byte| {
        let is_end = !is_quoted && byte == separator;
        is_quoted ^= byte == b'"' && !is_escaped;
        is_escaped = is_quoted && byte == b'\\' && !is_escaped;
        is_end
    })
    .collect()
}

/// Returns the value of a parameter in one element of `Forwarded`, without its quotes.
fn parameter(element: &[u8], name: &[u8]) -> Option<Vec<u8>> {
    split_unquoted(element, b';').into_iter().find_map(|pair| {
        let (found, value) = pair.split_at(pair.iter().position(|&byte| byte == b'=')?);
        let value = value[1..].trim_ascii();
        let value = value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(value);
        found.trim_ascii().eq_ignore_ascii_case(name).then(|| value.to_vec())
    })
}

/// Returns the network of an address that one client can use: for IPv6 its /64.
pub(crate) fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
    }
}

/// Returns the address of an entry, with or without a port.
fn parse_entry(entry: &[u8]) -> Option<IpAddr> {
    let entry = std::str::from_utf8(entry.trim_ascii()).ok()?;
    let bare = entry.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(entry);
    let parsed: Option<IpAddr> =
        bare.parse().ok().or_else(|| entry.parse::<SocketAddr>().ok().map(|address| address.ip()));
    parsed.map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderName;

    fn origin(peer: &str, lines: &[(&'static str, &[u8])]) -> Origin {
        let trusted = ["10.0.0.0/8".parse().unwrap()];
        let fields =
            lines.iter().map(|&(name, value)| (HeaderName::from_static(name), HeaderValue::from_bytes(value).unwrap()));
        Origin::of(peer.parse().unwrap(), &fields.collect(), &trusted)
    }

    #[test]
    fn the_client_is_the_first_untrusted_address_from_the_right() {
        for (peer, forwarded, client) in [
            ("10.0.0.1", &[][..], "10.0.0.1"),
            ("10.0.0.1", &["203.0.113.9"], "203.0.113.9"),
            ("10.0.0.1", &["1.1.1.1, 203.0.113.9, 10.0.0.2"], "203.0.113.9"),
            ("10.0.0.1", &["1.1.1.1", "203.0.113.9"], "203.0.113.9"),
            ("10.0.0.1", &["203.0.113.9, nonsense"], "10.0.0.1"),
            ("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            ("10.0.0.1", &["[2001:db8::1]:4711"], "2001:db8::1"),
            ("::ffff:10.0.0.1", &["203.0.113.9:80"], "203.0.113.9"),
            ("10.0.0.1", &["\u{e4}, 203.0.113.9"], "203.0.113.9"),
            ("10.0.0.1", &["\u{e4}", "203.0.113.9"], "203.0.113.9"),
            ("10.0.0.1", &["203.0.113.9, \u{e4}"], "10.0.0.1"),
        ] {
            let lines: Vec<_> = forwarded.iter().map(|value| ("x-forwarded-for", value.as_bytes())).collect();
            let found = origin(peer, &lines);
            assert_eq!(found.address, client.parse::<IpAddr>().unwrap(), "{peer} {forwarded:?}");
            let chain =
                (!forwarded.is_empty()).then(|| HeaderValue::from_bytes(forwarded.join(", ").as_bytes()).unwrap());
            assert_eq!(found.chain, chain);
        }
    }

    #[test]
    fn the_first_scheme_is_the_clients() {
        for (said, is_secure) in [
            ("https", Some(true)),
            ("HTTPS", Some(true)),
            ("https, https", Some(true)),
            ("https,http", Some(true)),
            (" http , https", Some(false)),
            ("wss", Some(true)),
            ("ftp", None),
            ("", None),
        ] {
            assert_eq!(origin("10.0.0.1", &[("x-forwarded-proto", said.as_bytes())]).is_secure, is_secure, "{said}");
        }
    }

    #[test]
    fn forwarded_is_read_where_there_is_nothing_else() {
        for (said, address, is_secure, chain) in [
            ("for=203.0.113.9;proto=https", "203.0.113.9", Some(true), Some("203.0.113.9")),
            ("For=\"[2001:db8::1]:80\" ; Proto=HTTP", "2001:db8::1", Some(false), Some("2001:db8::1")),
            (
                "for=1.1.1.1;proto=https, for=203.0.113.9;proto=http, for=10.0.0.2;proto=https",
                "203.0.113.9",
                Some(false),
                Some("203.0.113.9, 10.0.0.2"),
            ),
            ("for=203.0.113.9;by=\"a,b;for=1.1.1.1\";proto=https", "203.0.113.9", Some(true), Some("203.0.113.9")),
            ("for=203.0.113.9;ext=\"a\\\",for=1.1.1.1\"", "203.0.113.9", None, Some("203.0.113.9")),
            ("for=unknown;proto=https", "10.0.0.1", None, None),
            ("for=_hidden, for=10.0.0.2", "10.0.0.2", None, Some("10.0.0.2")),
            ("proto=https", "10.0.0.1", None, None),
            ("", "10.0.0.1", None, None),
        ] {
            let found = origin("10.0.0.1", &[("forwarded", said.as_bytes())]);
            let expected =
                Origin { address: address.parse().unwrap(), is_secure, chain: chain.map(HeaderValue::from_static) };
            assert_eq!(found, expected, "{said}");
        }
        let both =
            origin("10.0.0.1", &[("forwarded", b"for=1.1.1.1;proto=https"), ("x-forwarded-for", b"203.0.113.9")]);
        assert_eq!((both.address, both.is_secure), ("203.0.113.9".parse().unwrap(), None));
    }
}
