//! `scale`

use std::{path::Path, time::Duration};

use clap::Args;

use super::{env::Env, operation, render, target};
use crate::{
    config::values,
    control::{ScaleRequest, client::Client},
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
    /// How long a worker that goes may take to finish its connections, and as long again to end
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = values::duration)]
    timeout: Duration,
    /// Return when it has begun
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    group: target::Group,
    /// Print the operation as JSON, in the end
    #[arg(long)]
    json: bool,
}

impl Scale {
    pub(super) async fn run(self, control: &Path, env: &mut Env<'_>) -> anyhow::Result<()> {
        let Self { workers, timeout, no_wait, group, json } = self;
        let client = Client::new(control);
        // `values::duration` takes no more than a year.
        let timeout_ms = u64::try_from(timeout.as_millis()).ok();
        let begun = client.scale(group.name(), ScaleRequest { workers, timeout_ms }).await?;
        if !no_wait {
            return operation::watch(&client, &group, env, begun, json).await;
        }
        if json {
            return Ok(render::json(env, &begun)?);
        }
        Ok(writeln!(env.out, "{}", render::operation(&begun))?)
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
