//! The daemon needs a few capabilities, and not all of root's; it gives up the others once its groups stand.

use std::process::Command;

use reuseport_lb::policy::Policy;
use reuseport_lb_tests::{
    Daemon, GroupExt, Launch, Load, Server, connections, eventually, in_netns,
    privileges::{Privileges, capabilities},
    process::kill_and_wait,
    scripts::server,
};

/// What every group needs.
const ALWAYS: [&str; 3] = ["CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN"];

/// What the daemon needs for workers that it starts.
const WORKERS: [&str; 4] = ["CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_DAC_OVERRIDE", "CAP_SYS_RESOURCE"];

/// What it needs to see sockets that others have opened.
const OTHERS: [&str; 2] = ["CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"];

/// A user that nobody is, and another one.
const USER: u32 = 54_000;
const OTHER: u32 = 54_001;

/// What is left to a daemon that is started so.
const JUST_THESE: &str = "-all,+bpf,+perfmon,+net_admin";

#[test]
fn three_capabilities_are_enough_to_serve_and_to_take_over() {
    in_netns(async |netns| {
        let launch = Launch::policy("least-loaded").wrapper(&["setpriv", "--bounding-set", JUST_THESE]);
        let mut daemon = launch.start(&netns).await;
        let before = daemon.group().await;
        let load = Load::start(&daemon.client(), 4);
        load.more(100).await;
        daemon.tell(&["policy", "consistent-hash"]).await;
        daemon.tell(&["drain", "1", "--wait"]).await;
        daemon.tell(&["undrain", "1"]).await;
        daemon.kill().await;
        daemon.start_again(&[]).await;
        load.more(100).await;
        let account = load.stop().await;
        account.assert_nothing_failed();
        let group = daemon.idle().await;
        assert_eq!(group.outcomes.selected, account.total(), "the program picked every worker");
        for worker in &before.workers {
            assert_eq!(group.worker(worker.id.0).pid, worker.pid, "no worker was restarted");
        }
        daemon.tell(&["restart", "2"]).await;
        daemon.stop().await;
    });
}

#[test]
fn what_is_missing_is_named() {
    in_netns(async |netns| {
        let without = |set| Launch::policy("hash").wrapper(&["setpriv", "--bounding-set", set]).fail(&netns);
        without("-bpf").await.failed_with(&["CAP_BPF", "root"]);
        without("-perfmon").await.failed_with(&["CAP_PERFMON"]);
        without("-net_admin").await.failed_with(&["CAP_NET_ADMIN"]);
    });
}

/// What a process has that this test starts itself.
fn plain() -> Privileges {
    let mut child = Command::new("sleep").arg("1000").spawn().expect("sleep");
    let plain = Privileges::of_threads(child.id()).remove(0);
    child.kill().expect("kill");
    child.wait().expect("wait");
    plain
}

fn assert_threads(pid: u32, expected: &Privileges) {
    for thread in Privileges::of_threads(pid) {
        assert_eq!(thread, *expected, "a thread of the daemon: {thread:x?}");
    }
}

/// Some workers count as ready as soon as they have been started: before they have become what they are to be.
async fn assert_worker(pid: Option<u32>, expected: &Privileges) {
    let pid = pid.expect("a process");
    eventually("each thread of the worker has what it is to have", async || {
        let threads = Privileges::of_threads(pid);
        if threads.iter().all(|thread| thread == expected) { Ok(()) } else { Err(format!("{threads:x?}")) }
    })
    .await;
}

/// That each thread of the daemon has just this, and after it has started workers and passed on what they write as well.
async fn assert_daemon(daemon: &Daemon, expected: &Privileges) {
    daemon.tell(&["restart", "0"]).await;
    connections(&daemon.client(), 50, 4).await.assert_nothing_failed();
    assert_threads(daemon.process().pid, expected);
}

async fn assert_workers(daemon: &Daemon, expected: &Privileges) {
    for worker in daemon.group().await.workers {
        assert_worker(worker.pid, expected).await;
    }
}

