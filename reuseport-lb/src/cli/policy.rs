//! `policy`

use std::path::Path;

use clap::Args;

use super::{env::Env, failure::WrongUsage, render, target};
use crate::{
    config::values,
    control::{GroupStatus, client::Client},
    policy::{self, BalanceFactor, HashOn},
};

/// Show the policy, or switch to another one while traffic runs
#[derive(Debug, Args)]
pub(super) struct Policy {
    /// The new policy; without it, the present one is shown
    #[arg(value_enum)]
    policy: Option<policy::Policy>,
    /// What the policy hashes: flow, source, or a prefix of the source, source/24,/64 for IPv4 and IPv6 [default: flow]
    #[arg(long, value_name = "WHAT", value_parser = values::hash_on, requires = "policy")]
    hash_on: Option<HashOn>,
    /// Let no worker hold more than so many times the mean of open connections: 1.25; for consistent-hash [default: no
    /// bound]
    #[arg(long, value_name = "FACTOR", value_parser = values::balance_factor, requires = "policy")]
    balance_factor: Option<BalanceFactor>,
    #[command(flatten)]
    group: target::Group,
    /// Print the policy as JSON
    #[arg(long)]
    json: bool,
}

impl Policy {
    pub(super) async fn run(self, control: &Path, env: &mut Env<'_>) -> anyhow::Result<()> {
        let wanted =
            self.policy.map(|name| values::policy(name, self.hash_on, self.balance_factor)).transpose();
        let wanted = wanted.map_err(|e| WrongUsage(e.to_string()))?;

        let client = Client::new(control);
        let status = client.status().await?;
        let GroupStatus { name: group, policy: present, .. } = self.group.find(&status)?;
        let (line, now) = match wanted {
            None => (present.to_string(), *present),
            Some(wanted) => {
                let now = client.set_policy(Some(group), wanted).await?;
                let line = if now == *present {
                    format!("group {group} keeps policy {now}")
                } else {
                    format!("group {group} has policy {now}, was {present}")
                };
                (line, now)
            }
        };
        if self.json {
            return Ok(render::json(env, &now)?);
        }
        writeln!(env.out, "{line}")?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        cli::testing::run,
        control::testing::{FakeDaemon, status},
    };

    #[tokio::test]
    async fn the_policy_is_shown_switched_and_shown_again() {
        let daemon = FakeDaemon::start();
        let control = daemon.socket();
        assert_eq!(run(&control, &["policy"]).await.printed(), "consistent-hash on flow\n");
        assert_eq!(
            run(&control, &["policy", "least-loaded"]).await.printed(),
            "group default has policy least-loaded, was consistent-hash on flow\n"
        );
        assert_eq!(
            run(&control, &["policy", "hash", "--hash-on", "source"]).await.printed(),
            "group default has policy hash on source, was least-loaded\n"
        );
        assert_eq!(
            run(&control, &["policy", "hash", "--hash-on", "source"]).await.printed(),
            "group default keeps policy hash on source\n"
        );
        let json = run(&control, &["policy", "--json"]).await.printed();
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&json).expect("JSON"),
            serde_json::json!({"name": "hash", "hash_on": "source"})
        );
    }

    #[tokio::test]
    async fn of_several_groups_one_must_be_named() {
        let mut status = status();
        let mut other = status.groups[0].clone();
        other.name = "other".into();
        status.groups.push(other);
        let daemon = FakeDaemon::start_with(status);
        let control = daemon.socket();
        assert_eq!(
            run(&control, &["policy", "random"]).await.failed(1),
            "there is more than one group; name one with --group: default, other"
        );
        run(&control, &["policy", "random", "--group", "other"]).await.printed();
        assert_eq!(run(&control, &["policy", "--group", "other"]).await.printed(), "random\n");
        assert_eq!(
            run(&control, &["policy", "--group", "default"]).await.printed(),
            "consistent-hash on flow\n"
        );
    }
}
