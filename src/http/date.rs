//! HTTP dates (RFC 9110 5.6.7), in seconds since 1970.

use http::HeaderValue;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Longer than all three formats.
const MAX_LENGTH: usize = 40;

const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// Returns the time of a date in any of the three formats. The grammar is case-sensitive, but recipients should be
/// lenient, so `gmt` and `AUG` are accepted; other zones or formats are not.
pub(crate) fn parse(value: &HeaderValue) -> Option<i64> {
    let text = value.to_str().ok()?.trim();
    if text.len() > MAX_LENGTH {
        return None;
    }
    let time = httpdate::parse_http_date(text).ok().or_else(|| lenient(&proper_case(text)))?;
    Some(since_1970(time))
}

/// Parses a date with a wrong day of the week, which is redundant.
fn lenient(text: &str) -> Option<SystemTime> {
    let (day, rest) = text.split_at(text.find(|letter: char| !letter.is_ascii_alphabetic())?);
    let is_short = day.len() == 3;
    let named = |name: &&str| if is_short { &name[..3] == day } else { *name == day };
    DAYS.iter().find(|name| named(name))?;
    DAYS.iter().find_map(|name| {
        let name = if is_short { &name[..3] } else { name };
        httpdate::parse_http_date(&[name, rest].concat()).ok()
    })
}

/// Returns `THU, 18 AUG 2050 02:01:18 gmt` in the case of the grammar.
fn proper_case(text: &str) -> String {
    let mut inside = false;
    let cased: String = text
        .chars()
        .map(|letter| {
            let shown = if inside { letter.to_ascii_lowercase() } else { letter.to_ascii_uppercase() };
            inside = letter.is_ascii_alphabetic();
            shown
        })
        .collect();
    cased.replace("Gmt", "GMT")
}

/// Returns a date in the preferred format.
pub(crate) fn format(seconds: i64) -> Option<HeaderValue> {
    let time = UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(seconds).ok()?))?;
    HeaderValue::try_from(httpdate::fmt_http_date(time)).ok()
}

fn since_1970(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        Err(before) => -i64::try_from(before.duration().as_secs()).unwrap_or(i64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_formats_are_read_and_no_other() {
        let read = |text: &str| parse(&HeaderValue::from_str(text).unwrap());
        for same in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
            "SUN, 06 NOV 1994 08:49:37 gmt",
            "sunday, 06-nov-94 08:49:37 GMT",
        ] {
            assert_eq!(read(same), Some(784_111_777), "{same}");
        }
        for future in ["Thursday, 18-Aug-50 02:01:18 GMT", "Thu Aug  8 02:01:18 2050", "Sun, 21 Nov 2286 04:46:39 GMT"]
        {
            assert!(read(future) > Some(2_500_000_000), "{future}");
        }
        for other in [
            "0",
            "",
            "foo",
            "Sun, 06 Nov 1994 08:49:37 UTC",
            "Sun, 06 Nov 1994 08:49:37 AEST",
            "Sun, 06 Nov 94 08:49:37 GMT",
            "Sun 06 Nov 1994 08:49:37 GMT",
            "Sun, 06  Nov  1994 08:49:37 GMT",
            "Sun, 06-Nov-1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08.49.37 GMT",
            "Sun, 06 Nov 1994 8:49:37 GMT",
        ] {
            assert_eq!(read(other), None, "{other}");
        }
    }

    #[test]
    fn what_is_written_is_read() {
        for seconds in [0, 784_111_777, 2_540_000_000, 10_000_000_000] {
            assert_eq!(parse(&format(seconds).unwrap()), Some(seconds));
        }
    }
}
