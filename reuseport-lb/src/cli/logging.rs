//! The daemon's log, on standard error.

use std::io::{self, IsTerminal as _};

use anyhow::{Context as _, anyhow};
use tracing_subscriber::{
    EnvFilter, Layer as _, Registry, filter::LevelFilter, fmt::time::ChronoLocal, layer::SubscriberExt as _,
};

use crate::config::{BpfLogLevel, flags::LogFormat};

/// The target of what the BPF programs log: the crate that they are in.
const BPF_TARGET: &str = "reuseport_lb_ebpf";

/// Sets the log up. What is logged is what `RUST_LOG` says, or else everything from level info on.
///
/// # Errors
///
/// `RUST_LOG` is wrong.
pub(super) fn init(format: LogFormat, bpf_log: Option<BpfLogLevel>) -> anyhow::Result<()> {
    if tracing::dispatcher::has_been_set() {
        // Several commands in one process, as in tests, share the first one's log.
        return Ok(());
    }
    let mut filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .from_env()
        .map_err(|e| anyhow!("RUST_LOG is not a filter such as `info` or `reuseport_lb=debug`: {e}"))?;
    if let Some(level) = bpf_log {
        // aya-log speaks `log`, the rest of the program `tracing`.
        tracing_log::LogTracer::init().context("cannot set the log up")?;
        filter = filter.add_directive(format!("{BPF_TARGET}={}", level_word(level)).parse()?);
    }
    let lines = match format {
        LogFormat::Json => tracing_subscriber::fmt::layer().json().with_writer(io::stderr).boxed(),
        LogFormat::Text => tracing_subscriber::fmt::layer()
            .with_timer(ChronoLocal::new("%H:%M:%S".into()))
            .with_target(false)
            .with_ansi(wants_colour())
            .with_writer(io::stderr)
            .boxed(),
    };
    tracing::subscriber::set_global_default(Registry::default().with(lines.with_filter(filter)))
        .context("cannot set the log up")
}

/// See <https://no-color.org>.
fn wants_colour() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn level_word(level: BpfLogLevel) -> &'static str {
    match level {
        BpfLogLevel::Error => "error",
        BpfLogLevel::Warn => "warn",
        BpfLogLevel::Info => "info",
        BpfLogLevel::Debug => "debug",
        BpfLogLevel::Trace => "trace",
    }
}
