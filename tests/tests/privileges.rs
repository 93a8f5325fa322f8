//! The daemon needs a few capabilities, and not all of root's.

use reuseport_lb_tests::{GroupExt, Launch, Load, in_netns};

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
