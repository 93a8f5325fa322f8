//! What was to be reached, beside what was.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::tables;

/// One goal, and the figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Goal {
    what: String,
    goal: String,
    figure: String,
    reached: bool,
}

impl Goal {
    /// A figure that should not be above `limit`.
    pub(crate) fn at_most(what: impl Into<String>, limit: f64, figure: f64, unit: &str) -> Self {
        Self {
            what: what.into(),
            goal: format!("≤ {limit}{unit}"),
            figure: format!("{}{unit}", number(figure)),
            reached: figure <= limit,
        }
    }

    /// A figure that should not be below `limit`.
    pub(crate) fn at_least(what: impl Into<String>, limit: f64, figure: f64, unit: &str) -> Self {
        Self {
            what: what.into(),
            goal: format!("≥ {limit}{unit}"),
            figure: format!("{}{unit}", number(figure)),
            reached: figure >= limit,
        }
    }

    /// A word more about the figure.
    pub(crate) fn with(self, more: impl fmt::Display) -> Self {
        Self { figure: format!("{} ({more})", self.figure), ..self }
    }
}

/// Three digits that count, and none behind the point where there are as many before it.
fn number(figure: f64) -> String {
    match figure.abs() {
        _ if figure.fract() == 0.0 => format!("{figure}"),
        100.0.. => format!("{figure:.0}"),
        10.0..100.0 => format!("{figure:.1}"),
        1.0..10.0 => format!("{figure:.2}"),
        _ => format!("{figure:.3}"),
    }
}

/// All goals, as a table.
pub(crate) struct Goals<'a>(pub(crate) &'a [Goal]);

impl fmt::Display for Goals<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = tables::new(["goal", "", "measured", ""]);
        for Goal { what, goal, figure, reached } in self.0 {
            table.add_row([
                what.as_str(),
                goal,
                figure,
                if *reached { "reached" } else { "**not reached**" },
            ]);
        }
        write!(f, "{table}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_itself_is_reached() {
        assert!(Goal::at_most("x", 1.05, 1.05, "").reached);
        assert!(!Goal::at_most("x", 1.05, 1.051, "").reached);
        assert!(Goal::at_least("x", 0.98, 0.98, "").reached);
        assert!(!Goal::at_least("x", 0.98, 0.979, "").reached);
    }

    #[test]
    fn numbers_have_three_digits_that_count() {
        for (figure, expected) in
            [(0.0, "0"), (7.0, "7"), (0.123_4, "0.123"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1234")]
        {
            assert_eq!(number(figure), expected);
        }
    }
}
