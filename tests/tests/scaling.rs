//! Workers are added and taken away while connections come.

use reuseport_lb::group::WorkerState;
use reuseport_lb_tests::{
    Client, Daemon, GroupExt, Launch, Load, hold, in_netns, process::Process, sources_reaching, within,
};

async fn sockets(daemon: &Daemon) -> usize {
    let port = format!("sport = :{}", daemon.listen().port());
    reuseport_lb_tests::run(&["ss", "-Htln", &port]).await.succeeded().stdout.lines().count()
}

async fn up_and_down(policy: &str, netns: std::sync::Arc<reuseport_lb_tests::Netns>) {
    let daemon = Launch::policy(policy).workers(2).start(&netns).await;
    let load = Load::start(&daemon.client(), 16);
    load.more(100).await;
    let before = daemon.group().await;

    daemon.tell(&["scale", "6"]).await;
    let six = daemon.group().await;
    assert_eq!(six.workers.len(), 6);
    assert!(six.all_active(), "{six:#?}");
    assert_eq!(sockets(&daemon).await, 6);
    load.more(600).await;
    let fed = daemon.group().await;
    assert!(fed.selected().iter().all(|selected| *selected > 0), "all take part: {fed:#?}");

    daemon.tell(&["scale", "3", "--timeout", "20s"]).await;
    let three = daemon.group().await;
    assert_eq!(three.workers.iter().map(|worker| worker.id.0).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(sockets(&daemon).await, 3);
    for id in [0, 1] {
        assert_eq!(three.worker(id).pid, before.worker(id).pid, "who stays is left alone");
    }
    for id in [3, 4, 5] {
        let pid = six.worker(id).pid.expect("a process");
        assert!(Process::find(pid).is_none(), "worker {id} (pid {pid}) is still there");
    }
    load.more(200).await;
    let account = load.stop().await;
    account.assert_nothing_failed();
    let after = daemon.idle().await;
    assert_eq!((after.outcomes.fallback, after.outcomes.dropped), (0, 0));
    // An id that was used before is used again.
    daemon.tell(&["scale", "4"]).await;
    assert_eq!(daemon.group().await.worker(3).state, WorkerState::Active);
    daemon.stop().await;
}

#[test]
fn two_to_six_to_three_loses_nothing_with_consistent_hash() {
    in_netns(async |netns| up_and_down("consistent-hash", netns).await);
}

#[test]
fn two_to_six_to_three_loses_nothing_with_least_loaded() {
    in_netns(async |netns| up_and_down("least-loaded", netns).await);
}

#[test]
fn two_to_six_to_three_loses_nothing_with_power_of_two() {
    in_netns(async |netns| up_and_down("power-of-two", netns).await);
}

/// What waits in the queue of a worker that goes, and that accepts nothing any more, goes to the others.
#[test]
fn what_waits_for_a_worker_that_goes_migrates() {
    in_netns(async |netns| {
        const QUEUED: usize = 20;
        let daemon = Launch::policy("consistent-hash").start(&netns).await;
        let client: Client = daemon.client();
        let mut sources = sources_reaching(&client, 3, QUEUED + 1).await;
        let hanging = client.clone().from(sources.pop().expect("a source"));
        let (mut hanging, _) = hanging.hold().await.expect("a connection");
        hanging.ask("/hang").await.expect("an answer");
        let mut queued = Vec::new();
        for source in sources {
            let mut connection = client.clone().from(source).connect().await.expect("a connection");
            connection.send("/").await.expect("a request");
            queued.push(connection);
        }
        daemon.wait("all wait", |group| group.worker(3).connections.queued == QUEUED as u64).await;
        let before = daemon.group().await.outcomes.migrated;

        daemon.tell(&["scale", "3", "--timeout", "500ms"]).await;
        for connection in &mut queued {
            let answer = within("a queued connection is answered", connection.receive()).await;
            assert!(answer.expect("the connection has survived").worker < 3);
        }
        assert_eq!(daemon.group().await.outcomes.migrated, before + QUEUED as u64);
        drop(queued);
        daemon.idle().await;
        daemon.stop().await;
    });
}

#[test]
fn open_connections_are_finished_by_a_worker_that_goes() {
    in_netns(async |netns| {
        let daemon = Launch::policy("consistent-hash").start(&netns).await;
        let source = sources_reaching(&daemon.client(), 3, 1).await[0];
        let (mut connection, answer) = daemon.client().from(source).hold().await.expect("a connection");
        daemon.tell(&["scale", "1", "--no-wait"]).await;
        daemon.wait("two have gone", |group| group.workers.len() == 2).await;
        assert_eq!(connection.ask("/").await.expect("it is still served").pid, answer.pid);
        drop(connection);
        daemon.wait("it has gone, too", |group| group.workers.len() == 1).await;
        daemon.stop().await;
    });
}

/// Then the numbers have a gap.
#[test]
fn who_was_to_go_and_is_kept_is_in_no_reload_s_way() {
    in_netns(async |netns| {
        let config = |workers: u16, weights: &[u16]| {
            format!(
                "[groups.web]\nlisten = \"127.0.0.1:8080\"\npolicy = \"round-robin\"\nstall-after = 0\n\
                 workers = {workers}\nweights = {weights:?}\n"
            )
        };
        let ids = async |daemon: &Daemon| -> Vec<u16> {
            daemon.group().await.workers.iter().map(|worker| worker.id.0).collect()
        };
        let daemon = Launch::config(&config(4, &[1])).start(&netns).await;
        let held = hold(&daemon.client(), 40).await;
        assert!((0..4).all(|id| held.iter().any(|(_, worker)| *worker == id)), "each has a connection");
        daemon.tell(&["scale", "1", "--no-wait"]).await;
        daemon.tell(&["undrain", "3"]).await;
        drop(held);
        daemon.wait("the two others have gone", |group| group.workers.len() == 2).await;
        assert_eq!(ids(&daemon).await, [0, 3]);

        daemon.configure(&config(2, &[5, 7]));
        daemon.tell(&["reload"]).await;
        let group = daemon.group().await;
        assert_eq!([group.worker(0).weight, group.worker(3).weight], [5, 1]);
        assert_eq!((ids(&daemon).await, sockets(&daemon).await), (vec![0, 3], 2));
        // The second weight is nobody's, so nothing is left to change.
        for again in [&["reload", "--dry-run"][..], &["reload"]] {
            assert_eq!(daemon.tell(again).await.stdout, "nothing to change\n");
        }
        let told = daemon.cli(&["weight", "1", "2"]).await;
        told.failed_with(&["there is no worker 1 in group web; its workers are 0, 3"]);
        let answer =
            daemon.control_request("PUT", "/v1/groups/-/workers/1/drain", b"").await.expect("an answer");
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        assert_eq!((answer.status, &*text), (404, r#"{"error":"there is no worker 1; there is: 0, 3"}"#));

        daemon.configure(&config(3, &[5, 7]));
        daemon.tell(&["reload"]).await;
        daemon.wait("it has gone, too", |group| group.workers.len() == 3 && group.all_active()).await;
        assert_eq!((ids(&daemon).await, sockets(&daemon).await), (vec![0, 1, 2], 3));
        assert_eq!(daemon.group().await.worker(1).weight, 7);
        daemon.stop().await;
    });
}

#[test]
fn numbers_that_cannot_be_are_refused_and_change_nothing() {
    in_netns(async |netns| {
        let daemon = Launch::policy("consistent-hash").workers(2).start(&netns).await;
        for workers in ["0", "1025"] {
            assert_eq!(daemon.cli(&["scale", workers]).await.status.code(), Some(2));
            let body = format!(r#"{{"workers":{workers}}}"#);
            let answer = daemon.control_request("PUT", "/v1/groups/-/scale", body.as_bytes()).await;
            assert_eq!(answer.expect("an answer").status, 400, "{workers}");
        }
        daemon.tell(&["drain", "0"]).await;
        daemon.cli(&["scale", "1"]).await.failed_with(&["undrain"]);
        daemon.tell(&["undrain", "0"]).await;
        daemon.tell(&["policy", "kernel"]).await;
        daemon.cli(&["scale", "1"]).await.failed_with(&["policy kernel"]);
        let group = daemon.group().await;
        assert!(group.all_active() && group.workers.len() == 2, "{group:#?}");
        daemon.tell(&["scale", "3"]).await;
        assert_eq!(daemon.group().await.workers.len(), 3);
        daemon.stop().await;
    });
}

/// From a shell with a limit of open files that is too low for so many.
#[test]
fn one_to_many_and_back() {
    in_netns(async |netns| {
        let daemon = Launch::policy("least-loaded")
            .workers(1)
            .wrapper(&["sh", "-c", "ulimit -Sn 256 && exec \"$0\" \"$@\""])
            .worker_command(&["sleep", "100000"])
            .start(&netns)
            .await;
        daemon.tell(&["scale", "200"]).await;
        let group = daemon.group().await;
        assert_eq!(group.workers.len(), 200);
        assert!(group.all_active());
        daemon.tell(&["scale", "1"]).await;
        assert_eq!(daemon.group().await.workers.len(), 1);
        daemon.stop().await;
    });
}
