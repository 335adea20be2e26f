//! The last fifteen minutes: rates, latency and errors of routes and nodes, and hits of the cache. Background work reads
//! the counters and histograms that there are anyway; a request pays nothing for it.

use super::metrics::Metrics;
use crate::clock;
use parking_lot::Mutex;
use prometheus::core::{Collector, Metric as _};
use prometheus::proto::{Histogram, LabelPair, Metric, MetricFamily};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// The time between two samples.
pub(crate) const INTERVAL: Duration = Duration::from_secs(5);
/// The samples that are kept: fifteen minutes.
const SAMPLES: usize = 180;
/// The most series that are kept: of routes first, then of nodes.
const MAX_SERIES: usize = 1024;
/// The results of the cache that need no node, or at most its confirmation.
const HITS: [&str; 4] = ["hit", "stale", "revalidated", "collapsed"];

/// A line of the history.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Series {
    Cache,
    Route(String),
    Node { pool: String, node: String },
}

/// The state of the counters of a series.
#[derive(Clone, Debug, Default, PartialEq)]
struct Totals {
    requests: u64,
    /// For the cache: hits.
    errors: u64,
    /// Observations in each bucket; the last one has no bound.
    buckets: Vec<u64>,
}

/// The state of all counters.
#[derive(Default)]
struct Reading {
    bounds: Vec<f64>,
    series: BTreeMap<Series, Totals>,
}

/// The requests of one interval.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Sample {
    requests: u32,
    errors: u32,
    /// In seconds; `None` without requests.
    p50: Option<f32>,
    p99: Option<f32>,
}

/// The history of the process.
pub(crate) struct History {
    /// Distinguishes the numbers of this process from those of another: the time of its start in milliseconds.
    epoch: u64,
    kept: Mutex<Kept>,
}

impl Default for History {
    fn default() -> History {
        let epoch = u64::try_from(clock::since_1970().as_millis()).unwrap_or(u64::MAX);
        History { epoch, kept: Mutex::default() }
    }
}

#[derive(Default)]
struct Kept {
    /// The number of the newest sample; the first one has 1.
    newest: u64,
    last: BTreeMap<Series, Totals>,
    samples: BTreeMap<Series, VecDeque<Sample>>,
}

/// The history: `GET /api/history`. Lists of a series end with the newest sample; a series that is younger than the
/// others has shorter ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct HistoryStatus {
    /// The time between two samples.
    pub(crate) interval_seconds: u64,
    /// The number of the newest sample: `?after=` leaves out those up to a number.
    pub(crate) newest: u64,
    /// The process that the numbers are of.
    pub(crate) epoch: u64,
    pub(crate) cache: CacheHistory,
    pub(crate) routes: Vec<RouteHistory>,
    pub(crate) nodes: Vec<NodeHistory>,
}

/// Requests to routes with a cache, and those that needed no response of a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct CacheHistory {
    pub(crate) requests: Vec<u32>,
    pub(crate) hits: Vec<u32>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RouteHistory {
    pub(crate) route: String,
    #[serde(flatten)]
    pub(crate) samples: SampleLists,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct NodeHistory {
    pub(crate) pool: String,
    pub(crate) node: String,
    #[serde(flatten)]
    pub(crate) samples: SampleLists,
}

/// The samples of a series: of a route its requests, of a node the attempts at it. Errors are responses with 5xx, and
/// of a node also attempts that it left without a response. Latencies are in milliseconds, from the buckets of the histogram.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct SampleLists {
    pub(crate) requests: Vec<u32>,
    pub(crate) errors: Vec<u32>,
    pub(crate) p50: Vec<Option<f64>>,
    pub(crate) p99: Vec<Option<f64>>,
}

impl SampleLists {
    fn of(samples: &VecDeque<Sample>, most: usize) -> SampleLists {
        let mut lists = SampleLists::default();
        for sample in samples.iter().skip(samples.len().saturating_sub(most)) {
            // To a microsecond.
            let milliseconds = |seconds: f32| (f64::from(seconds) * 1e6).round() / 1e3;
            lists.requests.push(sample.requests);
            lists.errors.push(sample.errors);
            lists.p50.push(sample.p50.map(milliseconds));
            lists.p99.push(sample.p99.map(milliseconds));
        }
        lists
    }
}

impl History {
    /// Adds a sample: the difference to the last state of the counters.
    pub(crate) fn sample(&self, metrics: &Metrics) {
        let reading = read(metrics);
        self.kept.lock().add(reading);
    }

    /// Returns the samples after a number.
    pub(crate) fn after(&self, number: u64) -> HistoryStatus {
        let kept = self.kept.lock();
        // A number of another process is not known here.
        let most = if number > kept.newest { SAMPLES as u64 } else { kept.newest - number };
        let most = usize::try_from(most).unwrap_or(SAMPLES);
        let mut status = HistoryStatus {
            interval_seconds: INTERVAL.as_secs(),
            newest: kept.newest,
            epoch: self.epoch,
            cache: CacheHistory::default(),
            routes: Vec::new(),
            nodes: Vec::new(),
        };
        for (series, samples) in &kept.samples {
            let samples = SampleLists::of(samples, most);
            match series.clone() {
                Series::Cache => status.cache = CacheHistory { requests: samples.requests, hits: samples.errors },
                Series::Route(route) => status.routes.push(RouteHistory { route, samples }),
                Series::Node { pool, node } => status.nodes.push(NodeHistory { pool, node, samples }),
            }
        }
        status
    }
}

