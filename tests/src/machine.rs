//! A machine of one's own: a copy of this one's files, with systemd as its first process.
//!
//! What is installed, started and removed there leaves this machine alone. It shares the kernel and the network namespace
//! of the test. The files are an overlay of the root file system, whose changes are in memory; the units are those that
//! the test names, and none of this machine's.

use std::{fs, path::Path, process::Stdio, sync::Arc};

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::{Netns, Output, eventually, process::Process, run};

/// Makes the machine's place; the first process ends it. `$F` is an empty folder, `$INPUT` a folder to copy to `/input`.
const OUTER: &str = r#"
mount -t tmpfs none "$F"
mkdir "$F/cgroup" "$F/upper" "$F/work" "$F/root"
mount -t cgroup2 none "$F/cgroup"
export CGROUP="$F/cgroup/reuseport-lb-test-$$"
mkdir "$CGROUP"
unshare --pid --fork --kill-child --uts --ipc --mount --propagation private sh -euc "$INNER" || true
find "$CGROUP" -depth -type d -exec rmdir {} +
"#;

/// Becomes the machine's first process. The cgroup namespace is made last, so that its root is the machine's own.
const INNER: &str = r#"
echo 0 > "$CGROUP/cgroup.procs"
mount -t overlay -o "lowerdir=/,upperdir=$F/upper,workdir=$F/work" none "$F/root"
cd "$F/root"
cp -r "$INPUT" input
mkdir -p old
mount -t proc none proc
mount -t sysfs none sys
mount -t bpf none sys/fs/bpf
mount --rbind /dev dev
mount -t tmpfs none run
mount -t tmpfs none tmp
pivot_root . old
umount -l old
exec unshare --cgroup sh -euc '
    mount -t cgroup2 none /sys/fs/cgroup
    exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=test SYSTEMD_UNIT_PATH=/input/units: SYSTEMD_LOG_TARGET=console \
        /lib/systemd/systemd --system --unit=machine.target --show-status=no'
"#;

/// Units that others want by default, and that do nothing here.
const TARGETS: [&str; 6] = [
    "machine.target",
    "sysinit.target",
    "basic.target",
    "shutdown.target",
    "network-online.target",
    "multi-user.target",
];

/// See the module. Dropping it ends everything that runs there.
pub struct Machine {
    outer: Child,
    first: Process,
    _folder: TempDir,
}

impl Machine {
    /// Boots a machine in this network namespace. `files` are put to `/input`; those that go to `units/` are its units.
    pub async fn boot(netns: &Arc<Netns>, files: &[(&str, &[u8])]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let [place, input] = ["place", "input"].map(|name| folder.path().join(name));
        fs::create_dir(&place).expect("a folder");
        for target in TARGETS {
            let unit = "[Unit]\nDefaultDependencies=no\nAllowIsolate=yes\n";
            write(&input.join("units").join(target), unit.as_bytes());
        }
        for (name, bytes) in files {
            write(&input.join(name), bytes);
        }
        let log = fs::File::create(folder.path().join("log")).expect("a file");
        let outer = netns.within(|| {
            Command::new("unshare")
                .args(["--mount", "--propagation", "private", "sh", "-euc", OUTER])
                .env("INNER", INNER)
                .env("F", &place)
                .env("INPUT", &input)
                .stdin(Stdio::null())
                .stdout(log.try_clone().expect("a descriptor"))
                .stderr(log)
                .spawn()
                .expect("unshare (Debian: util-linux)")
        });
        let mut machine = Self {
            first: Process::find(outer.id().expect("it runs")).expect("it runs"),
            outer,
            _folder: folder,
        };
        eventually("the machine has booted", async || machine.booted().await).await;
        machine
    }

    async fn booted(&mut self) -> Result<(), String> {
        if let Some(status) = self.outer.try_wait().expect("wait") {
            panic!("the machine has ended: {status}\n{}", self.log());
        }
        let only_child = |pid: u32| {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            children.split_whitespace().next().and_then(|pid| pid.parse().ok())
        };
        let first = self.outer.id().and_then(only_child).and_then(only_child).and_then(Process::find);
        self.first = first.ok_or("no first process yet")?;
        let state = self.run(&["systemctl", "is-system-running"]).await;
        if state.stdout.trim() == "running" { Ok(()) } else { Err(format!("{state}{}", self.log())) }
    }

    fn log(&self) -> String {
        fs::read_to_string(self._folder.path().join("log")).unwrap_or_default()
    }

    /// Runs a command there.
    pub async fn run(&self, command: &[&str]) -> Output {
        let target = format!("--target={}", self.first.pid);
        let enter = ["nsenter", &target, "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--"];
        run(&[&enter, command].concat()).await
    }

    /// Runs a command there; it must succeed. Gives what it printed.
    pub async fn tell(&self, command: &[&str]) -> String {
        self.run(command).await.succeeded().stdout.trim_end().to_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the machine's log\n{}", self.log());
        }
        self.first.signal(Signal::KILL);
        // The outer process takes the cgroups away.
        if let Some(outer) = self.outer.id().and_then(Process::find) {
            outer.ends_within(crate::PATIENCE);
        }
    }
}

fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().expect("a file in a folder")).expect("a folder");
    fs::write(path, bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
