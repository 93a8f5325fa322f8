//! A listener is closed for good while a hundred connections wait in its queue.

use std::sync::Arc;

use reuseport_lb::group::WorkerState;
use reuseport_lb_tests::{
    GroupExt, Launch, Netns, chance::difference, in_netns, sources_reaching, status::tally, within,
};

const WORKERS: u16 = 4;
const CLOSED: u16 = 1;
const QUEUED: usize = 100;

/// Queues the connections on one worker, closes its listener under `policy`, and gives the connections that each
/// worker has then.
async fn close_a_full_queue(policy: &str, netns: &Arc<Netns>) -> Vec<u64> {
    let daemon = Launch::policy("consistent-hash").workers(WORKERS).start(netns).await;
    let client = daemon.client();
    let mut sources = sources_reaching(&client, CLOSED, QUEUED + 1).await;
    daemon.idle().await;

    let hanging = client.clone().from(sources.pop().expect("a source"));
    let (mut hanging, _) = hanging.hold().await.expect("a connection");
    hanging.ask("/hang").await.expect("an answer");
    let mut queued = Vec::new();
    for source in sources {
        let mut connection = client.clone().from(source).connect().await.expect("a connection");
        connection.send("/").await.expect("a request");
        queued.push(connection);
    }
    let before = daemon
        .wait("all wait in the queue", |group| group.worker(CLOSED).connections.queued == QUEUED as u64)
        .await;

    daemon.tell(&["policy", policy]).await;
    daemon.tell(&["drain", "1", "--stop", "--timeout", "1s", "--wait"]).await;

    let mut workers = Vec::new();
    for connection in &mut queued {
        let answer = within("a queued connection is answered", connection.receive()).await;
        workers.push(answer.expect("the connection has survived").worker);
    }
    let counts = tally(WORKERS, workers);
    assert_eq!(counts[usize::from(CLOSED)], 0, "{counts:?}");

    let group = daemon.group().await;
    assert_eq!((group.worker(CLOSED).state, group.worker(CLOSED).pid), (WorkerState::Down, None));
    assert_eq!(group.outcomes.migrated - before.outcomes.migrated, QUEUED as u64);
    assert_eq!(group.outcomes.selected, before.outcomes.selected, "a migration is no selection");
    let migrated: Vec<u64> =
        group.workers.iter().map(|worker| worker.connections.migrated_in_total).collect();
    assert_eq!(migrated, counts, "migrations, and what the clients see");
    // The connection that the dead worker had accepted takes a moment to close, with its client holding on.
    daemon.wait("open connections are what the clients see", |group| group.active() == counts).await;

    drop((queued, hanging));
    daemon.idle().await;
    daemon.tell(&["undrain", "1"]).await;
    daemon.wait("the worker is back", GroupExt::all_active).await;
    daemon.stop().await;
    counts
}

#[test]
fn its_queue_is_taken_over_under_consistent_hash() {
    in_netns(async |netns| drop(close_a_full_queue("consistent-hash", &netns).await));
}

#[test]
fn its_queue_is_taken_over_under_hash() {
    in_netns(async |netns| drop(close_a_full_queue("hash", &netns).await));
}

#[test]
fn its_queue_is_spread_evenly_under_least_loaded() {
    in_netns(async |netns| {
        let mut counts = close_a_full_queue("least-loaded", &netns).await;
        counts.remove(CLOSED.into());
        assert!(difference(&counts) <= 1, "{counts:?}");
    });
}

#[test]
fn its_queue_is_taken_over_under_power_of_two() {
    in_netns(async |netns| drop(close_a_full_queue("power-of-two", &netns).await));
}

#[test]
fn its_queue_is_spread_evenly_under_round_robin() {
    in_netns(async |netns| {
        let mut counts = close_a_full_queue("round-robin", &netns).await;
        counts.remove(CLOSED.into());
        let processors = std::thread::available_parallelism().expect("the number of processors").get() as u64;
        assert!(difference(&counts) <= processors, "{counts:?}");
    });
}

#[test]
fn its_queue_is_taken_over_under_random() {
    in_netns(async |netns| drop(close_a_full_queue("random", &netns).await));
}
