//! One stream of one process, and how whole lines are taken out of it.

use std::{
    io::{self, Write},
    os::fd::OwnedFd,
    sync::{Arc, PoisonError},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, ioctl_fionread, read},
    pipe::{PipeFlags, SpliceFlags, pipe_with, tee},
};
use tokio::sync::watch;

use super::{SharedLines, keep};

/// The longest line that is passed on in one piece.
pub(super) const MAX_LINE_BYTES: usize = 8 * 1024;

/// Which of the daemon's own streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Out,
    Err,
}

/// One stream of one process.
#[derive(Debug)]
pub(super) struct Source {
    /// Where it is read.
    pub(super) pipe: Arc<OwnedFd>,
    /// What each of its lines begins with when it is passed on.
    pub(super) prefix: Arc<str>,
    /// Where its lines go to.
    pub(super) to: Stream,
    /// Where its last lines are kept, too.
    pub(super) last: Option<SharedLines>,
    /// Gone when all is passed on.
    pub(super) _open: watch::Sender<()>,
}

/// What is left in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// No line that is whole: there is nothing to do until more comes.
    Begun,
    /// Perhaps more.
    More,
    /// Nothing, and nobody who could write.
    End,
}

impl Source {
    /// Writes some of the lines that are whole to `out`, and only then takes them out of the pipe. What is no whole line
    /// stays there, but for one that is too long, and the last one.
    ///
    /// # Errors
    ///
    /// The kernel's, for the pipe. `out` may refuse what it wants: who does not want to read it does not have to.
    pub(super) fn pass_on(&self, peek: &mut Peek, out: &mut impl Write) -> io::Result<Left> {
        let lines = match peek.look(&self.pipe)? {
            Seen::Lines(lines) => lines,
            Seen::Begun => return Ok(Left::Begun),
            Seen::End => return Ok(Left::End),
        };
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            if let Some(last) = &self.last {
                keep(&mut last.lock().unwrap_or_else(PoisonError::into_inner), line);
            }
            // One call a line, so that lines of the log do not come in between.
            drop(out.write_all(&[self.prefix.as_bytes(), line, b"\n"].concat()));
        }
        let length = lines.len();
        peek.take(&self.pipe, length)?;
        Ok(Left::More)
    }
}

/// Reads a pipe without taking anything out of it: `tee` has the kernel put the same pages into another one.
pub(super) struct Peek {
    into: OwnedFd,
    from: OwnedFd,
    bytes: Box<[u8; MAX_LINE_BYTES]>,
}

/// What was seen in a pipe.
enum Seen<'a> {
    /// One line or several; the last may be the beginning of one that is too long, or have no end.
    Lines(&'a [u8]),
    /// A line that is not whole yet, or nothing.
    Begun,
    /// The end.
    End,
}

impl Peek {
    /// # Errors
    ///
    /// The kernel's: out of descriptors.
    pub(super) fn new() -> io::Result<Self> {
        let (from, into) = pipe_with(PipeFlags::CLOEXEC)?;
        Ok(Self { into, from, bytes: Box::new([0; MAX_LINE_BYTES]) })
    }

    fn look(&mut self, pipe: &OwnedFd) -> io::Result<Seen<'_>> {
        let mut seen = 0;
        loop {
            let length = match tee(pipe, &self.into, MAX_LINE_BYTES, SpliceFlags::NONBLOCK) {
                Ok(0) => return Ok(Seen::End),
                Ok(length) => length,
                Err(Errno::AGAIN) => return Ok(Seen::Begun),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let bytes = &mut self.bytes[..length];
            read_exact(&self.from, bytes)?;
            if let Some(end) = bytes.iter().rposition(|byte| *byte == b'\n') {
                return Ok(Seen::Lines(&self.bytes[..=end]));
            }
            // In this order: nothing comes any more after the last writer has gone.
            let has_ended = has_ended(pipe)?;
            let more = ioctl_fionread(pipe)? > length as u64;
            // A second time the same, though there is more, is a line in more pieces than a pipe holds that is not made
            // larger: somebody has put them there one by one, by `splice`.
            let is_all_there_will_be =
                length == MAX_LINE_BYTES || has_ended && !more || more && length == seen;
            if is_all_there_will_be {
                return Ok(Seen::Lines(&self.bytes[..length]));
            }
            if !more {
                return Ok(Seen::Begun);
            }
            seen = length;
        }
    }

