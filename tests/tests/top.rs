//! The live view, on a terminal.

use std::ffi::OsString;

use reuseport_lb::group::WorkerState;
use reuseport_lb_tests::{Daemon, GroupExt, Launch, Load, Terminal, binary, in_netns};
use rustix::process::Signal;

/// `top` for this daemon, which looks often, so that the test need not wait.
fn top(daemon: &Daemon) -> Terminal {
    let args = ["top", "--interval", "100ms", "--control"].map(OsString::from);
    let line: Vec<_> = [binary().into()].into_iter().chain(args).chain([daemon.control().into()]).collect();
    Terminal::start(&line)
}

/// A column of a worker's line, counted from the left.
fn column(screen: &str, worker: u16, column: usize) -> Option<String> {
    let lines = screen.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let id = worker.to_string();
    // The bar is a column too, where there is one.
    let mut lines = lines.filter(|words| words.len() >= 10 && words[0] == id);
    lines.next().map(|words| words[column].to_owned())
}

#[test]
fn workers_are_watched_and_changed_by_key() {
    in_netns(async |netns| {
        let daemon = Launch::policy("round-robin").workers(3).start(&netns).await;
        let mut top = top(&daemon);
        // The screen may be looked at when only a part of it is drawn.
        let drawn =
            |screen: &str| screen.contains("round-robin · supervised") && column(screen, 2, 2).is_some();
        let shown = top.wait("the group is shown", drawn).await;
        let pid = daemon.group().await.worker(2).pid.expect("it runs").to_string();
        assert_eq!(column(&shown, 2, 1), Some(pid));
        assert_eq!(column(&shown, 2, 2).as_deref(), Some("active"));

        let load = Load::start(&daemon.client(), 2);
        let fast = |screen: &str| {
            column(screen, 0, 4).and_then(|rate| rate.parse::<f64>().ok()).is_some_and(|rate| rate > 0.0)
        };
        top.wait("connections are seen to come", fast).await;
        load.stop().await.assert_nothing_failed();

        // Down, once by its letter and once by its arrow.
        top.press("j\x1b[B");
        top.press("d");
        daemon
            .wait("worker 2 drains", |group| {
                matches!(group.worker(2).state, WorkerState::Draining | WorkerState::Drained)
            })
            .await;
        top.wait("it is seen", |screen| column(screen, 2, 2).is_some_and(|state| state.starts_with("drain")))
            .await;
        top.press("u+");
        daemon
            .wait("worker 2 is back, and heavier", |group| {
                let worker = group.worker(2);
                worker.state == WorkerState::Active && worker.weight == 2
            })
            .await;
        let others = daemon.group().await;
        assert!((0..2).all(|id| others.worker(id).weight == 1), "{others:?}");

        top.press("q");
        let (status, left) = top.ended().await;
        assert!(status.success(), "{status}");
        assert!(!left.contains("round-robin"), "the terminal is as it was before:\n{left}");
        daemon.stop().await;
    });
}

#[test]
fn the_end_of_the_daemon_is_told_and_the_last_look_stays() {
    in_netns(async |netns| {
        let mut daemon = Launch::policy("random").workers(2).start(&netns).await;
        let mut top = top(&daemon);
        top.wait("the group is shown", |screen| screen.contains("random · supervised")).await;
        daemon.process().signal(Signal::TERM);
        let shown = top.wait("the end is told", |screen| screen.contains("no daemon is running")).await;
        assert!(shown.contains("random · supervised"), "{shown}");
        // Ctrl-C: the terminal is raw, so it is a key.
        top.press("\x03");
        let (status, _) = top.ended().await;
        assert!(status.success(), "{status}");
        assert!(daemon.ended().await.success());
    });
}

#[test]
fn without_a_terminal_it_fails_in_one_line() {
    in_netns(async |netns| {
        let daemon = Launch::policy("random").workers(2).start(&netns).await;
        daemon.cli(&["top"]).await.failed_with(&["terminal", "status"]);
        daemon.stop().await;
    });
}
