//! A drained worker finishes what it has, and gets nothing new.

use std::{sync::Arc, time::Instant};

use reuseport_lb::group::WorkerState;
use reuseport_lb_tests::{
    Client, GroupExt, Launch, Load, Netns, in_netns, process::Process, sources_reaching,
};

const DRAINED: u16 = 2;

async fn drain_under_load(launch: Launch, netns: &Arc<Netns>) {
    let daemon = launch.start(netns).await;
    let load = Load::start(&daemon.client(), 16);
    load.more(200).await;
    let before = daemon.group().await;
    assert!(before.selected()[usize::from(DRAINED)] > 0, "the worker takes part before it is drained");

    daemon.tell(&["drain", "2"]).await;
    let returned = Instant::now();
    let at_return = daemon.group().await.worker(DRAINED).connections.selected_total;
    load.more(500).await;
    let group =
        daemon.wait("it is drained", |group| group.worker(DRAINED).state == WorkerState::Drained).await;
    let connections = group.worker(DRAINED).connections;
    assert_eq!(connections.selected_total, at_return, "selections after the command returned");
    assert_eq!((connections.active, connections.pending, connections.queued), (0, 0, 0));
    assert_eq!(group.worker(DRAINED).pid, before.worker(DRAINED).pid, "without --stop the process stays");
    assert!(group.outcomes.selected >= before.outcomes.selected + 500, "the program goes on picking");

    let undrained = Instant::now();
    daemon.tell(&["undrain", "2"]).await;
    load.more(200).await;
    let group = daemon.group().await;
    assert_eq!(group.worker(DRAINED).state, WorkerState::Active);
    assert!(group.worker(DRAINED).connections.selected_total > at_return, "undrain brings it back");

    let account = load.stop().await;
    account.assert_nothing_failed();
    let strays = account
        .records
        .iter()
        .filter(|record| record.started > returned && record.ended < undrained)
        .filter(|record| record.result == Ok(DRAINED))
        .count();
    assert_eq!(strays, 0, "connections to the drained worker");
    daemon.stop().await;
}

#[test]
fn nothing_fails_and_nothing_new_comes_with_consistent_hash() {
    in_netns(async |netns| drain_under_load(Launch::policy("consistent-hash"), &netns).await);
}

#[test]
fn nothing_fails_and_nothing_new_comes_with_least_loaded() {
    in_netns(async |netns| drain_under_load(Launch::policy("least-loaded"), &netns).await);
}

#[test]
fn nothing_fails_and_nothing_new_comes_with_hash() {
    in_netns(async |netns| drain_under_load(Launch::policy("hash"), &netns).await);
}

#[test]
fn nothing_fails_and_nothing_new_comes_with_power_of_two() {
    in_netns(async |netns| drain_under_load(Launch::policy("power-of-two"), &netns).await);
}

#[test]
fn nothing_fails_and_nothing_new_comes_with_round_robin() {
    in_netns(async |netns| drain_under_load(Launch::policy("round-robin"), &netns).await);
}

#[test]
fn nothing_fails_and_nothing_new_comes_with_random() {
    in_netns(async |netns| drain_under_load(Launch::policy("random"), &netns).await);
}

#[test]
fn a_worker_drains_until_its_last_connection_is_closed() {
    in_netns(async |netns| {
        let daemon = Launch::policy("consistent-hash").start(&netns).await;
        let source = sources_reaching(&daemon.client(), DRAINED, 1).await[0];
        let (mut connection, _) = daemon.client().from(source).hold().await.expect("a connection");

        daemon.tell(&["drain", "2"]).await;
        daemon
            .wait("it drains, with one connection left", |group| {
                let worker = group.worker(DRAINED);
                worker.state == WorkerState::Draining && worker.connections.active == 1
            })
            .await;
        let answer = connection.ask("/").await.expect("an open connection is still served");
        assert_eq!(answer.worker, DRAINED);
        assert_eq!(daemon.group().await.worker(DRAINED).state, WorkerState::Draining);

        let (waited, ()) = tokio::join!(daemon.cli(&["drain", "2", "--wait"]), async { drop(connection) });
        waited.succeeded();
        assert_eq!(daemon.group().await.worker(DRAINED).state, WorkerState::Drained);
        daemon.stop().await;
    });
}

#[test]
fn stop_ends_the_process_and_undrain_starts_another() {
    in_netns(async |netns| {
        let daemon = Launch::policy("consistent-hash").start(&netns).await;
        let load = Load::start(&daemon.client(), 8);
        load.more(100).await;
        let before = daemon.group().await.worker(DRAINED).pid.expect("a process");

        daemon.tell(&["drain", "2", "--stop", "--wait"]).await;
        let group = daemon.group().await;
        assert_eq!((group.worker(DRAINED).state, group.worker(DRAINED).pid), (WorkerState::Down, None));
        assert!(Process::find(before).is_none(), "process {before} is still there");
        load.more(200).await;

        daemon.tell(&["undrain", "2"]).await;
        let group =
            daemon.wait("it is back", |group| group.worker(DRAINED).state == WorkerState::Active).await;
        let after = group.worker(DRAINED).pid.expect("a process");
        assert_ne!(after, before);
        let selected = group.worker(DRAINED).connections.selected_total;
        load.more(200).await;
        assert!(
            daemon.group().await.worker(DRAINED).connections.selected_total > selected,
            "it gets connections"
        );
        load.stop().await.assert_nothing_failed();
        daemon.stop().await;
    });
}

#[test]
fn stop_does_not_wait_for_ever() {
    in_netns(async |netns| {
        let daemon = Launch::policy("consistent-hash").start(&netns).await;
        let source = sources_reaching(&daemon.client(), DRAINED, 1).await[0];
        let (mut connection, _) = daemon.client().from(source).hold().await.expect("a connection");
        connection.send("/slow?ms=600000").await.expect("a request that outlasts the test");

        daemon.tell(&["drain", "2", "--stop", "--timeout", "500ms", "--wait"]).await;
        assert_eq!(daemon.group().await.worker(DRAINED).state, WorkerState::Down);
        connection.receive().await.expect_err("the worker has gone");
        daemon.idle().await;
        daemon.stop().await;
    });
}

#[test]
fn the_last_worker_is_drained_only_by_force() {
    in_netns(async |netns| {
        let daemon = Launch::policy("least-loaded").workers(2).start(&netns).await;
        let client: Client = daemon.client();
        daemon.tell(&["drain", "0"]).await;
        daemon.cli(&["drain", "1"]).await.failed_with(&["1", "--force"]);
        let group = daemon.group().await;
        assert_eq!(group.worker(1).state, WorkerState::Active, "what is refused changes nothing");
        assert_eq!(client.worker().await, 1);

        daemon.tell(&["drain", "1", "--force"]).await;
        let error = client.connect().await.expect_err("nobody takes it");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
        assert_eq!(daemon.group().await.outcomes.dropped, 1);

        daemon.tell(&["undrain", "0"]).await;
        assert_eq!(client.worker().await, 0);
        daemon.stop().await;
    });
}
