//! Every policy steers every connection, and spreads them as its name says.

use std::sync::Arc;

use reuseport_lb_tests::{
    GroupExt, Launch, Netns,
    chance::{difference, plausible},
    connections, in_netns,
    status::tally,
};

const WORKERS: u16 = 4;
const CONNECTIONS: u64 = 2_000;

/// Two thousand connections: all are answered, all were picked by our program, and each worker answered exactly
/// those that the program picked it for. Gives the picks of each worker.
async fn spread_of(launch: Launch, netns: &Arc<Netns>) -> Vec<u64> {
    let daemon = launch.workers(WORKERS).start(netns).await;
    assert_eq!(daemon.group().await.runs(), 0, "a new group has no history");

    let account = connections(&daemon.client(), 2_000, 8).await;
    account.assert_nothing_failed();
    assert_eq!(account.total(), CONNECTIONS);

    let group = daemon.group().await;
    assert_eq!(group.outcomes.selected, CONNECTIONS, "{group:#?}");
    let answers = tally(WORKERS, account.answers());
    assert_eq!(group.selected(), answers, "picks and answers");
    daemon.idle().await;
    daemon.stop().await;
    answers
}

fn assert_fair(counts: &[u64]) {
    let fair = plausible(CONNECTIONS, 1.0 / f64::from(WORKERS));
    assert!(counts.iter().all(|count| fair.contains(count)), "{counts:?} is not within {fair:?}");
}

#[test]
fn hash() {
    in_netns(async |netns| assert_fair(&spread_of(Launch::policy("hash"), &netns).await));
}

#[test]
fn consistent_hash() {
    in_netns(async |netns| assert_fair(&spread_of(Launch::policy("consistent-hash"), &netns).await));
}

/// How many short connections a worker gets under these depends on how fast it is, so on the machine's mood. That
/// they even out what is open is shown with connections that stay.
fn assert_everybody_works(counts: &[u64]) {
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
}

#[test]
fn least_loaded() {
    in_netns(async |netns| assert_everybody_works(&spread_of(Launch::policy("least-loaded"), &netns).await));
}

#[test]
fn power_of_two() {
    in_netns(async |netns| assert_everybody_works(&spread_of(Launch::policy("power-of-two"), &netns).await));
}

#[test]
fn random() {
    in_netns(async |netns| assert_fair(&spread_of(Launch::policy("random"), &netns).await));
}

#[test]
fn round_robin() {
    in_netns(async |netns| {
        let counts = spread_of(Launch::policy("round-robin"), &netns).await;
        // One for each processor, which may all keep a place of their own in the round.
        let processors = std::thread::available_parallelism().expect("the number of processors").get() as u64;
        assert!(difference(&counts) <= processors, "{counts:?}");
    });
}

#[test]
fn kernel() {
    in_netns(async |netns| {
        let daemon = Launch::policy("kernel").workers(WORKERS).start(&netns).await;
        let account = connections(&daemon.client(), 2_000, 8).await;
        account.assert_nothing_failed();
        assert_fair(&tally(WORKERS, account.answers()));
        assert_eq!(daemon.group().await.runs(), 0, "no program runs under the policy kernel");
        daemon.stop().await;
    });
}

#[test]
fn weights_are_followed() {
    in_netns(async |netns| {
        for policy in ["consistent-hash", "hash"] {
            let daemon = Launch::policy(policy).workers(WORKERS).start(&netns).await;
            daemon.tell(&["weight", "1", "5"]).await;
            assert_eq!(daemon.group().await.worker(1).weight, 5);

            let account = connections(&daemon.client(), 2_000, 8).await;
            account.assert_nothing_failed();
            let group = daemon.group().await;
            for (worker, selected) in group.workers.iter().zip(group.selected()) {
                let expected = plausible(CONNECTIONS, f64::from(worker.weight) / 8.0);
                assert!(
                    expected.contains(&selected),
                    "{policy}, worker {}: {selected}, not {expected:?}",
                    worker.id
                );
            }
            daemon.stop().await;
        }
    });
}
