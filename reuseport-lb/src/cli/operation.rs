//! An operation of the daemon, watched until its end.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use anyhow::{Context as _, bail};
use clap::Args;
use tokio::time::sleep;

use super::{env::Env, render, target};
use crate::{
    config::values,
    control::{
        AtWorker, FailedWorker, GroupStatus, OperationState, OperationStatus, client::Client, milliseconds,
    },
    group::{Kind, Stage, WorkerId, WorkerState, id_ranges},
};

/// What each command has that begins one.
#[derive(Debug, Args)]
pub(super) struct Flags {
    /// How long a worker that ends may take to finish its connections, and as long again to end
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = values::duration)]
    timeout: Duration,
    /// Return when it has begun
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    pub(super) group: target::Group,
    /// Print the operation as JSON, in the end
    #[arg(long)]
    json: bool,
}

impl Flags {
    /// The time-out, as requests have it.
    pub(super) fn timeout_ms(&self) -> Option<u64> {
        milliseconds(self.timeout)
    }

    /// Shows how the operation gets on that has begun, or only that it has. `wanted` is how it is to end; done it may be
    /// in any case.
    ///
    /// # Errors
    ///
    /// See [`watch`].
    pub(super) async fn follow(
        &self,
        client: &Client,
        env: &mut Env<'_>,
        begun: OperationStatus,
        wanted: OperationState,
    ) -> anyhow::Result<()> {
        let Self { timeout: _, no_wait, group, json } = self;
        if !no_wait {
            watch(client, group, env, begun, wanted, *json).await
        } else if *json {
            Ok(render::json(env, &begun)?)
        } else {
            Ok(writeln!(env.out, "{}", render::operation(&begun))?)
        }
    }
}

/// Shows, line by line, how an operation that has begun gets on, until it has ended. The daemon goes on by itself if
/// nobody watches.
///
/// # Errors
///
/// A worker did not come back, or somebody has cancelled the operation. With `json`, it is printed all the same.
async fn watch(
    client: &Client,
    group: &target::Group,
    env: &mut Env<'_>,
    begun: OperationStatus,
    wanted: OperationState,
    json: bool,
) -> anyhow::Result<()> {
    let mut shown = Shown::default();
    let id = begun.id;
    let (operation, status) = loop {
        let status = group.find(&client.status().await?)?.clone();
        let operation = status.operation.clone().filter(|operation| operation.id == id);
        let operation = operation.context("another operation has begun since; `status` shows it")?;
        if !json {
            shown.show(env, &operation, &status)?;
        }
        if operation.state != OperationState::Running {
            break (operation, status);
        }
        sleep(env.look_again).await;
    };
    if json {
        render::json(env, &operation)?;
    }
    let rest = left_as_they_were(&operation, &status);
    match operation.state {
        OperationState::Failed => bail!(failure(&operation, &status) + &rest),
        OperationState::Cancelled if wanted != OperationState::Cancelled => {
            bail!("the {} was cancelled{rest}", operation.kind)
        }
        _ if json => {}
        _ => writeln!(env.out, "{}{rest}", summary(&operation, &status))?,
    }
    Ok(())
}

/// The last line that was shown of each worker.
#[derive(Default)]
struct Shown(BTreeMap<WorkerId, Line>);

/// What is shown of a worker; a line for each that is new.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Line {
    Is(WorkerState),
    Done,
}

impl Shown {
    fn show(
        &mut self,
        env: &mut Env<'_>,
        operation: &OperationStatus,
        group: &GroupStatus,
    ) -> anyhow::Result<()> {
        for id in &operation.done {
            if self.0.insert(*id, Line::Done) == Some(Line::Done) {
                continue;
            }
            let worker = group.workers.iter().find(|worker| worker.id == *id);
            match worker.map(|worker| (worker.pid, worker)) {
                Some((Some(pid), worker)) => writeln!(env.out, "worker {id} is {}, pid {pid}", worker.state)?,
                Some((None, worker)) => writeln!(env.out, "{}", render::worker(worker))?,
                None => writeln!(env.out, "worker {id} is gone")?,
            }
        }
        for AtWorker { worker: id, stage } in &operation.under_way {
            let Some(worker) = group.workers.iter().find(|worker| worker.id == *id) else { continue };
            // Between two processes it is down for a moment, and what runs already is not believed yet.
            if worker.state == WorkerState::Down
                || *stage == Stage::Coming && worker.state != WorkerState::Starting
            {
                continue;
            }
            let line = Line::Is(worker.state);
            if self.0.insert(*id, line) != Some(line) {
                writeln!(env.out, "{}", render::worker(worker))?;
            }
        }
        Ok(env.out.flush()?)
    }
}

fn summary(operation: &OperationStatus, group: &GroupStatus) -> String {
    let OperationStatus { kind, seconds, done, .. } = operation;
    let workers = |n: usize| if n == 1 { "1 worker".to_owned() } else { format!("{n} workers") };
    match kind {
        Kind::Restart => format!("restarted {} in {seconds:.1}s", workers(done.len())),
        Kind::Scale => format!("group {} has {}", group.name, workers(group.workers.len())),
    }
}

/// Why it failed, with what the worker said last.
fn failure(operation: &OperationStatus, group: &GroupStatus) -> String {
    let mut text = String::new();
    for FailedWorker { worker: id, reason } in &operation.failed {
        let separator = if text.is_empty() { "" } else { "; " };
        let _ = write!(text, "{separator}worker {id} did not come back: {reason}");
        let worker = group.workers.iter().find(|worker| worker.id == *id);
        if let Some(line) = worker.and_then(|worker| worker.last_words.last()) {
            let _ = write!(text, " ({line})");
        }
    }
    text
}

/// Whom a restart that is over has not come to, as the end of a line.
fn left_as_they_were(operation: &OperationStatus, group: &GroupStatus) -> String {
    let touched = |id: &WorkerId| {
        operation.done.contains(id) || operation.failed.iter().any(|failed| failed.worker == *id)
    };
    let rest: Vec<_> = group.workers.iter().map(|worker| worker.id).filter(|id| !touched(id)).collect();
    let is_whole = operation.state == OperationState::Done || operation.kind != Kind::Restart;
    if is_whole || rest.is_empty() {
        String::new()
    } else {
        format!("; left as they were: {}", id_ranges(rest))
    }
}
