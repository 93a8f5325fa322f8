//! What a daemon writes down for the next one: what is not in it, not true any more, of another version, or nonsense.

use std::fs;

use reuseport_lb::state::{FORMAT, StateFile};
use reuseport_lb_tests::{
    Daemon, GroupExt, Launch, Load, connections, eventually, in_netns,
    process::{Process, kill_and_wait},
};

const LOAD: usize = 8;

/// Changes the state file as text.
fn edit_state(daemon: &Daemon, edit: impl FnOnce(String) -> String) {
    let before = fs::read_to_string(daemon.state_file()).expect("the state file");
    let after = edit(before.clone());
    assert_ne!(before, after, "there was nothing to edit");
    fs::write(daemon.state_file(), after).expect("the state file");
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

/// What a daemon leaves behind that dies between two steps: a process that was started and not written down. It is kept
/// where nobody waits for it to say that it is ready; otherwise it may have said so to nobody (`interrupted.rs`).
#[test]
fn a_process_that_nobody_wrote_down_is_found() {
    in_netns(async |netns| {
        let mut daemon = Launch::policy("hash").workers(2).arg("--ready=exec").start(&netns).await;
        let before = daemon.group().await;
        daemon.kill().await;
        let written = StateFile::of(daemon.control()).expect("this boot").read();
        let written = written.expect("a state that is understood").expect("a state");
        edit_state(&daemon, |_| {
            let mut state = serde_json::to_value(&written).expect("JSON");
            let group = &mut state["groups"][0];
            group["processes"].as_object_mut().expect("processes").remove("1");
            group["sockets"].as_object_mut().expect("sockets").remove("1");
            group["group"]["workers"]["1"]["process"] = serde_json::json!({"down": {"restart_at": null}});
            state.to_string()
        });
        daemon.start_again(&[]).await;
        let group = daemon.group().await;
        assert_eq!(group.pids(), before.pids(), "{daemon}");
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
            assert_eq!(group.pids(), before.pids(), "{what}");
            let log = daemon.written("stderr");
            assert!(log.contains("TABLES"), "it says which were replaced: {log}");
            load.more(200).await;
            load.stop().await.assert_nothing_failed();
            let group = daemon.group().await;
            // But for what was on its way when they took over.
            let least = 200 - LOAD as u64;
            assert!(group.outcomes.selected >= least, "the new programs pick: {group:?}");
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
            (good.replace(&format!("\"format\":{FORMAT},"), "\"format\":1000,"), ["format 1000", "version"]),
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
        assert_eq!(daemon.group().await.pids(), before.pids());
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
        assert_eq!(daemon.group().await.pids(), before.pids());
        daemon.stop().await;
    });
}
