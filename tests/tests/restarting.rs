//! Workers are restarted and none of their clients notices.

use reuseport_lb::{
    control::{GroupStatus, OperationState, OperationStatus},
    group::{WorkerId, WorkerState},
};
use reuseport_lb_tests::{Daemon, GroupExt, Launch, Load, Output, in_netns, process::Process};

fn pids(group: &GroupStatus) -> Vec<u32> {
    group
        .workers
        .iter()
        .map(|worker| worker.pid.unwrap_or_else(|| panic!("no process: {worker:?}")))
        .collect()
}

fn operation(group: &GroupStatus) -> &OperationStatus {
    group.operation.as_ref().unwrap_or_else(|| panic!("no operation in {group:#?}"))
}

fn json(output: &Output) -> OperationStatus {
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}\n{output}"))
}

/// All worker processes are other ones than `before`, each exchanged once, and those are gone.
async fn assert_exchanged(daemon: &Daemon, before: &GroupStatus) {
    let after = daemon.group().await;
    for (old, new) in pids(before).into_iter().zip(pids(&after)) {
        assert_ne!(old, new, "{after:#?}");
        assert!(Process::find(old).is_none(), "process {old} is still there");
    }
    assert!(after.workers.iter().all(|worker| worker.restarts == 1), "{after:#?}");
    assert!(after.all_active(), "{after:#?}");
}

async fn rolling(policy: &str, args: &[&str]) -> impl AsyncFnOnce(std::sync::Arc<reuseport_lb_tests::Netns>) {
    let (policy, args) = (policy.to_owned(), args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>());
    async move |netns| {
        let daemon = Launch::policy(&policy).start(&netns).await;
        let load = Load::start(&daemon.client(), 16);
        load.more(200).await;
        let before = daemon.group().await;

        let line: Vec<&str> = ["restart"].into_iter().chain(args.iter().map(String::as_str)).collect();
        let told = daemon.tell(&line).await;
        assert!(told.stdout.contains("restarted 4 workers"), "{told}");
        load.more(200).await;
        load.stop().await.assert_nothing_failed();

        assert_exchanged(&daemon, &before).await;
        let after = daemon.idle().await;
        assert_eq!(operation(&after).state, OperationState::Done);
        assert_eq!(after.outcomes.fallback, 0, "our program picked for every connection");
        assert!(after.outcomes.selected >= before.outcomes.selected + 200, "{after:#?}");
        for (old, new) in before.selected().into_iter().zip(after.selected()) {
            assert!(new > old, "every worker takes part before and after: {after:#?}");
        }
        daemon.stop().await;
    }
}

#[test]
fn a_rolling_restart_under_load_loses_nothing_with_consistent_hash() {
    in_netns(async |netns| rolling("consistent-hash", &[]).await(netns).await);
}

#[test]
fn a_rolling_restart_under_load_loses_nothing_with_least_loaded() {
    in_netns(async |netns| rolling("least-loaded", &["--rolling"]).await(netns).await);
}

#[test]
fn two_at_a_time_lose_nothing_either() {
    in_netns(async |netns| rolling("round-robin", &["--parallel", "2"]).await(netns).await);
}

/// Nothing can be drained then; connections wait in the queues while there is no process.
#[test]
fn a_rolling_restart_works_under_the_kernels_own_hash() {
    in_netns(async |netns| {
        let daemon = Launch::policy("kernel").start(&netns).await;
        let load = Load::start(&daemon.client(), 16);
        load.more(200).await;
        let before = daemon.group().await;
        daemon.tell(&["restart"]).await;
        load.more(200).await;
        load.stop().await.assert_nothing_failed();
        assert_exchanged(&daemon, &before).await;
        daemon.stop().await;
    });
}

#[test]
fn the_only_worker_is_restarted_and_connections_wait_for_its_successor() {
    in_netns(async |netns| {
        let daemon = Launch::policy("consistent-hash").workers(1).start(&netns).await;
        let load = Load::start(&daemon.client(), 16);
        load.more(100).await;
        let before = daemon.group().await;
        daemon.tell(&["restart", "0"]).await;
        load.more(100).await;
        let account = load.stop().await;
        account.assert_nothing_failed();
        assert_exchanged(&daemon, &before).await;
        let after = daemon.idle().await;
        assert_eq!((after.outcomes.fallback, after.outcomes.dropped), (0, 0));
        daemon.stop().await;
    });
}

