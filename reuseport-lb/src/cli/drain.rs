//! `drain`

use std::{path::Path, time::Duration};

use anyhow::bail;
use clap::Args;
use tokio::time::{Instant, sleep};

use super::{env::Env, failure::WrongUsage, progress::Progress, render, target};
use crate::{
    config::values,
    control::{DrainRequest, WorkerStatus, client::Client, milliseconds},
    group::{WorkerId, WorkerState},
};

/// How long connections may take before `--stop` ends the worker all the same.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// Give a worker no new connection, while it finishes those that it has
#[derive(Debug, Args)]
pub(super) struct Drain {
    /// The worker's number
    #[arg(value_parser = values::worker_id)]
    worker: WorkerId,
    /// Wait until the worker is drained, or with --stop until it is down
    #[arg(long)]
    wait: bool,
    /// With --stop, end the worker after this time even if it is not drained [default: 30s]; else, wait no longer
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    timeout: Option<Duration>,
    /// End the worker's process once it is drained, and leave it down until undrain
    #[arg(long)]
    stop: bool,
    /// Drain even the last eligible worker; new connections are then refused
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    group: target::Group,
    /// Print the worker as JSON, in the end
    #[arg(long)]
    json: bool,
}

impl Drain {
    pub(super) async fn run(self, control: &Path, env: &mut Env<'_>) -> anyhow::Result<()> {
        if self.timeout.is_some() && !self.wait && !self.stop {
            return Err(WrongUsage("--timeout needs --wait or --stop".into()).into());
        }
        let client = Client::new(control);
        let request = DrainRequest { stop: self.stop, timeout_ms: self.stop_timeout_ms(), force: self.force };
        let mut worker = client.drain(self.group.name(), self.worker, request).await?;
        if self.wait {
            worker = self.wait(&client, env, worker).await?;
        } else if !self.json {
            writeln!(env.out, "{}", render::worker(&worker))?;
        }
        if self.json {
            render::json(env, &worker)?;
        }
        Ok(())
    }

    fn stop_timeout_ms(&self) -> Option<u64> {
        milliseconds(self.stop.then(|| self.timeout.unwrap_or(STOP_TIMEOUT))?)
    }

