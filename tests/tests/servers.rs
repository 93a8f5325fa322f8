//! Servers as they come from their makers: those that take their socket from systemd run as workers, and those that
//! bind for themselves are adopted.

use std::collections::BTreeSet;

use reuseport_lb::{control::GroupStatus, control::Mode, group::WorkerState};
use reuseport_lb_tests::{
    Daemon, GroupExt, Launch, Load, Server, connections, eventually, in_netns, run,
    server::{children, folder},
};

/// The processes that a group's workers are.
fn pids(group: &GroupStatus) -> BTreeSet<u32> {
    group.workers.iter().filter_map(|worker| worker.pid).collect()
}

/// Asks until everybody in `pids` has answered, and sees that nobody else does.
async fn answer_all(daemon: &Daemon, pids: &BTreeSet<u32>) {
    let mut answered = BTreeSet::new();
    while answered != *pids {
        let answer = daemon.client().ask("/").await.expect("an answer");
        assert!(pids.contains(&answer.pid), "{} is none of {pids:?}\n{daemon}", answer.pid);
        answered.insert(answer.pid);
    }
}

/// Each of `made` connections was given to a worker by our program, and to none by the kernel.
fn assert_all_selected(group: &GroupStatus, made: u64) {
    assert_eq!(group.selected().iter().sum::<u64>(), made, "{group:#?}");
    assert_eq!(group.outcomes.fallback, 0, "{group:#?}");
}

#[test]
fn nginx_reloads_under_load_without_a_failed_connection() {
    in_netns(async |netns| {
        const WORKERS: usize = 4;
        let (nginx, reload) = Server::nginx().await;
        let daemon = Launch::adopt("least-loaded").start(&netns).await;
        let group = daemon.group().await;
        assert_eq!((group.mode, group.workers.len()), (Mode::Adopted, WORKERS), "{group:#?}");
        // The master holds all four sockets and so does each worker: shown is who accepts, as soon as it does.
        let first = eventually("each worker is shown", async || {
            let (group, first) = (daemon.group().await, BTreeSet::from_iter(children(nginx.pid())));
            let shown = first.len() == WORKERS && pids(&group) == first;
            if shown { Ok(first) } else { Err(format!("{first:?} and {group:#?}")) }
        })
        .await;
        answer_all(&daemon, &first).await;

        let before: u64 = daemon.group().await.selected().iter().sum();
        let load = Load::start(&daemon.client(), 8);
        let mut known = first;
        for _ in 0..3 {
            load.more(300).await;
            run(&reload).await.succeeded();
            let fresh = eventually("other workers have taken over", async || {
                let group = daemon.group().await;
                let now = pids(&group);
                let others = now.len() == WORKERS && now.is_disjoint(&known);
                if others { Ok(now) } else { Err(format!("{group:#?}\nbefore: {known:?}\n{daemon}")) }
            })
            .await;
            known = fresh;
            load.more(300).await;
        }
        let account = load.stop().await;
        account.assert_nothing_failed();
        let group = daemon.idle().await;
        assert_all_selected(&group, before + account.total());
        assert_eq!(group.workers.len(), WORKERS);
        answer_all(&daemon, &known).await;

        // Nothing changes for them when the daemon leaves.
        let load = Load::start(&daemon.client(), 8);
        load.more(200).await;
        daemon.stop().await;
        load.more(200).await;
        load.stop().await.assert_nothing_failed();
        drop(nginx);
    });
}

#[test]
fn go_processes_are_exchanged_under_load_without_a_failed_connection() {
    in_netns(async |netns| {
        const LOAD: usize = 8;
        let address = "127.0.0.1:8080";
        let mut servers = Server::go(address, 3).await;
        let daemon = Launch::adopt("least-loaded").start(&netns).await;
        let load = Load::start(&daemon.client(), LOAD);
        for _ in 0..3 {
            load.more(200).await;
            let successor = Server::go(address, 1).await.remove(0);
            let pid = successor.pid();
            daemon.wait("the new one is there", |group| pids(group).contains(&pid)).await;
            servers.push(successor);
            load.more(200).await;
            let leaves = servers.remove(0);
            let pid = leaves.pid();
            // It closes its socket, and its queue moves on; then it finishes what it has accepted.
            leaves.end().await;
            daemon
                .wait("the old one has left", |group| group.workers.len() == 3 && !pids(group).contains(&pid))
                .await;
        }
        load.more(200).await;
        let account = load.stop().await;
        account.assert_nothing_failed();
        let group = daemon.idle().await;
        assert_eq!(pids(&group), servers.iter().map(Server::pid).collect());
        assert_eq!(group.outcomes.fallback, 0, "{group:#?}");
        // Those that have left have taken their counts along. A client whose SYN meets a socket that is just being closed
        // sends it again, which is another run.
        let runs = group.outcomes.selected + group.outcomes.retried;
        assert!((account.total()..=account.total() + 3 * LOAD as u64).contains(&runs), "{group:#?}");
        daemon.stop().await;
    });
}

