//! The results of several rounds.

use std::fmt;

use serde::Serialize;

/// The middle and the ends of what several rounds gave.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Summary {
    median: f64,
    min: f64,
    max: f64,
}

impl Summary {
    /// Of one sample at least.
    ///
    /// # Panics
    ///
    /// Without any.
    pub(crate) fn of(samples: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = samples.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let [min, .., max] = *sorted else {
            let only = sorted[0];
            return Self { median: only, min: only, max: only };
        };
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Self { median, min, max }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0} ({:.0}–{:.0})", self.median, self.min, self.max)
    }
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
}
