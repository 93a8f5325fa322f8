//! How far a fair spread may lie from the mean.

use std::ops::RangeInclusive;

/// How rarely a correct program may fail a test that depends on chance: once in a thousand million runs.
const RISK: f64 = 1e-9;

/// The hits that `draws` independent draws with the chance `p` give, but for a risk of one in a thousand million.
///
/// Half of the risk is left out at either end of the binomial distribution.
pub fn plausible(draws: u64, p: f64) -> RangeInclusive<u64> {
    let weights: Vec<f64> = log_binomial(draws, p).map(f64::exp).collect();
    let cut = |tail: &mut dyn Iterator<Item = &f64>| {
        tail.scan(0.0, |sum, weight| {
            *sum += weight;
            (*sum < RISK / 2.0).then_some(())
        })
        .count() as u64
    };
    let low = cut(&mut weights.iter());
    let high = draws - cut(&mut weights.iter().rev());
    low..=high
}

/// The logarithm of the chance of 0, 1, …, `draws` hits.
fn log_binomial(draws: u64, p: f64) -> impl Iterator<Item = f64> {
    let odds = (p / (1.0 - p)).ln();
    let none = draws as f64 * (1.0 - p).ln();
    (0..=draws).scan(none, move |log, hits| {
        let now = *log;
        *log += ((draws - hits) as f64 / (hits + 1) as f64).ln() + odds;
        Some(now)
    })
}

/// The largest less the smallest of `counts`.
pub fn difference(counts: &[u64]) -> u64 {
    counts.iter().max().zip(counts.iter().min()).map_or(0, |(max, min)| max - min)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_is_six_standard_deviations_wide_either_side() {
        let range = plausible(2_000, 0.25);
        let deviation = (2_000.0_f64 * 0.25 * 0.75).sqrt();
        for end in [500.0 - *range.start() as f64, *range.end() as f64 - 500.0] {
            assert!((5.5..6.6).contains(&(end / deviation)), "{range:?}");
        }
    }

    #[test]
    fn few_draws_leave_every_number_of_hits_plausible() {
        assert_eq!(plausible(10, 0.5), 0..=10);
    }
}
