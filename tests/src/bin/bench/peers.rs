//! HAProxy and nginx before the workers, in the benchmark's own network namespace.

use std::{
    fmt::Write as _,
    fs,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Resource, Signal, getrlimit, kill_process};
use tempfile::TempDir;

use crate::{steering::Proxy, worker::OWN_PORT};

/// Where Debian has it.
const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// How long a proxy may take until it listens.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running proxy. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Peer {
    process: Child,
    address: SocketAddr,
    _folder: TempDir,
}

impl Peer {
    /// Starts a proxy in the thread's network namespace, before `workers` workers that listen on ports of their own.
    ///
    /// Both use every CPU, and give a connection to the worker with the fewest, which is their nearest to what the
    /// policies do. Neither writes a log.
    pub(crate) fn start(proxy: Proxy, workers: u16) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("reuseport-lb-bench-").tempdir().context("a folder")?;
        let (program, port, text) = match proxy {
            Proxy::Haproxy => ("haproxy", 18_081, haproxy(18_081, workers)),
            Proxy::Nginx => ("nginx", 18_082, nginx(18_082, workers, folder.path())),
        };
        let file = folder.path().join("configuration");
        fs::write(&file, text).context("cannot write a configuration")?;
        let mut command = Command::new(find(program)?);
        match proxy {
            Proxy::Haproxy => command.arg("-q").arg("-db").arg("-f").arg(&file),
            Proxy::Nginx => command.arg("-p").arg(folder.path()).arg("-c").arg(&file).arg("-e").arg("stderr"),
        };
        let process =
            command.stdin(Stdio::null()).spawn().with_context(|| format!("cannot start {program}"))?;
        let mut peer = Self { process, address: (Ipv4Addr::LOCALHOST, port).into(), _folder: folder };
        peer.wait().with_context(|| format!("{program} does not listen"))?;
        Ok(peer)
    }

    /// The same where the program is installed; `cargo xtask bench` sees to that.
    pub(crate) fn start_if_installed(proxy: Proxy, workers: u16) -> Result<Option<Self>> {
        is_installed(proxy).then(|| Self::start(proxy, workers)).transpose()
    }

    /// Where it listens.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    fn wait(&mut self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while let Err(error) = TcpStream::connect(self.address) {
            ensure!(self.process.try_wait()?.is_none(), "it has ended");
            ensure!(Instant::now() < end, "{error}");
            std::thread::yield_now();
        }
        Ok(())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // nginx ends its workers on SIGTERM, and would leave them behind on SIGKILL.
        if let Some(pid) = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        drop(self.process.wait());
    }
}

/// How many connections a proxy of one process can have open: two descriptors each, and some for itself.
pub(crate) fn room() -> u64 {
    getrlimit(Resource::Nofile).current.map_or(u64::MAX, |files| files.saturating_sub(500) / 2).min(40_000)
}

fn haproxy(port: u16, workers: u16) -> String {
    let room = room();
    let mut text = format!(
        "global\n    maxconn {room}\n\
         defaults\n    mode tcp\n    timeout connect 10s\n    timeout client 60s\n    timeout server 60s\n\
         listen group\n    bind 127.0.0.1:{port} backlog 4096\n    balance leastconn\n"
    );
    for id in 0..workers {
        // Writing to a string does not fail.
        let _ = writeln!(text, "    server w{id} 127.0.0.1:{}", OWN_PORT + id);
    }
    text
}

fn nginx(port: u16, workers: u16, folder: &Path) -> String {
    let folder = folder.display();
    let mut text = format!(
        "load_module {STREAM_MODULE};\n\
         daemon off;\nworker_processes auto;\npid {folder}/pid;\nerror_log stderr crit;\n\
         events {{ worker_connections 32768; }}\n\
         stream {{\n  upstream group {{\n    least_conn;\n    zone group 256k;\n"
    );
    for id in 0..workers {
        let _ = writeln!(text, "    server 127.0.0.1:{};", OWN_PORT + id);
    }
    let _ = write!(
        text,
        "  }}\n  server {{\n    listen 127.0.0.1:{port} backlog=4096;\n    proxy_pass group;\n  }}\n}}\n"
    );
    text
}

/// Whether a proxy is there to compare with.
pub(crate) fn is_installed(proxy: Proxy) -> bool {
    match proxy {
        Proxy::Haproxy => find("haproxy").is_ok(),
        Proxy::Nginx => find("nginx").is_ok() && Path::new(STREAM_MODULE).exists(),
    }
}

fn find(program: &str) -> Result<PathBuf> {
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"]
        .iter()
        .map(|folder| PathBuf::from(folder).join(program))
        .find(|path| path.is_file())
        .with_context(|| format!("{program} is not installed; `cargo xtask bench` installs it on Debian"))
}
