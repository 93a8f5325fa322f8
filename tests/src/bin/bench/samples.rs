//! The results of several rounds.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The middle and the ends of what several rounds gave.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Summary {
    /// Of one sample at least.
    ///
    /// # Panics
    ///
    /// Without any.
    pub(crate) fn of(samples: impl IntoIterator<Item = f64>) -> Self {
        let sorted = sorted(samples);
        Self { median: median(&sorted), min: sorted[0], max: sorted[sorted.len() - 1] }
    }
}

/// Whole numbers where they are large, with as many digits as tell something where they are small.
impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { median, min, max } = *self;
        let digits = if max >= 100.0 || [median, min, max].iter().all(|value| value.fract() == 0.0) {
            0
        } else if max >= 10.0 {
            1
        } else {
            2
        };
        write!(f, "{median:.digits$} ({min:.digits$}–{max:.digits$})")
    }
}

/// The median of several samples, and between which values the median of all possible samples lies, with a confidence
/// of 95 %. It asks nothing of how the samples are distributed: the ends are samples, chosen by the binomial
/// distribution of how many samples fall below the true median.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Interval {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Interval {
    /// Of one sample at least. With fewer than six, the confidence is less than it should be, and the ends are the
    /// least and the most.
    ///
    /// # Panics
    ///
    /// Without any.
    pub(crate) fn of(samples: impl IntoIterator<Item = f64>) -> Self {
        let sorted = sorted(samples);
        let outside = outside(sorted.len());
        Self { median: median(&sorted), low: sorted[outside], high: sorted[sorted.len() - 1 - outside] }
    }
}

impl Interval {
    /// The product of two factors that were measured one after the other. The ends are too far apart rather than too
    /// near: it is unlikely that both factors are at the same end.
    pub(crate) fn times(self, other: Self) -> Self {
        Self { median: self.median * other.median, low: self.low * other.low, high: self.high * other.high }
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { median, low, high } = self;
        write!(f, "{median:.3} [{low:.3}–{high:.3}]")
    }
}

/// How many of `n` sorted samples may be left out at either end, so that the rest holds the median in 95 of 100 cases.
fn outside(n: usize) -> usize {
    let mut chance = 0.5_f64.powi(i32::try_from(n).unwrap_or(i32::MAX));
    let (mut below, mut left_out) = (chance, 0);
    while below <= 0.025 && left_out < n / 2 {
        left_out += 1;
        chance *= (n + 1 - left_out) as f64 / left_out as f64;
        below += chance;
    }
    left_out.saturating_sub(1).min((n - 1) / 2)
}

fn sorted(samples: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut sorted: Vec<f64> = samples.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    sorted
}

fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
}

/// The standard deviation of whole populations.
pub(crate) fn deviation(counts: &[u64]) -> f64 {
    let n = counts.len() as f64;
    let mean = counts.iter().sum::<u64>() as f64 / n;
    (counts.iter().map(|count| (*count as f64 - mean).powi(2)).sum::<f64>() / n).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(Summary::of([3.0]), Summary { median: 3.0, min: 3.0, max: 3.0 });
        assert_eq!(Summary::of([9.0, 1.0, 2.0]), Summary { median: 2.0, min: 1.0, max: 9.0 });
        assert_eq!(Summary::of([4.0, 1.0, 9.0, 2.0]), Summary { median: 3.0, min: 1.0, max: 9.0 });
    }

    #[test]
    fn as_many_digits_as_tell_something() {
        for (samples, expected) in [
            ([1.0, 2.0, 3.0], "2 (1–3)"),
            ([0.5, 2.0, 3.0], "2.00 (0.50–3.00)"),
            ([0.5, 2.0, 30.0], "2.0 (0.5–30.0)"),
            ([0.5, 2.0, 300.0], "2 (0–300)"),
        ] {
            assert_eq!(Summary::of(samples).to_string(), expected);
        }
    }

    /// The published table for 95 %: the ranks of the interval's ends, by number of samples.
    #[test]
    fn the_interval_is_that_of_the_sign_test() {
        for (n, low, high) in
            [(6, 1, 6), (9, 2, 8), (10, 2, 9), (20, 6, 15), (30, 10, 21), (50, 18, 33), (100, 40, 61)]
        {
            let interval = Interval::of((1..=n).map(f64::from));
            assert_eq!((interval.low, interval.high), (f64::from(low), f64::from(high)), "{n}");
        }
    }

    #[test]
    fn few_samples_give_their_ends() {
        for n in 1..=5 {
            let interval = Interval::of((1..=n).map(f64::from));
            assert_eq!((interval.low, interval.high), (1.0, f64::from(n)));
        }
    }

    #[test]
    fn the_deviation_is_that_of_the_whole() {
        assert!((deviation(&[2, 4, 4, 4, 5, 5, 7, 9]) - 2.0).abs() < f64::EPSILON);
        assert!(deviation(&[3, 3, 3]).abs() < f64::EPSILON);
    }
}
