//! What is applied, and what is left as it is.

use super::*;

#[test]
fn the_difference_is_applied_under_load_and_nothing_else() {
    in_netns(async |netns| {
        let daemon = start(&netns).await;
        let loads = [Load::start(&client(8080), 8), Load::start(&client(8081), 8)];
        for load in &loads {
            load.more(100).await;
        }
        let before = daemon.status().await;

        daemon.configure(
            r#"
            [groups.web]
            listen = "127.0.0.1:8080"
            workers = 5
            weights = [1, 1, 1, 4]
            policy = "consistent-hash"
            stall-after = 0
            backlog = 512
            grace = "5s"

            [groups.api]
            listen = "127.0.0.1:8081"
            workers = 2
            policy = "least-loaded"
            stall-after = 0

            [groups.more]
            listen = "127.0.0.1:8082"
            workers = 1
            "#,
        );
        let expected = [
            "group web: workers 3 -> 5",
            "group web: weights 1 -> 1,1,1,4",
            "group web: policy round-robin -> consistent-hash on flow",
            "group web: grace 30s -> 5s",
            "group web: backlog 4096 -> 512",
            "group more: added on 127.0.0.1:8082 with 1 workers",
        ];
        let told = daemon.tell(&["reload", "--dry-run"]).await.stdout;
        assert_eq!(told.lines().collect::<Vec<_>>(), expected);
        assert_eq!(shape(&daemon.status().await), shape(&before), "a dry run changes nothing");

        let told = daemon.tell(&["reload"]).await.stdout;
        assert_eq!(told.lines().collect::<Vec<_>>(), expected);
        let after = all_active(&daemon).await;
        let [api, more, web] = after.groups.as_slice() else { panic!("{after:#?}") };
        assert_eq!((web.policy.name, web.workers.len()), (Policy::ConsistentHash, 5));
        let weights: Vec<_> = web.workers.iter().map(|worker| worker.weight).collect();
        assert_eq!(weights, [1, 1, 1, 4, 1]);
        assert_eq!((more.workers.len(), api.workers.len()), (1, 2));
        // Who was there is there still.
        assert_eq!(pids(&after, "web")[..3], pids(&before, "web")[..]);
        assert_eq!(pids(&after, "api"), pids(&before, "api"));
        let queue = listening().await;
        let mut of_web = queue.lines().filter(|line| line.contains(":8080"));
        assert!(of_web.all(|line| line.split_whitespace().nth(2) == Some("512")), "{queue}");

        // The new workers take part, and the new group serves.
        eventually("the new workers are picked", async || {
            let web = daemon.group_named("web").await;
            let picked = web.selected().iter().all(|count| *count > 0);
            if picked { Ok(()) } else { Err(format!("{web:#?}")) }
        })
        .await;
        connections(&client(8082), 20, 2).await.assert_nothing_failed();
        assert_eq!(daemon.group_named("more").await.outcomes.selected, 20);
        assert_eq!(daemon.tell(&["reload"]).await.stdout, "nothing to change\n");
        operations_done(&daemon).await;

        // And back, with one worker less than at first.
        daemon.configure(&both().replace("workers = 3", "workers = 2"));
        daemon.tell(&["reload"]).await;
        let after = all_active(&daemon).await;
        eventually("the workers that are too many have gone", async || {
            let web = daemon.group_named("web").await;
            if web.workers.len() == 2 { Ok(()) } else { Err(format!("{web:#?}")) }
        })
        .await;
        assert_eq!(after.groups.len(), 2, "{after:#?}");
        assert_eq!(pids(&daemon.status().await, "web")[..], pids(&before, "web")[..2]);
        for load in loads {
            load.more(100).await;
            load.stop().await.assert_nothing_failed();
        }
        daemon.stop().await;
    });
}

