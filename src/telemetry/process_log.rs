//! The process log. It goes to stderr, as stdout may carry the access log, through a thread of its own: if the reader
//! of stderr stalls, lines are dropped and counted, and no caller waits.

use super::lines::{Destination, Lines};
use super::metrics::PROCESS_LOG_DROPPED;
use serde_json::{Map, Value};
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::time::Duration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

/// The most messages in the queue.
const QUEUE: usize = 4096;

static LINES: OnceLock<Lines> = OnceLock::new();

/// Starts the log; with `is_json` each event is a JSON object on a line of its own. `RUST_LOG` sets the level.
///
/// # Errors
///
/// Fails where no thread can be started.
pub(crate) fn init(is_json: bool) -> io::Result<()> {
    let lines = Lines::open("log", Destination::Stderr, QUEUE, |lines| PROCESS_LOG_DROPPED.inc_by(lines), |_| ())?;
    let lines = LINES.get_or_init(|| lines);
    let levels = levels(std::env::var("RUST_LOG").ok().as_deref());
    let layer = tracing_subscriber::fmt::layer().with_writer(|| Message(lines));
    let registry = tracing_subscriber::registry().with(levels);
    match is_json {
        true => registry.with(layer.event_format(JsonEvents)).init(),
        false => registry.with(layer.with_ansi(io::stderr().is_terminal()).with_target(false)).init(),
    }
    // The message of a panic must not wait for a reader either.
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        tracing::error!(thread = thread.name().unwrap_or_default(), "{panic}");
        // It may be the last message of the process.
        flush(Duration::from_millis(100));
    }));
    Ok(())
}

/// Returns the levels that `RUST_LOG` sets, such as `debug` or `info,ringway::upstream=debug`: `info` where it is absent,
/// empty or no list of levels.
fn levels(variable: Option<&str>) -> Targets {
    let set = variable.filter(|text| !text.trim().is_empty()).and_then(|text| text.parse().ok());
    set.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO))
}

/// Waits until all messages are written, or until the timeout.
pub(crate) fn flush(within: Duration) {
    if let Some(lines) = LINES.get() {
        lines.flush(within);
    }
}

/// The format of an event as a JSON object: `time`, `level`, `message` and the event's own fields.
struct JsonEvents;

impl<S, N> FormatEvent<S, N> for JsonEvents
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let time = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
        let level = event.metadata().level().as_str().to_ascii_lowercase();
        let mut object = Object(Map::from_iter([("time".to_owned(), time.into()), ("level".to_owned(), level.into())]));
        event.record(&mut object);
        writeln!(writer, "{}", Value::Object(object.0))
    }
}

/// The fields of an event.
struct Object(Map<String, Value>);

impl Object {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Object {
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }
}

/// One message, which is written at once.
struct Message(&'static Lines);

impl Write for Message {
    fn write(&mut self, message: &[u8]) -> io::Result<usize> {
        self.0.write(message.to_vec());
        Ok(message.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn the_variable_sets_the_levels() {
        let most = |variable, target| {
            let levels = levels(variable);
            [Level::TRACE, Level::DEBUG, Level::INFO, Level::WARN, Level::ERROR]
                .into_iter()
                .find(|level| levels.would_enable(target, level))
        };
        for (variable, ringway, hyper) in [
            (None, Some(Level::INFO), Some(Level::INFO)),
            (Some(""), Some(Level::INFO), Some(Level::INFO)),
            (Some("no=such=level"), Some(Level::INFO), Some(Level::INFO)),
            (Some("debug"), Some(Level::DEBUG), Some(Level::DEBUG)),
            (Some("warn,ringway::upstream=trace"), Some(Level::TRACE), Some(Level::WARN)),
            (Some("ringway=error"), Some(Level::ERROR), None),
        ] {
            let found = (most(variable, "ringway::upstream::link"), most(variable, "hyper::proto"));
            assert_eq!(found, (ringway, hyper), "{variable:?}");
        }
    }
}