impl Kept {
    fn add(&mut self, mut reading: Reading) {
        self.newest += 1;
        while reading.series.len() > MAX_SERIES {
            reading.series.pop_last();
        }
        self.samples.retain(|series, _| reading.series.contains_key(series));
        for (series, totals) in &reading.series {
            let before = self.last.get(series).cloned().unwrap_or_default();
            let samples = self.samples.entry(series.clone()).or_default();
            if samples.len() >= SAMPLES {
                samples.pop_front();
            }
            samples.push_back(difference(&before, totals, &reading.bounds));
        }
        self.last = reading.series;
    }
}

/// Returns the requests between two states of a series. One that has become smaller was removed and has begun anew.
fn difference(before: &Totals, after: &Totals, bounds: &[f64]) -> Sample {
    let is_anew = after.requests < before.requests;
    let since = |before: u64, after: u64| if is_anew { after } else { after.saturating_sub(before) };
    let old = |place: usize| before.buckets.get(place).copied().unwrap_or_default();
    let buckets: Vec<u64> = after.buckets.iter().enumerate().map(|(at, &count)| since(old(at), count)).collect();
    let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    Sample {
        requests: small(since(before.requests, after.requests)),
        errors: small(since(before.errors, after.errors)),
        p50: quantile(&buckets, bounds, 0.5),
        p99: quantile(&buckets, bounds, 0.99),
    }
}

/// Returns a quantile of a histogram, in a straight line within its bucket; the largest bound where it is above.
fn quantile(buckets: &[u64], bounds: &[f64], quantile: f64) -> Option<f32> {
    let all: u64 = buckets.iter().sum();
    if all == 0 {
        return None;
    }
    let rank = quantile * all as f64;
    let mut below = 0.0;
    for (place, &count) in buckets.iter().enumerate() {
        let Some(&bound) = bounds.get(place) else { break };
        if count > 0 && below + count as f64 >= rank {
            let start = if place == 0 { 0.0 } else { bounds[place - 1] };
            return Some((start + (bound - start) * (rank - below) / count as f64) as f32);
        }
        below += count as f64;
    }
    bounds.last().map(|&bound| bound as f32)
}

/// The outcomes of attempts that say nothing against the node: an answer, whose status is counted apart, and what
/// `UpstreamError::is_the_nodes` denies.
const NOT_THE_NODES: [&str; 4] = ["answer", "request_body", "head_too_large", "claim_lapsed"];

fn read(metrics: &Metrics) -> Reading {
    let mut reading = Reading::default();
    let route = |metric: &Metric| Series::Route(label(metric, "route"));
    let node = |metric: &Metric| Series::Node { pool: label(metric, "pool"), node: label(metric, "node") };
    for metric in collected(&metrics.requests).iter().flat_map(MetricFamily::get_metric) {
        let is_error = label(metric, "code").starts_with('5');
        reading.count(route(metric), metric, is_error);
    }
    for metric in collected(&metrics.upstream_requests).iter().flat_map(MetricFamily::get_metric) {
        let is_error = !NOT_THE_NODES.contains(&label(metric, "outcome").as_str());
        reading.count(node(metric), metric, is_error);
    }
    for metric in collected(&metrics.upstream_server_errors).iter().flat_map(MetricFamily::get_metric) {
        reading.series.entry(node(metric)).or_default().errors += metric.get_counter().get_value() as u64;
    }
    for metric in collected(&metrics.cache_requests).iter().flat_map(MetricFamily::get_metric) {
        let is_hit = HITS.contains(&label(metric, "result").as_str());
        reading.count(Series::Cache, metric, is_hit);
    }
    // Of the series that have counters alone: collecting the histograms of 10,000 routes that nobody asks for takes longer.
    for (series, totals) in &mut reading.series {
        let histogram = match series {
            Series::Cache => continue,
            Series::Route(route) => metrics.request_duration.get_metric_with_label_values(&[route]),
            Series::Node { pool, node } => metrics.upstream_duration.get_metric_with_label_values(&[pool, node]),
        };
        if let Ok(histogram) = histogram {
            totals.observe(histogram.metric().get_histogram(), &mut reading.bounds);
        }
    }
    reading
}

fn collected(family: &impl Collector) -> Vec<MetricFamily> {
    family.collect()
}

fn label(metric: &Metric, name: &str) -> String {
    metric.get_label().iter().find(|pair| pair.name() == name).map_or("", LabelPair::value).to_owned()
}

impl Reading {
    fn count(&mut self, series: Series, metric: &Metric, is_error: bool) {
        let totals = self.series.entry(series).or_default();
        let count = metric.get_counter().get_value() as u64;
        totals.requests += count;
        totals.errors += if is_error { count } else { 0 };
    }
}

