//! The kernel verifies the program that picks before it is attached, and the others when there is time, or when they are
//! needed.

use caps::{
    CapSet::Effective,
    Capability::{CAP_BPF, CAP_SYS_ADMIN},
};
use reuseport_lb::{
    chain::chain,
    policy::{Policy, Program},
};
use reuseport_lb_tests::{
    eventually, in_netns,
    steered::{Steered, tally},
};

const WORKERS: u16 = 4;

/// All that pick but [`Policy::ConsistentHash`]'s own; the last one hashes nothing.
const OTHERS: [Program; 7] = [
    Program { policy: Policy::Hash, bounded: false },
    Program { policy: Policy::ConsistentHash, bounded: true },
    Program { policy: Policy::LeastLoaded, bounded: false },
    Program { policy: Policy::PowerOfTwo, bounded: false },
    Program { policy: Policy::RoundRobin, bounded: false },
    Program { policy: Policy::CpuLocal, bounded: false },
    Program { policy: Policy::Random, bounded: false },
];

/// Under a policy that does not look at the source, chance makes one worker of these once in 4^31.
const CONNECTIONS: [[u8; 4]; 32] = [[127, 0, 0, 1]; 32];

fn steered_by_consistent_hash() -> Steered {
    let mut group = Steered::new(WORKERS);
    group.attach(Policy::ConsistentHash.into()).expect("a program");
    group
}

/// All connections of one source have one worker where that is hashed, as policy `consistent-hash` does here.
async fn assert_hashes(group: &mut Steered) {
    let slots = group.connect(&CONNECTIONS).await;
    assert!(slots.iter().all(|slot| *slot == slots[0]), "{slots:?}");
}

async fn assert_spreads(group: &mut Steered) {
    let counts = tally(WORKERS.into(), &group.connect(&CONNECTIONS).await);
    assert!(counts.iter().filter(|count| **count > 0).count() > 1, "{counts:?}");
}

/// What a thread does that may attach programs, and load none. The kernel asks for one capability or the other.
fn without_the_right_to_load<T>(body: impl FnOnce() -> T) -> T {
    let rights = [CAP_BPF, CAP_SYS_ADMIN];
    rights.iter().for_each(|right| caps::drop(None, Effective, *right).expect("a right of this thread"));
    let result = body();
    rights.iter().for_each(|right| caps::raise(None, Effective, *right).expect("a right of this thread"));
    result
}

#[test]
fn a_program_that_is_refused_when_it_is_needed_leaves_the_one_that_picks() {
    in_netns(async |_| {
        let mut group = steered_by_consistent_hash();
        assert_hashes(&mut group).await;

        let random = Program::from(Policy::Random);
        let refused = without_the_right_to_load(|| group.attach(random)).expect_err("it may not be loaded");
        assert!(chain(&refused).starts_with("program select_random: "), "{}", chain(&refused));
        assert_hashes(&mut group).await;
        // What is loaded can be attached all the same.
        without_the_right_to_load(|| group.attach(Policy::ConsistentHash.into())).expect("it is loaded");

        group.attach(random).expect("it may be loaded again");
        assert_spreads(&mut group).await;
    });
}

#[test]
fn the_others_are_loaded_while_one_picks() {
    in_netns(async |_| {
        let mut group = steered_by_consistent_hash();
        group.datapath().settle_in();
        assert_hashes(&mut group).await;
        for program in OTHERS {
            eventually("it is loaded", async || {
                without_the_right_to_load(|| group.attach(program)).map_err(|error| chain(&error))
            })
            .await;
        }
        assert_spreads(&mut group).await;
    });
}

#[test]
fn one_that_was_refused_meanwhile_is_tried_again_when_it_is_needed() {
    in_netns(async |_| {
        let mut group = steered_by_consistent_hash();
        // The thread that loads them has no more rights than this one has now.
        without_the_right_to_load(|| group.datapath().settle_in());
        assert_hashes(&mut group).await;
        for program in OTHERS {
            without_the_right_to_load(|| group.attach(program)).expect_err("nobody has loaded it");
            assert_hashes(&mut group).await;
        }
        for program in OTHERS {
            group.attach(program).expect("it may be loaded now");
        }
        assert_spreads(&mut group).await;
    });
}
