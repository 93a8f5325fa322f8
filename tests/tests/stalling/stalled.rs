//! A worker that takes nothing from its accept queue.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use reuseport_lb::{
    control::{GroupStatus, WorkerStatus},
    group::WorkerState,
    worker::affinity,
};
use reuseport_lb_tests::{
    Arrival, Arrivals, Connection, Daemon, GroupExt, Launch, Load, Ticks, chance::plausible, eventually,
    fixed_sources, hold, in_netns, pin_thread, process, status::tally, workers_of,
};
use rustix::process::Signal;

use super::{STOPPED, WORKERS, launches};

/// The stall time of these tests. Longer than the default, so that the machine seldom keeps a healthy worker from running
/// for so long.
const STALL_AFTER: Duration = Duration::from_millis(200);
/// After this long since the last one the program looks at the queue before it gives the worker a connection.
const LOOK_AFTER: Duration = Duration::from_millis(200 / 4);
/// How many connections may come to a worker that should be seen to be stalled, of more than a thousand: this machine may
/// have kept all of the others from running for so long that they are stalled too.
const HANDFUL: usize = 5;

/// Arrivals until the daemon says that the worker is stalled.
///
/// Under least-loaded what waits in its queue keeps the worker from being picked, stalled or not, until others have as
/// much: so with each of those `held` connections come that stay open.
async fn until_stalled(daemon: &Daemon, arrivals: &mut Arrivals, held: Option<&mut Vec<Connection>>) {
    let mut held = held;
    eventually("the worker is stalled", async || {
        arrivals.make(20).await;
        if let Some(held) = &mut held {
            for _ in 0..60 {
                held.push(daemon.client().connect().await.expect("a connection"));
            }
        }
        let group = daemon.group().await;
        let worker = group.worker(STOPPED);
        if worker.state == WorkerState::Stalled { Ok(()) } else { Err(format!("{worker:?}\n{daemon}")) }
    })
    .await;
}

fn a_stalled_worker_gets_a_handful_and_then_its_share(policy: &'static str) {
    in_netns(async move |netns| {
        let (launch, share) = launches().remove(policy).expect(policy);
        let daemon = launch.start(&netns).await;
        pin_thread(affinity::allowed().expect("the CPUs of this thread")[0]);
        let pid = daemon.group().await.worker(STOPPED).pid.expect("a process");
        let mut arrivals = Arrivals::of(daemon.client());
        let ticks = Ticks::watch();
        arrivals.make(100).await;

        process::signal(pid, Signal::STOP);
        let stopped = Instant::now();
        let mut held = Vec::new();
        let holds = policy == "least-loaded";
        until_stalled(&daemon, &mut arrivals, holds.then_some(&mut held)).await;
        // For so long that its queue is looked at again and again, and many connections come meanwhile.
        let (long, mut late) = (Instant::now() + 3 * STALL_AFTER, 0);
        while late < 1_000 || Instant::now() < long {
            arrivals.make(50).await;
            late += 50;
        }
        let stalled = daemon.group().await;
        let stalls = stalled.worker(STOPPED).stalls;
        assert!(stalls.count >= 1 && stalls.since_seconds.is_some(), "{stalls:?}");
        assert!(daemon.tell(&["status"]).await.stdout.contains("stalled"));

        process::signal(pid, Signal::CONT);
        let continued = Instant::now();
        let answered_again = eventually("it answers again", async || {
            arrivals.make(1).await;
            let mut answers = arrivals.answered().into_iter().rev();
            answers
                .find(|arrival| arrival.worker == STOPPED && arrival.answered > continued)
                .map(|arrival| arrival.answered)
                .ok_or_else(|| daemon.to_string())
        })
        .await;

        if holds {
            // So that all have the same again.
            held.clear();
            daemon.idle().await;
        }
        its_share_again(&daemon, policy, share, answered_again).await;

        let arrivals = arrivals.finish().await;
        let too_late = too_late(&arrivals, stopped, continued, ticks.longest());
        assert!(too_late <= HANDFUL, "{too_late} connections for a worker that was stalled\n{daemon}");
        let group = daemon.idle().await;
        assert_eq!(group.outcomes.fallback, 0);
        assert_eq!(group.outcomes.dropped, 0);
        let stalls = group.worker(STOPPED).stalls;
        assert!(stalls.seconds_total >= 3.0 * STALL_AFTER.as_secs_f64(), "{stalls:?}");
        daemon.stop().await;
    });
}