#[test]
fn an_open_connection_is_finished_first_and_the_timeout_is_its_bound() {
    in_netns(async |netns| {
        let daemon = Launch::policy("consistent-hash").start(&netns).await;
        let (mut connection, answer) = daemon.client().hold().await.expect("a connection");
        let id = answer.worker.to_string();
        daemon.tell(&["restart", &id, "--no-wait"]).await;
        daemon.wait("it drains", |group| group.worker(answer.worker).state == WorkerState::Draining).await;
        assert_eq!(connection.ask("/").await.expect("an answer").pid, answer.pid, "it is served meanwhile");
        drop(connection);
        let group =
            daemon.wait("it is over", |group| operation(group).state != OperationState::Running).await;
        assert_eq!(operation(&group).state, OperationState::Done);
        assert_ne!(group.worker(answer.worker).pid, Some(answer.pid));

        let (mut connection, answer) = daemon.client().hold().await.expect("a connection");
        connection.send("/slow?ms=600000").await.expect("a request that outlasts the test");
        daemon.tell(&["restart", &answer.worker.to_string(), "--timeout", "300ms"]).await;
        connection.receive().await.expect_err("the worker has gone");
        daemon.stop().await;
    });
}

#[test]
fn a_rolling_restart_stops_at_the_first_worker_that_does_not_come_back() {
    in_netns(async |netns| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let broken = folder.path().join("broken");
        // A server whose new version does not start.
        let script = format!(
            r#"test -e {} && test "$REUSEPORT_LB_WORKER" = 1 && {{ echo "no database" >&2; exit 3; }}; exec {} demo-worker"#,
            broken.display(),
            reuseport_lb_tests::binary().display()
        );
        let daemon =
            Launch::policy("least-loaded").worker_command(&["sh", "-c", &script]).start(&netns).await;
        let load = Load::start(&daemon.client(), 16);
        load.more(100).await;
        let before = daemon.group().await;
        std::fs::write(&broken, "").expect("a file");

        let failed = daemon.cli(&["restart", "--json"]).await;
        assert_eq!(failed.status.code(), Some(1), "{failed}");
        let operation = json(&failed);
        assert_eq!(operation.state, OperationState::Failed);
        assert_eq!(operation.done, [WorkerId(0)]);
        assert_eq!(operation.failed.iter().map(|failed| failed.worker).collect::<Vec<_>>(), [WorkerId(1)]);
        assert!(operation.failed[0].reason.contains("status 3"), "{failed}");
        let after = daemon.group().await;
        assert_ne!(after.worker(0).pid, before.worker(0).pid);
        for id in [2, 3] {
            assert_eq!(after.worker(id).pid, before.worker(id).pid, "worker {id} is left as it was");
            assert_eq!(after.worker(id).state, WorkerState::Active);
        }
        load.more(100).await;
        load.stop().await.assert_nothing_failed();

        // It is tried again by itself, and comes back when it can.
        std::fs::remove_file(&broken).expect("the file is there");
        daemon.wait("all are back", GroupExt::all_active).await;
        daemon.stop().await;
    });
}

#[test]
fn the_daemon_goes_on_alone_and_takes_other_commands_meanwhile() {
    in_netns(async |netns| {
        let daemon = Launch::policy("consistent-hash").start(&netns).await;
        let (connection, answer) = daemon.client().hold().await.expect("a connection");
        let id = answer.worker.to_string();
        let before = daemon.group().await;
        // This one drains until its connection is closed, so the operation stands still.
        daemon.tell(&["restart", &id, "--timeout", "1h", "--no-wait"]).await;
        daemon.cli(&["restart"]).await.failed_with(&["restart", "under way"]);
        daemon.cli(&["scale", "2"]).await.failed_with(&["restart", "under way"]);
        let table = daemon.tell(&["status"]).await.stdout;
        assert!(
            table.contains("operation 1: restart running") && table.contains(&format!("at {id}")),
            "{table}"
        );

        let other = (answer.worker + 1) % 4;
        let other_id = other.to_string();
        daemon.tell(&["drain", &other_id, "--wait"]).await;
        daemon.tell(&["weight", &id, "7"]).await;
        daemon.tell(&["undrain", &other_id]).await;
        daemon.tell(&["policy", "round-robin"]).await;

        drop(connection);
        let after = daemon.wait("it is over", |group| operation(group).state == OperationState::Done).await;
        let worker = after.worker(answer.worker);
        assert_eq!((worker.state, worker.weight, worker.restarts), (WorkerState::Active, 7, 1));
        assert_eq!(after.worker(other).pid, before.worker(other).pid);
        daemon.stop().await;
    });
}

