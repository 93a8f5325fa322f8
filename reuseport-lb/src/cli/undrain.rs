//! `undrain`

use std::path::Path;

use clap::Args;

use super::{env::Env, render, target};
use crate::{config::values, control::client::Client, group::WorkerId};

/// Give a drained worker new connections again; start it when it is down
#[derive(Debug, Args)]
pub(super) struct Undrain {
    /// The worker's number
    #[arg(value_parser = values::worker_id)]
    worker: WorkerId,
    #[command(flatten)]
    group: target::Group,
    /// Print the worker as JSON
    #[arg(long)]
    json: bool,
}

impl Undrain {
    pub(super) async fn run(self, control: &Path, env: &mut Env<'_>) -> anyhow::Result<()> {
        let worker = Client::new(control).undrain(self.group.name(), self.worker).await?;
        if self.json {
            return Ok(render::json(env, &worker)?);
        }
        writeln!(env.out, "{}", render::worker(&worker))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::{cli::testing::run, control::testing::FakeDaemon};

    #[tokio::test]
    async fn a_drained_worker_comes_back() {
        let daemon = FakeDaemon::start();
        let control = daemon.socket();
        run(&control, &["drain", "1"]).await.printed();
        assert_eq!(run(&control, &["undrain", "1"]).await.printed(), "worker 1 is active\n");
        let json = run(&control, &["undrain", "1", "--json"]).await.printed();
        let worker: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!((&worker["id"], &worker["state"]), (&1.into(), &"active".into()));
    }
}
