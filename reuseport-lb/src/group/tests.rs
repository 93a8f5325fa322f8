use std::time::{Duration, Instant};

use super::*;

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
    assert_eq!(group.set_weight(WorkerId(7), 1), Err(Refusal::NoSuchWorker(WorkerId(7), WorkerId(0))));
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
fn a_stalled_worker_stays_a_member_and_its_stall_is_counted() {
    let now = Instant::now();
    let mut group = running(2, now);
    carry_out(&mut group, now, |_| BUSY);
    let before = group.desired();
    let look = |id| Seen { stalled: id == WorkerId(1), ..BUSY };
    carry_out(&mut group, now, look);
    carry_out(&mut group, now + SECOND, look);
    assert_eq!(states(&group), [WorkerState::Active, WorkerState::Stalled]);
    assert!(group.has_stalled());
    assert_eq!(group.desired(), before);
    carry_out(&mut group, now + 2 * SECOND, |_| BUSY);
    let stalls = group.worker(WorkerId(1)).unwrap().stalls;
    assert_eq!(stalls, Stalls { count: 1, total: 2 * SECOND, since: None });
    assert_eq!(states(&group), [WorkerState::Active; 2]);
}

fn supervision(ready: Ready, watchdog: Option<Duration>) -> Supervision {
    Supervision { ready, watchdog, ..Supervision::default() }
}

#[test]
fn a_worker_that_is_not_ready_is_not_fed_unless_nobody_is() {
    let now = Instant::now();
    let mut group = supervised(2, supervision(Ready::Notify, None), now);
    assert_eq!(states(&group), [WorkerState::Starting; 2]);
    assert_eq!(members(&group), [0, 1], "connections wait in the queues");
    let ready = Notice { ready: true, ..Notice::default() };
    group.notified(WorkerId(1), ready.clone(), now);
    assert_eq!(states(&group), [WorkerState::Starting, WorkerState::Active]);
    assert_eq!(members(&group), [1]);
    group.notified(WorkerId(0), ready, now);
    assert_eq!(members(&group), [0, 1]);
}

#[test]
fn a_worker_on_trial_gets_one_connection_until_it_accepts_it() {
    let now = Instant::now();
    let mut group = supervised(2, supervision(Ready::Accept, None), now);
    let seen = |accepted, waiting| {
        move |id| if id == WorkerId(1) { Seen { accepted, waiting, ..BUSY } } else { BUSY }
    };
    carry_out(&mut group, now, seen(5, false));
    assert_eq!(members(&group), [0, 1]);
    carry_out(&mut group, now, seen(5, true));
    assert_eq!(states(&group), [WorkerState::Starting; 2]);
    assert_eq!(members(&group), [0]);
    carry_out(&mut group, now, seen(6, true));
    assert_eq!(states(&group), [WorkerState::Starting, WorkerState::Active]);
    assert_eq!(members(&group), [0, 1]);
    assert!(group.is_trying());
    carry_out(&mut group, now + SECOND, |_| BUSY);
    assert_eq!(states(&group)[0], WorkerState::Active, "nothing came for a second");
    assert!(!group.is_trying());
}

#[test]
fn a_worker_that_says_it_stops_is_drained_and_followed_by_another() {
    let now = Instant::now();
    let mut group = running(2, now);
    group.notified(WorkerId(0), Notice { stopping: true, ..Notice::default() }, now);
    assert_eq!(states(&group), [WorkerState::Draining, WorkerState::Active]);
    assert_eq!(members(&group), [1]);
    assert_eq!(carry_out(&mut group, now, |_| IDLE), [], "it ends by itself");
    group.ended(WorkerId(0), "exited with status 0".into(), vec![], now);
    assert_eq!(states(&group)[0], WorkerState::Down);
    carry_out(&mut group, now + SECOND, |_| BUSY);
    assert_eq!(states(&group), [WorkerState::Active; 2]);
}

#[test]
fn a_watchdog_that_is_missed_stalls_first_and_aborts_later() {
    let now = Instant::now();
    let mut group = supervised(2, supervision(Ready::Exec, Some(SECOND)), now);
    let alive = Notice { watchdog: Some(Sign::Alive), ..Notice::default() };
    assert_eq!(group.next_deadline(now), Some(now + SECOND));
    let missed = now + SECOND;
    group.notified(WorkerId(0), alive.clone(), missed);
    assert_eq!(carry_out(&mut group, missed, |_| BUSY), []);
    assert_eq!(states(&group), [WorkerState::Active, WorkerState::Stalled]);
    assert_eq!(members(&group), [0]);

    group.notified(WorkerId(1), alive.clone(), missed);
    carry_out(&mut group, missed, |_| BUSY);
    assert_eq!(states(&group), [WorkerState::Active; 2], "it was but slow");
    assert_eq!(group.worker(WorkerId(1)).unwrap().stalls.count, 1);

    group.notified(WorkerId(0), alive, now + 3 * SECOND);
    assert_eq!(carry_out(&mut group, now + 3 * SECOND, |_| BUSY), [Action::Abort(WorkerId(1))]);
    group.ended(WorkerId(1), "killed by SIGABRT".into(), vec![], now + 3 * SECOND);
    let reason = group.worker(WorkerId(1)).unwrap().reason.clone();
    assert_eq!(reason.as_deref(), Some("missed its watchdog twice; killed by SIGABRT"));
}

#[test]
fn when_all_miss_their_watchdogs_all_are_fed() {
    let now = Instant::now();
    let mut group = supervised(2, supervision(Ready::Exec, Some(SECOND)), now);
    carry_out(&mut group, now + SECOND, |_| BUSY);
    assert_eq!(states(&group), [WorkerState::Stalled; 2]);
    assert_eq!(members(&group), [0, 1]);
}

#[test]
fn a_worker_that_knows_that_it_is_broken_is_aborted_at_once() {
    let now = Instant::now();
    let mut group = supervised(2, supervision(Ready::Exec, Some(SECOND)), now);
    group.notified(WorkerId(0), Notice { watchdog: Some(Sign::Broken), ..Notice::default() }, now);
    assert_eq!(carry_out(&mut group, now, |_| BUSY), [Action::Abort(WorkerId(0))]);
}

#[test]
fn what_a_worker_says_fits_a_line_and_ends_with_it() {
    let now = Instant::now();
    let mut group = running(1, now);
    let say = |status: &str| Notice { status: Some(status.into()), ..Notice::default() };
    let said = |group: &Group| group.worker(WorkerId(0)).unwrap().said.status.clone();
    group.notified(WorkerId(0), say("warm\ning \u{1b}[2Jup"), now);
    assert_eq!(said(&group).as_deref(), Some("warming [2Jup"));
    group.notified(WorkerId(0), say(&"x".repeat(5_000)), now);
    assert_eq!(said(&group).map(|status| status.len()), Some(200));
    group.notified(WorkerId(0), say(" "), now);
    assert_eq!(said(&group), None);
    group.notified(WorkerId(0), say("busy"), now);
    group.ended(WorkerId(0), String::new(), vec![], now);
    assert_eq!(said(&group), None);
    group.notified(WorkerId(0), say("from the grave"), now);
    assert_eq!(said(&group), None);
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
