//! The daemon becomes another version of itself: no connection notices, no worker is restarted, nothing is forgotten.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use reuseport_lb::{
    control::{GroupStatus, Status, client},
    group::WorkerId,
    policy::Policy,
};
use reuseport_lb_tests::{
    Client, Daemon, GroupExt, Launch, Load, Netns, Server, connections, eventually, hold, in_netns,
    process::kill_and_wait,
    server::perl,
    version::{NEXT, next_version, wrapped},
};
use tokio::task::JoinSet;

const LOAD: usize = 8;
/// How many ask at the same time.
const ASKING: u16 = 16;
const THIS: &str = env!("CARGO_PKG_VERSION");

fn pids(group: &GroupStatus) -> BTreeMap<u16, Option<u32>> {
    group.workers.iter().map(|worker| (worker.id.0, worker.pid)).collect()
}

fn all_pids(status: &Status) -> Vec<BTreeMap<u16, Option<u32>>> {
    status.groups.iter().map(pids).collect()
}

/// What the daemon has open.
fn descriptors(daemon: &Daemon) -> Vec<String> {
    let folder = format!("/proc/{}/fd", daemon.process().pid);
    let entries = fs::read_dir(folder).expect("its descriptors").flatten();
    let targets = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
    // Numbers of sockets and pipes are new each time.
    let kind =
        |target: PathBuf| target.display().to_string().split(":[").next().unwrap_or_default().to_owned();
    let mut kinds: Vec<String> = targets.map(kind).collect();
    kinds.sort_unstable();
    kinds
}

/// Writes a program into the daemon's folder.
fn program(daemon: &Daemon, name: &str, write: impl FnOnce(&std::path::Path)) -> String {
    let path = daemon.control().with_file_name(name);
    write(&path);
    path.display().to_string()
}

#[test]
fn three_upgrades_under_load() {
    in_netns(async |netns| {
        for policy in ["least-loaded", "consistent-hash"] {
            let daemon = Launch::policy(policy).start(&netns).await;
            let before = daemon.status().await;
            let held = hold(&daemon.client(), 8).await;
            let held_by = daemon.group().await.active();
            let load = Load::start(&daemon.client(), LOAD);
            for generation in 2..5 {
                load.more(200).await;
                let counted = daemon.group().await.runs();
                let told = daemon.tell(&["upgrade"]).await.stdout;
                print!("{policy}: {told}");
                assert!(told.starts_with(&format!("upgraded {THIS} -> {THIS} in ")), "{told}");
                assert!(told.ends_with("; 4 workers kept; maps kept\n"), "{told}");
                let status = daemon.status().await;
                assert_eq!((status.pid, status.generation), (before.pid, generation));
                let group = &status.groups[0];
                assert_eq!(pids(group), pids(&before.groups[0]), "no worker was restarted\n{daemon}");
                assert!(group.all_active(), "{group:?}\n{daemon}");
                assert!(group.runs() >= counted, "the counters went on: {counted} -> {}", group.runs());
                assert_eq!(group.outcomes.fallback, 0, "the kernel never had to pick\n{daemon}");
                load.more(200).await;
            }
            let account = load.stop().await;
            account.assert_nothing_failed();
            let total = account.total() + held.len() as u64;
            let group =
                daemon.wait("only those that are held are open", |group| group.active() == held_by).await;
            assert_eq!(group.outcomes.selected, total, "every connection was counted once");
            assert_eq!(group.selected().iter().sum::<u64>(), total);
            for (mut connection, worker) in held {
                assert_eq!(connection.ask("/").await.expect("an answer").worker, worker);
            }
            assert_eq!(daemon.idle().await.active(), [0; 4]);
            daemon.stop().await;
        }
    });
}

