//! The daemon dies and another one takes over: no connection notices, no worker is restarted, nothing is forgotten.

use reuseport_lb::{group::WorkerState, policy::Policy};
use reuseport_lb_tests::{
    GroupExt, Launch, Load, Server, connections, eventually, fixed_sources, hold, in_netns,
    process::kill_and_wait, run, server::perl, workers_of,
};

const LOAD: usize = 8;

#[test]
fn kill_and_start_again_under_load() {
    in_netns(async |netns| {
        for policy in ["least-loaded", "consistent-hash"] {
            let mut daemon = Launch::policy(policy).start(&netns).await;
            let before = daemon.group().await;
            let load = Load::start(&daemon.client(), LOAD);
            for generation in 2..5 {
                load.more(200).await;
                let counted = daemon.group().await.runs();
                daemon.kill().await;
                // Steering goes on without a daemon.
                load.more(200).await;
                let took = daemon.start_again(&[]).await;
                println!("{policy}: took over in {took:?}");
                let status = daemon.status().await;
                assert_eq!(status.generation, generation);
                let group = daemon.group().await;
                assert_eq!(group.pids(), before.pids(), "no worker was restarted\n{daemon}");
                assert!(group.all_active(), "{group:?}\n{daemon}");
                assert!(group.runs() >= counted + 200, "the counters went on: {counted} -> {}", group.runs());
                assert_eq!(group.outcomes.fallback, 0, "the kernel never had to pick\n{daemon}");
                load.more(200).await;
            }
            let account = load.stop().await;
            account.assert_nothing_failed();
            let group = daemon.idle().await;
            assert_eq!(group.outcomes.selected, account.total(), "every connection was counted once");
            assert_eq!(group.selected().iter().sum::<u64>(), account.total());
            daemon.stop().await;
        }
    });
}

#[test]
fn what_was_wished_survives() {
    in_netns(async |netns| {
        let mut daemon = Launch::policy("consistent-hash").workers(5).start(&netns).await;
        let victim = daemon.group().await.worker(4).pid.expect("a process");
        kill_and_wait(victim);
        daemon.wait("worker 4 is back", |group| group.worker(4).restarts == 1 && group.all_active()).await;
        daemon.tell(&["weight", "1", "9"]).await;
        daemon.tell(&["drain", "2", "--wait"]).await;
        daemon.tell(&["drain", "3", "--stop", "--wait"]).await;
        let sources = fixed_sources(60);
        let homes = workers_of(&daemon.client(), &sources).await;
        let before = daemon.idle().await;

        daemon.kill().await;
        assert_eq!(workers_of(&daemon.client(), &sources).await, homes, "without a daemon");
        daemon.start_again(&[]).await;
        assert_eq!(workers_of(&daemon.client(), &sources).await, homes, "each client keeps its worker");
        let group =
            daemon.wait("worker 2 is drained", |group| group.worker(2).state == WorkerState::Drained).await;
        assert_eq!(group.pids(), before.pids());
        assert_eq!(group.worker(1).weight, 9);
        assert_eq!(group.worker(3).state, WorkerState::Down);
        assert_eq!(group.worker(4).restarts, 1);

        // And it obeys.
        daemon.tell(&["undrain", "2"]).await;
        daemon.tell(&["undrain", "3"]).await;
        daemon.wait("all are active", GroupExt::all_active).await;
        connections(&daemon.client(), 200, 4).await.assert_nothing_failed();
        daemon.stop().await;
    });
}

#[test]
fn the_policy_chosen_last_stays_unless_the_configuration_changes() {
    in_netns(async |netns| {
        let mut daemon = Launch::policy("hash").start(&netns).await;
        daemon.tell(&["policy", "least-loaded"]).await;
        daemon.kill().await;
        daemon.start_again(&[]).await;
        assert_eq!(daemon.group().await.policy.name, Policy::LeastLoaded);
        daemon.kill().await;
        daemon.start_again(&[]).await;
        assert_eq!(daemon.group().await.policy.name, Policy::LeastLoaded, "the same once more");
        daemon.tell(&["policy", "kernel"]).await;
        daemon.kill().await;
        daemon.start_again(&[]).await;
        let group = daemon.group().await;
        assert_eq!(group.policy.name, Policy::Kernel);
        connections(&daemon.client(), 50, 4).await.assert_nothing_failed();
        assert_eq!(daemon.group().await.runs(), group.runs(), "no program runs");
        daemon.stop().await;
    });
}

/// Open connections, and those in the handshake's queue, go on being counted for their workers.
#[test]
fn least_loaded_goes_on_counting() {
    in_netns(async |netns| {
        let mut daemon = Launch::policy("least-loaded").start(&netns).await;
        let held = hold(&daemon.client(), 8).await;
        assert_eq!(daemon.group().await.active(), [2; 4]);
        daemon.kill().await;
        // Two workers lose their connections while nobody is there, and get the next ones.
        let (mut gone, mut kept) = (Vec::new(), Vec::new());
        for (connection, worker) in held {
            if worker < 2 { gone.push(connection) } else { kept.push(connection) }
        }
        for connection in gone {
            connection.half_close().await.expect("an end");
        }
        // The client's end is not yet the server's: the last packet of the connection may be on its way.
        eventually("only what was kept is open", async || {
            let open = run(&["ss", "-Htn", "state", "connected", "exclude", "time-wait", "sport = :8080"]);
            let open = open.await.succeeded().stdout;
            if open.lines().count() == kept.len() { Ok(()) } else { Err(open) }
        })
        .await;
        let more = hold(&daemon.client(), 4).await;
        assert!(more.iter().all(|(_, worker)| *worker < 2), "the counts went down without a daemon");
        daemon.start_again(&[]).await;
        assert_eq!(daemon.group().await.active(), [2; 4]);
        drop((kept, more));
        assert_eq!(daemon.idle().await.active(), [0; 4]);
        daemon.stop().await;
    });
}

