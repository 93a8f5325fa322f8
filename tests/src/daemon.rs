//! The program under test.

use std::{
    env,
    ffi::{OsStr, OsString},
    fmt, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use reuseport_lb::control::{GroupStatus, Status};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::{net::UnixStream, process::Child};

pub use launch::Launch;

use crate::{
    Client, GroupExt as _, Netns, Output, PATIENCE,
    command::{display, report, run},
    eventually, http,
    process::Process,
    within,
};

mod launch;

/// How many programs there are that pick for a group.
const SELECTION_PROGRAMS: usize = 8;

/// The binary under test: what `REUSEPORT_LB_BIN` names, or else the one in the target folder of this very test.
pub fn binary() -> &'static Path {
    static BINARY: LazyLock<PathBuf> = LazyLock::new(|| {
        let advice =
            "run `cargo xtask test`, which builds the program and its BPF object and then runs the tests";
        let path = env::var_os("REUSEPORT_LB_BIN").map(PathBuf::from).or_else(|| {
            let test = env::current_exe().ok()?;
            test.ancestors().skip(1).map(|folder| folder.join("reuseport-lb")).find(|path| path.is_file())
        });
        let path =
            path.unwrap_or_else(|| panic!("REUSEPORT_LB_BIN does not name the program to test: {advice}"));
        fs::canonicalize(&path).unwrap_or_else(|error| panic!("{}: {error}: {advice}", path.display()))
    });
    &BINARY
}

/// A daemon. Dropping it ends it.
#[derive(Debug)]
pub struct Daemon {
    line: Vec<OsString>,
    child: Child,
    process: Process,
    running: bool,
    // Before the folder that it is in.
    _bpffs: Option<launch::BpfFs>,
    folder: TempDir,
    control: PathBuf,
    pins: PathBuf,
    listen: SocketAddr,
    netns: Arc<Netns>,
    // Whether processes in the namespace are others'.
    adopts: bool,
}

impl Daemon {
    /// Where the group listens.
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// A client of the group.
    pub fn client(&self) -> Client {
        Client::of(self.listen)
    }

    /// A client of the group by another address that it listens on.
    pub fn client_of(&self, address: &str) -> Client {
        Client::of(address.parse().unwrap_or_else(|error| panic!("{address}: {error}")))
    }

    /// The control socket.
    pub fn control(&self) -> &Path {
        &self.control
    }

    /// The folder of its pins.
    pub fn pins(&self) -> &Path {
        &self.pins
    }

    /// The daemon's process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The configuration file, where it was started with one.
    pub fn config(&self) -> PathBuf {
        self.folder.path().join("config.toml")
    }

    /// Changes the configuration file. The daemon does not know of it yet.
    pub fn configure(&self, text: &str) {
        fs::write(self.config(), text).expect("a file in a temporary folder");
    }

    /// The state of everything, over the control socket.
    pub async fn status(&self) -> Status {
        self.try_status().await.unwrap_or_else(|error| panic!("status: {error}\n{self}"))
    }

    /// The state of the only group.
    pub async fn group(&self) -> GroupStatus {
        let mut status = self.status().await;
        assert_eq!(status.groups.len(), 1, "groups of {status:?}");
        status.groups.remove(0)
    }

    /// The state of one of several groups.
    pub async fn group_named(&self, name: &str) -> GroupStatus {
        let mut groups = self.status().await.groups;
        groups.retain(|group| group.name == name);
        assert_eq!(groups.len(), 1, "groups {name} of {groups:?}\n{self}");
        groups.remove(0)
    }

    async fn try_status(&self) -> Result<Status, String> {
        let response = self.control_request("GET", "/v1/status", b"").await?;
        if response.status != 200 {
            return Err(format!(
                "HTTP status {}: {}",
                response.status,
                String::from_utf8_lossy(&response.body)
            ));
        }
        serde_json::from_slice(&response.body).map_err(|error| error.to_string())
    }

    /// One request over the control socket.
    ///
    /// # Errors
    /// What the socket or the response is wrong in, as text.
    pub async fn control_request(
        &self,
        method: &str,
        path: &str,
        body: &[u8],
    ) -> Result<http::Response, String> {
        let exchange = async {
            let mut stream = UnixStream::connect(&self.control).await?;
            http::send_json(&mut stream, method, path, body).await?;
            http::receive(&mut stream).await
        };
        within("the control socket answers", exchange)
            .await
            .map_err(|error: std::io::Error| error.to_string())
    }

    /// Waits until `condition` holds for the group, and gives the state in which it did.
    pub async fn wait(&self, what: &str, condition: impl Fn(&GroupStatus) -> bool) -> GroupStatus {
        eventually(what, async || {
            let group = self.group().await;
            if condition(&group) { Ok(group) } else { Err(format!("{group:#?}\n{self}")) }
        })
        .await
    }

    /// Waits until no worker has a connection, by the kernel program's own counters.
    pub async fn idle(&self) -> GroupStatus {
        self.wait("no connection is open", |group| {
            group.active().iter().chain(&group.pending()).all(|count| *count == 0)
        })
        .await
    }

    /// Waits until all selection programs of all groups are loaded, which a thread does after the start. The daemon has
    /// more descriptors then.
    pub async fn has_loaded_all(&self) {
        eventually("all programs are loaded", async || {
            let groups = self.status().await.groups.len();
            let descriptors =
                fs::read_dir(format!("/proc/{}/fd", self.process.pid)).expect("its descriptors");
            let programs = descriptors
                .filter_map(|descriptor| fs::read_link(descriptor.ok()?.path()).ok())
                .filter(|target| target.as_os_str() == "anon_inode:bpf-prog")
                .count();
            if programs >= groups * SELECTION_PROGRAMS { Ok(()) } else { Err(format!("{programs}\n{self}")) }
        })
        .await;
    }

