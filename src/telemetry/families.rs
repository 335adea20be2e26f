//! A family of metrics: its line in the table, its registration, and the removal of its series.

use prometheus::core::{Collector, Desc, MetricVec, MetricVecBuilder};
use prometheus::proto::{Gauge, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};
use std::collections::BTreeMap;

/// From 0.1 ms to a minute: from a hit of the cache to the response of a slow node.
const DURATION_BUCKETS: [f64; 18] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 10.0, 15.0, 30.0, 60.0,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// One line of the table of metrics.
pub(crate) struct Family {
    pub(crate) name: &'static str,
    #[cfg_attr(not(test), expect(dead_code, reason = "a column of docs/metrics.md"))]
    pub(crate) kind: Kind,
    pub(crate) labels: &'static [&'static str],
    pub(crate) help: &'static str,
    /// The question that it answers, or the alert that it is for.
    #[cfg_attr(not(test), expect(dead_code, reason = "a column of docs/metrics.md"))]
    pub(crate) purpose: &'static str,
}

/// The labels of one series.
pub(super) type Labels = BTreeMap<String, String>;

/// The collectors that the table uses.
pub(super) trait Registered: Collector + Clone + Sized + 'static {
    const KIND: Kind;
    fn make(family: &Family) -> prometheus::Result<Self>;
    /// Removes the series whose labels are not to be kept.
    fn retain(&self, family: &Family, keep: &dyn Fn(&Labels) -> bool);
    /// Creates a series that has this value in all labels.
    #[cfg(test)]
    fn touch(&self, family: &Family, value: &str);
}

macro_rules! without_labels {
    ($type:ty, $kind:ident) => {
        impl Registered for $type {
            const KIND: Kind = Kind::$kind;

            fn make(family: &Family) -> prometheus::Result<$type> {
                <$type>::new(family.name, family.help)
            }

            fn retain(&self, _: &Family, _: &dyn Fn(&Labels) -> bool) {}

            #[cfg(test)]
            fn touch(&self, _: &Family, _: &str) {}
        }
    };
}

macro_rules! with_labels {
    ($type:ty, $kind:ident, $options:expr) => {
        impl Registered for $type {
            const KIND: Kind = Kind::$kind;

            fn make(family: &Family) -> prometheus::Result<$type> {
                <$type>::new($options(family), family.labels)
            }

            fn retain(&self, family: &Family, keep: &dyn Fn(&Labels) -> bool) {
                retain(self, family.labels, keep);
            }

            #[cfg(test)]
            fn touch(&self, family: &Family, value: &str) {
                self.with_label_values(&vec![value; family.labels.len()]);
            }
        }
    };
}

without_labels!(prometheus::Counter, Counter);
without_labels!(IntCounter, Counter);
without_labels!(IntGauge, Gauge);
with_labels!(IntCounterVec, Counter, |family: &Family| Opts::new(family.name, family.help));
with_labels!(IntGaugeVec, Gauge, |family: &Family| Opts::new(family.name, family.help));
with_labels!(HistogramVec, Histogram, |family: &Family| {
    HistogramOpts::new(family.name, family.help).buckets(DURATION_BUCKETS.to_vec())
});

/// Removes the children of a vector whose labels are not to be kept.
fn retain<B: MetricVecBuilder>(family: &MetricVec<B>, names: &[&str], keep: impl Fn(&Labels) -> bool) {
    for metric in family.collect().iter().flat_map(MetricFamily::get_metric) {
        let labels: Labels =
            metric.get_label().iter().map(|pair| (pair.name().to_owned(), pair.value().to_owned())).collect();
        if !keep(&labels) {
            let values: Vec<&str> = names.iter().map(|name| labels.get(*name).map_or("", String::as_str)).collect();
            // Another thread may have removed it meanwhile.
            let _ = family.remove_label_values(&values);
        }
    }
}

/// Returns a new collector of a family, registered.
pub(super) fn registered<C: Registered>(registry: &Registry, family: &Family) -> C {
    let collector = C::make(family).expect("metric names are valid");
    register(registry, collector.clone());
    collector
}

pub(super) fn register<C: Collector + 'static>(registry: &Registry, collector: C) {
    registry.register(Box::new(collector)).expect("every metric is registered once");
}

/// A value of a gauge that is read at each scrape, with the values of its labels.
pub(crate) struct Sample {
    pub(crate) labels: Vec<String>,
    pub(crate) value: f64,
}

type Read = Box<dyn Fn(&mut Vec<Sample>) + Send + Sync>;

/// A gauge that is read at each scrape.
pub(super) struct ReadGauge {
    desc: Desc,
    family: Family,
    read: Read,
}

impl ReadGauge {
    pub(super) fn new(family: Family, read: impl Fn(&mut Vec<Sample>) + Send + Sync + 'static) -> ReadGauge {
        let names = family.labels.iter().map(|label| (*label).to_owned()).collect();
        let desc = Desc::new(family.name.to_owned(), family.help.to_owned(), names, Default::default());
        ReadGauge { desc: desc.expect("metric names are valid"), family, read: Box::new(read) }
    }
}

impl Collector for ReadGauge {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut samples = Vec::new();
        (self.read)(&mut samples);
        if samples.is_empty() {
            return Vec::new();
        }
        let metrics = samples.into_iter().map(|sample| {
            let mut gauge = Gauge::default();
            gauge.set_value(sample.value);
            let pairs = self.family.labels.iter().zip(sample.labels).map(|(name, value)| {
                let mut pair = LabelPair::default();
                pair.set_name((*name).to_owned());
                pair.set_value(value);
                pair
            });
            let mut pairs: Vec<LabelPair> = pairs.collect();
            pairs.sort_by(|a, b| a.name().cmp(b.name()));
            let mut metric = Metric::from_label(pairs);
            metric.set_gauge(gauge);
            metric
        });
        let mut family = MetricFamily::default();
        family.set_name(self.family.name.to_owned());
        family.set_help(self.family.help.to_owned());
        family.set_field_type(MetricType::GAUGE);
        family.set_metric(metrics.collect());
        vec![family]
    }
}
