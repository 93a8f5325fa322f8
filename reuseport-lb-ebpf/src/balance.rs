//! Consistent hashing with bounded loads: how much each worker may hold.
//!
//! Mirrokni, Thorup, Zadimoghaddam: "Consistent Hashing with Bounded Loads", SODA 2018. With the connection that is to
//! be placed, no worker holds more than its share of all connections by weight, times the balance factor, rounded up.

/// The most that workers may hold at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// The factor times all connections, the new one included, in thousandths.
    connections: u64,
    /// All weights, in thousandths.
    weights: u64,
}

impl Bound {
    /// Lets everybody have as much as there is.
    pub const NONE: Self = Self { connections: 1, weights: 0 };

    /// For a balance factor in `thousandths`, workers whose weights add up to `weights_sum`, and a group that has
    /// `total` connections without the new one.
    #[inline(always)]
    pub const fn new(thousandths: u32, weights_sum: u32, total: u64) -> Self {
        Self { connections: thousandths as u64 * (total + 1), weights: weights_sum as u64 * 1_000 }
    }

    /// Whether a worker of this weight that has `load` connections may take the new one.
    ///
    /// In whole numbers, without a division: `load + 1 <= ceil(share)` is `load < share`.
    ///
    /// With a factor of one or more there is always one that may: together the workers have no more than `total`, and
    /// their shares are more than that.
    #[inline(always)]
    pub const fn admits(&self, load: u64, weight: u16) -> bool {
        self.excess(load.cast_signed(), weight) < 0
    }

    /// How much too large the load is, in no particular unit; negative when there is room for the new connection.
    #[inline(always)]
    pub const fn excess(&self, load: i64, weight: u16) -> i64 {
        load.wrapping_mul(self.weights.cast_signed())
            .wrapping_sub(self.connections.wrapping_mul(weight as u64).cast_signed())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn nobody_is_admitted_beyond_the_rounded_share(
            thousandths in 1_000_u32..=100_000, weight in 1_u16..=256, others in 0_u32..=262_144 - 256,
            total in 0_u64..1 << 32, load in 0_u64..1 << 32,
        ) {
            let weights_sum = u32::from(weight) + others;
            let exact = u128::from(thousandths) * u128::from(total + 1) * u128::from(weight);
            let most = exact.div_ceil(u128::from(weights_sum) * 1_000);
            let admits = Bound::new(thousandths, weights_sum, total).admits(load, weight);
            prop_assert_eq!(admits, u128::from(load) < most);
        }

        #[test]
        fn somebody_is_always_admitted(
            workers in prop::collection::vec((0_u64..1_000, 1_u16..=256), 1..100), thousandths in 1_000_u32..=3_000,
        ) {
            let total = workers.iter().map(|(load, _)| load).sum();
            let weights_sum = workers.iter().map(|(_, weight)| u32::from(*weight)).sum();
            let bound = Bound::new(thousandths, weights_sum, total);
            prop_assert!(workers.iter().any(|(load, weight)| bound.admits(*load, *weight)));
        }
    }

    #[test]
    fn without_a_bound_everybody_is_admitted() {
        assert!(Bound::NONE.admits(u64::from(u32::MAX), 1));
    }

    #[test]
    fn a_quarter_more_than_the_mean_is_rounded_up() {
        // Ten connections of four workers are 2.5 each, a quarter more is 3.125.
        let bound = Bound::new(1_250, 4, 9);
        assert!(bound.admits(3, 1));
        assert!(!bound.admits(4, 1));
    }
}
