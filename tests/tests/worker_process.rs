//! What a worker's process is given, where its output goes, and what is left of it when it fails.

use std::{fs, io::Write as _, os::unix::fs::PermissionsExt as _, path::Path};

use reuseport_lb::group::WorkerState;
use reuseport_lb_tests::{GroupExt, Launch, eventually, in_netns, process::signal, scripts::server};
use rustix::process::Signal;

fn launch(before: &str, args: &[&str]) -> Launch {
    let script = server(before);
    let words: Vec<&str> = script.iter().map(String::as_str).collect();
    let launch = Launch::policy("round-robin").workers(2).worker_command(&words);
    args.iter().fold(launch, |launch, arg| launch.arg(*arg))
}

/// A folder that other users may enter.
fn open_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("mode 0755");
    folder
}

#[test]
fn user_environment_folder_and_limit_are_the_worker_s() {
    in_netns(async |netns| {
        let folder = open_folder();
        let home = folder.path().canonicalize().expect("a folder");
        let control = folder.path().join("control.sock");
        let args = [
            "--user",
            "nobody:daemon",
            "--env",
            "COLOUR=blue green",
            "--env",
            "EMPTY=",
            "--chdir",
            &home.display().to_string(),
            "--rlimit-nofile",
            "123",
            "--ready",
            "notify",
        ];
        // It may say that it is ready although it is another user.
        let daemon = launch(r#"tell_("READY=1");"#, &args).control(&control).start(&netns).await;
        let ask = async |path: &str| daemon.client().ask(path).await.expect("an answer").value;
        let who = ask("/who").await;
        let words: Vec<&str> = who.split_whitespace().collect();
        let id = async |name: &str| {
            let line = reuseport_lb_tests::run(&["getent", "passwd", name]).await.succeeded().stdout;
            line.split(':').nth(2).expect("an id").to_owned()
        };
        let nobody = id("nobody").await;
        assert_eq!(words[..2], [nobody.as_str(), nobody.as_str()], "{who}");
        assert_eq!(words[2], "1", "the group daemon: {who}");
        assert!(!words[3..].contains(&"0"), "no group of root's is left: {who}");
        assert!(who.contains(&home.display().to_string()), "{who}");
        assert!(who.trim_end().ends_with("123 123"), "{who}");
        for (variable, value) in
            [("COLOUR", "blue green"), ("EMPTY", ""), ("USER", "nobody"), ("REUSEPORT_LB_GROUP", "default")]
        {
            assert_eq!(ask(&format!("/env?{variable}")).await, value, "{variable}");
        }
        assert_eq!(daemon.group().await.outcomes.fallback, 0);
        daemon.stop().await;
    });
}

#[test]
fn settings_that_cannot_be_are_refused_before_anything_is_done() {
    in_netns(async |netns| {
        for (args, word) in [
            (["--user", "no-such-user"], "getent"),
            (["--env", "LISTEN_FDS=3"], "daemon's"),
            (["--chdir", "/no/such/folder"], "/no/such/folder"),
            (["--output", "logs"], "slash"),
            (["--rlimit-nofile", "1"], "--rlimit-nofile"),
            (["--watchdog", "0"], "more than nothing"),
            (["--ready", "soon"], "notify, accept, exec"),
        ] {
            let failed = Launch::policy("hash").arg(args[0]).arg(args[1]).fail(&netns).await;
            assert_eq!(failed.status.code(), Some(2), "{failed}");
            failed.failed_with(&[word]);
        }
    });
}

#[test]
fn output_is_passed_on_with_the_worker_s_id_before_each_line() {
    in_netns(async |netns| {
        let before = r#"
            print "out of $id\n"; print STDERR "err of $id\n";
            print "in ", "pieces\n"; print "no end";
        "#;
        let daemon = launch(before, &[]).start(&netns).await;
        for id in [0, 1] {
            eventually("the lines are there", async || {
                let (out, err) = (daemon.written("stdout"), daemon.written("stderr"));
                let lines = |text: &str, line: String| text.lines().filter(|l| *l == line).count();
                let there = lines(&out, format!("[default/{id}] out of {id}")) == 1
                    && lines(&out, format!("[default/{id}] in pieces")) == 1
                    && lines(&err, format!("[default/{id}] err of {id}")) == 1;
                if there { Ok(()) } else { Err(format!("{out}\n{err}")) }
            })
            .await;
        }
        // What has no end is written on when its writer has gone.
        let pid = daemon.group().await.worker(0).pid.expect("a process");
        signal(pid, Signal::TERM);
        eventually("the rest is there", async || {
            let out = daemon.written("stdout");
            if out.lines().any(|line| line == "[default/0] no end") { Ok(()) } else { Err(out) }
        })
        .await;
        daemon.stop().await;
    });
}

/// Much output from a worker, and nobody who reads the daemon's: the worker waits, the daemon does not, and nothing is kept
/// in memory.
#[test]
fn output_that_nobody_reads_holds_up_neither_the_daemon_nor_its_memory() {
    in_netns(async |netns| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let pipe = folder.path().join("pipe");
        reuseport_lb_tests::run(&["mkfifo", &pipe.display().to_string()]).await.succeeded();
        // Open, and never read.
        let reader = fs::OpenOptions::new().read(true).write(true).open(&pipe).expect("a pipe");
        let line = format!(r#"exec "$0" "$@" > {}"#, pipe.display());
        let before = r#"if ($id == 0) { print "x" x 1000, "\n" while 1 }"#;
        let daemon = launch(before, &[]).wrapper(&["sh", "-c", &line]).start(&netns).await;
        let memory_kib = || {
            let file = format!("/proc/{}/status", daemon.process().pid);
            let status = fs::read_to_string(file).expect("a status");
            let line = status.lines().find(|line| line.starts_with("VmRSS")).expect("VmRSS");
            line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number")
        };
        let wait_channel = async || {
            let pid = daemon.group().await.worker(0).pid.expect("a process");
            let state = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
            if state.contains(") S ") { Ok(()) } else { Err(state) }
        };
        eventually("the worker waits until somebody reads", wait_channel).await;
        let before = memory_kib();
        for _ in 0..50 {
            // It answers, although what it passes on stands still.
            daemon.group().await;
        }
        let after = memory_kib();
        assert!(after < before + 4_096, "from {before} to {after} KiB");
        daemon.stop().await;
        drop(reader);
    });
}

#[test]
fn output_goes_into_a_file_for_each_worker() {
    in_netns(async |netns| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let logs = folder.path().join("made/logs");
        let where_ = logs.display().to_string();
        let daemon = launch(r#"print "out $id\n"; print STDERR "err $id\n";"#, &["--output", &where_])
            .start(&netns)
            .await;
        let file = |id: u16| logs.join(format!("default-{id}.log"));
        for id in [0, 1] {
            wait_for(&file(id), &format!("out {id}\nerr {id}\n")).await;
        }
        daemon.tell(&["restart", "1"]).await;
        wait_for(&file(1), "out 1\nerr 1\nout 1\nerr 1\n").await;
        assert!(!daemon.written("stdout").contains("out 1"));
        daemon.stop().await;
    });
}

async fn wait_for(file: &Path, text: &str) {
    eventually(&format!("{} has been written", file.display()), async || {
        let found = fs::read_to_string(file).map_err(|error| error.to_string())?;
        // The two streams may change places.
        let sorted = |text: &str| {
            let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        if sorted(&found) == sorted(text) { Ok(()) } else { Err(found) }
    })
    .await;
}

#[test]
fn output_may_be_the_daemon_s_own() {
    in_netns(async |netns| {
        let daemon = launch(r#"print "out $id\n";"#, &["--output", "inherit"]).start(&netns).await;
        eventually("the line is there", async || {
            let out = daemon.written("stdout");
            if out.lines().any(|line| line == "out 1") { Ok(()) } else { Err(out) }
        })
        .await;
        daemon.stop().await;
    });
}

async fn crash_loop(args: &[&str]) -> impl AsyncFnOnce(std::sync::Arc<reuseport_lb_tests::Netns>) {
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    async move |netns| {
        let before =
            r#"if ($id == 1) { print STDERR "line $_\n" for 1..30; print STDERR "no database\n"; exit 7 }"#;
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let daemon = launch(before, &args).start_unready(&netns).await;
        let group = daemon
            .wait("it has failed again and again", |group| {
                let worker = group.worker(1);
                worker.restarts >= 3 && worker.state == WorkerState::Down
            })
            .await;
        let worker = group.worker(1);
        assert_eq!(worker.reason.as_deref(), Some("exited with status 7"));
        assert_eq!(worker.last_words.last().map(String::as_str), Some("no database"), "{worker:?}");
        assert_eq!(worker.last_words.len(), 10, "{worker:?}");
        // Unless it is just being tried again.
        eventually("it is shown", async || {
            let table = daemon.tell(&["status"]).await.stdout;
            let shown = table.contains("exited with status 7") && table.contains("no database");
            if shown { Ok(()) } else { Err(table) }
        })
        .await;
        for _ in 0..20 {
            assert_eq!(daemon.client().ask("/").await.expect("the other one serves").worker, 0);
        }
        daemon.stop().await;
    }
}

#[test]
fn a_crash_loop_shows_its_last_words() {
    in_netns(async |netns| crash_loop(&[]).await(netns).await);
}

#[test]
fn a_crash_loop_shows_the_end_of_its_file() {
    in_netns(async |netns| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let where_ = folder.path().display().to_string();
        crash_loop(&["--output", &where_]).await(netns).await;
    });
}

/// What a worker writes when its daemon is gone does not kill it.
#[test]
fn a_worker_outlives_the_daemon_that_read_what_it_wrote() {
    in_netns(async |netns| {
        let daemon = launch("", &[]).start(&netns).await;
        let group = daemon.group().await;
        let pids: Vec<u32> = group.workers.iter().map(|worker| worker.pid.expect("a process")).collect();
        reuseport_lb_tests::process::kill_and_wait(daemon.process().pid);
        for _ in 0..20 {
            let answer = daemon.client().ask("/log?alive").await.expect("they serve on");
            assert!(pids.contains(&answer.pid));
        }
        for pid in pids {
            reuseport_lb_tests::process::kill_and_wait(pid);
        }
    });
}

/// A line that is begun is passed on when it is whole, by whichever daemon is there then.
#[test]
fn a_line_outlives_the_daemons_that_see_it_written() {
    in_netns(async |netns| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let fifo = folder.path().join("go").display().to_string();
        reuseport_lb_tests::run(&["mkfifo", &fifo]).await.succeeded();
        let script = format!("printf begun; read word < {fifo}; echo , and $word; exec sleep 1000");
        let launch = Launch::policy("hash").workers(1).worker_command(&["sh", "-c", &script]);
        let mut daemon = launch.start(&netns).await;
        // Its other end is opened when the line is begun.
        let mut go = fs::OpenOptions::new().write(true).open(&fifo).expect("the other end");
        daemon.tell(&["upgrade"]).await;
        daemon.kill().await;
        daemon.start_again(&[]).await;
        go.write_all(b"done\n").expect("the worker reads");
        let lines = eventually("the line is there", async || {
            let out = daemon.written("stdout");
            let lines: Vec<String> =
                out.lines().filter(|line| line.starts_with('[')).map(str::to_owned).collect();
            if lines.is_empty() { Err(out) } else { Ok(lines) }
        })
        .await;
        assert_eq!(lines, ["[default/0] begun, and done"]);
        daemon.stop().await;
    });
}
