//! The hosts that a certificate covers (RFC 9525).

use std::net::IpAddr;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

/// The alternative names of a certificate's subject.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Names {
    /// In lower case; the `*` of `*.example.com` stands for one label.
    pub(crate) dns: Vec<String>,
    addresses: Vec<IpAddr>,
}

impl Names {
    /// Returns the names of both certificates together.
    pub(super) fn and(&self, other: &Names) -> Names {
        let mut names = self.clone();
        names.dns.extend(other.dns.iter().cloned());
        names.addresses.extend(other.addresses.iter().copied());
        names
    }

    pub(super) fn of(certificate: &X509Certificate<'_>) -> Names {
        let mut names = Names::default();
        let Ok(Some(found)) = certificate.subject_alternative_name() else { return names };
        for name in &found.value.general_names {
            match name {
                GeneralName::DNSName(name) => names.dns.push(name.trim_end_matches('.').to_ascii_lowercase()),
                GeneralName::IPAddress(bytes) => names.addresses.extend(address(bytes)),
                _ => {}
            }
        }
        names
    }

    /// Returns whether a request for a host is allowed on a connection with this certificate. The host is normalised:
    /// lower case, no port, no trailing dot; an IPv6 address may be in brackets.
    pub(crate) fn cover(&self, host: &str) -> bool {
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        match bare.parse::<IpAddr>() {
            Ok(address) => self.addresses.contains(&address),
            Err(_) => self.dns.iter().any(|name| is_match(name, host)),
        }
    }
}

/// Returns whether a name of a certificate covers a host.
fn is_match(name: &str, host: &str) -> bool {
    match name.strip_prefix("*.") {
        Some(parent) => host.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest == parent),
        None => name == host,
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_one_label() {
        let names = Names {
            dns: vec!["example.com".into(), "*.example.com".into()],
            addresses: vec![[10, 0, 0, 1].into(), [0, 0, 0, 0, 0, 0, 0, 1].into()],
        };
        for (host, covered) in [
            ("example.com", true),
            ("api.example.com", true),
            ("a.b.example.com", false),
            (".example.com", false),
            ("notexample.com", false),
            ("com", false),
            ("10.0.0.1", true),
            ("10.0.0.2", false),
            ("[::1]", true),
            ("", false),
        ] {
            assert_eq!(names.cover(host), covered, "{host}");
        }
    }
}