#[test]
fn a_restart_that_is_cancelled_leaves_the_rest_as_it_was() {
    in_netns(async |netns| {
        let daemon = Launch::policy("round-robin").start(&netns).await;
        let connection = loop {
            let (connection, answer) = daemon.client().hold().await.expect("a connection");
            if answer.worker == 1 {
                break connection;
            }
        };
        let load = Load::start(&daemon.client(), 8);
        load.more(100).await;
        daemon.cli(&["restart", "--cancel"]).await.failed_with(&["no restart is under way"]);
        let before = daemon.group().await;
        let cancels = async {
            // That one drains until its connection is closed.
            let is_at_1 = |group: &GroupStatus| {
                let at = group.operation.iter().flat_map(|operation| &operation.under_way);
                at.map(|at| at.worker).any(|id| id == WorkerId(1))
            };
            daemon.wait("it is at worker 1", is_at_1).await;
            let told = json(&daemon.tell(&["restart", "--cancel", "--no-wait", "--json"]).await);
            assert_eq!((told.state, &told.waiting[..]), (OperationState::Running, &[][..]));
            drop(connection);
        };
        let (begun, ()) = tokio::join!(daemon.cli(&["restart", "--timeout", "1h"]), cancels);
        assert_eq!(begun.status.code(), Some(1), "{begun}");
        assert!(begun.stderr.ends_with("the restart was cancelled; left as they were: 2-3\n"), "{begun}");
        let after = daemon.group().await;
        load.more(100).await;
        load.stop().await.assert_nothing_failed();
        assert_eq!(operation(&after).state, OperationState::Cancelled);
        assert_eq!(operation(&after).done, [0, 1].map(WorkerId));
        assert!(after.all_active(), "{after:#?}");
        let same: Vec<bool> =
            pids(&before).into_iter().zip(pids(&after)).map(|(old, new)| old == new).collect();
        assert_eq!(same, [false, false, true, true]);
        assert_eq!(daemon.idle().await.outcomes.fallback, 0, "our program picked for every connection");
        daemon.stop().await;
    });
}

#[test]
fn a_drained_worker_comes_back_drained() {
    in_netns(async |netns| {
        let daemon = Launch::policy("consistent-hash").start(&netns).await;
        daemon.tell(&["drain", "2", "--wait"]).await;
        let before = daemon.group().await;
        daemon.tell(&["restart"]).await;
        let after = daemon.wait("it is idle", |group| group.worker(2).state == WorkerState::Drained).await;
        assert_ne!(after.worker(2).pid, before.worker(2).pid);
        assert_eq!(operation(&after).done, [0, 1, 2, 3].map(WorkerId));
        daemon.stop().await;
    });
}

#[test]
fn stop_takes_a_worker_down_and_start_brings_it_back() {
    in_netns(async |netns| {
        let daemon = Launch::policy("least-loaded").start(&netns).await;
        let load = Load::start(&daemon.client(), 8);
        load.more(100).await;
        let pid = daemon.group().await.worker(2).pid.expect("a process");

        daemon.tell(&["stop", "2"]).await;
        let group = daemon.group().await;
        assert_eq!((group.worker(2).state, group.worker(2).pid), (WorkerState::Down, None));
        assert!(Process::find(pid).is_none(), "process {pid} is still there");
        daemon.cli(&["restart", "2"]).await.failed_with(&["2", "stopped"]);
        let restarted = json(&daemon.tell(&["restart", "--json"]).await);
        assert_eq!(restarted.done, [0, 1, 3].map(WorkerId), "who is stopped is not restarted");
        assert_eq!(daemon.group().await.worker(2).state, WorkerState::Down);

        daemon.tell(&["start", "2"]).await;
        assert_eq!(daemon.group().await.worker(2).state, WorkerState::Active);
        daemon.cli(&["start", "2"]).await.failed_with(&["2", "runs already"]);
        let selected = daemon.group().await.worker(2).connections.selected_total;
        load.more(200).await;
        assert!(daemon.group().await.worker(2).connections.selected_total > selected, "it gets connections");
        load.stop().await.assert_nothing_failed();
        daemon.stop().await;
    });
}