#[test]
fn nothing_grows_by_upgrades() {
    in_netns(async |netns| {
        let metrics = "127.0.0.1:9464";
        let daemon = Launch::policy("hash").arg("--metrics").arg(metrics).start(&netns).await;
        daemon.tell(&["upgrade"]).await;
        daemon.has_loaded_all().await;
        // The connection that told it to may be among them still, so there may be fewer later, and never more.
        let first = descriptors(&daemon);
        for _ in 0..4 {
            daemon.tell(&["upgrade"]).await;
            eventually("it has no more descriptors than before", async || {
                let now = descriptors(&daemon);
                if now.len() <= first.len() { Ok(()) } else { Err(format!("{first:?}\nthen {now:?}")) }
            })
            .await;
        }
        assert_eq!(daemon.group().await.workers.len(), 4);
        let environment = |pid: u32| fs::read(format!("/proc/{pid}/environ")).expect("its environment");
        daemon.tell(&["restart", "1"]).await;
        let worker = daemon.group().await.worker(1).pid.expect("a process");
        let told = String::from_utf8_lossy(&environment(worker)).into_owned();
        assert!(!told.contains("HANDED_OVER"), "{told}");
        let scraped = Client::of(metrics.parse().expect("an address")).connect().await;
        scraped.expect("metrics are served");
        daemon.stop().await;
    });
}

/// Another program with another map, and then one with maps of another layout, of which nothing but the sockets fits.
#[test]
fn maps_that_do_not_fit_are_replaced_without_a_lost_connection() {
    in_netns(async |netns| {
        let daemon = Launch::policy("consistent-hash").start(&netns).await;
        let next = program(&daemon, "next", next_version);
        let edit =
            format!("sed -i 's/\"layout\":[0-9]*/\"layout\":1000/' '{}'", daemon.state_file().display());
        let relaid = program(&daemon, "relaid", |path| wrapped(path, &edit));
        let before = daemon.group().await;
        let held = hold(&daemon.client(), 4).await;
        let load = Load::start(&daemon.client(), LOAD);
        load.more(100).await;
        let told = daemon.tell(&["upgrade", "--binary", &next]).await.stdout;
        assert!(told.starts_with(&format!("upgraded {THIS} -> {NEXT} in ")), "{told}");
        assert!(told.ends_with("; 4 workers kept; maps replaced: MOVED\n"), "{told}");
        assert_eq!(daemon.status().await.version, NEXT);
        let counted = daemon.group().await.runs();
        assert!(counted >= 100, "the other maps are kept");
        load.more(200).await;

        let told = daemon.tell(&["upgrade", "--binary", &relaid]).await.stdout;
        assert!(told.starts_with(&format!("upgraded {NEXT} -> {THIS} in ")), "{told}");
        assert!(told.contains("OUTCOMES") && told.contains("TABLES") && !told.contains("SOCKETS"), "{told}");
        assert_eq!(pids(&daemon.group().await), pids(&before), "no worker was restarted");
        load.more(200).await;
        load.stop().await.assert_nothing_failed();
        for (mut connection, worker) in held {
            assert_eq!(connection.ask("/").await.expect("an answer").worker, worker);
        }
        let group = daemon.idle().await;
        // But for what was on its way when they took over.
        assert!(group.outcomes.selected >= 200 - LOAD as u64, "the new programs pick: {group:?}");
        assert_eq!(group.outcomes.fallback, 0);
        daemon.stop().await;
    });
}

#[test]
fn what_was_wished_goes_on() {
    in_netns(async |netns| {
        let daemon = Launch::policy("hash").start(&netns).await;
        daemon.tell(&["policy", "least-loaded"]).await;
        daemon.tell(&["weight", "1", "9"]).await;
        daemon.tell(&["drain", "2", "--wait"]).await;
        daemon.tell(&["stop", "3"]).await;
        let before = daemon.group().await;
        daemon.tell(&["upgrade"]).await;
        let seen = |group: &GroupStatus| {
            let workers = group.workers.iter();
            workers.map(|worker| (worker.pid, worker.state, worker.weight)).collect::<Vec<_>>()
        };
        let group = daemon.wait("all are what they were", |group| seen(group) == seen(&before)).await;
        assert_eq!(group.policy.name, Policy::LeastLoaded);
        daemon.tell(&["undrain", "2"]).await;
        daemon.tell(&["start", "3"]).await;
        daemon.wait("all are active", GroupExt::all_active).await;
        daemon.stop().await;
    });
}

