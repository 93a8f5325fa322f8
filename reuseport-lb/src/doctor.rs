//! What this machine has of that which the daemon needs, and what to do about the rest.

use std::{fmt, fs, net::SocketAddr, path::Path};

use caps::Capability;
use rustix::process::{Resource, getrlimit};
use serde::Serialize;

use crate::{
    adopt,
    chain::chain,
    config::MAX_WORKERS,
    control::{
        self,
        client::{self, Client},
    },
    datapath::{self, Missing},
    worker::descriptors,
};

/// The oldest kernel whose groups move waiting connections, as the programs expect.
const OLDEST_KERNEL: (u32, u32) = (5, 14);

/// The length of accept queues that the daemon asks for unless it is told otherwise.
const BACKLOG: u64 = 4096;

/// Where the BPF file system belongs.
const BPFFS: &str = "/sys/fs/bpf";

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at, in one or two words.
    pub name: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// One line: what was found, and what to do about it where something is.
    pub found: String,
}

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// The daemon runs, and something is worse than it could be.
    Warn,
    /// The daemon cannot run.
    Fail,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        })
    }
}

impl Check {
    fn new(name: &'static str, verdict: Verdict, found: impl Into<String>) -> Self {
        Self { name, verdict, found: found.into() }
    }

    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self::new(name, Verdict::Ok, found)
    }

    fn warn(name: &'static str, found: impl Into<String>) -> Self {
        Self::new(name, Verdict::Warn, found)
    }

    fn fail(name: &'static str, found: impl Into<String>) -> Self {
        Self::new(name, Verdict::Fail, found)
    }
}

/// Looks at everything: the kernel, this process's privileges and limits, the control socket at `control`, and the
/// address `listen` if there is one. Changes nothing.
pub async fn examine(control: &Path, listen: Option<SocketAddr>) -> Vec<Check> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut checks = vec![kernel(release.trim())];
    checks.extend(requirements(&datapath::check_requirements()));
    checks.push(bpf_file_system());
    checks.push(open_files(getrlimit(Resource::Nofile).maximum));
    checks.push(locked_memory(getrlimit(Resource::Memlock).current));
    let somaxconn = fs::read_to_string("/proc/sys/net/core/somaxconn");
    checks.push(accept_queues(somaxconn.ok().and_then(|text| text.trim().parse().ok())));
    let (check, status) = control_socket(control, Client::new(control).status().await);
    checks.push(check);
    checks.extend(status.as_ref().and_then(|status| privileges(status.pid)));
    if let Some(listen) = listen {
        checks.push(address(listen, status.as_ref(), adopt::conflicts(listen)));
    }
    checks
}

fn kernel(release: &str) -> Check {
    const NAME: &str = "kernel";
    let (major, minor) = OLDEST_KERNEL;
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(a)), Some(Ok(b))) if (a, b) >= OLDEST_KERNEL => Check::ok(NAME, format!("Linux {release}")),
        (Some(Ok(_)), Some(Ok(_))) => {
            Check::fail(NAME, format!("Linux {release} is too old; this needs {major}.{minor} or later"))
        }
        _ => Check::warn(NAME, format!("the version of Linux {release} is not understood")),
    }
}

/// The requirements of the datapath, one check each.
fn requirements(missing: &[Missing]) -> Vec<Check> {
    const CAPABILITIES: &str = "capabilities";
    if let Some(capabilities) = missing.iter().find(|missing| matches!(missing, Missing::Capabilities(_))) {
        // Nothing else can be found out without them.
        return vec![Check::fail(CAPABILITIES, capabilities.to_string())];
    }
    let all: Vec<_> = datapath::CAPABILITIES.iter().map(|(capability, _)| capability.to_string()).collect();
    let mut checks = vec![Check::ok(CAPABILITIES, format!("{}, which every group needs", all.join(", ")))];
    for (name, what, there) in [
        ("BPF programs", Missing::SkReuseport, "SK_REUSEPORT programs can be loaded"),
        ("cgroup v2", Missing::Cgroup, "mounted, so open connections are counted"),
        ("BTF", Missing::Btf, "the kernel describes its types, so stalled workers are seen"),
        ("JIT", Missing::Jit, "BPF programs run as machine code"),
    ] {
        checks.push(match missing.contains(&what) {
            false => Check::ok(name, there),
            true if what.is_fatal() => Check::fail(name, what.to_string()),
            true => Check::warn(name, what.to_string()),
        });
    }
    checks
}

