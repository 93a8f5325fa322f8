//! Waiting for runs of the programs to end, after something that they read was exchanged.

use std::{
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::{io::Errno, thread::MembarrierCommand};

use super::Error;

/// How long to wait where the kernel cannot tell that no program runs any more: many thousand times a run.
const NO_MEMBARRIER: Duration = Duration::from_millis(50);

/// What a thread needs that makes one system call. The system gives it as much more as it has to.
const STACK_BYTES: usize = 16 * 1024;

/// A grace period: when it is over, no program runs any more that began before the last [`begin`](Self::begin).
///
/// It takes the kernel some milliseconds, and a change is in effect before that. So it runs in the background, and who
/// depends on its end waits for what is left of it.
#[derive(Debug)]
pub(super) struct Grace {
    due: bool,
    waiting: Option<JoinHandle<Result<(), Errno>>>,
}

impl Grace {
    /// One that has to be waited for, or none.
    pub(super) const fn new(due: bool) -> Self {
        Self { due, waiting: None }
    }

    /// Something has been exchanged. What went on before ends no later than what begins now.
    pub(super) fn begin(&mut self) {
        let thread = thread::Builder::new().name("grace-period".into()).stack_size(STACK_BYTES);
        // Without a thread, who needs the end waits for all of it.
        *self = Self { due: true, waiting: thread.spawn(wait).ok() };
    }

    /// Waits for the end.
    pub(super) fn end(&mut self) -> Result<(), Error> {
        if self.due {
            let waited = self.waiting.take().and_then(|thread| thread.join().ok());
            waited.unwrap_or_else(wait).map_err(|error| Error::system("membarrier")(error.into()))?;
            self.due = false;
        }
        Ok(())
    }
}

#[expect(clippy::disallowed_methods, reason = "where the kernel has no way to wait for what is waited for")]
fn wait() -> Result<(), Errno> {
    // Ends after an RCU grace period (kernel/sched/membarrier.c), and the programs run under RCU.
    match rustix::thread::membarrier(MembarrierCommand::Global) {
        // Kernels with `nohz_full=` have none. A run takes a microsecond, and nothing interrupts it.
        Err(Errno::INVAL) => {
            thread::sleep(NO_MEMBARRIER);
            Ok(())
        }
        result => result,
    }
}
