//! What `run` prints when everything stands.

use std::{
    borrow::Cow,
    ffi::OsStr,
    fmt::{self, Display},
    net::SocketAddr,
    path::Path,
};

use crate::{
    config::{GroupSpec, Sockets, WorkerCommand},
    control,
    group::{WorkerId, id_ranges},
};

/// Where, how and who for each group, by what to control them, and what to try next: five lines for one group.
pub(super) struct StartLines<'a> {
    /// What runs.
    pub(super) groups: &'a [GroupSpec],
    /// The workers that a group has.
    pub(super) workers: &'a dyn Fn(&GroupSpec) -> Vec<WorkerId>,
    /// The control socket.
    pub(super) control: &'a Path,
    /// How the user calls this program.
    pub(super) invocation: &'a str,
}

impl Display for StartLines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for spec in self.groups {
            let GroupSpec { name, listen, sockets, policy, command, .. } = spec;
            let ids = (self.workers)(spec);
            let workers = ids.len();
            let ids = id_ranges(ids);
            writeln!(f, "listening   {listen} (tcp, group {name})")?;
            writeln!(f, "policy      {policy}")?;
            match command {
                _ if *sockets == Sockets::Adopted && workers == 0 => {
                    writeln!(f, "workers     none yet: sockets are taken in as they come")?;
                }
                _ if *sockets == Sockets::Adopted => writeln!(f, "workers     {workers} adopted: {ids}")?,
                WorkerCommand::BuiltIn => writeln!(f, "workers     {workers} {command}: {ids}")?,
                WorkerCommand::Program { .. } => writeln!(f, "workers     {workers} of `{command}`: {ids}")?,
            }
        }
        writeln!(f, "control     {}", self.control.display())?;
        writeln!(f, "try         {}", self.what_to_try().join(" · "))
    }
}

impl StartLines<'_> {
    fn what_to_try(&self) -> Vec<String> {
        let mut call = self.invocation.to_owned();
        if self.control != Path::new(control::DEFAULT_PATH) {
            call.push_str(" --control ");
            call.push_str(&shell_command([self.control.as_os_str()]));
        }
        let mut hints = Vec::new();
        // What other programs speak is their own affair.
        let is_built_in =
            |spec: &&GroupSpec| spec.sockets != Sockets::Adopted && spec.command == WorkerCommand::BuiltIn;
        if let Some(spec) = self.groups.iter().find(is_built_in) {
            hints.push(format!("curl -si {}", curl_address(spec.listen)));
        }
        hints.push(format!("{call} status"));
        if let Some(spec) = self.groups.first() {
            let GroupSpec { name, .. } = spec;
            let which = if self.groups.len() > 1 { format!(" --group {name}") } else { String::new() };
            // The last eligible worker is not drained.
            hints.push(match (self.workers)(spec).len() {
                0 | 1 => format!("{call} policy{which}"),
                2 => format!("{call} drain 1{which}"),
                _ => format!("{call} drain 2{which}"),
            });
        }
        hints.push("Ctrl-C ends".into());
        hints
    }
}

fn curl_address(listen: SocketAddr) -> String {
    if listen.ip().is_unspecified() {
        format!("localhost:{}", listen.port())
    } else if listen.is_ipv6() {
        // Brackets mean something to shells.
        format!("'http://{listen}'")
    } else {
        listen.to_string()
    }
}

fn shell_command(words: impl IntoIterator<Item: AsRef<OsStr>>) -> String {
    shell_words::join(words.into_iter().map(|word| word.as_ref().to_string_lossy().into_owned()))
}

