//! `ringway top`: the hottest keys, URLs, clients and routes of the last one to two minutes.
//!
//! Requests are counted only while a reader has asked within the last minute. A worker then counts a sample: at a low
//! rate every request, else one of a number that follows the rate, with a weight that makes up for the rest.

mod space_saving;

use super::access_log::Entry;
use super::tap::cut;
use super::watched::{Skipped, Watched};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use space_saving::Summary;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The counters of a table: the excess of a value is at most the total divided by it.
const COUNTERS: usize = 256;
/// The longest name of a counter, in bytes.
const MAX_NAME: usize = 256;
/// The time for which counting goes on after the last question.
const PATIENCE: Duration = Duration::from_secs(60);
/// The time after which the counters begin anew; those of the time before are kept.
const WINDOW: Duration = Duration::from_secs(60);
/// The samples per second above which fewer are taken, and below which more are.
const MANY: u64 = 2000;
const FEW: u64 = 400;
/// One request of so many is counted at least.
const MAX_PERIOD: u32 = 1024;
/// The interval in which the period is adapted.
pub(crate) const UPKEEP: Duration = Duration::from_secs(1);

/// The names that requests are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// The pool and the place of the hash key on its ring.
    Key,
    /// The host and the path, without the query.
    Url,
    /// The client's address.
    Client,
    Route,
}

impl By {
    pub(crate) const ALL: [By; 4] = [By::Key, By::Url, By::Client, By::Route];

    pub(crate) fn word(self) -> &'static str {
        match self {
            By::Key => "key",
            By::Url => "url",
            By::Client => "client",
            By::Route => "route",
        }
    }
}

/// The amount that is summed for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Measure {
    Requests,
    /// Of bodies, in both directions.
    Bytes,
    /// In microseconds.
    Time,
    /// Responses with 5xx, and requests whose client gave up before the response.
    Errors,
}

impl Measure {
    pub(crate) const ALL: [Measure; 4] = [Measure::Requests, Measure::Bytes, Measure::Time, Measure::Errors];

    pub(crate) fn word(self) -> &'static str {
        match self {
            Measure::Requests => "requests",
            Measure::Bytes => "bytes",
            Measure::Time => "time",
            Measure::Errors => "errors",
        }
    }

    fn of(self, entry: &Entry<'_>) -> u64 {
        match self {
            Measure::Requests => 1,
            Measure::Bytes => entry.request_bytes + entry.response_bytes,
            Measure::Time => (entry.duration * 1e6) as u64,
            Measure::Errors => u64::from(entry.status >= 499),
        }
    }
}

/// The hottest names by one measure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct TopStatus {
    pub(crate) by: String,
    pub(crate) measure: String,
    /// The time that the values are of; 0 where counting begins with this question.
    pub(crate) seconds: f64,
    /// One request of so many is counted at present, and stands for the others.
    pub(crate) one_of: u32,
    /// The sum over all names: bytes, microseconds, or a number.
    pub(crate) total: u64,
    pub(crate) rows: Vec<TopRow>,
}

/// A name with its value, which is too high by at most `excess`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct TopRow {
    pub(crate) name: String,
    pub(crate) value: u64,
    pub(crate) excess: u64,
}

/// The counters of the hottest names.
pub(crate) struct Top {
    watched: Watched,
    /// One request of so many is counted; 0 while nothing is.
    period: AtomicU32,
    samples: AtomicU64,
    tables: Mutex<Option<Tables>>,
}

/// A table for each pair of a name and a measure, for two windows.
struct Tables {
    asked: Instant,
    began: Instant,
    /// The begin of the later window.
    turned: Instant,
    earlier: Vec<Summary>,
    later: Vec<Summary>,
}

fn empty() -> Vec<Summary> {
    (0..By::ALL.len() * Measure::ALL.len()).map(|_| Summary::new(COUNTERS)).collect()
}

fn place(by: By, measure: Measure) -> usize {
    by as usize * Measure::ALL.len() + measure as usize
}

impl Top {
    pub(super) fn new(watched: Watched) -> Top {
        Top { watched, period: AtomicU32::new(0), samples: AtomicU64::new(0), tables: Mutex::default() }
    }

    /// Returns the hottest names, at most `most`. Counting begins with the first question.
    pub(crate) fn ask(&self, by: By, measure: Measure, most: usize, now: Instant) -> TopStatus {
        let mut guard = self.tables.lock();
        if guard.is_none() {
            self.period.store(1, Ordering::Relaxed);
            self.watched.begin();
        }
        let tables = guard.get_or_insert_with(|| Tables {
            asked: now,
            began: now,
            turned: now,
            earlier: empty(),
            later: empty(),
        });
        tables.asked = now;
        let (earlier, later) = (&tables.earlier[place(by, measure)], &tables.later[place(by, measure)]);
        let row = |counter: space_saving::Counter| TopRow {
            name: counter.name.to_string(),
            value: counter.value,
            excess: counter.excess,
        };
        TopStatus {
            by: by.word().to_owned(),
            measure: measure.word().to_owned(),
            seconds: now.saturating_duration_since(tables.began).as_secs_f64(),
            one_of: self.period.load(Ordering::Relaxed),
            total: earlier.total() + later.total(),
            rows: Summary::largest_of(earlier, later, most).into_iter().map(row).collect(),
        }
    }

