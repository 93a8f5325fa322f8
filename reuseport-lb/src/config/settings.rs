//! A group's settings one by one, as the user writes them.

use serde::{Deserialize, Serialize};

use super::{GroupSpec, ProcessSettings, WorkerCommand, worker::Variable};
use crate::group::Supervision;

/// One setting of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The name, as in the configuration file.
    pub name: &'static str,
    /// The value, as it is shown.
    pub value: String,
    /// When a change of it comes to bear.
    pub applies: Applies,
}

/// When a change of a setting comes to bear, in a group that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Applies {
    /// At once.
    Now,
    /// For each worker when it is started the next time.
    NextStart,
    /// By a new group in the place of the old one, which finishes what it has.
    NewGroup,
    /// It cannot change while the group runs.
    Never,
}

impl GroupSpec {
    /// The settings, all but the name.
    pub fn settings(&self) -> Vec<Setting> {
        use Applies::{Never, NewGroup, NextStart, Now};

        // Taken apart, so that a further setting is not forgotten here.
        let Self {
            name: _,
            listen,
            netns,
            sockets,
            workers,
            weights,
            policy,
            pin_workers,
            command,
            supervision,
            process,
            grace,
            backlog,
            stall_after,
            hash_seed,
        } = self;
        let Supervision { ready, ready_timeout, stop_timeout: _, watchdog, self_bound: _ } = supervision;
        let ProcessSettings { user, env, chdir, open_files, output } = process;
        let none = || "none".to_owned();
        let pair = |Variable { name, value }: &Variable| format!("{name}={value}");
        let env = shell_words::join(env.iter().map(pair));
        let weights = if weights.is_empty() { &[1] } else { &weights[..] };
        let weights: Vec<_> = weights.iter().map(ToString::to_string).collect();
        let duration = |duration| humantime::format_duration(duration).to_string();
        [
            ("listen", listen.to_string(), NewGroup),
            ("workers", workers.to_string(), Now),
            ("weights", weights.join(","), Now),
            ("policy", policy.to_string(), Now),
            ("pin-workers", pin_workers.to_string(), NewGroup),
            ("hash-seed", hash_seed.to_string(), Never),
            ("grace", duration(*grace), Now),
            ("stall-after", duration(*stall_after), Now),
            ("backlog", backlog.to_string(), Now),
            ("command", command.to_string(), NextStart),
            ("netns", netns.as_ref().map_or("own".into(), |netns| netns.display().to_string()), NewGroup),
            ("sockets", sockets.to_string(), NewGroup),
            ("ready", ready.to_string(), NextStart),
            ("ready-timeout", duration(*ready_timeout), NextStart),
            ("watchdog", watchdog.map_or_else(none, duration), NextStart),
            ("user", user.as_ref().map_or_else(none, |user| user.written.clone()), NextStart),
            ("env", if env.is_empty() { none() } else { env }, NextStart),
            ("chdir", chdir.as_ref().map_or_else(none, |folder| folder.display().to_string()), NextStart),
            ("rlimit-nofile", open_files.map_or_else(none, |n| n.to_string()), NextStart),
            ("output", output.to_string(), NextStart),
        ]
        .map(|(name, value, applies)| Setting { name, value, applies })
        .into()
    }
}

/// As one would type it into a shell.
impl std::fmt::Display for WorkerCommand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("built-in"),
            Self::Program { program, args } => {
                let words = std::iter::once(program.as_os_str()).chain(args.iter().map(AsRef::as_ref));
                f.write_str(&shell_words::join(words.map(|word| word.to_string_lossy().into_owned())))
            }
        }
    }
}
