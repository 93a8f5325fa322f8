//! `restart`

use std::path::Path;

use clap::Args;

use super::{env::Env, operation};
use crate::{
    config::values,
    control::{OperationState, RestartRequest, client::Client},
    group::WorkerId,
};

/// Restart workers without losing a connection: drain, stop, start, wait until ready, undrain
///
/// Without a worker, all that are not stopped are restarted, one after the other. The first one that does not come
/// back ends it, and those behind it are left as they are. The daemon goes on when this command is interrupted; `--cancel`
/// has it leave those as they are that have yet to come.
#[derive(Debug, Args)]
pub(super) struct Restart {
    /// The worker's number [default: all, one after the other]
    #[arg(value_parser = values::worker_id)]
    worker: Option<WorkerId>,
    /// All workers, one after the other; that is the default
    #[arg(long, conflicts_with = "worker")]
    rolling: bool,
    /// How many at the same time; one goes on serving in any case, if there are two
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "worker", value_parser = clap::value_parser!(u16).range(1..=1024))]
    parallel: u16,
    /// Leave those as they are that have yet to come: the restart under way ends when the workers that it is at are back
    #[arg(long, conflicts_with_all = ["worker", "rolling", "parallel", "timeout"])]
    cancel: bool,
    #[command(flatten)]
    operation: operation::Flags,
}

impl Restart {
    pub(super) async fn run(self, control: &Path, env: &mut Env<'_>) -> anyhow::Result<()> {
        let Self { worker, rolling: _, parallel, cancel, operation } = self;
        let client = Client::new(control);
        if cancel {
            let ending = client.cancel_restart(operation.group.name()).await?;
            return operation.follow(&client, env, ending, OperationState::Cancelled).await;
        }
        let request = RestartRequest { worker, parallel: Some(parallel), timeout_ms: operation.timeout_ms() };
        let begun = client.restart(operation.group.name(), request).await?;
        operation.follow(&client, env, begun, OperationState::Done).await
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        cli::testing::run,
        control::{OperationState, OperationStatus, testing::FakeDaemon},
        group::WorkerId,
    };

    #[tokio::test]
    async fn one_worker_is_followed_until_it_is_back() {
        let daemon = FakeDaemon::start();
        assert_eq!(
            run(&daemon.socket(), &["restart", "1"]).await.printed(),
            "\
worker 1 is stopping: 5 active, 0 queued
worker 1 is starting
worker 1 is active, pid 301
restarted 1 worker in 0.5s
"
        );
    }

    #[tokio::test]
    async fn the_first_that_does_not_come_back_is_the_last() {
        let daemon = FakeDaemon::start();
        let ran = run(&daemon.socket(), &["restart", "--rolling"]).await;
        assert_eq!(ran.failed(1), "worker 2 did not come back: exit status 1 (boom)");
        assert!(ran.out.ends_with("worker 1 is active, pid 301\nworker 2 is stopping: 0 active, 0 queued\nworker 2 is starting\n"), "{ran:#?}");
    }

    #[tokio::test]
    async fn one_that_is_under_way_can_be_cancelled() {
        let daemon = FakeDaemon::start();
        let nothing = run(&daemon.socket(), &["restart", "--cancel"]).await;
        assert_eq!(nothing.failed(1), "no restart is under way");
        run(&daemon.socket(), &["restart", "--no-wait"]).await.printed();
        let cancelled = run(&daemon.socket(), &["restart", "--cancel"]).await.printed();
        assert_eq!(cancelled, "restarted 0 workers in 0.5s; left as they were: 0-2\n");
        let both = run(&daemon.socket(), &["restart", "--cancel", "1"]).await;
        assert_eq!(both.status, 2);
    }

    #[tokio::test]
    async fn scripts_get_the_operation_even_if_it_failed() {
        let daemon = FakeDaemon::start();
        let ran = run(&daemon.socket(), &["restart", "--json"]).await;
        assert_eq!(ran.status, 1);
        let operation: OperationStatus = serde_json::from_str(&ran.out).expect("JSON and nothing else");
        assert_eq!((operation.state, operation.failed[0].worker), (OperationState::Failed, WorkerId(2)));
        assert_eq!(operation.done, [WorkerId(0), WorkerId(1)]);
    }

    #[tokio::test]
    async fn nobody_has_to_wait() {
        let daemon = FakeDaemon::start();
        assert_eq!(
            run(&daemon.socket(), &["restart", "--no-wait"]).await.printed(),
            "operation 1: restart running after 0.5s, waiting 0-2\n"
        );
    }
}
