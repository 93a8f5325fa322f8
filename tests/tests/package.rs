//! The Debian package: what is in it, and that it installs, runs under systemd, and goes without a trace.

use std::{collections::BTreeSet, fs, path::PathBuf, sync::Arc};

use reuseport_lb::{control::Status, policy::Policy};
use reuseport_lb_tests::{Client, GroupExt as _, Load, Machine, Netns, eventually, in_netns, run};

const UNIT: &str = "reuseport-lb";

/// The package that `cargo xtask test` has made.
fn package() -> PathBuf {
    let path = std::env::var_os("REUSEPORT_LB_DEB").map(PathBuf::from);
    path.expect("REUSEPORT_LB_DEB does not name the package: run `cargo xtask test`, which makes it")
}

/// A machine on which the package can be installed.
async fn machine(netns: &Arc<Netns>, drop_in: &str) -> Machine {
    let package = fs::read(package()).expect("the package");
    // What the package brings is used, and nothing of this machine's own units.
    let unit = fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../reuseport-lb/debian/reuseport-lb.service"));
    let unit = unit.expect("the unit");
    let files: [(&str, &[u8]); 3] = [
        ("package.deb", &package),
        ("units/reuseport-lb.service", &unit),
        ("units/reuseport-lb.service.d/test.conf", drop_in.as_bytes()),
    ];
    Machine::boot(netns, &files).await
}

/// There is no journal; what the daemon writes goes to a file.
const LOGGED: &str =
    "[Service]\nStandardOutput=append:/var/log/daemon\nStandardError=append:/var/log/daemon\n";

/// Starts the service, and tells what it wrote when that fails.
async fn start(machine: &Machine) {
    let started = machine.run(&["systemctl", "start", UNIT]).await;
    if !started.status.success() {
        let shown = machine.run(&["systemctl", "status", "--no-pager", "--full", UNIT]).await;
        let written = machine.run(&["cat", "/var/log/daemon"]).await;
        panic!("{started}{shown}{written}");
    }
}

fn client() -> Client {
    Client::of(([127, 0, 0, 1], 8080).into())
}

async fn status(machine: &Machine) -> Status {
    let json = machine.tell(&["reuseport-lb", "status", "--json"]).await;
    serde_json::from_str(&json).unwrap_or_else(|error| panic!("{error}: {json}"))
}

/// A property of the unit.
async fn property(machine: &Machine, name: &str) -> String {
    machine.tell(&["systemctl", "show", "--value", "--property", name, UNIT]).await
}

#[test]
fn it_has_all_that_belongs_to_it() {
    in_netns(async |_netns| {
        let package = package();
        let listed =
            run(&["dpkg-deb", "--contents", package.to_str().expect("a path")]).await.succeeded().stdout;
        let paths: BTreeSet<_> =
            listed.lines().filter_map(|line| line.split_whitespace().last()?.strip_prefix('.')).collect();
        let help =
            run(&[reuseport_lb_tests::binary().to_str().expect("a path"), "--help"]).await.succeeded().stdout;
        let commands =
            help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
        let names = commands.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
        let mut pages: Vec<_> = names
            .filter_map(|line| line.split_whitespace().next())
            .filter(|name| *name != "help")
            .map(|name| format!("/usr/share/man/man1/reuseport-lb-{name}.1"))
            .collect();
        assert!(pages.len() > 10, "{help}");
        pages.push("/usr/share/man/man1/reuseport-lb.1".into());
        for path in pages.iter().map(String::as_str).chain([
            "/usr/bin/reuseport-lb",
            "/usr/lib/systemd/system/reuseport-lb.service",
            "/etc/reuseport-lb/reuseport-lb.toml",
            "/usr/share/bash-completion/completions/reuseport-lb",
            "/usr/share/zsh/vendor-completions/_reuseport-lb",
            "/usr/share/fish/vendor_completions.d/reuseport-lb.fish",
            "/usr/share/doc/reuseport-lb/copyright",
            "/usr/share/doc/reuseport-lb/docs/OPERATIONS.md",
        ]) {
            assert!(paths.contains(path), "{path} is not in\n{listed}");
        }
    });
}

