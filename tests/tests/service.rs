//! The daemon as a service: what it tells the manager that started it.

use std::{
    path::Path,
    sync::{Arc, Mutex},
};

use reuseport_lb::{group::WorkerState, policy::Policy};
use reuseport_lb_tests::{Daemon, GroupExt, Launch, Load, Netns, eventually, in_netns};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::{net::UnixDatagram, task::JoinSet};

/// The end of the notify socket that systemd has.
///
/// It is read all the time, as systemd does: few messages find room in it, and the daemon waits for room.
struct Manager {
    _folder: TempDir,
    path: String,
    told: Arc<Mutex<Vec<String>>>,
    _reader: JoinSet<()>,
}

impl Manager {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        let path = Path::display(&path).to_string();
        let told = Arc::<Mutex<Vec<String>>>::default();
        let heard = Arc::clone(&told);
        let mut reader = JoinSet::new();
        reader.spawn(async move {
            let mut datagram = [0; 4096];
            while let Ok(length) = socket.recv(&mut datagram).await {
                let text = String::from_utf8_lossy(&datagram[..length]);
                heard.lock().expect("no panic").extend(text.lines().map(str::to_owned));
            }
        });
        Self { _folder: folder, path, told, _reader: reader }
    }

    /// Starts a daemon with this manager, and these variables besides.
    fn launch(&self, launch: Launch, variables: &[&str]) -> Launch {
        let notify = format!("NOTIFY_SOCKET={}", self.path);
        launch.wrapper(&[&["env", notify.as_str()], variables].concat())
    }

    /// All lines so far.
    fn told(&self) -> Vec<String> {
        self.told.lock().expect("no panic").clone()
    }

    /// Waits until this was told, and gives the whole line.
    async fn wait(&self, what: &str) -> String {
        eventually(&format!("{what} was told"), async || {
            let told = self.told();
            told.iter().find(|line| line.starts_with(what)).cloned().ok_or_else(|| format!("told: {told:?}"))
        })
        .await
    }

    fn count(&self, what: &str) -> usize {
        self.told().iter().filter(|line| *line == what).count()
    }
}

async fn start(manager: &Manager, netns: &Arc<Netns>, variables: &[&str]) -> Daemon {
    let launch = manager.launch(Launch::policy("round-robin").workers(3), variables);
    let daemon = launch.spawn(netns);
    manager.wait("READY=1").await;
    daemon
}

#[test]
fn a_daemon_that_says_it_is_ready_serves() {
    in_netns(async |netns| {
        let manager = Manager::new();
        let daemon = start(&manager, &netns, &[]).await;
        // Not a moment later: the first connection after the word is served.
        daemon.client().ask("/").await.expect("an answer");
        assert!(daemon.group().await.workers.iter().any(|worker| worker.state == WorkerState::Active));

        manager.wait("STATUS=1 group, 3 of 3 workers active").await;
        daemon.tell(&["drain", "1"]).await;
        manager.wait("STATUS=1 group, 2 of 3 workers active").await;
        assert_eq!(manager.count("READY=1"), 1);
        assert_eq!(manager.count("STOPPING=1"), 0);
        assert_eq!(manager.count("WATCHDOG=1"), 0, "nobody asked for it");

        daemon.stop().await;
        manager.wait("STOPPING=1").await;
        // 30 seconds of grace, and some.
        let extended = manager.wait("EXTEND_TIMEOUT_USEC=").await;
        let micros: u64 = extended.split('=').next_back().and_then(|n| n.parse().ok()).expect("a number");
        assert!(micros > 30_000_000, "{extended}");
    });
}

