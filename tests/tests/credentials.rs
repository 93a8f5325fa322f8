//! Who may use the control socket: root, the daemon's user, and the groups that the operator names.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use reuseport_lb::policy::Policy;
use reuseport_lb_tests::{Daemon, Launch, Output, in_netns, privileges::program_for_all, run};

/// A user, and groups, that nobody has.
const USER: u32 = 54_000;
const CONTROL: u32 = 54_010;
const READONLY: u32 = 54_020;

/// Runs a command against the daemon as a user of these groups: his own, and further ones.
async fn as_user(daemon: &Daemon, group: u32, further: &[u32], args: &[&str]) -> Output {
    let groups: Vec<String> = further.iter().map(u32::to_string).collect();
    let mut line: Vec<String> =
        ["setpriv", "--reuid", &USER.to_string(), "--regid", &group.to_string()].map(str::to_owned).into();
    line.push(match further {
        [] => "--clear-groups".to_owned(),
        _ => format!("--groups={}", groups.join(",")),
    });
    // A copy that every user may run: the one in the target folder is below the developer's home.
    line.push(program(daemon).display().to_string());
    line.extend(args.iter().map(|arg| (*arg).to_owned()));
    line.extend(["--control".to_owned(), daemon.control().display().to_string()]);
    run(&line).await
}

fn program(daemon: &Daemon) -> PathBuf {
    program_for_all(daemon.control().parent().expect("the socket's folder"), None)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("the socket").permissions().mode() & 0o7777
}

#[test]
fn without_groups_it_is_roots_alone() {
    in_netns(async |netns| {
        let daemon = Launch::policy("hash").start(&netns).await;
        assert_eq!(mode(daemon.control()), 0o600);
        as_user(&daemon, USER, &[], &["status"]).await.failed_with(&["not permitted", "sudo"]);
        as_user(&daemon, USER, &[CONTROL], &["status"]).await.failed_with(&["not permitted"]);
        daemon.stop().await;
    });
}

#[test]
fn one_group_may_do_everything() {
    in_netns(async |netns| {
        let launch = Launch::policy("hash").arg("--control-group").arg(CONTROL.to_string());
        let daemon = launch.start(&netns).await;
        assert_eq!(mode(daemon.control()), 0o660);
        as_user(&daemon, CONTROL, &[], &["policy", "random"]).await.succeeded();
        assert_eq!(daemon.group().await.policy.name, Policy::Random);
        as_user(&daemon, USER, &[CONTROL], &["policy", "hash"]).await.succeeded();
        assert_eq!(daemon.group().await.policy.name, Policy::Hash);
        as_user(&daemon, USER, &[READONLY], &["status"]).await.failed_with(&["not permitted"]);
        daemon.stop().await;
    });
}

/// The daemon is root, and so would be the program that it becomes.
#[test]
fn a_group_may_upgrade_the_daemon_and_not_to_a_program_of_its_own() {
    in_netns(async |netns| {
        let launch = Launch::policy("hash").arg("--control-group").arg(CONTROL.to_string());
        let daemon = launch.start(&netns).await;
        let own = program(&daemon).display().to_string();
        let refused = as_user(&daemon, CONTROL, &[], &["upgrade", "--binary", &own]).await;
        refused.failed_with(&["not permitted", "root", "--binary"]);
        assert_eq!(daemon.status().await.generation, 1);
        as_user(&daemon, CONTROL, &[], &["upgrade"]).await.succeeded();
        assert_eq!(daemon.status().await.generation, 2);
        daemon.stop().await;
    });
}

#[test]
fn another_group_may_look_and_change_nothing() {
    in_netns(async |netns| {
        for both in [false, true] {
            let mut launch = Launch::policy("hash").arg("--control-readonly-group").arg(READONLY.to_string());
            if both {
                launch = launch.arg("--control-group").arg(CONTROL.to_string());
            }
            let daemon = launch.start(&netns).await;
            for (group, further) in [(READONLY, vec![]), (USER, vec![READONLY])] {
                as_user(&daemon, group, &further, &["status"]).await.succeeded();
                as_user(&daemon, group, &further, &["metrics"]).await.succeeded();
                for change in [
                    &["policy", "random"][..],
                    &["drain", "0"],
                    &["weight", "0", "5"],
                    &["upgrade"],
                    &["shutdown"],
                ] {
                    as_user(&daemon, group, &further, change).await.failed_with(&["not permitted", "look"]);
                }
            }
            if both {
                as_user(&daemon, USER, &[CONTROL], &["weight", "0", "5"]).await.succeeded();
                as_user(&daemon, USER, &[], &["status"]).await.failed_with(&["not permitted"]);
                as_user(&daemon, USER, &[], &["shutdown"]).await.failed_with(&["not permitted"]);
            }
            let group = daemon.group().await;
            assert_eq!(group.policy.name, Policy::Hash);
            assert_eq!(group.workers[0].weight, if both { 5 } else { 1 });
            daemon.stop().await;
        }
    });
}
