//! A line that tells how far something is.

use std::io;

use super::env::Env;

/// Clears from the cursor to the end of the line.
const CLEAR: &str = "\x1b[K";

/// Shows one line that changes: in place on a terminal, else one more line whenever it says something new.
pub(super) struct Progress<'a, 'e> {
    env: &'a mut Env<'e>,
    last: Option<String>,
    quiet: bool,
}

impl<'a, 'e> Progress<'a, 'e> {
    /// `quiet` shows nothing, for commands that print JSON in the end.
    pub(super) fn new(env: &'a mut Env<'e>, quiet: bool) -> Self {
        Self { env, last: None, quiet }
    }

    /// How far it is now.
    pub(super) fn show(&mut self, line: &str) -> io::Result<()> {
        if self.quiet || self.last.as_deref() == Some(line) {
            return Ok(());
        }
        match self.env.terminal_columns {
            Some(columns) => {
                // A line that wraps cannot be rewritten.
                let cut: String = line.chars().take(columns.saturating_sub(1)).collect();
                write!(self.env.out, "\r{cut}{CLEAR}")?;
            }
            None => writeln!(self.env.out, "{line}")?,
        }
        self.last = Some(line.to_owned());
        self.env.out.flush()
    }
}

impl Drop for Progress<'_, '_> {
    fn drop(&mut self) {
        if self.last.is_some() && self.env.terminal_columns.is_some() {
            // Whatever comes next starts on a line of its own. When this fails, so did what was shown before.
            drop(writeln!(self.env.out));
        }
    }
}
