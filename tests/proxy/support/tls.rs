use super::PATIENCE;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, NamedGroup, ProtocolVersion, RootCertStore, StreamOwned};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An authority that issues certificates into a folder.
pub struct Authority {
    folder: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate and its key, as files.
pub struct Pair {
    pub chain: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new() -> Authority {
        let folder = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test authority");
        let pem = params.self_signed(&key).unwrap().pem();
        std::fs::write(folder.path().join("ca.pem"), &pem).unwrap();
        Authority { folder, issuer: Issuer::new(params, key), pem }
    }

    pub fn file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Issues a certificate for these names into files that are called so.
    pub fn issue(&self, file: &str, names: &[&str]) -> Pair {
        self.issue_with(file, names, |_| ())
    }

    /// The same for a time that is over.
    pub fn issue_expired(&self, file: &str, names: &[&str]) -> Pair {
        self.issue_with(file, names, |params| {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        })
    }

    /// The same for a time that is to come.
    pub fn issue_later(&self, file: &str, names: &[&str]) -> Pair {
        self.issue_with(file, names, |params| {
            params.not_before = rcgen::date_time_ymd(2090, 1, 1);
            params.not_after = rcgen::date_time_ymd(2091, 1, 1);
        })
    }

    fn issue_with(&self, file: &str, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, file);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let pair = Pair {
            chain: self.folder.path().join(format!("{file}.pem")),
            key: self.folder.path().join(format!("{file}.key")),
        };
        write_private(&pair.key, &key.serialize_pem());
        std::fs::write(&pair.chain, certificate.pem()).unwrap();
        pair
    }

    /// Makes the files that a configuration names, in its folder: certificates of this authority, and secrets.
    pub fn provide(&self, folder: &Path, yaml: &str) {
        let values = |key: &str| {
            let key = format!("{key}: ");
            let found = yaml.match_indices(&key).map(|(at, _)| at + key.len());
            let end = |c: char| c.is_whitespace() || matches!(c, ',' | '}');
            found.map(|at| folder.join(yaml[at..].split(end).next().unwrap())).collect::<Vec<PathBuf>>()
        };
        let write = |path: &Path, text: &str| {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            write_private(path, text);
        };
        for (chain, key) in values("chain_file").iter().zip(values("key_file")) {
            let pair = self.issue("provided", &["localhost"]);
            write(chain, &std::fs::read_to_string(pair.chain).unwrap());
            write(&key, &std::fs::read_to_string(pair.key).unwrap());
        }
        values("ca_file").iter().for_each(|path| write(path, &self.pem));
        values("url_file").iter().for_each(|path| write(path, "postgres://ringway:word@db1:5432,db2:5432/ringway"));
        for key in ["secret_file", "seed_file", "token_file", "password_file"] {
            values(key).iter().for_each(|path| write(path, &"5e".repeat(32)));
        }
    }

    /// A client that trusts this authority, and shows a certificate if it has one.
    pub fn client(&self, own: Option<&Pair>) -> TlsClient {
        self.client_with(own, &[&rustls::version::TLS13, &rustls::version::TLS12])
    }

    pub fn client_with(&self, own: Option<&Pair>, versions: &[&'static rustls::SupportedProtocolVersion]) -> TlsClient {
        self.client_of(rustls::crypto::aws_lc_rs::default_provider(), own, versions)
    }

    /// A client whose first choice is this key exchange.
    pub fn client_preferring(&self, group: NamedGroup) -> TlsClient {
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        provider.kx_groups.sort_by_key(|other| other.name() != group);
        self.client_of(provider, None, &[&rustls::version::TLS13])
    }

    fn client_of(
        &self,
        provider: CryptoProvider,
        own: Option<&Pair>,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> TlsClient {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        let config = match own {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                let chain = CertificateDer::pem_file_iter(&pair.chain).unwrap().map(Result::unwrap).collect();
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(&pair.key).unwrap()).unwrap()
            }
        };
        TlsClient { config: Arc::new(config) }
    }
}

pub fn write_private(file: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(file, text).unwrap();
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).unwrap();
}

