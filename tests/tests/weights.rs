//! Weights are kept by every policy, and can be changed while it picks.

use std::{sync::Arc, time::Instant};

use reuseport_lb_tests::{
    Daemon, GroupExt, Launch, Load, Netns, chance::plausible, connections, hold, in_netns, status::tally,
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

/// The distribution of the connections that each of three workers holds, after so many that stay open, when each goes to
/// the less loaded of two workers drawn by weight: worked out step by step, for all that can be.
fn power_of_two_distribution(open: usize) -> [Vec<f64>; 3] {
    let draw = WEIGHTS.map(|weight| weight as f64 / SUM as f64);
    // By the connections of the first worker and those of the second; the third has the rest.
    let mut chances = vec![vec![0.0; open + 1]; open + 1];
    chances[0][0] = 1.0;
    for step in 0..open {
        let mut next = vec![vec![0.0; open + 1]; open + 1];
        for (first, row) in chances.iter().enumerate().take(step + 1) {
            for (second, chance) in row.iter().enumerate().take(step - first + 1) {
                let loads = [first, second, step - first - second];
                // With one more, by weight: compared as whole numbers.
                let loaded = |worker: usize| (loads[worker] as u64 + 1) * (10 / WEIGHTS[worker]);
                for one in 0..3 {
                    for other in 0..3 {
                        let picked = if loaded(one) <= loaded(other) { one } else { other };
                        let [first, second] =
                            [0, 1].map(|worker| loads[worker] + usize::from(picked == worker));
                        next[first][second] += chance * draw[one] * draw[other];
                    }
                }
            }
        }
        chances = next;
    }
    let mut of = [0, 1, 2].map(|_| vec![0.0; open + 1]);
    for (first, row) in chances.iter().enumerate() {
        for (second, chance) in row.iter().enumerate().take(open + 1 - first) {
            for (worker, load) in [first, second, open - first - second].into_iter().enumerate() {
                of[worker][load] += chance;
            }
        }
    }
    of
}

/// Of connections that stay open, each worker has what two draws by weight can give it, but for a chance of one in a
/// thousand million.
#[test]
fn power_of_two() {
    in_netns(async |netns| {
        const OPEN: usize = 160;
        let daemon = weighted("power-of-two", &netns).await;
        let held = hold(&daemon.client(), OPEN).await;
        let counts = tally(3, held.iter().map(|(_, worker)| *worker));
        for (count, distribution) in counts.iter().zip(power_of_two_distribution(OPEN)) {
            let count = usize::try_from(*count).expect("not so many");
            let [fewer, more]: [f64; 2] =
                [distribution[..=count].iter().sum(), distribution[count..].iter().sum()];
            assert!(fewer.min(more) > 0.5e-9, "{counts:?}: a chance of {fewer} or {more}");
        }
        drop(held);
        daemon.idle().await;
        daemon.stop().await;
    });
}

/// A change while connections come is in force from the next one on.
#[test]
fn weights_change_under_load() {
    in_netns(async |netns| {
        for policy in ["hash", "consistent-hash", "random"] {
            let daemon = Launch::policy(policy).workers(3).start(&netns).await;
            let load = Load::start(&daemon.client(), 8);
            load.more(300).await;
            for (worker, weight) in WEIGHTS.iter().enumerate().skip(1) {
                daemon.tell(&["weight", &worker.to_string(), &weight.to_string()]).await;
            }
            let changed = Instant::now();
            load.more(2_000).await;
            let account = load.stop().await;
            account.assert_nothing_failed();
            let counts = tally(3, account.started_after(changed));
            for (count, weight) in counts.iter().zip(WEIGHTS) {
                let fair = plausible(counts.iter().sum(), weight as f64 / SUM as f64);
                assert!(fair.contains(count), "{policy}: {count} for weight {weight}, not {fair:?}");
            }
            daemon.stop().await;
        }
    });
}
