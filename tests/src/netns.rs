//! Network namespaces: one for each test, and another one for each further host.

use std::{
    fs::{self, File},
    net::Ipv4Addr,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    process::Command,
    sync::Arc,
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, setns, unshare};
use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    process::{Resource, Rlimit, Signal, getrlimit, setrlimit},
};

use crate::process::{self, Process};

/// When a test is given up, so that one that hangs fails instead of holding up all others.
const TEST_LIMIT: Duration = Duration::from_secs(180);

/// Runs `body` in a fresh network namespace, on a thread and a runtime of its own.
///
/// `lo` is up in the namespace. What `body` starts there is ended with it.
///
/// # Panics
/// When `body` does, when it takes longer than three minutes, and when the namespace cannot be made, for which
/// `CAP_SYS_ADMIN` is needed.
pub fn in_netns(body: impl AsyncFnOnce(Arc<Netns>) + Send + 'static) {
    in_netns_for(TEST_LIMIT, body);
}

/// The same for a test that may take as long as `limit`.
///
/// # Panics
/// As [`in_netns`], but for the three minutes.
pub fn in_netns_for(limit: Duration, body: impl AsyncFnOnce(Arc<Netns>) + Send + 'static) {
    raise_file_limit();
    let name = thread::current().name().unwrap_or("test").to_owned();
    let run = move || {
        let netns = Arc::new(Netns::enter_new());
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime")
            .block_on(async { tokio::time::timeout(limit, body(netns)).await })
            .unwrap_or_else(|_| panic!("the test is not done after {limit:?}"));
    };
    let thread = thread::Builder::new().name(name).spawn(run).expect("a thread");
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A network namespace. It lasts as long as this handle, and ends with all that runs in it.
#[derive(Debug)]
pub struct Netns {
    file: File,
    inode: u64,
}

impl Netns {
    /// Makes a namespace and moves the calling thread into it for good.
    fn enter_new() -> Self {
        unshare(CloneFlags::CLONE_NEWNET).unwrap_or_else(|error| {
            panic!("no network namespace ({error}): run the tests as root, `cargo xtask test`")
        });
        let netns = Self::current();
        ip("link set lo up");
        netns
    }

    /// Makes a further namespace; the calling thread stays where it is.
    pub fn new() -> Self {
        let _back = Back::here();
        Self::enter_new()
    }

    /// Joins this namespace, which must be the caller's own, to a new host: client number `n`. Returns the host and this
    /// namespace's address on the way to it.
    pub fn join_client(&self, n: u8) -> (Arc<Self>, Ipv4Addr) {
        let client = Arc::new(Self::new());
        let there = format!("/proc/{}/fd/{}", std::process::id(), client.file.as_raw_fd());
        let here = Ipv4Addr::new(10, 78, n, 1);
        self.within(|| {
            ip(&format!("link add client{n} type veth peer name server netns {there}"));
            ip(&format!("addr add {here}/24 dev client{n}"));
            ip(&format!("link set client{n} up"));
        });
        client.within(|| {
            ip(&format!("addr add 10.78.{n}.2/24 dev server"));
            ip("link set server up");
        });
        (client, here)
    }

    fn current() -> Self {
        let file = File::open("/proc/thread-self/ns/net").expect("the thread's network namespace");
        let inode = file.metadata().expect("the namespace's inode").ino();
        Self { file, inode }
    }

    /// Runs `f` inside this namespace. Sockets and processes made by `f` stay in it.
    ///
    /// Not for anything asynchronous: it would be elsewhere after its first pause.
    pub fn within<T>(&self, f: impl FnOnce() -> T) -> T {
        let _back = Back::here();
        setns(&self.file, CloneFlags::CLONE_NEWNET).expect("setns");
        f()
    }

    /// Sets one of this namespace's own parameters: `net.ipv4.tcp_retries2` and the like.
    pub fn sysctl(&self, name: &str, value: &str) {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        self.within(|| fs::write(&path, value)).unwrap_or_else(|error| panic!("{path}: {error}"));
    }

    /// Lets each CPU hand the packets that a device receives to all CPUs, by an interrupt (receive packet steering).
    pub fn steer_packets_to_all_cpus(&self, device: &str) {
        let cpus = thread::available_parallelism().expect("the number of CPUs").get();
        let mask = format!("{:x}", (1_u64 << cpus.min(63)) - 1);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let write = || {
            // sysfs shows the devices of the namespace in which it was mounted, so it needs a mount of its own.
            unshare(CloneFlags::CLONE_NEWNS)?;
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
            self.within(|| mount("sysfs", folder.path(), "sysfs", MountFlags::empty(), None))?;
            fs::write(folder.path().join(format!("class/net/{device}/queues/rx-0/rps_cpus")), mask)
        };
        // The thread's file system is its own from then on, so it must be one that ends.
        let written = thread::scope(|scope| scope.spawn(write).join().expect("no panic"));
        written
            .unwrap_or_else(|error: std::io::Error| panic!("receive packet steering for {device}: {error}"));
    }

    /// Makes every address of an IPv6 prefix this namespace's own, so that clients may bind to them.
    pub fn own_prefix(&self, prefix: &str) {
        self.sysctl("net.ipv6.ip_nonlocal_bind", "1");
        self.within(|| ip(&format!("-6 route add local {prefix} dev lo")));
    }

    /// The processes in this namespace. The test itself is not one of them: only some of its threads are here.
    pub fn processes(&self) -> Vec<u32> {
        let me = std::process::id();
        process::all()
            .filter(|pid| *pid != me)
            .filter(|pid| fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|ns| ns.ino() == self.inode))
            .collect()
    }
}

