//! What workers write to standard output and error.
//!
//! With [`Output::Prefix`] each worker writes into two pipes, and one thread passes what is in them on, line by line. A
//! reader who is slow holds up neither the daemon nor, by more than a pipe's length, memory: the pipes fill, and the
//! workers wait.
//!
//! A line is taken out of its pipe only when it is whole and has been passed on. So whatever becomes of the daemon, nothing is
//! lost: a worker's end of a pipe can be read from, too, so that the pipe has a reader even when the daemon has died, and
//! what the worker writes waits there instead of killing it by SIGPIPE. After `PIPE_BYTES` the worker waits, until a new
//! daemon reads on.

use std::{
    collections::VecDeque,
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    },
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustix::{
    fs::{Mode, OFlags},
    pipe::{PipeFlags, fcntl_setpipe_size, pipe_with},
};
use source::{Source, Stream};
use tokio::{sync::watch, time::timeout};

pub use pump::{begin, flush, go_on, halt};

use crate::{config::worker::Output, group::WorkerId};

mod pump;
mod source;

/// How much a worker may write while nobody reads; the most that the kernel gives to everybody.
const PIPE_BYTES: usize = 1024 * 1024;

/// How many of the last lines are kept for `status`.
const LAST_LINES: usize = 10;

/// The longest last line that is kept, in characters.
const MAX_LAST_CHARS: usize = 300;

/// How long to wait for the rest of what a process wrote that has ended.
const REST_PATIENCE: Duration = Duration::from_millis(200);

/// The end of a file from which the last lines are taken.
const TAIL_BYTES: u64 = 8 * 1024;

/// Where a new process's output goes.
#[derive(Debug)]
pub struct Streams {
    /// Its standard output.
    pub stdout: Stdio,
    /// Its standard error.
    pub stderr: Stdio,
    /// What it writes to standard error.
    pub last_words: LastWords,
}

/// The last lines that a process wrote to standard error, as far as they were seen.
#[derive(Clone, Debug)]
pub struct LastWords(Origin);

#[derive(Clone, Debug)]
enum Origin {
    Unknown,
    Lines { lines: SharedLines, open: watch::Receiver<()>, pipes: Pipes },
    File { file: Arc<File>, from: u64 },
}

type SharedLines = Arc<Mutex<VecDeque<String>>>;

/// Where the daemon reads standard output and error of one process.
type Pipes = [Option<Arc<OwnedFd>>; 2];

impl LastWords {
    /// Those of a process whose output nobody follows.
    pub const fn unknown() -> Self {
        Self(Origin::Unknown)
    }

    /// Reads on what a running process writes that an earlier daemon has started with these settings. `handed` are the
    /// pipes for its standard output and error, where that daemon has handed them over.
    pub fn read_on(
        output: &Output,
        group: &str,
        worker: WorkerId,
        pid: u32,
        handed: [Option<OwnedFd>; 2],
    ) -> Self {
        match output {
            _ if handed.iter().any(Option::is_some) => follow(group, worker, handed),
            Output::Inherit => Self::unknown(),
            Output::Prefix => follow(group, worker, [pipe_of(pid, 1), pipe_of(pid, 2)]),
            Output::Folder(folder) => {
                let file = reopen(folder, group, worker).and_then(|file| {
                    let from = file.metadata()?.len();
                    Ok(Origin::File { file: Arc::new(file), from })
                });
                Self(file.unwrap_or(Origin::Unknown))
            }
        }
    }

    /// The pipes that its standard output (1) and error (2) are read from.
    pub fn pipes(&self) -> impl Iterator<Item = (u8, &OwnedFd)> {
        let pipes = match &self.0 {
            Origin::Lines { pipes, .. } => pipes.as_slice(),
            _ => &[],
        };
        (1..).zip(pipes).filter_map(|(stream, pipe)| Some((stream, &**pipe.as_ref()?)))
    }