#[test]
fn it_installs_runs_and_goes() {
    in_netns(async |netns| {
        let machine = machine(&netns, LOGGED).await;
        // Images for containers forbid packages to start and stop services; this machine is like a real one.
        machine.tell(&["rm", "--force", "/usr/sbin/policy-rc.d"]).await;
        machine.tell(&["dpkg", "--install", "/input/package.deb"]).await;
        machine
            .tell(&[
                "cmp",
                "/usr/lib/systemd/system/reuseport-lb.service",
                "/input/units/reuseport-lb.service",
            ])
            .await;
        assert_eq!(property(&machine, "ActiveState").await, "inactive", "nothing starts by itself");
        machine.tell(&["reuseport-lb", "check", "/etc/reuseport-lb/reuseport-lb.toml"]).await;
        machine.tell(&["reuseport-lb", "doctor"]).await;
        machine.tell(&["bash", "-n", "/usr/share/bash-completion/completions/reuseport-lb"]).await;
        // Of 100; an unrestricted service has 96.
        let rated = ["systemd-analyze", "security", "--offline=yes", "--no-pager", "--threshold=50"];
        machine.tell(&[&rated[..], &["/usr/lib/systemd/system/reuseport-lb.service"]].concat()).await;

        // `start` returns when the daemon has said that it serves.
        start(&machine).await;
        client().ask("/").await.expect("an answer");
        let running = status(&machine).await;
        assert_eq!(property(&machine, "MainPID").await, running.pid.to_string());
        assert!(property(&machine, "StatusText").await.contains("workers active"));
        let selected: u64 = running
            .groups
            .iter()
            .flat_map(|group| &group.workers)
            .map(|worker| worker.connections.selected_total)
            .sum();
        assert!(selected > 0, "{running:#?}");

        let configure = async |from: &str, to: &str| {
            let edit = format!("s/{from}/{to}/");
            machine.tell(&["sed", "--in-place", &edit, "/etc/reuseport-lb/reuseport-lb.toml"]).await;
        };
        configure("consistent-hash", "least-loaded").await;
        machine.tell(&["systemctl", "reload", UNIT]).await;
        assert_eq!(status(&machine).await.groups[0].policy.name, Policy::LeastLoaded);
        configure("least-loaded", "fastest").await;
        let refused = machine.run(&["systemctl", "reload", UNIT]).await;
        assert!(!refused.status.success(), "{refused}");
        let unchanged = status(&machine).await;
        assert_eq!((unchanged.pid, unchanged.groups[0].policy.name), (running.pid, Policy::LeastLoaded));
        configure("fastest", "random").await;

        machine.tell(&["systemctl", "stop", UNIT]).await;
        assert_eq!(property(&machine, "Result").await, "success");
        client().ask("/").await.expect_err("nobody listens");
        let left = machine.tell(&["sh", "-c", "ps -e -o comm= | grep reuseport || true"]).await;
        assert_eq!(left, "", "processes are left");
        let pins =
            machine.tell(&["sh", "-c", "find /sys/fs/bpf/reuseport-lb -type f 2>/dev/null || true"]).await;
        assert_eq!(pins, "", "pins are left");

        start(&machine).await;
        machine.tell(&["dpkg", "--purge", UNIT]).await;
        assert_eq!(property(&machine, "ActiveState").await, "inactive", "removing it stops it");
        let left = machine
            .tell(&["sh", "-c", "ls -d /usr/bin/reuseport-lb /etc/reuseport-lb 2>/dev/null || true"])
            .await;
        assert_eq!(left, "", "files are left");
    });
}

