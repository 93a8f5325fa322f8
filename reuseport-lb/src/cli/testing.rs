//! Runs commands in process.

use std::{ffi::OsString, path::Path, time::Duration};

use super::{env::Env, finish, parse};

/// What a command did.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ran {
    pub(super) status: u8,
    pub(super) out: String,
    pub(super) err: String,
}

impl Ran {
    /// What it printed; it must have succeeded without a word on standard error.
    #[track_caller]
    pub(super) fn printed(self) -> String {
        assert!(self.status == 0 && self.err.is_empty(), "{self:#?}");
        self.out
    }

    /// The one line on standard error of a command that failed, without the program's name.
    #[track_caller]
    pub(super) fn failed(&self, status: u8) -> &str {
        assert_eq!(self.status, status, "{self:#?}");
        let line = self.err.strip_prefix("reuseport-lb: ").and_then(|line| line.strip_suffix('\n'));
        let line = line.unwrap_or_else(|| panic!("not our line: {self:#?}"));
        assert!(!line.is_empty() && !line.contains('\n'), "not one line: {self:#?}");
        line
    }
}

/// Runs `reuseport-lb --control CONTROL ARGS…` with its output in a pipe, or on a terminal of so many columns.
pub(super) async fn run_on(terminal_columns: Option<usize>, control: &Path, args: &[&str]) -> Ran {
    let before = [OsString::from("reuseport-lb"), "--control".into(), control.into()];
    let args = before.into_iter().chain(args.iter().map(Into::into));
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let env = &mut Env {
        out: &mut out,
        err: &mut err,
        terminal_columns,
        // The fake daemon moves on by one with each look.
        look_again: Duration::from_millis(1),
    };
    let done = match parse(args) {
        Ok((control, command)) => command.run(control, env).await,
        Err(e) => Err(e),
    };
    let status = finish(env, done);
    let text = |bytes| String::from_utf8(bytes).expect("text");
    Ran { status, out: text(out), err: text(err) }
}

/// Runs `reuseport-lb --control CONTROL ARGS…` with its output in a pipe.
pub(super) async fn run(control: &Path, args: &[&str]) -> Ran {
    run_on(None, control, args).await
}
