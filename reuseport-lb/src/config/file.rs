//! The configuration file.
//!
//! ```toml
//! [daemon]
//! control = "/run/reuseport-lb/control.sock"
//!
//! [groups.web]
//! listen = "0.0.0.0:80"
//! policy = "least-loaded"
//! command = ["/usr/local/bin/server", "--quiet"]
//! ```
//!
//! The keys are the names of `run`'s options, and their values are read by the very same code.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{self, Read as _},
    ops::Range,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use clap::Args;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    GroupSpec,
    flags::{DaemonFlags, GroupFlags},
    schema::{self, Wrong},
    values,
};

/// The largest file that is read. A thousand groups take a tenth of that.
const MAX_BYTES: u64 = 1024 * 1024;

/// How many faults are told. Nobody reads more at once, and each is looked up in the text.
const MAX_FAULTS: usize = 256;

/// The table of the daemon's own settings.
const DAEMON: &str = "daemon";

/// The table of groups.
const GROUPS: &str = "groups";

/// What a file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The daemon's control socket, if the file names one.
    pub control: Option<PathBuf>,
    /// The other settings of the daemon that the file has.
    pub daemon: DaemonFlags,
    /// The groups, by name; at least one, and no two of them overlap.
    pub groups: Vec<GroupSpec>,
}

/// One thing that is wrong in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The line, from 1 on.
    pub line: usize,
    /// The column in characters, from 1 on.
    pub column: usize,
    /// What is wrong, and what would do.
    pub why: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, column, why } = self;
        write!(f, "{line}:{column}: {why}")
    }
}

/// Why a file gives no configuration.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something in it is wrong.
    #[error("{}", first_of(path, faults))]
    Wrong {
        /// The file.
        path: PathBuf,
        /// What is wrong, as it stands in the file; at least one thing.
        faults: Vec<Fault>,
    },
}

/// All of it does not fit in one line, so where there is more it says who tells.
fn first_of(path: &Path, faults: &[Fault]) -> String {
    let path = path.display();
    match faults {
        [] => format!("{path} is wrong"),
        [only] => format!("{path}:{only}"),
        [first, more @ ..] => {
            format!("{path}:{first} (and {} more; `reuseport-lb check {path}` shows all)", more.len())
        }
    }
}

/// Reads a file.
///
/// # Errors
///
/// See [`FileError`].
pub fn read(path: &Path) -> Result<Config, FileError> {
    let bytes = contents(path).map_err(|source| FileError::Unreadable { path: path.to_owned(), source })?;
    parse(&bytes).map_err(|faults| FileError::Wrong { path: path.to_owned(), faults })
}

fn contents(path: &Path) -> io::Result<Vec<u8>> {
    // Whoever reads must not wait for what never comes, as from a named pipe.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file: File = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(io::Error::other("more than 1 MiB"));
    }
    Ok(bytes)
}

/// Reads the text of a file.
///
/// # Errors
///
/// Everything that is wrong, in the order of the text, up to 256 faults. Whether what depends on a wrong part is wrong too is then not
/// known, and not told.
pub fn parse(bytes: &[u8]) -> Result<Config, Vec<Fault>> {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let at = error.valid_up_to();
            let readable = String::from_utf8_lossy(&bytes[..at]);
            return Err(vec![fault(&readable, Wrong { at: at..at, why: "not UTF-8".into() })]);
        }
    };
    let mut wrong = Vec::new();
    let config = config(text, &mut wrong);
    match config {
        Some(config) if wrong.is_empty() => Ok(config),
        _ => {
            wrong.sort_by(|a, b| (a.at.start, &a.why).cmp(&(b.at.start, &b.why)));
            wrong.dedup();
            wrong.truncate(MAX_FAULTS);
            Err(wrong.into_iter().map(|wrong| fault(text, wrong)).collect())
        }
    }
}

fn fault(text: &str, Wrong { at, why }: Wrong) -> Fault {
    let before = text.get(..at.start).unwrap_or(text);
    let line = before.rsplit('\n').next().unwrap_or_default();
    // Whatever is quoted from the file must not break the line.
    let why = why.split_whitespace().collect::<Vec<_>>().join(" ");
    Fault { line: before.matches('\n').count() + 1, column: line.chars().count() + 1, why }
}

