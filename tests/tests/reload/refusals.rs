//! What is refused, and changes nothing.

use super::*;

/// Each failure comes last, after something else has been done that has to be taken back.
#[test]
fn a_reload_that_fails_changes_nothing() {
    in_netns(async |netns| {
        // Enough descriptors for what runs, and not for many workers more.
        let limited = ["sh", "-c", "ulimit -n 400 && exec \"$0\" \"$@\""];
        let daemon = Launch::config(&both()).wrapper(&limited).start(&netns).await;
        let loads = [Load::start(&client(8080), 4), Load::start(&client(8081), 4)];
        daemon.tell(&["drain", "1", "--group", "web", "--wait"]).await;
        let before = daemon.status().await;
        let sockets_before = listening().await.lines().count();

        // The sockets of the last group are bound by somebody who does not listen, which only the bind can tell.
        let foreign =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        let taken: std::net::SocketAddr = ([127, 0, 0, 1], 8085).into();
        foreign.bind(&taken.into()).expect("a free port");
        let listener = TcpListener::bind("127.0.0.1:8086").expect("a free port");
        let api_changed = API.replace("least-loaded", "random").replace("workers = 2", "workers = 3");
        let further = "[groups.new]\nlisten = '127.0.0.1:8084'\nworkers = 1\n";
        for (file, expected) in [
            (
                format!("{WEB}{api_changed}{further}[groups.other]\nlisten = '127.0.0.1:8085'\n"),
                "cannot listen on 127.0.0.1:8085",
            ),
            (
                format!("{WEB}{api_changed}{further}[groups.other]\nlisten = '127.0.0.1:8086'\n"),
                "127.0.0.1:8086 is taken by",
            ),
            // The group that comes last refuses.
            (
                format!("{}{api_changed}{further}", WEB.replace("round-robin", "kernel")),
                "group web: worker 1 is drained, and policy kernel",
            ),
            // Descriptors run out in the middle of the group that comes last.
            (
                format!("{}{api_changed}{further}", WEB.replace("workers = 3", "workers = 900")),
                "Too many open files",
            ),
            (
                format!("{WEB}{api_changed}{further}hash-seed = 1\n")
                    .replace("[groups.web]", "[groups.web]\nhash-seed = 1"),
                "cannot change while the group runs",
            ),
            (format!("[daemon]\nlog-format = 'json'\n{WEB}{api_changed}"), "needs a restart of the daemon"),
            (format!("{WEB}{api_changed}wokers = 1\n"), "did you mean 'workers'?"),
            (String::new(), "there is no group"),
        ] {
            daemon.configure(&file);
            refused(&daemon.cli(&["reload"]).await, expected);
            assert_eq!(shape(&daemon.status().await), shape(&before), "{expected}");
            let sockets = listening().await;
            assert_eq!(sockets.lines().count(), sockets_before + 1, "after {expected}:\n{sockets}");
        }
        drop((foreign, listener));
        // It is still what it was: it serves, and the same change without the obstacle is done.
        for load in loads {
            load.more(50).await;
            load.stop().await.assert_nothing_failed();
        }
        daemon.configure(&format!("{WEB}{api_changed}{further}"));
        let told = daemon.tell(&["reload"]).await.stdout;
        assert_eq!(told.lines().count(), 3, "{told}");
        daemon.tell(&["undrain", "1", "--group", "web"]).await;
        all_active(&daemon).await;
        daemon.stop().await;
    });
}

#[test]
fn sighup_reads_the_file_and_a_bad_one_changes_nothing() {
    in_netns(async |netns| {
        let daemon = start(&netns).await;
        let load = Load::start(&client(8080), 4);
        let before = daemon.status().await;
        daemon.configure("[groups.web]\npolicy = 'fastest'\n");
        daemon.process().signal(Signal::HUP);
        eventually("the log tells of it", async || {
            let log = daemon.written("stderr");
            if log.contains("config.toml:2:10: ") { Ok(()) } else { Err(log) }
        })
        .await;
        assert_eq!(shape(&daemon.status().await), shape(&before));

        daemon.configure(&both().replace("round-robin", "random"));
        daemon.process().signal(Signal::HUP);
        eventually("the policy is another one", async || {
            let web = daemon.group_named("web").await;
            if web.policy.name == Policy::Random { Ok(()) } else { Err(format!("{web:#?}")) }
        })
        .await;
        assert_eq!(pids(&daemon.status().await, "web"), pids(&before, "web"));
        load.more(50).await;
        load.stop().await.assert_nothing_failed();
        daemon.stop().await;
    });
}

#[test]
fn without_a_file_there_is_nothing_to_reload() {
    in_netns(async |netns| {
        let daemon = Launch::policy("hash").start(&netns).await;
        let before = daemon.status().await;
        refused(&daemon.cli(&["reload"]).await, "--config");
        daemon.process().signal(Signal::HUP);
        connections(&daemon.client(), 20, 2).await.assert_nothing_failed();
        assert_eq!(shape(&daemon.status().await), shape(&before));
        daemon.stop().await;
    });
}
