//! The idempotency store of the process: opened when the first route uses it, and open from then on.

use super::background::Background;
use crate::config::{Config, StoreKind};
use crate::control::{Event, Events};
use crate::fleet::{Bus, Leadership};
#[cfg(feature = "redis")]
use crate::idempotency::RedisSettings;
use crate::idempotency::{Kind, OpenError, Records};
#[cfg(feature = "redis")]
use crate::io::redis::{Login, TlsSettings};
use crate::telemetry::metrics::{Metrics, Sample, elsewhere};
#[cfg(feature = "redis")]
use crate::{config::PoolTls, tls::ClientTls};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// The time that a process which stops waits for its store.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// The store, once a route uses it.
#[derive(Clone, Default)]
pub(in crate::server) struct OpenStore(Arc<OnceLock<Arc<Records>>>);

/// A store that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the idempotency store `{kind}`: {cause}")]
pub(crate) struct StoreUnavailable {
    kind: String,
    cause: OpenError,
}

impl OpenStore {
    pub(in crate::server) fn get(&self) -> Option<&Arc<Records>> {
        self.0.get()
    }

    /// Opens the store if a route of the configuration uses it and it is not open yet. The process keeps it only once
    /// it is adopted.
    pub(super) fn open_for(
        &self,
        config: &Config,
        metrics: &Metrics,
        events: &Arc<Events>,
    ) -> Result<Option<Arc<Records>>, StoreUnavailable> {
        if self.get().is_some() || config.settings.routes.iter().all(|route| route.idempotency.is_none()) {
            return Ok(self.get().cloned());
        }
        let kind = store_of(config)?;
        let (by_op, by_store) = (&metrics.idempotency_store_duration, &metrics.store_duration);
        let opened = Records::open(kind.clone(), by_op, by_store, events);
        opened.map(Some).map_err(|cause| StoreUnavailable { kind: kind.to_string(), cause })
    }

    /// Keeps a store that was opened, from now on; its upkeep is work in the background. Must be called by one caller
    /// at a time.
    pub(super) fn adopt(&self, records: Option<Arc<Records>>, events: &Arc<Events>, background: &Background) {
        if let Some(records) = records
            && self.0.set(Arc::clone(&records)).is_ok()
        {
            tracing::info!(store = %records.kind, records = records.count(), "the idempotency store is open");
            events.record(Event::Store { store: records.kind.to_string(), working: true, error: None });
            background.spawn("upkeep of the idempotency store", records.keep());
        }
    }

    /// Waits briefly for the store to record how the last runs ended; other proxies would record the same after the
    /// death of this process, but later.
    pub(super) fn wait_for_claims(&self) {
        let deadline = Instant::now() + LAST_MOMENT;
        while self.get().is_some_and(|records| !records.is_settled()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Returns whether the configuration has another store than the open one.
    pub(super) fn is_another(&self, config: &Config) -> bool {
        self.get().is_some_and(|records| !store_of(config).is_ok_and(|kind| records.kind.may_be(&kind)))
    }

    /// Lets a store that is open go on under a new configuration: another address or password of the same store.
    pub(super) fn reconfigure(&self, config: &Config) {
        if let (Some(records), Ok(kind)) = (self.get(), store_of(config)) {
            records.reconfigure(&kind);
        }
    }

    /// Registers the gauge of its records.
    pub(super) fn gauges(&self, metrics: &Metrics, bus: Option<Bus>, leadership: Option<Leadership>) {
        let store = self.clone();
        metrics.gauge(elsewhere::IDEMPOTENCY_RECORDS, move |samples| {
            if let Some(count) = store.get().and_then(|records| records.count()) {
                samples.push(Sample { labels: Vec::new(), value: count as f64 });
            }
        });
        let store = self.clone();
        metrics.gauge(elsewhere::SAGAS_STUCK, move |samples| {
            if let Some(stuck) = store.get().and_then(|records| records.stuck_sagas()) {
                samples.push(Sample { labels: Vec::new(), value: stuck as f64 });
            }
        });
        let store = self.clone();
        metrics.gauge(elsewhere::STORE_UP, move |samples| {
            if let Some(records) = store.get() {
                let labels = vec!["idempotency".to_owned()];
                samples.push(Sample { labels, value: f64::from(u8::from(records.is_up())) });
            }
            for (node, up) in bus.iter().flat_map(Bus::nodes) {
                samples.push(Sample { labels: vec![node], value: f64::from(u8::from(up)) });
            }
            if let Some(leadership) = &leadership {
                let labels = vec!["etcd".to_owned()];
                samples.push(Sample { labels, value: f64::from(u8::from(leadership.is_up())) });
            }
        });
    }
}

/// Returns the store of a configuration.
///
/// # Errors
///
/// The settings are invalid.
pub(crate) fn store_of(config: &Config) -> Result<Kind, StoreUnavailable> {
    let settings = &config.settings.idempotency_store;
    match settings.kind.value {
        StoreKind::Sqlite => Ok(Kind::Sqlite(config.path(&settings.path))),
        StoreKind::Memory => Ok(Kind::Memory),
        StoreKind::Postgres => {
            let url = config.secrets.store_url.clone().unwrap_or_default();
            let identity_file = config.path(&settings.identity_file);
            Kind::postgres(&url, config.secrets.store_authorities.clone(), &identity_file)
                .map_err(|cause| StoreUnavailable { kind: "postgres".to_owned(), cause })
        }
        StoreKind::Redis => redis(config),
    }
}

#[cfg(feature = "redis")]
fn redis(config: &Config) -> Result<Kind, StoreUnavailable> {
    let settings = &config.settings.idempotency_store;
    let addresses = settings.address.as_ref().map(|addresses| addresses.value.0.as_slice()).unwrap_or_default();
    let login = Login {
        username: settings.username.as_ref().map(|username| username.value.clone()),
        password: config.secrets.store_password.clone(),
        tls: config.secrets.store_tls.as_ref().map(|tls| tls_settings(tls, settings.tls.as_ref())),
    };
    let fleet = config.settings.fleet.as_ref().map_or("default", |fleet| fleet.id.as_str());
    Ok(Kind::Redis(RedisSettings {
        addresses: addresses.iter().map(ToString::to_string).collect(),
        login,
        replicas: settings.durability.replicas,
        fleet: fleet.to_owned(),
        identity_file: config.path(&settings.identity_file),
    }))
}

/// Returns TLS towards Redis servers.
#[cfg(feature = "redis")]
pub(super) fn tls_settings(tls: &ClientTls, settings: Option<&PoolTls>) -> TlsSettings {
    TlsSettings {
        config: Arc::clone(&tls.config),
        server_name: settings.and_then(|settings| Some(settings.server_name.as_ref()?.value.0.clone())),
        digest: tls.digest.clone(),
    }
}

#[cfg(not(feature = "redis"))]
fn redis(_: &Config) -> Result<Kind, StoreUnavailable> {
    let cause = OpenError::Settings("this Ringway was built without the feature `redis`".to_owned());
    Err(StoreUnavailable { kind: "redis".to_owned(), cause })
}