    async fn wait(
        &self,
        client: &Client,
        env: &mut Env<'_>,
        mut worker: WorkerStatus,
    ) -> anyhow::Result<WorkerStatus> {
        let look_again = env.look_again;
        let mut progress = Progress::new(env, self.json);
        let until = match self.timeout {
            // With `--stop` it is the daemon who keeps the time.
            Some(timeout) if !self.stop => Some((timeout, Instant::now() + timeout)),
            _ => None,
        };
        loop {
            progress.show(&render::worker(&worker))?;
            if self.is_done(&worker)? {
                return Ok(worker);
            }
            let mut pause = look_again;
            if let Some((timeout, deadline)) = until {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    bail!(self.not_in_time(timeout, &worker));
                }
                pause = pause.min(left);
            }
            sleep(pause).await;
            worker = self.group.find_worker(&client.status().await?, self.worker)?.clone();
        }
    }

    fn is_done(&self, worker: &WorkerStatus) -> anyhow::Result<bool> {
        match worker.state {
            WorkerState::Down => Ok(true),
            WorkerState::Drained => Ok(!self.stop),
            WorkerState::Draining | WorkerState::Stopping => Ok(false),
            WorkerState::Starting | WorkerState::Active | WorkerState::Stalled => {
                bail!("worker {} is {} again; somebody took it back", worker.id, worker.state)
            }
        }
    }

    fn not_in_time(&self, timeout: Duration, worker: &WorkerStatus) -> String {
        let id = self.worker;
        format!(
            "worker {id} is not drained after {}: {}; it stays {}: `drain {id} --wait` waits on, `undrain {id}` \
             takes it back",
            humantime::format_duration(timeout),
            render::connections(worker),
            worker.state,
        )
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        cli::testing::{run, run_on},
        control::testing::{FakeDaemon, status},
        group::{WorkerId, WorkerState},
    };

    #[tokio::test]
    async fn without_wait_it_returns_at_once() {
        let daemon = FakeDaemon::start();
        assert_eq!(
            run(&daemon.socket(), &["drain", "1"]).await.printed(),
            "worker 1 is draining: 5 active, 0 queued\n"
        );
    }

    #[tokio::test]
    async fn with_wait_it_tells_each_change() {
        let daemon = FakeDaemon::start();
        assert_eq!(
            run(&daemon.socket(), &["drain", "1", "--wait", "--timeout", "1h"]).await.printed(),
            "\
worker 1 is draining: 5 active, 0 queued
worker 1 is draining: 4 active, 0 queued
worker 1 is draining: 3 active, 0 queued
worker 1 is draining: 2 active, 0 queued
worker 1 is draining: 1 active, 0 queued
worker 1 is draining: 0 active, 0 queued
worker 1 is drained
"
        );
    }

    #[tokio::test]
    async fn on_a_terminal_the_line_is_rewritten_and_never_wraps() {
        let daemon = FakeDaemon::start();
        let printed = run_on(Some(25), &daemon.socket(), &["drain", "1", "--wait"]).await.printed();
        let steps: Vec<_> = printed.split('\r').collect();
        assert_eq!(steps[1], "worker 1 is draining: 5 \x1b[K");
        assert_eq!(steps.last(), Some(&"worker 1 is drained\x1b[K\n"));
        assert_eq!(printed.matches('\n').count(), 1);
    }

    #[tokio::test]
    async fn with_json_only_the_end_is_printed() {
        let daemon = FakeDaemon::start();
        let printed = run(&daemon.socket(), &["drain", "1", "--wait", "--json"]).await.printed();
        let worker: serde_json::Value = serde_json::from_str(&printed).expect("JSON and nothing else");
        assert_eq!((&worker["id"], &worker["state"]), (&1.into(), &"drained".into()));
    }

    #[tokio::test]
    async fn with_stop_it_waits_until_the_process_is_gone() {
        let daemon = FakeDaemon::start();
        assert_eq!(
            run(&daemon.socket(), &["drain", "1", "--wait", "--stop"]).await.printed(),
            "worker 1 is stopping: 5 active, 0 queued\nworker 1 is down\n"
        );
    }

    #[tokio::test]
    async fn a_timeout_leaves_it_draining_and_says_how_to_go_on() {
        let daemon = FakeDaemon::start();
        let ran = run(&daemon.socket(), &["drain", "1", "--wait", "--timeout", "0"]).await;
        assert_eq!(
            ran.failed(1),
            "worker 1 is not drained after 0s: 5 active, 0 queued; it stays draining: `drain 1 --wait` waits on, \
             `undrain 1` takes it back"
        );
        let status = daemon.client().status().await.expect("status");
        assert_eq!(status.groups[0].workers[1].state, WorkerState::Draining);
    }

    #[tokio::test]
    async fn a_worker_that_somebody_takes_back_is_not_waited_for() {
        let mut status = status();
        status.groups[0].workers[1].connections.active = u64::MAX;
        let daemon = FakeDaemon::start_with(status);
        let client = daemon.client();
        let somebody = async {
            while client.status().await.expect("status").groups[0].workers[1].state != WorkerState::Draining {
                tokio::task::yield_now().await;
            }
            client.undrain(None, WorkerId(1)).await.expect("undrain");
        };
        let control = daemon.socket();
        let (ran, ()) = tokio::join!(run(&control, &["drain", "1", "--wait"]), somebody);
        assert_eq!(ran.failed(1), "worker 1 is active again; somebody took it back");
    }

    #[tokio::test]
    async fn the_last_one_needs_force() {
        let daemon = FakeDaemon::start();
        let control = daemon.socket();
        run(&control, &["drain", "0"]).await.printed();
        assert_eq!(
            run(&control, &["drain", "1"]).await.failed(1),
            "worker 1 is the last one; --force drains it"
        );
        run(&control, &["drain", "1", "--force"]).await.printed();
    }
}
