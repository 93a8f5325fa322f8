//! How the processes of workers are run and looked after.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use nix::unistd::{Gid, Uid, User, getgrouplist};

use super::{WorkerCommand, values, values::InvalidValue};
use crate::group::{Ready, Supervision};

/// Variables that the daemon sets, by their beginnings. Another value would break what they are for.
const OURS: [&str; 4] = ["LISTEN_", "NOTIFY_SOCKET", "WATCHDOG_", "REUSEPORT_LB_"];

/// The fewest files that a worker may have open: standard streams, its socket, and some to work with.
const MIN_OPEN_FILES: u64 = 16;

/// What a process of a worker is given, beside its socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessSettings {
    /// The user that it runs as, if not the daemon's.
    pub user: Option<RunAs>,
    /// Further variables.
    pub env: Vec<Variable>,
    /// Its working folder, if not the daemon's.
    pub chdir: Option<PathBuf>,
    /// Its limit of open files, soft and hard, if not the daemon's.
    pub open_files: Option<u64>,
    /// Where its standard output and error go.
    pub output: Output,
}

/// A user to run as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunAs {
    /// As it was written: `USER` or `USER:GROUP`.
    pub written: String,
    /// The user's id.
    pub uid: u32,
    /// The group's id.
    pub gid: u32,
    /// All groups' ids, that one included.
    pub groups: Vec<u32>,
    /// The name, where the host knows the user.
    pub name: Option<String>,
    /// The home folder, where the host knows the user.
    pub home: Option<PathBuf>,
    /// The shell, where the host knows the user.
    pub shell: Option<PathBuf>,
}

/// A variable of the environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// Where the output of workers goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Output {
    /// To the daemon's standard output and error, line by line, each with the worker's number before it.
    #[default]
    Prefix,
    /// To the daemon's standard output and error as it is.
    Inherit,
    /// Into a file for each worker in this folder.
    Folder(PathBuf),
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Prefix => f.write_str("prefix"),
            Self::Inherit => f.write_str("inherit"),
            Self::Folder(folder) => folder.display().fmt(f),
        }
    }
}

/// The settings of workers, as flags.
#[derive(Clone, Debug, Args)]
pub struct WorkerFlags {
    /// When a worker counts as ready and gets connections [default: notify for the built-in server, else exec]
    #[arg(long, value_enum, value_name = "WHEN")]
    ready: Option<Ready>,
    /// How long a worker may take to get ready; then it is ended and started again
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = values::positive_duration)]
    ready_timeout: Duration,
    /// How often a worker is to say WATCHDOG=1; after one miss it is passed over, after two it is started again
    #[arg(long, value_name = "DURATION", value_parser = values::positive_duration)]
    watchdog: Option<Duration>,
    /// The user that workers run as
    #[arg(long, value_name = "USER[:GROUP]", value_parser = user)]
    user: Option<RunAs>,
    /// A variable of the workers' environment; may be given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<Variable>,
    /// The workers' working folder
    #[arg(long, value_name = "FOLDER", value_parser = folder)]
    chdir: Option<PathBuf>,
    /// How many files a worker may have open, soft and hard limit
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(MIN_OPEN_FILES..))]
    rlimit_nofile: Option<u64>,
    /// Where the output of workers goes: prefix (to the daemon's, each line with the worker's number before it), inherit
    /// (to the daemon's as it is), or a folder, as ./logs or /var/log/web, with a file for each worker
    #[arg(long, value_name = "WHERE", default_value = "prefix", value_parser = output)]
    output: Output,
}

impl WorkerFlags {
    /// How workers that run `command` are looked after, and what they get.
    pub fn settings(self, command: &WorkerCommand) -> (Supervision, ProcessSettings) {
        let Self { ready, ready_timeout, watchdog, user, env, chdir, rlimit_nofile, output } = self;
        let ready = ready.unwrap_or(match command {
            WorkerCommand::BuiltIn => Ready::Notify,
            WorkerCommand::Program { .. } => Ready::Exec,
        });
        let supervision = Supervision { ready, ready_timeout, watchdog, ..Supervision::default() };
        (supervision, ProcessSettings { user, env, chdir, open_files: rlimit_nofile, output })
    }
}

