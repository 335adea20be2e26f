//! The durations and sizes of nginx and HAProxy, as a Ringway file writes them.

use crate::config::read::Field;
use crate::config::values::Size;
use std::time::Duration;

/// Returns a duration of nginx: `30`, `500ms`, `1m`, `1h30m`; without a unit it is in seconds.
pub(super) fn nginx_duration(text: &str) -> Option<Duration> {
    duration(
        text,
        1000,
        &[
            ("ms", 1),
            ("s", 1000),
            ("m", 60_000),
            ("h", 3_600_000),
            ("d", DAY),
            ("w", 7 * DAY),
            ("M", 30 * DAY),
            ("y", 365 * DAY),
        ],
    )
}

/// Returns a duration of HAProxy: `30s`, `500`; without a unit it is in milliseconds.
pub(super) fn haproxy_duration(text: &str) -> Option<Duration> {
    duration(text, 1, &[("us", 0), ("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", DAY)])
}

/// In milliseconds.
const DAY: u64 = 86_400_000;

/// `bare`: the milliseconds of a number without a unit.
fn duration(text: &str, bare: u64, units: &[(&str, u64)]) -> Option<Duration> {
    let (mut total, mut rest) = (0u64, text);
    if text.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|char: char| !char.is_ascii_digit()).unwrap_or(rest.len());
        let (number, tail) = rest.split_at(end);
        let number: u64 = number.parse().ok()?;
        let length = tail.find(|char: char| char.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(length);
        let factor = if unit.is_empty() { bare } else { units.iter().find(|(name, _)| *name == unit)?.1 };
        total = total.checked_add(number.checked_mul(factor)?)?;
        rest = tail;
    }
    Some(Duration::from_millis(total))
}

/// Returns a size in bytes: `8k`, `10m`, `1g`, `512`.
pub(super) fn size(text: &str) -> Option<u64> {
    let end = text.find(|char: char| !char.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor = match unit {
        "" => 1,
        "k" | "K" => 1 << 10,
        "m" | "M" => 1 << 20,
        "g" | "G" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// Returns a duration as a Ringway file writes it, within two bounds.
pub(super) fn shown_duration(duration: Duration, least: Duration, most: Duration) -> String {
    duration.clamp(least, most).show().as_str().unwrap_or_default().to_owned()
}

/// Returns a size as a Ringway file writes it.
pub(super) fn shown_size(bytes: u64) -> String {
    Size(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_have_their_units() {
        let shown = |duration: Option<Duration>| {
            duration.map(|duration| shown_duration(duration, Duration::ZERO, Duration::from_secs(365 * 86_400)))
        };
        for (text, expected) in
            [("30", "30s"), ("500ms", "500ms"), ("1h30m", "90m"), ("1M", "30d"), ("2y", "365d"), ("0", "0s")]
        {
            assert_eq!(shown(nginx_duration(text)).as_deref(), Some(expected), "{text}");
        }
        for (text, expected) in [("5000", "5s"), ("10s", "10s"), ("1d", "1d"), ("100us", "0s")] {
            assert_eq!(shown(haproxy_duration(text)).as_deref(), Some(expected), "{text}");
        }
        for text in ["", "s", "1x", "-1", "99999999999999999999", "9999999999999999999d"] {
            assert_eq!((nginx_duration(text), haproxy_duration(text)), (None, None), "{text}");
        }
        for (text, expected) in [("8k", "8KiB"), ("1g", "1GiB"), ("1500", "1500B"), ("10m", "10MiB"), ("1024m", "1GiB")]
        {
            assert_eq!(size(text).map(shown_size).as_deref(), Some(expected), "{text}");
        }
        assert!(size("1t").is_none() && size("m").is_none() && size("99999999999999999g").is_none());
    }
}
