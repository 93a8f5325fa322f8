//! What workers have of the daemon.

use std::fs;

use reuseport_lb::control::GroupStatus;
use reuseport_lb_tests::{GroupExt, Launch, in_netns};

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
            // It closes what it has told the daemon by when that has heard it already.
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            let target = target.display().to_string();
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