#[test]
fn a_group_that_is_removed_finishes_its_connections() {
    in_netns(async |netns| {
        let daemon = start(&netns).await;
        let load = Load::start(&client(8080), 4);
        let (mut held, answer) = client(8081).hold().await.expect("a connection");
        let pins = |daemon: &Daemon| fs::read_dir(daemon.pins()).expect("pins").count();
        assert_eq!(pins(&daemon), 2);

        daemon.configure(WEB);
        let told = daemon.tell(&["reload"]).await.stdout;
        assert_eq!(told, "group api: removed from 127.0.0.1:8081\n");
        let status = daemon.status().await;
        assert_eq!(status.groups.len(), 1, "{status:#?}");
        assert_eq!(status.leaving.first().map(|group| &*group.name), Some("api"), "{status:#?}");
        assert!(daemon.tell(&["status"]).await.stdout.contains("api · 127.0.0.1:8081"));
        // It takes nothing new, by the program and not by chance; what is open goes on.
        client(8081).ask("/").await.expect_err("a removed group");
        let leaving = daemon.status().await.leaving.remove(0);
        assert!(leaving.outcomes.dropped > 0, "{leaving:#?}");
        assert_eq!(held.ask("/").await.expect("an answer"), answer);
        // No command reaches it, and its address is not free yet.
        refused(&daemon.cli(&["policy", "hash", "--group", "api"]).await, "there is no group api");
        daemon.configure(&both());
        refused(&daemon.cli(&["reload"]).await, "127.0.0.1:8081 is still group api's");

        drop(held);
        eventually("it is gone", async || {
            let status = daemon.status().await;
            if status.leaving.is_empty() { Ok(()) } else { Err(format!("{:#?}", status.leaving)) }
        })
        .await;
        assert_eq!(pins(&daemon), 1);
        TcpListener::bind("127.0.0.1:8081").expect("the address is free again");
        daemon.tell(&["reload"]).await;
        all_active(&daemon).await;
        connections(&client(8081), 20, 2).await.assert_nothing_failed();
        load.stop().await.assert_nothing_failed();
        daemon.stop().await;
    });
}

#[test]
fn another_address_is_served_before_the_old_one_is_given_up() {
    in_netns(async |netns| {
        let daemon = start(&netns).await;
        let (mut held, answer) = client(8080).hold().await.expect("a connection");
        daemon.configure(&both().replace(":8080", ":9090"));
        let told = daemon.tell(&["reload"]).await.stdout;
        assert_eq!(
            told,
            "group web: listen 127.0.0.1:8080 -> 127.0.0.1:9090, by a new group in place of the old one\n"
        );
        // At once, not when all workers run: connections wait for them.
        connections(&client(9090), 30, 3).await.assert_nothing_failed();
        assert_eq!(daemon.group_named("web").await.outcomes.selected, 30);
        assert_eq!(held.ask("/").await.expect("an answer"), answer);
        drop(held);
        all_active(&daemon).await;
        client(8080).ask("/").await.expect_err("the old address");
        // The end of the old group has taken nothing of the new one along: its workers can still say that they are ready.
        daemon.tell(&["restart", "0", "--group", "web"]).await;
        daemon.stop().await;
    });
}

/// The file is what counts, but for what it cannot say.
#[test]
fn what_commands_have_changed_is_changed_back_and_a_drain_stays() {
    in_netns(async |netns| {
        let daemon = start(&netns).await;
        daemon.tell(&["policy", "random", "--group", "web"]).await;
        daemon.tell(&["weight", "2", "9", "--group", "web"]).await;
        daemon.tell(&["drain", "0", "--wait", "--group", "web"]).await;
        let json = daemon.tell(&["reload", "--json"]).await.stdout;
        let reload: ReloadStatus = serde_json::from_str(&json).expect("JSON");
        let told: Vec<_> = reload.changes.iter().map(ToString::to_string).collect();
        assert_eq!(told, ["group web: weights 1,1,9 -> 1", "group web: policy random -> round-robin"]);
        assert!(!reload.dry_run);
        let web = daemon.group_named("web").await;
        assert_eq!((web.policy.name, web.worker(2).weight), (Policy::RoundRobin, 1));
        assert_eq!(web.worker(0).state, WorkerState::Drained);
        let account = connections(&client(8080), 60, 4).await;
        account.assert_nothing_failed();
        assert_eq!(tally(3, account.answers())[0], 0);
        daemon.stop().await;
    });
}

