use std::time::{Duration, Instant};

use super::*;

mod signs;

pub(super) const SECOND: Duration = Duration::from_secs(1);
const STALL_AFTER: Duration = Duration::from_millis(50);

/// A worker with connections.
pub(super) const BUSY: Seen = Seen { idle: false, stalled: false, accepted: 0, waiting: false };
/// A worker without.
pub(super) const IDLE: Seen = Seen { idle: true, stalled: false, accepted: 0, waiting: false };

pub(super) fn policy(name: Policy) -> PolicySpec {
    name.into()
}

/// A group of `workers` workers that all run.
pub(super) fn running(workers: u16, now: Instant) -> Group {
    let mut group =
        Group::new(workers, policy(Policy::ConsistentHash), STALL_AFTER, Supervision::default(), now);
    carry_out(&mut group, now, |_| BUSY);
    group
}

/// A group of `workers` workers whose processes have just been started.
pub(super) fn supervised(workers: u16, supervision: Supervision, now: Instant) -> Group {
    let mut group = Group::new(workers, policy(Policy::ConsistentHash), STALL_AFTER, supervision, now);
    carry_out(&mut group, now, |_| BUSY);
    group
}

/// Does at once what the group wants done.
pub(super) fn carry_out(group: &mut Group, now: Instant, look: impl Fn(WorkerId) -> Seen) -> Vec<Action> {
    let actions = group.advance(now, look);
    for action in &actions {
        match *action {
            Action::Open(id) => group.opened(id),
            Action::Start(id) => group.started(id, 100 + u32::from(id.0), now),
            Action::Close(id) => group.closed(id),
            Action::Terminate(_) | Action::Abort(_) | Action::Kill(_) | Action::Forget(_) => {}
        }
    }
    actions
}

pub(super) fn states(group: &Group) -> Vec<WorkerState> {
    group.workers().map(|(_, worker)| worker.state()).collect()
}

pub(super) fn members(group: &Group) -> Vec<u16> {
    group.desired().members.iter().map(|member| member.slot).collect()
}

#[test]
fn starts_by_opening_and_starting_each_worker() {
    let now = Instant::now();
    let mut group = Group::new(2, policy(Policy::Hash), STALL_AFTER, Supervision::default(), now);
    assert_eq!(states(&group), [WorkerState::Starting; 2]);
    let [a, b] = [WorkerId(0), WorkerId(1)];
    assert_eq!(
        carry_out(&mut group, now, |_| BUSY),
        [Action::Open(a), Action::Start(a), Action::Open(b), Action::Start(b)]
    );
    assert_eq!(states(&group), [WorkerState::Active; 2]);
    assert_eq!(members(&group), [0, 1]);
    assert_eq!(group.next_deadline(now), None);
}

#[test]
fn a_few_workers_are_started_at_a_time() {
    let now = Instant::now();
    let workers = STARTS_A_TURN as u16 + 3;
    let mut group =
        Group::new(workers, policy(Policy::ConsistentHash), STALL_AFTER, Supervision::default(), now);
    let starts = |actions: &[Action]| actions.iter().filter(|did| matches!(did, Action::Start(_))).count();
    assert_eq!(starts(&carry_out(&mut group, now, |_| BUSY)), STARTS_A_TURN);
    assert_eq!(group.next_deadline(now), Some(now), "the others are due");
    assert!(group.desired().founding);
    assert_eq!(starts(&carry_out(&mut group, now, |_| BUSY)), 3);
    assert_eq!(group.next_deadline(now), None);
    assert_eq!(states(&group), vec![WorkerState::Active; workers.into()]);
}

#[test]
fn a_worker_that_dies_is_passed_over_until_its_successor_runs() {
    let now = Instant::now();
    let mut group = running(2, now);
    group.ended(WorkerId(1), "killed by SIGKILL".into(), vec![], now + SECOND);
    assert_eq!(states(&group), [WorkerState::Active, WorkerState::Down]);
    assert_eq!(members(&group), [0]);
    assert!(group.desired().sockets.contains(&1), "its queue waits");
    let restart_at = group.next_deadline(now).unwrap();
    assert!(restart_at > now + SECOND);
    assert_eq!(carry_out(&mut group, restart_at, |_| BUSY), [Action::Start(WorkerId(1))]);
    assert_eq!(members(&group), [0, 1]);
    assert_eq!(group.worker(WorkerId(1)).unwrap().restarts, 1);
}

