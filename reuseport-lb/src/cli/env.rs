//! What a command needs of the world around it, so that tests run the real command in process.

use std::{
    io::{self, IsTerminal as _, Write},
    time::Duration,
};

/// How often a command that waits looks again. Fast enough for the eye, and nothing for the daemon.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Where a command writes, and how it waits. Time is Tokio's.
pub(super) struct Env<'a> {
    /// What was asked for.
    pub(super) out: &'a mut dyn Write,
    /// What went wrong.
    pub(super) err: &'a mut dyn Write,
    /// The columns of the terminal that `out` is, or none when it is a file or a pipe.
    pub(super) terminal_columns: Option<usize>,
    /// How often to look again while waiting.
    pub(super) look_again: Duration,
}

impl Env<'_> {
    /// Calls `with` with the process's own environment.
    pub(super) fn with_process<T>(with: impl FnOnce(&mut Env<'_>) -> T) -> T {
        with(&mut Env {
            out: &mut IgnoreBrokenPipe::new(io::stdout()),
            err: &mut io::stderr(),
            terminal_columns: terminal_columns(),
            look_again: LOOK_AGAIN,
        })
    }
}

fn terminal_columns() -> Option<usize> {
    let stdout = io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    // A terminal that does not know its size says 0; 80 columns is what they all have.
    let columns = rustix::termios::tcgetwinsize(&stdout).map_or(0, |size| size.ws_col);
    Some(if columns == 0 { 80 } else { usize::from(columns) })
}

/// A writer whose reader may leave: `reuseport-lb status | head -1` has done what it should.
struct IgnoreBrokenPipe<W> {
    writer: W,
    broken: bool,
}

impl<W> IgnoreBrokenPipe<W> {
    fn new(writer: W) -> Self {
        Self { writer, broken: false }
    }

    fn unless_broken<T>(&mut self, otherwise: T, io: impl FnOnce(&mut W) -> io::Result<T>) -> io::Result<T> {
        if self.broken {
            return Ok(otherwise);
        }
        match io(&mut self.writer) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {
                self.broken = true;
                Ok(otherwise)
            }
            result => {
                result.map_err(|e| io::Error::new(e.kind(), format!("cannot write standard output: {e}")))
            }
        }
    }
}

impl<W: Write> Write for IgnoreBrokenPipe<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.unless_broken(bytes.len(), |writer| writer.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.unless_broken((), Write::flush)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Failing(io::ErrorKind);

    impl Write for Failing {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(self.0.into())
        }
    }

    #[test]
    fn only_a_reader_that_left_is_no_error() {
        let mut left = IgnoreBrokenPipe::new(Failing(io::ErrorKind::BrokenPipe));
        left.write_all(b"x").expect("nobody reads");
        left.flush().expect("nobody reads");
        let mut full = IgnoreBrokenPipe::new(Failing(io::ErrorKind::StorageFull));
        assert_eq!(full.write_all(b"x").map_err(|e| e.kind()), Err(io::ErrorKind::StorageFull));
    }
}
