//! `shutdown`

use std::path::Path;

use clap::Args;
use tokio::time::sleep;

use super::{env::Env, progress::Progress};
use crate::control::{
    Status,
    client::{Client, Error},
};

/// End the daemon and its workers, and remove everything that it made
///
/// The workers are told to stop, and get the daemon's --grace to finish their connections.
#[derive(Debug, Args)]
pub(super) struct Shutdown {
    /// Return at once, not when the daemon is gone
    #[arg(long)]
    no_wait: bool,
}

impl Shutdown {
    pub(super) async fn run(self, control: &Path, env: &mut Env<'_>) -> anyhow::Result<()> {
        let client = Client::new(control);
        let Status { pid, .. } = client.status().await?;
        client.shutdown().await?;
        if self.no_wait {
            writeln!(env.out, "the daemon (pid {pid}) is shutting down")?;
            return Ok(());
        }
        let look_again = env.look_again;
        let mut progress = Progress::new(env, false);
        loop {
            match client.status().await {
                // Another daemon has started since.
                Ok(status) if status.pid != pid => break,
                Ok(status) => progress.show(&left(&status))?,
                Err(Error::NoDaemon { .. }) => break,
                // It went while it answered, or it does not answer any more; the next look will tell.
                Err(Error::Broken { .. } | Error::Refused { .. }) => {}
                Err(e) => return Err(e.into()),
            }
            sleep(look_again).await;
        }
        progress.show(&format!("the daemon (pid {pid}) is gone"))?;
        Ok(())
    }
}

/// What still keeps the daemon.
fn left(status: &Status) -> String {
    let workers = || status.groups.iter().chain(&status.leaving).flat_map(|group| &group.workers);
    let running = workers().filter(|worker| worker.pid.is_some()).count();
    let active: u64 = workers().map(|worker| worker.connections.active).sum();
    format!("shutting down: {running} workers, {active} active connections")
}

#[cfg(test)]
mod tests {
    use crate::{cli::testing::run, control::testing::FakeDaemon};

    #[tokio::test]
    async fn it_returns_when_the_daemon_is_gone() {
        let daemon = FakeDaemon::start();
        let printed = run(&daemon.socket(), &["shutdown"]).await.printed();
        let last = printed.lines().last();
        assert_eq!(last, Some(format!("the daemon (pid {}) is gone", std::process::id()).as_str()));
        assert!(!daemon.socket().exists());
    }

    #[tokio::test]
    async fn with_no_wait_it_returns_at_once() {
        let daemon = FakeDaemon::start();
        assert_eq!(
            run(&daemon.socket(), &["shutdown", "--no-wait"]).await.printed(),
            format!("the daemon (pid {}) is shutting down\n", std::process::id())
        );
    }
}
