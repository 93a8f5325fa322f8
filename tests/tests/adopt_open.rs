//! What adoption makes of IPv6 and of connections that are older than it.

use reuseport_lb_tests::{Client, GroupExt, Launch, Server, connections, eventually, hold, in_netns, run};

const PORT: u16 = 8080;

fn client(ip: &str) -> Client {
    Client::of((ip.parse::<std::net::IpAddr>().expect("an address"), PORT).into())
}

/// Two servers at `listen` are steered for each of these clients.
async fn are_steered(listen: &str, clients: &[&str], netns: &std::sync::Arc<reuseport_lb_tests::Netns>) {
    let servers = [Server::perl(listen).await, Server::perl(listen).await];
    let daemon = Launch::adopt("round-robin").listen(listen).start(netns).await;
    assert_eq!(daemon.group().await.workers.len(), 2, "{daemon}");
    for ip in clients {
        let before = daemon.group().await.outcomes.selected;
        connections(&client(ip), 40, 2).await.assert_nothing_failed();
        let group = daemon.idle().await;
        assert_eq!(group.outcomes.selected - before, 40, "{ip} at {listen}: {group:#?}");
        assert_eq!(group.outcomes.fallback, 0, "{ip} at {listen}");
    }
    assert!(daemon.group().await.selected().iter().all(|count| *count > 0), "{daemon}");
    daemon.stop().await;
    for server in servers {
        server.kill().await;
    }
}

#[test]
fn ipv6_and_both_on_one_socket() {
    in_netns(async |netns| {
        are_steered("[::1]:8080", &["::1"], &netns).await;
        are_steered("[::]:8080", &["::1", "127.0.0.1"], &netns).await;
    });
}

/// Beside sockets that take IPv6 only, IPv4 is somebody else's.
#[test]
fn ipv6_only_beside_a_server_for_ipv4() {
    in_netns(async |netns| {
        netns.sysctl("net.ipv6.bindv6only", "1");
        let other = Server::perl("0.0.0.0:8080").await;
        let servers = [Server::perl("[::]:8080").await, Server::perl("[::]:8080").await];
        let daemon = Launch::adopt("round-robin").listen("[::]:8080").start(&netns).await;
        let mut pids: Vec<_> = daemon.group().await.workers.iter().filter_map(|worker| worker.pid).collect();
        pids.sort_unstable();
        let mut expected = [servers[0].pid(), servers[1].pid()];
        expected.sort_unstable();
        assert_eq!(pids, expected);

        connections(&client("::1"), 40, 2).await.assert_nothing_failed();
        let group = daemon.idle().await;
        assert_eq!((group.outcomes.selected, group.runs()), (40, 40), "{group:#?}");
        for _ in 0..10 {
            assert_eq!(client("127.0.0.1").ask("/").await.expect("an answer").pid, other.pid());
        }
        assert_eq!(daemon.group().await.runs(), 40, "our program does not run for it");
        daemon.stop().await;
    });
}

/// They carry no mark of their worker. What they do must not count against those that came since.
#[test]
fn connections_from_before_are_served_and_their_end_is_not_counted() {
    in_netns(async |netns| {
        let servers = Server::go("127.0.0.1:8080", 2).await;
        let client = client("127.0.0.1");
        let mut old = hold(&client, 12).await;
        let daemon = Launch::adopt("least-loaded").start(&netns).await;
        assert_eq!(daemon.group().await.active(), [0, 0]);
        let mut new = hold(&client, 6).await;
        let counted = |group: &reuseport_lb::control::GroupStatus, each: u64| {
            group.active() == [each; 2] && group.pending() == [0; 2]
        };
        daemon.wait("the new ones are counted", |group| counted(group, 3)).await;
        for (connection, _) in &mut old {
            connection.ask("/").await.expect("it is still served");
        }

        drop(old);
        eventually("the servers have closed the old ones", async || {
            let open = run(&["ss", "-Htn", "sport = :8080"]).await.succeeded().stdout.lines().count();
            if open == 6 { Ok(()) } else { Err(format!("{open} are open")) }
        })
        .await;
        let group = daemon.group().await;
        assert!(counted(&group, 3), "{group:#?}");
        new.extend(hold(&client, 4).await);
        daemon.wait("the load is even", |group| counted(group, 5)).await;
        drop(new);
        daemon.idle().await;
        daemon.stop().await;
        drop(servers);
    });
}
