//! Servers that know nothing of the program under test.

use std::{
    ffi::OsString,
    fmt, fs,
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::LazyLock,
};

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::{Client, command::display, eventually, privileges, process::Process, within};

/// The folder with the servers' programs and configurations.
pub fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/servers"))
}

/// A server that a test starts by itself, in the namespace of the test.
#[derive(Debug)]
pub struct Server {
    child: Child,
    process: Process,
    line: Vec<OsString>,
    folder: TempDir,
}

impl Server {
    /// Starts a server and waits for nothing.
    pub fn spawn<S: Into<OsString>>(line: impl IntoIterator<Item = S>) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        Self::spawn_in(folder, line.into_iter().map(Into::into).collect())
    }

    fn spawn_in(folder: TempDir, line: Vec<OsString>) -> Self {
        let output = File::create(folder.path().join("output")).expect("a file in a temporary folder");
        let child = Command::new(&line[0])
            .args(&line[1..])
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a descriptor"))
            .stderr(output)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}; `cargo xtask setup` installs it", display(&line)));
        let process =
            Process::find(child.id().expect("a child not waited for")).expect("a child not waited for");
        Self { child, process, line, folder }
    }

    /// Several Go processes that listen at `address`, each by itself.
    pub async fn go(address: &str, processes: usize) -> Vec<Self> {
        let servers: Vec<_> =
            (0..processes).map(|_| Self::spawn([go_program().as_os_str(), address.as_ref()])).collect();
        for server in &servers {
            server.listens(1).await;
        }
        servers
    }

    /// nginx with four workers, each with a socket of its own, and the line that makes it load its configuration
    /// again.
    pub async fn nginx() -> (Self, Vec<OsString>) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let configuration = fs::read_to_string(self::folder().join("nginx.conf")).expect("nginx.conf");
        let path = folder.path().join("nginx.conf");
        fs::write(&path, configuration.replace("FOLDER", &folder.path().display().to_string()))
            .expect("a file in a temporary folder");
        let line: Vec<OsString> =
            ["nginx".into(), "-p".into(), folder.path().into(), "-c".into(), path.into()].into();
        let server = Self::spawn_in(folder, line.clone());
        server.answers(([127, 0, 0, 1], 8080).into()).await;
        let reload = line.into_iter().chain(["-s".into(), "reload".into()]).collect();
        (server, reload)
    }

    /// A server in Perl at `address` that accepts in one place and knows nothing but its answer.
    pub async fn perl(address: &str) -> Self {
        let server = Self::spawn(perl(address));
        server.listens(1).await;
        server
    }

    /// The same as another user.
    pub async fn perl_as(uid: u32, address: &str) -> Self {
        let words = privileges::as_user(uid, &[]).into_iter();
        let server = Self::spawn(words.chain(perl(address).map(Into::into)));
        server.listens(1).await;
        server
    }

    /// Its first process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The process id of its first process.
    pub fn pid(&self) -> u32 {
        self.process.pid
    }

    /// Waits until the process holds `sockets` listening sockets.
    async fn listens(&self, sockets: usize) {
        eventually("the server listens", async || {
            let held = listening(self.pid());
            if held == sockets { Ok(()) } else { Err(format!("{held} sockets\n{self}")) }
        })
        .await;
    }

    /// Waits until somebody answers at `address`.
    async fn answers(&self, address: SocketAddr) {
        let client = Client::of(address);
        eventually("the server answers", async || {
            client.ask("/").await.map_err(|error| format!("{error}\n{self}"))
        })
        .await;
    }

    /// Tells it to end as its user would, and waits until it has.
    pub async fn end(mut self) {
        self.process.signal(Signal::TERM);
        let status = within("the server has ended", self.child.wait()).await.expect("wait");
        assert!(status.success(), "SIGTERM gives {status}\n{self}");
    }

    /// Kills it and waits until it is gone.
    pub async fn kill(mut self) {
        self.process.signal(Signal::KILL);
        within("the server has ended", self.child.wait()).await.expect("wait");
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let output = fs::read_to_string(self.folder.path().join("output")).unwrap_or_default();
        write!(f, "server: {} (pid {})\n--- output\n{output}---", display(&self.line), self.pid())
    }
}

