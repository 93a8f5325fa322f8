//! The daemon leaves its group to the kernel: no connection notices, and the workers go on.

use std::fs;

use reuseport_lb_tests::{GroupExt, Launch, Load, connections, in_netns, process::Process};
use rustix::process::Signal;

#[test]
fn detach_under_load() {
    in_netns(async |netns| {
        let mut daemon = Launch::policy("least-loaded").start(&netns).await;
        let load = Load::start(&daemon.client(), 8);
        load.more(200).await;
        let group = daemon.group().await;
        assert!(group.runs() >= 200, "the program picks");
        let workers: Vec<u32> = group.workers.iter().filter_map(|worker| worker.pid).collect();
        daemon.tell(&["detach"]).await;
        assert!(daemon.ended_but_for(&workers).await.success());
        assert!(!daemon.control().exists() && fs::metadata(daemon.state_file()).is_err());
        load.more(400).await;
        load.stop().await.assert_nothing_failed();
        for worker in &workers {
            assert!(Process::find(*worker).is_some(), "worker process {worker} goes on");
        }

        // What others say then.
        daemon.cli(&["status"]).await.failed_with(&["no daemon"]);
        daemon.fail_again(&[]).await.failed_with(&["taken", "reuseport-lb"]);
        connections(&daemon.client(), 50, 4).await.assert_nothing_failed();
        for process in workers.into_iter().filter_map(Process::find) {
            process.signal(Signal::TERM);
        }
    });
}

#[test]
fn a_worker_that_drains_is_not_left_to_a_hash_that_would_feed_it() {
    in_netns(async |netns| {
        let daemon = Launch::policy("hash").start(&netns).await;
        daemon.tell(&["drain", "1", "--wait"]).await;
        daemon.cli(&["detach"]).await.failed_with(&["worker 1", "undrain"]);
        let before = daemon.group().await.runs();
        connections(&daemon.client(), 50, 4).await.assert_nothing_failed();
        assert!(daemon.group().await.runs() >= before + 50, "nothing has changed");
        daemon.stop().await;
    });
}
