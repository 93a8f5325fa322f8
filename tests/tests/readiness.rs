//! A worker gets connections when it is ready, and says how it is by systemd's notify protocol.

use std::path::PathBuf;

use reuseport_lb::group::WorkerState;
use reuseport_lb_tests::{
    Client, Daemon, GroupExt, Launch, Load, connections, eventually, in_netns,
    process::{Process, signal},
    scripts::server,
    sources_reaching, within,
};
use rustix::process::Signal;

/// Workers that run a script, with `args` for the daemon.
fn launch(policy: &str, before: &str, args: &[&str]) -> Launch {
    let script = server(before);
    let words: Vec<&str> = script.iter().map(String::as_str).collect();
    args.iter().fold(Launch::policy(policy), |launch, arg| launch.arg(*arg)).worker_command(&words)
}

/// A file whose existence lets workers go on.
struct Gate(tempfile::TempDir);

impl Gate {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("open")
    }

    fn open(&self) {
        std::fs::write(self.path(), "").expect("a file");
    }

    fn close(&self) {
        std::fs::remove_file(self.path()).expect("the file is there");
    }

    /// Perl that waits for it.
    fn wait(&self) -> String {
        format!(r#"until (-e "{}") {{ sleep 0.01 }}"#, self.path().display())
    }
}

async fn is(daemon: &Daemon, id: u16, state: WorkerState) {
    daemon.wait(&format!("worker {id} is {state}"), |group| group.worker(id).state == state).await;
}

