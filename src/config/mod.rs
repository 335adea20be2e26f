//! The configuration: from one YAML file to validated, typed settings, with the position of every error.
//!
//! `tree` keeps the positions, `read` makes typed settings of the tree, `model` is the table of all keys, `validate`
//! has the rules that concern several settings, `secrets` reads the files that they name.

mod changes;
mod diagnostics;
pub(crate) mod file;
mod hash_source;
mod model;
pub(crate) mod read;
mod secrets;
mod syntax;
mod template_fields;
mod tree;
mod units;
mod validate;
mod validate_consistency;
mod validate_etcd;
mod validate_fleet;
mod validate_saga;
pub(crate) mod values;

pub(crate) use changes::changes;
pub(crate) use diagnostics::Finding;
pub use diagnostics::Report;
#[cfg(feature = "redis")]
pub(crate) use model::FleetNode;
#[cfg(feature = "redis")]
pub(crate) use model::PoolTls;
pub(crate) use model::{
    AddressFamily, AffinityCookie, AffinityMode, CacheKey, CheckKind, ClientDirectives, Discovery, FieldRules,
    FingerprintKind, GrpcCheck, HealthCheck, HealthScope, IgnoredDirective, Initially, Limits, Listener, LogFormat,
    NodeState, OnConcurrent, OnGone, OnStoreFailure, OnUnknown, OutlierEjection, Pool, PoolConnections,
    ProcessLogFormat, Protocol, ProxyProtocol, RateLimit, Retries, Route, RouteCache, RouteIdempotency, Saga,
    SagaRequest, SagaStep, Scheme, Settings, StoreKind, Timeouts, UnderscoresInHeaders,
};
pub(crate) use model::{Consistency, Level, OnConcurrentWrite, OnQuorumLoss, OnWriteQuorumLoss, Reads};
pub(crate) use model::{FormerRedis, Quorum};

pub(crate) use units::duration;
pub(crate) use validate::{MAX_POINTS, is_node_id};

use crate::tls::{ClientTls, ServerTls};
use diagnostics::Diagnostics;
use http::HeaderName;
use read::{Field, Reader};
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// The largest configuration file, in bytes.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// The files that are tried, in this order, without `--config`.
const DEFAULT_FILES: [&str; 3] = ["ringway.yaml", "config/ringway.yaml", "/etc/ringway/ringway.yaml"];

/// A valid configuration.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// The file that it was read from.
    pub(crate) file: PathBuf,
    /// The text of the file.
    pub(crate) source: Arc<str>,
    pub(crate) settings: Settings,
    pub(crate) secrets: Secrets,
}

/// The contents of the files that the configuration names.
#[derive(Clone, Default)]
pub(crate) struct Secrets {
    /// `admin.token_file`.
    pub(crate) admin_token: Option<String>,
    /// The lines of each `affinity_cookie.secret_file`, the newest first.
    pub(crate) affinity: HashMap<String, Vec<String>>,
    /// The TLS settings of each listener, by its name.
    pub(crate) tls: HashMap<String, Arc<ServerTls>>,
    /// The TLS settings to the nodes of each pool, by its name.
    pub(crate) pool_tls: HashMap<String, Arc<ClientTls>>,
    /// The seeds of rings from `ring.seed_file`, by the pool's name.
    pub(crate) ring_seeds: HashMap<String, String>,
    /// The URL of the idempotency store, from `idempotency_store.url_file`.
    pub(crate) store_url: Option<String>,
    /// The authorities of `idempotency_store.ca_file`.
    pub(crate) store_authorities: Option<rustls::RootCertStore>,
    /// The password of `idempotency_store.password_file`.
    pub(crate) store_password: Option<String>,
    /// The TLS settings to the servers of the store, from `idempotency_store.tls`.
    pub(crate) store_tls: Option<Arc<ClientTls>>,
    /// The lines of `fleet.secret_file`, the newest first.
    pub(crate) fleet_secrets: Vec<String>,
    /// The password of `fleet.redis.password_file`.
    pub(crate) fleet_password: Option<String>,
    /// The TLS settings to the nodes of `fleet.redis`.
    pub(crate) fleet_tls: Option<Arc<ClientTls>>,
    /// The password of `fleet.etcd.password_file`.
    pub(crate) etcd_password: Option<String>,
    /// The TLS settings to the endpoints of `fleet.etcd`.
    pub(crate) etcd_tls: Option<Arc<ClientTls>>,
    /// All files that were read, with their state at the time of reading.
    pub(crate) files: Vec<(PathBuf, FileStamp)>,
}

