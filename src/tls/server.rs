//! TLS to clients: the selection of the certificate, versions, and client certificates.

use super::Names;
use super::certificate::Certificate;
use super::tickets::{Tickets, process_secret};
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, ServerConfig, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{CipherSuite, RootCertStore};
use std::collections::HashMap;
use std::sync::Arc;

/// The lowest version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TlsVersion {
    Tls12,
    Tls13,
}

/// The contents of the files of one listener.
#[derive(Debug)]
pub(crate) struct ServerMaterial {
    /// The certificates; the first one is the default for clients without a server name, or with one that none covers.
    pub(crate) certificates: Vec<Arc<Certificate>>,
    /// The authorities of client certificates; without them none is requested.
    pub(crate) client_authorities: Option<Arc<RootCertStore>>,
    /// A client may send no certificate.
    pub(crate) is_client_optional: bool,
    /// A digest of the clients' authorities, which is a part of the tickets' domain.
    pub(crate) client_digest: Vec<u8>,
    /// The secrets that encrypt session tickets; the process's own without any.
    pub(crate) ticket_secrets: Vec<Vec<u8>>,
    /// Requests for hosts that the certificate does not cover are answered.
    pub(crate) allows_mismatch: bool,
}

/// The TLS settings of a listener.
#[derive(Debug)]
pub(crate) struct ServerTls {
    /// Prefers AES-128 where the client offers it.
    ours: Arc<ServerConfig>,
    /// Follows the client's order of preference.
    theirs: Arc<ServerConfig>,
    chooser: Arc<Chooser>,
    allows_mismatch: bool,
}

