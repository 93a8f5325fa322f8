//! The state as a file: either the old one or the new one is there, whole, whatever happens in between.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::{FORMAT, GroupState, State};

/// The longest state that is read. A thousand workers take half a megabyte.
const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// Where the kernel tells which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The network namespace that this thread is in.
const NETWORK_NAMESPACE: &str = "/proc/thread-self/ns/net";

/// Where the state of a daemon is written.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    boot: String,
    network_namespace: u64,
    written: Option<Written>,
}

/// What this process has written.
#[derive(Debug)]
struct Written {
    file: File,
    state: State,
    state_bytes: usize,
    changes_bytes: usize,
}

/// Why a state cannot be read. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It was written by another version.
    #[error(
        "{} was written by reuseport-lb {version} in format {format}, and this is {} with format {FORMAT}; start that \
         version, or end its workers and remove the file",
        path.display(), env!("CARGO_PKG_VERSION")
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u32,
        /// Who wrote it.
        version: String,
    },
    /// It makes no sense.
    #[error("{} cannot be a daemon's state: {why}; end the workers that it is about, and remove it", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// It is about another network namespace.
    #[error(
        "{} was written by a daemon in another network namespace; start there, or name another socket with --control",
        path.display()
    )]
    Elsewhere {
        /// The file.
        path: PathBuf,
    },
    /// Somebody else could have written it.
    #[error("{} is not trusted, since {why}; remove it", path.display())]
    Untrusted {
        /// The file.
        path: PathBuf,
        /// Why.
        why: &'static str,
    },
    /// A system call failed.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What every format has.
#[derive(Deserialize)]
struct Head {
    format: u32,
    #[serde(default)]
    version: String,
}

impl StateFile {
    /// The file of the daemon with this control socket: beside it, under the same name with `.state` behind it.
    ///
    /// # Errors
    ///
    /// Which boot this is cannot be found out.
    pub fn of(control: &Path) -> io::Result<Self> {
        let mut path = OsString::from(control);
        path.push(".state");
        let boot = fs::read_to_string(BOOT_ID)?.trim().to_owned();
        let network_namespace = fs::metadata(NETWORK_NAMESPACE)?.ino();
        Ok(Self { path: path.into(), boot, network_namespace, written: None })
    }

    /// A state with these groups, as of now.
    pub fn state(&self, generation: u64, given_up: BTreeSet<String>, groups: Vec<GroupState>) -> State {
        State {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").into(),
            boot: self.boot.clone(),
            network_namespace: self.network_namespace,
            generation,
            given_up,
            groups,
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What an earlier daemon has written; none when there is nothing, or when it is of another boot.
    ///
    /// # Errors
    ///
    /// See [`ReadError`].
    pub fn read(&self) -> Result<Option<State>, ReadError> {
        let failed = |source| ReadError::Io { path: self.path.clone(), source };
        let mut options = OpenOptions::new();
        options.read(true).custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed());
        let file = match options.open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let untrusted = |why| ReadError::Untrusted { path: self.path.clone(), why };
        let found = file.metadata().map_err(failed)?;
        if !found.is_file() {
            return Err(untrusted("it is not a file"));
        }
        // What is in it decides which processes are signalled.
        if found.uid() != 0 && found.uid() != rustix::process::geteuid().as_raw() {
            return Err(untrusted("it belongs to another user"));
        }
        if found.mode() & 0o022 != 0 {
            return Err(untrusted("others than its owner may write it"));
        }
        let mut bytes = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(failed)?;
        self.parse(&bytes)
    }

    /// The state that these bytes are; none when it is of another boot.
    ///
    /// # Errors
    ///
    /// See [`ReadError`].
    pub fn parse(&self, bytes: &[u8]) -> Result<Option<State>, ReadError> {
        let broken = |why| ReadError::Broken { path: self.path.clone(), why };
        let json = |error: serde_json::Error| broken(error.to_string());
        let mut lines = bytes.split_inclusive(|byte| *byte == b'\n');
        let first = lines.next().unwrap_or_default();
        let Head { format, version } = serde_json::from_slice(first).map_err(json)?;
        if format != FORMAT {
            return Err(ReadError::Format { path: self.path.clone(), format, version });
        }
        let mut state: State = serde_json::from_slice(first).map_err(json)?;
        for line in lines.filter(|line| line.ends_with(b"\n")) {
            state.change(serde_json::from_slice(line).map_err(json)?).map_err(broken)?;
        }
        state.check().map_err(broken)?;
        if state.boot != self.boot {
            return Ok(None);
        }
        if state.network_namespace != self.network_namespace {
            return Err(ReadError::Elsewhere { path: self.path.clone() });
        }
        Ok(Some(state))
    }

    /// Writes the state, unless it is what was written last.
    ///
    /// The file is a line with a state, and a line for each change since. A change is written by one call. Who is killed
    /// in the middle of it leaves a line without an end, which counts as not written; nobody has been told yet that it is.
    /// When the changes are as long as the state, a new file takes the place of the old one, by `rename`.
    ///
    /// So whatever becomes of this process, the next one reads all that it has said to be done. Nothing waits for a disk
    /// (`fsync`): that would help only where the kernel itself ends, and with it end the sockets, programs and processes
    /// that the state is about.
    ///
    /// # Errors
    ///
    /// What was there is there still.
    pub fn write(&mut self, state: State) -> io::Result<()> {
        let Some(mut written) = self.written.take() else { return self.replace(state) };
        match written.state.changes_to(&state) {
            Some(changes) if changes.is_empty() => {}
            Some(changes) if written.changes_bytes < written.state_bytes => {
                let line = line(&changes)?;
                // Should it fail, the next state is written as a whole.
                written.file.write_all(&line)?;
                written.changes_bytes += line.len();
                written.state = state;
            }
            _ => return self.replace(state),
        }
        self.written = Some(written);
        Ok(())
    }

    fn replace(&mut self, state: State) -> io::Result<()> {
        let new = self.beside(".new");
        // Left by a daemon that was killed here.
        remove_if_exists(&new)?;
        let line = line(&state)?;
        let mut file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(&new)?;
        let written = file.write_all(&line).and_then(|()| fs::rename(&new, &self.path));
        written.inspect_err(|_| drop(fs::remove_file(&new)))?;
        self.written = Some(Written { file, state, state_bytes: line.len(), changes_bytes: 0 });
        Ok(())
    }

    /// Removes it: there is nothing to go on with.
    pub fn remove(&mut self) {
        self.written = None;
        for path in [self.path.clone(), self.beside(".new")] {
            if let Err(error) = remove_if_exists(&path) {
                tracing::warn!(path = %path.display(), %error, "cannot remove the state file");
            }
        }
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(suffix);
        path.into()
    }
}

fn line(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

fn remove_if_exists(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