/// The state of a file, by which a change is detected without reading it: modification time, length and inode; `None`
/// where it does not exist.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FileStamp(Option<(SystemTime, u64, u64)>);

impl FileStamp {
    pub(crate) fn of(path: &Path) -> FileStamp {
        use std::os::unix::fs::MetadataExt;
        let stamp = std::fs::metadata(path).and_then(|found| Ok((found.modified()?, found.len(), found.ino())));
        FileStamp(stamp.ok())
    }
}

/// Hides secrets where a configuration is printed.
impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets(..)")
    }
}

impl Config {
    /// Reads and validates a file, pipe or device. A successful report has at most warnings.
    pub(crate) fn load(file: &Path) -> Result<(Config, Report), Report> {
        let text = text(file::read_any(file, MAX_FILE_BYTES)).map_err(|message| Report::unreadable(file, message))?;
        Config::of(file, &text)
    }

    /// Reads and validates standard input; relative paths in it start at the current folder.
    pub(crate) fn load_stdin() -> Result<(Config, Report), Report> {
        let file = Path::new("<stdin>");
        let text = text(file::read_stdin(MAX_FILE_BYTES)).map_err(|message| Report::unreadable(file, message))?;
        Config::of(file, &text)
    }

    /// Returns the text of a file without parsing it. A file that is to be watched must be a regular one.
    pub(crate) fn read(file: &Path) -> Result<String, Report> {
        text(file::read(file, MAX_FILE_BYTES)).map_err(|message| Report::unreadable(file, message))
    }

    /// Validates the text of a file.
    pub(crate) fn of(file: &Path, text: &str) -> Result<(Config, Report), Report> {
        Config::parse(file, text, &|name| std::env::var(name).ok())
    }

    /// Validates a text; relative paths in it start at the folder of `file`.
    pub(crate) fn parse(
        file: &Path,
        text: &str,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<(Config, Report), Report> {
        let mut diagnostics = Diagnostics::default();
        let Some(tree) = tree::parse(text, &mut diagnostics) else {
            return Err(diagnostics.report(file, text));
        };
        let mut reader = Reader { diagnostics: &mut diagnostics, environment, is_verbatim: false };
        let settings = Settings::read(&tree, &mut reader);
        let mut files = Vec::new();
        let config = settings.map(|settings| {
            validate::validate(&settings, &mut diagnostics);
            let secrets = secrets::read(&settings, &folder_of(file), &mut diagnostics);
            files.clone_from(&secrets.files);
            Config { file: file.to_owned(), source: text.into(), settings, secrets }
        });
        let failed = diagnostics.has_errors();
        let mut report = diagnostics.report(file, text);
        report.files = files;
        match config {
            Some(config) if !failed => Ok((config, report)),
            _ => Err(report),
        }
    }

    /// Returns the settings of a text that may come from outside, where it is valid, and its diagnostics. The files that
    /// it names are not read. A variable of the environment keeps its name, unless the file in force names it too and
    /// its value is a number, a size or a duration: other values might be secrets, which the reader could see in names.
    pub(crate) fn draft(in_force: &Config, text: &str) -> (Option<Settings>, Vec<Finding>) {
        let known = variables(&in_force.source);
        let environment = |name: &str| {
            let value = std::env::var(name).ok().filter(|value| known.contains(&name) && is_quantity(value));
            Some(value.unwrap_or_else(|| format!("${{{name}}}")))
        };
        let mut diagnostics = Diagnostics::default();
        let settings = tree::parse(text, &mut diagnostics).and_then(|tree| {
            let mut reader = Reader { diagnostics: &mut diagnostics, environment: &environment, is_verbatim: false };
            Settings::read(&tree, &mut reader)
        });
        if let Some(settings) = &settings {
            validate::validate(settings, &mut diagnostics);
        }
        let is_valid = !diagnostics.has_errors();
        let report = diagnostics.report(&in_force.file, text);
        (settings.filter(|_| is_valid), report.findings())
    }

    /// Returns the settings of a text, for tests of what is made of them, whatever else may be wrong.
    #[cfg(test)]
    pub(crate) fn settings_of(file: &Path, text: &str, environment: &dyn Fn(&str) -> Option<String>) -> Settings {
        settings_of(text, environment).unwrap_or_else(|| panic!("{} cannot be read", file.display()))
    }

    /// Returns the DNS names that pools discover nodes by.
    pub(crate) fn discoveries(&self) -> impl Iterator<Item = &Discovery> + Clone {
        self.settings.pools.iter().filter_map(|(_, pool)| pool.discovery.as_ref())
    }

    /// Returns the request fields in which routes expect idempotency keys, and those that routes set.
    pub(crate) fn protected_fields(&self) -> Vec<HeaderName> {
        let mut names = Vec::new();
        for route in &self.settings.routes {
            names.extend(route.idempotency.iter().map(|rules| rules.key_header.clone()));
            names.extend(route.request_headers.set.iter().filter_map(|(name, _)| name.parse().ok()));
        }
        names.sort_by(|one, other| one.as_str().cmp(other.as_str()));
        names.dedup();
        names
    }

    /// Returns a path of the configuration; relative ones start at the folder of the file.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        folder_of(&self.file).join(path)
    }
}

