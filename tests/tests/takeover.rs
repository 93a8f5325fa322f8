//! The daemon dies and another one takes over: no connection notices, no worker is restarted, nothing is forgotten.

use std::{collections::BTreeMap, fs};

use reuseport_lb::{control::GroupStatus, group::WorkerState, policy::Policy};
use reuseport_lb_tests::{
    Daemon, GroupExt, Launch, Load, Server, connections, eventually, fixed_sources, hold, in_netns,
    process::{Process, kill_and_wait},
    server::perl,
    workers_of,
};

const LOAD: usize = 8;

fn pids(group: &GroupStatus) -> BTreeMap<u16, Option<u32>> {
    group.workers.iter().map(|worker| (worker.id.0, worker.pid)).collect()
}

/// Changes the state file as text.
fn edit_state(daemon: &Daemon, edit: impl FnOnce(String) -> String) {
    let before = fs::read_to_string(daemon.state_file()).expect("the state file");
    let after = edit(before.clone());
    assert_ne!(before, after, "there was nothing to edit");
    fs::write(daemon.state_file(), after).expect("the state file");
}

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
                assert_eq!(pids(&group), pids(&before), "no worker was restarted\n{daemon}");
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
        assert_eq!(pids(&group), pids(&before));
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

/// A process that has the number of a worker of before is none.
#[test]
fn a_process_with_the_same_number_is_left_alone() {
    in_netns(async |netns| {
        let mut daemon = Launch::policy("hash").workers(2).start(&netns).await;
        let worker = daemon.group().await.worker(1).pid.expect("a process");
        daemon.kill().await;
        kill_and_wait(worker);
        let stranger = tokio::process::Command::new("sleep").arg("1000").kill_on_drop(true).spawn();
        let mut stranger = stranger.expect("sleep");
        let pid = stranger.id().expect("a process");
        edit_state(&daemon, |state| state.replace(&format!("\"pid\":{worker}"), &format!("\"pid\":{pid}")));
        daemon.start_again(&[]).await;
        daemon
            .wait("worker 1 is another process", |group| {
                group.all_active() && group.worker(1).pid != Some(pid)
            })
            .await;
        daemon.tell(&["shutdown"]).await;
        daemon.ended_but_for(&[pid]).await;
        assert!(stranger.try_wait().expect("wait").is_none(), "nobody has touched it");
        stranger.kill().await.expect("kill");
    });
}

/// What a daemon leaves behind that dies between two steps: a process that was started and not written down.
#[test]
fn a_process_that_nobody_wrote_down_is_found() {
    in_netns(async |netns| {
        let mut daemon = Launch::policy("hash").workers(2).start(&netns).await;
        let before = daemon.group().await;
        daemon.kill().await;
        edit_state(&daemon, |state| {
            let mut state: serde_json::Value = serde_json::from_str(&state).expect("JSON");
            let group = &mut state["groups"][0];
            group["processes"].as_object_mut().expect("processes").remove("1");
            group["sockets"].as_object_mut().expect("sockets").remove("1");
            group["group"]["workers"]["1"]["process"] = serde_json::json!({"down": {"restart_at": null}});
            state.to_string()
        });
        daemon.start_again(&[]).await;
        let group = daemon.group().await;
        assert_eq!(pids(&group), pids(&before), "{daemon}");
        connections(&daemon.client(), 50, 4).await.assert_nothing_failed();
        daemon.stop().await;
    });
}

/// Maps of another layout are replaced under load, with one attachment, and the sockets change from one array to another.
#[test]
fn maps_that_do_not_fit_are_replaced_without_a_lost_connection() {
    in_netns(async |netns| {
        for (what, from) in [("layout", "\"layout\":"), ("every map", "\"generation\":1,\"layout\":")] {
            let mut daemon = Launch::policy("consistent-hash").start(&netns).await;
            let before = daemon.group().await;
            let load = Load::start(&daemon.client(), LOAD);
            load.more(100).await;
            daemon.kill().await;
            // As if another version had made them; or, the second time, as if none of them could be found where they
            // should be, which leaves the sockets in an array that only the folder beside it knows.
            let to = match what {
                "layout" => "\"layout\":1000",
                _ => "\"generation\":7,\"layout\":",
            };
            edit_state(&daemon, |state| state.replace(from, to));
            daemon.start_again(&[]).await;
            let group = daemon.group().await;
            assert_eq!(pids(&group), pids(&before), "{what}");
            let log = daemon.written("stderr");
            assert!(log.contains("TABLES"), "it says which were replaced: {log}");
            load.more(200).await;
            load.stop().await.assert_nothing_failed();
            let group = daemon.group().await;
            assert!(group.outcomes.selected >= 200, "the new programs pick: {group:?}");
            // The connections of before had been counted in other maps.
            eventually("nothing is counted any more", async || {
                let active = daemon.group().await.active();
                if active.iter().all(|count| *count == 0) { Ok(()) } else { Err(format!("{active:?}")) }
            })
            .await;
            daemon.stop().await;
        }
    });
}