#[test]
fn the_watchdog_hears_from_the_owner_under_load() {
    in_netns(async |netns| {
        let manager = Manager::new();
        let daemon = start(&manager, &netns, &["WATCHDOG_USEC=200000"]).await;
        let load = Load::start(&daemon.client(), 4);
        let heard = manager.count("WATCHDOG=1");
        eventually("the watchdog hears ten times more", async || {
            let now = manager.count("WATCHDOG=1");
            if now >= heard + 10 { Ok(()) } else { Err(format!("{now} times")) }
        })
        .await;
        load.stop().await.assert_nothing_failed();

        // Workers are told nothing of the daemon's manager, and tell it nothing.
        let worker = daemon.group().await.worker(0).pid.expect("it runs");
        let environment = std::fs::read(format!("/proc/{worker}/environ")).expect("its environment");
        let environment = String::from_utf8_lossy(&environment);
        assert!(!environment.contains(&manager.path), "{environment}");
        assert!(!environment.contains("WATCHDOG_USEC=200000"), "{environment}");
        daemon.stop().await;
    });
}

#[test]
fn a_manager_that_has_gone_does_no_harm() {
    in_netns(async |netns| {
        let manager = Manager::new();
        let daemon = start(&manager, &netns, &["WATCHDOG_USEC=100000"]).await;
        drop(manager);
        daemon.tell(&["drain", "2"]).await;
        daemon.client().ask("/").await.expect("an answer");
        daemon.stop().await;
    });
}

/// Systemd sees one process that reloads, and its watchdog goes on.
#[test]
fn an_upgrade_is_told_from_its_beginning_to_its_end() {
    in_netns(async |netns| {
        let manager = Manager::new();
        let daemon = start(&manager, &netns, &["WATCHDOG_USEC=1000000"]).await;
        manager.wait("STATUS=1 group, 3 of 3 workers active").await;
        daemon.tell(&["upgrade"]).await;
        eventually("the end of it is told", async || match manager.count("READY=1") {
            2 => Ok(()),
            count => Err(format!("{count} times ready")),
        })
        .await;
        assert_eq!(daemon.status().await.generation, 2);
        let told = manager.told();
        let at = |what: &str| told.iter().rposition(|line| line.starts_with(what)).expect(what);
        assert!(at("RELOADING=1") < at("READY=1"), "{told:?}");
        assert_eq!(manager.count("STOPPING=1"), 0);
        let heard = manager.count("WATCHDOG=1");
        eventually("the watchdog hears more", async || {
            (manager.count("WATCHDOG=1") > heard).then_some(()).ok_or("nothing new")
        })
        .await;

        let failed = daemon.cli(&["upgrade", "--binary", "/bin/true"]).await;
        failed.failed_with(&["no version of reuseport-lb"]);
        assert_eq!(manager.count("RELOADING=1"), 1, "nothing has begun");
        daemon.stop().await;
    });
}

#[test]
fn a_reload_is_told_from_its_beginning_to_its_end() {
    in_netns(async |netns| {
        let manager = Manager::new();
        let config = |policy: &str| {
            format!("[groups.web]\nlisten = \"127.0.0.1:8080\"\nworkers = 2\npolicy = \"{policy}\"\n")
        };
        let daemon = manager.launch(Launch::config(&config("hash")), &[]).spawn(&netns);
        manager.wait("READY=1").await;

        for (round, file, policy) in
            [(2, config("random"), Policy::Random), (3, "what is this?".to_owned(), Policy::Random)]
        {
            daemon.configure(&file);
            daemon.process().signal(Signal::HUP);
            eventually("the end of the reload is told", async || match manager.count("READY=1") {
                count if count == round => Ok(()),
                count => Err(format!("{count} times ready")),
            })
            .await;
            // Good or bad, it is over when the daemon says so.
            assert_eq!(daemon.group().await.policy.name, policy, "{file}");
            let told = manager.told();
            let at = |what: &str| told.iter().rposition(|line| line.starts_with(what)).expect(what);
            assert!(at("RELOADING=1") < at("READY=1"), "{told:?}");
            assert_eq!(at("MONOTONIC_USEC="), at("RELOADING=1") + 1, "in the same message: {told:?}");
        }
        daemon.stop().await;
    });
}
