//! Metrics for Prometheus, made of the same [`Status`] that the command `status` shows.
//!
//! `table` declares each metric once; what is exported and `docs/METRICS.md` both come from there. Nothing is kept
//! between two scrapes, so metrics that nobody reads cost nothing.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, prometheus_text, text},
    registry::Registry,
};

use crate::control::Status;

mod reference;
mod table;

pub use reference::reference;

/// What the names of all metrics begin with.
const PREFIX: &str = "reuseport_lb";

/// How metrics are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// [OpenMetrics 1.0](https://prometheus.io/docs/specs/om/open_metrics_spec/), which Prometheus asks for.
    OpenMetrics,
    /// [Prometheus' own](https://prometheus.io/docs/instrumenting/exposition_formats/), which everything reads.
    Prometheus,
}

impl Format {
    /// The format for a request with this header `Accept`.
    pub fn accepted(accept: Option<&str>) -> Self {
        match accept {
            Some(accept) if accept.contains("application/openmetrics-text") => Self::OpenMetrics,
            _ => Self::Prometheus,
        }
    }

    /// The header `Content-Type`.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// All metrics, as text.
///
/// # Errors
///
/// None that is known: memory can always be written.
pub fn render(status: Status, format: Format) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix(PREFIX);
    registry.register_collector(Box::new(Scrape(status)));
    let mut text = String::new();
    match format {
        Format::OpenMetrics => text::encode(&mut text, &registry)?,
        Format::Prometheus => prometheus_text::encode(&mut text, &registry)?,
    }
    Ok(text)
}

/// One look at everything.
#[derive(Debug)]
struct Scrape(Status);

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for metric in table::METRICS {
            metric.encode(&self.0, &mut encoder)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
