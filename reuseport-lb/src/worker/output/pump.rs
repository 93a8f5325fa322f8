//! The thread that passes on what workers write.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Duration,
};

use rustix::{
    event::{
        EventfdFlags, Timespec,
        epoll::{self, CreateFlags, Event, EventData, EventFlags},
        eventfd,
    },
    io::{Errno, write},
};
use tokio::{sync::oneshot, time::timeout};

use super::source::{Left, Peek, Source, Stream};

/// How long to wait until the last lines are written.
const FLUSH_PATIENCE: Duration = Duration::from_secs(1);

/// How many streams the kernel names at a time.
const EVENTS: usize = 64;

/// What the thread is told by, in place of a stream.
const COMMANDS: u64 = u64::MAX;

/// What the thread is to do.
enum Command {
    /// Say when all that workers have written so far is passed on.
    Tell(oneshot::Sender<()>),
    /// Pass nothing on until [`Command::GoOn`], and say so.
    Halt(oneshot::Sender<()>),
    GoOn,
}

/// The thread, from outside.
struct Pump {
    epoll: OwnedFd,
    streams: Mutex<Streams>,
    commands: Sender<Command>,
    has_commands: OwnedFd,
    /// The thread's end of the commands, until there is a thread.
    received: Mutex<Option<Receiver<Command>>>,
}

/// The streams that are followed, by a number that no other has had.
#[derive(Default)]
struct Streams {
    next: u64,
    followed: BTreeMap<u64, Arc<Source>>,
}

static PUMP: LazyLock<Option<Arc<Pump>>> = LazyLock::new(|| {
    let pump = Pump::new();
    pump.inspect_err(|error| tracing::error!(%error, "cannot pass on what workers write")).ok().map(Arc::new)
});

/// Begins to pass on what workers write. The thread that does has the privileges of the calling one.
pub fn begin() {
    if let Some(pump) = &*PUMP
        && let Err(error) = pump.begin()
    {
        tracing::error!(%error, "cannot pass on what workers write");
    }
}

/// Passes on what comes from `source`, until its end, as soon as it has [begun](begin).
pub(super) fn follow(source: Source) {
    if let Some(pump) = &*PUMP
        && let Err(error) = pump.follow(source)
    {
        tracing::error!(%error, "cannot pass on what a worker writes");
    }
}

/// Waits until all that workers have written so far is passed on, but not long.
pub async fn flush() {
    wait_for(Command::Tell).await;
}

/// Passes no more on, until [`go_on`]. What is not passed on is in the pipes. Does not wait long for a line that nobody
/// reads; who reads the pipes next will pass it on once more.
pub async fn halt() {
    wait_for(Command::Halt).await;
}

/// Goes on after [`halt`].
pub fn go_on() {
    if let Some(pump) = &*PUMP {
        pump.command(Command::GoOn);
    }
}

async fn wait_for(command: impl FnOnce(oneshot::Sender<()>) -> Command) {
    let Some(pump) = &*PUMP else { return };
    let (done, is_done) = oneshot::channel();
    pump.command(command(done));
    if timeout(FLUSH_PATIENCE, is_done).await.is_err() {
        tracing::warn!("the last lines of workers are not written, since nobody reads them");
    }
}

