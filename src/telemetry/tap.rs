//! `ringway tap`: records of finished requests for a bounded number of readers, each with a filter, a sample and a rate.
//!
//! Workers never wait for a reader. A record is made only for a request that passes the filter while the reader has
//! credit left; the reader's task renews the credit each time that it has taken the records, so that what waits for a
//! slow reader is bounded by the credit of one turn. Requests that pass the filter and are not recorded are counted.

use super::access_log::{Entry, timestamp};
use super::watched::Watched;
use ipnet::IpNet;
use parking_lot::{Mutex, RwLock};
use serde::Serialize;
use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// The most readers at a time.
pub(crate) const MAX_READERS: usize = 16;
/// The interval in which a reader takes its records.
pub(crate) const TURN: Duration = Duration::from_millis(100);
/// The records per second without `rate`, and the most of them.
pub(crate) const DEFAULT_RATE: u32 = 200;
pub(crate) const MAX_RATE: u32 = 5000;
/// The longest texts of a record, in bytes: they come from clients.
const MAX_URI: usize = 1024;
const MAX_TEXT: usize = 256;
/// A longer value of a query may be a secret: only its beginning is shown.
const SHORT_VALUE: usize = 8;
const SHOWN_OF_VALUE: usize = 4;

/// The requests that a reader wants: those that meet all conditions.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Filter {
    pub(crate) route: Option<String>,
    pub(crate) pool: Option<String>,
    pub(crate) node: Option<String>,
    pub(crate) method: Option<String>,
    pub(crate) host: Option<String>,
    /// A prefix of the path.
    pub(crate) path: Option<String>,
    pub(crate) client: Option<IpNet>,
    /// Any of them; all where there is none.
    pub(crate) status: Vec<StatusFilter>,
    /// In seconds.
    pub(crate) min_duration: Option<f64>,
    pub(crate) cache: Option<String>,
    pub(crate) idempotency: Option<String>,
    /// The places of a hash key on the rings.
    pub(crate) keys: Option<Vec<u64>>,
}

/// A status, or all of a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StatusFilter {
    Code(u16),
    Class(u16),
}

impl StatusFilter {
    /// Reads `404` or `5xx`.
    pub(crate) fn parse(text: &str) -> Option<StatusFilter> {
        match text.as_bytes() {
            [class @ b'1'..=b'5', b'x', b'x'] => Some(StatusFilter::Class(u16::from(class - b'0'))),
            [b'1'..=b'9', _, _] => text.parse().ok().map(StatusFilter::Code),
            _ => None,
        }
    }

    fn matches(self, status: u16) -> bool {
        match self {
            StatusFilter::Code(code) => code == status,
            StatusFilter::Class(class) => class == status / 100,
        }
    }
}

impl Filter {
    fn matches(&self, entry: &Entry<'_>) -> bool {
        let is = |wanted: &Option<String>, found: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| found.is_some_and(|found| found == wanted))
        };
        (self.status.is_empty() || self.status.iter().any(|status| status.matches(entry.status)))
            && self.min_duration.is_none_or(|least| entry.duration >= least)
            && is(&self.route, Some(entry.route))
            && is(&self.node, entry.node)
            && is(&self.pool, entry.pool)
            && is(&self.cache, entry.cache)
            && is(&self.idempotency, entry.idempotency)
            && is(&self.method, Some(entry.method))
            && self.host.as_deref().is_none_or(|host| entry.host.eq_ignore_ascii_case(host))
            && self.path.as_deref().is_none_or(|path| entry.uri.starts_with(path))
            && self.client.is_none_or(|client| client.contains(&entry.client))
            && self.keys.as_ref().is_none_or(|keys| entry.key.is_some_and(|key| keys.contains(&key)))
    }
}

/// The amount of records that a reader wants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sampling {
    /// The share of the requests that pass the filter, from 0 to 1.
    pub(crate) share: f64,
    /// Records per second.
    pub(crate) rate: u32,
}

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling { share: 1.0, rate: DEFAULT_RATE }
    }
}

/// The readers of finished requests.
pub(crate) struct Tap(Arc<Readers>);

struct Readers {
    all: RwLock<Vec<Arc<Reader>>>,
    watched: Watched,
    /// Requests that no filter has seen, as the list of readers was about to change.
    unseen: AtomicU64,
}

struct Reader {
    filter: Filter,
    sampling: Sampling,
    credit: AtomicU32,
    left_out: AtomicU64,
    records: Mutex<Vec<String>>,
}