/// The service goes on, with the same workers, and its daemon is the new version.
#[test]
fn upgrading_the_package_upgrades_the_running_service() {
    in_netns(async |netns| {
        let machine = machine(&netns, LOGGED).await;
        machine.tell(&["dpkg", "--install", "/input/package.deb"]).await;
        start(&machine).await;
        let before = status(&machine).await;
        let load = Load::start(&client(), 4);
        load.more(50).await;
        machine.tell(&["dpkg", "--unpack", "/input/package.deb"]).await;
        let told = machine.tell(&["dpkg", "--configure", UNIT]).await;
        assert!(told.contains("workers kept; maps kept"), "{told}");
        let after = status(&machine).await;
        assert_eq!((after.pid, after.generation), (before.pid, 2));
        assert_eq!(pids(&after), pids(&before), "the workers are the same");
        eventually("systemd sees it serve", async || {
            let state = property(&machine, "ActiveState").await;
            if state == "active" { Ok(()) } else { Err(state) }
        })
        .await;
        assert_eq!(property(&machine, "MainPID").await, before.pid.to_string());
        assert_eq!(property(&machine, "NRestarts").await, "0");
        load.more(50).await;
        load.stop().await.assert_nothing_failed();

        // A configuration that does not do leaves the daemon as it is, and the package is installed all the same.
        let config = "/etc/reuseport-lb/reuseport-lb.toml";
        machine.tell(&["sed", "--in-place", "s/consistent-hash/fastest/", config]).await;
        let told = machine.run(&["dpkg", "--install", "/input/package.deb"]).await.succeeded();
        assert!(
            told.stderr.contains("policy: one of") && told.stderr.contains("reuseport-lb upgrade"),
            "{told}"
        );
        assert_eq!(status(&machine).await.generation, 2);
        machine.tell(&["systemctl", "stop", UNIT]).await;
    });
}

/// A drop-in says where the control socket is, to the daemon and to whoever talks to it.
#[test]
fn a_control_socket_elsewhere_is_found_by_reload_and_upgrade() {
    in_netns(async |netns| {
        let drop_in = format!("{LOGGED}Environment=REUSEPORT_LB_CONTROL=/run/reuseport-lb/other.sock\n");
        let machine = machine(&netns, &drop_in).await;
        machine.tell(&["dpkg", "--install", "/input/package.deb"]).await;
        start(&machine).await;
        machine.tell(&["systemctl", "reload", UNIT]).await;
        machine.tell(&["dpkg", "--unpack", "/input/package.deb"]).await;
        let told = machine.tell(&["dpkg", "--configure", UNIT]).await;
        assert!(told.contains("workers kept; maps kept"), "{told}");
        machine.tell(&["systemctl", "stop", UNIT]).await;
    });
}

fn pids(status: &Status) -> Vec<u32> {
    let workers = status.groups.iter().flat_map(|group| &group.workers);
    workers.map(|worker| worker.pid.expect("it runs")).collect()
}

/// A hung daemon is seen within a second, and killed at once; with the unit's own times the test would take a minute.
const QUICK: &str = "WatchdogSec=1s\nWatchdogSignal=SIGKILL\n";

#[test]
fn systemd_replaces_a_daemon_that_hangs_and_the_workers_serve_meanwhile() {
    in_netns(async |netns| {
        let machine = machine(&netns, &[LOGGED, QUICK].concat()).await;
        machine.tell(&["dpkg", "--install", "/input/package.deb"]).await;
        start(&machine).await;
        // A worker that says READY=1 to a daemon that hangs is exchanged afterwards.
        let before = eventually("the workers are ready", async || {
            let status = status(&machine).await;
            if status.groups[0].all_active() { Ok(status) } else { Err(format!("{status:?}")) }
        })
        .await;
        let load = Load::start(&client(), 4);

        // Its workers go on; it feeds the watchdog no more.
        machine.tell(&["kill", "-STOP", &before.pid.to_string()]).await;
        eventually("another daemon serves", async || {
            let pid = property(&machine, "MainPID").await;
            let state = property(&machine, "ActiveState").await;
            let restarts = property(&machine, "NRestarts").await;
            let is_new = pid != "0" && pid != before.pid.to_string();
            if is_new && state == "active" { Ok(()) } else { Err(format!("{pid} {state} {restarts}")) }
        })
        .await;
        assert_eq!(property(&machine, "NRestarts").await, "1");
        load.more(200).await;
        load.stop().await.assert_nothing_failed();
        let after = status(&machine).await;
        let log = machine.tell(&["cat", "/var/log/daemon"]).await;
        assert_eq!(pids(&after), pids(&before), "the workers are the same\n{log}");
        machine.tell(&["systemctl", "stop", UNIT]).await;
        let left = machine.tell(&["sh", "-c", "ps -e -o comm= | grep reuseport || true"]).await;
        assert_eq!(left, "", "processes are left");
    });
}
