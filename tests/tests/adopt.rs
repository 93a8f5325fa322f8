//! Servers that run already: found, steered, followed, and left as they were.

use std::{collections::BTreeSet, sync::Arc};

use reuseport_lb::{
    control::{GroupStatus, Mode},
    group::WorkerState,
};
use reuseport_lb_tests::{
    GroupExt, Launch, Load, Netns, Server, connections, eventually, in_netns,
    process::kill_and_wait,
    server::{listening_at, perl},
    within,
};
use rustix::process::Signal;

const ADDRESS: &str = "127.0.0.1:8080";

async fn servers(n: usize) -> Vec<Server> {
    let mut servers = Vec::new();
    for _ in 0..n {
        servers.push(Server::perl(ADDRESS).await);
    }
    servers
}

fn pids(group: &GroupStatus) -> BTreeSet<u32> {
    group.workers.iter().filter_map(|worker| worker.pid).collect()
}

fn pids_of(servers: &[Server]) -> BTreeSet<u32> {
    servers.iter().map(Server::pid).collect()
}

#[test]
fn servers_that_run_are_steered_and_told_nothing() {
    in_netns(async |netns| {
        let servers = servers(3).await;
        let load = Load::start(&reuseport_lb_tests::Client::of(ADDRESS.parse().expect("an address")), 8);
        load.more(100).await;
        let daemon = Launch::adopt("round-robin").start(&netns).await;
        load.more(100).await;
        load.pause().await;
        let group = daemon.idle().await;
        assert_eq!((group.mode, pids(&group)), (Mode::Adopted, pids_of(&servers)));

        let before: u64 = group.selected().iter().sum();
        let account = connections(&daemon.client(), 30, 1).await;
        account.assert_nothing_failed();
        let group = daemon.group().await;
        assert_eq!(group.selected().iter().sum::<u64>() - before, 30, "{group:#?}");
        assert!(group.selected().iter().all(|selected| *selected >= 8), "{group:#?}");
        assert_eq!(group.outcomes.fallback, 0);

        // When the daemon leaves, the kernel picks again, and each of them goes on.
        load.resume();
        load.more(100).await;
        daemon.stop().await;
        load.more(100).await;
        load.stop().await.assert_nothing_failed();
        let mut answered = BTreeSet::new();
        while answered != pids_of(&servers) {
            answered.insert(connection_pid(ADDRESS).await);
        }
    });
}

async fn connection_pid(address: &str) -> u32 {
    let client = reuseport_lb_tests::Client::of(address.parse().expect("an address"));
    client.ask("/").await.expect("an answer").pid
}

#[test]
fn sockets_are_followed_as_they_come_and_go() {
    in_netns(async |netns| {
        // The daemon is there before the servers.
        let daemon = Launch::adopt("round-robin").start_unready(&netns).await;
        assert_eq!(daemon.group().await.workers.len(), 0);
        let mut servers = servers(2).await;
        daemon.wait("both are there", |group| pids(group) == pids_of(&servers)).await;

        let third = Server::perl(ADDRESS).await;
        let group = daemon.wait("a third is there", |group| group.workers.len() == 3).await;
        assert_eq!(group.worker(2).pid, Some(third.pid()));
        connections(&daemon.client(), 12, 1).await.assert_nothing_failed();
        assert!(daemon.group().await.worker(2).connections.selected_total >= 2);

        // Its number is free again once it is gone, and so is what was counted for it.
        let first = servers.remove(0);
        first.kill().await;
        daemon.wait("one has left", |group| group.workers.len() == 2).await;
        servers.push(third);
        servers.push(Server::perl(ADDRESS).await);
        let group = daemon.wait("another one is there", |group| group.workers.len() == 3).await;
        assert_eq!(group.worker(0).pid, Some(servers[2].pid()));
        assert_eq!(group.worker(0).connections.selected_total, 0);
        assert_eq!(pids(&group), pids_of(&servers));
        let account = connections(&daemon.client(), 30, 4).await;
        account.assert_nothing_failed();
        let group = daemon.idle().await;
        assert!(group.worker(0).connections.selected_total > 0);
        assert_eq!(group.outcomes.fallback, 0);

        // All go, and the program with the kernel's group; the next one is steered again.
        for server in servers {
            server.kill().await;
        }
        daemon.wait("nobody is left", |group| group.workers.is_empty()).await;
        let last = Server::perl(ADDRESS).await;
        daemon.wait("a new one is there", |group| pids(group) == BTreeSet::from([last.pid()])).await;
        let before = daemon.group().await.outcomes.selected;
        connections(&daemon.client(), 5, 1).await.assert_nothing_failed();
        assert_eq!(daemon.group().await.outcomes.selected, before + 5);
        daemon.stop().await;
    });
}