impl Reader {
    /// Records a request, if the sample and the credit allow.
    fn offer(&self, entry: &Entry<'_>) {
        let is_sampled = self.sampling.share >= 1.0 || fastrand::f64() < self.sampling.share;
        let take = |credit: u32| credit.checked_sub(1);
        if !is_sampled || self.credit.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err() {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let record = record(entry);
        match self.records.try_lock() {
            Some(mut records) => records.push(record),
            None => drop(self.left_out.fetch_add(1, Ordering::Relaxed)),
        }
    }

    /// Returns the records of one turn.
    fn credit(&self) -> u32 {
        let turns = 1000 / u32::try_from(TURN.as_millis()).unwrap_or(1000).max(1);
        self.sampling.rate.div_ceil(turns).max(1)
    }
}

impl Tap {
    pub(super) fn new(watched: Watched) -> Tap {
        Tap(Arc::new(Readers { all: RwLock::default(), watched, unseen: AtomicU64::new(0) }))
    }

    /// Returns a new reader; `None` where there are as many as may be.
    pub(crate) fn open(&self, filter: Filter, sampling: Sampling) -> Option<TapReader> {
        let mut all = self.0.all.write();
        if all.len() >= MAX_READERS {
            return None;
        }
        let (left_out, records) = (AtomicU64::new(0), Mutex::default());
        let reader = Arc::new(Reader { filter, sampling, credit: AtomicU32::new(0), left_out, records });
        reader.credit.store(reader.credit(), Ordering::Relaxed);
        all.push(Arc::clone(&reader));
        self.0.watched.begin();
        Some(TapReader { unseen: self.0.unseen.load(Ordering::Relaxed), reader, readers: Arc::clone(&self.0) })
    }

    pub(super) fn observe(&self, entry: &Entry<'_>) {
        let Some(all) = self.0.all.try_read() else {
            self.0.unseen.fetch_add(1, Ordering::Relaxed);
            return;
        };
        for reader in all.iter().filter(|reader| reader.filter.matches(entry)) {
            reader.offer(entry);
        }
    }
}

/// A reader; requests are recorded for it until it is dropped.
pub(crate) struct TapReader {
    readers: Arc<Readers>,
    reader: Arc<Reader>,
    unseen: u64,
}

impl TapReader {
    /// Returns the records since the last call, each a JSON object, and the number of requests that were left out.
    pub(crate) fn take(&mut self) -> (Vec<String>, u64) {
        let records = std::mem::take(&mut *self.reader.records.lock());
        let unseen = self.readers.unseen.load(Ordering::Relaxed);
        let left_out = self.reader.left_out.swap(0, Ordering::Relaxed) + unseen.saturating_sub(self.unseen);
        self.unseen = unseen;
        (records, left_out)
    }

    /// Allows the records of another turn, once the last ones are on their way.
    pub(crate) fn renew(&self) {
        self.reader.credit.store(self.reader.credit(), Ordering::Relaxed);
    }
}

impl Drop for TapReader {
    fn drop(&mut self) {
        self.readers.all.write().retain(|reader| !Arc::ptr_eq(reader, &self.reader));
        self.readers.watched.end();
    }
}

/// A record: the fields of the access log, with bounded texts, and the place of the hash key on its ring.
#[derive(Serialize)]
struct Record<'a> {
    time: String,
    #[serde(flatten)]
    entry: Entry<'a>,
    /// 64 bits in hexadecimal.
    key_hash: Option<String>,
}

fn record(entry: &Entry<'_>) -> String {
    let uri = masked(entry.uri);
    let [host, method] = [entry.host, entry.method].map(|text| cut(text, MAX_TEXT));
    let [request_id, user_agent] = [entry.request_id, entry.user_agent].map(|text| text.map(|it| it.cut(MAX_TEXT)));
    let shown = Entry { uri: &uri, host, method, request_id, user_agent, ..*entry };
    let record = Record { time: timestamp(), entry: shown, key_hash: entry.key.map(|key| format!("{key:016x}")) };
    serde_json::to_string(&record).unwrap_or_default()
}

/// Returns the beginning of a text.
pub(super) fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