    /// Takes what was seen out of the pipe, or the first part of that.
    fn take(&mut self, pipe: &OwnedFd, length: usize) -> io::Result<()> {
        read_exact(pipe, &mut self.bytes[..length])
    }
}

fn has_ended(pipe: &OwnedFd) -> io::Result<bool> {
    let mut pipe = [PollFd::new(pipe, PollFlags::IN)];
    poll(&mut pipe, Some(&Timespec::default()))?;
    Ok(pipe[0].revents().contains(PollFlags::HUP))
}

/// Reads what is known to be there.
fn read_exact(from: &OwnedFd, mut bytes: &mut [u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match read(from, &mut *bytes) {
            // Somebody else reads from it.
            Ok(0) | Err(Errno::AGAIN) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => bytes = &mut bytes[length..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn source() -> (Source, File) {
        let (pipe, theirs) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
        let (open, _) = watch::channel(());
        let source =
            Source { pipe: Arc::new(pipe), prefix: "> ".into(), to: Stream::Out, last: None, _open: open };
        (source, File::from(theirs))
    }

    /// What is passed on now, and what is left.
    fn passed_on(source: &Source) -> (Vec<String>, Left) {
        let mut out = Vec::new();
        let mut peek = Peek::new().expect("a pipe");
        let left = loop {
            match source.pass_on(&mut peek, &mut out).expect("the pipe can be read") {
                Left::More => {}
                left => break left,
            }
        };
        (String::from_utf8(out).expect("text").lines().map(str::to_owned).collect(), left)
    }

    #[test]
    fn lines_are_passed_on_when_they_are_whole() {
        let (source, mut theirs) = source();
        assert_eq!(passed_on(&source), (vec![], Left::Begun));
        theirs.write_all(b"a\nb").expect("room");
        assert_eq!(passed_on(&source), (vec!["> a".into()], Left::Begun));
        assert_eq!(ioctl_fionread(&source.pipe).expect("a pipe"), 1, "what is begun stays");
        theirs.write_all(b"c\n\nd\nend").expect("room");
        assert_eq!(passed_on(&source), (vec!["> bc".into(), "> ".into(), "> d".into()], Left::Begun));
        drop(theirs);
        assert_eq!(passed_on(&source), (vec!["> end".into()], Left::End));
        assert_eq!(passed_on(&source), (vec![], Left::End));
    }

    #[test]
    fn a_line_that_is_too_long_comes_in_pieces() {
        let (source, mut theirs) = source();
        theirs.write_all(&vec![b'x'; MAX_LINE_BYTES * 2 + 5]).expect("room");
        let (pieces, left) = passed_on(&source);
        assert_eq!(pieces.iter().map(String::len).collect::<Vec<_>>(), [MAX_LINE_BYTES + 2; 2]);
        assert_eq!(left, Left::Begun);
        theirs.write_all(b"\n").expect("room");
        assert_eq!(passed_on(&source), (vec!["> xxxxx".into()], Left::Begun));
    }

    /// Each piece takes a place of its own in the pipe, and there are more than fit the other one.
    #[test]
    fn a_line_in_many_pieces_does_not_stay_for_ever() {
        let (pipe, theirs) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::DIRECT).expect("a pipe");
        rustix::pipe::fcntl_setpipe_size(&theirs, 1024 * 1024).expect("a large pipe");
        let (source, _) = source();
        let source = Source { pipe: Arc::new(pipe), ..source };
        let mut theirs = File::from(theirs);
        for _ in 0..40 {
            theirs.write_all(b"x").expect("room");
        }
        theirs.write_all(b"\n").expect("room");
        let (pieces, left) = passed_on(&source);
        assert_eq!(pieces.iter().map(|piece| piece.len() - 2).sum::<usize>(), 40, "{pieces:?}");
        assert_eq!(left, Left::Begun);
    }

    #[test]
    fn what_nobody_wants_to_read_is_taken_all_the_same() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (source, mut theirs) = source();
        theirs.write_all(b"a\nb\n").expect("room");
        let mut peek = Peek::new().expect("a pipe");
        assert_eq!(source.pass_on(&mut peek, &mut Closed).expect("the pipe can be read"), Left::More);
        assert_eq!(ioctl_fionread(&source.pipe).expect("a pipe"), 0);
    }
}
