use std::time::{Duration, Instant};

use super::{super::tests::*, *};
use crate::group::{Action, Notice, Supervision, WorkerState};

const PLAN: RestartPlan = RestartPlan { worker: None, parallel: 1, timeout: SECOND };
const LONG: Duration = Duration::from_secs(3_600);

fn notify() -> Supervision {
    Supervision { ready: Ready::Notify, ..Supervision::default() }
}

/// A group of `workers` workers that have all said that they are ready.
fn ready(workers: u16, now: Instant) -> Group {
    let mut group = supervised(workers, notify(), now);
    for id in (0..workers).map(WorkerId) {
        say_ready(&mut group, id, now);
    }
    assert_eq!(states(&group), vec![WorkerState::Active; usize::from(workers)]);
    group
}

fn say_ready(group: &mut Group, id: WorkerId, now: Instant) {
    group.notified(id, Notice { ready: true, ..Notice::default() }, now);
}

/// Ends what is told to end, and gives the ids that were started.
fn turn(group: &mut Group, now: Instant) -> Vec<u16> {
    let mut started = Vec::new();
    loop {
        let actions = carry_out(group, now, |_| IDLE);
        for action in &actions {
            match *action {
                Action::Terminate(id) => group.ended(id, "exited with status 0".into(), vec![], now),
                Action::Start(id) => started.push(id.0),
                _ => {}
            }
        }
        if actions.is_empty() {
            return started;
        }
    }
}

fn operation(group: &Group) -> &Operation {
    group.operation().expect("an operation")
}

#[test]
fn a_rolling_restart_takes_one_worker_after_the_other() {
    let now = Instant::now();
    let mut group = ready(3, now);
    assert_eq!(group.restart(PLAN, now), Ok(1));
    for id in [0, 1, 2] {
        assert_eq!(turn(&mut group, now), [id], "one at a time");
        assert_eq!(states(&group)[usize::from(id)], WorkerState::Starting);
        let others: Vec<u16> = [0, 1, 2].into_iter().filter(|other| *other != id).collect();
        assert_eq!(members(&group), others);
        assert_eq!(group.set_weight(WorkerId(id), 7), Ok(()));
        say_ready(&mut group, WorkerId(id), now);
    }
    assert_eq!(turn(&mut group, now), [0_u16; 0]);
    let operation = operation(&group);
    assert_eq!(operation.done, [0, 1, 2].map(WorkerId));
    assert_eq!((operation.ended, operation.failed.len()), (Some(now), 0));
    assert_eq!(members(&group), [0, 1, 2]);
    assert!(group.workers().all(|(_, worker)| worker.restarts == 1 && worker.weight == 7));
}

#[test]
fn it_drains_before_it_stops_and_has_an_end() {
    let now = Instant::now();
    let mut group = ready(2, now);
    group.restart(RestartPlan { worker: Some(WorkerId(1)), ..PLAN }, now).unwrap();
    assert_eq!(carry_out(&mut group, now, |_| BUSY), []);
    assert_eq!(states(&group), [WorkerState::Active, WorkerState::Draining]);
    assert_eq!(members(&group), [0]);
    assert_eq!(group.next_deadline(now), Some(now + SECOND));
    assert_eq!(carry_out(&mut group, now + SECOND, |_| BUSY), [Action::Terminate(WorkerId(1))]);
    assert_eq!(carry_out(&mut group, now + 2 * SECOND, |_| BUSY), [Action::Kill(WorkerId(1))]);
    group.ended(WorkerId(1), "killed by SIGKILL".into(), vec![], now + 2 * SECOND);
    assert_eq!(carry_out(&mut group, now + 2 * SECOND, |_| BUSY), [Action::Start(WorkerId(1))]);
    assert_eq!(group.worker(WorkerId(1)).unwrap().reason, None, "it was asked for");
}

#[test]
fn a_worker_that_does_not_come_back_ends_it_and_spares_the_rest() {
    let now = Instant::now();
    let mut group = ready(4, now);
    group.restart(PLAN, now).unwrap();
    assert_eq!(turn(&mut group, now), [0]);
    say_ready(&mut group, WorkerId(0), now);
    assert_eq!(turn(&mut group, now), [1]);
    group.ended(WorkerId(1), "exited with status 3".into(), vec!["boom".into()], now);
    assert_eq!(turn(&mut group, now), [0_u16; 0]);
    assert_eq!(operation(&group).done, [WorkerId(0)]);
    assert_eq!(operation(&group).failed, [(WorkerId(1), "exited with status 3".into())].into());
    assert_eq!(operation(&group).ended, Some(now));
    assert_eq!(members(&group), [0, 2, 3]);
    assert_eq!(group.worker(WorkerId(1)).unwrap().last_words, ["boom"]);
    assert_eq!(group.worker(WorkerId(2)).unwrap().restarts, 0);
    group.restart(PLAN, now).unwrap();
    assert_eq!(operation(&group).id, 2);
}

