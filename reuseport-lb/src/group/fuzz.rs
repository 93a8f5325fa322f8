//! Whatever is asked of a group in whatever state, it does it, or refuses and is as before.

use std::time::{Duration, Instant};

use clap::ValueEnum as _;
use proptest::{collection::vec, prelude::*, sample::select};

use super::{
    tests::{carry_out, policy},
    *,
};

/// What is asked of a group, or happens to it.
#[derive(Clone, Debug)]
enum Event {
    Drain(WorkerId, Option<Duration>, bool),
    Undrain(WorkerId),
    Start(WorkerId),
    Weight(WorkerId, u16),
    Restart(RestartPlan),
    CancelRestart,
    Scale(u16, Duration),
    Policy(PolicySpec),
    /// A process ends.
    Ended(WorkerId),
    /// Time passes, with connections open or without.
    Passed(Duration, bool),
}

fn event() -> impl Strategy<Value = Event> {
    let worker = || prop_oneof![8 => 0_u16..5, 1 => any::<u16>()].prop_map(WorkerId);
    let time = || select(vec![0, 1, 1_000, 30_000, u64::from(u32::MAX)]).prop_map(Duration::from_millis);
    let number = || prop_oneof![8 => 0_u16..6, 1 => any::<u16>()];
    let hash_on = select(vec![HashOn::Flow, HashOn::SOURCE]);
    let spec =
        (select(Policy::value_variants()), hash_on, any::<bool>()).prop_map(|(name, hash_on, bounded)| {
            PolicySpec { name, hash_on, balance_factor: bounded.then_some(BalanceFactor::MIN) }
        });
    prop_oneof![
        (worker(), proptest::option::of(time()), any::<bool>())
            .prop_map(|(id, stop, force)| Event::Drain(id, stop, force)),
        worker().prop_map(Event::Undrain),
        worker().prop_map(Event::Start),
        (worker(), number()).prop_map(|(id, weight)| Event::Weight(id, weight)),
        (proptest::option::of(worker()), number(), time()).prop_map(|(worker, parallel, timeout)| {
            Event::Restart(RestartPlan { worker, parallel, timeout })
        }),
        Just(Event::CancelRestart),
        (number(), time()).prop_map(|(workers, timeout)| Event::Scale(workers, timeout)),
        spec.prop_map(Event::Policy),
        worker().prop_map(Event::Ended),
        (time(), any::<bool>()).prop_map(|(time, idle)| Event::Passed(time, idle)),
    ]
}

proptest! {
    #![proptest_config(crate::fuzz::config(512))]

    #[test]
    fn any_wish_is_granted_or_changes_nothing(events in vec(event(), 1..20)) {
        let mut now = Instant::now();
        let mut group =
            Group::new(3, policy(Policy::ConsistentHash), Duration::ZERO, Supervision::default(), now);
        carry_out(&mut group, now, |_| Seen::default());
        for event in events {
            let before = format!("{group:?}");
            let granted = match event {
                Event::Drain(id, stop, force) => group.drain(id, stop, force, now),
                Event::Undrain(id) => group.undrain(id, now),
                Event::Start(id) => group.start(id, now),
                Event::Weight(id, weight) => group.set_weight(id, weight),
                Event::Restart(plan) => group.restart(plan, now).map(drop),
                Event::CancelRestart => group.cancel_restart().map(drop),
                Event::Scale(workers, timeout) => group.scale(workers, timeout, now).map(drop),
                Event::Policy(policy) => group.set_policy(policy),
                Event::Ended(id) => {
                    if group.worker(id).is_ok_and(|worker| worker.pid().is_some()) {
                        group.ended(id, "it ended".into(), Vec::new(), now);
                    }
                    Ok(())
                }
                Event::Passed(time, idle) => {
                    now += time;
                    carry_out(&mut group, now, |_| Seen { idle, ..Seen::default() });
                    Ok(())
                }
            };
            if let Err(refusal) = granted {
                prop_assert_eq!(format!("{group:?}"), before, "{}", refusal);
            }
            prop_assert!(group.check().is_ok(), "{:?}", group.check());
            let members = group.desired().members;
            prop_assert!(members.iter().all(|member| group.worker(WorkerId(member.slot)).is_ok_and(|it| it.open)));
            group.next_deadline(now);
        }
    }
}
