//! The log: text or JSON on standard error. Begun by [`crate::app::run`]; a program that embeds the control plane begins its
//! own.

use std::io::IsTerminal;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt};

use crate::config::LogFormat;

/// A filter that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("--log `{filter}`: {error}; right would be `info` or `heddle_control_plane=debug`")]
pub struct Error {
    filter: String,
    error: tracing_subscriber::filter::ParseError,
}

/// Begins logging. A log that was begun before stays.
///
/// # Errors
/// If the filter cannot be read.
pub fn start(filter: &str, format: LogFormat) -> Result<(), Error> {
    let parsed = EnvFilter::try_new(filter).map_err(|error| Error { filter: filter.to_owned(), error })?;
    let registry = tracing_subscriber::registry().with(parsed);
    let _ = match format {
        LogFormat::Json => registry.with(fmt::layer().json().with_writer(std::io::stderr)).try_init(),
        LogFormat::Text => {
            let colours = std::io::stderr().is_terminal();
            registry.with(fmt::layer().with_ansi(colours).with_writer(std::io::stderr)).try_init()
        }
    };
    Ok(())
}
