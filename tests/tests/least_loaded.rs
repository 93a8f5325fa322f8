//! Least-loaded counts open connections exactly, however they begin and end.

use std::{net::SocketAddr, sync::Arc};

use reuseport_lb::group::WorkerState;
use reuseport_lb_tests::{
    Connection, Daemon, GroupExt, Launch, Netns, chance::difference, connections, hold, in_netns,
    netns::Neighbour, process::kill_and_wait, status::tally, within,
};
use tokio::task::JoinSet;

#[test]
fn a_thousand_held_connections_are_spread_evenly() {
    in_netns(async |netns| {
        const WORKERS: u16 = 8;
        const FREED: u16 = 3;
        let daemon = Launch::policy("least-loaded").workers(WORKERS).start(&netns).await;
        let client = daemon.client();

        let mut held = hold(&client, 1_000).await;
        let group = daemon.wait("all are counted", |group| group.active().iter().sum::<u64>() == 1_000).await;
        assert_eq!(group.outcomes.selected, 1_000);
        assert_eq!(group.pending(), vec![0; WORKERS.into()]);
        assert_eq!(
            group.active(),
            tally(WORKERS, held.iter().map(|(_, worker)| *worker)),
            "ours and the clients'"
        );
        assert!(difference(&group.active()) <= 1, "{:?}", group.active());

        held.retain(|(_, worker)| *worker != FREED);
        assert_eq!(held.len(), 875);
        daemon.wait("one worker is free", |group| group.worker(FREED).connections.active == 0).await;
        let next = hold(&client, 125).await;
        assert_eq!(tally(WORKERS, next.iter().map(|(_, worker)| *worker))[usize::from(FREED)], 125);

        drop((held, next));
        daemon.idle().await;
        daemon.stop().await;
    });
}

/// Four workers with ten connections each.
async fn forty_connections(netns: &Arc<Netns>) -> (Daemon, Vec<(Connection, u16)>) {
    let daemon = Launch::policy("least-loaded").workers(4).start(netns).await;
    let held = hold(&daemon.client(), 40).await;
    daemon.wait("all are counted", |group| group.active() == [10; 4]).await;
    (daemon, held)
}

#[test]
fn closed_connections_are_counted_down() {
    in_netns(async |netns| {
        let (daemon, held) = forty_connections(&netns).await;
        drop(held);
        daemon.idle().await;
        daemon.stop().await;
    });
}

#[test]
fn reset_connections_are_counted_down() {
    in_netns(async |netns| {
        let (daemon, held) = forty_connections(&netns).await;
        held.into_iter().for_each(|(connection, _)| connection.reset());
        daemon.idle().await;
        daemon.stop().await;
    });
}

#[test]
fn half_closed_connections_are_counted_down() {
    in_netns(async |netns| {
        let (daemon, held) = forty_connections(&netns).await;
        for (connection, _) in held {
            connection.half_close().await.expect("the worker closes its side too");
        }
        daemon.idle().await;
        daemon.stop().await;
    });
}

#[test]
fn connections_that_are_reset_before_they_are_accepted_are_counted_down() {
    in_netns(async |netns| {
        let (daemon, mut held) = forty_connections(&netns).await;
        for (connection, _) in held.iter_mut().take(4) {
            connection.ask("/hang").await.expect("an answer");
        }
        let mut queued = Vec::new();
        for _ in 0..8 {
            queued.push(daemon.client().connect().await.expect("a connection"));
        }
        daemon.wait("they are queued", |group| group.active() == [12; 4]).await;
        queued.into_iter().for_each(Connection::reset);
        // A reset connection stays in the queue, and is closed for the kernel: it is no load.
        daemon.wait("they are counted down", |group| group.active() == [10; 4]).await;
        held.into_iter().for_each(|(connection, _)| connection.reset());
        daemon.idle().await;
        daemon.stop().await;
    });
}

#[test]
fn connections_of_a_killed_worker_are_counted_down() {
    in_netns(async |netns| {
        let (daemon, mut held) = forty_connections(&netns).await;
        let pid = daemon.group().await.worker(1).pid.expect("a process");
        kill_and_wait(pid);
        let group = daemon
            .wait("the worker is back without connections", |group| {
                let worker = group.worker(1);
                worker.state == WorkerState::Active && worker.restarts == 1 && worker.connections.active == 0
            })
            .await;
        assert_eq!(group.active(), [10, 0, 10, 10]);

        // What the others have goes on, and what comes now goes where there is least.
        held.retain(|(_, worker)| *worker != 1);
        for (connection, worker) in &mut held {
            assert_eq!(connection.ask("/").await.expect("an answer").worker, *worker);
        }
        let next = hold(&daemon.client(), 10).await;
        assert!(next.iter().all(|(_, worker)| *worker == 1));

        drop((held, next));
        daemon.idle().await;
        daemon.stop().await;
    });
}

