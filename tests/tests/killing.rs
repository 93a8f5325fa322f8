//! A worker dies: what it had accepted dies with it, and nothing else.

use std::time::Instant;

use reuseport_lb::group::WorkerState;
use reuseport_lb_tests::{
    GroupExt, Launch, Load, in_netns, process::kill_and_wait, sources_reaching, within,
};

const KILLED: u16 = 2;

#[test]
fn the_queue_of_a_killed_worker_is_served_by_its_successor() {
    in_netns(async |netns| {
        const HELD: usize = 5;
        const QUEUED: usize = 20;
        const LOAD: usize = 16;
        let daemon = Launch::policy("consistent-hash").start(&netns).await;
        let client = daemon.client();
        let sources = sources_reaching(&client, KILLED, HELD + QUEUED).await;
        let (for_held, for_queued) = sources.split_at(HELD);
        let before = daemon.idle().await;
        let pid = before.worker(KILLED).pid.expect("a process");

        // The worker has accepted some connections and then accepts no more.
        let mut accepted = Vec::new();
        for source in for_held {
            accepted.push(client.clone().from(*source).hold().await.expect("a connection").0);
        }
        accepted[0].ask("/hang").await.expect("an answer");

        // The load runs until all it has in flight waits in the one queue that does not move.
        let load = Load::start(&client, LOAD);
        let mut queued = Vec::new();
        for source in for_queued {
            let mut connection = client.clone().from(*source).connect().await.expect("a connection");
            connection.send("/").await.expect("a request");
            queued.push(connection);
        }
        daemon
            .wait("all wait in the queue", |group| {
                let connections = group.worker(KILLED).connections;
                connections.queued == (QUEUED + LOAD) as u64
                    && connections.active == (HELD + QUEUED + LOAD) as u64
            })
            .await;

        kill_and_wait(pid);
        for connection in &mut queued {
            let answer =
                within("a queued connection is answered", connection.receive()).await.expect("an answer");
            assert_eq!(answer.worker, KILLED, "its own worker's successor");
            assert_ne!(answer.pid, pid);
        }
        load.more(200).await;
        load.stop().await.assert_nothing_failed();
        for connection in &mut accepted {
            connection.receive().await.expect_err("what the killed worker had accepted is lost");
        }

        drop(queued);
        daemon.idle().await;
        // It may have served all of them before the daemon has heard that it is ready.
        let after = daemon
            .wait("the successor is active", |group| group.worker(KILLED).state == WorkerState::Active)
            .await;
        let worker = after.worker(KILLED);
        assert_eq!(worker.restarts, 1);
        assert_ne!(worker.pid, Some(pid));
        assert_eq!(after.outcomes.migrated, before.outcomes.migrated, "its queue stayed where it was");
        assert!(after.workers.iter().all(|worker| worker.id.0 == KILLED || worker.restarts == 0));
        daemon.stop().await;
    });
}

#[test]
fn a_kill_at_any_moment_costs_what_was_accepted_and_no_more() {
    in_netns(async |netns| {
        const LOAD: usize = 16;
        let daemon = Launch::policy("round-robin").start(&netns).await;
        let load = Load::start(&daemon.client(), LOAD);
        load.more(200).await;

        let pid = daemon.group().await.worker(KILLED).pid.expect("a process");
        let killed = Instant::now();
        kill_and_wait(pid);
        let gone = Instant::now();

        load.more(300).await;
        let group = daemon
            .wait("the successor is active", |group| {
                let worker = group.worker(KILLED);
                worker.state == WorkerState::Active && worker.restarts == 1
            })
            .await;
        assert_ne!(group.worker(KILLED).pid, Some(pid));
        let back = Instant::now();
        load.more(200).await;

        let account = load.stop().await;
        assert!(account.started_after(back).any(|worker| worker == KILLED), "the successor gets its part");
        let failures = account.failures();
        assert!(failures.len() <= LOAD, "more failed than were open: {failures:#?}");
        for failure in failures {
            assert!(failure.started < gone, "nothing is accepted by a dead worker: {failure:?}");
            assert!(failure.ended > killed, "nothing fails before: {failure:?}");
        }
        daemon.idle().await;
        daemon.stop().await;
    });
}