/// How the user would call this program again: as it was called, relative to where he stands, by sudo if that is
/// how it came to run.
pub(super) fn invocation(program: Option<&OsStr>, working_folder: Option<&Path>, by_sudo: bool) -> String {
    let sudo = if by_sudo { "sudo " } else { "" };
    let program = program.map_or(Cow::Borrowed("reuseport-lb"), OsStr::to_string_lossy);
    if !program.contains('/') {
        return format!("{sudo}reuseport-lb");
    }
    let path = Path::new(&*program);
    let nearer = working_folder.and_then(|folder| path.strip_prefix(folder).ok());
    let shown = match nearer {
        Some(nearer) if nearer.components().count() == 1 => Path::new(".").join(nearer),
        Some(nearer) => nearer.to_owned(),
        None => path.to_owned(),
    };
    format!("{sudo}{}", shell_command([shown.as_os_str()]))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{config::ProcessSettings, group::Supervision, policy::Policy};

    fn spec() -> GroupSpec {
        GroupSpec {
            name: "default".into(),
            listen: "0.0.0.0:8080".parse().expect("an address"),
            netns: None,
            sockets: Sockets::HandedOver,
            workers: 4,
            weights: Vec::new(),
            policy: Policy::ConsistentHash.into(),
            pin_workers: false,
            command: WorkerCommand::BuiltIn,
            supervision: Supervision::default(),
            process: ProcessSettings::default(),
            grace: Duration::from_secs(30),
            backlog: 4096,
            stall_after: Duration::from_millis(50),
            hash_seed: 0,
        }
    }

    fn of_spec(spec: &GroupSpec) -> Vec<WorkerId> {
        (0..spec.workers).map(WorkerId).collect()
    }

    fn lines(spec: &GroupSpec, control: &str) -> String {
        let groups = std::slice::from_ref(spec);
        StartLines { groups, workers: &of_spec, control: Path::new(control), invocation: "reuseport-lb" }
            .to_string()
    }

    #[test]
    fn five_lines_tell_what_stands() {
        assert_eq!(
            lines(&spec(), control::DEFAULT_PATH),
            "\
listening   0.0.0.0:8080 (tcp, group default)
policy      consistent-hash on flow
workers     4 built-in: 0-3
control     /run/reuseport-lb/control.sock
try         curl -si localhost:8080 · reuseport-lb status · reuseport-lb drain 2 · Ctrl-C ends
"
        );
    }

    #[test]
    fn the_suggested_commands_work_as_they_are_printed() {
        let spec = GroupSpec {
            name: "web".into(),
            listen: "[fd00::1]:80".parse().expect("an address"),
            workers: 1,
            policy: Policy::LeastLoaded.into(),
            command: WorkerCommand::Program {
                program: "/usr/bin/python3".into(),
                args: vec!["-c".into(), "serve(3)".into()],
            },
            ..spec()
        };
        assert_eq!(
            lines(&spec, "/tmp/my sock"),
            "\
listening   [fd00::1]:80 (tcp, group web)
policy      least-loaded
workers     1 of `/usr/bin/python3 -c 'serve(3)'`: 0
control     /tmp/my sock
try         reuseport-lb --control '/tmp/my sock' status · reuseport-lb --control '/tmp/my sock' policy · Ctrl-C ends
"
        );
        let built_in = GroupSpec { command: WorkerCommand::BuiltIn, ..spec };
        assert!(lines(&built_in, "/x").contains("curl -si 'http://[fd00::1]:80' · "));
    }

    #[test]
    fn each_group_has_its_lines_and_commands_name_one() {
        let other = GroupSpec {
            name: "web".into(),
            listen: "127.0.0.1:80".parse().expect("an address"),
            workers: 2,
            command: WorkerCommand::Program { program: "/bin/server".into(), args: vec![] },
            ..spec()
        };
        let groups = [other, spec()];
        let control = Path::new(control::DEFAULT_PATH);
        assert_eq!(
            StartLines { groups: &groups, workers: &of_spec, control, invocation: "reuseport-lb" }
                .to_string(),
            "\
listening   127.0.0.1:80 (tcp, group web)
policy      consistent-hash on flow
workers     2 of `/bin/server`: 0-1
listening   0.0.0.0:8080 (tcp, group default)
policy      consistent-hash on flow
workers     4 built-in: 0-3
control     /run/reuseport-lb/control.sock
try         curl -si localhost:8080 · reuseport-lb status · reuseport-lb drain 1 --group web · Ctrl-C ends
"
        );
    }

    #[test]
    fn the_program_is_called_as_the_user_called_it() {
        let call =
            |program: &str, by_sudo| invocation(Some(program.as_ref()), Some(Path::new("/src")), by_sudo);
        assert_eq!(call("reuseport-lb", false), "reuseport-lb");
        assert_eq!(call("reuseport-lb", true), "sudo reuseport-lb");
        assert_eq!(call("/src/target/debug/reuseport-lb", true), "sudo target/debug/reuseport-lb");
        assert_eq!(call("/src/reuseport-lb", false), "./reuseport-lb");
        assert_eq!(call("./reuseport-lb", false), "./reuseport-lb");
        assert_eq!(call("/opt/my tools/reuseport-lb", false), "'/opt/my tools/reuseport-lb'");
        assert_eq!(invocation(None, None, false), "reuseport-lb");
    }
}
