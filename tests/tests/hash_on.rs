//! `--hash-on` with prefixes: the clients of a network are one client.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use reuseport_lb_tests::{Daemon, GroupExt, Launch, in_netns, workers_of};

const WORKERS: u16 = 8;
/// So many networks that it would be a wonder if they all met one worker: a chance of 8^-31.
const NETWORKS: u8 = 32;

/// The workers that the clients of each network meet.
async fn workers_of_networks(daemon: &Daemon, address: impl Fn(u8, u8) -> IpAddr) -> Vec<BTreeSet<u16>> {
    let mut networks = Vec::new();
    for network in 0..NETWORKS {
        let hosts = [1, 2, 77, 200, 254];
        let sources: Vec<SocketAddr> =
            hosts.iter().map(|host| (address(network, *host), 20_000 + u16::from(*host)).into()).collect();
        networks.push(workers_of(&daemon.client(), &sources).await.into_iter().collect());
    }
    networks
}

fn assert_networks_are_clients(networks: &[BTreeSet<u16>]) {
    assert!(networks.iter().all(|workers| workers.len() == 1), "a network has one worker each: {networks:?}");
    let all: BTreeSet<&BTreeSet<u16>> = networks.iter().collect();
    assert!(all.len() > 1, "the networks have not all the same one");
}

fn v4(network: u8, host: u8) -> IpAddr {
    Ipv4Addr::new(127, 80, network, host).into()
}

/// The networks differ in the last word of their /64, the hosts in the first and the last word behind it.
fn v6(network: u8, host: u8) -> IpAddr {
    Ipv6Addr::new(0xfd00, 0x77, 0, network.into(), u16::from(host) << 8, 0, 0, host.into()).into()
}

#[test]
fn ipv4_networks_are_clients() {
    in_netns(async |netns| {
        for policy in ["consistent-hash", "hash"] {
            let launch = Launch::policy(policy).workers(WORKERS);
            let daemon = launch.arg("--hash-on=source/24,/64").start(&netns).await;
            assert_networks_are_clients(&workers_of_networks(&daemon, v4).await);

            // One network for all of them; then each address for itself.
            daemon.tell(&["policy", policy, "--hash-on", "source/16"]).await;
            let all: BTreeSet<u16> = workers_of_networks(&daemon, v4).await.into_iter().flatten().collect();
            assert_eq!(all.len(), 1);
            daemon.tell(&["policy", policy, "--hash-on", "source"]).await;
            let apart = workers_of_networks(&daemon, v4).await;
            assert!(apart.iter().any(|workers| workers.len() > 1), "{apart:?}");
            let group = daemon.group().await;
            assert_eq!(group.outcomes.selected, group.runs(), "each by the program");
            daemon.stop().await;
        }
    });
}

#[test]
fn ipv6_networks_are_clients() {
    in_netns(async |netns| {
        netns.own_prefix("fd00:77::/32");
        let launch = Launch::policy("consistent-hash").listen("[::]:8080").workers(WORKERS);
        let daemon = launch.arg("--hash-on=source/24,/64").start(&netns).await;
        let v6_client = async |daemon: &Daemon| {
            let mut networks: Vec<BTreeSet<u16>> = Vec::new();
            for network in 0..NETWORKS {
                let mut workers = BTreeSet::new();
                for host in [1, 2, 77, 200, 254] {
                    let client = daemon.client_of("[::1]:8080").from((v6(network, host), 20_000).into());
                    workers.insert(client.worker().await);
                }
                networks.push(workers);
            }
            networks
        };
        assert_networks_are_clients(&v6_client(&daemon).await);

        // An IPv4 client of the same socket counts by its IPv4 network.
        let mut workers = BTreeSet::new();
        for host in [1, 2, 77, 200, 254] {
            let client = daemon.client_of("127.0.0.1:8080").from((v4(9, host), 20_000).into());
            workers.insert(client.worker().await);
        }
        assert_eq!(workers.len(), 1, "{workers:?}");

        daemon.tell(&["policy", "consistent-hash", "--hash-on", "source/24"]).await;
        let apart = v6_client(&daemon).await;
        assert!(apart.iter().any(|workers| workers.len() > 1), "without a prefix for IPv6: {apart:?}");
        daemon.stop().await;
    });
}

#[test]
fn what_is_hashed_is_told_as_it_was_said() {
    in_netns(async |netns| {
        let daemon = Launch::policy("hash").arg("--hash-on=source/24,/64").start(&netns).await;
        let json = daemon.tell(&["policy", "--json"]).await.stdout;
        let policy: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(policy, serde_json::json!({"name": "hash", "hash_on": "source/24,/64"}));
        // What is told may be said again.
        let path = "/v1/groups/-/policy";
        let answer = daemon.control_request("PUT", path, json.as_bytes()).await.expect("an answer");
        assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));

        for (wrong, why) in [
            ("source/33", "1 to 32"),
            ("source/0", "1 to 32"),
            ("source/24,/129", "1 to 128"),
            ("source/24,64", "source/24,/64"),
            ("client", "source/24,/64"),
        ] {
            daemon.cli(&["policy", "hash", "--hash-on", wrong]).await.failed_with(&[why]);
            let body = serde_json::json!({"name": "hash", "hash_on": wrong}).to_string();
            let answer = daemon.control_request("PUT", path, body.as_bytes()).await.expect("an answer");
            assert_eq!(answer.status, 400, "{wrong}");
        }
        assert_eq!(daemon.group().await.policy.hash_on.to_string(), "source/24,/64", "nothing has changed");
        daemon.stop().await;
    });
}