impl Totals {
    /// Adds the histogram of the series.
    fn observe(&mut self, histogram: &Histogram, bounds: &mut Vec<f64>) {
        let mut below = 0;
        let cumulative = histogram.get_bucket().iter().map(|bucket| bucket.cumulative_count());
        self.buckets = cumulative
            .chain([histogram.get_sample_count()])
            .map(|count| count.saturating_sub(std::mem::replace(&mut below, count)))
            .collect();
        if bounds.is_empty() {
            *bounds = histogram.get_bucket().iter().map(|bucket| bucket.upper_bound()).collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn samples_are_the_differences_of_counters() {
        let (metrics, history) = (Metrics::new(), History::default());
        let answer = |code: &str, seconds: f64| {
            metrics.requests.with_label_values(&["site", "GET", code]).inc();
            metrics.request_duration.with_label_values(&["site"]).observe(seconds);
        };
        answer("200", 0.0009);
        answer("503", 0.0009);
        history.sample(&metrics);
        (0..100).for_each(|_| answer("200", 0.2));
        metrics.upstream_requests.with_label_values(&["app", "n0", "timeout"]).inc();
        metrics.upstream_requests.with_label_values(&["app", "n0", "request_body"]).inc();
        metrics.upstream_requests.with_label_values(&["app", "n0", "answer"]).inc_by(2);
        metrics.upstream_server_errors.with_label_values(&["app", "n0"]).inc();
        metrics.cache_requests.with_label_values(&["site", "hit"]).inc_by(3);
        metrics.cache_requests.with_label_values(&["site", "miss"]).inc();
        history.sample(&metrics);
        let all = history.after(0);
        assert_eq!((all.newest, all.interval_seconds), (2, 5));
        let site = &all.routes[0].samples;
        assert_eq!((&site.requests[..], &site.errors[..]), (&[2, 100][..], &[1, 0][..]));
        assert!(site.p99[0].is_some_and(|time| (0.5..=1.0).contains(&time)), "{site:?}");
        assert!(site.p50[1].is_some_and(|time| (100.0..=250.0).contains(&time)), "{site:?}");
        assert_eq!((&all.cache.hits[..], &all.cache.requests[..]), (&[3][..], &[4][..]));
        let node = &all.nodes[0];
        assert_eq!((node.node.as_str(), &node.samples.errors[..], node.samples.p50[0]), ("n0", &[2][..], None));
        let newest = history.after(1);
        assert_eq!(newest.routes[0].samples.requests, [100]);
        assert!(history.after(2).routes[0].samples.requests.is_empty());
        assert_eq!(history.after(99), all, "a number of another process");
    }

    #[test]
    fn the_history_is_bounded_and_forgets_what_is_gone() {
        let mut kept = Kept::default();
        let totals = |requests| Totals { requests, ..Totals::default() };
        for number in 0..SAMPLES as u64 + 20 {
            let series = (0..MAX_SERIES + 10).map(|route| (Series::Route(route.to_string()), totals(number)));
            kept.add(Reading { bounds: Vec::new(), series: series.collect() });
        }
        assert_eq!(kept.samples.len(), MAX_SERIES);
        assert!(kept.samples.values().all(|samples| samples.len() == SAMPLES));
        kept.add(Reading { bounds: Vec::new(), series: [(Series::Cache, totals(1))].into() });
        assert_eq!(kept.samples.len(), 1);
    }

    #[test]
    fn a_series_that_began_anew_counts_from_zero() {
        let [before, after] =
            [(10, vec![4, 6]), (3, vec![3, 0])].map(|(requests, buckets)| Totals { requests, errors: 0, buckets });
        let sample = difference(&before, &after, &[1.0]);
        assert_eq!((sample.requests, sample.p99), (3, quantile(&[3, 0], &[1.0], 0.99)));
    }

    proptest! {
        /// A quantile lies in the bucket of the value with its rank.
        #[test]
        fn quantiles_lie_in_their_bucket(values in prop::collection::vec(0.0f64..20.0, 1..200), part in 0.01f64..1.0) {
            let bounds = [1.0, 2.0, 5.0, 10.0];
            let mut buckets = [0u64; 5];
            let bucket = |value: f64| bounds.iter().position(|&bound| value <= bound).unwrap_or(4);
            values.iter().for_each(|&value| buckets[bucket(value)] += 1);
            let mut sorted = values.clone();
            sorted.sort_by(f64::total_cmp);
            let exact = sorted[((part * values.len() as f64).ceil() as usize).clamp(1, values.len()) - 1];
            let found = f64::from(quantile(&buckets, &bounds, part).unwrap());
            let (low, high) = match bucket(exact) {
                0 => (0.0, 1.0),
                4 => (10.0, 10.0),
                place => (bounds[place - 1], bounds[place]),
            };
            prop_assert!((low - 1e-5..=high + 1e-5).contains(&found), "{found} is not in {low}..{high}, {exact}");
        }
    }
}
