//! The idempotency store of the process: opened when the first route uses it, and open from then on.

use crate::config::{Config, StoreKind};
use crate::idempotency::{Kind, OpenError, Records};
use crate::telemetry::metrics::{Metrics, Sample};
use std::sync::{Arc, OnceLock};

/// The store, once a route uses it.
#[derive(Clone, Default)]
pub(super) struct Store(Arc<OnceLock<Arc<Records>>>);

/// A store that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the idempotency store `{kind}`: {cause}")]
pub(crate) struct StoreUnavailable {
    kind: Kind,
    cause: OpenError,
}

impl Store {
    pub(super) fn get(&self) -> Option<&Arc<Records>> {
        self.0.get()
    }

    /// Opens the store if a route of the configuration uses it and it is not open yet. Must be called
    /// inside a tokio runtime, which then carries its upkeep, and by one caller at a time.
    pub(super) fn open_for(
        &self,
        config: &Config,
        metrics: &Metrics,
    ) -> Result<Option<&Arc<Records>>, StoreUnavailable> {
        if config.settings.routes.iter().any(|route| route.idempotency.is_some()) && self.get().is_none() {
            let kind = kind_of(config);
            let opened = Records::open(kind.clone(), &metrics.idempotency_store_duration);
            let records = opened.map_err(|cause| StoreUnavailable { kind: kind.clone(), cause })?;
            tracing::info!(store = %kind, records = records.count(), "the idempotency store is open");
            tokio::spawn(Arc::clone(&records).keep());
            // Nobody else opens one meanwhile.
            let _ = self.0.set(records);
        }
        Ok(self.get())
    }

    /// Whether the configuration asks for another store than the one that is open.
    pub(super) fn is_another(&self, config: &Config) -> bool {
        self.get().is_some_and(|records| records.kind != kind_of(config))
    }

    /// The gauge of what it holds.
    pub(super) fn mirror(&self, metrics: &Metrics) {
        let store = self.clone();
        metrics.mirror("ringway_idempotency_records", "Records in the idempotency store.", &[], move |samples| {
            if let Some(records) = store.get() {
                samples.push(Sample { labels: Vec::new(), value: records.count() as f64 });
            }
        });
    }
}

fn kind_of(config: &Config) -> Kind {
    let settings = &config.settings.idempotency_store;
    match settings.kind {
        StoreKind::Sqlite => Kind::Sqlite(config.path(&settings.path)),
        StoreKind::Memory => Kind::Memory,
    }
}