#[test]
fn a_worker_that_never_gets_ready_ends_it() {
    let now = Instant::now();
    let mut group = ready(2, now);
    group.restart(PLAN, now).unwrap();
    turn(&mut group, now);
    let late = now + notify().ready_timeout;
    assert_eq!(group.next_deadline(now), Some(late));
    assert_eq!(carry_out(&mut group, late, |_| IDLE), [Action::Terminate(WorkerId(0))]);
    group.ended(WorkerId(0), "exited with status 0".into(), vec![], late);
    carry_out(&mut group, late, |_| IDLE);
    let why = &operation(&group).failed[&WorkerId(0)];
    assert_eq!(why, "not ready within 1m; exited with status 0");
    assert!(operation(&group).ended.is_some());
}

#[test]
fn without_readiness_it_has_to_stay_for_a_while() {
    let now = Instant::now();
    let mut group = running(2, now);
    group.restart(PLAN, now).unwrap();
    assert_eq!(turn(&mut group, now), [0]);
    assert_eq!(turn(&mut group, now), [0_u16; 0]);
    assert_eq!(members(&group), [0, 1], "it takes connections meanwhile");
    assert_eq!(group.next_deadline(now), Some(now + SECOND));
    assert_eq!(turn(&mut group, now + SECOND), [1]);
}

#[test]
fn several_at_a_time_leave_one_that_serves() {
    let now = Instant::now();
    let mut group = ready(4, now);
    group.restart(RestartPlan { parallel: 9, ..PLAN }, now).unwrap();
    carry_out(&mut group, now, |_| BUSY);
    assert_eq!(members(&group), [3]);
    assert_eq!(turn(&mut group, now), [0, 1, 2]);
    for id in [0, 1, 2] {
        say_ready(&mut group, WorkerId(id), now);
    }
    assert_eq!(turn(&mut group, now), [3]);
}

#[test]
fn the_only_worker_is_ended_at_once_and_connections_wait_in_its_queue() {
    let now = Instant::now();
    let mut group = ready(1, now);
    group.restart(RestartPlan { timeout: LONG, ..PLAN }, now).unwrap();
    assert_eq!(carry_out(&mut group, now, |_| BUSY), [Action::Terminate(WorkerId(0))]);
    assert_eq!(members(&group), [0]);
    assert!(!group.desired().refuse);
}

#[test]
fn under_policy_kernel_nothing_is_drained() {
    let now = Instant::now();
    let mut group = ready(2, now);
    group.set_policy(policy(Policy::Kernel)).unwrap();
    group.restart(RestartPlan { timeout: LONG, ..PLAN }, now).unwrap();
    assert_eq!(carry_out(&mut group, now, |_| BUSY), [Action::Terminate(WorkerId(0))]);
}

#[test]
fn one_operation_at_a_time() {
    let now = Instant::now();
    let mut group = ready(2, now);
    group.restart(PLAN, now).unwrap();
    let busy = Refusal::Busy { kind: Kind::Restart, id: 1 };
    assert_eq!(group.restart(PLAN, now), Err(busy.clone()));
    assert_eq!(group.scale(3, SECOND, now), Err(busy));
    assert_eq!(group.drain(WorkerId(1), None, false, now), Ok(()), "other commands work");
}

#[test]
fn who_is_drained_comes_back_drained_and_who_is_stopped_stays_away() {
    let now = Instant::now();
    let mut group = ready(3, now);
    group.drain(WorkerId(0), None, false, now).unwrap();
    group.drain(WorkerId(1), Some(SECOND), false, now).unwrap();
    turn(&mut group, now);
    assert_eq!(
        group.restart(RestartPlan { worker: Some(WorkerId(1)), ..PLAN }, now),
        Err(Refusal::Stopped(WorkerId(1)))
    );
    group.restart(PLAN, now).unwrap();
    assert_eq!(turn(&mut group, now), [0]);
    say_ready(&mut group, WorkerId(0), now);
    assert_eq!(turn(&mut group, now), [2]);
    say_ready(&mut group, WorkerId(2), now);
    turn(&mut group, now);
    assert_eq!(members(&group), [2]);
    assert_eq!(operation(&group).done, [WorkerId(0), WorkerId(2)]);
}

#[test]
fn a_worker_that_is_stopped_meanwhile_ends_it() {
    let now = Instant::now();
    let mut group = ready(3, now);
    group.restart(PLAN, now).unwrap();
    carry_out(&mut group, now, |_| BUSY);
    group.drain(WorkerId(0), Some(SECOND), false, now).unwrap();
    turn(&mut group, now);
    assert_eq!(operation(&group).failed[&WorkerId(0)], "it was stopped meanwhile");
    assert_eq!(members(&group), [1, 2]);
    assert_eq!(states(&group)[0], WorkerState::Down);
    group.start(WorkerId(0), now).unwrap();
    assert_eq!(turn(&mut group, now), [0]);
    assert_eq!(group.start(WorkerId(0), now), Err(Refusal::Runs(WorkerId(0), WorkerState::Starting)));
}