/// Returns a target whose query has only the beginnings of long values, and no more than fits.
fn masked(uri: &str) -> Cow<'_, str> {
    let Some((path, query)) = uri.split_once('?') else { return Cow::Borrowed(cut(uri, MAX_URI)) };
    let mut shown = String::with_capacity(uri.len().min(MAX_URI));
    shown.push_str(cut(path, MAX_URI));
    for (number, pair) in query.split('&').enumerate() {
        if shown.len() >= MAX_URI {
            break;
        }
        shown.push(if number == 0 { '?' } else { '&' });
        let (name, value) = match pair.split_once('=') {
            Some((name, value)) => (cut(name, MAX_TEXT), value),
            None => ("", pair),
        };
        shown.push_str(name);
        if pair.contains('=') {
            shown.push('=');
        }
        if value.len() > SHORT_VALUE {
            shown.push_str(cut(value, SHOWN_OF_VALUE));
            shown.push('\u{2026}');
        } else {
            shown.push_str(value);
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::super::access_log::tests::entry;
    use super::*;

    fn tap() -> Tap {
        Tap::new(Watched::default())
    }

    #[test]
    fn a_filter_wants_all_of_its_conditions() {
        let given = entry();
        let wants = |change: fn(&mut Filter)| {
            let mut filter = Filter::default();
            change(&mut filter);
            filter.matches(&given)
        };
        assert!(wants(|_| ()));
        let good: [fn(&mut Filter); 9] = [
            |it| it.route = Some("site".into()),
            |it| it.node = Some("app-1".into()),
            |it| it.status = vec![StatusFilter::Code(404), StatusFilter::Class(2)],
            |it| it.path = Some("/a".into()),
            |it| it.host = Some("EXAMPLE.com".into()),
            |it| it.client = Some("192.0.2.0/24".parse().unwrap()),
            |it| it.min_duration = Some(0.002),
            |it| it.method = Some("GET".into()),
            |it| it.keys = Some(vec![1, 0xab]),
        ];
        let bad: [fn(&mut Filter); 10] = [
            |it| it.route = Some("sit".into()),
            |it| it.pool = Some("other".into()),
            |it| it.status = vec![StatusFilter::Class(5)],
            |it| it.path = Some("/b".into()),
            |it| it.host = Some("example.org".into()),
            |it| it.client = Some("192.0.3.0/24".parse().unwrap()),
            |it| it.min_duration = Some(0.003),
            |it| it.cache = Some("hit".into()),
            |it| it.idempotency = Some("first".into()),
            |it| it.keys = Some(vec![1]),
        ];
        for (number, change) in good.into_iter().enumerate() {
            assert!(wants(change), "{number}");
        }
        for (number, change) in bad.into_iter().enumerate() {
            assert!(!wants(change), "{number}");
        }
    }

    #[test]
    fn statuses_are_codes_and_classes() {
        assert_eq!(StatusFilter::parse("404"), Some(StatusFilter::Code(404)));
        assert_eq!(StatusFilter::parse("5xx"), Some(StatusFilter::Class(5)));
        for bad in ["", "5", "5XX", "xxx", "9xx", "40", "4045", "+40"] {
            assert_eq!(StatusFilter::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_reader_without_credit_loses_records_and_is_given_their_number() {
        let tap = tap();
        let mut reader = tap.open(Filter::default(), Sampling { share: 1.0, rate: 20 }).unwrap();
        (0..5).for_each(|_| tap.observe(&entry()));
        let (records, left_out) = reader.take();
        assert_eq!((records.len(), left_out), (2, 3));
        tap.observe(&entry());
        assert_eq!(reader.take(), (Vec::new(), 1));
        reader.renew();
        tap.observe(&entry());
        assert_eq!(reader.take().0.len(), 1);
    }

    #[test]
    fn a_sample_leaves_out_the_rest() {
        let tap = tap();
        let mut reader = tap.open(Filter::default(), Sampling { share: 0.0, rate: 20 }).unwrap();
        (0..5).for_each(|_| tap.observe(&entry()));
        assert_eq!(reader.take(), (Vec::new(), 5));
    }

    #[test]
    fn readers_are_bounded_and_leave_nothing_behind() {
        let (tap, open) = (tap(), |tap: &Tap| tap.open(Filter::default(), Sampling::default()));
        let readers: Vec<TapReader> = (0..MAX_READERS + 4).filter_map(|_| open(&tap)).collect();
        assert_eq!(readers.len(), MAX_READERS);
        drop(readers);
        assert!(tap.0.all.read().is_empty() && open(&tap).is_some());
    }

    #[test]
    fn a_record_is_the_line_of_the_access_log_without_long_secrets() {
        let mut given = entry();
        given.uri = "/a?token=0123456789abcdef&page=2&0123456789abcdef";
        let long = "x".repeat(5000);
        let agent = http::HeaderValue::from_str(&long).unwrap();
        given.user_agent = Some(super::super::access_log::Text::of(&agent));
        let record: serde_json::Value = serde_json::from_str(&record(&given)).unwrap();
        assert_eq!(record["uri"], "/a?token=0123\u{2026}&page=2&0123\u{2026}");
        assert_eq!((&record["key_hash"], &record["first_byte"]), (&"00000000000000ab".into(), &0.001.into()));
        assert!(record["time"].as_str().unwrap().ends_with('Z') && record["user_agent"].as_str().unwrap().len() == 256);
        given.uri = &long;
        assert!(super::record(&given).len() < 3000);
    }
}