#[test]
fn another_command_is_for_workers_that_are_started_from_now_on() {
    in_netns(async |netns| {
        let program = reuseport_lb_tests::binary().display().to_string();
        let file = |generation: u32| {
            format!("{WEB}command = ['env', 'GENERATION={generation}', '{program}', 'demo-worker']\n")
        };
        let daemon = Launch::config(&file(1)).start(&netns).await;
        // A worker runs from its `execve` on, and has the variable when `env` has called another.
        let generation = async |pid: u32| {
            eventually("it is set", async || {
                let environment = fs::read(format!("/proc/{pid}/environ")).expect("a worker");
                let environment = String::from_utf8_lossy(&environment).into_owned();
                let value = environment.split('\0').find_map(|line| line.strip_prefix("GENERATION="));
                value.map(str::to_owned).ok_or(environment.clone())
            })
            .await
        };
        let before = daemon.group().await;
        daemon.configure(&file(2));
        let told = daemon.tell(&["reload"]).await.stdout;
        assert!(told.ends_with("for workers that are started from now on\n"), "{told}");
        let after = daemon.group().await;
        let pid = |group: &GroupStatus, id| group.worker(id).pid.expect("it runs");
        for WorkerId(id) in after.workers.iter().map(|worker| worker.id) {
            assert_eq!(pid(&after, id), pid(&before, id));
            assert_eq!(generation(pid(&after, id)).await, "1");
        }
        daemon.tell(&["restart", "1"]).await;
        let after = daemon.wait("they run", GroupExt::all_active).await;
        for (id, expected) in [(0, "1"), (1, "2"), (2, "1")] {
            assert_eq!(generation(pid(&after, id)).await, expected);
        }
        daemon.stop().await;
    });
}

/// Groups whose sockets are others' or the workers' own stand in a file like any other. When a group of others is removed,
/// its processes go on.
#[test]
fn adopted_and_self_bound_groups_are_reloaded_too() {
    in_netns(async |netns| {
        let others = [Server::perl("127.0.0.1:8083").await, Server::perl("127.0.0.1:8083").await];
        let command = serde_json::to_string(&perl("127.0.0.1:8082")).expect("an array of texts");
        let file = |policy: &str, workers: u16| {
            format!(
                "{WEB}
                [groups.theirs]
                adopt = true
                listen = '127.0.0.1:8083'
                policy = '{policy}'
                stall-after = 0

                [groups.own]
                self-bind = true
                listen = '127.0.0.1:8082'
                workers = {workers}
                stall-after = 0
                command = {command}
                "
            )
        };
        let daemon = Launch::config(&file("round-robin", 2)).start(&netns).await;
        let load = Load::start(&client(8083), 2);
        load.more(20).await;
        assert!(daemon.group_named("theirs").await.outcomes.selected >= 20);

        daemon.configure(&file("hash", 3));
        let told = daemon.tell(&["reload"]).await.stdout;
        assert_eq!(
            told, "group own: workers 2 -> 3\ngroup theirs: policy round-robin -> hash on flow\n",
            "{daemon}"
        );
        all_active(&daemon).await;
        eventually("the third worker has its socket, and is picked", async || {
            client(8082).ask("/").await.map_err(|error| error.to_string())?;
            let own = daemon.group_named("own").await;
            let all = own.workers.len() == 3 && own.selected().iter().all(|count| *count > 0);
            if all { Ok(()) } else { Err(format!("{own:#?}")) }
        })
        .await;
        assert_eq!(daemon.tell(&["reload"]).await.stdout, "nothing to change\n");

        daemon.configure(WEB);
        let told = daemon.tell(&["reload"]).await.stdout;
        assert_eq!(
            told,
            "group own: removed from 127.0.0.1:8082\ngroup theirs: removed from 127.0.0.1:8083\n"
        );
        all_active(&daemon).await;
        load.more(50).await;
        load.stop().await.assert_nothing_failed();
        client(8082).ask("/").await.expect_err("its workers have ended");
        for server in others {
            assert!(!server.process().ends_within(std::time::Duration::ZERO), "{server}");
            server.kill().await;
        }
        daemon.stop().await;
    });
}
