//! A worker that takes nothing is passed over, whatever the policy, and comes back by itself.

use reuseport_lb::group::WorkerState;
use reuseport_lb_tests::{GroupExt, Launch, Load, fixed_sources, in_netns, process, workers_of};
use rustix::process::Signal;

const WORKERS: u16 = 4;
const STOPPED: u16 = 1;
/// More than a stopped worker can catch before it is seen to be stalled, so that the load goes on.
const IN_FLIGHT: usize = 300;

fn stalled_worker_is_passed_over(policy: &'static str) {
    in_netns(async move |netns| {
        let daemon = Launch::policy(policy).workers(WORKERS).stall_after("50ms").start(&netns).await;
        let client = daemon.client();
        let sources = fixed_sources(200);
        let before = workers_of(&client, &sources).await;
        let pid = daemon.idle().await.worker(STOPPED).pid.expect("a process");

        process::signal(pid, Signal::STOP);
        let load = Load::start(&client, IN_FLIGHT);
        let stalled = daemon
            .wait("the worker is stalled", |group| group.worker(STOPPED).state == WorkerState::Stalled)
            .await;
        load.more(1_000).await;
        let later = daemon.group().await;
        assert_eq!(
            later.worker(STOPPED).connections.selected_total,
            stalled.worker(STOPPED).connections.selected_total,
            "nothing is given to it any more"
        );
        assert_eq!(later.worker(STOPPED).stalls.count, 1);
        assert!(later.worker(STOPPED).stalls.since_seconds.is_some());

        process::signal(pid, Signal::CONT);
        daemon.wait("it is back", GroupExt::all_active).await;
        load.more(1_000).await;
        load.stop().await.assert_nothing_failed();
        let after = daemon.idle().await;
        assert!(
            after.worker(STOPPED).connections.selected_total
                > later.worker(STOPPED).connections.selected_total,
            "it gets its share again"
        );
        assert_eq!(after.outcomes.fallback, 0);
        if policy == "consistent-hash" {
            assert_eq!(workers_of(&client, &sources).await, before, "its clients are back");
        }
        daemon.stop().await;
    });
}

#[test]
fn under_consistent_hash() {
    stalled_worker_is_passed_over("consistent-hash");
}

#[test]
fn under_hash() {
    stalled_worker_is_passed_over("hash");
}

#[test]
fn under_random() {
    stalled_worker_is_passed_over("random");
}

#[test]
fn under_round_robin() {
    stalled_worker_is_passed_over("round-robin");
}

#[test]
fn when_all_are_stalled_all_are_eligible() {
    in_netns(async |netns| {
        let daemon = Launch::policy("random").workers(2).stall_after("50ms").start(&netns).await;
        let client = daemon.client();
        let pids: Vec<u32> =
            daemon.group().await.workers.iter().map(|worker| worker.pid.expect("a process")).collect();
        pids.iter().for_each(|pid| process::signal(*pid, Signal::STOP));
        let load = Load::start(&client, IN_FLIGHT);
        let group = daemon
            .wait("both have all of the load", |group| {
                group.workers.iter().map(|worker| worker.connections.queued).sum::<u64>() == IN_FLIGHT as u64
            })
            .await;
        assert_eq!(group.outcomes.fallback, 0, "the policy went on to pick");
        assert!(group.workers.iter().all(|worker| worker.connections.queued > 0), "{group:?}");
        pids.iter().for_each(|pid| process::signal(*pid, Signal::CONT));
        load.more(200).await;
        load.stop().await.assert_nothing_failed();
        daemon.stop().await;
    });
}

/// With a longer stall time than the default: this machine may have better to do than to run a worker.
#[test]
fn nobody_is_stalled_by_work_alone() {
    in_netns(async |netns| {
        let daemon = Launch::policy("hash").workers(8).stall_after("500ms").start(&netns).await;
        let load = Load::start(&daemon.client(), 16);
        load.more(10_000).await;
        load.stop().await.assert_nothing_failed();
        let group = daemon.idle().await;
        assert!(group.workers.iter().all(|worker| worker.stalls.count == 0), "{group:#?}");
        daemon.stop().await;
    });
}
