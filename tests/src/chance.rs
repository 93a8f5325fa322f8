//! How far a fair spread may lie from the mean.

use std::ops::RangeInclusive;

/// How rarely a correct program may fail a test that depends on chance: once in a thousand million runs.
const RISK: f64 = 1e-9;

/// The hits that `draws` independent draws with the chance `p` give, but for a risk of one in a thousand million.
///
/// Half of the risk is left out at either end of the binomial distribution.
pub fn plausible(draws: u64, p: f64) -> RangeInclusive<u64> {
    plausible_among(draws, p, 1)
}

/// The same for one of `n` such numbers, when all of them together may have that risk.
pub fn plausible_among(draws: u64, p: f64, n: usize) -> RangeInclusive<u64> {
    let risk = RISK / n as f64;
    if p <= 0.0 || p >= 1.0 {
        let all = if p >= 1.0 { draws } else { 0 };
        return all..=all;
    }
    let weights: Vec<f64> = log_binomial(draws, p).map(f64::exp).collect();
    let cut = |tail: &mut dyn Iterator<Item = &f64>| {
        tail.scan(0.0, |sum, weight| {
            *sum += weight;
            (*sum < risk / 2.0).then_some(())
        })
        .count() as u64
    };
    let low = cut(&mut weights.iter());
    let high = draws - cut(&mut weights.iter().rev());
    low..=high
}

/// A number of balls that none of `bins` has more of, when `balls` are thrown, each into the emptiest of `choices` bins
/// that are drawn for it; but for a risk of a few in a thousand million.
///
/// By the layered induction of Azar, Broder, Karlin, Upfal, "Balanced Allocations": when at most `full` bins have `k` balls
/// or more, a ball becomes the `k + 1`st of its bin only if all of its draws are among those.
pub fn heaviest(balls: u64, bins: u64, choices: u32) -> u64 {
    let bound_from = |start: u64| {
        let (mut k, mut full) = (start, balls / start);
        while full > 0 {
            let chance = (full as f64 / bins as f64).powi(choices.try_into().ok()?);
            let next = *plausible(balls, chance).end();
            if next >= full {
                return None;
            }
            (k, full) = (k + 1, next);
        }
        Some(k - 1)
    };
    // No more than `balls / k` bins can have `k` each, so the induction may begin anywhere; some place is the best.
    (1..=balls.min(100)).filter_map(bound_from).min().unwrap_or(balls)
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
    fn of_many_numbers_one_may_lie_farther_away() {
        let [one, of_many] = [1, 1_000].map(|n| plausible_among(2_000, 0.25, n));
        assert!(of_many.start() < one.start() && of_many.end() > one.end());
        assert_eq!(plausible(7, 1.0), 7..=7);
        assert_eq!(plausible(7, 0.0), 0..=0);
    }

    #[test]
    fn more_choices_make_the_heaviest_lighter() {
        let [two, eight] = [2, 8].map(|choices| heaviest(2_048, 1_024, choices));
        assert!(eight < two, "{eight}, {two}");
        assert!(heaviest(2_048, 1_024, 8) >= 3, "the mean is two, and they do not all have it");
        assert!(heaviest(300, 1, 2) == 300);
    }

    #[test]
    fn few_draws_leave_every_number_of_hits_plausible() {
        assert_eq!(plausible(10, 0.5), 0..=10);
    }
}