/// The daemon is the parent of its workers still: it learns how they end, and leaves no zombies.
#[test]
fn workers_are_children_afterwards() {
    in_netns(async |netns| {
        let daemon = Launch::policy("hash").start(&netns).await;
        daemon.tell(&["upgrade"]).await;
        let victim = daemon.group().await.worker(0).pid.expect("a process");
        kill_and_wait(victim);
        daemon.wait("worker 0 is back", |group| group.worker(0).restarts == 1 && group.all_active()).await;
        let log = daemon.written("stderr");
        assert!(log.contains("worker process killed by SIGKILL"), "{log}");
        assert!(!log.contains("is not known"), "{log}");
        assert!(!fs::exists(format!("/proc/{victim}")).expect("/proc"), "a zombie is left");
        connections(&daemon.client(), 50, 4).await.assert_nothing_failed();
        daemon.stop().await;
    });
}

#[test]
fn a_rolling_restart_goes_on_over_an_upgrade() {
    in_netns(async |netns| {
        let daemon = Launch::policy("round-robin").start(&netns).await;
        let before = daemon.group().await;
        let load = Load::start(&daemon.client(), LOAD);
        load.more(50).await;
        let upgrade = async {
            daemon.wait("it has begun", |group| group.operation.is_some()).await;
            daemon.tell(&["upgrade"]).await
        };
        let (restarted, upgraded) = tokio::join!(daemon.tell(&["restart"]), upgrade);
        println!("{}{}", restarted.stdout, upgraded.stdout);
        let group = daemon.wait("all are active", GroupExt::all_active).await;
        for worker in &group.workers {
            assert_ne!(worker.pid, before.worker(worker.id.0).pid, "worker {} is another one", worker.id);
        }
        load.more(100).await;
        load.stop().await.assert_nothing_failed();
        daemon.stop().await;
    });
}

/// Every line comes, and comes once.
#[test]
fn what_workers_write_meanwhile_is_not_lost() {
    in_netns(async |netns| {
        let count = "i=0; while :; do echo line $i; i=$((i+1)); sleep 0.002; done";
        let launch = Launch::policy("hash").workers(1).worker_command(&["sh", "-c", count]);
        let daemon = launch.start(&netns).await;
        let lines = || -> Vec<u64> {
            let written = daemon.written("stdout");
            let numbers = written.lines().filter_map(|line| line.strip_prefix("[default/0] line "));
            numbers.map(|number| number.parse().expect("a number")).collect()
        };
        for _ in 0..2 {
            let before = lines().len();
            daemon.tell(&["upgrade"]).await;
            eventually("more is written", async || (lines().len() > before + 50).then_some(()).ok_or("wait"))
                .await;
        }
        let written = lines();
        assert!(written.iter().copied().eq(0..written.len() as u64), "{written:?}");
        daemon.stop().await;
    });
}

/// Whoever asks for something while one daemon becomes the next is answered, by the one or the other.
#[test]
fn what_is_asked_meanwhile_is_done() {
    in_netns(async |netns| {
        let daemon = Launch::policy("round-robin").workers(ASKING).start(&netns).await;
        let client = client::Client::new(daemon.control());
        let generation = daemon.status().await.generation;
        let is_over = Arc::new(AtomicBool::new(false));
        let mut askers = JoinSet::new();
        for worker in 0..ASKING {
            let (client, is_over) = (client.clone(), Arc::clone(&is_over));
            askers.spawn(async move {
                let mut weight = 0;
                while !is_over.load(Ordering::Relaxed) {
                    weight = 1 + weight % 256;
                    let done = client.set_weight(None, WorkerId(worker), weight).await;
                    assert_eq!(done.expect("an answer").weight, weight, "worker {worker}");
                }
                (worker, weight)
            });
        }
        for _ in 0..5 {
            daemon.tell(&["upgrade"]).await;
        }
        is_over.store(true, Ordering::Relaxed);
        let last: BTreeMap<u16, u16> = askers.join_all().await.into_iter().collect();
        let status = daemon.status().await;
        assert_eq!(status.generation, generation + 5);
        let workers = status.groups[0].workers.iter();
        assert_eq!(workers.map(|worker| (worker.id.0, worker.weight)).collect::<BTreeMap<_, _>>(), last);
        daemon.stop().await;
    });
}

