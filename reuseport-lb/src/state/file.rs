//! The state as a file: either the old one or the new one is there, whole, whatever happens in between.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;
use serde::Deserialize;

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
    written: Vec<u8>,
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
        Ok(Self { path: path.into(), boot, network_namespace, written: Vec::new() })
    }

    /// A state with these groups, as of now.
    pub fn state(&self, generation: u64, groups: Vec<GroupState>) -> State {
        State {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").into(),
            boot: self.boot.clone(),
            network_namespace: self.network_namespace,
            generation,
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
        let Head { format, version } =
            serde_json::from_slice(bytes).map_err(|error| broken(error.to_string()))?;
        if format != FORMAT {
            return Err(ReadError::Format { path: self.path.clone(), format, version });
        }
        let state: State = serde_json::from_slice(bytes).map_err(|error| broken(error.to_string()))?;
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
    /// # Errors
    ///
    /// What was there is there still.
    pub fn write(&mut self, state: &State) -> io::Result<()> {
        let bytes = serde_json::to_vec(state)?;
        if bytes == self.written {
            return Ok(());
        }
        let new = self.beside(".new");
        // Left by a daemon that was killed here.
        remove_if_exists(&new)?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        let written = file.write_all(&bytes).and_then(|()| file.sync_all());
        written.and_then(|()| fs::rename(&new, &self.path)).inspect_err(|_| drop(fs::remove_file(&new)))?;
        self.written = bytes;
        // The name is in the folder, and the folder is written at its own time.
        File::open(self.path.parent().unwrap_or(Path::new("/")))?.sync_all()
    }

    /// Removes it: there is nothing to go on with.
    pub fn remove(&mut self) {
        self.written.clear();
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

fn remove_if_exists(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
