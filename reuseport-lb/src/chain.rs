//! Errors as one line.

use std::error::Error;

/// What failed and why, down to the last cause: `what: why: why`.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
