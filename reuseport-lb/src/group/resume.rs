//! A group that goes on in another daemon.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{Group, Process, Ready, Restart, Supervision, WEIGHT_RANGE, Wish, Worker, WorkerId};
use crate::{config::MAX_WORKERS, shared::Shared};

/// What is found of a worker by the daemon that takes over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Its process, if it lives.
    pub pid: Option<u32>,
    /// Whether its socket is there.
    pub open: bool,
}

impl Group {
    /// What of a group that was read from a file cannot be.
    ///
    /// # Errors
    ///
    /// In words.
    pub fn check(&self) -> Result<(), String> {
        for (id, worker) in self.workers.iter() {
            if id.0 >= MAX_WORKERS {
                return Err(format!("there is a worker {id}"));
            }
            if !WEIGHT_RANGE.contains(&worker.weight) {
                return Err(format!("worker {id} has the weight {}", worker.weight));
            }
        }
        Ok(())
    }

    /// All of it but the workers.
    #[must_use]
    pub(crate) fn without_workers(&self) -> Self {
        let Self {
            program,
            hash_on,
            balance_factor,
            cpus,
            stall_after,
            supervision,
            workers: _,
            operation,
            founding,
            is_adopted,
            released,
        } = self;
        Self {
            program: *program,
            hash_on: *hash_on,
            balance_factor: *balance_factor,
            cpus: cpus.clone(),
            stall_after: *stall_after,
            supervision: supervision.clone(),
            workers: Shared::new(BTreeMap::new()),
            operation: operation.clone(),
            founding: *founding,
            is_adopted: *is_adopted,
            released: *released,
        }
    }

    /// Goes on with what was written down, in place of [`new`](Self::new), as `found` sees each worker. `heard` says
    /// whether nothing is lost of what workers have said of themselves meanwhile.
    pub fn resume(
        mut self,
        stall_after: Duration,
        supervision: Supervision,
        heard: bool,
        found: impl Fn(WorkerId) -> Found,
        now: Instant,
    ) -> Self {
        self.stall_after = stall_after;
        self.supervision = supervision;
        let ids: Vec<WorkerId> = self.workers.keys().copied().collect();
        for id in ids {
            match (self.is_adopted, found(id)) {
                (false, found) => {
                    if let Some(worker) = self.workers.get_mut(&id) {
                        worker.resume(found, &self.supervision, heard, now);
                    }
                }
                (true, Found { pid: Some(pid), open: true }) => self.passed_on(id, pid),
                (true, _) => self.left(id),
            }
        }
        self
    }
}

