use proptest::{collection::vec, prelude::*, sample::subsequence};

use super::*;

/// Any number of members up to `most`: of one weight, of any weights, or of the two that are farthest apart.
pub(super) fn any_members(most: usize) -> impl Strategy<Value = Vec<Member>> {
    let weights = prop_oneof![
        (1..=256_u16).prop_map(|weight| (weight..=weight).boxed()),
        Just((1..=256_u16).boxed()),
        Just((1..=4_u16).boxed()),
        Just(prop_oneof![Just(1), Just(256)].boxed()),
    ];
    (1..=most, weights).prop_flat_map(|(count, weights)| {
        (subsequence((0..1024).collect::<Vec<u16>>(), count), vec(weights, count)).prop_map(
            |(slots, weights)| {
                slots.into_iter().zip(weights).map(|(slot, weight)| Member { slot, weight }).collect()
            },
        )
    })
}

/// Whether rounding has room for a seat for each member.
pub(super) fn has_room(members: &[Member], seats: u32) -> bool {
    let sum: u64 = members.iter().map(|member| u64::from(member.weight)).sum();
    let at_least: u64 =
        members.iter().map(|member| (u64::from(member.weight) * u64::from(seats) / sum).max(1)).sum();
    at_least <= u64::from(seats)
}

/// Whether every share is less than `off` from the exact one, and at least one.
pub(super) fn follow(members: &[Member], shares: &[u32], seats: u32, off: i64) -> Result<(), TestCaseError> {
    let sum: i64 = members.iter().map(|member| i64::from(member.weight)).sum();
    for (member, share) in members.iter().zip(shares) {
        let difference = i64::from(*share) * sum - i64::from(seats) * i64::from(member.weight);
        prop_assert!(difference.abs() < off * sum, "{member:?} has {share} of {seats}, weights {sum}");
        prop_assert!(*share >= 1, "{member:?} has nothing");
    }
    Ok(())
}

fn apportioned(members: &[Member], seats: u32) -> Vec<u32> {
    let mut shares = Vec::new();
    apportion(members, seats, &mut shares);
    shares
}

#[test]
fn equal_weights_differ_by_one_at_most_for_any_number_of_members() {
    for count in 1..=1024 {
        let members: Vec<Member> = (0..count).map(|slot| Member { slot, weight: 7 }).collect();
        for seats in [1_024, 4_099, 16_411, 65_537] {
            let shares = apportioned(&members, seats);
            assert_eq!(shares.iter().sum::<u32>(), seats);
            let (least, most) = (shares.iter().min(), shares.iter().max());
            assert!(
                most <= least.map(|least| least + 1).as_ref(),
                "{count} of {seats}: {least:?} to {most:?}"
            );
        }
    }
}

#[test]
fn the_largest_fractions_get_what_is_left() {
    // 10 seats over 3 + 5 + 7: exactly 2, 3.33 and 4.67.
    let members = [(4, 3), (9, 5), (2, 7)].map(|(slot, weight)| Member { slot, weight });
    assert_eq!(apportioned(&members, 10), [2, 3, 5]);
    // Equal fractions: the lower slots.
    let members = [4, 9, 2].map(|slot| Member { slot, weight: 1 });
    assert_eq!(apportioned(&members, 11), [4, 3, 4]);
}

#[test]
fn a_member_below_one_seat_gets_one() {
    let members = [(0, 256), (1, 1)].map(|(slot, weight)| Member { slot, weight });
    assert_eq!(apportioned(&members, 11), [10, 1]);
    assert_eq!(apportioned(&members, 2), [1, 1]);
}

#[test]
fn the_heavy_make_room_where_rounding_cannot() {
    let members: Vec<Member> =
        (0..1024).map(|slot| Member { slot, weight: if slot < 510 { 256 } else { 1 } }).collect();
    assert!(!has_room(&members, 65_537));
    let shares = apportioned(&members, 65_537);
    assert_eq!(shares.iter().sum::<u32>(), 65_537);
    assert!(shares[..510].iter().all(|share| matches!(share, 127..=128)), "{:?}", &shares[..510]);
    assert!(shares[510..].iter().all(|share| *share == 1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn shares_follow_the_weights(members in any_members(1024), seats in 1_024..70_000_u32) {
        let shares = apportioned(&members, seats);
        prop_assert_eq!(shares.iter().sum::<u32>(), seats);
        if has_room(&members, seats) {
            follow(&members, &shares, seats, 1)?;
        } else {
            prop_assert!(shares.iter().all(|share| *share >= 1));
        }
    }

    #[test]
    fn shares_are_less_than_two_off_at_the_sizes_of_a_ring(members in any_members(1024)) {
        let seats = ring::Ring::size_for(members.len() as u16) as u32;
        follow(&members, &apportioned(&members, seats), seats, 2)?;
    }

    #[test]
    fn shares_do_not_depend_on_the_order(
        (members, shuffled) in any_members(64).prop_flat_map(|members| (Just(members.clone()), Just(members).prop_shuffle())),
        seats in 64..1_000_u32,
    ) {
        let shares = apportioned(&members, seats);
        let again = apportioned(&shuffled, seats);
        for (member, share) in members.iter().zip(shares) {
            let place = shuffled.iter().position(|other| other == member);
            prop_assert_eq!(place.map(|place| again[place]), Some(share));
        }
    }
}
