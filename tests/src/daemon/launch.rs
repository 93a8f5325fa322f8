//! How the program under test is started.

use std::{
    ffi::OsString,
    fs,
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use reuseport_lb::control::GroupStatus;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tokio::process::{Child, Command};

use super::{Daemon, binary, files_below};
use crate::{GroupExt, Netns, Output, command::display, eventually, privileges, process::Process, within};

/// How to start a daemon.
#[derive(Clone, Debug)]
pub struct Launch {
    listen: SocketAddr,
    workers: u16,
    policy: String,
    stall_after: String,
    args: Vec<OsString>,
    worker_command: Vec<OsString>,
    control: Option<PathBuf>,
    wrapper: Vec<OsString>,
    config: Option<String>,
    adopts: bool,
    user: Option<(u32, Vec<String>)>,
}

impl Launch {
    /// Four workers on 127.0.0.1:8080 under this policy.
    pub fn policy(policy: &str) -> Self {
        Self {
            listen: ([127, 0, 0, 1], 8080).into(),
            workers: 4,
            policy: policy.to_owned(),
            stall_after: "0".to_owned(),
            args: Vec::new(),
            worker_command: Vec::new(),
            control: None,
            wrapper: Vec::new(),
            config: None,
            adopts: false,
            user: None,
        }
    }

    /// What listens on 127.0.0.1:8080, under this policy.
    pub fn adopt(policy: &str) -> Self {
        Self { adopts: true, ..Self::policy(policy) }
    }

    /// The groups that a configuration file with this text describes.
    pub fn config(text: &str) -> Self {
        Self { config: Some(text.to_owned()), ..Self::policy("hash") }
    }

    /// Another address.
    pub fn listen(self, listen: &str) -> Self {
        Self { listen: listen.parse().unwrap_or_else(|error| panic!("{listen}: {error}")), ..self }
    }

    /// Another number of workers.
    pub fn workers(self, workers: u16) -> Self {
        Self { workers, ..self }
    }

    /// Workers that take nothing for so long are passed over. Without this they are given connections all the same: a
    /// busy machine can keep a healthy worker from running for the time that is the program's default, and most tests
    /// are about something else.
    pub fn stall_after(self, duration: &str) -> Self {
        Self { stall_after: duration.to_owned(), ..self }
    }

    /// A further argument.
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// What the workers run instead of the built-in server.
    pub fn worker_command(self, command: &[&str]) -> Self {
        Self { worker_command: command.iter().map(OsString::from).collect(), ..self }
    }

    /// Another control socket than one in a folder of the test's own.
    pub fn control(self, path: &Path) -> Self {
        Self { control: Some(path.to_owned()), ..self }
    }

    /// Something that runs the daemon: `unshare -m`, `setpriv …`.
    pub fn wrapper(self, command: &[&str]) -> Self {
        Self { wrapper: command.iter().map(OsString::from).collect(), ..self }
    }

    /// As another user, with just these capabilities.
    pub fn unprivileged(self, uid: u32, capabilities: &[&str]) -> Self {
        let capabilities = capabilities.iter().map(|name| (*name).to_owned()).collect();
        Self { user: Some((uid, capabilities)), ..self }
    }

    /// Starts a daemon, and waits until it answers and all its workers are active.
    ///
    /// # Panics
    /// With everything that it wrote, when it does not get that far.
    pub async fn start(self, netns: &Arc<Netns>) -> Daemon {
        let daemon = self.start_unready(netns).await;
        eventually("all workers are active", async || {
            let status = daemon.status().await;
            if status.groups.iter().all(GroupStatus::all_active) {
                Ok(())
            } else {
                Err(format!("{status:#?}\n{daemon}"))
            }
        })
        .await;
        daemon
    }

    /// Starts a daemon and waits until it answers, whatever its workers do.
    pub async fn start_unready(self, netns: &Arc<Netns>) -> Daemon {
        let mut daemon = self.spawn(netns);
        eventually("the daemon answers", async || {
            if let Some(status) = daemon.child.try_wait().expect("wait") {
                panic!("the daemon ended at once: {status}\n{daemon}");
            }
            daemon.try_status().await
        })
        .await;
        daemon
    }

    /// Starts a daemon, waits until it has given up, and sees that all is as it was before.
    pub async fn fail(self, netns: &Arc<Netns>) -> Output {
        let processes = netns.processes();
        let mut daemon = self.spawn(netns);
        let status = within("the daemon has given up", daemon.child.wait()).await.expect("wait");
        daemon.running = false;
        assert_eq!(netns.processes(), processes, "processes\n{daemon}");
        assert_eq!(files_below(&daemon.pins), Vec::<PathBuf>::new(), "pins are left over\n{daemon}");
        daemon.output(status)
    }

    /// Starts a daemon beside servers that listen on `port`, waits until it has given up, and sees that they are still
    /// all there is.
    pub async fn fail_beside(self, netns: &Arc<Netns>, port: u16) -> Output {
        let listening = crate::server::listening_at(port);
        let output = self.fail(netns).await;
        assert_eq!(crate::server::listening_at(port), listening, "sockets\n{output}");
        output
    }

    /// Starts a daemon and waits for nothing.
    pub fn spawn(self, netns: &Arc<Netns>) -> Daemon {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder =
            tempfile::Builder::new().prefix("reuseport-lb-test-").tempdir().expect("a temporary folder");
        let control = self.control.unwrap_or_else(|| folder.path().join("control.sock"));
        // Elsewhere for another user, since systemd lets nobody but root into the usual place.
        let bpffs = self.user.as_ref().map(|_| BpfFs::mount(folder.path().join("bpf")));
        let place = bpffs.as_ref().map_or(Path::new("/sys/fs/bpf"), |bpffs| &bpffs.path);
        let pins = place.join(format!("reuseport-lb-test-{}-{number}", std::process::id()));

        let mut line = self.wrapper;
        let program = match self.user {
            Some((uid, capabilities)) => {
                let capabilities: Vec<&str> = capabilities.iter().map(String::as_str).collect();
                line.extend(privileges::as_user(uid, &capabilities));
                privileges::program_for_all(folder.path(), Some(uid))
            }
            None => binary().to_owned(),
        };
        line.extend([program.into(), if self.adopts { "adopt" } else { "run" }.into()]);
        let config = folder.path().join("config.toml");
        if let Some(text) = self.config {
            fs::write(&config, text).expect("a file in a temporary folder");
            line.extend(["--config".into(), config.into()]);
        } else {
            line.extend(["--listen".into(), self.listen.to_string().into()]);
            if !self.adopts {
                line.extend(["--workers".into(), self.workers.to_string().into()]);
            }
            line.extend(["--policy".into(), self.policy.into()]);
            line.extend(["--stall-after".into(), self.stall_after.into()]);
        }
        line.extend(["--control".into(), control.clone().into()]);
        line.extend(["--pin-dir".into(), pins.clone().into()]);
        line.extend(self.args);
        if !self.worker_command.is_empty() {
            line.push("--".into());
            line.extend(self.worker_command);
        }
        let (child, process) = launch(&line, folder.path());
        Daemon {
            line,
            child,
            process,
            running: true,
            _bpffs: bpffs,
            folder,
            control,
            pins,
            listen: self.listen,
            netns: Arc::clone(netns),
            adopts: self.adopts,
        }
    }
}

/// A BPF file system that everybody may use.
#[derive(Debug)]
pub(super) struct BpfFs {
    path: PathBuf,
}

impl BpfFs {
    fn mount(path: PathBuf) -> Self {
        fs::create_dir(&path).expect("a folder in a temporary folder");
        let options = Some(c"mode=1777");
        mount("bpf", &path, "bpf", MountFlags::empty(), options).expect("a BPF file system");
        Self { path }
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.path, UnmountFlags::DETACH) {
            eprintln!("{}: {error}", self.path.display());
        }
    }
}

/// Starts a daemon, which writes to files in `folder`, behind what is there.
pub(super) fn launch(line: &[OsString], folder: &Path) -> (Child, Process) {
    let file = |name| {
        let mut options = File::options();
        options.create(true).append(true);
        options.open(folder.join(name)).expect("a file in a temporary folder")
    };
    let child = Command::new(&line[0])
        .args(&line[1..])
        .stdin(Stdio::null())
        .stdout(file("stdout"))
        .stderr(file("stderr"))
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}", display(line)));
    let process = Process::find(child.id().expect("a child not waited for")).expect("a child not waited for");
    (child, process)
}