#[test]
fn go_processes_that_bind_for_themselves_are_supervised() {
    in_netns(async |netns| {
        let program = reuseport_lb_tests::server::go_program().to_str().expect("a path in UTF-8");
        let daemon = Launch::policy("round-robin")
            .workers(3)
            .arg("--self-bind")
            .worker_command(&[program, "127.0.0.1:8080"])
            .start(&netns)
            .await;
        let group = daemon.group().await;
        assert_eq!((group.mode, group.workers.len()), (Mode::Supervised, 3));
        let first = pids(&group);
        let account = connections(&daemon.client(), 30, 1).await;
        account.assert_nothing_failed();
        assert_all_selected(&daemon.group().await, 30);
        answer_all(&daemon, &first).await;

        // Another process has another socket.
        let load = Load::start(&daemon.client(), 8);
        load.more(200).await;
        daemon.tell(&["drain", "1", "--stop", "--wait"]).await;
        daemon.tell(&["undrain", "1"]).await;
        daemon.wait("worker 1 serves again", GroupStatus::all_active).await;
        load.more(200).await;
        daemon.tell(&["restart", "--rolling"]).await;
        load.more(200).await;
        load.stop().await.assert_nothing_failed();
        let group = daemon.wait("all serve", GroupStatus::all_active).await;
        assert!(pids(&group).is_disjoint(&first), "{group:#?}");
        assert_eq!(group.outcomes.fallback, 0, "{group:#?}");

        // So has the successor of one that is killed.
        let killed = group.worker(2).pid.expect("a process");
        reuseport_lb_tests::process::kill_and_wait(killed);
        let group = daemon
            .wait("worker 2 has a successor", |group| {
                group.all_active() && group.worker(2).pid.is_some_and(|pid| pid != killed)
            })
            .await;
        answer_all(&daemon, &pids(&group)).await;
        daemon.stop().await;
    });
}

/// Runs a server as two workers, and exchanges one of them under load.
fn runs_as_a_worker(command: &[&str], serves_in_a_child: bool) {
    let command: Vec<String> =
        command.iter().map(|word| word.replace("SERVERS", folder().to_str().expect("UTF-8"))).collect();
    in_netns(async move |netns| {
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let daemon = Launch::policy("round-robin").workers(2).worker_command(&command).start(&netns).await;
        let client = daemon.client();
        eventually("both answer", async || client.ask("/").await).await;
        let before = daemon.idle().await;
        let account = connections(&client, 20, 1).await;
        account.assert_nothing_failed();
        let after = daemon.idle().await;
        let each = |id| {
            let count = |group: &GroupStatus| group.worker(id).connections.selected_total;
            count(&after) - count(&before)
        };
        assert_eq!(each(0) + each(1), 20, "{after:#?}");
        assert!(each(0) > 0 && each(1) > 0, "{after:#?}");
        let answer = client.ask("/").await.expect("an answer");
        let mut processes = pids(&after);
        if serves_in_a_child {
            processes = processes.into_iter().flat_map(children).collect();
        }
        assert!(processes.contains(&answer.pid), "{} is none of {processes:?}\n{daemon}", answer.pid);

        let load = Load::start(&client, 8);
        load.more(100).await;
        daemon.tell(&["drain", "1", "--stop", "--wait"]).await;
        assert_eq!(daemon.group().await.worker(1).state, WorkerState::Down);
        daemon.tell(&["undrain", "1"]).await;
        let selected = daemon.group().await.worker(1).connections.selected_total;
        let is_fed = |group: &GroupStatus| group.worker(1).connections.selected_total > selected;
        daemon.wait("the new process gets connections", is_fed).await;
        load.more(100).await;
        load.stop().await.assert_nothing_failed();
        let group = daemon.idle().await;
        assert_eq!(group.outcomes.fallback, 0, "{group:#?}");
        daemon.stop().await;
    });
}

#[test]
fn gunicorn_runs_as_a_worker() {
    runs_as_a_worker(&["gunicorn", "--workers", "1", "--chdir", "SERVERS", "app:wsgi"], true);
}

#[test]
fn uvicorn_runs_as_a_worker() {
    let line = ["uvicorn", "--fd", "3", "--app-dir", "SERVERS", "--log-level", "warning", "app:asgi"];
    runs_as_a_worker(&line, false);
}

#[test]
fn node_runs_as_a_worker() {
    runs_as_a_worker(&["node", "SERVERS/server.js"], false);
}

#[test]
fn haproxy_runs_as_a_worker() {
    runs_as_a_worker(&["haproxy", "-db", "-f", "SERVERS/haproxy.cfg"], false);
}