#[test]
fn a_socket_dies_with_its_owner() {
    in_netns(async |netns| {
        let servers = servers(2).await;
        let daemon = Launch::adopt("least-loaded").start(&netns).await;
        // A switch takes a handle once more.
        daemon.tell(&["policy", "random"]).await;
        assert_eq!(listening_at(8080), 2);
        for server in servers {
            server.kill().await;
        }
        eventually("no socket is left", async || match listening_at(8080) {
            0 => Ok(()),
            left => Err(format!("{left} sockets")),
        })
        .await;
        daemon.stop().await;
    });
}

#[test]
fn adopted_workers_are_drained_weighed_and_never_stopped() {
    in_netns(async |netns| {
        let servers = servers(3).await;
        let daemon = Launch::adopt("round-robin").start(&netns).await;
        let client = daemon.client();

        daemon.tell(&["drain", "1", "--wait"]).await;
        connections(&client, 20, 2).await.assert_nothing_failed();
        let group = daemon.idle().await;
        assert_eq!(group.worker(1).state, WorkerState::Drained);
        assert_eq!(group.worker(1).connections.selected_total, 0);
        daemon.tell(&["undrain", "1"]).await;
        daemon.tell(&["weight", "1", "8"]).await;
        connections(&client, 100, 1).await.assert_nothing_failed();
        let group = daemon.idle().await;
        assert!(group.worker(1).connections.selected_total >= 70, "{group:#?}");

        daemon.tell(&["policy", "kernel"]).await;
        let before = daemon.group().await.runs();
        connections(&client, 10, 1).await.assert_nothing_failed();
        assert_eq!(daemon.group().await.runs(), before);
        daemon.tell(&["policy", "least-loaded"]).await;
        connections(&client, 10, 1).await.assert_nothing_failed();
        assert_eq!(daemon.group().await.runs(), before + 10);

        for refused in [
            &["drain", "0", "--stop"][..],
            &["restart", "0"],
            &["restart", "--rolling"],
            &["scale", "5"],
            &["stop", "0"],
            &["start", "0"],
        ] {
            daemon.cli(refused).await.failed_with(&["did not start", "by their own means"]);
        }
        let shown = daemon.tell(&["status"]).await;
        assert!(shown.stdout.contains("adopted"), "{shown}");
        assert_eq!(pids(&daemon.group().await), pids_of(&servers));
        daemon.stop().await;
    });
}

/// What a closing server leaves in its queue goes to the others, as with workers of our own.
#[test]
fn the_queue_of_a_server_that_ends_is_served_by_the_others() {
    in_netns(async |netns| {
        const QUEUED: usize = 20;
        let servers = servers(2).await;
        let daemon = Launch::adopt("round-robin").start(&netns).await;
        // Both stand still, so what arrives waits in their queues.
        for server in &servers {
            server.process().signal(Signal::STOP);
        }
        let mut waiting = Vec::new();
        for _ in 0..QUEUED {
            let mut connection = daemon.client().connect().await.expect("a connection");
            connection.send("/").await.expect("a request");
            waiting.push(connection);
        }
        let [stays, goes]: [Server; 2] = servers.try_into().expect("two servers");
        // A process that sleeps in `accept` takes one more when it is woken, so it is killed while it stands still.
        goes.kill().await;
        stays.process().signal(Signal::CONT);
        // Each closes once it is served, in whatever order that is.
        let mut receiving = tokio::task::JoinSet::new();
        for mut connection in waiting {
            receiving.spawn(async move { connection.receive().await });
        }
        let answers = within("all are answered", receiving.join_all()).await;
        let served = answers.iter().flatten().filter(|answer| answer.pid == stays.pid()).count();
        // What the dead one had accepted itself is lost: at most the one that its `accept` had taken.
        assert!(served >= QUEUED - 1, "{served} of {QUEUED}\n{daemon}");
        assert!(daemon.group().await.outcomes.migrated > 0, "{daemon}");
        daemon.stop().await;
    });
}

#[test]
fn what_cannot_be_steered_is_named() {
    in_netns(async |netns| {
        // A socket of its own.
        let alone = Server::spawn(["env".into(), "ALONE=1".into()].into_iter().chain(perl(ADDRESS)));
        eventually("it listens", async || (listening_at(8080) == 1).then_some(()).ok_or("not yet")).await;
        let named = format!("perl (pid {})", alone.pid());
        let output = Launch::adopt("hash").fail_beside(&netns, 8080).await;
        output.failed_with(&["SO_REUSEPORT", &named]);
        alone.kill().await;

        // Somebody else has the address's connections.
        let wide = Server::perl("0.0.0.0:8080").await;
        let named = format!("perl (pid {})", wide.pid());
        let output = Launch::adopt("hash").fail_beside(&netns, 8080).await;
        output.failed_with(&["nobody listens at 127.0.0.1:8080", "0.0.0.0:8080", &named]);

        // Somebody has a part of them.
        let narrow = Server::perl(ADDRESS).await;
        let named = format!("perl (pid {})", narrow.pid());
        let daemon = Launch::adopt("hash").listen("0.0.0.0:8080").start(&netns).await;
        assert_eq!(pids(&daemon.group().await), BTreeSet::from([wide.pid()]));
        let told = daemon.written("stderr");
        assert!(told.contains(&named), "{told}");
        daemon.stop().await;
        drop((wide, narrow));
    });
}

