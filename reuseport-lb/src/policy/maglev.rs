//! The first fill of the consistent-hash table.
//!
//! Maglev's table population: Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer",
//! NSDI 2016, section 3.4. Each member has its own permutation of the table's entries. The members take turns, and
//! who has the turn takes the first entry of its permutation that is still free. How often a member has a turn
//! follows its share.

use super::Member;

/// Below this many free entries, the next one is found by looking at each of them. Walking the permutation takes
/// `size / free` steps on average, looking at all takes `free` somewhat dearer ones; for the largest table the two
/// cost the same near here. More than half of all steps of the walk would be spent on these last entries.
const FEW: usize = 128;

/// A member on its way through its permutation `offset, offset + skip, offset + 2 * skip, …` modulo the size.
struct Walk {
    slot: u16,
    share: u32,
    /// What counts up to the next turn.
    credit: u32,
    /// The next entry to try. All earlier ones are taken.
    at: u32,
    skip: u32,
}

/// Fills tables, and keeps the memory for it.
pub(super) struct Maglev {
    slots: Vec<u16>,
    walks: Vec<Walk>,
    /// One bit an entry, 1 while the entry is free. A bitmap of the largest table fits the first-level cache.
    free: Vec<u64>,
    /// The free entries, once they are [`FEW`].
    few: Vec<u32>,
}

impl Maglev {
    /// For tables of `size` entries, a prime.
    pub(super) fn new(size: usize) -> Self {
        let words = size.div_ceil(64);
        Self {
            slots: vec![0; size],
            walks: Vec::new(),
            free: Vec::with_capacity(words),
            few: Vec::with_capacity(FEW),
        }
    }

    /// The table in which `members[i]` has `shares[i]` entries. Members are sorted by slot, and the shares add up to
    /// the size. The result is a function of the arguments alone, on every host.
    pub(super) fn fill(&mut self, members: &[Member], shares: &[u32]) -> &[u16] {
        let size = self.slots.len() as u32;
        // As many rounds as the average share: with equal weights each member has one turn a round, as in the paper,
        // and the work stays proportional to the size however the weights differ.
        let rounds = size.div_ceil(members.len() as u32);
        self.walks.clear();
        self.walks.extend(members.iter().zip(shares).map(|(member, share)| Walk {
            slot: member.slot,
            share: *share,
            // The first turn is in the first round for everyone.
            credit: rounds - 1,
            at: (mix(u64::from(member.slot) << 1) % u64::from(size)) as u32,
            skip: (mix((u64::from(member.slot) << 1) | 1) % u64::from(size - 1)) as u32 + 1,
        }));

        self.free.clear();
        self.free.resize(self.slots.len().div_ceil(64), !0);
        let mut left = self.slots.len();
        for _ in 0..rounds {
            for walk in &mut self.walks {
                walk.credit += walk.share;
                while walk.credit >= rounds {
                    walk.credit -= rounds;
                    let entry = if left > FEW {
                        walk.next_free(&mut self.free, size)
                    } else {
                        if left == FEW || left == self.slots.len() {
                            self.few.clear();
                            let is_free =
                                |entry: &u32| self.free[*entry as usize / 64] >> (entry % 64) & 1 == 1;
                            self.few.extend((0..size).filter(is_free));
                        }
                        walk.next_of(&mut self.few, size)
                    };
                    self.slots[entry as usize] = walk.slot;
                    left -= 1;
                }
            }
        }
        debug_assert_eq!(left, 0, "the shares add up to the size");
        &self.slots
    }
}

impl Walk {
    /// Takes the first entry of the permutation that is free.
    ///
    /// After the first miss it looks at four entries at a time: one branch for four that are mostly taken, and no
    /// waiting for one position to know the next. This makes the whole fill a sixth faster.
    fn next_free(&mut self, free: &mut [u64], size: u32) -> u32 {
        let is_free = |entry: u32| (free[entry as usize / 64] >> (entry % 64)) & 1;
        let mut entry = self.at;
        if is_free(entry) == 0 {
            let two = sum_modulo(self.skip, self.skip, size);
            let (three, four) = (sum_modulo(two, self.skip, size), sum_modulo(two, two, size));
            let mut first = sum_modulo(self.at, self.skip, size);
            entry = loop {
                let next = [
                    first,
                    sum_modulo(first, self.skip, size),
                    sum_modulo(first, two, size),
                    sum_modulo(first, three, size),
                ];
                let found =
                    is_free(next[0]) | is_free(next[1]) << 1 | is_free(next[2]) << 2 | is_free(next[3]) << 3;
                if found != 0 {
                    break next[found.trailing_zeros() as usize % next.len()];
                }
                first = sum_modulo(first, four, size);
            };
        }
        self.at = sum_modulo(entry, self.skip, size);
        free[entry as usize / 64] &= !(1 << (entry % 64));
        entry
    }

    /// The same from a list of all free entries: the one that the walk would reach first.
    fn next_of(&self, few: &mut Vec<u32>, size: u32) -> u32 {
        let inverse = inverse(self.skip, size);
        let steps = |entry: u32| u64::from(entry + size - self.at) * inverse % u64::from(size);
        let mut first = 0;
        let mut fewest = u64::MAX;
        for (index, entry) in few.iter().enumerate() {
            let steps = steps(*entry);
            if steps < fewest {
                (first, fewest) = (index, steps);
            }
        }
        few.swap_remove(first)
    }
}

/// `a + b` modulo `modulus`, for `a` and `b` below it, without a branch: the difference wraps to a large number when
/// the sum is small enough.
fn sum_modulo(a: u32, b: u32, modulus: u32) -> u32 {
    let sum = a + b;
    sum.min(sum.wrapping_sub(modulus))
}

/// `1 / number` modulo the prime `modulus`, by Fermat's little theorem.
fn inverse(number: u32, modulus: u32) -> u64 {
    let modulus = u64::from(modulus);
    let (mut base, mut exponent, mut power) = (u64::from(number), modulus - 2, 1);
    while exponent > 0 {
        if exponent & 1 == 1 {
            power = power * base % modulus;
        }
        base = base * base % modulus;
        exponent >>= 1;
    }
    power
}

/// The finaliser of `SplitMix64` on the `number`th state after zero. Steele, Lea, Flood: "Fast Splittable
/// Pseudorandom Number Generators", OOPSLA 2014; constants as in <https://prng.di.unimi.it/splitmix64.c>.
///
/// It has no seed on purpose: every host gives an entry to the same worker, and so does the next start.
fn mix(number: u64) -> u64 {
    let mut state = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

#[cfg(test)]
mod tests;
