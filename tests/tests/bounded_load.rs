//! With a balance factor no worker holds more than its part of the open connections allows, whatever the flows are, and
//! a flow still has its worker.

use std::net::{Ipv4Addr, SocketAddr};

use reuseport_lb::policy::BalanceFactor;
use reuseport_lb_tests::{Connection, Daemon, GroupExt, Launch, in_netns, status::tally};

const WORKERS: u16 = 8;

fn bounded(factor: &str) -> Launch {
    Launch::policy("consistent-hash")
        .workers(WORKERS)
        .arg("--hash-on=source")
        .arg(format!("--balance-factor={factor}"))
}

/// Nine of ten connections come from one source, the others from one each.
fn mostly_one_source(n: u16) -> Vec<SocketAddr> {
    let address = |i: u16| match i % 10 {
        0 => Ipv4Addr::new(127, 79, (i / 250) as u8, 1 + (i % 250) as u8),
        _ => Ipv4Addr::new(127, 78, 0, 1),
    };
    (0..n).map(|i| (address(i), 20_000 + i).into()).collect()
}

/// The most that a worker of weight 1 may have of `open` connections, of workers whose weights add up to `weights`.
fn most(factor: &str, open: usize, weights: usize) -> usize {
    let thousandths = factor.parse::<BalanceFactor>().expect(factor).thousandths() as usize;
    (thousandths * open).div_ceil(1_000 * weights)
}

/// Connects from each source, keeps the connections, and sees with each of them that the bound holds.
async fn hold_within(
    daemon: &Daemon,
    factor: &str,
    weights: &[usize],
    sources: &[SocketAddr],
    held: &mut Vec<(Connection, u16)>,
) {
    let sum: usize = weights.iter().sum();
    for source in sources {
        let (connection, answer) = daemon.client().from(*source).hold().await.expect("an answer");
        held.push((connection, answer.worker));
        let load = held.iter().filter(|(_, worker)| *worker == answer.worker).count();
        let weight = weights[usize::from(answer.worker)];
        let thousandths = factor.parse::<BalanceFactor>().expect(factor).thousandths() as usize;
        let most = (thousandths * held.len() * weight).div_ceil(1_000 * sum);
        assert!(load <= most, "worker {} has {load} of {}, not {most} at most", answer.worker, held.len());
    }
}

fn workers_of(held: &[(Connection, u16)]) -> Vec<u16> {
    held.iter().map(|(_, worker)| *worker).collect()
}

#[test]
fn one_source_cannot_fill_a_worker() {
    in_netns(async |netns| {
        let sources = mostly_one_source(400);
        let daemon = bounded("1.25").start(&netns).await;
        let mut held = Vec::new();
        hold_within(&daemon, "1.25", &[1; 8], &sources, &mut held).await;
        let first = workers_of(&held);
        let group = daemon.wait("all are counted", |group| group.active().iter().sum::<u64>() == 400).await;
        assert_eq!(group.active(), tally(WORKERS, first.iter().copied()), "ours and the clients'");
        assert_eq!(group.outcomes.selected, 400, "each by the program: {group:#?}");

        // The heavy source has filled its worker, and the next ones of its sequence.
        let heavy: Vec<u16> = sources
            .iter()
            .zip(&first)
            .filter(|(source, _)| source.ip() == sources[1].ip())
            .map(|(_, w)| *w)
            .collect();
        let full = most("1.25", 400, 8) as u64;
        assert!(heavy.iter().any(|worker| *worker != heavy[0]), "it has more than one worker");
        assert!(group.active()[usize::from(heavy[0])] + 1 >= full, "its first choice is full: {group:#?}");

        // The same flows in the same order make the same choices.
        held.into_iter().for_each(|(connection, _)| connection.reset());
        daemon.idle().await;
        let mut held = Vec::new();
        hold_within(&daemon, "1.25", &[1; 8], &sources, &mut held).await;
        assert_eq!(workers_of(&held), first);
        drop(held);
        daemon.idle().await;
        daemon.stop().await;
    });
}