#[test]
fn a_group_in_another_network_namespace() {
    in_netns(async |netns| {
        let there = Arc::new(Netns::new());
        let server = there.within(|| Server::spawn(perl(ADDRESS)));
        eventually("it listens", async || {
            there.within(|| (listening_at(8080) == 1).then_some(()).ok_or("not yet"))
        })
        .await;
        // Another one at the same address, here.
        let here = Server::perl(ADDRESS).await;

        let daemon = Launch::adopt("hash").arg("--netns").arg(server.pid().to_string()).start(&netns).await;
        assert_eq!(pids(&daemon.group().await), BTreeSet::from([server.pid()]));
        let client = daemon.client().inside(&there);
        connections(&client, 10, 1).await.assert_nothing_failed();
        assert_eq!(daemon.group().await.outcomes.selected, 10);
        let second = there.within(|| Server::spawn(perl(ADDRESS)));
        daemon.wait("a second is there", |group| group.workers.len() == 2).await;
        let also_here = Server::perl(ADDRESS).await;
        connections(&client, 20, 1).await.assert_nothing_failed();
        let group = daemon.group().await;
        assert_eq!(pids(&group), BTreeSet::from([server.pid(), second.pid()]));
        daemon.stop().await;
        here.kill().await;
        also_here.kill().await;

        let path = format!("/proc/{}/ns/net", server.pid());
        let launch = Launch::policy("hash").listen("127.0.0.1:9090").workers(2).arg("--netns").arg(path);
        let daemon = launch.start(&netns).await;
        let client = daemon.client();
        assert!(client.ask("/").await.is_err(), "nobody listens here");
        connections(&client.inside(&there), 10, 1).await.assert_nothing_failed();
        assert_eq!(daemon.group().await.outcomes.selected, 10);
        let worker = daemon.group().await.worker(0).pid.expect("a process");
        assert!(there.processes().contains(&worker));
        daemon.stop().await;

        let launch = Launch::policy("hash").arg("--netns").arg("/nonexistent");
        launch.fail_beside(&netns, 8080).await.failed_with(&["network namespace /nonexistent"]);
    });
}

/// Those who listen beside the workers of a group get nothing, and are named.
#[test]
fn a_stranger_among_workers_that_bind_for_themselves_is_named() {
    in_netns(async |netns| {
        let line = perl(ADDRESS);
        let command: Vec<&str> = line.iter().map(String::as_str).collect();
        let daemon = Launch::policy("round-robin")
            .workers(2)
            .arg("--self-bind")
            .worker_command(&command)
            .start(&netns)
            .await;
        let stranger = Server::perl(ADDRESS).await;
        let named = format!("perl (pid {})", stranger.pid());
        eventually("the stranger is named", async || {
            let told = daemon.written("stderr");
            if told.contains(&named) { Ok(()) } else { Err(told) }
        })
        .await;
        let workers = pids(&daemon.group().await);
        for _ in 0..20 {
            assert!(workers.contains(&connection_pid(ADDRESS).await));
        }
        stranger.kill().await;
        daemon.stop().await;
    });
}

#[test]
fn a_second_program_is_named_and_refused() {
    in_netns(async |netns| {
        let _servers = servers(2).await;
        let first = Launch::adopt("round-robin").start(&netns).await;
        let named = format!("reuseport-lb (pid {})", first.process().pid);
        let output = Launch::adopt("hash").fail_beside(&netns, 8080).await;
        output.failed_with(&["127.0.0.1:8080 is steered already", "select_round_ro", &named]);
        // Nothing has changed for the first one.
        let before = first.group().await.outcomes.selected;
        connections(&first.client(), 10, 2).await.assert_nothing_failed();
        assert_eq!(first.group().await.outcomes.selected, before + 10);
        first.stop().await;
        // Nothing of it is left that would keep the next one out.
        Launch::adopt("hash").start(&netns).await.stop().await;
    });
}

/// A daemon that dies leaves its program behind, which goes on; the next one takes the sockets from it.
#[test]
fn the_next_daemon_takes_over_from_one_that_died() {
    in_netns(async |netns| {
        let servers = servers(3).await;
        let first = Launch::adopt("round-robin").start(&netns).await;
        let load = Load::start(&first.client(), 8);
        load.more(200).await;
        kill_and_wait(first.process().pid);
        load.more(200).await;
        let second = Launch::adopt("least-loaded").start(&netns).await;
        load.more(200).await;
        load.stop().await.assert_nothing_failed();
        assert_eq!(pids(&second.group().await), pids_of(&servers));
        let before = second.idle().await.outcomes.selected;
        connections(&second.client(), 30, 4).await.assert_nothing_failed();
        let group = second.idle().await;
        assert_eq!((group.outcomes.selected, group.outcomes.fallback), (before + 30, 0), "{group:#?}");
        second.stop().await;
    });
}
