//! The policy changes under load: nobody notices, and from then on the new one picks.

use std::net::SocketAddr;

use reuseport_lb_tests::{
    Connection, Daemon, GroupExt, Launch, Load, chance::difference, fixed_sources, hold, in_netns,
    status::tally, workers_of,
};

const WORKERS: u16 = 4;
const SWITCHES: usize = 200;
const POLICIES: [&str; 7] =
    ["hash", "consistent-hash", "least-loaded", "power-of-two", "round-robin", "random", "kernel"];

#[test]
fn two_hundred_switches_under_load() {
    in_netns(async |netns| {
        let daemon = Launch::policy("hash").workers(WORKERS).start(&netns).await;
        let homes = Homes::learn(&daemon).await;
        let load = Load::start(&daemon.client(), 8);

        for policy in POLICIES.iter().cycle().take(SWITCHES) {
            load.more(10).await;
            daemon.tell(&["policy", policy]).await;
            let group = daemon.group().await;
            assert_eq!(group.policy.name.as_str(), *policy);
            let runs = group.runs();
            follows(policy, &daemon, &homes, &load).await;
            let grown = daemon.group().await.runs() - runs;
            match *policy {
                "kernel" => assert_eq!(grown, 0, "no program runs under the policy kernel"),
                _ => assert!(grown > 0, "{policy}: the program did not run"),
            }
        }

        let account = load.stop().await;
        account.assert_nothing_failed();
        assert!(account.total() >= 10 * SWITCHES as u64);
        daemon.stop().await;
    });
}

/// Fixed flows and the workers that the two hashing policies have for them.
struct Homes {
    sources: Vec<SocketAddr>,
    hash: Vec<u16>,
    consistent_hash: Vec<u16>,
}

impl Homes {
    async fn learn(daemon: &Daemon) -> Self {
        let sources = fixed_sources(12);
        let hash = workers_of(&daemon.client(), &sources).await;
        daemon.tell(&["policy", "consistent-hash"]).await;
        let consistent_hash = workers_of(&daemon.client(), &sources).await;
        assert_ne!(hash, consistent_hash, "twelve flows must tell the two policies apart");
        Self { sources, hash, consistent_hash }
    }
}

/// Makes connections, and sees that they go where only this policy sends them.
///
/// Under load where that is possible. What depends on the order of all connections, or on how many are open, is
/// looked at while the load pauses.
async fn follows(policy: &str, daemon: &Daemon, homes: &Homes, load: &Load) {
    let client = daemon.client();
    match policy {
        "hash" => assert_eq!(workers_of(&client, &homes.sources).await, homes.hash),
        "consistent-hash" => assert_eq!(workers_of(&client, &homes.sources).await, homes.consistent_hash),
        "power-of-two" | "random" => {
            // The same flow again and again: a policy that hashes would send it to one worker. That chance does so
            // is one in 4^31; less seldom when the others are busy all the while and one is not, 2^31.
            let workers = workers_of(&client, &[homes.sources[0]; 32]).await;
            assert!(workers.iter().any(|worker| *worker != workers[0]), "{policy}: {workers:?}");
        }
        "round-robin" => {
            load.pause().await;
            let counts = tally(WORKERS, workers_of(&client, &homes.sources).await);
            // One for each processor, which may all keep a place of their own in the round.
            let processors =
                std::thread::available_parallelism().expect("the number of processors").get() as u64;
            assert!(difference(&counts) <= processors, "{policy}: {counts:?}");
            load.resume();
        }
        "least-loaded" => {
            load.pause().await;
            daemon.idle().await;
            let held = hold(&client, WORKERS.into()).await;
            assert_eq!(
                tally(WORKERS, held.iter().map(|(_, worker)| *worker)),
                [1; WORKERS as usize],
                "{policy}"
            );
            held.into_iter().map(|(connection, _)| connection).for_each(Connection::reset);
            load.resume();
        }
        "kernel" => load.more(10).await,
        unknown => panic!("how does one see the policy {unknown}?"),
    }
}
