//! The files that the configuration names: tokens, secrets, certificates and keys. They are read with it, so that their
//! errors are reported at the position that names them.

use super::diagnostics::{Diagnostics, Span};
use super::model::{CertificateFiles, ClientAuth, ListenerTls, MinVersion, PoolTls, Protocol, Settings, SniMismatch};
use super::read::Spanned;
use super::{FileStamp, Secrets};
use crate::clock;
use crate::tls::{Certificate, ClientTls, ServerMaterial, ServerTls, TlsVersion, Trust, authorities};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The shortest secret: 128 bits in hexadecimal digits.
const MIN_SECRET: usize = 32;
const MIN_TOKEN: usize = 16;
/// The largest file, in bytes.
const MAX_BYTES: u64 = 16 << 20;
/// Certificates that end within this time cause a warning, in seconds.
const SOON: i64 = 14 * 86_400;

/// The protocols that listeners with TLS offer, in order of preference.
const PROTOCOLS: &[&[u8]] = &[b"h2", b"http/1.1", b"http/1.0"];

/// Reads all files that the settings name; relative paths start at `folder`.
pub(super) fn read(settings: &Settings, folder: &Path, diagnostics: &mut Diagnostics) -> Secrets {
    let mut files = Files { folder, diagnostics, read: Vec::new() };
    let mut secrets = Secrets::default();
    if let Some(file) = &settings.admin.token_file {
        secrets.admin_token = files.token(file);
    }
    if let Some(file) = &settings.idempotency_store.url_file {
        secrets.store_url = files.store_url(file);
    }
    if let Some(file) = &settings.idempotency_store.ca_file {
        secrets.store_authorities = files.authorities(file);
    }
    if let Some(file) = &settings.idempotency_store.password_file {
        secrets.store_password = files.password(file);
    }
    if let Some(tls) = &settings.idempotency_store.tls {
        let subject = Subject { name: "the idempotency store".to_owned(), span: settings.idempotency_store.kind.span };
        secrets.store_tls = files.client(&subject, tls, &[]).map(Arc::new);
    }
    files.fleet(settings, &mut secrets);
    for cookie in settings.routes.iter().filter_map(|route| route.affinity_cookie.as_ref()) {
        if let Some(file) = &cookie.secret_file
            && let Some(lines) = files.secrets(file)
        {
            secrets.affinity.insert(file.value.clone(), lines);
        }
    }
    for listener in &settings.listeners {
        if let Some(tls) = &listener.tls
            && let Some(tls) = files.server(&listener.name, tls)
        {
            secrets.tls.insert(listener.name.value.clone(), Arc::new(tls));
        }
    }
    for (name, pool) in settings.pools.iter() {
        if let Some(file) = &pool.ring.seed_file
            && let Some(seed) = files.secrets(file).and_then(|lines| lines.into_iter().next())
        {
            secrets.ring_seeds.insert(name.value.clone(), seed);
        }
        if let Some(tls) = &pool.tls
            && let Some(tls) = files.client(&Subject::pool(name), tls, &[offered(pool.protocol)])
        {
            secrets.pool_tls.insert(name.value.clone(), Arc::new(tls));
        }
    }
    secrets.files = files.read;
    secrets
}

/// The owner of a `tls` block, for messages.
struct Subject {
    name: String,
    span: Span,
}

impl Subject {
    fn pool(name: &Spanned<String>) -> Subject {
        Subject { name: format!("the pool `{}`", name.value), span: name.span }
    }
}

/// Returns the ALPN protocols that are offered to nodes.
fn offered(protocol: Protocol) -> &'static [u8] {
    match protocol {
        Protocol::Http1 => b"http/1.1",
        Protocol::Http2 => b"h2",
    }
}

struct Files<'a> {
    folder: &'a Path,
    diagnostics: &'a mut Diagnostics,
    read: Vec<(PathBuf, FileStamp)>,
}

