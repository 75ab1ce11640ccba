//! The log: text or JSON on standard error, its filter changeable while running.

use std::sync::OnceLock;

use clap::ValueEnum;
use serde::Serialize;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Begins logging with `filter`, in `tracing`'s syntax. A second call changes the filter only.
///
/// # Errors
/// If the filter cannot be read.
pub fn start(filter: &str, format: LogFormat) -> Result<(), Error> {
    let parsed = EnvFilter::try_new(filter)?;
    let (layer, handle) = reload::Layer::new(parsed);
    if FILTER.set(handle).is_err() {
        return set_filter(filter);
    }
    let registry = tracing_subscriber::registry().with(layer);
    // An embedding program may have begun a log of its own; it stays.
    let _ = match format {
        LogFormat::Text => registry.with(fmt::layer().with_writer(std::io::stderr)).try_init(),
        LogFormat::Json => registry.with(fmt::layer().json().with_writer(std::io::stderr)).try_init(),
    };
    Ok(())
}

/// The filter in force.
pub fn filter() -> String {
    let current = FILTER.get().and_then(|handle| handle.with_current(ToString::to_string).ok());
    current.unwrap_or_else(|| "off".to_owned())
}

/// Changes the filter.
///
/// # Errors
/// If the filter cannot be read, or logging was not begun.
pub fn set_filter(filter: &str) -> Result<(), Error> {
    let handle = FILTER.get().ok_or(Error::NotStarted)?;
    handle.reload(EnvFilter::try_new(filter)?)?;
    Ok(())
}

/// Why a filter is not in force.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("{0}; right would be `info` or `heddle_proxy=debug`")]
    Syntax(#[from] tracing_subscriber::filter::ParseError),
    /// Nobody logs.
    #[error("this process does not log")]
    NotStarted,
    /// The log has ended.
    #[error(transparent)]
    Reload(#[from] reload::Error),
}