#[test]
fn a_state_that_makes_no_sense_is_refused_and_touches_nothing() {
    in_netns(async |netns| {
        let mut daemon = Launch::policy("hash").start(&netns).await;
        let before = daemon.group().await;
        daemon.kill().await;
        let good = fs::read_to_string(daemon.state_file()).expect("the state file");
        let load = Load::start(&daemon.client(), 4);
        for (bad, words) in [
            ("{".to_owned(), ["state", "remove"]),
            (good.replace("\"format\":1", "\"format\":1000"), ["format 1000", "version"]),
            (good.replace("\"weight\":1", "\"weight\":0"), ["weight 0", "remove"]),
        ] {
            fs::write(daemon.state_file(), &bad).expect("the state file");
            daemon.fail_again(&[]).await.failed_with(&words);
            assert_eq!(fs::read_to_string(daemon.state_file()).expect("the state file"), bad);
            assert!(!daemon.control().exists());
            load.more(50).await;
        }
        fs::write(daemon.state_file(), &good).expect("the state file");
        daemon.start_again(&[]).await;
        assert_eq!(pids(&daemon.group().await), pids(&before));
        load.stop().await.assert_nothing_failed();
        daemon.stop().await;
    });
}

#[test]
fn another_configuration_does_not_forget_workers_that_run() {
    in_netns(async |netns| {
        let mut daemon = Launch::policy("hash").start(&netns).await;
        let before = daemon.group().await;
        daemon.kill().await;
        daemon.fail_again(&["--name", "other"]).await.failed_with(&["default", "127.0.0.1:8080"]);
        for worker in &before.workers {
            assert!(Process::find(worker.pid.expect("a process")).is_some(), "it runs on");
        }
        daemon.start_again(&["--grace", "5s"]).await;
        assert_eq!(pids(&daemon.group().await), pids(&before));
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

/// A worker never sees what is the daemon's: programs, maps, the control socket, other workers' sockets.
#[test]
fn workers_see_nothing_of_the_daemons() {
    in_netns(async |netns| {
        let mut daemon = Launch::policy("hash").start(&netns).await;
        assert_only_its_own(&daemon.group().await);
        daemon.kill().await;
        daemon.start_again(&[]).await;
        // One of those that the second daemon starts.
        daemon.tell(&["restart", "1"]).await;
        let group = daemon.wait("all are active", GroupExt::all_active).await;
        assert_only_its_own(&group);
        daemon.stop().await;
    });
}

/// Of each worker's descriptors, all are of kinds that the built-in server opens itself, but for the one socket.
fn assert_only_its_own(group: &GroupStatus) {
    for worker in &group.workers {
        let folder = format!("/proc/{}/fd", worker.pid.expect("a process"));
        let mut listening = 0;
        for entry in fs::read_dir(&folder).expect("its descriptors") {
            let entry = entry.expect("a descriptor");
            let target = fs::read_link(entry.path()).expect("what it is").display().to_string();
            assert!(!target.contains("bpf"), "{folder}: {target}");
            assert!(!target.contains("pidfd") && !target.contains("memfd"), "{folder}: {target}");
            let number: i32 = entry.file_name().to_str().expect("a number").parse().expect("a number");
            if target.starts_with("socket:") && is_listening_or_unix(&target) {
                assert_eq!(number, 3, "{folder}: {target}");
                listening += 1;
            }
        }
        assert_eq!(listening, 1, "{folder}");
    }
}

/// Whether a socket of this namespace listens, or is a Unix socket with a name.
fn is_listening_or_unix(target: &str) -> bool {
    let inode = target.trim_start_matches("socket:[").trim_end_matches(']');
    let is_in = |path: &str, column: usize, wanted: &dyn Fn(&[&str]) -> bool| {
        fs::read_to_string(path).unwrap_or_default().lines().any(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields.get(column) == Some(&inode) && wanted(&fields)
        })
    };
    // 0A is LISTEN.
    is_in("/proc/thread-self/net/tcp", 9, &|fields| fields[3] == "0A")
        || is_in("/proc/thread-self/net/unix", 6, &|fields| fields.len() > 7)
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
        let before = daemon.group().await;
        let load = Load::start(&daemon.client(), 4);
        load.more(100).await;
        daemon.kill().await;
        load.more(100).await;
        daemon.start_again(&[]).await;
        let group = daemon.group().await;
        assert_eq!(pids(&group), pids(&before), "each has its number still\n{daemon}");
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
        assert_eq!(pids(&group), pids(&before), "{daemon}");
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
