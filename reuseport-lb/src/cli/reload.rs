//! `reload`

use std::path::Path;

use clap::Args;

use super::{env::Env, render};
use crate::control::{ReloadRequest, client::Client};

/// Make the daemon run what its configuration file says now, and show what has changed
///
/// Only what is different is changed, all of it or nothing. What `policy`, `weight` and `scale` have changed since the
/// file was read is changed back where the file differs. SIGHUP does the same, and the log tells.
#[derive(Debug, Args)]
pub(super) struct Reload {
    /// Only show what would change
    #[arg(long)]
    dry_run: bool,
    /// Print the changes as JSON
    #[arg(long)]
    json: bool,
}

impl Reload {
    pub(super) async fn run(self, control: &Path, env: &mut Env<'_>) -> anyhow::Result<()> {
        let Self { dry_run, json } = self;
        let reload = Client::new(control).reload(ReloadRequest { dry_run }).await?;
        if json {
            return Ok(render::json(env, &reload)?);
        }
        if reload.changes.is_empty() {
            writeln!(env.out, "nothing to change")?;
        }
        for change in &reload.changes {
            writeln!(env.out, "{change}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::{cli::testing::run, control::testing::FakeDaemon};

    #[tokio::test]
    async fn each_change_is_a_line() {
        let daemon = FakeDaemon::start();
        let control = daemon.socket();
        let line = "group default: policy consistent-hash on flow -> random\n";
        assert_eq!(run(&control, &["reload", "--dry-run"]).await.printed(), line);
        assert_eq!(run(&control, &["policy"]).await.printed(), "consistent-hash on flow\n");
        assert_eq!(run(&control, &["reload"]).await.printed(), line);
        assert_eq!(run(&control, &["policy"]).await.printed(), "random\n");
        assert_eq!(run(&control, &["reload"]).await.printed(), "nothing to change\n");
    }

    #[tokio::test]
    async fn json_has_the_parts_of_each_change() {
        let daemon = FakeDaemon::start();
        let json = run(&daemon.socket(), &["reload", "--dry-run", "--json"]).await.printed();
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&json).expect("JSON"),
            serde_json::json!({"dry_run": true, "changes": [{
                "change": "set", "group": "default", "setting": "policy",
                "from": "consistent-hash on flow", "to": "random", "applies": "now",
            }]})
        );
    }
}