impl Pair {
    /// As the configuration has it.
    pub fn setting(&self) -> String {
        format!("{{ chain_file: \"{}\", key_file: \"{}\" }}", self.chain.display(), self.key.display())
    }
}

/// A client that keeps its sessions.
pub struct TlsClient {
    config: Arc<ClientConfig>,
}

/// What became of a connection with one request on it.
#[derive(Debug)]
pub struct Told {
    pub text: String,
    pub version: ProtocolVersion,
    pub resumed: bool,
    /// The certificate that was served.
    pub certificate: Vec<u8>,
}

impl Told {
    pub fn status(&self) -> u16 {
        self.text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("{}", self.text))
    }
}

impl TlsClient {
    /// A connection after its handshake.
    pub fn connect(
        &self,
        address: SocketAddr,
        name: &str,
    ) -> std::io::Result<StreamOwned<ClientConnection, TcpStream>> {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let session = ClientConnection::new(Arc::clone(&self.config), name).unwrap();
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let mut stream = StreamOwned::new(session, stream);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(stream)
    }

    /// One GET, and all that comes until the connection ends.
    pub fn get(&self, address: SocketAddr, name: &str, host: &str) -> std::io::Result<Told> {
        self.get_with(address, name, &format!("host: {host}\r\n"))
    }

    pub fn get_with(&self, address: SocketAddr, name: &str, fields: &str) -> std::io::Result<Told> {
        self.send(address, name, "GET", fields)
    }

    /// One request without a body.
    pub fn send(&self, address: SocketAddr, name: &str, method: &str, fields: &str) -> std::io::Result<Told> {
        let mut stream = self.connect(address, name)?;
        stream.write_all(format!("{method} / HTTP/1.1\r\n{fields}connection: close\r\n\r\n").as_bytes())?;
        let mut text = Vec::new();
        stream.read_to_end(&mut text)?;
        Ok(Told {
            text: String::from_utf8_lossy(&text).into_owned(),
            version: stream.conn.protocol_version().unwrap(),
            resumed: stream.conn.handshake_kind() == Some(HandshakeKind::Resumed),
            certificate: stream.conn.peer_certificates().map(|chain| chain[0].to_vec()).unwrap_or_default(),
        })
    }
}

/// What speaks TLS before a node that does not.
pub struct Front {
    pub address: SocketAddr,
    connections: Arc<std::sync::atomic::AtomicUsize>,
}

impl Front {
    /// `asks` is the authority of the client certificates that it demands.
    pub fn before(node: SocketAddr, pair: &Pair, asks: Option<&Authority>) -> Front {
        Front::speaking(b"", node, pair, asks)
    }

    /// One that settles on this protocol by ALPN.
    pub fn speaking(protocol: &[u8], node: SocketAddr, pair: &Pair, asks: Option<&Authority>) -> Front {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match asks {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap()).unwrap();
                let verifier =
                    rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(verifier.unwrap())
            }
        };
        let chain = CertificateDer::pem_file_iter(&pair.chain).unwrap().map(Result::unwrap).collect();
        let mut config = builder.with_single_cert(chain, PrivateKeyDer::from_pem_file(&pair.key).unwrap()).unwrap();
        if !protocol.is_empty() {
            config.alpn_protocols = vec![protocol.to_vec()];
        }
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let front = Front { address: listener.local_addr().unwrap(), connections: Arc::default() };
        let connections = Arc::clone(&front.connections);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                while let Ok((socket, _)) = listener.accept().await {
                    let (acceptor, connections) = (acceptor.clone(), Arc::clone(&connections));
                    tokio::spawn(async move {
                        let Ok(mut here) = acceptor.accept(socket).await else { return };
                        connections.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        let Ok(mut there) = tokio::net::TcpStream::connect(node).await else { return };
                        let _ = tokio::io::copy_bidirectional(&mut here, &mut there).await;
                    });
                }
            });
        });
        front
    }

    /// How many handshakes went well.
    pub fn connections(&self) -> usize {
        self.connections.load(std::sync::atomic::Ordering::SeqCst)
    }
}