impl Files<'_> {
    fn bytes(&mut self, file: &Spanned<String>) -> Option<Vec<u8>> {
        let path = self.folder.join(&file.value);
        // Taken before the file is read, so that a change meanwhile is detected later.
        let stamp = FileStamp::of(&path);
        let bytes = super::file::read(&path, MAX_BYTES);
        if let Err(error) = &bytes {
            self.diagnostics.error(file.span, format!("cannot read `{}`: {error}", path.display()));
        }
        self.read.push((path, stamp));
        // Some editors begin a file with a byte order mark.
        let mut bytes = bytes.ok()?;
        if bytes.starts_with(b"\xef\xbb\xbf") {
            bytes.drain(..3);
        }
        Some(bytes)
    }

    /// Reads the files of the block `fleet`.
    fn fleet(&mut self, settings: &Settings, secrets: &mut Secrets) {
        let Some(fleet) = &settings.fleet else { return };
        if let Some(file) = &fleet.secret_file {
            secrets.fleet_secrets = self.secrets(file).unwrap_or_default();
        }
        if let Some(etcd) = &fleet.etcd {
            secrets.etcd_password = etcd.password_file.as_ref().and_then(|file| self.password(file));
            let subject = Subject { name: "the endpoints of `fleet.etcd`".to_owned(), span: fleet.id.span };
            let tls = etcd.tls.as_ref().and_then(|tls| self.client(&subject, tls, &[b"http/1.1"]));
            secrets.etcd_tls = tls.map(Arc::new);
        }
        let Some(redis) = &fleet.redis else { return };
        if let Some(file) = &redis.password_file {
            secrets.fleet_password = self.password(file);
        }
        if let Some(tls) = &redis.tls {
            let subject = Subject { name: "the nodes of `fleet.redis`".to_owned(), span: fleet.id.span };
            secrets.fleet_tls = self.client(&subject, tls, &[]).map(Arc::new);
        }
    }

    fn text(&mut self, file: &Spanned<String>) -> Option<String> {
        let text = String::from_utf8(self.bytes(file)?);
        if text.is_err() {
            self.diagnostics.error(file.span, format!("expected a text in `{}`", file.value));
        }
        text.ok()
    }

    fn token(&mut self, file: &Spanned<String>) -> Option<String> {
        let text = self.text(file)?;
        self.warn_of_readers(file, "the token");
        let token = text.trim();
        if token.len() < MIN_TOKEN {
            let message = format!("expected a token of at least {MIN_TOKEN} characters in `{}`", file.value);
            self.diagnostics.error(file.span, message);
            return None;
        }
        Some(token.to_owned())
    }

    /// Returns the URL of a database: the first line of its file.
    fn store_url(&mut self, file: &Spanned<String>) -> Option<String> {
        let text = self.text(file)?;
        self.warn_of_readers(file, "the URL with its password");
        let Some(url) = text.lines().map(str::trim).find(|line| !line.is_empty()) else {
            let message =
                format!("expected a URL like `postgres://user:password@host:5432/database` in `{}`", file.value);
            self.diagnostics.error(file.span, message);
            return None;
        };
        // The text is not shown, as it may contain a password.
        #[cfg(feature = "postgres")]
        if !(url.starts_with("postgres://") || url.starts_with("postgresql://"))
            || url.parse::<tokio_postgres::Config>().is_err()
        {
            let message = format!(
                "expected a URL like `postgres://user:password@host:5432/database` in `{}`, with special characters of \
                 the password percent-encoded",
                file.value
            );
            self.diagnostics.error(file.span, message);
        }
        Some(url.to_owned())
    }

    /// Returns a password: the first line of its file.
    fn password(&mut self, file: &Spanned<String>) -> Option<String> {
        let text = self.text(file)?;
        self.warn_of_readers(file, "the password");
        let password = text.lines().next().map(str::trim).filter(|line| !line.is_empty());
        if password.is_none() {
            self.diagnostics.error(file.span, format!("expected a password in the first line of `{}`", file.value));
        }
        password.map(str::to_owned)
    }

    fn authorities(&mut self, file: &Spanned<String>) -> Option<rustls::RootCertStore> {
        let found = authorities(&self.bytes(file)?);
        found.map_err(|error| self.diagnostics.error(file.span, format!("`{}`: {error}", file.value))).ok()
    }

    /// Returns secrets, one per line, the newest first.
    fn secrets(&mut self, file: &Spanned<String>) -> Option<Vec<String>> {
        let text = self.text(file)?;
        self.warn_of_readers(file, "what is secret");
        let lines: Vec<String> =
            text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
        if lines.is_empty() || lines.iter().any(|line| line.len() < MIN_SECRET) {
            let message =
                format!("expected secrets of at least {MIN_SECRET} characters, one a line, in `{}`", file.value);
            self.diagnostics.error(file.span, message);
        }
        Some(lines)
    }

    /// Returns the TLS settings of a listener.
    fn server(&mut self, listener: &Spanned<String>, tls: &ListenerTls) -> Option<ServerTls> {
        if tls.certificates.is_empty() {
            self.diagnostics.error(listener.span, "`tls` needs at least one of `certificates`");
            return None;
        }
        let found: Vec<Option<Certificate>> = tls.certificates.iter().map(|files| self.certificate(files)).collect();
        let (mut client_authorities, mut client_digest) = (None, Vec::new());
        if let Some(file) = &tls.client_ca_file {
            let pem = self.bytes(file)?;
            match authorities(&pem) {
                Ok(store) => client_authorities = Some(Arc::new(store)),
                Err(error) => self.diagnostics.error(file.span, format!("`{}`: {error}", file.value)),
            }
            client_digest = Sha256::digest(&pem).to_vec();
        }
        let ticket_secrets = match &tls.ticket_secret_file {
            Some(file) => self.secrets(file)?.into_iter().map(String::into_bytes).collect(),
            None => Vec::new(),
        };
        let certificates: Option<Vec<Certificate>> = found.into_iter().collect();
        let material = ServerMaterial {
            certificates: certificates?.into_iter().map(Arc::new).collect(),
            client_authorities,
            is_client_optional: tls.client_auth == ClientAuth::Optional,
            client_digest,
            ticket_secrets,
            allows_mismatch: tls.sni_mismatch == SniMismatch::Allow,
        };
        let least = match tls.min_version {
            MinVersion::Tls12 => TlsVersion::Tls12,
            MinVersion::Tls13 => TlsVersion::Tls13,
        };
        let made = ServerTls::new(material, least, PROTOCOLS, listener);
        made.map_err(|error| self.diagnostics.error(listener.span, format!("`tls` does not work: {error}"))).ok()
    }

    /// Returns the TLS settings towards the nodes of a pool or the servers of a store.
    fn client(&mut self, of: &Subject, tls: &PoolTls, protocols: &[&[u8]]) -> Option<ClientTls> {
        let mut digest = Sha256::new();
        digest.update([u8::from(tls.verify)]);
        let trust = match &tls.ca_file {
            _ if !tls.verify => {
                let message = format!(
                    "`tls.verify` of {} is false: whoever answers at a node's address is taken for it",
                    of.name
                );
                self.diagnostics.warning(of.span, message);
                Trust::Anybody
            }
            Some(file) => {
                let pem = self.bytes(file)?;
                digest.update(&pem);
                match authorities(&pem) {
                    Ok(store) => Trust::These(store),
                    Err(error) => {
                        self.diagnostics.error(file.span, format!("`{}`: {error}", file.value));
                        return None;
                    }
                }
            }
            None => Trust::System,
        };
        let own = match &tls.certificate {
            Some(files) => Some(self.certificate(files)?),
            None => None,
        };
        for certificate in own.iter().flat_map(|own| &own.key.cert) {
            digest.update(certificate);
        }
        protocols.iter().for_each(|protocol| digest.update(protocol));
        let made = ClientTls::new(trust, own.as_ref(), protocols, digest.finalize().to_vec());
        let told = |error| self.diagnostics.error(of.span, format!("`tls` of {} does not work: {error}", of.name));
        made.map_err(told).ok()
    }

    fn certificate(&mut self, files: &CertificateFiles) -> Option<Certificate> {
        let (chain, key) = (self.bytes(&files.chain_file), self.bytes(&files.key_file));
        self.warn_of_readers(&files.key_file, "the private key");
        match Certificate::load(&files.chain_file.value, &chain?, &key?) {
            Ok(certificate) => {
                self.warn_of_the_end(files, &certificate);
                Some(certificate)
            }
            Err(error) => {
                let message = format!("`{}` and `{}`: {error}", files.chain_file.value, files.key_file.value);
                self.diagnostics.error(files.chain_file.span, message);
                None
            }
        }
    }

    fn warn_of_the_end(&mut self, files: &CertificateFiles, certificate: &Certificate) {
        let now = clock::unix_seconds().cast_signed();
        if certificate.begins > now {
            let days = (certificate.begins - now) / 86_400 + 1;
            let message = format!("the certificate in `{}` is valid only in {days} days", files.chain_file.value);
            self.diagnostics.warning(files.chain_file.span, message);
        }
        let left = certificate.expiry - now;
        if left < SOON {
            let message = match left < 0 {
                true => format!("the certificate in `{}` has expired", files.chain_file.value),
                false => format!("the certificate in `{}` ends in {} days", files.chain_file.value, left / 86_400),
            };
            self.diagnostics.warning(files.chain_file.span, message);
        }
    }

    fn warn_of_readers(&mut self, file: &Spanned<String>, what: &str) {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(self.folder.join(&file.value)).map_or(0, |metadata| metadata.permissions().mode());
        // The group of the file may read it: for a key of root, the group of the user that runs the proxy.
        if mode & 0o027 != 0 {
            let message = format!(
                "{what} in `{}` can be read by anybody, or changed by its group (mode {:03o}); chmod 600 or 640 it",
                file.value,
                mode & 0o777
            );
            self.diagnostics.warning(file.span, message);
        }
    }
}