/// A group in a configuration file, with further keys.
fn group(name: &str, port: u16, workers: u16, further: &str) -> String {
    format!("[groups.{name}]\nlisten = {port}\nworkers = {workers}\nstall-after = 0\n{further}\n")
}

#[test]
fn all_groups_go_on_those_in_other_namespaces_too() {
    in_netns(async |netns| {
        let there = Arc::new(Netns::new());
        let anybody = there.within(|| Server::spawn(["sleep", "1000"]));
        let netns_key = format!("netns = \"/proc/{}/ns/net\"", anybody.pid());
        let config = [
            group("web", 8080, 3, ""),
            group("api", 8081, 2, "policy = \"hash\""),
            group("there", 8082, 2, &netns_key),
        ]
        .concat();
        let daemon = Launch::config(&config).start(&netns).await;
        let client = |port: u16| Client::of(([127, 0, 0, 1], port).into());
        let clients = [client(8080), client(8081), client(8082).inside(&there)];
        let before = daemon.status().await;
        let loads: Vec<Load> = clients.iter().map(|client| Load::start(client, 2)).collect();
        for load in &loads {
            load.more(50).await;
        }
        // What the file says by now holds from the upgrade on.
        daemon.configure(&config.replace("\"hash\"", "\"random\""));
        let told = daemon.tell(&["upgrade", "--json"]).await.stdout;
        let told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
        assert_eq!((&told["workers"], &told["maps_replaced"]), (&7.into(), &serde_json::json!([])), "{told}");
        let after = daemon.status().await;
        assert_eq!(all_pids(&after), all_pids(&before), "{daemon}");
        assert_eq!(daemon.group_named("api").await.policy.name, Policy::Random);
        for load in loads {
            load.more(50).await;
            load.stop().await.assert_nothing_failed();
        }
        for group in daemon.status().await.groups {
            assert_eq!(group.outcomes.fallback, 0, "{group:?}");
            assert!(group.outcomes.selected >= 100, "{group:?}");
        }
        daemon.stop().await;
    });
}

#[test]
fn adopted_servers_and_those_that_bind_for_themselves_go_on() {
    in_netns(async |netns| {
        let address = "127.0.0.1:8080";
        let mut servers = Vec::new();
        for _ in 0..3 {
            servers.push(Server::perl(address).await);
        }
        upgraded_under_load(Launch::adopt("round-robin").start(&netns).await).await.stop().await;
        for server in servers {
            server.kill().await;
        }
        let line = perl(address);
        let command: Vec<&str> = line.iter().map(String::as_str).collect();
        let launch = Launch::policy("round-robin").workers(3).arg("--self-bind").worker_command(&command);
        let daemon = upgraded_under_load(launch.start(&netns).await).await;
        kill_and_wait(daemon.group().await.worker(1).pid.expect("a process"));
        daemon.wait("it is back", |group| group.worker(1).restarts == 1 && group.all_active()).await;
        daemon.stop().await;
    });
}

async fn upgraded_under_load(daemon: Daemon) -> Daemon {
    daemon.tell(&["weight", "1", "5"]).await;
    let before = daemon.group().await;
    let load = Load::start(&daemon.client(), 4);
    load.more(100).await;
    daemon.tell(&["upgrade"]).await;
    let group = daemon.wait("all are active", GroupExt::all_active).await;
    assert_eq!(pids(&group), pids(&before), "each has its number still\n{daemon}");
    assert_eq!(group.worker(1).weight, 5);
    load.more(100).await;
    let account = load.stop().await;
    account.assert_nothing_failed();
    let group = daemon.idle().await;
    assert_eq!((group.outcomes.selected, group.outcomes.fallback), (account.total(), 0), "{group:?}");
    daemon
}
