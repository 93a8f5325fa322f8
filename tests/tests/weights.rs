//! Weights are kept by every policy, and can be changed while it picks.

use std::sync::Arc;

use reuseport_lb_tests::{
    Daemon, GroupExt, Launch, Netns, chance::plausible, connections, hold, in_netns, status::tally,
};

const WEIGHTS: [u64; 3] = [1, 2, 5];
const SUM: u64 = 8;
const CONNECTIONS: u64 = 2_000;

async fn weighted(policy: &str, netns: &Arc<Netns>) -> Daemon {
    let daemon = Launch::policy(policy).workers(3).start(netns).await;
    for (worker, weight) in WEIGHTS.iter().enumerate().skip(1) {
        daemon.tell(&["weight", &worker.to_string(), &weight.to_string()]).await;
    }
    daemon
}

async fn picks(daemon: &Daemon) -> Vec<u64> {
    let account = connections(&daemon.client(), 2_000, 8).await;
    account.assert_nothing_failed();
    tally(3, account.answers())
}

fn assert_by_chance(policy: &'static str) {
    in_netns(async move |netns| {
        let daemon = weighted(policy, &netns).await;
        for (count, weight) in picks(&daemon).await.into_iter().zip(WEIGHTS) {
            let fair = plausible(CONNECTIONS, weight as f64 / SUM as f64);
            assert!(fair.contains(&count), "{count} for weight {weight} is not within {fair:?}");
        }
        daemon.stop().await;
    });
}

#[test]
fn hash() {
    assert_by_chance("hash");
}

#[test]
fn consistent_hash() {
    assert_by_chance("consistent-hash");
}

#[test]
fn random() {
    assert_by_chance("random");
}

/// Each processor goes round for itself, and may have begun a round that it has not finished.
#[test]
fn round_robin() {
    in_netns(async |netns| {
        let daemon = weighted("round-robin", &netns).await;
        let processors = std::thread::available_parallelism().expect("the number of processors").get() as u64;
        for (count, weight) in picks(&daemon).await.into_iter().zip(WEIGHTS) {
            let exact = CONNECTIONS * weight / SUM;
            assert!(count.abs_diff(exact) <= processors * weight, "{count} for weight {weight}, not {exact}");
        }
        daemon.stop().await;
    });
}

/// Of connections that stay open, each worker has its exact share.
#[test]
fn least_loaded() {
    in_netns(async |netns| {
        let daemon = weighted("least-loaded", &netns).await;
        let held = hold(&daemon.client(), 400).await;
        let active = daemon.group().await.active();
        for (active, weight) in active.iter().zip(WEIGHTS) {
            assert!(active.abs_diff(400 * weight / SUM) <= 1, "{active} for weight {weight}");
        }
        drop(held);
        daemon.idle().await;
        daemon.stop().await;
    });
}
