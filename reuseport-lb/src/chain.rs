//! Errors as one line.

use std::error::Error;

/// What failed and why, down to the last cause: `what: why: why`.
pub fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line = format!("{line}: {error}");
        cause = error.source();
    }
    line
}
