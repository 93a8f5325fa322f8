//! Beginning and end of a daemon, as its operator sees them.

use reuseport_lb::control::Status;
use reuseport_lb_tests::{GroupExt, Launch, connections, eventually, in_netns, run};
use rustix::process::Signal;

#[test]
fn the_start_is_told_in_five_lines() {
    in_netns(async |netns| {
        let daemon = Launch::policy("consistent-hash").start(&netns).await;
        // It answers before it prints.
        let stdout = eventually("all is told", async || {
            let stdout = daemon.written("stdout");
            if stdout.ends_with("ends\n") { Ok(stdout) } else { Err(stdout) }
        })
        .await;
        assert_eq!(stdout.lines().count(), 5, "{daemon}");
        let control = daemon.control().display().to_string();
        for word in ["127.0.0.1:8080", "consistent-hash", "4", &control, "drain"] {
            assert!(stdout.contains(word), "“{word}” is missing\n{daemon}");
        }
        daemon.stop().await;
    });
}

#[test]
fn status_is_the_same_for_people_for_programs_and_for_curl() {
    in_netns(async |netns| {
        let daemon = Launch::policy("least-loaded").workers(3).start(&netns).await;
        let table = daemon.tell(&["status"]).await.stdout;
        for word in ["127.0.0.1:8080", "least-loaded", "active"] {
            assert!(table.contains(word), "“{word}” is missing:\n{table}");
        }

        let json = daemon.tell(&["status", "--json"]).await.stdout;
        let status: Status = serde_json::from_str(&json).unwrap_or_else(|error| panic!("{error}: {json}"));
        assert_eq!(status.pid, daemon.process().pid);
        assert_eq!(status.groups, [daemon.group().await]);

        let control = daemon.control().display().to_string();
        let curl = ["curl", "--silent", "--fail", "--unix-socket", &control, "http://localhost/v1/status"];
        let json = run(&curl).await.succeeded().stdout;
        let status: Status = serde_json::from_str(&json).unwrap_or_else(|error| panic!("{error}: {json}"));
        assert_eq!(status.groups, [daemon.group().await]);
        daemon.stop().await;
    });
}

#[test]
fn shutdown_lets_requests_finish_and_leaves_nothing() {
    in_netns(async |netns| {
        let mut daemon = Launch::policy("hash").start(&netns).await;
        let (mut connection, answer) = daemon.client().hold().await.expect("a connection");
        connection.send("/slow?ms=500").await.expect("a request");
        // An answer to a later request of the same worker would not tell that this one has arrived; the count does.
        daemon.wait("it is open", |group| group.active().iter().sum::<u64>() == 1).await;

        daemon.tell(&["shutdown"]).await;
        assert_eq!(connection.receive().await.expect("an answer, in the middle of the end"), answer);
        assert!(daemon.ended().await.success());
    });
}

#[test]
fn interrupt_ends_it_too() {
    in_netns(async |netns| {
        let mut daemon = Launch::policy("hash").start(&netns).await;
        daemon.process().signal(Signal::INT);
        assert!(daemon.ended().await.success());
    });
}

#[test]
fn the_grace_period_has_an_end() {
    in_netns(async |netns| {
        let daemon = Launch::policy("hash").arg("--grace").arg("300ms").start(&netns).await;
        let (mut connection, _) = daemon.client().hold().await.expect("a connection");
        connection.send("/slow?ms=600000").await.expect("a request that outlasts the test");
        daemon.stop().await;
        connection.receive().await.expect_err("the worker has gone");
    });
}