    /// Counts a request, if it is its turn. A request is left out where another worker counts at this moment.
    pub(super) fn observe(&self, entry: &Entry<'_>, skipped: &Skipped) {
        let period = self.period.load(Ordering::Relaxed);
        if period == 0 {
            return;
        }
        let left = skipped.0.get();
        if left > 0 && left < period.saturating_mul(2) {
            skipped.0.set(left - 1);
            return;
        }
        // At random, so that a rhythm of the requests is not the rhythm of the samples.
        skipped.0.set(fastrand::u32(0..period * 2 - 1));
        self.samples.fetch_add(1, Ordering::Relaxed);
        if let Some(mut tables) = self.tables.try_lock()
            && let Some(tables) = &mut *tables
        {
            count(&mut tables.later, entry, u64::from(period));
        }
    }

    /// Adapts the period, turns the windows, and ends the counting once no reader asks; called every [`UPKEEP`].
    pub(crate) fn tend(&self, now: Instant) {
        let samples = self.samples.swap(0, Ordering::Relaxed);
        let mut guard = self.tables.lock();
        let Some(tables) = &mut *guard else { return };
        if now.saturating_duration_since(tables.asked) >= PATIENCE {
            self.period.store(0, Ordering::Relaxed);
            self.watched.end();
            *guard = None;
            return;
        }
        let period = self.period.load(Ordering::Relaxed);
        let period = match samples {
            MANY.. => (period * 2).min(MAX_PERIOD),
            ..FEW => (period / 2).max(1),
            _ => period,
        };
        self.period.store(period, Ordering::Relaxed);
        if now.saturating_duration_since(tables.turned) >= WINDOW {
            tables.began = tables.turned;
            tables.turned = now;
            tables.earlier = std::mem::replace(&mut tables.later, empty());
        }
    }
}

fn count(tables: &mut [Summary], entry: &Entry<'_>, weight: u64) {
    let path = entry.uri.split('?').next().unwrap_or_default();
    let url = [cut(entry.host, MAX_NAME / 2), cut(path, MAX_NAME / 2)].concat();
    let key = entry.key.map(|key| format!("{} {key:016x}", entry.pool.unwrap_or_default()));
    let client = entry.client.to_string();
    for by in By::ALL {
        let name = match by {
            By::Key => match &key {
                Some(key) => key,
                None => continue,
            },
            By::Url => &url,
            By::Client => client.as_str(),
            By::Route => entry.route,
        };
        for measure in Measure::ALL {
            let amount = measure.of(entry);
            if amount > 0 {
                tables[place(by, measure)].add(name, amount * weight);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::access_log::tests::entry;
    use super::*;

    #[test]
    fn counting_begins_with_a_question_and_ends_without_one() {
        let (top, skipped, now) = (Top::new(Watched::default()), Skipped::default(), Instant::now());
        top.observe(&entry(), &skipped);
        assert_eq!(top.ask(By::Route, Measure::Requests, 9, now).rows, []);
        (0..3).for_each(|_| top.observe(&entry(), &skipped));
        let found = top.ask(By::Route, Measure::Requests, 9, now);
        assert_eq!((found.total, found.rows[0].name.as_str(), found.rows[0].value), (3, "site", 3));
        let by = |by, measure| {
            let found = top.ask(by, measure, 9, now).rows;
            found.first().map(|row| (row.name.clone(), row.value))
        };
        assert_eq!(by(By::Url, Measure::Time), Some(("example.com/a\"b".into(), 6000)));
        assert_eq!(by(By::Key, Measure::Bytes), Some(("app 00000000000000ab".into(), 15)));
        assert_eq!(by(By::Client, Measure::Errors), None);
        top.tend(now + PATIENCE);
        assert!(top.tables.lock().is_none() && top.period.load(Ordering::Relaxed) == 0);
    }

    #[test]
    fn two_windows_are_shown_and_older_ones_forgotten() {
        let (top, skipped, now) = (Top::new(Watched::default()), Skipped::default(), Instant::now());
        let asked = |at| top.ask(By::Route, Measure::Requests, 9, at).total;
        assert_eq!(asked(now), 0);
        top.observe(&entry(), &skipped);
        for (windows, total) in [(1, 1), (2, 0)] {
            let at = now + WINDOW * windows;
            asked(at);
            top.tend(at);
            assert_eq!(asked(at), total);
        }
    }

    /// The values of a sample are near the true ones.
    #[test]
    fn a_high_rate_is_sampled() {
        let (top, skipped, now) = (Top::new(Watched::default()), Skipped::default(), Instant::now());
        top.ask(By::Route, Measure::Requests, 9, now);
        for _ in 0..3 {
            (0..MANY * 8).for_each(|_| top.observe(&entry(), &skipped));
            top.tend(now);
        }
        let found = top.ask(By::Route, Measure::Requests, 9, now);
        assert_eq!(found.one_of, 8);
        let sent = (MANY * 8 * 3) as f64;
        assert!((found.total as f64 - sent).abs() < sent * 0.1, "{found:?}");
        top.tend(now);
        assert_eq!(top.period.load(Ordering::Relaxed), 4);
    }
}