impl Default for Netns {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        for process in self.processes().into_iter().filter_map(Process::find) {
            process.signal(Signal::KILL);
            process.ends_within(crate::PATIENCE);
        }
    }
}

/// Brings a thread back to the namespace that it is in now.
struct Back(File);

impl Back {
    fn here() -> Self {
        Self(File::open("/proc/thread-self/ns/net").expect("the thread's network namespace"))
    }
}

impl Drop for Back {
    fn drop(&mut self) {
        setns(&self.0, CloneFlags::CLONE_NEWNET).expect("back to the thread's own network namespace");
    }
}

/// Another host: a namespace at the far end of a veth pair.
#[derive(Debug)]
pub struct Neighbour {
    /// The other host's namespace.
    pub netns: Arc<Netns>,
}

impl Neighbour {
    /// This host's IPv4 address on the link.
    pub const HERE_V4: &str = "10.77.0.1";
    /// The other host's IPv4 address.
    pub const THERE_V4: &str = "10.77.0.2";
    /// This host's IPv6 address on the link.
    pub const HERE_V6: &str = "fd00:77::1";
    /// The other host's IPv6 address.
    pub const THERE_V6: &str = "fd00:77::2";

    const HERE_MAC: &str = "02:00:00:00:77:01";
    const THERE_MAC: &str = "02:00:00:00:77:02";
    /// Nobody's. Frames to it arrive at the other host's device and are thrown away there.
    const NOBODY_MAC: &str = "02:00:00:00:77:ff";

    /// Joins `here`, the caller's own namespace, to a new host.
    pub fn join(here: &Netns) -> Self {
        let netns = Arc::new(Netns::new());
        let there = format!("/proc/{}/fd/{}", std::process::id(), netns.file.as_raw_fd());
        here.within(|| {
            ip(&format!(
                "link add veth0 address {} type veth peer name veth0 netns {there} address {}",
                Self::HERE_MAC,
                Self::THERE_MAC
            ));
            ip(&format!("addr add {}/24 dev veth0", Self::HERE_V4));
            ip(&format!("addr add {}/64 dev veth0 nodad", Self::HERE_V6));
            ip("link set veth0 up");
        });
        netns.within(|| {
            ip(&format!("addr add {}/24 dev veth0", Self::THERE_V4));
            ip(&format!("addr add {}/64 dev veth0 nodad", Self::THERE_V6));
            ip("link set veth0 up");
            ip(&format!("neigh replace {} lladdr {} dev veth0 nud permanent", Self::HERE_V4, Self::HERE_MAC));
            ip(&format!("neigh replace {} lladdr {} dev veth0 nud permanent", Self::HERE_V6, Self::HERE_MAC));
        });
        let neighbour = Self { netns };
        neighbour.answers(here);
        neighbour
    }

    /// From now on nothing that `here` sends reaches the other host, while what the other host sends still arrives.
    ///
    /// A handshake then stays half done: the SYN arrives and makes a request, the SYN-ACK is lost.
    pub fn deaf(&self, here: &Netns) {
        Self::address_frames_to(here, Self::NOBODY_MAC);
    }

    /// What `here` sends reaches the other host (again).
    pub fn answers(&self, here: &Netns) {
        Self::address_frames_to(here, Self::THERE_MAC);
    }

    fn address_frames_to(here: &Netns, mac: &str) {
        here.within(|| {
            for address in [Self::THERE_V4, Self::THERE_V6] {
                ip(&format!("neigh replace {address} lladdr {mac} dev veth0 nud permanent"));
            }
        });
    }
}

/// Runs `ip` with these arguments, in the thread's namespace.
fn ip(args: &str) {
    let output = Command::new("ip")
        .args(args.split_whitespace())
        .output()
        .expect("the command `ip` (Debian: iproute2)");
    assert!(
        output.status.success(),
        "`ip {args}`: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
}

/// A thousand connections in a test need more open files than the usual limit of 1,024.
fn raise_file_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("the limit of open files");
}
