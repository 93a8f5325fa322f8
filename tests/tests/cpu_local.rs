//! Under cpu-local the worker that is pinned to the CPU which took the packet has the connection.

use std::{collections::BTreeMap, fs};

use reuseport_lb::{control::GroupStatus, group::WorkerState, worker::affinity};
use reuseport_lb_tests::{
    Arrivals, Daemon, GroupExt, Launch, chance::plausible, eventually, in_netns, pin_thread, process,
    status::tally,
};
use rustix::process::Signal;

/// Which CPUs the kernel lets a process run on, as it writes it: `0`, `0-3`.
fn allowed_list(pid: u32) -> String {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    list.unwrap_or_else(|| panic!("{status}")).trim().to_owned()
}

/// The workers of each CPU, by the kernel's word, which must be the daemon's too.
fn workers_by_cpu(group: &GroupStatus) -> BTreeMap<u16, Vec<u16>> {
    let mut by_cpu: BTreeMap<u16, Vec<u16>> = BTreeMap::new();
    for worker in &group.workers {
        let cpu = worker.cpu.expect("a pinned worker");
        assert_eq!(allowed_list(worker.pid.expect("a process")), cpu.to_string(), "worker {}", worker.id);
        by_cpu.entry(cpu).or_default().push(worker.id.0);
    }
    by_cpu
}

/// The workers of `n` connections that this thread makes from a CPU. Over loopback a packet is taken by the CPU that
/// sends it.
async fn answers_from(daemon: &Daemon, cpu: u16, n: usize) -> Vec<u16> {
    pin_thread(cpu);
    let mut answers = Vec::with_capacity(n);
    for _ in 0..n {
        answers.push(daemon.client().worker().await);
    }
    answers
}

#[test]
fn each_cpu_has_its_own_workers() {
    in_netns(async |netns| {
        let cpus = affinity::allowed().expect("the CPUs of this test");
        let workers = 3 * u16::try_from(cpus.len()).expect("not so many");
        let daemon = Launch::policy("cpu-local").workers(workers).arg("--pin-workers").start(&netns).await;
        let by_cpu = workers_by_cpu(&daemon.group().await);
        assert_eq!(by_cpu.keys().copied().collect::<Vec<u16>>(), cpus, "every CPU has some");

        // Of three with weights 1, 2 and 5, too.
        for (cpu, local) in &by_cpu {
            for (worker, weight) in local.iter().zip(["1", "2", "5"]) {
                daemon.tell(&["weight", &worker.to_string(), weight]).await;
            }
            let answers = answers_from(&daemon, *cpu, 600).await;
            assert!(
                answers.iter().all(|worker| local.contains(worker)),
                "CPU {cpu}: {answers:?}, not {local:?}"
            );
            let counts = tally(workers, answers);
            for (worker, share) in local.iter().zip([0.125, 0.25, 0.625]) {
                let count = counts[usize::from(*worker)];
                let fair = plausible(600, share);
                assert!(fair.contains(&count), "worker {worker} has {count}, not {fair:?}");
            }
        }
        let group = daemon.idle().await;
        assert_eq!(group.outcomes.selected, group.runs(), "each by the program, at the first choice");
        daemon.stop().await;
    });
}

#[test]
fn a_cpu_whose_worker_drains_goes_to_the_others_and_comes_back() {
    in_netns(async |netns| {
        let cpus = affinity::allowed().expect("the CPUs of this test");
        let workers = u16::try_from(cpus.len().max(2)).expect("not so many");
        let daemon = Launch::policy("cpu-local").workers(workers).arg("--pin-workers").start(&netns).await;
        let by_cpu = workers_by_cpu(&daemon.group().await);
        let (cpu, local) = by_cpu.first_key_value().expect("a CPU");
        for worker in local {
            daemon.tell(&["drain", "--force", &worker.to_string()]).await;
        }
        let others = answers_from(&daemon, *cpu, 50).await;
        assert!(others.iter().all(|worker| !local.contains(worker) || by_cpu.len() == 1), "{others:?}");

        for worker in local {
            daemon.tell(&["undrain", &worker.to_string()]).await;
        }
        daemon.wait("it is back", GroupExt::all_active).await;
        let back = answers_from(&daemon, *cpu, 50).await;
        assert!(back.iter().all(|worker| local.contains(worker)), "{back:?}");
        daemon.stop().await;
    });
}

#[test]
fn a_stalled_worker_is_passed_over_and_a_new_process_is_pinned_again() {
    in_netns(async |netns| {
        let cpus = affinity::allowed().expect("the CPUs of this test");
        let workers = u16::try_from(cpus.len().max(2)).expect("not so many");
        let launch = Launch::policy("cpu-local").workers(workers).arg("--pin-workers").stall_after("100ms");
        let daemon = launch.start(&netns).await;
        let group = daemon.group().await;
        let stopped = group.worker(0);
        let (cpu, pid) = (stopped.cpu.expect("a pinned worker"), stopped.pid.expect("a process"));

        process::signal(pid, Signal::STOP);
        pin_thread(cpu);
        let mut arrivals = Arrivals::of(daemon.client());
        eventually("it is stalled", async || {
            arrivals.make(10).await;
            let group = daemon.group().await;
            if group.worker(0).state == WorkerState::Stalled { Ok(()) } else { Err(format!("{group:#?}")) }
        })
        .await;
        // It is the only worker of this CPU, so all of these would be its own. When this machine keeps the others from
        // running for the stall time, too, all are eligible, and the next hundred may show it.
        eventually("it is passed over", async || {
            let before = daemon.group().await.selected();
            arrivals.make(100).await;
            let after = daemon.group().await.selected();
            if after[0] == before[0] { Ok(()) } else { Err(format!("{before:?} -> {after:?}")) }
        })
        .await;
        // What waits in its queue waits for the successor.
        process::kill_and_wait(pid);
        let group =
            daemon.wait("it is back", |group| group.all_active() && group.worker(0).restarts == 1).await;
        arrivals.finish().await;
        workers_by_cpu(&group);
        assert_eq!(group.outcomes.fallback, 0);
        daemon.stop().await;
    });
}

#[test]
fn without_pinned_workers_it_is_refused() {
    in_netns(async |netns| {
        let refused = Launch::policy("cpu-local").fail(&netns).await;
        refused.failed_with(&["cpu-local", "--pin-workers"]);

        let daemon = Launch::policy("random").start(&netns).await;
        let refused = daemon.cli(&["policy", "cpu-local"]).await;
        refused.failed_with(&["cpu-local", "--pin-workers"]);
        let group = daemon.group().await;
        assert_eq!(group.policy.name.as_str(), "random", "nothing has changed");
        assert!(group.workers.iter().all(|worker| worker.cpu.is_none()));
        daemon.stop().await;
    });
}
