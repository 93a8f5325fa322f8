//! IPv4, IPv6, both on one socket, and between two hosts.

use std::{
    net::{Ipv6Addr, SocketAddr},
    sync::Arc,
};

use reuseport_lb_tests::{
    Client, Daemon, GroupExt, Launch, Netns, connections, fixed_sources, hold, in_netns, netns::Neighbour,
    workers_of,
};

const PORT: u16 = 8080;

fn address(ip: &str) -> SocketAddr {
    SocketAddr::new(ip.parse().expect("an address"), PORT)
}

/// Sources on the IPv6 loopback, which has a single address.
fn fixed_ipv6_sources(n: u16) -> Vec<SocketAddr> {
    (0..n).map(|port| (Ipv6Addr::LOCALHOST, 20_000 + port).into()).collect()
}

/// Every connection is answered, and picked by our program.
async fn all_are_steered(daemon: &Daemon, client: &Client) {
    let before = daemon.group().await;
    connections(client, 400, 8).await.assert_nothing_failed();
    let after = daemon.group().await;
    assert_eq!(after.outcomes.selected - before.outcomes.selected, 400, "{client:?}: {:?}", after.outcomes);
    assert_eq!(after.outcomes.fallback, 0, "{client:?}");
}

/// Under the policies that read the packet, and the one that counts.
async fn under_each_policy(listen: &str, clients: &[Client], netns: &Arc<Netns>) {
    let daemon = Launch::policy("consistent-hash").listen(listen).start(netns).await;
    for policy in ["consistent-hash", "hash", "least-loaded"] {
        daemon.tell(&["policy", policy]).await;
        for client in clients {
            all_are_steered(&daemon, client).await;
        }
    }
    daemon.idle().await;
    daemon.stop().await;
}

#[test]
fn ipv6() {
    in_netns(async |netns| {
        under_each_policy("[::1]:8080", &[Client::of(address("::1"))], &netns).await;
    });
}

#[test]
fn both_on_one_socket() {
    in_netns(async |netns| {
        let clients = ["127.0.0.1", "::1"].map(|ip| Client::of(address(ip)));
        under_each_policy("[::]:8080", &clients, &netns).await;
    });
}

#[test]
fn two_hosts() {
    in_netns(async |netns| {
        let neighbour = Neighbour::join(&netns);
        let clients = [Neighbour::HERE_V4, Neighbour::HERE_V6]
            .map(|ip| Client::of(address(ip)).inside(&neighbour.netns));
        under_each_policy("[::]:8080", &clients, &netns).await;
        under_each_policy("0.0.0.0:8080", &clients[..1], &netns).await;
        under_each_policy(&address(Neighbour::HERE_V6).to_string(), &clients[1..], &netns).await;
    });
}

#[test]
fn open_connections_are_counted_over_both_families() {
    in_netns(async |netns| {
        let daemon = Launch::policy("least-loaded").listen("[::]:8080").start(&netns).await;
        let mut held = hold(&Client::of(address("127.0.0.1")), 18).await;
        held.extend(hold(&Client::of(address("::1")), 22).await);
        daemon.wait("all are counted", |group| group.active() == [10; 4]).await;
        drop(held);
        daemon.idle().await;
        daemon.stop().await;
    });
}

/// A handshake ceases to be pending when it ends, and not only once it has aged: the daemon's socket, that of the
/// handshake and that of the connection know different addresses, and must agree on what the handshake is.
#[test]
fn what_is_established_is_not_pending() {
    in_netns(async |netns| {
        for (listen, ip) in [("0.0.0.0:8080", "127.0.0.1"), ("[::]:8080", "127.0.0.1"), ("[::]:8080", "::1")]
        {
            let daemon = Launch::policy("least-loaded").listen(listen).start(&netns).await;
            let held = hold(&Client::of(address(ip)), 20).await;
            let group = daemon.group().await;
            assert_eq!((group.active(), group.pending()), (vec![5; 4], vec![0; 4]), "{ip} on {listen}");
            drop(held);
            daemon.stop().await;
        }
    });
}

#[test]
fn a_flow_has_the_same_worker_on_a_socket_for_ipv4_and_on_one_for_both() {
    in_netns(async |netns| {
        let sources = fixed_sources(400);
        let client = Client::of(address("127.0.0.1"));
        let mut workers = Vec::new();
        for listen in ["0.0.0.0:8080", "[::]:8080"] {
            let daemon = Launch::policy("consistent-hash").listen(listen).start(&netns).await;
            workers.push(workers_of(&client, &sources).await);
            assert_eq!(daemon.group().await.outcomes.selected, 400, "{listen}");
            daemon.stop().await;
        }
        assert_eq!(workers[0], workers[1]);
    });
}

#[test]
fn only_flows_of_the_drained_worker_move_in_both_families() {
    in_netns(async |netns| {
        let daemon = Launch::policy("consistent-hash").listen("[::]:8080").start(&netns).await;
        let families = [("127.0.0.1", fixed_sources(200)), ("::1", fixed_ipv6_sources(200))];
        for (ip, sources) in families {
            let client = Client::of(address(ip));
            let before = workers_of(&client, &sources).await;
            assert!(before.contains(&2), "{ip}: none of 200 flows is with worker 2");
            daemon.tell(&["drain", "2"]).await;
            let drained = workers_of(&client, &sources).await;
            for ((source, before), now) in sources.iter().zip(&before).zip(&drained) {
                assert_eq!(now != before, *before == 2, "{source}: from {before} to {now}");
            }
            daemon.tell(&["undrain", "2"]).await;
            daemon.wait("worker 2 is back", GroupExt::all_active).await;
            assert_eq!(workers_of(&client, &sources).await, before, "{ip}");
        }
        daemon.stop().await;
    });
}
