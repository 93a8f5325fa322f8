//! What workers show and say of themselves: stalls, readiness, watchdogs, notices.

use super::*;

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
