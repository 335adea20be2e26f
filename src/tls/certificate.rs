//! Certificates from PEM files, and their properties.

use super::Names;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use std::sync::Arc;
use x509_parser::asn1_rs::{Any, Tag};
use x509_parser::objects::{oid_registry, oid2abbrev};

/// A certificate with its chain and key.
#[derive(Debug)]
pub(crate) struct Certificate {
    /// The file that it comes from, as the configuration names it.
    pub(crate) file: String,
    pub(crate) key: Arc<CertifiedKey>,
    pub(crate) names: Arc<Names>,
    /// The begin of its validity, in seconds since 1970.
    pub(crate) begins: i64,
    /// The end of its validity, in seconds since 1970.
    pub(crate) expiry: i64,
}

/// An error in a file of certificates or keys.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MaterialError {
    #[error("no certificate in PEM form is there")]
    NoCertificate,
    #[error("no private key in PEM form is there")]
    NoKey,
    #[error("the PEM is damaged: {0}")]
    Pem(String),
    #[error("the certificate cannot be read: {0}")]
    Certificate(String),
    #[error("the key does not fit the certificate, or is of a kind that is not supported: {0}")]
    Key(rustls::Error),
    #[error("it is no certificate authority that can be trusted: {0}")]
    Authority(rustls::Error),
}

impl Certificate {
    /// Returns the certificate of a chain, the host's own first, and its key.
    pub(crate) fn load(file: &str, chain: &[u8], key: &[u8]) -> Result<Certificate, MaterialError> {
        let chain = certificates(chain)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| match error {
            rustls::pki_types::pem::Error::NoItemsFound => MaterialError::NoKey,
            error => MaterialError::Pem(error.to_string()),
        })?;
        let (names, begins, expiry) = read(&chain[0])?;
        let key = CertifiedKey::from_der(chain, key, &super::provider()).map_err(MaterialError::Key)?;
        Ok(Certificate { file: file.to_owned(), key: Arc::new(key), names: Arc::new(names), begins, expiry })
    }
}

/// Returns the certificate authorities of a file.
pub(crate) fn authorities(pem: &[u8]) -> Result<RootCertStore, MaterialError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(pem)? {
        store.add(certificate).map_err(MaterialError::Authority)?;
    }
    Ok(store)
}

/// The subject of a certificate and the end of its validity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The distinguished name of the subject (RFC 4514), in ASCII and escaped, so that no value can be taken for
    /// another attribute.
    pub(crate) subject: String,
    /// The end of its validity, in seconds since 1970.
    pub(crate) expiry: i64,
}

/// Returns the identity of a certificate; `None` where it cannot be parsed.
pub(crate) fn identity(certificate: &CertificateDer<'_>) -> Option<Identity> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    // The most specific part comes first (RFC 4514 2.1).
    let parts: Vec<_> = parsed.subject().iter_rdn().collect();
    let parts: Option<Vec<String>> = parts
        .into_iter()
        .rev()
        .map(|part| {
            let values: Option<Vec<String>> = part
                .iter()
                .map(|attribute| {
                    let kind = attribute.attr_type();
                    let name = oid2abbrev(kind, oid_registry()).map_or_else(|_| kind.to_id_string(), str::to_owned);
                    Some(format!("{name}={}", escaped(&text_of(attribute.attr_value())?)))
                })
                .collect();
            values.map(|values| values.join("+"))
        })
        .collect();
    Some(Identity { subject: parts?.join(","), expiry: parsed.validity().not_after.timestamp() })
}

/// Returns the text of a value in any of the string types of X.509; `None` for other types.
fn text_of(value: &Any<'_>) -> Option<String> {
    match value.tag() {
        Tag::BmpString => {
            let units = value.data.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
            if value.data.len().is_multiple_of(2) {
                char::decode_utf16(units).collect::<Result<_, _>>().ok()
            } else {
                None
            }
        }
        // In practice it contains Latin-1.
        Tag::T61String => Some(value.data.iter().copied().map(char::from).collect()),
        _ => value.as_str().ok().map(str::to_owned),
    }
}

/// Returns a value of a distinguished name (RFC 4514 2.4).
fn escaped(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let last = value.len().saturating_sub(1);
    for (at, byte) in value.bytes().enumerate() {
        match byte {
            b'"' | b'+' | b',' | b';' | b'<' | b'>' | b'\\' => out.extend(['\\', char::from(byte)]),
            b' ' if at == 0 || at == last => out.push_str("\\ "),
            b'#' if at == 0 => out.push_str("\\#"),
            b' '..=b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("\\{byte:02X}")),
        }
    }
    out
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, MaterialError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| MaterialError::Pem(error.to_string()))?;
    if found.is_empty() { Err(MaterialError::NoCertificate) } else { Ok(found) }
}

fn read(certificate: &CertificateDer<'_>) -> Result<(Names, i64, i64), MaterialError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|error| MaterialError::Certificate(error.to_string()))?;
    let validity = parsed.validity();
    Ok((Names::of(&parsed), validity.not_before.timestamp(), validity.not_after.timestamp()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issued(names: &[&str]) -> (String, String) {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn a_pair_of_files_tells_its_names_and_its_end() {
        let (chain, key) = issued(&["Example.com", "*.example.com", "127.0.0.1"]);
        let found = Certificate::load("edge.pem", chain.as_bytes(), key.as_bytes()).unwrap();
        assert!(found.names.cover("example.com") && found.names.cover("a.example.com"));
        assert!(found.names.cover("127.0.0.1") && !found.names.cover("example.org"));
        assert!(found.expiry > 1_800_000_000);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_reason() {
        let ((chain, key), (_, other)) = (issued(&["a.example"]), issued(&["b.example"]));
        let error = |chain: &str, key: &str| Certificate::load("f", chain.as_bytes(), key.as_bytes()).unwrap_err();
        assert!(matches!(error(&chain, &other), MaterialError::Key(_)));
        assert!(matches!(error(&key, &key), MaterialError::NoCertificate));
        assert!(matches!(error(&chain, &chain), MaterialError::NoKey));
        assert!(matches!(error("", ""), MaterialError::NoCertificate));
        let damaged = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(matches!(error(damaged, &key), MaterialError::Certificate(_)));
    }

    #[test]
    fn a_subject_is_told_so_that_nobody_can_misread_it() {
        let mut params = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "Ex + Co");
        params.distinguished_name.push(rcgen::DnType::CommonName, "joe, OU=admins\r\nx: \u{e9} ");
        let key = rcgen::KeyPair::generate().unwrap();
        let found = identity(params.self_signed(&key).unwrap().der()).unwrap();
        assert_eq!(found.subject, r"CN=joe\, OU=admins\0D\0Ax: \C3\A9\ ,O=Ex \+ Co");
        assert!(found.expiry > 1_800_000_000);
        // Legacy string types are supported.
        let mut params = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let wide = rcgen::string::BmpString::try_from("J\u{f6}\u{160}").unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, rcgen::DnValue::BmpString(wide));
        let old = rcgen::string::TeletexString::try_from("Ex").unwrap();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, rcgen::DnValue::TeletexString(old));
        let found = identity(params.self_signed(&key).unwrap().der()).unwrap();
        assert_eq!(found.subject, r"O=Ex,CN=J\C3\B6\C5\A0");
    }
}
