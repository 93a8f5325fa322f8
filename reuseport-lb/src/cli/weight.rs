//! `weight`

use std::path::Path;

use clap::Args;

use super::{env::Env, render, target};
use crate::{config::values, control::client::Client, group::WorkerId};

/// Change a worker's share of new connections
#[derive(Debug, Args)]
pub(super) struct Weight {
    /// The worker's number
    #[arg(value_parser = values::worker_id)]
    worker: WorkerId,
    /// The new weight, 1 to 256; a worker of weight 2 gets twice what one of weight 1 gets
    #[arg(value_parser = values::weight)]
    weight: u16,
    #[command(flatten)]
    group: target::Group,
    /// Print the worker as JSON
    #[arg(long)]
    json: bool,
}

impl Weight {
    pub(super) async fn run(self, control: &Path, env: &mut Env<'_>) -> anyhow::Result<()> {
        let client = Client::new(control);
        let before = self.group.find_worker(&client.status().await?, self.worker)?.weight;
        let worker = client.set_weight(self.group.name(), self.worker, self.weight).await?;
        if self.json {
            return Ok(render::json(env, &worker)?);
        }
        writeln!(env.out, "worker {} has weight {}, was {before}", worker.id, worker.weight)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::{cli::testing::run, control::testing::FakeDaemon};

    #[tokio::test]
    async fn the_weight_changes() {
        let daemon = FakeDaemon::start();
        let control = daemon.socket();
        assert_eq!(
            run(&control, &["weight", "1", "256"]).await.printed(),
            "worker 1 has weight 256, was 1\n"
        );
        let json = run(&control, &["weight", "1", "2", "--json"]).await.printed();
        let worker: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!((&worker["id"], &worker["weight"]), (&1.into(), &2.into()));
    }
}
