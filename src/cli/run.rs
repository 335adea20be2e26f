//! `ringway run`

use super::Outcome;
use crate::config::{self, Config, ProcessLogFormat};
use crate::server::{self, Inherited};
use crate::telemetry::process_log;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The longest wait, at the end of the process, for the reader of the log.
const LAST_MOMENT: Duration = Duration::from_millis(200);

pub(super) fn run(file: Option<PathBuf>) -> Outcome {
    let inherited = Inherited::take()?;
    let loaded = config::locate(file).and_then(|file| Config::read(&file).and_then(|text| Config::of(&file, &text)));
    let (config, report) = match loaded {
        Ok(loaded) => loaded,
        Err(report) => {
            eprint!("{report}");
            return Ok(ExitCode::FAILURE);
        }
    };
    let is_json = config.settings.process_log.format == ProcessLogFormat::Json;
    process_log::init(is_json)?;
    match is_json && report.warnings() > 0 {
        true => tracing::warn!("{report}"),
        false => eprint!("{report}"),
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(serve(config, inherited));
    // A new binary that is just being started is not waited for.
    runtime.shutdown_background();
    process_log::flush(LAST_MOMENT);
    outcome
}

async fn serve(config: Config, inherited: Inherited) -> Outcome {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut upgrade = signal(SignalKind::user_defined2())?;
    // A file that may not grow (`ulimit -f`) is an error of that file, and not the end of the proxy.
    let _too_large = signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?;
    let file = config.file.display().to_string();
    let running = server::start(config, inherited).await?;
    for (name, address) in running.listeners() {
        tracing::info!(%address, listener = &*name, "listening");
    }
    tracing::info!(admin = %running.admin(), workers = running.workers(), file, "serving");

    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            () = running.drain_requested() => break,
            () = running.replaced() => break,
            _ = hangup.recv() => running.reload(),
            _ = upgrade.recv() => running.upgrade(),
        }
    }
    let quiet = tokio::select! {
        quiet = running.drain() => quiet,
        _ = terminate.recv() => false,
        _ = interrupt.recv() => false,
        () = ignore(&mut hangup) => false,
        () = ignore(&mut upgrade) => false,
    };
    match quiet {
        true => tracing::info!("every request has ended"),
        false => tracing::warn!("stopped with requests in flight"),
    }
    Ok(ExitCode::SUCCESS)
}

/// There is nothing to reload or to replace on the way out, and the signal must not end it.
async fn ignore(signal: &mut Signal) {
    while signal.recv().await.is_some() {}
    std::future::pending().await
}
