//! Upgrades that fail: the daemon of before goes on, and says why in one line.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use reuseport_lb::policy::Policy;
use reuseport_lb_tests::{
    Daemon, GroupExt, Launch, Load, connections, eventually, in_netns, program, version::wrapped,
};
use rustix::process::Signal;

/// A path in the daemon's folder.
fn beside(daemon: &Daemon, name: &str) -> String {
    daemon.control().with_file_name(name).display().to_string()
}

fn script(daemon: &Daemon, name: &str, text: &str) -> String {
    let path = beside(daemon, name);
    program::write(Path::new(&path), text.as_bytes());
    path
}

/// It is the first daemon still, and does all that a daemon does.
async fn assert_it_works(daemon: &Daemon, policy: Policy) {
    let status = daemon.status().await;
    assert_eq!((status.generation, status.pid), (1, daemon.process().pid));
    let before = daemon.group().await.worker(1).pid;
    daemon.tell(&["policy", &policy.to_string()]).await;
    daemon.tell(&["restart", "1"]).await;
    let group = daemon.wait("all are active", GroupExt::all_active).await;
    assert_eq!(group.policy.name, policy);
    assert_ne!(group.worker(1).pid, before);
    connections(&daemon.client(), 50, 4).await.assert_nothing_failed();
}

#[test]
fn what_is_no_program_of_ours_is_not_become() {
    in_netns(async |netns| {
        let daemon = Launch::policy("hash").start(&netns).await;
        let load = Load::start(&daemon.client(), 4);
        let plain = script(&daemon, "plain", "");
        fs::set_permissions(Path::new(&plain), fs::Permissions::from_mode(0o644)).expect("mode 0644");
        let failing =
            script(&daemon, "failing", "#!/bin/sh\necho 'reuseport-lb: not today: why' >&2\nexit 1\n");
        let older =
            script(&daemon, "older", "#!/bin/sh\necho \"unrecognized subcommand '$1'\" >&2\nexit 2\n");
        for (binary, words) in [
            (beside(&daemon, "missing"), ["missing", "No such file"]),
            (plain, ["plain", "Permission denied"]),
            ("/bin/true".into(), ["/bin/true", "no version of reuseport-lb"]),
            (failing, ["failing", "cannot go on from here: not today: why"]),
            (older, ["older", "unrecognized subcommand"]),
        ] {
            daemon.cli(&["upgrade", "--binary", &binary]).await.failed_with(&words);
        }
        assert_it_works(&daemon, Policy::Random).await;
        load.stop().await.assert_nothing_failed();
        daemon.stop().await;
    });
}

/// It has said that it can go on, and then cannot be run, or cannot be found.
#[test]
fn a_program_that_goes_in_the_last_moment_leaves_the_old_one() {
    in_netns(async |netns| {
        let daemon = Launch::policy("hash").start(&netns).await;
        let load = Load::start(&daemon.client(), 4);
        let mut open = Vec::new();
        for (policy, last, word) in [
            (Policy::Random, "chmod -x \"$0\"", "Permission denied"),
            (Policy::LeastLoaded, "rm \"$0\"", "No such file"),
            (Policy::Hash, "rm \"$0\"", "No such file"),
        ] {
            let going = beside(&daemon, "going");
            wrapped(Path::new(&going), last);
            daemon.cli(&["upgrade", "--binary", &going]).await.failed_with(&["cannot run", &going, word]);
            load.more(100).await;
            assert_it_works(&daemon, policy).await;
            daemon.has_loaded_all().await;
            open.push(descriptors(&daemon));
        }
        eventually("nothing of them is left", async || {
            let now = descriptors(&daemon);
            if now <= open[0] { Ok(()) } else { Err(format!("{open:?} descriptors, then {now}")) }
        })
        .await;
        // And the next one comes through.
        daemon.tell(&["upgrade"]).await;
        assert_eq!(daemon.status().await.upgrade_error, None);
        load.stop().await.assert_nothing_failed();
        daemon.stop().await;
    });
}

