//! The queries of `GET /api/tap` and `GET /api/top`, as filters and questions.

use crate::config::duration;
use crate::http::problem::{Problem, ProblemKind};
use crate::telemetry::tap::{Filter, MAX_RATE, Sampling, StatusFilter};
use crate::telemetry::top::{By, Measure};
use ipnet::IpNet;
use percent_encoding::percent_decode_str;
use std::net::IpAddr;

/// The rows of `GET /api/top` without `limit`, and the most of them.
const DEFAULT_ROWS: usize = 20;
const MAX_ROWS: usize = 200;
/// The parameters of `GET /api/tap`.
/// The most codes and classes of a status filter.
const MAX_STATUSES: usize = 32;

const OF_TAP: &str =
    "route, pool, node, method, host, path, client, status, min, cache, idempotency, key, key_hash, sample, rate";

/// Returns the parameters of a query, percent-decoded.
pub(super) fn pairs(query: Option<&str>) -> Vec<(String, String)> {
    let decoded = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (decoded(name), decoded(value)))
        .collect()
}

fn bad(detail: String) -> Problem {
    Problem::new(ProblemKind::BadFilter, detail)
}

/// Returns the requests that a reader wants. `places` returns the places of a key on the rings.
pub(super) fn tap(query: Option<&str>, places: impl Fn(&str) -> Vec<u64>) -> Result<(Filter, Sampling), Problem> {
    let (mut filter, mut sampling) = (Filter::default(), Sampling::default());
    for (name, value) in pairs(query) {
        let expected = |what: &str| bad(format!("expected {what} for `{name}`, found `{value}`"));
        match name.as_str() {
            "route" => filter.route = Some(value),
            "pool" => filter.pool = Some(value),
            "node" => filter.node = Some(value),
            "method" => filter.method = Some(value),
            "host" => filter.host = Some(value),
            "path" => filter.path = Some(value),
            "cache" => filter.cache = Some(value),
            "idempotency" => filter.idempotency = Some(value),
            "client" => {
                let network = value.parse::<IpAddr>().map(IpNet::from).or_else(|_| value.parse());
                filter.client = Some(network.map_err(|_| expected("an address or a network like `10.0.0.0/8`"))?);
            }
            "status" => {
                let all: Option<Vec<StatusFilter>> = value.split(',').map(StatusFilter::parse).collect();
                filter.status.extend(all.ok_or_else(|| expected("codes and classes like `404,5xx`"))?);
                // Each finished request is compared with all of them.
                if filter.status.len() > MAX_STATUSES {
                    return Err(bad(format!("expected at most {MAX_STATUSES} codes and classes in `status`")));
                }
            }
            "min" => {
                let least = duration(&value).map_err(|what| expected(&what))?;
                filter.min_duration = Some(least.as_secs_f64());
            }
            "key" => filter.keys = Some(places(&value)),
            "key_hash" => {
                let place = u64::from_str_radix(&value, 16).ok().filter(|_| value.len() == 16);
                filter.keys = Some(vec![place.ok_or_else(|| expected("16 hexadecimal digits"))?]);
            }
            "sample" => {
                let share = value.parse().ok().filter(|share| (0.0..=1.0).contains(share));
                sampling.share = share.ok_or_else(|| expected("a share from 0 to 1"))?;
            }
            "rate" => {
                let rate = value.parse().ok().filter(|rate| (1..=MAX_RATE).contains(rate));
                sampling.rate = rate.ok_or_else(|| expected(&format!("a number from 1 to {MAX_RATE}")))?;
            }
            _ => return Err(bad(format!("`{name}` is not known; use one of {OF_TAP}"))),
        }
    }
    Ok((filter, sampling))
}

/// Returns the question for the hottest names.
pub(super) fn top(query: Option<&str>) -> Result<(By, Measure, usize), Problem> {
    let (mut by, mut measure, mut rows) = (By::Key, Measure::Requests, DEFAULT_ROWS);
    for (name, value) in pairs(query) {
        let expected = |what: &str| bad(format!("expected {what} for `{name}`, found `{value}`"));
        match name.as_str() {
            "by" => {
                let found = By::ALL.into_iter().find(|by| by.word() == value);
                by = found.ok_or_else(|| expected("one of key, url, client, route"))?;
            }
            "measure" => {
                let found = Measure::ALL.into_iter().find(|measure| measure.word() == value);
                measure = found.ok_or_else(|| expected("one of requests, bytes, time, errors"))?;
            }
            "limit" => {
                let found = value.parse().ok().filter(|rows| (1..=MAX_ROWS).contains(rows));
                rows = found.ok_or_else(|| expected(&format!("a number from 1 to {MAX_ROWS}")))?;
            }
            _ => return Err(bad(format!("`{name}` is not known; use one of by, measure, limit"))),
        }
    }
    Ok((by, measure, rows))
}

/// Returns the number of a parameter, or one of its own without it.
pub(super) fn number(query: Option<&str>, wanted: &str, without: u64) -> Result<u64, Problem> {
    let found = pairs(query).into_iter().find(|(name, _)| name == wanted);
    let Some((_, value)) = found else { return Ok(without) };
    value.parse().map_err(|_| bad(format!("expected a number for `{wanted}`, found `{value}`")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(query: &str) -> Result<(Filter, Sampling), String> {
        tap(Some(query), |key| vec![key.len() as u64]).map_err(|problem| problem.detail.into())
    }

    #[test]
    fn a_query_is_a_filter() {
        assert_eq!(filter(""), Ok((Filter::default(), Sampling::default())));
        let (found, sampling) =
            filter("route=a%20b&status=404,5xx&client=10.0.0.1&min=250ms&key=four&sample=0.5&rate=10").unwrap();
        let expected = Filter {
            route: Some("a b".into()),
            status: vec![StatusFilter::Code(404), StatusFilter::Class(5)],
            client: Some("10.0.0.1/32".parse().unwrap()),
            min_duration: Some(0.25),
            keys: Some(vec![4]),
            ..Filter::default()
        };
        assert_eq!((found, sampling), (expected, Sampling { share: 0.5, rate: 10 }));
        assert_eq!(filter("key_hash=00000000000000ff").unwrap().0.keys, Some(vec![255]));
        for bad in
            ["nod=a", "status=5", "status=", "client=a", "min=5", "key_hash=ff", "sample=2", "sample=NaN", "rate=0"]
        {
            assert!(filter(bad).unwrap_err().contains(bad.split('=').next().unwrap()), "{bad}");
        }
    }

    #[test]
    fn a_question_for_the_hottest_has_defaults() {
        assert!(matches!(top(None), Ok((By::Key, Measure::Requests, DEFAULT_ROWS))));
        assert!(matches!(top(Some("by=url&measure=time&limit=5")), Ok((By::Url, Measure::Time, 5))));
        for bad in ["by=node", "measure=heat", "limit=0", "limit=201", "sort=up"] {
            assert!(top(Some(bad)).is_err(), "{bad}");
        }
    }
}
