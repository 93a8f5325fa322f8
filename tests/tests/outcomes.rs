//! Each run of the program counts as exactly one outcome.

use std::sync::Arc;

use reuseport_lb::group::WorkerState;
use reuseport_lb_tests::{BpfStats, Client, Daemon, GroupExt, Launch, Netns, connections, hold, in_netns};

/// Runs the program in every way that users can bring about, and compares our sum with the kernel's count.
async fn partition(policy: &str, netns: &Arc<Netns>) {
    let stats = BpfStats::enable();
    let daemon = Launch::policy(policy).workers(3).start(netns).await;
    let client = daemon.client();

    connections(&client, 300, 8).await.assert_nothing_failed();
    assert_same_count(&daemon, &stats).await;

    migrate_a_queue(&daemon, &client).await;
    assert!(daemon.group().await.outcomes.migrated > 0, "{policy}");
    assert_same_count(&daemon, &stats).await;

    for worker in ["1", "2"] {
        daemon.tell(&["drain", worker, "--force"]).await;
    }
    for _ in 0..10 {
        client.connect().await.expect_err("nobody takes it");
    }
    assert_eq!(daemon.group().await.outcomes.dropped, 10, "{policy}");
    assert_same_count(&daemon, &stats).await;
    daemon.stop().await;
}

/// Worker 0 accepts nothing more, gets a queue, and is closed.
async fn migrate_a_queue(daemon: &Daemon, client: &Client) {
    let mut held = Vec::new();
    while !held.iter().any(|(_, worker)| *worker == 0) {
        held.extend(hold(client, 1).await);
    }
    let (connection, _) = held.last_mut().expect("a connection of worker 0");
    connection.ask("/hang").await.expect("an answer");

    let mut waiting = Vec::new();
    while daemon.group().await.worker(0).connections.queued < 5 {
        waiting.push(client.connect().await.expect("a connection"));
    }
    daemon.tell(&["drain", "0", "--stop", "--timeout", "100ms", "--wait"]).await;
    daemon.wait("worker 0 is down", |group| group.worker(0).state == WorkerState::Down).await;
    drop((held, waiting));
    daemon.idle().await;
}

async fn assert_same_count(daemon: &Daemon, stats: &BpfStats) {
    let group = daemon.group().await;
    let runs = stats.runs(daemon.process().pid);
    assert_eq!(
        group.runs(),
        runs,
        "{}: {:?} add up to one side, the kernel counts the other",
        group.policy.name,
        group.outcomes
    );
}

#[test]
fn hash() {
    in_netns(async |netns| partition("hash", &netns).await);
}

#[test]
fn consistent_hash() {
    in_netns(async |netns| partition("consistent-hash", &netns).await);
}

#[test]
fn least_loaded() {
    in_netns(async |netns| partition("least-loaded", &netns).await);
}

#[test]
fn power_of_two() {
    in_netns(async |netns| partition("power-of-two", &netns).await);
}

#[test]
fn round_robin() {
    in_netns(async |netns| partition("round-robin", &netns).await);
}

#[test]
fn random() {
    in_netns(async |netns| partition("random", &netns).await);
}