#[test]
fn a_worker_that_died_meanwhile_is_started_again() {
    in_netns(async |netns| {
        let mut daemon = Launch::policy("round-robin").start(&netns).await;
        let before = daemon.group().await;
        let load = Load::start(&daemon.client(), LOAD);
        load.more(100).await;
        load.pause().await;
        daemon.kill().await;
        kill_and_wait(before.worker(1).pid.expect("a process"));
        load.resume();
        load.more(100).await;
        daemon.start_again(&[]).await;
        let group =
            daemon.wait("it is back", |group| group.all_active() && group.worker(1).restarts == 1).await;
        for id in [0, 2, 3] {
            assert_eq!(group.worker(id).pid, before.worker(id).pid);
        }
        load.more(200).await;
        let account = load.stop().await;
        account.assert_nothing_failed();
        daemon.stop().await;
    });
}

/// A worker that is no child is watched and signalled all the same.
#[test]
fn workers_taken_over_are_supervised() {
    in_netns(async |netns| {
        let mut daemon = Launch::policy("hash").start(&netns).await;
        let before = daemon.group().await;
        daemon.kill().await;
        daemon.start_again(&[]).await;
        kill_and_wait(before.worker(0).pid.expect("a process"));
        daemon.wait("worker 0 is back", |group| group.worker(0).restarts == 1 && group.all_active()).await;
        daemon.tell(&["restart", "1"]).await;
        let group = daemon.group().await;
        assert_ne!(group.worker(1).pid, before.worker(1).pid);
        connections(&daemon.client(), 100, 4).await.assert_nothing_failed();
        daemon.stop().await;
    });
}

#[test]
fn when_everybody_died_all_begin_again() {
    in_netns(async |netns| {
        let mut daemon = Launch::policy("hash").start(&netns).await;
        daemon.tell(&["weight", "2", "5"]).await;
        let before = daemon.group().await;
        daemon.kill().await;
        for worker in &before.workers {
            kill_and_wait(worker.pid.expect("a process"));
        }
        daemon.start_again(&[]).await;
        let group = daemon.wait("all are active", GroupExt::all_active).await;
        assert_eq!(group.worker(2).weight, 5);
        connections(&daemon.client(), 50, 4).await.assert_nothing_failed();
        daemon.stop().await;
    });
}

/// Adopted servers keep their numbers, and what was wished of them, over the death of the daemon.
#[test]
fn adopted_servers_are_taken_over() {
    in_netns(async |netns| {
        let mut servers = Vec::new();
        for _ in 0..3 {
            servers.push(Server::perl("127.0.0.1:8080").await);
        }
        let mut daemon = Launch::adopt("round-robin").start(&netns).await;
        daemon.tell(&["weight", "1", "5"]).await;
        let load = Load::start(&daemon.client(), 4);
        load.more(100).await;
        let before = daemon.group().await;
        daemon.kill().await;
        load.more(100).await;
        daemon.start_again(&[]).await;
        let group = daemon.group().await;
        assert!(group.runs() >= before.runs() + 100, "what ran meanwhile is counted, too: {group:?}");
        assert_eq!(group.pids(), before.pids(), "each has its number still\n{daemon}");
        assert_eq!(group.worker(1).weight, 5);
        let runs = group.runs();
        load.more(100).await;
        load.stop().await.assert_nothing_failed();
        let group = daemon.idle().await;
        assert!(group.runs() >= runs + 100, "the program picks: {group:?}");
        assert_eq!(group.outcomes.fallback, 0);
        daemon.stop().await;
    });
}

/// Workers that open their sockets themselves are taken over with them.
#[test]
fn workers_that_bind_for_themselves_are_taken_over() {
    in_netns(async |netns| {
        let line = perl("127.0.0.1:8080");
        let command: Vec<&str> = line.iter().map(String::as_str).collect();
        let launch = Launch::policy("round-robin").workers(3).arg("--self-bind").worker_command(&command);
        let mut daemon = launch.start(&netns).await;
        let before = daemon.group().await;
        let load = Load::start(&daemon.client(), 4);
        load.more(100).await;
        daemon.kill().await;
        load.more(100).await;
        daemon.start_again(&[]).await;
        let group = daemon.wait("all are active", GroupExt::all_active).await;
        assert_eq!(group.pids(), before.pids(), "{daemon}");
        let runs = group.runs();
        load.more(100).await;
        load.stop().await.assert_nothing_failed();
        let group = daemon.idle().await;
        assert!(group.runs() >= runs + 100, "the program picks: {group:?}");
        // And they are supervised.
        kill_and_wait(group.worker(1).pid.expect("a process"));
        daemon.wait("it is back", |group| group.worker(1).restarts == 1 && group.all_active()).await;
        daemon.stop().await;
    });
}