#[test]
fn connections_wait_for_a_successor_when_nobody_else_serves() {
    let now = Instant::now();
    let mut group = running(3, now);
    group.drain(WorkerId(2), None, false, now).unwrap();
    group.ended(WorkerId(0), String::new(), vec![], now);
    group.ended(WorkerId(1), String::new(), vec![], now);
    assert_eq!(members(&group), [0, 1], "not the one that drains");
    assert!(!group.desired().refuse);
}

#[test]
fn who_waits_for_a_worker_that_fails_again_goes_to_another() {
    let now = Instant::now();
    let mut group = running(2, now);
    let fail = |group: &mut Group, now| {
        group.ended(WorkerId(1), "exited with status 1".into(), vec![], now);
        carry_out(group, now, |_| BUSY)
    };
    assert_eq!(fail(&mut group, now), [], "its successor serves its queue");
    assert_eq!(carry_out(&mut group, now + SECOND, |_| BUSY), [Action::Start(WorkerId(1))]);
    assert_eq!(fail(&mut group, now + SECOND), [Action::Close(WorkerId(1))]);
    assert_eq!(group.desired().sockets, [0].into());
    assert_eq!(
        carry_out(&mut group, now + 2 * SECOND, |_| BUSY),
        [Action::Open(WorkerId(1)), Action::Start(WorkerId(1))]
    );
    group.drain(WorkerId(0), None, true, now).unwrap();
    assert_eq!(fail(&mut group, now + 2 * SECOND), [], "nobody else would take it");
}

#[test]
fn draining_ends_when_nothing_is_left() {
    let now = Instant::now();
    let mut group = running(3, now);
    group.drain(WorkerId(1), None, false, now).unwrap();
    assert_eq!(members(&group), [0, 2]);
    assert!(group.is_draining());
    assert_eq!(group.worker(WorkerId(1)).unwrap().state(), WorkerState::Draining);
    carry_out(&mut group, now, |_| IDLE);
    assert_eq!(group.worker(WorkerId(1)).unwrap().state(), WorkerState::Drained);
    assert!(!group.is_draining());
    group.undrain(WorkerId(1), now).unwrap();
    assert_eq!(members(&group), [0, 1, 2]);
}

#[test]
fn stopping_waits_for_connections_then_terminates_then_closes() {
    let now = Instant::now();
    let mut group = running(2, now);
    let id = WorkerId(1);
    group.drain(id, Some(SECOND), false, now).unwrap();
    assert_eq!(carry_out(&mut group, now, |_| BUSY), []);
    assert_eq!(carry_out(&mut group, now, |_| IDLE), [Action::Terminate(id)]);
    assert_eq!(group.worker(id).unwrap().state(), WorkerState::Stopping);
    group.ended(id, "exited with status 0".into(), vec![], now);
    assert_eq!(carry_out(&mut group, now, |_| IDLE), [Action::Close(id)]);
    let worker = group.worker(id).unwrap();
    assert_eq!((worker.state(), worker.reason.as_deref()), (WorkerState::Down, None));
    assert_eq!(group.next_deadline(now), None, "it stays down");
    group.undrain(id, now).unwrap();
    assert_eq!(carry_out(&mut group, now, |_| BUSY), [Action::Open(id), Action::Start(id)]);
    assert_eq!(members(&group), [0, 1]);
}

#[test]
fn a_worker_that_does_not_stop_is_terminated_then_killed() {
    let now = Instant::now();
    let mut group = running(2, now);
    let id = WorkerId(0);
    group.drain(id, Some(SECOND), false, now).unwrap();
    assert_eq!(group.next_deadline(now), Some(now + SECOND));
    assert_eq!(carry_out(&mut group, now + SECOND, |_| BUSY), [Action::Terminate(id)]);
    assert_eq!(group.next_deadline(now), Some(now + 2 * SECOND));
    assert_eq!(carry_out(&mut group, now + 2 * SECOND, |_| BUSY), [Action::Kill(id)]);
    assert_eq!(carry_out(&mut group, now + 9 * SECOND, |_| BUSY), [], "once is enough");
}

#[test]
fn a_stop_that_is_taken_back_starts_the_worker_again() {
    let now = Instant::now();
    let mut group = running(2, now);
    let id = WorkerId(0);
    group.drain(id, Some(SECOND), false, now).unwrap();
    carry_out(&mut group, now, |_| IDLE);
    group.undrain(id, now).unwrap();
    group.ended(id, String::new(), vec![], now);
    assert_eq!(carry_out(&mut group, now, |_| BUSY), [Action::Start(id)]);
}

