//! `status`

use std::path::Path;

use clap::Args;

use super::{env::Env, render, target};
use crate::control::{self, client::Client};

/// Show groups, workers and their connections
#[derive(Debug, Args)]
pub(super) struct Status {
    #[command(flatten)]
    group: target::Group,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(super) async fn run(self, control: &Path, env: &mut Env<'_>) -> anyhow::Result<()> {
        let mut status = Client::new(control).status().await?;
        if self.group.name().is_some() {
            let group = self.group.find(&status)?.clone();
            status.leaving.retain(|leaving| leaving.name == group.name);
            status.groups = vec![group];
        }
        if self.json {
            return Ok(render::json(env, &status)?);
        }
        let control::Status { groups, leaving, .. } = status;
        let leaving = leaving.iter().map(|group| format!("leaving: {}", render::group(group)));
        let groups: Vec<_> = groups.iter().map(render::group).chain(leaving).collect();
        write!(env.out, "{}", groups.join("\n"))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::testing::run,
        control::testing::{FakeDaemon, status},
    };

    #[tokio::test]
    async fn groups_are_shown_one_after_the_other() {
        let mut status = status();
        let mut other = status.groups[0].clone();
        other.name = "other".into();
        status.groups.push(other.clone());
        let expected = format!("{}\n{}", render::group(&status.groups[0]), render::group(&other));
        let daemon = FakeDaemon::start_with(status);
        assert_eq!(run(&daemon.socket(), &["status"]).await.printed(), expected);
        assert_eq!(
            run(&daemon.socket(), &["status", "--group", "other"]).await.printed(),
            render::group(&other)
        );
    }

    #[tokio::test]
    async fn groups_that_leave_stand_at_the_end() {
        let mut status = status();
        let mut old = status.groups[0].clone();
        old.listen = "127.0.0.1:9".parse().expect("an address");
        let mut other = old.clone();
        other.name = "other".into();
        status.leaving = vec![old.clone(), other];
        let daemon = FakeDaemon::start_with(status);
        let printed = run(&daemon.socket(), &["status"]).await.printed();
        assert!(printed.contains("\nleaving: default · 127.0.0.1:9 tcp"), "{printed}");
        assert!(printed.contains("\nleaving: other · "), "{printed}");
        let printed = run(&daemon.socket(), &["status", "--group", "default"]).await.printed();
        assert!(printed.contains("leaving: default") && !printed.contains("leaving: other"), "{printed}");
    }

    #[tokio::test]
    async fn json_is_the_contract() {
        let daemon = FakeDaemon::start();
        let printed = run(&daemon.socket(), &["status", "--json"]).await.printed();
        assert!(printed.ends_with("}\n"), "{printed}");
        let json: serde_json::Value = serde_json::from_str(&printed).expect("JSON");
        let mut down = worker(2, None, "down", 0, 3);
        down["reason"] = "exit status 1".into();
        let expected = serde_json::json!({
            "version": "0.1.0", "pid": std::process::id(), "uptime_seconds": 1.5, "generation": 1,
            "leaving": [],
            "groups": [{
                "name": "default", "protocol": "tcp", "listen": "0.0.0.0:8080", "mode": "supervised",
                "policy": {"name": "consistent-hash", "hash_on": "flow"},
                "workers": [
                    worker(0, Some(100), "active", 0, 0),
                    worker(1, Some(101), "active", 5, 0),
                    down,
                ],
                "outcomes": {
                    "selected": 30, "retried": 0, "fallback": 0, "dropped": 0, "migrated": 0, "stray": 0,
                    "fallback_reasons": {"no_worker": 0, "unreadable": 0, "refused": 0},
                },
            }],
        });
        assert_eq!(json, expected);
    }

    fn worker(id: u16, pid: Option<u32>, state: &str, active: u64, restarts: u64) -> serde_json::Value {
        serde_json::json!({
            "id": id, "pid": pid, "state": state, "weight": 1,
            "connections": {
                "active": active, "pending": 0, "queued": 0, "selected_total": 10, "migrated_in_total": 0,
            },
            "restarts": restarts,
            "stalls": {"count": 0, "seconds_total": 0.0, "since_seconds": null},
        })
    }
}
