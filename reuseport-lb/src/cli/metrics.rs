//! `metrics`

use std::path::Path;

use clap::Args;

use super::env::Env;
use crate::{control::client::Client, stats};

/// Print the metrics as Prometheus reads them
#[derive(Debug, Args)]
pub(super) struct Metrics {
    /// Print what metrics there are and what they mean, as Markdown; needs no daemon
    #[arg(long)]
    describe: bool,
}

impl Metrics {
    pub(super) async fn run(self, control: &Path, env: &mut Env<'_>) -> anyhow::Result<()> {
        let text = if self.describe { stats::reference() } else { Client::new(control).metrics().await? };
        env.out.write_all(text.as_bytes())?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::{cli::testing::run, control::testing::FakeDaemon, stats};

    #[tokio::test]
    async fn metrics_are_printed_as_they_are_scraped() {
        let daemon = FakeDaemon::start();
        let printed = run(&daemon.socket(), &["metrics"]).await.printed();
        let sample = "\nreuseport_lb_worker_active_connections{group=\"default\",worker=\"1\"} 5\n";
        assert!(printed.contains(sample), "{printed}");
    }

    #[tokio::test]
    async fn the_description_needs_no_daemon() {
        let printed = run(Path::new("/nowhere"), &["metrics", "--describe"]).await.printed();
        assert_eq!(printed, stats::reference());
    }
}
