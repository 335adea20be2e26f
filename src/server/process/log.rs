//! The access log of a configuration.

use crate::config::{Config, LogFormat};
use crate::telemetry::access_log::{Format, Selection, Sink};
use crate::telemetry::lines::Destination;
use crate::telemetry::metrics::Metrics;
use std::io;
use std::sync::Arc;

/// An access log that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the access log `{path}`: {cause}")]
pub(crate) struct LogError {
    path: String,
    cause: io::Error,
}

/// Opens the access log of a configuration; `None` where it has none.
pub(super) fn open_log(config: &Config, metrics: &Metrics) -> Result<Option<Arc<Sink>>, LogError> {
    let settings = &config.settings.access_log;
    let format = match settings.format {
        LogFormat::Off => return Ok(None),
        LogFormat::Json => Format::Json,
        LogFormat::Common => Format::Common,
    };
    let (destination, path) = match settings.path.as_str() {
        "stdout" => (Destination::Stdout, "stdout".to_owned()),
        "stderr" => (Destination::Stderr, "stderr".to_owned()),
        file => {
            let path = config.path(file);
            (Destination::File(path.clone()), path.display().to_string())
        }
    };
    let selection = Selection {
        fields: settings.fields.iter().map(|field| field.word()).collect(),
        left_out: 1.0 - settings.sample.ratio(),
        slow: settings.slow.as_secs_f64(),
    };
    let sink = Sink::open(format, selection, destination, metrics.access_log_dropped.clone());
    sink.map(|sink| Some(Arc::new(sink))).map_err(|cause| LogError { path, cause })
}