/// Returns the file of `--config`, or the first existing default one; a report of the tried names where there is none.
pub(crate) fn locate(given: Option<PathBuf>) -> Result<PathBuf, Report> {
    let found = || DEFAULT_FILES.iter().map(PathBuf::from).find(|file| file.exists());
    given.or_else(found).ok_or_else(|| {
        let looked = DEFAULT_FILES.map(|file| format!("`{file}`")).join(", ");
        let message = format!("there is no configuration: none of {looked} exists; name one with `--config FILE`");
        Report::unreadable(Path::new("ringway"), message)
    })
}

/// Returns the JSON Schema of the file.
pub(crate) fn schema() -> serde_json::Value {
    let mut schema = Settings::schema();
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    schema["title"] = "Ringway configuration".into();
    schema
}

/// Returns the settings in force, as JSON. Secrets are in files, which are only named, or in environment variables,
/// which are shown as `${NAME}`.
pub(crate) fn effective(config: &Config) -> serde_json::Value {
    let mut hidden: Vec<&str> = Vec::new();
    let mut shown = config.settings.show();
    for name in variables(&config.source) {
        hidden.push(name);
        let environment = |wanted: &str| match hidden.contains(&wanted) {
            true => Some(format!("${{{wanted}}}")),
            false => std::env::var(wanted).ok(),
        };
        match settings_of(&config.source, &environment) {
            Some(settings) => shown = settings.show(),
            // A value such as a port or a duration is not a secret.
            None => drop(hidden.pop()),
        }
    }
    shown
}

/// Returns whether a value is a number, perhaps with a unit.
fn is_quantity(value: &str) -> bool {
    let unit = value.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    unit.len() < value.len() && value.len() <= 12 && unit.len() <= 3 && unit.chars().all(|c| c.is_ascii_alphabetic())
}

/// Returns the environment variables that a text names.
fn variables(text: &str) -> Vec<&str> {
    let mut names: Vec<&str> = text
        .match_indices("${")
        .filter(|(at, _)| !text[..*at].ends_with('$'))
        .filter_map(|(at, _)| text[at + 2..].split_once('}').map(|(name, _)| name))
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn settings_of(text: &str, environment: &dyn Fn(&str) -> Option<String>) -> Option<Settings> {
    let mut diagnostics = Diagnostics::default();
    let tree = tree::parse(text, &mut diagnostics)?;
    let settings =
        Settings::read(&tree, &mut Reader { diagnostics: &mut diagnostics, environment, is_verbatim: false });
    settings.filter(|_| !diagnostics.has_errors())
}

fn folder_of(file: &Path) -> PathBuf {
    file.parent().unwrap_or(Path::new("")).to_owned()
}

fn text(bytes: std::io::Result<Vec<u8>>) -> Result<String, String> {
    let bytes = bytes.map_err(|error| format!("cannot read the configuration: {error}"))?;
    String::from_utf8(bytes)
        .map_err(|error| format!("not UTF-8: the byte at offset {} is no character", error.utf8_error().valid_up_to()))
}

#[cfg(test)]
mod tests;