impl ServerTls {
    /// Returns the settings. `protocols` are offered by ALPN, in order of preference; `domain` identifies the listener.
    pub(crate) fn new(
        material: ServerMaterial,
        least: TlsVersion,
        protocols: &[&[u8]],
        domain: &str,
    ) -> Result<ServerTls, rustls::Error> {
        let mut provider = super::provider();
        provider.cipher_suites.sort_by_key(|suite| !is_aes_128(suite.suite()));
        let provider: Arc<CryptoProvider> = Arc::new(provider);
        let versions: &[_] = match least {
            TlsVersion::Tls12 => &[&rustls::version::TLS13, &rustls::version::TLS12],
            TlsVersion::Tls13 => &[&rustls::version::TLS13],
        };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(versions)?;
        let builder = match material.client_authorities {
            None => builder.with_no_client_auth(),
            Some(authorities) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(authorities, provider);
                let verifier = if material.is_client_optional { verifier.allow_unauthenticated() } else { verifier };
                let verifier = verifier.build().map_err(|error| rustls::Error::General(error.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let chooser = Arc::new(Chooser::new(material.certificates));
        let mut config = builder.with_cert_resolver(Arc::clone(&chooser) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        let secrets = match material.ticket_secrets.is_empty() {
            true => process_secret().into_iter().collect(),
            false => material.ticket_secrets,
        };
        let optional = [u8::from(material.is_client_optional)];
        let domain = [domain.as_bytes(), b"\0", &optional, &material.client_digest].concat();
        config.ticketer = Arc::new(Tickets::new(secrets, domain));
        let theirs = Arc::new(config.clone());
        config.ignore_client_order = true;
        let allows_mismatch = material.allows_mismatch;
        Ok(ServerTls { ours: Arc::new(config), theirs, chooser, allows_mismatch })
    }

    /// Returns the TLS configuration for the cipher suites that a client offers.
    ///
    /// Most clients prefer AES-256 without a need for it; AES-128 with SHA-256 takes less CPU, above all in the
    /// handshake. A client that prefers ChaCha20 has no AES instructions, and its order is followed.
    pub(crate) fn config(&self, offered: &[CipherSuite]) -> &Arc<ServerConfig> {
        let favourite = offered.iter().find(|&&suite| is_aes(suite) || is_chacha(suite));
        if favourite.is_some_and(|&suite| is_chacha(suite)) { &self.theirs } else { &self.ours }
    }

    /// Returns the names that requests may have on a connection whose client sent this server name: those of every
    /// certificate that it may have got. `None` allows any.
    pub(crate) fn wanted_names(&self, name: Option<&str>) -> Option<Arc<Names>> {
        let name = name.filter(|_| !self.allows_mismatch)?;
        let mut several = self.chooser.candidates(Some(name));
        let first = Arc::clone(&several.next()?.names);
        Some(several.fold(first, |names, other| match names == other.names {
            true => names,
            false => Arc::new(names.and(&other.names)),
        }))
    }

    /// Returns all certificates, in the order of the file.
    pub(crate) fn certificates(&self) -> &[Arc<Certificate>] {
        &self.chooser.all
    }
}

fn is_aes_128(suite: CipherSuite) -> bool {
    matches!(
        suite,
        CipherSuite::TLS13_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
    )
}

fn is_aes(suite: CipherSuite) -> bool {
    is_aes_128(suite)
        || matches!(
            suite,
            CipherSuite::TLS13_AES_256_GCM_SHA384
                | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
                | CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384
        )
}

fn is_chacha(suite: CipherSuite) -> bool {
    matches!(
        suite,
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
    )
}

/// Selects the certificate by the server name: an exact name, then a wildcard, then the first one. Among several with
/// the same name, or with the names of the first one, the key type that the client supports decides.
#[derive(Debug)]
struct Chooser {
    all: Vec<Arc<Certificate>>,
    exact: HashMap<String, Vec<usize>>,
    /// By the domain after `*.`.
    below: HashMap<String, Vec<usize>>,
    /// The first certificate, and those with the same names.
    default: Vec<usize>,
}

impl Chooser {
    fn new(all: Vec<Arc<Certificate>>) -> Chooser {
        let (mut exact, mut below): (HashMap<_, Vec<usize>>, HashMap<_, Vec<usize>>) = Default::default();
        for (index, certificate) in all.iter().enumerate() {
            for name in &certificate.names.dns {
                let (names, name) = match name.strip_prefix("*.") {
                    Some(parent) => (&mut below, parent),
                    None => (&mut exact, name.as_str()),
                };
                names.entry(name.to_owned()).or_default().push(index);
            }
        }
        let has_names_of_first = |index: &usize| all[*index].names == all[0].names;
        let default = (0..all.len()).filter(has_names_of_first).collect();
        Chooser { all, exact, below, default }
    }

    /// Returns the certificates that a client with this server name may get.
    fn candidates(&self, name: Option<&str>) -> impl Iterator<Item = &Arc<Certificate>> {
        let by_name = name.and_then(|name| {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            let below = || self.below.get(name.split_once('.')?.1);
            self.exact.get(&name).or_else(below)
        });
        by_name.unwrap_or(&self.default).iter().filter_map(|&index| self.all.get(index))
    }

    /// Returns the first certificate for a name that `is_taken` accepts, or else the first one for it.
    fn choose(&self, name: Option<&str>, is_taken: impl Fn(&Certificate) -> bool) -> Option<&Arc<Certificate>> {
        self.candidates(name).find(|certificate| is_taken(certificate)).or_else(|| self.candidates(name).next())
    }
}

impl ResolvesServerCert for Chooser {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let schemes = hello.signature_schemes();
        let is_taken = |certificate: &Certificate| certificate.key.key.choose_scheme(schemes).is_some();
        self.choose(hello.server_name(), is_taken).map(|certificate| Arc::clone(&certificate.key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issued(names: &[&str]) -> Arc<Certificate> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let (chain, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        Arc::new(Certificate::load("f", chain.as_bytes(), key.as_bytes()).unwrap())
    }

    #[test]
    fn the_suite_is_ours_unless_the_client_has_a_reason() {
        use CipherSuite as S;
        let material = ServerMaterial {
            certificates: vec![issued(&["a.example"])],
            client_authorities: None,
            is_client_optional: false,
            client_digest: Vec::new(),
            ticket_secrets: Vec::new(),
            allows_mismatch: false,
        };
        let tls = ServerTls::new(material, TlsVersion::Tls12, &[b"http/1.1"], "f").unwrap();
        let grease = S::Unknown(0x2a2a);
        let (aes_128, aes_256) = (S::TLS13_AES_128_GCM_SHA256, S::TLS13_AES_256_GCM_SHA384);
        let (chacha, chacha_12) = (S::TLS13_CHACHA20_POLY1305_SHA256, S::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256);
        for (offered, is_theirs) in [
            (vec![aes_256, chacha, aes_128], false),
            (vec![aes_128, chacha], false),
            (vec![grease, chacha, aes_128, aes_256], true),
            (vec![chacha_12, S::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384], true),
            (vec![S::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, chacha_12], false),
            (vec![chacha], true),
            (vec![], false),
        ] {
            let config = tls.config(&offered);
            assert_eq!(config.ignore_client_order, !is_theirs, "{offered:?}");
            let ours: Vec<CipherSuite> =
                config.crypto_provider().cipher_suites.iter().map(|suite| suite.suite()).collect();
            // The list is complete, and the cheapest suites come first.
            assert_eq!(ours.len(), crate::tls::provider().cipher_suites.len());
            assert!(ours[..3].iter().all(|&suite| is_aes_128(suite)), "{ours:?}");
            assert!(ours.iter().all(|&suite| is_aes(suite) != is_chacha(suite)), "{ours:?}");
        }
    }

    #[test]
    fn the_closest_name_wins() {
        let all =
            [issued(&["a.example"]), issued(&["*.b.example", "c.example"]), issued(&["x.b.example", "a.example"])];
        let chooser = Chooser::new(all.to_vec());
        for (name, expected) in [
            (None, 0),
            (Some("a.example"), 0),
            (Some("A.Example."), 0),
            (Some("c.example"), 1),
            (Some("y.b.example"), 1),
            (Some("x.b.example"), 2),
            (Some("z.y.b.example"), 0),
            (Some("unknown.example"), 0),
        ] {
            let chosen = chooser.choose(name, |_| true).unwrap();
            assert!(Arc::ptr_eq(chosen, &all[expected]), "{name:?}");
        }
        // Among several for one name, the first one that the client supports; else the first one.
        let second = |certificate: &Certificate| std::ptr::eq(certificate, &*all[2]);
        assert!(Arc::ptr_eq(chooser.choose(Some("a.example"), second).unwrap(), &all[2]));
        assert!(Arc::ptr_eq(chooser.choose(Some("a.example"), |_| false).unwrap(), &all[0]));
    }
}
