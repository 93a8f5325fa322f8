//! `scale`

use std::path::Path;

use clap::Args;

use super::{env::Env, operation};
use crate::{
    config::values,
    control::{OperationState, ScaleRequest, client::Client},
};

/// Change the number of workers without losing a connection
///
/// Those that are added get connections when they are ready. Those that are too many, the highest numbers, finish
/// their connections and end; what waits for them goes to the others.
#[derive(Debug, Args)]
pub(super) struct Scale {
    /// How many workers there are to be, 1 to 1,024
    #[arg(value_name = "N", value_parser = values::workers)]
    workers: u16,
    #[command(flatten)]
    operation: operation::Flags,
}

impl Scale {
    pub(super) async fn run(self, control: &Path, env: &mut Env<'_>) -> anyhow::Result<()> {
        let Self { workers, operation } = self;
        let client = Client::new(control);
        let request = ScaleRequest { workers, timeout_ms: operation.timeout_ms() };
        let begun = client.scale(operation.group.name(), request).await?;
        operation.follow(&client, env, begun, OperationState::Done).await
    }
}

#[cfg(test)]
mod tests {
    use crate::{cli::testing::run, control::testing::FakeDaemon};

    #[tokio::test]
    async fn workers_come_and_go() {
        let daemon = FakeDaemon::start();
        let up = run(&daemon.socket(), &["scale", "5"]).await.printed();
        assert!(up.ends_with("worker 4 is active, pid 200\ngroup default has 5 workers\n"), "{up}");
        let down = run(&daemon.socket(), &["scale", "1"]).await.printed();
        assert!(down.ends_with("worker 4 is gone\ngroup default has 1 worker\n"), "{down}");
    }
}