/// A group that another host connects to.
async fn on_a_link(netns: &Arc<Netns>, workers: u16) -> (Daemon, Neighbour) {
    let neighbour = Neighbour::join(netns);
    let listen = SocketAddr::new(Neighbour::HERE_V4.parse().expect("an address"), 8080).to_string();
    (Launch::policy("least-loaded").listen(&listen).workers(workers).start(netns).await, neighbour)
}

#[test]
fn connections_to_a_peer_that_has_vanished_are_counted_down() {
    in_netns(async |netns| {
        // The kernel gives a peer up after two retransmissions instead of fifteen.
        netns.sysctl("net.ipv4.tcp_retries2", "1");
        let (daemon, neighbour) = on_a_link(&netns, 4).await;
        let mut held = hold(&daemon.client().inside(&neighbour.netns), 40).await;
        daemon.wait("all are counted", |group| group.active() == [10; 4]).await;

        neighbour.deaf(&netns);
        for (connection, _) in &mut held {
            connection.send("/").await.expect("a request whose answer will be lost");
        }
        daemon.idle().await;
        drop(held);
        daemon.stop().await;
    });
}

/// Packets that one CPU hands to another interrupt whatever runs there, as those of a network card do and those of
/// loopback otherwise do not. A tracing program is then left out now and then; ours must not be.
#[test]
fn connections_that_end_while_packets_interrupt_are_counted_down() {
    in_netns(async |netns| {
        const CONNECTIONS: usize = 20_000;
        netns.steer_packets_to_all_cpus("lo");
        let daemon = Launch::policy("least-loaded").workers(4).start(&netns).await;
        let account = connections(&daemon.client(), CONNECTIONS, 48).await;
        account.assert_nothing_failed();
        let group = daemon.idle().await;
        assert!(group.outcomes.selected >= CONNECTIONS as u64, "{:?}", group.outcomes);
        daemon.stop().await;
    });
}

/// Begins handshakes that cannot go on, until the other host hears again.
fn begin_handshakes(daemon: &Daemon, neighbour: &Neighbour, n: u64) -> JoinSet<std::io::Result<Connection>> {
    let client = daemon.client().inside(&neighbour.netns);
    let mut handshakes = JoinSet::new();
    for _ in 0..n {
        let client = client.clone();
        handshakes.spawn(async move { client.connect().await });
    }
    handshakes
}

#[test]
fn handshakes_in_flight_together_are_spread_evenly() {
    in_netns(async |netns| {
        const WORKERS: u16 = 8;
        let (daemon, neighbour) = on_a_link(&netns, WORKERS).await;
        neighbour.deaf(&netns);
        let mut handshakes = begin_handshakes(&daemon, &neighbour, 200);
        let group = daemon.wait("all are pending", |group| group.pending().iter().sum::<u64>() == 200).await;
        assert!(difference(&group.pending()) <= 1, "{:?}", group.pending());
        assert_eq!(group.active(), vec![0; WORKERS.into()]);
        assert_eq!(group.outcomes.selected, 200);

        neighbour.answers(&netns);
        let mut held = Vec::new();
        while let Some(connection) = within("a handshake ends", handshakes.join_next()).await {
            held.push(connection.expect("a task").expect("a connection"));
        }
        let done =
            daemon.wait("all are established", |group| group.active().iter().sum::<u64>() == 200).await;
        assert_eq!(done.active(), group.pending(), "each worker has the connections whose handshakes it had");
        assert_eq!(done.pending(), vec![0; WORKERS.into()]);

        drop(held);
        daemon.idle().await;
        daemon.stop().await;
    });
}

#[test]
fn handshakes_that_nobody_finishes_age_out() {
    in_netns(async |netns| {
        // They are given up after seven seconds: long enough for all to be seen at once, however slow this machine is.
        netns.sysctl("net.ipv4.tcp_synack_retries", "2");
        let (daemon, neighbour) = on_a_link(&netns, 4).await;
        neighbour.deaf(&netns);
        let handshakes = begin_handshakes(&daemon, &neighbour, 40);
        daemon.wait("all are pending", |group| group.pending() == [10; 4]).await;

        drop(handshakes);
        daemon.idle().await;
        neighbour.answers(&netns);
        let held = hold(&daemon.client().inside(&neighbour.netns), 40).await;
        assert_eq!(tally(4, held.iter().map(|(_, worker)| *worker)), [10; 4]);
        drop(held);
        daemon.stop().await;
    });
}