#[test]
fn more_workers_are_started_and_fewer_finish_first() {
    let now = Instant::now();
    let mut group = ready(2, now);
    group.scale(4, SECOND, now).unwrap();
    assert_eq!(turn(&mut group, now), [2, 3]);
    assert_eq!(members(&group), [0, 1], "not before they are ready");
    for id in [2, 3] {
        say_ready(&mut group, WorkerId(id), now);
    }
    turn(&mut group, now);
    assert_eq!(operation(&group).done, [WorkerId(2), WorkerId(3)]);

    group.scale(1, SECOND, now).unwrap();
    assert_eq!(carry_out(&mut group, now, |_| BUSY), [], "they have connections");
    assert_eq!(members(&group), [0]);
    turn(&mut group, now);
    assert_eq!(states(&group), [WorkerState::Active]);
    assert_eq!(group.desired().sockets, [0].into());
    assert_eq!(operation(&group).done, [1, 2, 3].map(WorkerId));
}

#[test]
fn a_number_that_cannot_be_is_refused() {
    let now = Instant::now();
    let mut group = ready(2, now);
    for workers in [0, 1_025, u16::MAX] {
        assert_eq!(group.scale(workers, SECOND, now), Err(Refusal::Workers(workers)));
    }
    group.drain(WorkerId(0), None, false, now).unwrap();
    assert_eq!(group.scale(1, SECOND, now), Err(Refusal::NobodyRemains("0".into())));
    group.undrain(WorkerId(0), now).unwrap();
    group.set_policy(policy(Policy::Kernel)).unwrap();
    assert_eq!(group.scale(1, SECOND, now), Err(Refusal::KernelCannotDrain));
    assert_eq!(group.scale(3, SECOND, now), Ok(1));
}

#[test]
fn it_ends_with_the_group() {
    let now = Instant::now();
    let mut group = ready(2, now);
    group.restart(PLAN, now).unwrap();
    carry_out(&mut group, now, |_| BUSY);
    group.shut_down(SECOND, now);
    assert_eq!(operation(&group).ended, Some(now));
    turn(&mut group, now);
    assert!(group.is_gone());
}

#[test]
fn the_size_is_that_which_is_wanted_from_the_first_moment() {
    let now = Instant::now();
    let mut group = ready(3, now);
    assert_eq!(group.size(), 3);
    group.scale(1, SECOND, now).unwrap();
    assert_eq!((group.size(), group.workers().count()), (1, 3));
    turn(&mut group, now);
    assert_eq!((group.size(), group.workers().count()), (1, 1));
    group.scale(4, SECOND, now).unwrap();
    assert_eq!(group.size(), 4);
}

#[test]
fn a_restart_that_is_cancelled_leaves_those_as_they_are_that_have_yet_to_come() {
    let now = Instant::now();
    let mut group = ready(4, now);
    assert_eq!(group.cancel_restart(), Err(Refusal::NoRestart));
    assert_eq!(group.restart(PLAN, now), Ok(1));
    assert_eq!(turn(&mut group, now), [0]);
    say_ready(&mut group, WorkerId(0), now);
    assert_eq!(turn(&mut group, now), [1]);
    assert_eq!(group.cancel_restart(), Ok(1));
    assert_eq!(turn(&mut group, now), [0; 0], "nobody is begun with");
    assert!(operation(&group).ended.is_none(), "the one under way comes back");
    assert_eq!(group.cancel_restart(), Ok(1), "again is no error");
    say_ready(&mut group, WorkerId(1), now);
    assert_eq!(turn(&mut group, now), [0; 0]);
    assert_eq!(states(&group), [WorkerState::Active; 4]);
    let ended = operation(&group);
    assert_eq!((&ended.done[..], ended.cancelled), (&[WorkerId(0), WorkerId(1)][..], true));
    assert!(ended.failed.is_empty() && ended.ended.is_some());

    // Who cancels the last one has come too late, and all is done.
    assert_eq!(group.restart(RestartPlan { worker: Some(WorkerId(3)), ..PLAN }, now), Ok(2));
    assert_eq!(turn(&mut group, now), [3]);
    assert_eq!(group.cancel_restart(), Ok(2));
    say_ready(&mut group, WorkerId(3), now);
    turn(&mut group, now);
    assert!(!operation(&group).cancelled);
    // What makes workers more or fewer is no restart.
    assert_eq!(group.scale(5, SECOND, now), Ok(3));
    assert_eq!(group.cancel_restart(), Err(Refusal::NoRestart));
}