fn bpf_file_system() -> Check {
    const NAME: &str = "bpffs";
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let is_there = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        fields.next() == Some(BPFFS) && fields.next() == Some("bpf")
    };
    if mounts.lines().any(is_there) {
        Check::ok(NAME, format!("mounted on {BPFFS}"))
    } else if Path::new(BPFFS).is_dir() {
        let advice = format!("the daemon mounts it, or: mount -t bpf bpf {BPFFS}");
        Check::warn(NAME, format!("not mounted on {BPFFS}; {advice}"))
    } else {
        Check::fail(
            NAME,
            format!("there is no {BPFFS}; mount sysfs, and use a kernel with CONFIG_BPF_SYSCALL"),
        )
    }
}

fn open_files(hard_limit: Option<u64>) -> Check {
    const NAME: &str = "open files";
    let needed = descriptors::needed([MAX_WORKERS]);
    match hard_limit {
        None => Check::ok(NAME, "no limit"),
        Some(limit) if limit >= needed => Check::ok(NAME, format!("hard limit {limit}")),
        Some(limit) if limit >= descriptors::needed([2]) => {
            let advice = "raise it with `ulimit -Hn` or LimitNOFILE=";
            Check::warn(
                NAME,
                format!("hard limit {limit}; a group of {MAX_WORKERS} workers takes {needed}: {advice}"),
            )
        }
        Some(limit) => {
            let advice = "raise it with `ulimit -Hn` or LimitNOFILE=";
            Check::fail(NAME, format!("hard limit {limit} is too low for any group: {advice}"))
        }
    }
}

fn locked_memory(limit: Option<u64>) -> Check {
    let limit = limit.map_or_else(|| "no limit".to_owned(), |limit| format!("limit {limit} bytes"));
    // Since 5.11 the kernel charges maps to the memory cgroup; see docs/KERNEL.md.
    Check::ok(
        "locked memory",
        format!("{limit}, which does not matter: Linux 5.11 and later do not count maps"),
    )
}

fn accept_queues(somaxconn: Option<u64>) -> Check {
    const NAME: &str = "accept queues";
    match somaxconn {
        Some(limit) if limit >= BACKLOG => Check::ok(NAME, format!("net.core.somaxconn is {limit}")),
        Some(limit) => Check::warn(
            NAME,
            format!("net.core.somaxconn cuts each queue at {limit}: sysctl net.core.somaxconn={BACKLOG}"),
        ),
        None => Check::warn(NAME, "net.core.somaxconn cannot be read: mount /proc"),
    }
}

/// The control socket, and what the daemon behind it said.
fn control_socket(
    path: &Path,
    answer: Result<control::Status, client::Error>,
) -> (Check, Option<control::Status>) {
    const NAME: &str = "control socket";
    let here = env!("CARGO_PKG_VERSION");
    match answer {
        Ok(status) => {
            let found = format!("daemon {} (pid {}) at {}", status.version, status.pid, path.display());
            let check = if status.version == here {
                Check::ok(NAME, found)
            } else {
                Check::warn(NAME, format!("{found}, and this is {here}"))
            };
            (check, Some(status))
        }
        Err(client::Error::NoDaemon { .. }) => {
            (Check::ok(NAME, format!("no daemon is running at {}", path.display())), None)
        }
        Err(error) => (Check::fail(NAME, chain(&error)), None),
    }
}

/// What a running daemon has kept of its privileges.
fn privileges(pid: u32) -> Option<Check> {
    let process = procfs::process::Process::new(pid.cast_signed());
    let status = process.and_then(|process| process.status()).ok()?;
    let mut kept: Vec<_> = caps::all().into_iter().filter(|one| status.capeff & one.bitmask() != 0).collect();
    kept.sort_by_key(Capability::index);
    let kept: Vec<_> = kept.iter().map(ToString::to_string).collect();
    let workers = match status.nonewprivs {
        Some(0) => "workers as root have root's",
        _ => "no process gets more (no_new_privs)",
    };
    Some(Check::ok("privileges", format!("the daemon has {}; {workers}", kept.join(", "))))
}