/// Root's workers may become whoever they like, so only the daemon's own threads lose something.
#[test]
fn roots_workers_have_what_they_would_have_without_a_daemon() {
    in_netns(async |netns| {
        let daemon = Launch::policy("hash").start(&netns).await;
        let plain = plain();
        let kept = capabilities(&[&ALWAYS[..], &WORKERS].concat()) & plain.permitted;
        assert_daemon(&daemon, &Privileges { permitted: kept, effective: kept, ..plain.clone() }).await;
        assert_workers(&daemon, &plain).await;
        daemon.stop().await;
    });
}

/// As under a service manager that sets it: what is not permitted to the daemon would not be to its workers.
#[test]
fn nor_do_they_lose_anything_where_no_new_privileges_are_to_be_had() {
    in_netns(async |netns| {
        let launch = Launch::policy("hash").wrapper(&["setpriv", "--no-new-privs"]);
        let daemon = launch.start(&netns).await;
        let plain = Privileges { no_new_privs: true, ..plain() };
        let kept = capabilities(&[&ALWAYS[..], &WORKERS].concat()) & plain.permitted;
        assert_daemon(&daemon, &Privileges { effective: kept, ..plain.clone() }).await;
        assert_workers(&daemon, &plain).await;
        daemon.stop().await;
    });
}

#[test]
fn where_all_workers_are_other_users_nobody_gets_more() {
    in_netns(async |netns| {
        let script = server("");
        let words: Vec<&str> = script.iter().map(String::as_str).collect();
        let launch =
            Launch::policy("hash").arg("--user").arg(format!("{USER}:{USER}")).worker_command(&words);
        let daemon = launch.start(&netns).await;
        daemon.client().ask("/log?something").await.expect("an answer");
        eventually("a thread writes that on", async || {
            let threads = Privileges::of_threads(daemon.process().pid).len();
            if threads == 2 { Ok(()) } else { Err(format!("{threads} threads")) }
        })
        .await;
        let plain = plain();
        let kept =
            capabilities(&[&ALWAYS[..], &WORKERS, &["CAP_SETUID", "CAP_SETGID"]].concat()) & plain.permitted;
        let bounded = Privileges { bounding: kept, no_new_privs: true, ..plain };
        assert_daemon(&daemon, &Privileges { permitted: kept, effective: kept, ..bounded.clone() }).await;
        assert_workers(&daemon, &Privileges { permitted: 0, effective: 0, ..bounded }).await;
        daemon.stop().await;
    });
}

#[test]
fn adopting_takes_what_it_takes_to_look_into_processes() {
    in_netns(async |netns| {
        let server = Server::perl("127.0.0.1:8080").await;
        let daemon = Launch::adopt("round-robin").start(&netns).await;
        // One that comes later is taken in with what is left.
        let further = Server::perl("127.0.0.1:8080").await;
        daemon.wait("both are there", |group| group.workers.len() == 2 && group.all_active()).await;
        connections(&daemon.client(), 50, 4).await.assert_nothing_failed();
        let kept = capabilities(&[&ALWAYS[..], &OTHERS].concat());
        let expected =
            Privileges { permitted: kept, effective: kept, bounding: kept, no_new_privs: true, ..plain() };
        assert_threads(daemon.process().pid, &expected);
        daemon.stop().await;
        drop((server, further));
    });
}

/// Everything, as a user who is not root and has just what is documented.
#[test]
fn without_root_and_with_workers_of_the_same_user() {
    in_netns(async |netns| {
        let launch = Launch::policy("least-loaded").unprivileged(USER, &ALWAYS);
        everything(launch.start(&netns).await, &ALWAYS, &ALWAYS).await;
    });
}

