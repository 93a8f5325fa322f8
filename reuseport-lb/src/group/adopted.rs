//! Groups whose workers are processes that the daemon did not start.
//!
//! A worker is a listening socket here: it joins the group when somebody listens, and leaves it when the socket is
//! closed. Its number stays its own until its last connection is gone, and may then be given to another.

use std::time::{Duration, Instant};

use super::{Group, Process, Refusal, Supervision, Wish, Worker, WorkerId};
use crate::{
    config::MAX_WORKERS,
    policy::{Policy, PolicySpec},
};

impl Group {
    /// A group of nobody so far.
    pub fn adopted(policy: PolicySpec, stall_after: Duration, now: Instant) -> Self {
        Self { is_adopted: true, ..Self::new(0, policy, stall_after, Supervision::default(), now) }
    }

    /// Whether the processes are others'.
    pub const fn is_adopted(&self) -> bool {
        self.is_adopted
    }

    /// Whether the processes are the daemon's to start and end.
    pub(super) const fn must_be_ours(&self) -> Result<(), Refusal> {
        if self.is_adopted { Err(Refusal::NotOurs) } else { Ok(()) }
    }

    /// A socket is there, of the process `pid`. Gives its worker the lowest number that is free, or none when all are
    /// taken.
    pub fn join(&mut self, pid: u32, now: Instant) -> Option<WorkerId> {
        let id = (0..MAX_WORKERS).map(WorkerId).find(|id| !self.workers.contains_key(id))?;
        let mut worker = Worker::new(now);
        worker.process = Process::Running { pid, since: now };
        worker.open = true;
        self.workers.insert(id, worker);
        Some(id)
    }

    /// A worker whose processes open their sockets themselves has done so.
    pub fn bound(&mut self, id: WorkerId, now: Instant) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.bound(&self.supervision, now);
        }
    }

    /// Another process takes the connections of a worker's socket now.
    pub fn passed_on(&mut self, id: WorkerId, to: u32) {
        if let Some(Worker { process: Process::Running { pid, .. }, .. }) = self.workers.get_mut(&id) {
            *pid = to;
        }
    }

    /// The socket of a worker is closed. What it has accepted goes on.
    pub fn left(&mut self, id: WorkerId) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.open = false;
            worker.leaves = true;
            worker.wish = Wish::Drain;
        }
    }

    /// A worker has left and nothing of it is left: its number is free.
    pub fn forget(&mut self, id: WorkerId) {
        self.workers.remove(&id);
    }

    /// The kernel picks again, as before the adoption.
    pub fn release(&mut self) {
        self.program = Policy::Kernel.into();
        self.released = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::group::{Action, RestartPlan, Seen, WorkerState};

    const BUSY: Seen = Seen { idle: false, stalled: false, accepted: 0, waiting: false };
    const IDLE: Seen = Seen { idle: true, stalled: false, accepted: 0, waiting: false };

    fn adopted(pids: &[u32]) -> Group {
        let policy = Policy::LeastLoaded.into();
        let now = Instant::now();
        let mut group = Group::adopted(policy, Duration::ZERO, now);
        for (at, pid) in pids.iter().enumerate() {
            assert_eq!(group.join(*pid, now), Some(WorkerId(at as u16)));
        }
        assert_eq!(group.advance(now, |_| IDLE), []);
        group
    }

    fn slots(group: &Group) -> Vec<u16> {
        group.desired().members.iter().map(|member| member.slot).collect()
    }

    #[test]
    fn a_number_is_free_once_its_last_connection_is_gone() {
        let now = Instant::now();
        let mut group = adopted(&[10, 11, 12]);
        group.left(WorkerId(1));
        assert_eq!(slots(&group), [0, 2]);
        assert!(!group.desired().sockets.contains(&1));
        assert_eq!(group.advance(now, |_| BUSY), []);
        assert_eq!(group.worker(WorkerId(1)).unwrap().state(), WorkerState::Draining);
        assert_eq!(group.undrain(WorkerId(1), now), Err(Refusal::Leaves(WorkerId(1))));
        assert_eq!(group.join(13, now), Some(WorkerId(3)));
        assert_eq!(group.advance(now, |_| IDLE), [Action::Forget(WorkerId(1))]);
        group.forget(WorkerId(1));
        assert_eq!(group.join(14, now), Some(WorkerId(1)));
        assert_eq!(slots(&group), [0, 1, 2, 3]);
    }

    #[test]
    fn the_processes_of_others_are_not_stopped() {
        let now = Instant::now();
        let mut group = adopted(&[10, 11]);
        let stop = Some(Duration::ZERO);
        assert_eq!(group.drain(WorkerId(0), stop, false, now), Err(Refusal::NotOurs));
        let plan = RestartPlan { worker: None, parallel: 1, timeout: Duration::ZERO };
        assert_eq!(group.restart(plan, now), Err(Refusal::NotOurs));
        assert_eq!(group.scale(3, Duration::ZERO, now), Err(Refusal::NotOurs));
        assert_eq!(group.start(WorkerId(0), now), Err(Refusal::NotOurs));
        group.drain(WorkerId(0), None, false, now).unwrap();
        assert_eq!(slots(&group), [1]);
    }

    #[test]
    fn who_opens_a_socket_by_itself_is_ready_then() {
        let now = Instant::now();
        let policy = PolicySpec::from(Policy::Hash);
        let supervision = Supervision { self_bound: true, ..Supervision::default() };
        let mut group = Group::new(1, policy, Duration::ZERO, supervision, now);
        group.started(WorkerId(0), 10, now);
        let state = |group: &Group| group.worker(WorkerId(0)).unwrap().state();
        assert_eq!(state(&group), WorkerState::Starting);
        assert_eq!(slots(&group), [0; 0]);
        group.bound(WorkerId(0), now);
        assert_eq!(state(&group), WorkerState::Active);
        assert_eq!(slots(&group), [0]);
    }

    #[test]
    fn only_what_the_user_drains_is_refused() {
        let now = Instant::now();
        let mut group = adopted(&[10]);
        // Nobody is there: whoever comes next takes connections.
        group.left(WorkerId(0));
        assert!(!group.desired().refuse);
        group.join(11, now).unwrap();
        group.drain(WorkerId(1), None, true, now).unwrap();
        assert!(group.desired().refuse);
        assert!(!adopted(&[]).desired().refuse);
    }

    #[test]
    fn a_group_that_is_released_is_the_kernels_as_it_stands() {
        let mut group = adopted(&[10, 11]);
        assert!(!group.is_gone());
        group.passed_on(WorkerId(0), 20);
        assert_eq!(group.worker(WorkerId(0)).unwrap().pid(), Some(20));
        group.release();
        assert!(group.is_gone());
        let desired = group.desired();
        assert_eq!((desired.program.policy, desired.sockets.len()), (Policy::Kernel, 2));
    }
}
