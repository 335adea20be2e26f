//! TLS to nodes and stores: trust, and the client's own certificate.

use super::certificate::Certificate;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use std::sync::Arc;

/// The certificates that nodes may present.
pub(crate) enum Trust {
    /// Those of the system's authorities.
    System,
    These(RootCertStore),
    /// Any certificate.
    Anybody,
}

/// The TLS settings towards the nodes of a pool.
#[derive(Debug)]
pub(crate) struct ClientTls {
    pub(crate) config: Arc<ClientConfig>,
    /// A digest of all inputs: settings with equal digests behave alike.
    pub(crate) digest: Vec<u8>,
}

impl PartialEq for ClientTls {
    fn eq(&self, other: &ClientTls) -> bool {
        self.digest == other.digest
    }
}

impl ClientTls {
    /// Returns the settings. `own` is presented to nodes that request a certificate; `protocols` are offered by ALPN;
    /// `digest` identifies the files that all of it is made of.
    pub(crate) fn new(
        trust: Trust,
        own: Option<&Certificate>,
        protocols: &[&[u8]],
        digest: Vec<u8>,
    ) -> Result<ClientTls, Error> {
        let provider: Arc<CryptoProvider> = Arc::new(super::provider());
        let builder =
            ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
        let verifier: Arc<dyn ServerCertVerifier> = match trust {
            Trust::Anybody => Arc::new(Anybody(provider)),
            Trust::These(store) => verifier(store, provider)?,
            Trust::System => verifier(system()?, provider)?,
        };
        let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
        let mut config = match own {
            None => builder.with_no_client_auth(),
            Some(own) => {
                builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(Arc::clone(&own.key))))
            }
        };
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(ClientTls { config: Arc::new(config), digest })
    }
}

fn verifier(store: RootCertStore, provider: Arc<CryptoProvider>) -> Result<Arc<dyn ServerCertVerifier>, Error> {
    let built = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider).build();
    built.map(|verifier| verifier as Arc<dyn ServerCertVerifier>).map_err(|error| Error::General(error.to_string()))
}

fn system() -> Result<RootCertStore, Error> {
    let mut store = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    store.add_parsable_certificates(found.certs);
    match store.is_empty() {
        true => Err(Error::General("the system trusts no authority; give a `ca_file`".to_owned())),
        false => Ok(store),
    }
}

/// A verifier that accepts any certificate, and checks only that the node has its key.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
