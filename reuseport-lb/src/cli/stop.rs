//! `stop` and `start`

use std::{path::Path, time::Duration};

use anyhow::bail;
use clap::Args;
use tokio::time::sleep;

use super::{env::Env, progress::Progress, render, target};
use crate::{
    config::values,
    control::{DrainRequest, WorkerStatus, client::Client, milliseconds},
    group::{WorkerId, WorkerState},
};

/// Let a worker finish its connections and end; it stays down until start
#[derive(Debug, Args)]
pub(super) struct Stop {
    /// The worker's number
    #[arg(value_parser = values::worker_id)]
    worker: WorkerId,
    /// How long it may take to finish its connections, and as long again to end
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = values::duration)]
    timeout: Duration,
    /// Stop even the last eligible worker; new connections are then refused
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    waiting: Waiting,
}

/// Start a worker that is down
#[derive(Debug, Args)]
pub(super) struct Start {
    /// The worker's number
    #[arg(value_parser = values::worker_id)]
    worker: WorkerId,
    #[command(flatten)]
    waiting: Waiting,
}

/// How to follow a worker.
#[derive(Debug, Args)]
struct Waiting {
    /// Return at once, not when it is done
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    group: target::Group,
    /// Print the worker as JSON, in the end
    #[arg(long)]
    json: bool,
}

impl Stop {
    pub(super) async fn run(self, control: &Path, env: &mut Env<'_>) -> anyhow::Result<()> {
        let Self { worker: id, timeout, force, waiting } = self;
        let client = Client::new(control);
        let request = DrainRequest { stop: true, timeout_ms: milliseconds(timeout), force };
        let worker = client.drain(waiting.group.name(), id, request).await?;
        waiting
            .follow(&client, env, worker, |worker| match worker.state {
                WorkerState::Down => Ok(true),
                WorkerState::Draining | WorkerState::Drained | WorkerState::Stopping => Ok(false),
                state @ (WorkerState::Starting | WorkerState::Active | WorkerState::Stalled) => {
                    bail!("worker {id} is {state} again; somebody took it back")
                }
            })
            .await
    }
}

impl Start {
    pub(super) async fn run(self, control: &Path, env: &mut Env<'_>) -> anyhow::Result<()> {
        let Self { worker: id, waiting } = self;
        let client = Client::new(control);
        let worker = client.start(waiting.group.name(), id).await?;
        waiting
            .follow(&client, env, worker, |worker| match (worker.state, &worker.reason) {
                (WorkerState::Active | WorkerState::Stalled, _) => Ok(true),
                (WorkerState::Down, Some(reason)) => {
                    let last = worker.last_words.last().map_or_else(String::new, |line| format!(" ({line})"));
                    bail!(
                        "worker {id} did not start: {reason}{last}; it is tried again, `stop {id}` ends that"
                    )
                }
                (WorkerState::Starting | WorkerState::Down | WorkerState::Stopping, _) => Ok(false),
                (state @ (WorkerState::Draining | WorkerState::Drained), _) => {
                    bail!("worker {id} is {state}; somebody else drains it")
                }
            })
            .await
    }
}

impl Waiting {
    /// Shows how a worker gets on until it is where it should be.
    async fn follow(
        &self,
        client: &Client,
        env: &mut Env<'_>,
        mut worker: WorkerStatus,
        is_done: impl Fn(&WorkerStatus) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let look_again = env.look_again;
        let mut progress = Progress::new(env, self.json);
        loop {
            progress.show(&render::worker(&worker))?;
            if self.no_wait || is_done(&worker)? {
                break;
            }
            sleep(look_again).await;
            worker = self.group.find_worker(&client.status().await?, worker.id)?.clone();
        }
        drop(progress);
        if self.json {
            render::json(env, &worker)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::{cli::testing::run, control::testing::FakeDaemon};

    #[tokio::test]
    async fn a_worker_is_followed_down_and_up() {
        let daemon = FakeDaemon::start();
        let control = daemon.socket();
        assert_eq!(
            run(&control, &["stop", "1"]).await.printed(),
            "worker 1 is stopping: 5 active, 0 queued\nworker 1 is down\n"
        );
        assert_eq!(
            run(&control, &["start", "1"]).await.printed(),
            "worker 1 is starting\nworker 1 is active\n"
        );
        assert_eq!(run(&control, &["start", "1"]).await.failed(1), "worker 1 runs already, it is active");
    }

    #[tokio::test]
    async fn scripts_get_the_worker_in_the_end() {
        let daemon = FakeDaemon::start();
        let json = run(&daemon.socket(), &["stop", "1", "--json"]).await.printed();
        let worker: serde_json::Value = serde_json::from_str(&json).expect("JSON and nothing else");
        assert_eq!((&worker["id"], &worker["state"]), (&1.into(), &"down".into()));
        let printed = run(&daemon.socket(), &["start", "2", "--no-wait"]).await.printed();
        assert_eq!(printed, "worker 2 is starting\n");
    }
}
