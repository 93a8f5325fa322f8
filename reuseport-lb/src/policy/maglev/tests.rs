use proptest::{collection::btree_set, prelude::*};

use super::*;

/// The population of section 3.4 of the paper, word for word, with the permutations written out.
fn as_in_the_paper(slots: &[u16], size: usize) -> Vec<u16> {
    let permutations: Vec<Vec<usize>> = slots
        .iter()
        .map(|slot| {
            let offset = u128::from(mix(u64::from(*slot) * 2)) % size as u128;
            let skip = u128::from(mix(u64::from(*slot) * 2 + 1)) % (size as u128 - 1) + 1;
            (0..size as u128).map(|j| ((offset + j * skip) % size as u128) as usize).collect()
        })
        .collect();
    let mut next = vec![0; slots.len()];
    let mut entry = vec![None; size];
    let mut filled = 0;
    loop {
        for i in 0..slots.len() {
            let mut c = permutations[i][next[i]];
            while entry[c].is_some() {
                next[i] += 1;
                c = permutations[i][next[i]];
            }
            entry[c] = Some(slots[i]);
            next[i] += 1;
            filled += 1;
            if filled == size {
                return entry.into_iter().flatten().collect();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn equal_weights_give_the_table_of_the_paper(
        slots in btree_set(0..1024_u16, 1..=40),
        size in prop::sample::select(vec![41_usize, 127, 131, 257, 1_009, 4_099]),
    ) {
        let slots: Vec<u16> = slots.into_iter().collect();
        let members: Vec<Member> = slots.iter().map(|slot| Member { slot: *slot, weight: 3 }).collect();
        let mut shares = Vec::new();
        super::super::apportion(&members, size as u32, &mut shares);
        let mut maglev = Maglev::new(size);
        prop_assert_eq!(maglev.fill(&members, &shares), as_in_the_paper(&slots, size));
        // The memory that is kept leaves no trace.
        prop_assert_eq!(maglev.fill(&members, &shares), as_in_the_paper(&slots, size));
    }

    #[test]
    fn inverses_are_inverse(number in 1..65_537_u32) {
        prop_assert_eq!(inverse(number, 65_537) * u64::from(number) % 65_537, 1);
    }
}

#[test]
fn mix_is_splitmix64() {
    // The first outputs of the reference generator with the seed 0.
    assert_eq!(
        [mix(0), mix(1), mix(2)],
        [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4, 0x06c4_5d18_8009_454f]
    );
}
