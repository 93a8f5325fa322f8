//! Commands that run to their end.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    process::{ExitStatus, Stdio},
};

use tokio::process::Command;

use crate::within;

/// What a command did.
#[derive(Clone, Debug)]
pub struct Output {
    /// The command line.
    pub line: String,
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Output {
    /// Panics unless the command succeeded, and wrote nothing that looks like an error.
    pub fn succeeded(self) -> Self {
        assert!(self.status.success(), "this should have succeeded:\n{self}");
        self
    }

    /// Panics unless the command failed as a command should: with an exit status of 1 or 2, nothing on standard
    /// output, and on standard error one line, `reuseport-lb: what failed: why`, in which all of `words` occur.
    ///
    /// With the exit status 2 the command line itself was wrong, and a usage hint may follow.
    pub fn failed_with(self, words: &[&str]) -> Self {
        let code = self.status.code();
        assert!(matches!(code, Some(1 | 2)), "exit status 1 or 2 expected:\n{self}");
        assert_eq!(self.stdout, "", "nothing expected on standard output:\n{self}");
        if code == Some(1) {
            assert_eq!(self.stderr.lines().count(), 1, "one line expected on standard error:\n{self}");
            assert!(
                self.stderr.starts_with("reuseport-lb: "),
                "`reuseport-lb: …` expected on standard error:\n{self}"
            );
        }
        for word in words {
            assert!(self.stderr.contains(word), "“{word}” expected on standard error:\n{self}");
        }
        self
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        report(f, &self.line, &self.status, &self.stdout, &self.stderr)
    }
}

/// Runs a command to its end, in the thread's namespace.
pub async fn run<S: AsRef<OsStr>>(line: &[S]) -> Output {
    let line: Vec<OsString> = line.iter().map(OsString::from).collect();
    let mut command = Command::new(&line[0]);
    command.args(&line[1..]).stdin(Stdio::null()).kill_on_drop(true);
    let output = within(&format!("`{}` has ended", display(&line)), command.output())
        .await
        .unwrap_or_else(|error| panic!("{}: {error}", display(&line)));
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Output {
        line: display(&line),
        status: output.status,
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    }
}

pub(crate) fn display(line: &[OsString]) -> String {
    line.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

pub(crate) fn report(
    f: &mut fmt::Formatter<'_>,
    line: &str,
    status: &dyn fmt::Display,
    stdout: &str,
    stderr: &str,
) -> fmt::Result {
    writeln!(f, "command: {line}")?;
    writeln!(f, "status:  {status}")?;
    writeln!(f, "--- stdout\n{}", stdout.trim_end())?;
    writeln!(f, "--- stderr\n{}", stderr.trim_end())?;
    write!(f, "---")
}