#[test]
fn a_second_signal_is_immediate() {
    in_netns(async |netns| {
        let mut daemon = Launch::policy("hash").arg("--grace").arg("10m").start(&netns).await;
        let (mut connection, _) = daemon.client().hold().await.expect("a connection");
        connection.send("/slow?ms=600000").await.expect("a request that outlasts the test");
        daemon.process().signal(Signal::TERM);
        // Two signals are one as long as the first has not been taken, so there is a sign to wait for.
        eventually("the first signal is taken", async || {
            match daemon.control_request("GET", "/v1/status", b"").await {
                Ok(response) if !String::from_utf8_lossy(&response.body).contains("stopping") => {
                    Err("no worker is stopping")
                }
                // Its workers are stopping, or it takes no more commands.
                Ok(_) | Err(_) => Ok(()),
            }
        })
        .await;
        daemon.process().signal(Signal::TERM);
        daemon.ended().await;
        connection.receive().await.expect_err("the worker has gone");
    });
}

#[test]
fn a_command_that_takes_its_socket_from_systemd_runs_as_a_worker() {
    in_netns(async |netns| {
        // As plain as a server can be: it takes descriptor 3, and knows nothing of readiness or watchdogs. In Perl,
        // since every Debian has it.
        let script = r#"
            use Fcntl;
            die "not for me" unless $ENV{LISTEN_FDS} eq "1" and $ENV{LISTEN_PID} eq $$;
            open(my $listener, "+<&=", 3) or die "descriptor 3: $!";
            fcntl($listener, F_SETFL, 0) or die "blocking mode: $!";
            my $id = $ENV{REUSEPORT_LB_WORKER};
            my $body = qq({"worker":$id,"pid":$$});
            my $head = "HTTP/1.1 200 OK\r\nX-Worker: $id\r\nContent-Length: " . length($body) . "\r\n\r\n";
            while (accept(my $connection, $listener)) {
                recv($connection, my $request, 4096, 0);
                send($connection, $head . $body, 0);
                close($connection);
            }
        "#;
        let launch = Launch::policy("round-robin").workers(2).worker_command(&["perl", "-e", script]);
        let daemon = launch.start(&netns).await;
        for _ in 0..20 {
            let answer = daemon.client().ask("/").await.expect("an answer");
            let group = daemon.group().await;
            assert_eq!(group.worker(answer.worker).pid, Some(answer.pid));
        }
        assert_eq!(daemon.group().await.outcomes.selected, 20);
        daemon.stop().await;
    });
}

/// The most workers there can be, from a shell with the limit of open files that most systems give at first. What the
/// daemon needs beyond it is not passed on.
#[test]
fn a_thousand_workers_from_an_ordinary_shell() {
    in_netns(async |netns| {
        const WORKERS: u16 = 1_024;
        let script = "use IO::Handle; open my $s, '<&=', 3; \
                      while (accept(my $c, $s)) { print $c `sh -c 'ulimit -Sn'`; close $c }";
        let daemon = Launch::policy("round-robin")
            .workers(WORKERS)
            .wrapper(&["sh", "-c", "ulimit -Sn 1024 && exec \"$0\" \"$@\""])
            .worker_command(&["perl", "-e", script])
            .start(&netns)
            .await;
        daemon.wait("all run", GroupExt::all_active).await;
        let mut limit = String::new();
        let mut stream = tokio::net::TcpStream::connect(daemon.listen()).await.expect("a connection");
        tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut limit).await.expect("an answer");
        assert_eq!(limit, "1024\n");
        daemon.stop().await;
    });
}

#[test]
fn the_programs_log_only_when_told_to() {
    in_netns(async |netns| {
        for (level, expected) in [("off", 0), ("debug", 20)] {
            let daemon = Launch::policy("hash").arg("--bpf-log").arg(level).start(&netns).await;
            connections(&daemon.client(), 20, 1).await.assert_nothing_failed();
            // A line for each choice.
            eventually("the programs' log is written", async || {
                let lines = daemon.written("stderr").lines().filter(|line| line.contains(" DEBUG ")).count();
                if lines == expected { Ok(()) } else { Err(format!("{lines} lines")) }
            })
            .await;
            daemon.stop().await;
        }
    });
}
