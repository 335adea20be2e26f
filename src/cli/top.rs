//! `ringway top`: the hottest keys, URLs, clients or routes of a running proxy.

use super::Outcome;
use super::api::Target;
use crate::control::TopStatus;
use serde_json::Value as Json;
use std::io::{self, IsTerminal, Write, stdout};
use std::process::ExitCode;
use std::time::Duration;

/// The time that is counted before the first answer, where counting begins with the question.
const COUNT_FOR: Duration = Duration::from_secs(3);
/// The period of `--watch`.
const EVERY: Duration = Duration::from_secs(2);

#[derive(clap::Args)]
pub(super) struct Options {
    #[command(flatten)]
    target: Target,
    /// The kind of the listed names
    #[arg(long, default_value = "url", value_parser = ["key", "url", "client", "route"])]
    by: String,
    /// The measure that orders them
    #[arg(long, default_value = "requests", value_parser = ["requests", "bytes", "time", "errors"])]
    measure: String,
    /// The number of rows
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=200))]
    limit: u16,
    /// Show them anew every two seconds
    #[arg(long)]
    watch: bool,
    /// Print JSON; with `--watch` a line each time
    #[arg(long)]
    json: bool,
}

pub(super) fn run(options: &Options) -> Outcome {
    let path = format!("/api/top?by={}&measure={}&limit={}", options.by, options.measure, options.limit);
    let first: TopStatus = options.target.get(&path)?;
    if first.seconds < COUNT_FOR.as_secs_f64() {
        eprintln!("counting for {} s", COUNT_FOR.as_secs());
        std::thread::sleep(COUNT_FOR);
    }
    loop {
        let found: Json = options.target.get(&path)?;
        let mut out = stdout().lock();
        match (options.json, options.watch) {
            (true, true) => writeln!(out, "{found}")?,
            (true, false) => writeln!(out, "{found:#}")?,
            (false, watch) => {
                if watch && out.is_terminal() {
                    write!(out, "\x1b[2J\x1b[H")?;
                }
                print(&mut out, &serde_json::from_value(found)?)?;
            }
        }
        out.flush()?;
        drop(out);
        if !options.watch {
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(EVERY);
    }
}

fn print(out: &mut impl Write, found: &TopStatus) -> io::Result<()> {
    let TopStatus { by, measure, seconds, one_of, total, rows } = found;
    let sample = if *one_of > 1 { format!(", one request of {one_of} counted") } else { String::new() };
    writeln!(out, "{by}s by {measure}, the last {seconds:.0} s{sample}\n")?;
    if rows.is_empty() {
        return writeln!(out, "  nothing yet");
    }
    for row in rows {
        let share = row.value as f64 / (*total).max(1) as f64 * 100.0;
        let name: String = row.name.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
        // A name that took over the counter of another may have less.
        let about = if row.excess > 0 { "<=" } else { "" };
        writeln!(out, "  {:>14}  {share:>5.1} %  {name}", format!("{about}{}", shown(measure, row.value)))?;
    }
    Ok(())
}

fn shown(measure: &str, value: u64) -> String {
    match measure {
        "time" => format!("{:.3} s", value as f64 / 1e6),
        "bytes" => format!("{:.1} KiB", value as f64 / 1024.0),
        _ => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_row_tells_what_is_not_exact() {
        let found: TopStatus = serde_json::from_value(json!({
            "by": "url", "measure": "requests", "seconds": 61.2, "one_of": 4, "total": 400,
            "rows": [{ "name": "example.com/a", "value": 300, "excess": 0 }, { "name": "b\u{7}", "value": 8, "excess": 4 }],
        }))
        .unwrap();
        let mut out = Vec::new();
        print(&mut out, &found).unwrap();
        let expected = "urls by requests, the last 61 s, one request of 4 counted\n\n             300   75.0 %  example.com/a\n             <=8    2.0 %  b\u{fffd}\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
