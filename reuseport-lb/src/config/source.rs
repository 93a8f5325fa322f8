//! Where a daemon has its settings from, so that they can be read again.

use std::path::{Path, PathBuf};

use super::{
    GroupSpec,
    file::{self, Config, FileError},
    flags::{DaemonFlags, DaemonSettings},
};
use crate::control;

/// A configuration file, and what was said on the command line besides, which goes before what the file says.
#[derive(Clone, Debug)]
pub struct Source {
    /// The file.
    pub path: PathBuf,
    /// The control socket that the command line names.
    pub control: Option<PathBuf>,
    /// The daemon's settings on the command line.
    pub flags: DaemonFlags,
}

/// Everything that a daemon is to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The control socket.
    pub control: PathBuf,
    /// The other settings of the daemon.
    pub daemon: DaemonSettings,
    /// The groups, by name.
    pub groups: Vec<GroupSpec>,
}

impl Source {
    /// Reads the file, now.
    ///
    /// # Errors
    ///
    /// See [`FileError`].
    pub fn load(&self) -> Result<Loaded, FileError> {
        let Config { control, daemon, groups } = file::read(&self.path)?;
        Ok(Loaded {
            control: control_path(self.control.clone().or(control)),
            daemon: self.flags.clone().or(daemon).settings(),
            groups,
        })
    }
}

/// The control socket that was named, or the usual one.
pub fn control_path(named: Option<PathBuf>) -> PathBuf {
    named.unwrap_or_else(|| Path::new(control::DEFAULT_PATH).to_owned())
}

/// A source, and what it gave when the daemon was started.
#[derive(Clone, Debug)]
pub struct Configured {
    source: Source,
    daemon: Vec<(&'static str, String)>,
}

/// Why a file gives no other groups for a daemon that runs.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// There is no configuration in it.
    #[error(transparent)]
    File(#[from] FileError),
    /// The daemon's own settings are others.
    #[error("{}: {name} {from} -> {to}: that needs a restart of the daemon", path.display())]
    Fixed {
        /// The file.
        path: PathBuf,
        /// The setting.
        name: &'static str,
        /// The value that it has.
        from: String,
        /// The value in the file.
        to: String,
    },
}

impl Configured {
    /// A daemon that runs what `source` gave.
    pub fn new(source: Source, loaded: &Loaded) -> Self {
        Self { source, daemon: loaded.daemon_settings() }
    }

    /// The groups that the file describes now.
    ///
    /// # Errors
    ///
    /// See [`ReloadError`].
    pub fn read_again(&self) -> Result<Vec<GroupSpec>, ReloadError> {
        let loaded = self.source.load()?;
        let mut settings = self.daemon.iter().zip(loaded.daemon_settings());
        if let Some(((name, from), (_, to))) = settings.find(|((_, from), (_, to))| from != to) {
            let (path, from) = (self.source.path.clone(), from.clone());
            return Err(ReloadError::Fixed { path, name, from, to });
        }
        Ok(loaded.groups)
    }
}

impl Loaded {
    /// The settings of the daemon itself, each with its name and its value as it is shown.
    pub fn daemon_settings(&self) -> Vec<(&'static str, String)> {
        let Self { control, daemon, groups: _ } = self;
        let mut settings = vec![("control", control.display().to_string())];
        settings.extend(daemon.shown());
        settings
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        flags: DaemonFlags,
    }

    #[test]
    fn the_command_line_goes_before_the_file() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("web.toml");
        let text = "[daemon]\ncontrol = '/file'\npin-dir = '/pins'\nlog-format = 'json'\n[groups.web]\n";
        std::fs::write(&path, text).expect("a file");
        let shown = |control: Option<&str>, line: &[&str]| {
            let flags = Line::try_parse_from([&["x"], line].concat()).expect("flags").flags;
            let source = Source { path: path.clone(), control: control.map(Into::into), flags };
            let settings = source.load().expect("valid").daemon_settings();
            settings.into_iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()
        };
        let from_file = shown(None, &[]);
        for expected in ["control=/file", "pin-dir=/pins", "log-format=json", "bpf-log=off"] {
            assert!(from_file.iter().any(|setting| setting == expected), "{expected}: {from_file:?}");
        }
        let overridden = shown(Some("/line"), &["--pin-dir=/x", "--bpf-log=warn"]);
        for expected in ["control=/line", "pin-dir=/x", "log-format=json", "bpf-log=warn"] {
            assert!(overridden.iter().any(|setting| setting == expected), "{expected}: {overridden:?}");
        }
    }
}