#[test]
fn with_notify_a_worker_is_ready_when_it_says_so() {
    in_netns(async |netns| {
        let gate = Gate::new();
        gate.open();
        let before = format!(r#"{} tell_("READY=1\nSTATUS=serving {{}}");"#, gate.wait());
        let daemon = launch("round-robin", &before, &["--ready", "notify"]).workers(3).start(&netns).await;
        let table = daemon.tell(&["status"]).await.stdout;
        assert!(table.contains("STATUS") && table.contains("serving {}"), "{table}");
        assert_eq!(daemon.group().await.worker(1).status.as_deref(), Some("serving {}"));

        gate.close();
        daemon.tell(&["restart", "1", "--no-wait"]).await;
        is(&daemon, 1, WorkerState::Starting).await;
        let selected = daemon.group().await.worker(1).connections.selected_total;
        connections(&daemon.client(), 60, 4).await.assert_nothing_failed();
        let group = daemon.group().await;
        assert_eq!(group.worker(1).state, WorkerState::Starting);
        assert_eq!(
            group.worker(1).connections.selected_total,
            selected,
            "it gets nothing before it is ready"
        );
        assert_eq!(group.outcomes.fallback, 0);

        gate.open();
        is(&daemon, 1, WorkerState::Active).await;
        connections(&daemon.client(), 30, 4).await.assert_nothing_failed();
        assert!(daemon.group().await.worker(1).connections.selected_total > selected);
        daemon.stop().await;
    });
}

#[test]
fn while_nobody_is_ready_connections_wait() {
    in_netns(async |netns| {
        let gate = Gate::new();
        let before = format!(r#"{} tell_("READY=1");"#, gate.wait());
        let daemon =
            launch("consistent-hash", &before, &["--ready", "notify"]).workers(2).start_unready(&netns).await;
        let client: Client = daemon.client();
        let mut waiting = Vec::new();
        for _ in 0..10 {
            let mut connection = client.connect().await.expect("the group takes connections");
            connection.send("/").await.expect("a request");
            waiting.push(connection);
        }
        daemon
            .wait("they wait", |group| {
                let queued: u64 = group.workers.iter().map(|worker| worker.connections.queued).sum();
                queued == 10 && group.workers.iter().all(|worker| worker.state == WorkerState::Starting)
            })
            .await;
        gate.open();
        for connection in &mut waiting {
            within("it is answered", connection.receive()).await.expect("an answer");
        }
        daemon.wait("all are ready", GroupExt::all_active).await;
        assert_eq!(daemon.group().await.outcomes.fallback, 0);
        daemon.stop().await;
    });
}

#[test]
fn who_does_not_get_ready_is_started_again_and_ends_a_rolling_restart() {
    in_netns(async |netns| {
        let gate = Gate::new();
        gate.open();
        let before = format!(r#"{} tell_("READY=1");"#, gate.wait());
        let daemon = launch("least-loaded", &before, &["--ready", "notify", "--ready-timeout", "1s"])
            .workers(3)
            .start(&netns)
            .await;
        let load = Load::start(&daemon.client(), 8);
        load.more(50).await;
        let before = daemon.group().await;
        gate.close();
        let failed = daemon.cli(&["restart"]).await;
        assert_eq!(failed.status.code(), Some(1), "{failed}");
        assert!(failed.stderr.contains("not ready within 1s") && failed.stderr.contains("1-2"), "{failed}");
        let after = daemon.group().await;
        for id in [1, 2] {
            assert_eq!(after.worker(id).pid, before.worker(id).pid, "worker {id} is left as it was");
        }
        load.more(50).await;
        load.stop().await.assert_nothing_failed();
        daemon.wait("it is tried again", |group| group.worker(0).restarts >= 2).await;
        gate.open();
        is(&daemon, 0, WorkerState::Active).await;
        daemon.stop().await;
    });
}

#[test]
fn with_accept_a_worker_is_ready_when_it_has_accepted() {
    in_netns(async |netns| {
        let gate = Gate::new();
        gate.open();
        let daemon =
            launch("round-robin", &gate.wait(), &["--ready", "accept"]).workers(3).start(&netns).await;
        gate.close();
        daemon.tell(&["restart", "1", "--no-wait"]).await;
        is(&daemon, 1, WorkerState::Starting).await;
        let selected = daemon.group().await.worker(1).connections.selected_total;

        // Of all these one or two come to it, and wait there; the others are not kept waiting.
        let load = Load::start(&daemon.client(), 8);
        daemon
            .wait("one waits", |group| {
                let worker = group.worker(1);
                worker.state == WorkerState::Starting && worker.connections.queued > 0
            })
            .await;
        load.more(100).await;
        let group = daemon.group().await;
        let got = group.worker(1).connections.selected_total - selected;
        assert!((1..=8).contains(&got), "{got} connections came to a worker that is on trial");
        assert_eq!(group.worker(1).state, WorkerState::Starting);

        gate.open();
        is(&daemon, 1, WorkerState::Active).await;
        load.more(100).await;
        load.stop().await.assert_nothing_failed();
        let group = daemon.group().await;
        assert!(group.worker(1).connections.selected_total > selected + got, "now it gets its share");
        assert_eq!(group.outcomes.fallback, 0);
        daemon.stop().await;
    });
}

#[test]
fn with_exec_a_worker_is_ready_at_once_and_its_queue_waits_for_it() {
    in_netns(async |netns| {
        let gate = Gate::new();
        let daemon = launch("round-robin", &gate.wait(), &["--ready", "exec"]).workers(2).start(&netns).await;
        let mut waiting = daemon.client().connect().await.expect("a connection");
        waiting.send("/").await.expect("a request");
        daemon.wait("it waits", |group| group.active().iter().sum::<u64>() == 1).await;
        gate.open();
        within("it is answered", waiting.receive()).await.expect("an answer");
        daemon.stop().await;
    });
}

#[test]
fn a_worker_that_says_it_stops_gets_nothing_new_and_is_followed_by_another() {
    in_netns(async |netns| {
        let daemon = launch("consistent-hash", "", &[]).workers(2).start(&netns).await;
        let source = sources_reaching(&daemon.client(), 1, 1).await[0];
        let answer =
            daemon.client().from(source).ask("/tell?STOPPING=1;STATUS=saving").await.expect("an answer");
        is(&daemon, 1, WorkerState::Drained).await;
        assert_eq!(daemon.group().await.worker(1).status.as_deref(), Some("saving"));
        let selected = daemon.group().await.worker(1).connections.selected_total;
        connections(&daemon.client(), 40, 4).await.assert_nothing_failed();
        let group = daemon.group().await;
        assert_eq!(group.worker(1).connections.selected_total, selected);
        assert_eq!(group.worker(1).pid, Some(answer.pid), "it ends by itself");
        signal(answer.pid, Signal::TERM);
        daemon
            .wait("another follows", |group| {
                group.worker(1).state == WorkerState::Active && group.worker(1).pid != Some(answer.pid)
            })
            .await;
        assert_eq!(daemon.group().await.worker(1).status, None, "that was the other one's");
        daemon.stop().await;
    });
}

#[test]
fn a_reload_is_shown_and_serves_on() {
    in_netns(async |netns| {
        let daemon = launch("round-robin", "", &[]).workers(1).start(&netns).await;
        daemon.client().ask("/tell?RELOADING=1;MONOTONIC_USEC=7").await.expect("an answer");
        let group = daemon.wait("it reloads", |group| group.worker(0).reloading).await;
        assert_eq!(group.worker(0).state, WorkerState::Active);
        assert!(daemon.tell(&["status"]).await.stdout.contains("reloading"));
        daemon.client().ask("/tell?READY=1").await.expect("an answer");
        daemon.wait("it has", |group| !group.worker(0).reloading).await;
        daemon.stop().await;
    });
}

#[test]
fn a_worker_s_own_children_may_speak_for_it_and_strangers_may_not() {
    in_netns(async |netns| {
        // A shell waits for the server, as many start scripts do.
        let perl = server("");
        let script = r#"trap 'kill $!' TERM; "$@" & wait $!; wait"#;
        let words: Vec<&str> =
            ["sh", "-c", script, "sh"].into_iter().chain(perl.iter().map(String::as_str)).collect();
        let daemon = Launch::policy("round-robin").workers(1).worker_command(&words).start(&netns).await;
        let answer = daemon.client().ask("/tell?STATUS=from+below").await.expect("an answer");
        let group = daemon.wait("it is heard", |group| group.worker(0).status.is_some()).await;
        assert_eq!(group.worker(0).status.as_deref(), Some("from below"));
        assert_ne!(group.worker(0).pid, Some(answer.pid), "it is the shell's child");

        let notify = daemon.client().ask("/env?NOTIFY_SOCKET").await.expect("an answer").value;
        let stranger = std::os::unix::net::UnixDatagram::unbound().expect("a socket");
        stranger.connect(&notify).expect("everybody may write to it");
        for bytes in [b"STOPPING=1".as_slice(), b"STATUS=stranger", &[0xff; 4_096], b""] {
            stranger.send(bytes).expect("room");
        }
        // What comes later is heard later.
        daemon.client().ask("/tell?STATUS=after").await.expect("an answer");
        let group =
            daemon.wait("it is heard", |group| group.worker(0).status.as_deref() == Some("after")).await;
        assert_eq!(group.worker(0).state, WorkerState::Active);
        daemon.stop().await;
    });
}

#[test]
fn a_worker_that_misses_its_watchdog_is_passed_over_and_then_started_again() {
    in_netns(async |netns| {
        // It is passed over for as long before it is given up, which is time enough to see it.
        let daemon = Launch::policy("least-loaded").arg("--watchdog").arg("5s").start(&netns).await;
        let (mut busy, answer) = daemon.client().hold().await.expect("a connection");
        let id = answer.worker;
        // It computes for an hour, and has one thread: no more notices.
        busy.send("/burn?ms=3600000").await.expect("a request");
        is(&daemon, id, WorkerState::Stalled).await;
        let selected = daemon.group().await.worker(id).connections.selected_total;
        connections(&daemon.client(), 50, 4).await.assert_nothing_failed();
        let group = daemon.group().await;
        assert_eq!(group.worker(id).connections.selected_total, selected, "it is not fed");
        assert_eq!(group.worker(id).stalls.count, 1);
        assert!(Process::find(answer.pid).is_some(), "it has its chance to come back");

        let group = daemon
            .wait("another follows", |group| {
                group.worker(id).restarts == 1 && group.worker(id).state == WorkerState::Active
            })
            .await;
        assert!(Process::find(answer.pid).is_none());
        assert_ne!(group.worker(id).pid, Some(answer.pid));
        busy.receive().await.expect_err("what hung is lost");
        eventually("the log says why", async || {
            let log = daemon.written("stderr");
            if log.contains("SIGABRT") { Ok(()) } else { Err(log) }
        })
        .await;
        daemon.stop().await;
    });
}

#[test]
fn a_worker_that_feeds_its_watchdog_again_comes_back() {
    in_netns(async |netns| {
        let daemon = Launch::policy("round-robin").arg("--watchdog").arg("5s").start(&netns).await;
        let pid = daemon.group().await.worker(2).pid.expect("a process");
        signal(pid, Signal::STOP);
        is(&daemon, 2, WorkerState::Stalled).await;
        signal(pid, Signal::CONT);
        is(&daemon, 2, WorkerState::Active).await;
        let group = daemon.group().await;
        assert_eq!((group.worker(2).pid, group.worker(2).restarts), (Some(pid), 0));
        daemon.stop().await;
    });
}

#[test]
fn a_worker_that_never_heard_of_watchdogs_is_given_up() {
    in_netns(async |netns| {
        let daemon =
            launch("round-robin", "", &["--watchdog", "500ms"]).workers(2).start_unready(&netns).await;
        daemon.wait("it is started again", |group| group.worker(0).restarts >= 1).await;
        let value =
            eventually("somebody answers", async || daemon.client().ask("/env?WATCHDOG_USEC").await).await;
        assert_eq!(value.value, "500000");
        daemon.stop().await;
    });
}