    /// Waits until all that the process wrote has been passed on: not for long, since its own children may write on.
    pub async fn complete(&self) {
        if let Origin::Lines { open, .. } = &self.0 {
            let mut open = open.clone();
            // Those who pass on hold a sender each, and send nothing.
            drop(timeout(REST_PATIENCE, open.changed()).await);
        }
    }

    /// The lines, the last one last.
    pub fn lines(&self) -> Vec<String> {
        match &self.0 {
            Origin::Unknown => Vec::new(),
            Origin::Lines { lines, .. } => {
                lines.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
            }
            Origin::File { file, from } => tail(file, *from).unwrap_or_else(|error| {
                tracing::debug!(%error, "cannot read what a worker wrote");
                Vec::new()
            }),
        }
    }
}

fn tail(mut file: &File, from: u64) -> io::Result<Vec<String>> {
    let end = file.seek(SeekFrom::End(0))?;
    // A file that is shorter now was cut meanwhile, as when logs are rotated.
    let from = if from <= end { from } else { 0 };
    file.seek(SeekFrom::Start(from.max(end.saturating_sub(TAIL_BYTES))))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    let mut lines: VecDeque<String> = VecDeque::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        keep(&mut lines, line);
    }
    Ok(lines.into())
}

fn keep(lines: &mut VecDeque<String>, line: &[u8]) {
    let text: String =
        String::from_utf8_lossy(line).chars().filter(|c| !c.is_control()).take(MAX_LAST_CHARS).collect();
    if text.trim().is_empty() {
        return;
    }
    if lines.len() == LAST_LINES {
        lines.pop_front();
    }
    lines.push_back(text);
}

impl Streams {
    /// Makes what a new process of `worker` in `group` writes to.
    ///
    /// # Errors
    ///
    /// The kernel's: out of descriptors, or the folder cannot be written to.
    pub fn new(output: &Output, group: &str, worker: WorkerId) -> io::Result<Self> {
        match output {
            Output::Inherit => Ok(Self {
                stdout: Stdio::inherit(),
                stderr: Stdio::inherit(),
                last_words: LastWords::unknown(),
            }),
            Output::Prefix => {
                let (stdout, stderr) = (Pipe::new()?, Pipe::new()?);
                let last_words = follow(group, worker, [Some(stdout.ours), Some(stderr.ours)]);
                Ok(Self { stdout: stdout.theirs.into(), stderr: stderr.theirs.into(), last_words })
            }
            Output::Folder(folder) => {
                let mut file = open_log(folder.clone(), group, worker)?;
                let from = file.seek(SeekFrom::End(0))?;
                let stdout = file.try_clone()?;
                let stderr = file.try_clone()?;
                let last_words =
                    LastWords(Origin::File { file: Arc::new(reopen(folder, group, worker)?), from });
                Ok(Self { stdout: stdout.into(), stderr: stderr.into(), last_words })
            }
        }
    }
}

/// Passes on what comes from the standard output and error of one process.
fn follow(group: &str, worker: WorkerId, pipes: [Option<OwnedFd>; 2]) -> LastWords {
    let pipes: Pipes = pipes.map(|pipe| pipe.map(Arc::new));
    let (sender, open) = watch::channel(());
    let lines = SharedLines::default();
    let prefix: Arc<str> = format!("[{group}/{worker}] ").into();
    let [out, err] = pipes.clone();
    let streams = [(out, Stream::Out, None), (err, Stream::Err, Some(Arc::clone(&lines)))];
    for (pipe, to, last) in streams {
        if let Some(pipe) = pipe {
            pump::follow(Source { pipe, prefix: Arc::clone(&prefix), to, last, _open: sender.clone() });
        }
    }
    LastWords(Origin::Lines { lines, open, pipes })
}

/// The reading end of a stream of a running process, where that is a pipe of ours.
fn pipe_of(pid: u32, descriptor: u8) -> Option<OwnedFd> {
    let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{descriptor}")).ok()?;
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
    let flags = u32::from_str_radix(flags.trim(), 8).ok()?;
    // Only ours can be both read and written.
    let is_ours = flags & OFlags::ACCMODE.bits() == OFlags::RDWR.bits();
    let path = format!("/proc/{pid}/fd/{descriptor}");
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    is_ours.then(|| rustix::fs::open(path, flags, Mode::empty()).ok()).flatten()
}

