use proptest::prelude::*;

use super::{super::tests::any_members, *};

fn scheduled(members: &[Member]) -> Vec<u16> {
    let mut out = vec![9; 3];
    schedule(members, &mut out);
    out
}

fn of(weights: &[u16]) -> Vec<Member> {
    (0..).zip(weights).map(|(slot, weight)| Member { slot, weight: *weight }).collect()
}

#[test]
fn equal_weights_take_turns_in_the_order_of_their_slots() {
    assert_eq!(scheduled(&of(&[5, 5, 5, 5])), [0, 1, 2, 3]);
    let members: Vec<Member> = (0..1_024).rev().map(|slot| Member { slot, weight: 256 }).collect();
    assert!(scheduled(&members).into_iter().eq(0..1_024));
}

#[test]
fn the_heavy_are_spread_among_the_light() {
    assert_eq!(scheduled(&of(&[5, 1, 1])), [0, 0, 1, 0, 0, 2, 0]);
    assert_eq!(scheduled(&of(&[3, 1])), [0, 0, 1, 0]);
    assert_eq!(scheduled(&of(&[4, 4, 2])), [0, 1, 2, 0, 1]);
}

#[test]
fn the_smallest_groups() {
    assert!(scheduled(&[]).is_empty());
    assert_eq!(scheduled(&[Member { slot: 1_023, weight: 256 }]), [1_023]);
    assert_eq!(scheduled(&of(&[2, 2])), [0, 1]);
}

#[test]
fn lists_that_are_too_long_are_scaled_down() {
    // 256 * 512 + 1 * 512, and no common divisor.
    let weights: Vec<u16> = (0..1_024).map(|slot| if slot % 2 == 0 { 256 } else { 1 }).collect();
    let list = scheduled(&of(&weights));
    assert_eq!(list.len(), MAX_SHARES as usize);
    let mut counts = [0; 1_024];
    for slot in list {
        counts[usize::from(slot)] += 1;
    }
    assert!(counts.iter().skip(1).step_by(2).all(|count| *count == 1));
    assert!(counts.iter().step_by(2).all(|count| *count == 31));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_list_is_exact_and_smooth(members in any_members(200)) {
        let list = scheduled(&members);
        let mut counts = [0_i64; 1_024];
        for slot in &list {
            counts[usize::from(*slot)] += 1;
        }
        let sum: i64 = members.iter().map(|member| i64::from(member.weight)).sum();
        let len = list.len() as i64;
        prop_assert!(len <= i64::from(MAX_SHARES));
        for member in &members {
            let count = counts[usize::from(member.slot)];
            if sum <= i64::from(MAX_SHARES) {
                // No longer than it must be, too: sum / len is the divisor.
                prop_assert_eq!(count * sum, i64::from(member.weight) * len);
                prop_assert_eq!(sum % len, 0);
            } else {
                prop_assert!(count >= 1);
            }
        }

        // Tijdeman's bound, for every member after every entry.
        let unit = (2 * members.len() as i64 - 2).max(1);
        let mut seen = [0_i64; 1_024];
        for (place, slot) in (1..).zip(&list) {
            seen[usize::from(*slot)] += 1;
            for member in &members {
                let slot = usize::from(member.slot);
                let off = (seen[slot] * len - place * counts[slot]).abs();
                prop_assert!(off * unit <= (unit - 1) * len, "{member:?} after {place} of {len}");
            }
        }
    }

    #[test]
    fn the_order_of_members_has_no_meaning(
        (members, shuffled) in any_members(1_024).prop_flat_map(|members| (Just(members.clone()), Just(members).prop_shuffle())),
    ) {
        prop_assert_eq!(scheduled(&members), scheduled(&shuffled));
    }
}