/// How many connections the stopped worker was given although it should have been seen to be stalled.
///
/// Nobody looks at its queue unless connections come, and this machine lets them come in fits. So the time runs from
/// the first of its connections before which the program must have looked while the process was stopped.
/// Nor does it count what came while all others may have been stalled, since each has kept somebody waiting for so long.
fn too_late(arrivals: &[Arrival], stopped: Instant, continued: Instant, tick: Duration) -> usize {
    let others: BTreeSet<u16> =
        arrivals.iter().map(|arrival| arrival.worker).filter(|id| *id != STOPPED).collect();
    let is_stalled = |id: u16, at: Instant| {
        let long = |arrival: &&Arrival| {
            let from = arrival.started + STALL_AFTER.saturating_sub(tick);
            arrival.worker == id
                && (from..arrival.answered + LOOK_AFTER + tick).contains(&at)
                && arrival.answered > from
        };
        arrivals.iter().any(|arrival| long(&arrival))
    };
    let all_stalled = |at: Instant| others.iter().all(|id| is_stalled(*id, at));
    let caught = |after: Instant| {
        let between = move |arrival: &&Arrival| arrival.started > after && arrival.established < continued;
        arrivals.iter().filter(between).filter(|arrival| arrival.worker == STOPPED)
    };
    let first = |after: Instant| caught(after).map(|arrival| arrival.established).min();
    let looked = first(stopped).and_then(|first_one| first(first_one + LOOK_AFTER + tick));
    let late = |looked: Instant| caught(looked + STALL_AFTER + 2 * tick);
    looked.map_or(0, |looked| late(looked).filter(|arrival| !all_stalled(arrival.established)).count())
}

/// From one stall time after the worker was seen to run again, it has its share of the connections that come.
async fn its_share_again(daemon: &Daemon, policy: &str, share: f64, answered_again: Instant) {
    const HELD: usize = 400;
    eventually("it has had its share without having been stalled anew", async || {
        while Instant::now() < answered_again + STALL_AFTER {
            daemon.client().worker().await;
        }
        let stalls =
            |group: &GroupStatus| -> u64 { group.workers.iter().map(|worker| worker.stalls.count).sum() };
        let before = daemon.group().await;
        let held = hold(&daemon.client(), HELD).await;
        let after = daemon.group().await;
        let counts = tally(WORKERS, held.iter().map(|(_, worker)| *worker));
        drop(held);
        if stalls(&before) != stalls(&after) || !before.all_active() {
            // This machine has kept some worker from running, which this is not about.
            return Err(format!("stalled meanwhile: {after:#?}"));
        }
        let fair = plausible(HELD as u64, share);
        let count = counts[usize::from(STOPPED)];
        assert!(fair.contains(&count), "{policy}: {count} of {counts:?}, not {fair:?}\n{daemon}");
        Ok(())
    })
    .await;
}

#[test]
fn under_hash() {
    a_stalled_worker_gets_a_handful_and_then_its_share("hash");
}

#[test]
fn under_consistent_hash() {
    a_stalled_worker_gets_a_handful_and_then_its_share("consistent-hash");
}

#[test]
fn under_consistent_hash_with_bounded_loads() {
    a_stalled_worker_gets_a_handful_and_then_its_share("bounded");
}

#[test]
fn under_least_loaded() {
    a_stalled_worker_gets_a_handful_and_then_its_share("least-loaded");
}

#[test]
fn under_power_of_two() {
    a_stalled_worker_gets_a_handful_and_then_its_share("power-of-two");
}

#[test]
fn under_round_robin() {
    a_stalled_worker_gets_a_handful_and_then_its_share("round-robin");
}

#[test]
fn under_random() {
    a_stalled_worker_gets_a_handful_and_then_its_share("random");
}

#[test]
fn under_cpu_local() {
    a_stalled_worker_gets_a_handful_and_then_its_share("cpu-local");
}

/// The table stays as it is: the worker's flows go to their second choice, always the same, all others stay, and
/// afterwards everything is as before.
#[test]
fn flows_of_a_stalled_worker_go_to_their_second_choice_and_come_back() {
    in_netns(async |netns| {
        let (launch, _) = launches().remove("consistent-hash").expect("a launch");
        let daemon = launch.start(&netns).await;
        let client = daemon.client();
        let sources = fixed_sources(200);
        let before = workers_of(&client, &sources).await;
        assert!(before.contains(&STOPPED));
        let pid = daemon.idle().await.worker(STOPPED).pid.expect("a process");

        process::signal(pid, Signal::STOP);
        let mut arrivals = Arrivals::of(client.clone());
        until_stalled(&daemon, &mut arrivals, None).await;
        let during = workers_of(&client, &sources).await;
        for ((source, home), now) in sources.iter().zip(&before).zip(&during) {
            match *home {
                STOPPED => assert_ne!(*now, STOPPED, "{source} was answered by a stopped process"),
                _ => assert_eq!(now, home, "{source} has moved for nothing"),
            }
        }
        assert_eq!(workers_of(&client, &sources).await, during, "the second choice is always the same");

        process::signal(pid, Signal::CONT);
        daemon.wait("it is back", GroupExt::all_active).await;
        // The programs look again a quarter of the stall time after their last look.
        eventually("its clients are back", async || {
            let after = workers_of(&client, &sources).await;
            if after == before { Ok(()) } else { Err(format!("{after:?} and not {before:?}")) }
        })
        .await;
        arrivals.finish().await;
        daemon.stop().await;
    });
}