/// To take over, the next daemon must be allowed to take sockets from another user's processes.
#[test]
fn without_root_and_with_workers_of_another_user() {
    in_netns(async |netns| {
        let kept = [&ALWAYS[..], &["CAP_SETUID", "CAP_SETGID", "CAP_KILL"]].concat();
        let has = [&kept[..], &["CAP_SYS_PTRACE"]].concat();
        let user = format!("{OTHER}:{OTHER}");
        let launch = |has| Launch::policy("least-loaded").unprivileged(USER, has).arg("--user").arg(&user);
        everything(launch(&has).start(&netns).await, &kept, &has).await;

        let mut daemon = launch(&kept).start(&netns).await;
        let workers = daemon.group().await.workers;
        let load = Load::start(&daemon.client(), 4);
        // Another version of itself is given the sockets by the daemon.
        daemon.tell(&["upgrade"]).await;
        load.more(50).await;
        let group = daemon.group().await;
        assert!(group.workers.iter().map(|worker| worker.pid).eq(workers.iter().map(|worker| worker.pid)));
        assert_eq!(group.outcomes.fallback, 0);
        daemon.kill().await;
        load.more(50).await;
        daemon.fail_again(&[]).await.failed_with(&["CAP_SYS_PTRACE"]);
        load.more(50).await;
        load.stop().await.assert_nothing_failed();
        workers.iter().for_each(|worker| kill_and_wait(worker.pid.expect("a process")));
    });
}

async fn everything(mut daemon: Daemon, kept: &[&str], bounding: &[&str]) {
    let (kept, bounding) = (capabilities(kept), capabilities(bounding));
    let user = Privileges {
        permitted: kept,
        effective: kept,
        inheritable: kept,
        ambient: kept,
        bounding,
        no_new_privs: true,
    };
    assert_daemon(&daemon, &user).await;
    let nothing = Privileges { permitted: 0, effective: 0, inheritable: 0, ambient: 0, ..user.clone() };
    assert_workers(&daemon, &nothing).await;
    let runs = daemon.idle().await.runs();

    let load = Load::start(&daemon.client(), 4);
    load.more(50).await;
    daemon.tell(&["policy", "consistent-hash"]).await;
    daemon.tell(&["drain", "1", "--wait"]).await;
    daemon.tell(&["undrain", "1"]).await;
    daemon.tell(&["restart", "--rolling"]).await;
    daemon.tell(&["scale", "5"]).await;
    let before = daemon.group().await;
    daemon.kill().await;
    load.more(50).await;
    daemon.start_again(&[]).await;
    load.more(50).await;
    let account = load.stop().await;
    account.assert_nothing_failed();
    let group = daemon.idle().await;
    assert_eq!(group.pids(), before.pids(), "no worker was restarted");
    assert_eq!(group.runs() - runs, account.total(), "the program picked every worker");
    assert_eq!(group.outcomes.fallback, 0);
    assert_eq!(group.policy.name, Policy::ConsistentHash);
    assert_workers(&daemon, &nothing).await;
    assert_daemon(&daemon, &user).await;
    // All of it goes: workers, sockets, pins.
    daemon.stop().await;
}

#[test]
fn without_root_and_with_servers_of_another_user() {
    in_netns(async |netns| {
        let servers =
            [Server::perl_as(OTHER, "127.0.0.1:8080").await, Server::perl_as(OTHER, "127.0.0.1:8080").await];
        let has = [&ALWAYS[..], &OTHERS].concat();
        let mut daemon = Launch::adopt("round-robin").unprivileged(USER, &has).start(&netns).await;
        let load = Load::start(&daemon.client(), 4);
        load.more(50).await;
        let before = daemon.group().await;
        daemon.kill().await;
        load.more(50).await;
        daemon.start_again(&[]).await;
        load.more(50).await;
        let account = load.stop().await;
        account.assert_nothing_failed();
        let group = daemon.idle().await;
        assert_eq!(group.workers.len(), 2);
        assert_eq!(group.pids(), before.pids());
        assert_eq!(
            group.outcomes.selected,
            account.total(),
            "what was counted stays, before and without a daemon"
        );
        assert!(group.selected().iter().all(|count| *count > 0), "{group:?}");
        daemon.stop().await;
        drop(servers);
    });
}