impl Pump {
    fn new() -> io::Result<Self> {
        let (commands, received) = channel();
        let pump = Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            streams: Mutex::default(),
            commands,
            has_commands: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            received: Mutex::new(Some(received)),
        };
        pump.watch(&pump.has_commands, COMMANDS)?;
        Ok(pump)
    }

    /// Starts the thread, unless it has been.
    fn begin(self: &Arc<Self>) -> io::Result<()> {
        let Some(commands) = locked(&self.received).take() else { return Ok(()) };
        // Descriptors of its own: whoever else prints must not wait for a lock behind a reader who is slow.
        let own = |stream: BorrowedFd<'_>| stream.try_clone_to_owned().map(File::from);
        let thread = Thread {
            out: own(io::stdout().as_fd())?,
            err: own(io::stderr().as_fd())?,
            peek: Peek::new()?,
            commands,
            to_tell: Vec::new(),
            pump: Arc::clone(self),
        };
        thread::Builder::new().name("worker-output".into()).spawn(move || thread.run()).map(drop)
    }

    /// Edge-triggered: a line that is begun stays in its pipe, and is looked at again when more of it comes. Minimum kernel
    /// version: 5.14, which tells of each write (fs/pipe.c).
    fn watch(&self, descriptor: impl AsFd, number: u64) -> rustix::io::Result<()> {
        epoll::add(&self.epoll, descriptor, EventData::new_u64(number), EventFlags::IN | EventFlags::ET)
    }

    fn follow(&self, source: Source) -> io::Result<()> {
        let source = Arc::new(source);
        let mut streams = locked(&self.streams);
        let number = streams.next;
        streams.next += 1;
        streams.followed.insert(number, Arc::clone(&source));
        // The thread waits for the lock before it looks for the stream.
        self.watch(&source.pipe, number).inspect_err(|_| drop(streams.followed.remove(&number)))?;
        Ok(())
    }

    fn forget(&self, number: u64) {
        if let Some(source) = locked(&self.streams).followed.remove(&number) {
            // By hand, since the pipe may be open elsewhere. Whether it was watched does not matter any more.
            let _ = epoll::delete(&self.epoll, &source.pipe);
        }
    }

    fn command(&self, command: Command) {
        // Without the thread there is nobody to tell.
        drop(self.commands.send(command));
        let _ = write(&self.has_commands, &1_u64.to_ne_bytes());
    }
}

fn locked<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing in here is ever half done.
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The thread, from inside.
struct Thread {
    pump: Arc<Pump>,
    commands: Receiver<Command>,
    out: File,
    err: File,
    peek: Peek,
    /// Who is to be told when all is passed on.
    to_tell: Vec<oneshot::Sender<()>>,
}

impl Thread {
    fn run(mut self) {
        let mut ready = BTreeSet::new();
        loop {
            // Those who were there before it was looked whether something has come.
            let to_tell = std::mem::take(&mut self.to_tell);
            if let Err(error) = self.wait(&mut ready, !to_tell.is_empty()) {
                tracing::error!(%error, "what workers write is not passed on any more");
                return;
            }
            if ready.is_empty() {
                for done in to_tell {
                    let _ = done.send(());
                }
            } else {
                self.to_tell.extend(to_tell);
            }
            self.obey();
            // Some of each, so that none waits for one that writes without end.
            for number in std::mem::take(&mut ready) {
                if self.pass_on(number) {
                    ready.insert(number);
                }
                self.obey();
            }
        }
    }

    /// Adds the streams in which something has come. Waits for one only when nobody waits, and there is nothing else to do.
    fn wait(&self, ready: &mut BTreeSet<u64>, somebody_waits: bool) -> rustix::io::Result<()> {
        let is_busy = somebody_waits || !ready.is_empty();
        let at_once = Timespec::default();
        let mut events = [Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; EVENTS];
        let count = match epoll::wait(&self.pump.epoll, &mut events[..], is_busy.then_some(&at_once)) {
            Err(Errno::INTR) => 0,
            result => result?,
        };
        ready.extend(
            events[..count].iter().map(|event| event.data.u64()).filter(|number| *number != COMMANDS),
        );
        Ok(())
    }

    fn obey(&mut self) {
        let mut is_halted = false;
        loop {
            let command = if is_halted { self.commands.recv().ok() } else { self.commands.try_recv().ok() };
            match command {
                Some(Command::Tell(done)) => self.to_tell.push(done),
                Some(Command::Halt(done)) => {
                    let _ = done.send(());
                    is_halted = true;
                }
                Some(Command::GoOn) => is_halted = false,
                None => return,
            }
        }
    }

    /// Some of what is in one stream. Whether there may be more.
    fn pass_on(&mut self, number: u64) -> bool {
        let Some(source) = locked(&self.pump.streams).followed.get(&number).cloned() else { return false };
        let out = match source.to {
            Stream::Out => &mut self.out,
            Stream::Err => &mut self.err,
        };
        let left = source.pass_on(&mut self.peek, out).unwrap_or_else(|error| {
            tracing::warn!(worker = &*source.prefix, %error, "cannot read what the worker writes");
            Left::End
        });
        if left == Left::End {
            self.pump.forget(number);
        }
        left == Left::More
    }
}