fn log_path(folder: &std::path::Path, group: &str, worker: WorkerId) -> PathBuf {
    folder.join(format!("{group}-{worker}.log"))
}

/// Opens the file for appending, as everybody who writes to it does.
fn open_log(folder: PathBuf, group: &str, worker: WorkerId) -> io::Result<File> {
    DirBuilder::new().recursive(true).mode(0o755).create(&folder)?;
    OpenOptions::new().append(true).create(true).mode(0o640).open(log_path(&folder, group, worker))
}

/// Opens the file for reading, with a position of its own.
fn reopen(folder: &std::path::Path, group: &str, worker: WorkerId) -> io::Result<File> {
    File::open(log_path(folder, group, worker))
}

/// A pipe whose end for the worker is a reader of it, too.
struct Pipe {
    ours: OwnedFd,
    theirs: OwnedFd,
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (ours, write_end) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        if let Err(error) = fcntl_setpipe_size(&write_end, PIPE_BYTES) {
            tracing::debug!(%error, "a worker's output has a short pipe");
        }
        let path = format!("/proc/self/fd/{}", write_end.as_raw_fd());
        let theirs = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Self { ours, theirs: theirs.into() })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_few_last_lines_are_kept_and_fit() {
        let mut lines = VecDeque::new();
        for n in 0..100 {
            keep(&mut lines, format!("line {n}\x1b[2J").as_bytes());
        }
        keep(&mut lines, b" \t ");
        keep(&mut lines, &[b'x'; 9_000]);
        assert_eq!(lines.len(), LAST_LINES);
        assert_eq!(lines[0], "line 91[2J");
        assert_eq!(lines[LAST_LINES - 1].len(), MAX_LAST_CHARS);
    }

    #[test]
    fn of_a_file_the_part_since_the_start_counts() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("log");
        std::fs::write(&path, "old\n").expect("a file");
        let file = File::open(&path).expect("the file");
        let lines = |from| tail(&file, from).expect("the file can be read");
        assert_eq!(lines(4), [""; 0]);
        std::fs::write(&path, "old\nnew\nlast\n").expect("the file");
        assert_eq!(lines(4), ["new", "last"]);
        std::fs::write(&path, "cut\n").expect("the file");
        assert_eq!(lines(10), ["cut"]);
    }

    /// As when a daemon takes over from one that has died.
    #[tokio::test]
    async fn what_a_running_process_writes_is_read_on() {
        begin();
        let (stdout, stderr) = (Pipe::new().expect("a pipe"), Pipe::new().expect("a pipe"));
        let mut child = std::process::Command::new("sh")
            .args(["-c", "echo before >&2; read go; echo after >&2"])
            .stdin(Stdio::piped())
            .stdout(stdout.theirs)
            .stderr(stderr.theirs)
            .spawn()
            .expect("a shell");
        drop((stdout.ours, stderr.ours));
        let last_words = LastWords::read_on(&Output::Prefix, "web", WorkerId(3), child.id(), [None, None]);
        drop(child.stdin.take().map(|mut stdin| stdin.write_all(b"go\n")));
        let seen = timeout(Duration::from_secs(30), async {
            while last_words.lines() != ["before", "after"] {
                tokio::task::yield_now().await;
            }
        });
        assert!(seen.await.is_ok(), "{:?}", last_words.lines());
        drop(child.wait());

        let own = LastWords::read_on(&Output::Prefix, "web", WorkerId(3), std::process::id(), [None, None]);
        assert_eq!(own.lines(), [""; 0], "what is no pipe of ours is left alone");
    }

    #[tokio::test]
    async fn a_pipe_without_our_end_takes_what_is_written() {
        let Pipe { ours, theirs } = Pipe::new().expect("a pipe");
        drop(ours);
        let mut theirs = File::from(theirs);
        theirs.write_all(b"nobody reads this").expect("no SIGPIPE");
    }
}