#[test]
fn the_bound_follows_the_weights() {
    in_netns(async |netns| {
        let daemon = bounded("1.5").workers(3).start(&netns).await;
        daemon.tell(&["weight", "1", "2"]).await;
        daemon.tell(&["weight", "2", "5"]).await;
        let mut held = Vec::new();
        hold_within(&daemon, "1.5", &[1, 2, 5], &mostly_one_source(240), &mut held).await;
        let outcomes = daemon.group().await.outcomes;
        assert_eq!((outcomes.selected, outcomes.fallback), (240, 0));
        drop(held);
        daemon.idle().await;
        daemon.stop().await;
    });
}

/// It can be turned on while connections are open, changed, and turned off; and what it says is what was said to it.
#[test]
fn the_factor_changes_while_connections_are_open() {
    in_netns(async |netns| {
        let daemon =
            Launch::policy("consistent-hash").workers(WORKERS).arg("--hash-on=source").start(&netns).await;
        let sources = mostly_one_source(1_000);
        let (unbounded, rest) = sources.split_at(100);
        let mut held = Vec::new();
        for source in unbounded {
            let (connection, answer) = daemon.client().from(*source).hold().await.expect("an answer");
            held.push((connection, answer.worker));
        }
        let home = held[1].1;
        let fullest = daemon.group().await.active()[usize::from(home)];
        assert!(fullest >= 90, "the heavy source has one worker: {fullest}");

        for (factor, sources) in [("1.25", &rest[..300]), ("1.01", &rest[300..600]), ("2", &rest[600..700])] {
            let args =
                ["policy", "consistent-hash", "--hash-on", "source", "--balance-factor", factor, "--json"];
            let told: serde_json::Value =
                serde_json::from_str(&daemon.tell(&args).await.stdout).expect("JSON");
            let number: f64 = factor.parse().expect("a number");
            assert_eq!(
                told,
                serde_json::json!({"name": "consistent-hash", "hash_on": "source", "balance_factor": number})
            );
            let before = tally(WORKERS, workers_of(&held));
            for source in sources {
                let (connection, answer) = daemon.client().from(*source).hold().await.expect("an answer");
                held.push((connection, answer.worker));
                let load = held.iter().filter(|(_, worker)| *worker == answer.worker).count();
                let most = most(factor, held.len(), 8);
                assert!(load <= most, "factor {factor}: worker {} has {load}, not {most}", answer.worker);
            }
            let after = tally(WORKERS, workers_of(&held));
            assert!(before.iter().sum::<u64>() < after.iter().sum::<u64>());
        }

        daemon.tell(&["policy", "consistent-hash", "--hash-on", "source"]).await;
        assert_eq!(daemon.group().await.policy.balance_factor, None);
        for source in rest[700..].iter().filter(|source| source.ip() == sources[1].ip()) {
            let (connection, answer) = daemon.client().from(*source).hold().await.expect("an answer");
            assert_eq!(answer.worker, home, "without a bound the source has its first choice again");
            held.push((connection, answer.worker));
        }
        drop(held);
        daemon.idle().await;
        daemon.stop().await;
    });
}

/// What a worker that is full cannot take goes elsewhere, and a worker that is empty again gets its own.
#[test]
fn room_that_is_made_is_used() {
    in_netns(async |netns| {
        let daemon = bounded("1.25").start(&netns).await;
        let sources = mostly_one_source(200);
        let mut held = Vec::new();
        hold_within(&daemon, "1.25", &[1; 8], &sources[..160], &mut held).await;
        let home = held[1].1;
        held.retain(|(_, worker)| *worker != home);
        daemon.wait("the first choice is empty", |group| group.worker(home).connections.active == 0).await;
        for source in sources[160..].iter().filter(|source| source.ip() == sources[1].ip()).take(10) {
            let (connection, answer) = daemon.client().from(*source).hold().await.expect("an answer");
            assert_eq!(answer.worker, home);
            held.push((connection, answer.worker));
        }
        drop(held);
        daemon.idle().await;
        daemon.stop().await;
    });
}
