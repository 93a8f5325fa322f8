//! A configuration file that is read again: the difference is applied, all of it or nothing, and no connection fails.

use std::{fs, net::TcpListener, sync::Arc};

use reuseport_lb::{
    control::{GroupStatus, OperationState, ReloadStatus, Status, WorkerStatus},
    group::{WorkerId, WorkerState},
    policy::Policy,
};
use reuseport_lb_tests::{
    Client, Daemon, GroupExt, Launch, Load, Netns, Output, Server, connections, eventually, in_netns, run,
    server::perl, status::tally,
};
use rustix::process::Signal;

mod changes;
mod refusals;

const WEB: &str = r#"
[groups.web]
listen = "127.0.0.1:8080"
workers = 3
policy = "round-robin"
stall-after = 0
"#;

const API: &str = r#"
[groups.api]
listen = "127.0.0.1:8081"
workers = 2
policy = "least-loaded"
stall-after = 0
"#;

fn client(port: u16) -> Client {
    Client::of(([127, 0, 0, 1], port).into())
}

fn both() -> String {
    format!("{WEB}{API}")
}

async fn start(netns: &Arc<Netns>) -> Daemon {
    Launch::config(&both()).start(netns).await
}

/// What must not change when nothing is changed: everything but the counters.
fn shape(status: &Status) -> Vec<String> {
    let worker =
        |worker: &WorkerStatus| format!("{} {:?} {} {}", worker.id, worker.pid, worker.state, worker.weight);
    let groups = status.groups.iter().map(|group| {
        let workers: Vec<_> = group.workers.iter().map(worker).collect();
        format!("{} {} {} {workers:?}", group.name, group.listen, group.policy)
    });
    groups.chain(status.leaving.iter().map(|group| format!("{} leaves", group.name))).collect()
}

fn pids(status: &Status, group: &str) -> Vec<u32> {
    let group = status.groups.iter().find(|found| found.name == group).expect("the group");
    group.workers.iter().filter_map(|worker| worker.pid).collect()
}

async fn all_active(daemon: &Daemon) -> Status {
    eventually("all workers are active, and nothing leaves", async || {
        let status = daemon.status().await;
        let done = status.groups.iter().all(GroupExt::all_active) && status.leaving.is_empty();
        if done { Ok(status) } else { Err(format!("{status:#?}\n{daemon}")) }
    })
    .await
}

/// Waits until no group is in the middle of a change of the number of its workers.
async fn operations_done(daemon: &Daemon) {
    eventually("no operation is under way", async || {
        let groups = daemon.status().await.groups;
        let running = |group: &GroupStatus| {
            group.operation.as_ref().is_some_and(|operation| operation.state == OperationState::Running)
        };
        if groups.iter().any(running) { Err(format!("{groups:#?}")) } else { Ok(()) }
    })
    .await;
}

fn refused(output: &Output, expected: &str) {
    assert_eq!(output.status.code(), Some(1), "{output}");
    assert!(output.stderr.contains(expected), "“{expected}” is missing\n{output}");
    assert_eq!(output.stderr.lines().count(), 1, "{output}");
}

/// The listening sockets of the namespace, one a line.
async fn listening() -> String {
    run(&["ss", "--listening", "--tcp", "--numeric", "--no-header"]).await.succeeded().stdout
}
