//! Values with units: `250ms`, `64KiB`, `20%`.

use std::time::Duration;

/// Returns a duration from a whole number with `ms`, `s`, `m`, `h` or `d`, or several of them in a row (`1h30m`). `0`
/// needs no unit.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    const EXPECTED: &str = "a duration like `250ms`, `2s`, `5m` or `1h`";
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    if rest.is_empty() {
        return Err(EXPECTED.into());
    }
    while !rest.is_empty() {
        let (number, unit, tail) = split_quantity(rest).ok_or(EXPECTED)?;
        let milliseconds: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(EXPECTED.into()),
        };
        let part = number.checked_mul(milliseconds).ok_or("a duration of at most 100 years")?;
        total += Duration::from_millis(part.min(MAX_MILLISECONDS + 1));
        if total > Duration::from_millis(MAX_MILLISECONDS) {
            return Err("a duration of at most 100 years".into());
        }
        rest = tail;
    }
    Ok(total)
}

const MAX_MILLISECONDS: u64 = 100 * 365 * 86_400_000;

/// Returns a size in bytes from a whole number with `B`, `KiB`, `MiB`, `GiB`, or the decimal `KB`, `MB`, `GB`. `0`
/// needs no unit.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    const EXPECTED: &str = "a size like `64KiB`, `10MiB` or `1GiB`";
    if text == "0" {
        return Ok(0);
    }
    let (number, unit, rest) = split_quantity(text).ok_or(EXPECTED)?;
    let factor: u64 = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "KB" | "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return Err(EXPECTED.into()),
    };
    if !rest.is_empty() {
        return Err(EXPECTED.into());
    }
    number.checked_mul(factor).filter(|&bytes| bytes <= i64::MAX as u64).ok_or_else(|| "a size below 8 EiB".into())
}

/// `12ms34s` to (12, "ms", "34s").
fn split_quantity(text: &str) -> Option<(u64, &str, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number = text[..digits].parse().ok()?;
    let rest = &text[digits..];
    let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
    Some((number, &rest[..unit], &rest[unit..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, milliseconds) in [
            ("0", 0),
            ("0s", 0),
            ("250ms", 250),
            ("2s", 2_000),
            ("5m", 300_000),
            ("1h30m", 5_400_000),
            ("2d", 172_800_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "5", "s", "-1s", "+1s", "1.5s", "1 s", "1sec", "1s ", "99999999999999999999s", "999999999d"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [("0", 0), ("1B", 1), ("64KiB", 65_536), ("1GiB", 1 << 30), ("2MB", 2_000_000)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "64", "KiB", "-1KiB", "1.5MiB", "1kib", "1KiB2", "99999999GiB1", "99999999999GiB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
