//! The proxy's own log. It goes to stderr, for stdout may carry the access log, by a thread of its own: where nobody
//! reads stderr, its lines are dropped and counted, and nobody waits.

use super::lines::{Destination, Lines};
use super::metrics::PROCESS_LOG_DROPPED;
use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::time::Duration;
use tracing_subscriber::EnvFilter;

/// Messages that may wait to be written.
const QUEUE: usize = 4096;

static LINES: OnceLock<Lines> = OnceLock::new();

/// Begins to log. `RUST_LOG` chooses what.
///
/// # Errors
///
/// Fails where no thread can be started.
pub(crate) fn init() -> io::Result<()> {
    let lines = Lines::open("log", Destination::Stderr, QUEUE, |lines| PROCESS_LOG_DROPPED.inc_by(lines), |_| ())?;
    let lines = LINES.get_or_init(|| lines);
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| Message(lines))
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .init();
    // Also what a panic says must not wait for a reader.
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        tracing::error!(thread = thread.name().unwrap_or_default(), "{panic}");
        // It may be the last word of the process.
        flush(Duration::from_millis(100));
    }));
    Ok(())
}

/// Waits until what was logged is written, but not longer than this.
pub(crate) fn flush(within: Duration) {
    if let Some(lines) = LINES.get() {
        lines.flush(within);
    }
}

/// One message, which comes in one piece.
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
