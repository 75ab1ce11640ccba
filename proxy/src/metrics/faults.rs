//! Faults that were injected.

use prometheus::{IntCounter, Opts, Registry};

/// Counts of faults.
pub struct Faults {
    delays: IntCounter,
    aborts: IntCounter,
}

impl Faults {
    /// Registers the metrics of this area.
    ///
    /// # Errors
    /// If a name is taken.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let help = "Faults injected into requests on purpose, by kind.";
        let faults = prometheus::IntCounterVec::new(Opts::new("heddle_faults_injected_total", help), &["fault"])?;
        registry.register(Box::new(faults.clone()))?;
        let of = |kind: &str| faults.with_label_values(&[kind]);
        Ok(Self { delays: of("delay"), aborts: of("abort") })
    }

    /// A request was held up.
    pub fn delayed(&self) {
        self.delays.inc();
    }

    /// A request was answered instead of sent.
    pub fn aborted(&self) {
        self.aborts.inc();
    }
}