/// What the table of the daemon holds.
#[derive(Debug, Args)]
struct DaemonTable {
    #[arg(long)]
    control: Option<PathBuf>,
    #[command(flatten)]
    flags: DaemonFlags,
}

fn config(text: &str, wrong: &mut Vec<Wrong>) -> Option<Config> {
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        wrong.push(Wrong { at: error.span().unwrap_or_default(), why: error.message().to_owned() });
    }
    let mut daemon = Some(DaemonTable { control: None, flags: DaemonFlags::default() });
    let mut groups = None;
    for (key, value) in document.get_ref() {
        match &**key.get_ref() {
            DAEMON => {
                daemon = table(DAEMON, value, wrong)
                    .and_then(|table| schema::read::<DaemonTable>(table, &key.span(), wrong).settings);
            }
            GROUPS => groups = Some(self::groups(value, wrong)),
            _ => wrong.push(schema::unknown(key, &[DAEMON, GROUPS].into())),
        }
    }
    let Some(groups) = groups else {
        let why = "there is no group: a table [groups.NAME] describes one".into();
        wrong.push(Wrong { at: text.len()..text.len(), why });
        return None;
    };
    let DaemonTable { control, flags: daemon } = daemon?;
    Some(Config { control, daemon, groups })
}

fn table<'a, 'i>(
    name: &str,
    value: &'a Spanned<DeValue<'i>>,
    wrong: &mut Vec<Wrong>,
) -> Option<&'a DeTable<'i>> {
    let table = value.get_ref().as_table();
    if table.is_none() {
        let why = format!("{name} is not a table: write [{name}] above its keys");
        wrong.push(Wrong { at: value.span(), why });
    }
    table
}

fn groups(value: &Spanned<DeValue<'_>>, wrong: &mut Vec<Wrong>) -> Vec<GroupSpec> {
    let Some(tables) = table("groups.NAME", value, wrong) else { return Vec::new() };
    if tables.is_empty() {
        let why = "there is no group: a table [groups.NAME] describes one".into();
        wrong.push(Wrong { at: value.span(), why });
    }
    let mut groups: Vec<(GroupSpec, Range<usize>)> = Vec::new();
    let mut in_order: Vec<_> = tables.iter().collect();
    in_order.sort_by_key(|(name, _)| name.span().start);
    for (name, value) in in_order {
        let group = group(name, value, wrong);
        if let Some((spec, listen)) = group {
            let overlaps = |other: &&(GroupSpec, Range<usize>)| spec.overlaps(&other.0);
            if let Some((other, _)) = groups.iter().find(overlaps) {
                let GroupSpec { name, listen: taken, .. } = other;
                let why = format!("listen: {} overlaps with {taken} of group {name}", spec.listen);
                wrong.push(Wrong { at: listen.clone(), why });
            }
            groups.push((spec, listen));
        }
    }
    let mut groups: Vec<_> = groups.into_iter().map(|(spec, _)| spec).collect();
    groups.sort_by(|a, b| a.name.cmp(&b.name));
    groups
}

/// A group, and where its address stands.
fn group(
    name: &Spanned<impl AsRef<str>>,
    value: &Spanned<DeValue<'_>>,
    wrong: &mut Vec<Wrong>,
) -> Option<(GroupSpec, Range<usize>)> {
    let header = name.span();
    let name = match values::group_name(name.get_ref().as_ref()) {
        Ok(name) => name,
        Err(error) => {
            wrong.push(Wrong { at: header, why: error.to_string() });
            return None;
        }
    };
    let table = table(&format!("groups.{name}"), value, wrong)?;
    let schema::Read { settings, values } = schema::read::<GroupFlags>(table, &header, wrong);
    let place = |key: &str| values.get(key).unwrap_or(&header).clone();
    match settings?.spec(name) {
        Ok(spec) => Some((spec, place("listen"))),
        Err(error) => {
            let at = place(error.setting());
            wrong.push(Wrong { at, why: error.to_string() });
            None
        }
    }
}

#[cfg(test)]
mod tests;
