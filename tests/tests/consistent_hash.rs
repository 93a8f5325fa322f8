//! The same client reaches the same worker, whatever happens to the other workers.

use std::net::{Ipv4Addr, SocketAddr};

use reuseport_lb::group::WorkerState;
use reuseport_lb_tests::{
    Daemon, GroupExt, Launch, chance::plausible, fixed_sources, in_netns, status::tally, workers_of,
};

const WORKERS: u16 = 4;
const FLOWS: u16 = 2_000;

/// Asks for the worker of each source, and sees that it was our program that picked it.
async fn steered(daemon: &Daemon, sources: &[SocketAddr]) -> Vec<u16> {
    let before = daemon.group().await.outcomes.selected;
    let workers = workers_of(&daemon.client(), sources).await;
    assert_eq!(daemon.group().await.outcomes.selected - before, sources.len() as u64);
    workers
}

#[test]
fn a_flow_keeps_its_worker() {
    in_netns(async |netns| {
        let sources = fixed_sources(FLOWS);
        let launch = Launch::policy("consistent-hash").workers(WORKERS);
        let daemon = launch.clone().start(&netns).await;

        let first = steered(&daemon, &sources).await;
        let fair = plausible(FLOWS.into(), 1.0 / f64::from(WORKERS));
        let counts = tally(WORKERS, first.iter().copied());
        assert!(counts.iter().all(|count| fair.contains(count)), "{counts:?} is not within {fair:?}");
        assert_eq!(steered(&daemon, &sources).await, first, "the second time");

        daemon.tell(&["drain", "2"]).await;
        let drained = steered(&daemon, &sources).await;
        for ((source, before), now) in sources.iter().zip(&first).zip(&drained) {
            match before {
                2 => assert_ne!(*now, 2, "{source} still reaches the drained worker"),
                _ => assert_eq!(now, before, "{source} has moved for nothing"),
            }
        }

        daemon.tell(&["undrain", "2"]).await;
        daemon.wait("worker 2 is back", |group| group.worker(2).state == WorkerState::Active).await;
        assert_eq!(steered(&daemon, &sources).await, first, "after undrain");
        daemon.stop().await;

        let daemon = launch.start(&netns).await;
        assert_eq!(steered(&daemon, &sources).await, first, "after a restart of the daemon");
        daemon.stop().await;
    });
}

#[test]
fn a_client_keeps_its_worker_over_all_source_ports() {
    in_netns(async |netns| {
        const CLIENTS: u8 = 40;
        const PORTS: u16 = 20;
        let sources = |client: u8| -> Vec<SocketAddr> {
            (0..PORTS).map(|port| (Ipv4Addr::new(127, 78, 0, client), 20_000 + port).into()).collect()
        };
        let launch = Launch::policy("consistent-hash").workers(WORKERS);

        let daemon = launch.clone().arg("--hash-on").arg("source").start(&netns).await;
        let mut homes = Vec::new();
        for client in 1..=CLIENTS {
            let workers = steered(&daemon, &sources(client)).await;
            assert!(workers.iter().all(|worker| *worker == workers[0]), "127.78.0.{client}: {workers:?}");
            homes.push(workers[0]);
        }
        assert!(tally(WORKERS, homes.iter().copied()).iter().all(|clients| *clients > 0), "{homes:?}");

        // The same by command: with the whole flow hashed the ports are told apart, and afterwards no more.
        daemon.tell(&["policy", "consistent-hash", "--hash-on", "flow"]).await;
        let workers = steered(&daemon, &sources(1)).await;
        assert!(
            workers.iter().any(|worker| *worker != workers[0]),
            "twenty ports, all with worker {}",
            workers[0]
        );

        daemon.tell(&["policy", "consistent-hash", "--hash-on", "source"]).await;
        for client in 1..=CLIENTS {
            assert_eq!(
                steered(&daemon, &sources(client)).await,
                vec![homes[usize::from(client) - 1]; PORTS.into()]
            );
        }
        daemon.stop().await;
    });
}
