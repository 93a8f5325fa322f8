//! `detach`

use std::path::Path;

use clap::Args;
use tokio::time::sleep;

use super::{env::Env, progress::Progress};
use crate::control::{
    Status,
    client::{Client, Error},
};

/// End the daemon and leave its groups to the kernel; the workers go on
///
/// No connection is lost. From then on the kernel's own hash picks, nobody restarts workers, and what they write to a pipe
/// of the daemon's is read by nobody. `adopt` can steer them again.
#[derive(Debug, Args)]
pub(super) struct Detach {}

impl Detach {
    pub(super) async fn run(self, control: &Path, env: &mut Env<'_>) -> anyhow::Result<()> {
        let client = Client::new(control);
        let Status { pid, .. } = client.status().await?;
        client.detach().await?;
        let look_again = env.look_again;
        loop {
            match client.status().await {
                Ok(status) if status.pid != pid => break,
                Err(Error::NoDaemon { .. }) => break,
                Ok(_) | Err(Error::Broken { .. } | Error::Refused { .. }) => {}
                Err(e) => return Err(e.into()),
            }
            sleep(look_again).await;
        }
        Progress::new(env, false).show(&format!("the daemon (pid {pid}) is gone; its workers go on"))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::{cli::testing::run, control::testing::FakeDaemon};

    #[tokio::test]
    async fn it_returns_when_the_daemon_is_gone() {
        let daemon = FakeDaemon::start();
        let printed = run(&daemon.socket(), &["detach"]).await.printed();
        assert!(printed.ends_with("is gone; its workers go on\n"), "{printed}");
        assert!(!daemon.socket().exists());
    }
}
