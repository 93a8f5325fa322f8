//! `doctor`

use std::{net::SocketAddr, path::Path};

use anyhow::bail;
use clap::Args;

use super::{env::Env, render};
use crate::{
    config::values,
    doctor::{self, Check, Verdict},
};

/// See whether this machine has all that the daemon needs, and say what to do about the rest
///
/// The exit status is 1 when the daemon cannot run.
#[derive(Debug, Args)]
pub(super) struct Doctor {
    // Not a doc comment, to which brackets are links.
    #[arg(long, help = "See whether this address is free, too: ADDRESS:PORT, [ADDRESS]:PORT, :PORT or PORT", value_name = "ADDRESS", value_parser = values::listen_address)]
    listen: Option<SocketAddr>,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub(super) async fn run(self, control: &Path, env: &mut Env<'_>) -> anyhow::Result<()> {
        let checks = doctor::examine(control, self.listen).await;
        if self.json {
            render::json(env, &checks)?;
        } else {
            for Check { name, verdict, found } in &checks {
                writeln!(env.out, "{verdict:<4}  {name:<14}  {found}")?;
            }
        }
        let failed: Vec<_> =
            checks.iter().filter(|check| check.verdict == Verdict::Fail).map(|check| check.name).collect();
        if !failed.is_empty() {
            env.out.flush()?;
            bail!("the daemon cannot run here: {}", failed.join(", "));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::{cli::testing::run, control::testing::FakeDaemon};

    #[tokio::test]
    async fn each_check_is_a_line_and_an_object() {
        let daemon = FakeDaemon::start();
        let ran = run(&daemon.socket(), &["doctor", "--listen", "0.0.0.0:8080"]).await;
        let lines: Vec<_> = ran.out.lines().collect();
        let json = run(&daemon.socket(), &["doctor", "--listen", "0.0.0.0:8080", "--json"]).await;
        let checks: Vec<serde_json::Value> = serde_json::from_str(&json.out).expect("JSON");
        assert_eq!(lines.len(), checks.len(), "{ran:#?} {json:#?}");
        for (line, check) in lines.iter().zip(&checks) {
            for field in ["verdict", "name", "found"] {
                let text = check[field].as_str().expect("text");
                assert!(line.contains(text), "{line} lacks {text}");
            }
        }
        let own = checks.last().expect("the address");
        assert_eq!((&own["name"], &own["verdict"]), (&"address".into(), &"ok".into()), "{own}");
        assert_eq!(ran.status, json.status);
    }
}