#[test]
fn the_last_worker_is_drained_only_by_force() {
    let now = Instant::now();
    let mut group = running(2, now);
    group.drain(WorkerId(0), None, false, now).unwrap();
    assert_eq!(group.drain(WorkerId(1), None, false, now), Err(Refusal::LastWorker(WorkerId(1))));
    assert_eq!(members(&group), [1]);
    group.drain(WorkerId(1), None, true, now).unwrap();
    assert_eq!(members(&group), [0_u16; 0]);
    assert!(group.desired().refuse);
}

#[test]
fn kernel_and_draining_exclude_each_other() {
    let now = Instant::now();
    let mut group = running(2, now);
    group.drain(WorkerId(0), None, false, now).unwrap();
    let refusal = group.set_policy(policy(Policy::Kernel)).unwrap_err();
    assert_eq!(refusal, Refusal::KernelWouldFeed(WorkerId(0), WorkerState::Draining));
    group.undrain(WorkerId(0), now).unwrap();
    group.set_policy(policy(Policy::Kernel)).unwrap();
    assert_eq!(group.drain(WorkerId(0), None, false, now), Err(Refusal::KernelCannotDrain));
}

#[test]
fn each_hashing_policy_remembers_what_it_hashes() {
    let mut group = running(1, Instant::now());
    group.set_policy(PolicySpec { hash_on: HashOn::SOURCE, ..policy(Policy::ConsistentHash) }).unwrap();
    group.set_policy(policy(Policy::Hash)).unwrap();
    assert_eq!(group.policy(), policy(Policy::Hash));
    assert_eq!(group.desired().hash_on, [HashOn::Flow, HashOn::SOURCE]);
}

#[test]
fn weights_have_a_range() {
    let mut group = running(1, Instant::now());
    for weight in [0, 257, u16::MAX] {
        assert_eq!(group.set_weight(WorkerId(0), weight), Err(Refusal::Weight(weight)));
    }
    group.set_weight(WorkerId(0), 256).unwrap();
    assert_eq!(group.desired().members, [Member { slot: 0, weight: 256 }]);
    assert_eq!(group.set_weight(WorkerId(7), 1), Err(Refusal::NoSuchWorker(WorkerId(7), "0".into())));
}

#[test]
fn shutting_down_ends_with_nothing_left() {
    let now = Instant::now();
    let mut group = running(2, now);
    group.shut_down(SECOND, now);
    assert!(group.desired().refuse);
    assert_eq!(
        carry_out(&mut group, now, |_| BUSY),
        [Action::Terminate(WorkerId(0)), Action::Terminate(WorkerId(1))]
    );
    for id in [WorkerId(0), WorkerId(1)] {
        group.ended(id, String::new(), vec![], now);
    }
    assert!(!group.is_gone());
    carry_out(&mut group, now, |_| BUSY);
    assert!(group.is_gone());
}

#[test]
fn a_group_is_founded_once_each_of_its_workers_was_ready() {
    let now = Instant::now();
    let mut group = running(2, now);
    assert!(group.desired().founding);
    carry_out(&mut group, now, |_| BUSY);
    assert!(!group.desired().founding);
    group.drain(WorkerId(1), None, false, now).unwrap();
    carry_out(&mut group, now, |_| BUSY);
    assert!(!group.desired().founding);
}

#[test]
fn a_group_that_leaves_refuses_new_connections_and_finishes_the_open_ones() {
    let now = Instant::now();
    for name in [Policy::ConsistentHash, Policy::Kernel] {
        let mut group = running(2, now);
        group.set_policy(policy(name)).unwrap();
        group.leave(SECOND, now);
        let desired = group.desired();
        assert!(desired.refuse && desired.members.is_empty(), "{desired:?}");
        assert_ne!(group.policy().name, Policy::Kernel, "the kernel's hash cannot refuse");
        assert_eq!(carry_out(&mut group, now, |_| BUSY), [], "{name}");
        assert_eq!(states(&group), [WorkerState::Draining; 2]);
        // One is done early, the other one runs out of time.
        let look = |id| if id == WorkerId(0) { IDLE } else { BUSY };
        assert_eq!(carry_out(&mut group, now, look), [Action::Terminate(WorkerId(0))]);
        group.ended(WorkerId(0), String::new(), vec![], now);
        assert_eq!(carry_out(&mut group, now, look), [Action::Close(WorkerId(0))]);
        assert_eq!(carry_out(&mut group, now + SECOND, look), [Action::Terminate(WorkerId(1))]);
        group.ended(WorkerId(1), String::new(), vec![], now + SECOND);
        assert_eq!(carry_out(&mut group, now + SECOND, look), [Action::Close(WorkerId(1))]);
        assert!(group.is_gone());
    }
}