/// How many sockets listen on a port in the thread's namespace.
pub fn listening_at(port: u16) -> usize {
    reuseport_lb::adopt::listeners(port).expect("the kernel lists its sockets").len()
}

/// How many listening sockets of the thread's namespace a process holds.
fn listening(pid: u32) -> usize {
    let tables = ["tcp", "tcp6"].map(|table| fs::read_to_string(format!("/proc/thread-self/net/{table}")));
    let inodes: Vec<String> = tables
        .iter()
        .flatten()
        .flat_map(|table| table.lines())
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields.get(3) == Some(&"0A"))
        .filter_map(|fields| Some(format!("socket:[{}]", fields.get(9)?)))
        .collect();
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    descriptors
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .filter(|link| inodes.iter().any(|inode| link.as_os_str() == inode.as_str()))
        .count()
}

/// The children of a process.
pub fn children(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    text.split_whitespace().map(|child| child.parse().expect("a process id")).collect()
}

/// The Go server, built once.
pub fn go_program() -> &'static Path {
    static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| {
        let test = std::env::current_exe().expect("the test's own file");
        let target = test.parent().expect("the folder of the test's own file");
        // Each test program builds its own, and puts it there in one step.
        let program = target.join("go-server");
        let fresh = target.join(format!("go-server-{}", std::process::id()));
        let output = std::process::Command::new("go")
            .args(["build", "-o"])
            .arg(&fresh)
            .arg(folder().join("server.go"))
            .env("GOCACHE", target.join("go-cache"))
            .env("GO111MODULE", "off")
            .env_remove("GOFLAGS")
            .output()
            .unwrap_or_else(|error| panic!("go: {error}; `cargo xtask setup` installs it"));
        assert!(output.status.success(), "go build: {}", String::from_utf8_lossy(&output.stderr));
        fs::rename(&fresh, &program).expect("the program that was just built");
        program
    });
    &PROGRAM
}

/// The line of a server in Perl that listens with `SO_REUSEPORT` at `ADDRESS:PORT` or `[ADDRESS]:PORT`.
pub fn perl(address: &str) -> [String; 4] {
    const SCRIPT: &str = r#"
        use Socket qw(:all);
        my ($host, $port) = $ARGV[0] =~ /^\[?(.*?)\]?:(\d+)$/ or die;
        my $v6 = $host =~ /:/;
        socket(my $listener, $v6 ? AF_INET6 : AF_INET, SOCK_STREAM, 0) or die "socket: $!";
        setsockopt($listener, SOL_SOCKET, SO_REUSEADDR, 1);
        setsockopt($listener, SOL_SOCKET, SO_REUSEPORT, 1) or die unless $ENV{ALONE};
        my $packed = inet_pton($v6 ? AF_INET6 : AF_INET, $host);
        bind($listener, $v6 ? pack_sockaddr_in6($port, $packed) : pack_sockaddr_in($port, $packed)) or die "bind: $!";
        listen($listener, 512) or die "listen: $!";
        my $body = qq({"worker":0,"pid":$$});
        my $head = "HTTP/1.1 200 OK\r\nX-Worker: 0\r\nContent-Length: " . length($body) . "\r\n\r\n";
        while (accept(my $connection, $listener)) {
            recv($connection, my $request, 4096, 0);
            send($connection, $head . $body, MSG_NOSIGNAL);
            shutdown($connection, 1);
            recv($connection, $request, 4096, 0);
            close($connection);
        }
    "#;
    ["perl".into(), "-e".into(), SCRIPT.into(), address.into()]
}
