//! What the programs tell by ring buffers: their log, and that workers begin and cease to be stalled.

use std::io;

use aya::maps::{MapData, RingBuf};
use tokio::io::{Interest, unix::AsyncFd};

use super::kernel::KernelDatapath;

impl KernelDatapath {
    /// Passes what the programs log on to the `log` facade, for as long as this value lives.
    ///
    /// # Errors
    ///
    /// The ring buffer of the log cannot be read.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with I/O enabled.
    pub fn forward_log(&mut self) -> io::Result<()> {
        let logger = aya_log::EbpfLogger::init(&mut self.programs.get()).map_err(io::Error::other)?;
        // SAFETY: the logger's descriptor is that of its ring buffer, which it keeps open and never exchanges.
        let logger = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) };
        let mut logger = logger.map_err(io::Error::other)?;
        self.tasks.spawn(async move {
            while let Ok(mut ready) = logger.readable_mut().await {
                ready.get_inner_mut().flush();
                ready.clear_ready();
            }
        });
        Ok(())
    }

    /// Calls `tell` whenever a program has seen a worker begin or cease to be stalled, for as long as this value lives;
    /// [`Datapath::load`](super::Datapath::load) then says which.
    ///
    /// The calls are not counted: one may stand for several news. Only the first `tell` is ever called.
    ///
    /// # Errors
    ///
    /// The ring buffer of the news cannot be read.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with I/O enabled.
    pub fn report_stalls(&mut self, tell: impl Fn() + Send + 'static) -> io::Result<()> {
        let Some(stalls) = self.stalls.take() else { return Ok(()) };
        self.read(stalls, move |stalls| {
            while stalls.next().is_some() {}
            tell();
        })
    }

    /// Calls `read` whenever there is something in a ring buffer, for as long as this value lives. It has to take all
    /// that is there.
    pub(super) fn read(
        &mut self,
        ring: RingBuf<MapData>,
        read: impl Fn(&mut RingBuf<MapData>) + Send + 'static,
    ) -> io::Result<()> {
        // SAFETY: the ring buffer keeps its descriptor open and never exchanges it.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
        let mut ring = ring.map_err(io::Error::other)?;
        self.tasks.spawn(async move {
            while let Ok(mut ready) = ring.readable_mut().await {
                read(ready.get_inner_mut());
                ready.clear_ready();
            }
        });
        Ok(())
    }
}
