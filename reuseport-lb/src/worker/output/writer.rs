//! The thread that writes on what workers have written.

use std::{
    fs::File,
    io::{self, Write as _},
    os::fd::{AsFd as _, BorrowedFd},
    sync::LazyLock,
    thread,
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

/// How many lines may wait for the writing thread.
const WAITING_LINES: usize = 256;

/// How long to wait until the last lines are written on.
pub(super) const FLUSH_PATIENCE: Duration = Duration::from_secs(1);

/// Which of the two streams.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stream {
    Out,
    Err,
}

/// What the writing thread is to do.
enum Task {
    Write(Stream, Vec<u8>),
    Tell(oneshot::Sender<()>),
}

static WRITER: LazyLock<mpsc::Sender<Task>> = LazyLock::new(start_writer);

/// Writes a line to the daemon's own stream, when its turn has come.
pub(super) async fn write(to: Stream, line: Vec<u8>) {
    // Without a writer there is nobody to tell.
    drop(WRITER.send(Task::Write(to, line)).await);
}

/// Waits until all lines that were passed on so far are written, but not long.
pub async fn flush() {
    let (done, is_done) = oneshot::channel();
    let flushed = async {
        // Without a writer there is nothing to wait for.
        drop(WRITER.send(Task::Tell(done)).await);
        drop(is_done.await);
    };
    if timeout(FLUSH_PATIENCE, flushed).await.is_err() {
        tracing::warn!("the last lines of workers are not written, since nobody reads them");
    }
}

fn start_writer() -> mpsc::Sender<Task> {
    let (sender, mut tasks) = mpsc::channel(WAITING_LINES);
    let writer = thread::Builder::new().name("worker-output".into()).spawn(move || {
        // Descriptors of its own: whoever else prints must not wait for a lock behind a reader who is slow.
        let own = |stream: BorrowedFd<'_>| stream.try_clone_to_owned().map(File::from).ok();
        let (mut out, mut err) = (own(io::stdout().as_fd()), own(io::stderr().as_fd()));
        while let Some(task) = tasks.blocking_recv() {
            match task {
                Task::Write(stream, line) => {
                    let to = match stream {
                        Stream::Out => &mut out,
                        Stream::Err => &mut err,
                    };
                    // One call a line, so that lines of the log do not come in between. Who does not want to read it does
                    // not have to.
                    drop(to.as_mut().map(|to| to.write_all(&line)));
                }
                Task::Tell(done) => drop(done.send(())),
            }
        }
    });
    if let Err(error) = writer {
        tracing::error!(%error, "cannot pass on what workers write");
    }
    sender
}