fn descriptors(daemon: &Daemon) -> usize {
    fs::read_dir(format!("/proc/{}/fd", daemon.process().pid)).expect("its descriptors").count()
}

#[test]
fn a_configuration_that_is_broken_by_now_is_not_gone_on_with() {
    in_netns(async |netns| {
        let good = "[groups.web]\nlisten = \"127.0.0.1:8080\"\nworkers = 2\npolicy = \"hash\"\n";
        let daemon = Launch::config(good).start(&netns).await;
        let elsewhere = good.replace("8080", "8081");
        for (file, words) in [
            (format!("{good}polcy = \"hash\"\n"), ["config.toml:5", "polcy"]),
            (elsewhere, ["web", "127.0.0.1:8080"]),
            (format!("{good}netns = \"/nonexistent\"\n"), ["web", "/nonexistent"]),
        ] {
            daemon.configure(&file);
            daemon.cli(&["upgrade"]).await.failed_with(&words);
        }
        daemon.configure(good);
        assert_it_works(&daemon, Policy::Random).await;
        daemon.tell(&["upgrade"]).await;
        daemon.stop().await;
    });
}

#[test]
fn one_upgrade_at_a_time_and_none_while_a_group_leaves() {
    in_netns(async |netns| {
        let group = |name: &str, port: u16| {
            format!("[groups.{name}]\nlisten = \"127.0.0.1:{port}\"\nworkers = 1\npolicy = \"hash\"\n")
        };
        let daemon = Launch::config(&[group("web", 8080), group("api", 8081)].concat()).start(&netns).await;
        let begun = beside(&daemon, "begun");
        let slow = beside(&daemon, "slow");
        let wait = format!("touch '{begun}'; while [ -e '{begun}' ]; do sleep 0.01; done");
        wrapped(Path::new(&slow), &format!("if [ \"$1\" = upgrade-check ]; then {wait}; fi"));
        let meanwhile = async {
            eventually("the first is under way", async || {
                fs::exists(&begun).expect("a folder").then_some(()).ok_or("not yet")
            })
            .await;
            daemon.cli(&["upgrade"]).await.failed_with(&["an upgrade is under way"]);
            // What is changed while the other version is tried out counts.
            daemon.tell(&["policy", "random", "--group", "web"]).await;
            fs::remove_file(&begun).expect("the file");
        };
        let first = ["upgrade", "--binary", slow.as_str()];
        tokio::join!(daemon.tell(&first), meanwhile);
        assert_eq!(daemon.group_named("web").await.policy.name, Policy::Random);

        let held = reuseport_lb_tests::hold(&daemon.client_of("127.0.0.1:8081"), 1).await;
        daemon.configure(&group("web", 8080));
        daemon.tell(&["reload"]).await;
        daemon.cli(&["upgrade"]).await.failed_with(&["group api is leaving"]);
        drop(held);
        eventually("it has gone", async || {
            let leaving = daemon.status().await.leaving;
            if leaving.is_empty() { Ok(()) } else { Err(format!("{leaving:?}")) }
        })
        .await;
        daemon.tell(&["upgrade"]).await;
        daemon.stop().await;
    });
}

/// Whenever it comes, SIGTERM ends the daemon and its workers in peace, and nothing is left.
#[test]
fn a_signal_that_comes_in_between_is_not_lost() {
    in_netns(async |netns| {
        for round in 0..4 {
            let mut daemon = Launch::policy("hash").workers(2).start(&netns).await;
            let becoming = async |daemon: &Daemon| {
                let log = || daemon.written("stderr");
                let until = ["becoming another", "becoming another", "taken over", "taken over"][round];
                eventually(until, async || log().contains(until).then_some(()).ok_or("not yet")).await;
                daemon.process().signal(Signal::TERM);
            };
            // What it says depends on who was first.
            let (told, ()) = tokio::join!(daemon.cli(&["upgrade"]), becoming(&daemon));
            println!("{}{}", told.stdout, told.stderr);
            let status = daemon.ended().await;
            assert!(status.success(), "{status}\n{daemon}");
        }
    });
}