/// Parses a user to run as: `USER` or `USER:GROUP`, names or ids.
///
/// # Errors
///
/// A name that the host does not know, or an id without a group that the host does not know.
pub fn user(text: &str) -> Result<RunAs, InvalidValue> {
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    let failed =
        |what: &str, error: nix::Error| InvalidValue::new(format!("{what} cannot be looked up: {error}"));
    let by_id = user.parse().ok().map(Uid::from_raw);
    let known = match by_id {
        Some(uid) => User::from_uid(uid),
        None => User::from_name(user),
    }
    .map_err(|error| failed("users", error))?;
    let uid = match (&known, by_id) {
        (Some(known), _) => known.uid,
        (None, Some(uid)) => uid,
        (None, None) => {
            return Err(InvalidValue::new(format!(
                "this host has no user '{user}'; `getent passwd` lists those it has"
            )));
        }
    };
    let gid = match (group, &known) {
        (Some(group), _) => Gid::from_raw(values::user_group(group)?.id),
        (None, Some(known)) => known.gid,
        (None, None) => {
            return Err(InvalidValue::new(format!(
                "this host does not know user {user}, so its group has to be given: {user}:GROUP"
            )));
        }
    };
    let groups = match &known {
        Some(known) => group_list(&known.name, gid).map_err(|error| failed("groups", error))?,
        None => vec![gid.as_raw()],
    };
    let (name, home, shell) =
        known.map_or((None, None, None), |known| (Some(known.name), Some(known.dir), Some(known.shell)));
    Ok(RunAs { written: text.to_owned(), uid: uid.as_raw(), gid: gid.as_raw(), groups, name, home, shell })
}

fn group_list(name: &str, gid: Gid) -> nix::Result<Vec<u32>> {
    let name = std::ffi::CString::new(name).map_err(|_| nix::Error::EINVAL)?;
    Ok(getgrouplist(&name, gid)?.into_iter().map(Gid::as_raw).collect())
}

/// Parses a variable, `NAME=VALUE`.
///
/// # Errors
///
/// No name, or one of those that the daemon sets.
pub fn variable(text: &str) -> Result<Variable, InvalidValue> {
    let (name, value) = text.split_once('=').ok_or_else(|| InvalidValue::new("write NAME=VALUE".into()))?;
    if name.is_empty() || text.contains('\0') {
        return Err(InvalidValue::new("a variable has a name, and no byte 0: write NAME=VALUE".into()));
    }
    if OURS.iter().any(|ours| name.starts_with(ours)) {
        return Err(InvalidValue::new(format!("{name} is the daemon's to set")));
    }
    Ok(Variable { name: name.to_owned(), value: value.to_owned() })
}

/// Parses a folder that is there.
///
/// # Errors
///
/// There is no such folder.
fn folder(text: &str) -> Result<PathBuf, InvalidValue> {
    let folder = std::path::absolute(text).map_err(|error| InvalidValue::new(error.to_string()))?;
    match folder.metadata() {
        Ok(found) if found.is_dir() => Ok(folder),
        Ok(_) => Err(InvalidValue::new(format!("{} is not a folder", folder.display()))),
        Err(error) => Err(InvalidValue::new(format!("{}: {error}", folder.display()))),
    }
}

/// Parses where output goes. A folder has a slash, so that it is none of the words.
///
/// # Errors
///
/// A word that is none of those.
pub fn output(text: &str) -> Result<Output, InvalidValue> {
    match text {
        "prefix" => Ok(Output::Prefix),
        "inherit" => Ok(Output::Inherit),
        _ if text.contains('/') && !text.contains('\0') => {
            let folder = std::path::absolute(text).map_err(|error| InvalidValue::new(error.to_string()))?;
            Ok(Output::Folder(folder))
        }
        _ => Err(InvalidValue::new(
            "prefix, inherit, or a folder, which has a slash in it: ./logs or /var/log/web".into(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_looked_up() {
        let root = user("root").expect("every host has root");
        assert_eq!((root.uid, root.gid, root.name.as_deref()), (0, 0, Some("root")));
        assert!(root.groups.contains(&0) && root.home.is_some());
        let both = user("root:4321").expect("an id needs no name");
        assert_eq!((both.uid, both.gid, both.written.as_str()), (0, 4321, "root:4321"));
        assert!(both.groups.contains(&4321));
        let ids = user("54321:4321").expect("nor does a user");
        assert_eq!((ids.uid, ids.groups, ids.name), (54321, vec![4321], None));
        for text in ["", "no-such-user", "root:no-such-group", "54321", ":0", "root:"] {
            user(text).expect_err(text);
        }
    }

    #[test]
    fn variables_have_names_that_are_not_ours() {
        let given = |name: &str, value: &str| Ok(Variable { name: name.into(), value: value.into() });
        assert_eq!(variable("A=b"), given("A", "b"));
        assert_eq!(variable("A="), given("A", ""));
        assert_eq!(variable("A=b=c"), given("A", "b=c"));
        for text in ["", "A", "=b", "A\0=b", "LISTEN_FDS=2", "NOTIFY_SOCKET=/x", "REUSEPORT_LB_WORKER=1"] {
            variable(text).expect_err(text);
        }
    }

    #[test]
    fn output_is_a_word_or_a_folder() {
        assert_eq!(output("prefix"), Ok(Output::Prefix));
        assert_eq!(output("inherit"), Ok(Output::Inherit));
        assert_eq!(output("/var/log/x"), Ok(Output::Folder("/var/log/x".into())));
        assert!(matches!(output("./logs"), Ok(Output::Folder(folder)) if folder.is_absolute()));
        for text in ["", "logs", "none"] {
            output(text).expect_err(text);
        }
    }
}