fn address(
    listen: SocketAddr,
    status: Option<&control::Status>,
    conflicts: std::io::Result<Vec<adopt::Conflict>>,
) -> Check {
    const NAME: &str = "address";
    let ours = status.and_then(|status| status.groups.iter().find(|group| group.listen == listen));
    match (ours, conflicts) {
        (Some(group), _) => Check::ok(NAME, format!("{listen} is the daemon's own, of group {}", group.name)),
        (None, Err(error)) => Check::warn(NAME, format!("cannot list the listening sockets: {error}")),
        (None, Ok(conflicts)) => match conflicts.first() {
            None => Check::ok(NAME, format!("{listen} is free")),
            Some(conflict) => {
                Check::fail(NAME, format!("{conflict}; stop it, or choose another address with --listen"))
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::testing::status;

    #[test]
    fn kernels_are_told_apart_by_their_numbers() {
        for (release, verdict) in [
            ("6.18.44-fc-v657", Verdict::Ok),
            ("5.14.0-427.el9.x86_64", Verdict::Ok),
            ("5.15", Verdict::Ok),
            ("5.13.19", Verdict::Fail),
            ("4.19.0-27-amd64", Verdict::Fail),
            ("strange", Verdict::Warn),
        ] {
            assert_eq!(kernel(release).verdict, verdict, "{release}");
        }
    }

    #[test]
    fn what_is_missing_fails_or_warns_by_its_weight() {
        let verdicts = |missing: &[Missing]| {
            requirements(missing).into_iter().map(|check| (check.name, check.verdict)).collect::<Vec<_>>()
        };
        let [ok, warn, fail] = [Verdict::Ok, Verdict::Warn, Verdict::Fail];
        assert_eq!(
            verdicts(&[]),
            [("capabilities", ok), ("BPF programs", ok), ("cgroup v2", ok), ("BTF", ok), ("JIT", ok)]
        );
        assert_eq!(
            verdicts(&[Missing::SkReuseport, Missing::Btf, Missing::Jit]),
            [("capabilities", ok), ("BPF programs", fail), ("cgroup v2", ok), ("BTF", warn), ("JIT", warn)]
        );
        assert_eq!(verdicts(&[Missing::Capabilities(vec!["CAP_BPF".into()])]), [("capabilities", fail)]);
    }

    #[test]
    fn limits_are_compared_with_what_groups_take() {
        for (limit, verdict) in [
            (None, Verdict::Ok),
            (Some(1 << 20), Verdict::Ok),
            (Some(1024), Verdict::Warn),
            (Some(64), Verdict::Fail),
        ] {
            assert_eq!(open_files(limit).verdict, verdict, "{limit:?}");
        }
        for (limit, verdict) in [(Some(4096), Verdict::Ok), (Some(128), Verdict::Warn), (None, Verdict::Warn)]
        {
            assert_eq!(accept_queues(limit).verdict, verdict, "{limit:?}");
        }
    }

    #[test]
    fn a_daemon_of_another_version_is_told() {
        let mut status = status();
        let path = Path::new("/x");
        assert_eq!(control_socket(path, Ok(status.clone())).0.verdict, Verdict::Ok);
        status.version = "0.0.1".into();
        let (check, _) = control_socket(path, Ok(status));
        assert_eq!(check.verdict, Verdict::Warn);
        let silent = Err(client::Error::Silent { path: path.into() });
        assert_eq!(control_socket(path, silent).0.verdict, Verdict::Fail);
        let none = Err(client::Error::NoDaemon { path: path.into() });
        assert_eq!(control_socket(path, none).0.verdict, Verdict::Ok);
    }

    #[test]
    fn the_daemons_own_address_is_no_conflict() {
        let listen = "0.0.0.0:8080".parse().expect("an address");
        assert_eq!(address(listen, Some(&status()), Ok(vec![])).verdict, Verdict::Ok);
        assert_eq!(address(listen, None, Ok(vec![])).verdict, Verdict::Ok);
        let error = std::io::ErrorKind::NotFound.into();
        assert_eq!(address(listen, None, Err(error)).verdict, Verdict::Warn);
    }
}
