//! The daemon dies in the middle of something, and the next one takes over.

use reuseport_lb::{
    control::{GroupStatus, OperationState},
    group::WorkerState,
};
use reuseport_lb_tests::{
    Client, GroupExt, Launch, Load, connections, eventually, in_netns, process::Process, scripts::server,
};

/// Nobody hears that a worker is ready. The next daemon does not wait for it until `--ready-timeout`: it starts it again.
#[test]
fn a_worker_whose_ready_was_lost_is_started_again() {
    in_netns(async |netns| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let gate = folder.path().join("open");
        // As sd_notify does: it does not matter to the server whether it was heard.
        let before =
            format!(r#"until (-e "{}") {{ sleep 0.01 }} eval {{ tell_("READY=1") }};"#, gate.display());
        let script = server(&before);
        let words: Vec<&str> = script.iter().map(String::as_str).collect();
        let launch = Launch::policy("hash").workers(2).arg("--ready").arg("notify").worker_command(&words);
        let mut daemon = launch.arg("--ready-timeout").arg("1h").start_unready(&netns).await;
        daemon.kill().await;
        std::fs::write(&gate, "").expect("a file");
        // They serve what comes to their queues, so they have said it.
        connections(&daemon.client(), 40, 2).await.assert_nothing_failed();
        daemon.start_again(&[]).await;
        let group = daemon.wait("all are active", GroupExt::all_active).await;
        assert!(group.workers.iter().all(|worker| worker.restarts > 0), "{group:?}");
        connections(&daemon.client(), 20, 2).await.assert_nothing_failed();
        daemon.stop().await;
    });
}

/// The next daemon goes on with it, or gives it up where a worker does not get ready; everybody serves in the end.
#[test]
fn a_rolling_restart_ends_with_every_worker_running() {
    in_netns(async |netns| {
        // The readiness of the worker that it is at may be lost.
        let launch = Launch::policy("consistent-hash").arg("--ready-timeout").arg("5s");
        let mut daemon = launch.start(&netns).await;
        let before = daemon.group().await;
        let load = Load::start(&daemon.client(), 8);
        load.more(50).await;
        daemon.tell(&["restart", "--rolling", "--no-wait"]).await;
        daemon.wait("it is at the second", |group| group.worker(0).pid != before.worker(0).pid).await;
        daemon.kill().await;
        load.more(50).await;
        daemon.start_again(&[]).await;
        let is_over = |group: &GroupStatus| {
            group.all_active()
                && group.operation.as_ref().is_none_or(|operation| operation.state != OperationState::Running)
        };
        daemon.wait("all are active, and nothing is under way", is_over).await;
        load.more(50).await;
        load.stop().await.assert_nothing_failed();
        daemon.tell(&["restart"]).await;
        daemon.stop().await;
    });
}

fn group(name: &str, port: u16) -> String {
    format!(
        "[groups.{name}]\nlisten = \"127.0.0.1:{port}\"\nworkers = 2\npolicy = \"hash\"\nstall-after = 0\n"
    )
}

/// A group that had only to finish when the daemon died is told to end, and finishes what it has.
#[test]
fn a_group_that_was_leaving_ends_in_peace() {
    in_netns(async |netns| {
        let (first, second) = (group("first", 8080), group("second", 8081));
        let mut daemon = Launch::config(&format!("{first}{second}")).start(&netns).await;
        let client = Client::of(([127, 0, 0, 1], 8081).into());
        let (connection, _) = client.hold().await.expect("a connection");
        let leaving: Vec<u32> =
            daemon.group_named("second").await.workers.iter().filter_map(|worker| worker.pid).collect();
        daemon.configure(&first);
        daemon.tell(&["reload"]).await;
        daemon.kill().await;
        daemon.start_again(&[]).await;
        let group = daemon.group().await;
        assert!(group.workers.iter().all(|worker| worker.state == WorkerState::Active), "{group:?}");
        drop(connection);
        eventually("its workers have ended", async || {
            let left: Vec<_> = leaving.iter().filter(|pid| Process::find(**pid).is_some()).collect();
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?}\n{daemon}")) }
        })
        .await;
        connections(&daemon.client(), 20, 2).await.assert_nothing_failed();
        daemon.stop().await;
    });
}
