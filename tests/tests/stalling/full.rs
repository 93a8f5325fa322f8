//! A worker whose accept queue is full.

use std::fs;

use reuseport_lb::{
    control::{Connections, WorkerStatus},
    worker::affinity,
};
use reuseport_lb_tests::{Arrivals, GroupExt as _, eventually, in_netns, pin_thread, process};
use rustix::process::Signal;

use super::{STOPPED, launches};

/// How often the kernel has found an accept queue full, in this thread's network namespace.
fn overflows() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/net/netstat").expect("netstat");
    let fields = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<String>>();
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:")).map(fields);
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let at = names.iter().position(|name| name == "ListenOverflows").expect("ListenOverflows");
    values[at].parse().expect("a number")
}

/// At once, and not only after the stall time, which is far away here.
#[test]
fn a_full_accept_queue_gets_no_connection_under_any_policy() {
    const BACKLOG: u64 = 8;
    for policy in launches().into_keys() {
        in_netns(async move |netns| {
            let (launch, _) = launches().remove(policy).expect(policy);
            let daemon = launch.stall_after("10m").arg(format!("--backlog={BACKLOG}")).start(&netns).await;
            pin_thread(affinity::allowed().expect("the CPUs of this thread")[0]);
            let pid = daemon.group().await.worker(STOPPED).pid.expect("a process");
            process::signal(pid, Signal::STOP);
            let before = overflows();
            let mut arrivals = Arrivals::of(daemon.client());
            // The others are given the time to empty theirs, which are as short.
            for _ in 0..100 {
                arrivals.make(2).await;
                eventually("the others have answered", async || {
                    let group = daemon.group().await;
                    let queued =
                        |worker: &WorkerStatus| worker.id.0 != STOPPED && worker.connections.queued > 0;
                    if group.workers.iter().any(queued) { Err(format!("{group:#?}")) } else { Ok(()) }
                })
                .await;
            }
            let group = daemon.group().await;
            let stopped = group.worker(STOPPED);
            let Connections { queued, selected_total, .. } = stopped.connections;
            assert_eq!(queued, selected_total, "{policy}: what it got is in its queue: {group:#?}");
            // Those that compare loads see how much it has before its queue is full.
            match policy {
                "bounded" | "least-loaded" | "power-of-two" => assert!((1..=BACKLOG + 1).contains(&queued)),
                _ => assert_eq!(queued, BACKLOG + 1, "{policy}: it is full, and no fuller: {group:#?}"),
            }
            assert_eq!(stopped.stalls.count, 0, "{policy}: it is not stalled yet");
            assert_eq!(overflows(), before, "{policy}: no connection found a full queue");
            process::signal(pid, Signal::CONT);
            arrivals.finish().await;
            daemon.stop().await;
        });
    }
}