/// However many are stalled: nobody is given to them while there is another, and nobody is refused.
#[test]
fn the_last_worker_that_runs_gets_everything() {
    in_netns(async |netns| {
        const RUNS: u16 = 2;
        let (launch, _) = launches().remove("random").expect("a launch");
        let daemon = launch.start(&netns).await;
        let mut arrivals = Arrivals::of(daemon.client());
        arrivals.make(100).await;
        let group = daemon.group().await;
        let stopped = || group.workers.iter().filter(|worker| worker.id.0 != RUNS);
        let pids: Vec<u32> = stopped().map(|worker| worker.pid.expect("a process")).collect();
        pids.iter().for_each(|pid| process::signal(*pid, Signal::STOP));
        eventually("the last one gets everything", async || {
            let before = daemon.group().await;
            arrivals.make(500).await;
            let after = daemon.group().await;
            let running = |group: &GroupStatus| (group.worker(RUNS).state, group.worker(RUNS).stalls.count);
            let all_stalled = before
                .workers
                .iter()
                .all(|worker| (worker.state == WorkerState::Stalled) == (worker.id.0 != RUNS));
            if !all_stalled || running(&before) != running(&after) {
                // Not seen yet, or this machine has kept the last one from running.
                return Err(format!("{after:#?}"));
            }
            assert_eq!(after.outcomes.fallback, 0);
            for worker in stopped() {
                let id = worker.id.0;
                let [was, is] = [&before, &after].map(|group| group.worker(id).connections.selected_total);
                if was != is {
                    // The last one may have been stalled for so short that the daemon has not seen it.
                    return Err(format!("worker {id} is stopped, and was given connections: {after:#?}"));
                }
            }
            Ok(())
        })
        .await;
        pids.iter().for_each(|pid| process::signal(*pid, Signal::CONT));
        arrivals.finish().await;
        daemon.stop().await;
    });
}

#[test]
fn when_all_are_stalled_all_are_eligible() {
    in_netns(async |netns| {
        let daemon = Launch::policy("random").workers(2).stall_after("50ms").start(&netns).await;
        let client = daemon.client();
        let pids: Vec<u32> =
            daemon.group().await.workers.iter().map(|worker| worker.pid.expect("a process")).collect();
        pids.iter().for_each(|pid| process::signal(*pid, Signal::STOP));
        let mut arrivals = Arrivals::of(client);
        eventually("both are stalled", async || {
            arrivals.make(10).await;
            let group = daemon.group().await;
            let stalled = |worker: &WorkerStatus| worker.state == WorkerState::Stalled;
            if group.workers.iter().all(stalled) { Ok(()) } else { Err(format!("{group:#?}")) }
        })
        .await;
        let before = daemon.group().await;
        arrivals.make(200).await;
        let group = daemon.group().await;
        assert_eq!(group.outcomes.fallback, 0, "the policy went on to pick");
        for (before, now) in before.selected().iter().zip(group.selected()) {
            assert!(now > *before, "both get connections: {group:#?}");
        }
        pids.iter().for_each(|pid| process::signal(*pid, Signal::CONT));
        arrivals.finish().await;
        daemon.stop().await;
    });
}

/// Eight workers that have as much to do as they can. Whoever is said to have been stalled has kept some client waiting
/// for that long: without such a client, none was stalled; with one, this machine has kept the worker from running.
#[test]
fn nobody_is_stalled_by_work_alone() {
    in_netns(async |netns| {
        const DEFAULT: Duration = Duration::from_millis(50);
        let daemon = Launch::policy("hash").workers(8).stall_after("50ms").start(&netns).await;
        let ticks = Ticks::watch();
        let load = Load::start(&daemon.client(), 16);
        let end = Instant::now() + Duration::from_secs(30);
        while Instant::now() < end {
            load.more(1_000).await;
        }
        let account = load.stop().await;
        account.assert_nothing_failed();
        let group = daemon.idle().await;
        let long = DEFAULT.saturating_sub(ticks.longest());
        for worker in &group.workers {
            let waited = account
                .records
                .iter()
                .filter(|record| record.result == Ok(worker.id.0) && record.ended - record.started >= long);
            let waited = waited.count() as u64;
            assert!(
                worker.stalls.count <= waited,
                "worker {} was stalled {} times, and {waited} of {} clients waited for so long\n{daemon}",
                worker.id,
                worker.stalls.count,
                account.total()
            );
        }
        daemon.stop().await;
    });
}
