//! What must be true between rounds and in the end.

use std::{collections::BTreeSet, ffi::OsString, fs};

use reuseport_lb::{control::GroupStatus, group::WorkerState};
use rustix::process::Signal;

use super::{
    Chaos, MEMORY_MARGIN_KIB, Outcome,
    action::{Action, Configuration, GROUP},
    machine::{self, Bpf, Vitals},
};
use crate::{Client, GroupExt, connections, eventually, hold};

impl Chaos {
    /// Sees that every connection is accounted for. Their clients know of all of them; a process that has ended its
    /// connections ends a moment later.
    pub(super) async fn accounts(&self) {
        eventually("all connections are accounted for", async || self.ledger().settle()).await;
    }

    /// Brings back what may be drained, stopped or gone, and waits until all is as in the beginning.
    pub(super) async fn rest(&mut self) {
        self.configuration = Configuration::REST;
        self.daemon.configure(&self.configuration.to_string());
        // Until the last operation is done, or when none of the workers that stay takes connections, it is refused.
        eventually("the configuration is taken", async || {
            for worker in self.daemon.group_named(GROUP).await.workers {
                // One that leaves may be gone at any moment.
                drop(self.daemon.cli(&["undrain", &worker.id.to_string(), "--group", GROUP]).await);
            }
            let output = self.daemon.cli(&["reload"]).await;
            if output.status.success() { Ok(()) } else { Err(output) }
        })
        .await;
        eventually("the other group has gone", async || {
            let status = self.daemon.status().await;
            if status.leaving.is_empty() { Ok(()) } else { Err(format!("{status:#?}")) }
        })
        .await;
        let workers = usize::from(Configuration::REST.workers);
        let is_whole = |group: &GroupStatus| group.workers.len() == workers && group.all_active();
        self.daemon.wait("all workers are active", is_whole).await;
        self.daemon.idle().await;
    }

    /// Opens connections from all hosts, and compares the daemon's numbers with the kernel's, while they are open and
    /// when they are closed.
    pub(super) async fn compare_counts(&self, hosts: &[Client]) {
        let before = self.daemon.group().await;
        let mut held = Vec::new();
        for host in hosts {
            connections(host, 20, 4).await.assert_nothing_failed();
            held.extend(hold(host, 20).await);
        }
        eventually("the counters are the kernel's numbers", async || {
            let group = self.daemon.group().await;
            let pids: Vec<_> = group.workers.iter().filter_map(|worker| worker.pid).collect();
            let truth = machine::established(&pids);
            if group.active() == truth && truth.iter().sum::<u64>() == held.len() as u64 {
                Ok(())
            } else {
                Err(format!("{} are held, the kernel has {truth:?}\n{group:#?}", held.len()))
            }
        })
        .await;
        let closed = held.len() as u64;
        drop(held);
        let after = self.daemon.idle().await;
        assert!(
            after.outcomes.selected >= before.outcomes.selected + 2 * closed,
            "our program picked for each of them: {before:#?}\n{after:#?}"
        );
        assert_eq!(
            after.outcomes.retried, before.outcomes.retried,
            "no table names an empty slot: {after:#?}"
        );
        assert!(after.workers.iter().all(|worker| worker.state == WorkerState::Active), "{after:#?}");
    }

    /// Compares what the daemon holds with what it, or one before it, held after the first round.
    pub(super) async fn compare_vitals(&self, first: Option<&Vitals>) -> Vitals {
        self.daemon.has_loaded_all().await;
        eventually("the daemon holds no more than before", async || {
            let now = Vitals::of(self.daemon.process().pid);
            match first {
                Some(first) if now.has_more_descriptors(first) => Err(format!("{first:?}, now {now:?}")),
                Some(first) if now.memory_kib > first.memory_kib + MEMORY_MARGIN_KIB => {
                    Err(format!("{first}, now {now}"))
                }
                _ => Ok(now),
            }
        })
        .await
    }

    /// Ends the daemon, sees that nothing is left, and prints what there was.
    pub(super) async fn end(mut self, bpf: &Bpf) {
        let pid = self.daemon.process().pid;
        println!("chaos: seed {}, {:.0} s", self.plan.seed, self.begin.elapsed().as_secs_f64());
        for kind in Action::KINDS {
            let of_kind = || self.log.iter().filter(|event| event.action.kind() == kind);
            let done = of_kind().filter(|event| matches!(event.outcome, Outcome::Done(_))).count();
            println!("chaos: {kind:>11}: {done:4} done, {:4} refused", of_kind().count() - done);
        }
        println!("chaos: {}", self.ledger());
        self.daemon.process().signal(Signal::TERM);
        let status = self.daemon.ended().await;
        assert!(status.success(), "SIGTERM gives {status}");
        let folder = self.daemon.config();
        let files = fs::read_dir(folder.parent().expect("a folder")).expect("the daemon's folder");
        let files: BTreeSet<_> = files.flatten().map(|file| file.file_name()).collect();
        let ours = ["config.toml", "stderr", "stdout"].map(OsString::from);
        assert_eq!(files, BTreeSet::from(ours), "files beside the control socket");
        machine::no_socket_is_left().await;
        bpf.are_gone().await;
        let (programs, maps) = bpf.len();
        assert!(programs > 0 && maps > 0, "process {pid} had programs and maps");
        println!(
            "chaos: nothing is left of {programs} programs, {maps} maps, processes, sockets, files and pins"
        );
    }
}