impl Worker {
    fn resume(&mut self, found: Found, supervision: &Supervision, heard: bool, now: Instant) {
        let Found { pid, open } = found;
        self.open = open;
        match (pid, self.pid()) {
            (Some(pid), before) if before != Some(pid) => self.started(pid, supervision, now),
            (Some(_), _) => {}
            (None, Some(_)) => self.ended("it ended while no daemon ran".into(), Vec::new(), now),
            (None, None) => {
                if let Process::Down { restart_at } = &mut self.process
                    && !matches!(self.wish, Wish::Stop { .. })
                {
                    restart_at.get_or_insert(now);
                }
            }
        }
        // It has closed its socket, which was the last handle on it: nothing comes to it any more.
        let runs = matches!(self.process, Process::Running { .. });
        let is_deaf = runs && self.wish == Wish::Serve && !open && !supervision.self_bound;
        // It may have said that it is ready when nobody listened, and says so once. Nothing new comes to it until then.
        let starts = matches!(self.process, Process::Starting { .. });
        let is_unheard = starts && supervision.ready == Ready::Notify && !heard && !self.is_to_stop();
        if is_deaf || is_unheard {
            let timeout = supervision.stop_timeout;
            self.begin_restart(Restart { at: now, timeout }, now);
        }
        if let Some(watchdog) = &mut self.watchdog {
            // Nobody listened meanwhile.
            watchdog.fed_at = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        group::{Action, Seen, WorkerState},
        policy::{HashOn, Policy, PolicySpec},
    };

    const SECOND: Duration = Duration::from_secs(1);

    fn policy(name: Policy) -> PolicySpec {
        PolicySpec { name, hash_on: HashOn::Flow, balance_factor: None }
    }

    /// Four workers that run, as written down and read again.
    fn group(change: impl FnOnce(&mut Group, Instant)) -> Group {
        let now = Instant::now();
        let mut group = Group::new(4, policy(Policy::ConsistentHash), SECOND, Supervision::default(), now);
        for id in (0..4).map(WorkerId) {
            group.opened(id);
            group.advance(now, |_| Seen::default());
            group.started(id, 100 + u32::from(id.0), now);
        }
        change(&mut group, now);
        let json = serde_json::to_string(&group).unwrap();
        serde_json::from_str(&json).unwrap_or_else(|error| panic!("{error}: {json}"))
    }

    fn resume(group: Group, found: impl Fn(WorkerId) -> Found) -> Group {
        group.resume(SECOND, Supervision::default(), false, found, Instant::now())
    }

    fn all(id: WorkerId) -> Found {
        Found { pid: Some(100 + u32::from(id.0)), open: true }
    }

    #[test]
    fn wishes_weights_and_counts_survive() {
        let saved = group(|group, now| {
            group.set_weight(WorkerId(0), 7).unwrap();
            group.drain(WorkerId(1), None, false, now).unwrap();
            group.drain(WorkerId(2), Some(SECOND), false, now).unwrap();
            group.ended(WorkerId(3), "crashed".into(), vec!["words".into()], now);
            group.started(WorkerId(3), 103, now);
            group.set_policy(policy(Policy::LeastLoaded)).unwrap();
        });
        let resumed = resume(saved, all);
        assert_eq!(resumed.policy().name, Policy::LeastLoaded);
        let worker = |id| resumed.worker(WorkerId(id)).unwrap();
        assert_eq!(worker(0).weight, 7);
        assert_eq!(worker(1).wish, Wish::Drain);
        assert!(matches!(worker(2).wish, Wish::Stop { timeout: SECOND, .. }));
        assert_eq!(worker(3).restarts, 1);
        assert_eq!(worker(3).state(), WorkerState::Active);
    }

    #[test]
    fn who_died_meanwhile_is_started_again() {
        let now = Instant::now();
        let mut resumed = resume(group(|_, _| {}), |id| if id.0 == 2 { Found::default() } else { all(id) });
        let worker = resumed.worker(WorkerId(2)).unwrap();
        assert_eq!(worker.state(), WorkerState::Down);
        assert_eq!(worker.reason.as_deref(), Some("it ended while no daemon ran"));
        let actions = resumed.advance(now + 60 * SECOND, |_| Seen::default());
        assert_eq!(actions, [Action::Open(WorkerId(2)), Action::Start(WorkerId(2))]);
    }

    #[test]
    fn who_was_about_to_be_started_is_started() {
        let saved = group(|group, now| {
            group.ended(WorkerId(1), "crashed".into(), vec![], now);
            // It is being started when the daemon dies.
            let actions = group.advance(now + 60 * SECOND, |_| Seen::default());
            assert_eq!(actions, [Action::Start(WorkerId(1))]);
        });
        let mut resumed =
            resume(saved.clone(), |id| if id.0 == 1 { Found { pid: None, open: true } } else { all(id) });
        let actions = resumed.advance(Instant::now(), |_| Seen::default());
        assert_eq!(actions, [Action::Start(WorkerId(1))]);
        // Or it has been, and nobody could write that down any more.
        let mut resumed =
            resume(saved, |id| if id.0 == 1 { Found { pid: Some(999), open: true } } else { all(id) });
        assert_eq!(resumed.worker(WorkerId(1)).unwrap().pid(), Some(999));
        assert_eq!(resumed.advance(Instant::now(), |_| Seen::default()), []);
    }

    #[test]
    fn who_may_have_said_unheard_that_it_is_ready_is_exchanged() {
        let supervision = Supervision { ready: Ready::Notify, ..Supervision::default() };
        let saved = group(|group, now| {
            group.supervise(supervision.clone());
            group.ended(WorkerId(2), "crashed".into(), vec![], now);
            group.started(WorkerId(2), 102, now);
        });
        let resume = |heard| saved.clone().resume(SECOND, supervision.clone(), heard, all, Instant::now());
        let mut resumed = resume(false);
        assert_eq!(
            resumed.advance(Instant::now(), |_| Seen::default()),
            [Action::Terminate(WorkerId(2))],
            "the others were ready before"
        );
        resumed.ended(WorkerId(2), "ended".into(), vec![], Instant::now());
        assert_eq!(resumed.advance(Instant::now(), |_| Seen::default()), [Action::Start(WorkerId(2))]);
        assert_eq!(resume(true).advance(Instant::now(), |_| Seen::default()), []);
    }

    #[test]
    fn who_has_lost_its_socket_is_exchanged() {
        let mut resumed =
            resume(group(|_, _| {}), |id| if id.0 == 0 { Found { open: false, ..all(id) } } else { all(id) });
        let actions = resumed.advance(Instant::now(), |_| Seen::default());
        assert_eq!(actions, [Action::Terminate(WorkerId(0))]);
        resumed.ended(WorkerId(0), "ended".into(), vec![], Instant::now());
        let actions = resumed.advance(Instant::now(), |_| Seen::default());
        assert_eq!(actions, [Action::Open(WorkerId(0)), Action::Start(WorkerId(0))]);
    }
}