/// For each capability that not every group needs: who needs it is told which one it is.
#[test]
fn what_is_missing_for_a_group_is_named() {
    in_netns(async |netns| {
        let user = ["--user".to_owned(), format!("{OTHER}:{OTHER}")];
        let other = ["--netns".to_owned(), "/proc/1/ns/net".to_owned()];
        for (missing, args) in [("setuid", &user), ("setgid", &user), ("kill", &user), ("sys_admin", &other)]
        {
            let launch =
                Launch::policy("hash").wrapper(&["setpriv", "--bounding-set", &format!("-{missing}")]);
            let launch = args.iter().fold(launch, |launch, arg| launch.arg(arg.as_str()));
            let name = format!("CAP_{}", missing.to_uppercase());
            launch.fail(&netns).await.failed_with(&[&name, "root"]);
        }
        let without = |set| Launch::policy("hash").wrapper(&["setpriv", "--bounding-set", set]);
        let low = without("-net_bind_service").listen("127.0.0.1:80");
        low.fail(&netns).await.failed_with(&["CAP_NET_BIND_SERVICE"]);
        let server = Server::perl("127.0.0.1:8080").await;
        let launch = Launch::adopt("hash").wrapper(&["setpriv", "--bounding-set", "-sys_ptrace"]);
        launch.fail_beside(&netns, 8080).await.failed_with(&["CAP_SYS_PTRACE"]);
        drop(server);
    });
}

fn group(name: &str, port: u16, further: &str) -> String {
    format!(
        "[groups.{name}]\nlisten = \"127.0.0.1:{port}\"\nworkers = 1\npolicy = \"hash\"\nstall-after = 0\n{further}\n"
    )
}

/// Gives the configuration a second group and reads it again.
async fn add(daemon: &Daemon, first: &str, further: &str) -> reuseport_lb_tests::Output {
    daemon.configure(&format!("{first}{}", group("second", 8081, further)));
    daemon.cli(&["reload"]).await
}

#[test]
fn a_group_that_needs_what_was_given_up_is_refused_until_the_daemon_is_started_again() {
    in_netns(async |netns| {
        let script = server("");
        let command = format!("command = {script:?}\nready = \"exec\"\n");
        let user = format!("user = \"{USER}:{USER}\"\n{command}");
        let first = group("first", 8080, &user);
        let mut daemon = Launch::config(&first).start(&netns).await;
        let before = daemon.group().await;
        let self_bound = format!("{user}self-bind = true\n");
        let kept = Privileges::of_threads(daemon.process().pid);
        // The next version has what this one has kept, and says the same.
        for generation in [1, 2] {
            if generation == 2 {
                daemon.configure(&first);
                daemon.tell(&["upgrade"]).await;
            }
            assert_eq!(daemon.status().await.generation, generation);
            for thread in Privileges::of_threads(daemon.process().pid) {
                assert_eq!(thread, kept[0]);
            }
            let refused = add(&daemon, &first, &self_bound).await;
            refused.failed_with(&["second", "CAP_SYS_PTRACE", "start the daemon again"]);
            add(&daemon, &first, "").await.failed_with(&["second", "root", "start the daemon again"]);
            assert_eq!(daemon.group().await.pids(), before.pids(), "nothing has changed");
        }
        // As many users as one likes.
        add(&daemon, &first, &format!("user = \"{OTHER}:{OTHER}\"\n{command}")).await.succeeded();

        daemon.configure(&format!("{first}{}", group("second", 8081, "")));
        daemon.kill().await;
        daemon.start_again(&[]).await;
        eventually("all is active", async || {
            let groups = daemon.status().await.groups;
            let done = groups.len() == 2 && groups.iter().all(GroupExt::all_active);
            if done { Ok(()) } else { Err(format!("{groups:#?}\n{daemon}")) }
        })
        .await;
        assert_eq!(daemon.group_named("first").await.pids(), before.pids(), "no worker was restarted");
        daemon.stop().await;
    });
}

/// With root's workers nothing is given up that further workers would need.
#[test]
fn beside_roots_workers_other_users_may_come() {
    in_netns(async |netns| {
        let first = group("first", 8080, "");
        let daemon = Launch::config(&first).start(&netns).await;
        let script = server("");
        let user = format!("user = \"{USER}:{USER}\"\ncommand = {script:?}\nready = \"exec\"\n");
        add(&daemon, &first, &user).await.succeeded();
        let second = eventually("it is active", async || {
            let group = daemon.group_named("second").await;
            if group.all_active() { Ok(group) } else { Err(format!("{group:#?}")) }
        })
        .await;
        let nothing = Privileges { permitted: 0, effective: 0, ..plain() };
        assert_worker(second.worker(0).pid, &nothing).await;
        daemon.stop().await;
    });
}
