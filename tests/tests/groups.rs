//! Several groups in one daemon, as a configuration file describes them.

use std::sync::Arc;

use reuseport_lb::{group::WorkerState, policy::Policy};
use reuseport_lb_tests::{Client, Daemon, GroupExt, Launch, Netns, connections, in_netns, status::tally};

const TWO_GROUPS: &str = r#"
[groups.web]
listen = "127.0.0.1:8080"
workers = 3
policy = "round-robin"
stall-after = 0

[groups.api]
listen = "127.0.0.1:8081"
workers = 2
policy = "hash"
hash-on = "source"
stall-after = 0
"#;

fn client(port: u16) -> Client {
    Client::of(([127, 0, 0, 1], port).into())
}

async fn two_groups(netns: &Arc<Netns>) -> Daemon {
    Launch::config(TWO_GROUPS).start(netns).await
}

#[test]
fn each_group_has_its_own_policy_workers_and_counters() {
    in_netns(async |netns| {
        let daemon = two_groups(&netns).await;
        let (web, api) = (client(8080), client(8081));
        let (at_web, at_api) = tokio::join!(connections(&web, 600, 4), connections(&api, 400, 4));
        at_web.assert_nothing_failed();
        at_api.assert_nothing_failed();

        // Round robin spreads; all connections of one source hash to one worker.
        let processors = std::thread::available_parallelism().expect("the number of processors").get() as u64;
        for count in tally(3, at_web.answers()) {
            assert!(count.abs_diff(200) <= processors, "{count} is not a third of 600");
        }
        let mut of_api = tally(2, at_api.answers());
        of_api.sort_unstable();
        assert_eq!(of_api, [0, 400]);

        let (web, api) = (daemon.group_named("web").await, daemon.group_named("api").await);
        assert_eq!((web.policy.name, api.policy.name), (Policy::RoundRobin, Policy::Hash));
        assert_eq!((web.outcomes.selected, web.runs()), (600, 600));
        assert_eq!((api.outcomes.selected, api.runs()), (400, 400));
        daemon.stop().await;
    });
}

#[test]
fn a_command_reaches_only_the_group_that_it_names() {
    in_netns(async |netns| {
        let daemon = two_groups(&netns).await;
        let web_before = daemon.group_named("web").await;
        daemon.tell(&["policy", "least-loaded", "--group", "api"]).await;
        daemon.tell(&["weight", "1", "7", "--group", "api"]).await;
        daemon.tell(&["drain", "0", "--group", "api", "--wait"]).await;
        assert_eq!(daemon.group_named("web").await, web_before);
        let api = daemon.group_named("api").await;
        assert_eq!((api.policy.name, api.worker(1).weight), (Policy::LeastLoaded, 7));
        assert_eq!(api.worker(0).state, WorkerState::Drained);

        let account = connections(&client(8081), 50, 4).await;
        account.assert_nothing_failed();
        assert_eq!(tally(2, account.answers()), [0, 50]);
        daemon.tell(&["undrain", "0", "--group", "api"]).await;

        let table = daemon.tell(&["status"]).await.stdout;
        assert!(table.contains("api · 127.0.0.1:8081") && table.contains("web · 127.0.0.1:8080"), "{table}");
        let table = daemon.tell(&["status", "--group", "api"]).await.stdout;
        assert!(!table.contains("web"), "{table}");
        daemon.stop().await;
    });
}

#[test]
fn without_a_name_a_command_is_refused_and_the_names_are_told() {
    in_netns(async |netns| {
        let daemon = two_groups(&netns).await;
        let before = daemon.status().await.groups;
        for command in ["policy random", "drain 0", "undrain 0", "weight 0 2"] {
            let words: Vec<_> = command.split(' ').collect();
            let refused = daemon.cli(&words).await;
            assert_eq!(refused.status.code(), Some(1), "{refused}");
            assert!(refused.stderr.contains("api, web"), "{refused}");
            let nowhere = daemon.cli(&[&words[..], &["--group", "nobody"]].concat()).await;
            assert_eq!(nowhere.status.code(), Some(1), "{nowhere}");
            assert!(nowhere.stderr.contains("api, web"), "{nowhere}");
        }
        let response = daemon.control_request("PUT", "/v1/groups/-/policy", br#"{"name":"random"}"#).await;
        assert_eq!(response.expect("an answer").status, 400);
        assert_eq!(daemon.status().await.groups, before);
        daemon.stop().await;
    });
}

/// The second of two groups cannot listen: the first one goes again, before a worker of it has run.
#[test]
fn all_groups_start_or_none() {
    in_netns(async |netns| {
        let foreign = std::net::TcpListener::bind("127.0.0.1:8081").expect("a free port");
        let failed = Launch::config(TWO_GROUPS.replace("api", "xapi").as_str()).fail(&netns).await;
        assert_eq!(failed.status.code(), Some(1), "{failed}");
        assert!(failed.stderr.contains("group xapi") && failed.stderr.contains("127.0.0.1:8081"), "{failed}");
        std::net::TcpListener::bind("127.0.0.1:8080").expect("the first group has gone");
        drop(foreign);
    });
}

#[test]
fn a_file_with_a_mistake_starts_nothing() {
    in_netns(async |netns| {
        let failed = Launch::config("[groups.web]\nwokers = 1\n").fail(&netns).await;
        assert_eq!(failed.status.code(), Some(1), "{failed}");
        assert!(
            failed.stderr.contains("config.toml:2:1: ") && failed.stderr.contains("'workers'"),
            "{failed}"
        );
    });
}
