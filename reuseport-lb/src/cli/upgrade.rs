//! `upgrade`

use std::{
    path::{self, Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, bail};
use clap::Args;
use serde::Serialize;
use tokio::time::sleep;

use super::{env::Env, render};
use crate::control::{
    Status, TakenOver, UpgradeRequest,
    client::{Client, Error},
};

/// Replace the running daemon by another version of it; workers and connections go on
///
/// The new version is first asked whether it understands the daemon's command line, configuration and state, and whether
/// the kernel takes its programs; when it says no, nothing changes. Then it takes the daemon's place, with the same process
/// id. Workers are not restarted, and no connection is lost. Maps that do not fit the new version are replaced; what they
/// counted begins at zero.
#[derive(Debug, Args)]
pub(super) struct Upgrade {
    /// The new program [default: what is now where the daemon was started from]
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
}

/// What is printed as JSON.
#[derive(Serialize)]
struct Upgraded {
    from: String,
    to: String,
    pid: u32,
    generation: u64,
    seconds: f64,
    workers: usize,
    maps_replaced: Vec<String>,
}

impl Upgrade {
    pub(super) async fn run(self, control: &Path, env: &mut Env<'_>) -> anyhow::Result<()> {
        let Self { binary, json } = self;
        let binary = binary.map(path::absolute).transpose().context("cannot find the working folder")?;
        let client = Client::new(control);
        let begun = Instant::now();
        let goal = client.upgrade(&UpgradeRequest { binary }).await?.generation;
        let status = reached(&client, env, goal).await?;
        let Status { version, pid, generation, taken_over, .. } = status;
        let TakenOver { version: from, workers, maps_replaced } =
            taken_over.context("the daemon has begun anew, and taken nothing over")?;
        let seconds = begun.elapsed().as_secs_f64();
        let upgraded = Upgraded { from, to: version, pid, generation, seconds, workers, maps_replaced };
        if json { Ok(render::json(env, &upgraded)?) } else { Ok(writeln!(env.out, "{upgraded}")?) }
    }
}

/// Waits for the daemon with this number.
async fn reached(client: &Client, env: &Env<'_>, goal: u64) -> anyhow::Result<Status> {
    loop {
        match client.status().await {
            Ok(status) if status.generation >= goal => return Ok(status),
            Ok(Status { upgrade_error: Some(error), .. }) => bail!("{error}"),
            // The connection went with the version before.
            Ok(_) | Err(Error::Broken { .. }) => {}
            Err(Error::NoDaemon { .. }) => bail!(
                "the new version has ended at its start, and its log says why; the workers go on, and so does the \
                 steering: start the daemon again"
            ),
            Err(error) => return Err(error.into()),
        }
        sleep(env.look_again).await;
    }
}

impl std::fmt::Display for Upgraded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { from, to, pid: _, generation: _, seconds, workers, maps_replaced } = self;
        let plural = if *workers == 1 { "" } else { "s" };
        write!(f, "upgraded {from} -> {to} in {seconds:.2} s; {workers} worker{plural} kept; ")?;
        if maps_replaced.is_empty() {
            f.write_str("maps kept")
        } else {
            write!(f, "maps replaced: {}", maps_replaced.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{cli::testing::run, control::testing::FakeDaemon};

    #[tokio::test]
    async fn it_tells_what_the_new_version_has_taken_over() {
        let daemon = FakeDaemon::start();
        let printed = run(&daemon.socket(), &["upgrade"]).await.printed();
        assert!(printed.starts_with("upgraded 0.1.0 -> 0.2.0 in "), "{printed}");
        assert!(printed.ends_with(" s; 3 workers kept; maps replaced: TABLES\n"), "{printed}");

        let json = run(&daemon.socket(), &["upgrade", "--json"]).await.printed();
        let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!((&json["from"], &json["to"]), (&"0.2.0".into(), &"0.2.0".into()));
        assert_eq!((&json["generation"], &json["workers"]), (&3.into(), &3.into()));
        assert_eq!(json["pid"], std::process::id());
        assert_eq!(json["maps_replaced"], serde_json::json!(["TABLES"]));
    }

    #[tokio::test]
    async fn why_it_failed_is_one_line() {
        let daemon = FakeDaemon::start();
        let control = daemon.socket();
        let ran = run(&control, &["upgrade", "--binary", "/bad"]).await;
        assert_eq!(ran.failed(1), "/bad: is no version of reuseport-lb");
        let ran = run(&control, &["upgrade", "--binary", "/gone"]).await;
        assert_eq!(ran.failed(1), "cannot run /gone: it is gone");
        run(&control, &["upgrade"]).await.printed();
    }
}