    /// Runs the real command against this daemon.
    pub async fn cli(&self, args: &[&str]) -> Output {
        let (command, rest) = args.split_first().expect("a command");
        let mut line: Vec<OsString> = [binary().as_os_str(), OsStr::new(command)].map(OsString::from).into();
        line.extend(["--control".into(), self.control.clone().into()]);
        line.extend(rest.iter().map(OsString::from));
        run(&line).await
    }

    /// Runs the real command against this daemon; it must succeed.
    pub async fn tell(&self, args: &[&str]) -> Output {
        self.cli(args).await.succeeded()
    }

    /// Where the daemon writes down what its successor needs.
    pub fn state_file(&self) -> PathBuf {
        let mut path = self.control.clone().into_os_string();
        path.push(".state");
        path.into()
    }

    /// Kills the daemon, and waits until it is gone. Its workers go on.
    pub async fn kill(&mut self) {
        self.process.signal(Signal::KILL);
        within("the daemon is gone", self.child.wait()).await.expect("wait");
        self.running = false;
    }

    /// Starts the daemon again, with the same command line and further arguments, and waits until it answers. Returns how
    /// long that took.
    pub async fn start_again(&mut self, args: &[&str]) -> Duration {
        let begun = Instant::now();
        self.spawn_again(args);
        while self.try_status().await.is_err() {
            if let Some(status) = self.child.try_wait().expect("wait") {
                panic!("the daemon ended at once: {status}\n{self}");
            }
            assert!(begun.elapsed() < PATIENCE, "the daemon does not answer\n{self}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        begun.elapsed()
    }

    /// Starts the daemon again, and waits until it has given up.
    pub async fn fail_again(&mut self, args: &[&str]) -> Output {
        let before = ["stdout", "stderr"].map(|stream| self.written(stream).len());
        self.spawn_again(args);
        let status = within("the daemon has given up", self.child.wait()).await.expect("wait");
        self.running = false;
        let mut output = self.output(status);
        output.stdout.drain(..before[0]);
        output.stderr.drain(..before[1]);
        output
    }

    fn spawn_again(&mut self, args: &[&str]) {
        assert!(!self.running, "the daemon runs\n{self}");
        let mut line = self.line.clone();
        let options = line.iter().position(|word| word == "--").unwrap_or(line.len());
        line.splice(options..options, args.iter().map(OsString::from));
        (self.child, self.process) = launch::launch(&line, self.folder.path());
        self.running = true;
    }

    /// Ends the daemon as systemd would, with SIGTERM, and sees that nothing is left over.
    pub async fn stop(mut self) {
        self.process.signal(Signal::TERM);
        let status = self.ended().await;
        assert!(status.success(), "SIGTERM gives {status}\n{self}");
    }

    /// Waits until the daemon has ended, and sees that nothing is left over.
    pub async fn ended(&mut self) -> ExitStatus {
        self.ended_but_for(&[]).await
    }

    /// The same, with these processes still there, which are none of the daemon's.
    pub async fn ended_but_for(&mut self, others: &[u32]) -> ExitStatus {
        let status = within("the daemon has ended", self.child.wait()).await.expect("wait");
        self.running = false;
        self.assert_nothing_left(others);
        status
    }

    fn assert_nothing_left(&self, others: &[u32]) {
        assert!(!self.control.exists(), "the control socket is left over\n{self}");
        assert!(!self.state_file().exists(), "the state file is left over\n{self}");
        assert_eq!(files_below(&self.pins), Vec::<PathBuf>::new(), "pins are left over\n{self}");
        let mut processes = if self.adopts { vec![] } else { self.netns.processes() };
        processes.retain(|pid| !others.contains(pid));
        assert!(processes.is_empty(), "the processes {processes:?} are left over\n{self}");
    }

    fn output(&self, status: ExitStatus) -> Output {
        Output {
            line: display(&self.line),
            status,
            stdout: self.written("stdout"),
            stderr: self.written("stderr"),
        }
    }

    /// What the daemon has written so far to `stdout` or `stderr`.
    pub fn written(&self, stream: &str) -> String {
        fs::read(self.folder.path().join(stream))
            .map_or_else(|error| format!("({error})"), |bytes| String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl fmt::Display for Daemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = if self.running { "runs".to_owned() } else { "has ended".to_owned() };
        let [stdout, stderr] = ["stdout", "stderr"].map(|stream| self.written(stream));
        report(f, &display(&self.line), &status, &stdout, &stderr)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.running {
            self.process.signal(Signal::TERM);
            if !self.process.ends_within(PATIENCE / 3) {
                self.process.signal(Signal::KILL);
                self.process.ends_within(PATIENCE);
            }
        }
        if std::thread::panicking() {
            eprintln!("{self}");
        }
        for pin in files_below(&self.pins) {
            if let Err(error) = fs::remove_file(&pin) {
                eprintln!("{}: {error}", pin.display());
            }
        }
        if self.pins.exists()
            && let Err(error) = fs::remove_dir_all(&self.pins)
        {
            eprintln!("{}: {error}", self.pins.display());
        }
    }
}

/// Everything below `folder` that is not a folder; nothing when `folder` does not exist.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .flat_map(|entry| {
            let path = entry.path();
            if path.is_dir() { files_below(&path) } else { vec![path] }
        })
        .collect()
}
