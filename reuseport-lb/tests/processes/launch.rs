//! Starting, signalling and ending workers.

use std::{
    collections::HashMap, fs, os::unix::fs::MetadataExt as _, path::Path, process::Command, time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use procfs::process::{FDTarget, Process as Proc};
use reuseport_lb::{
    config::WorkerCommand,
    worker::{EXEC_COMMAND, ExitStatus, Process, Signal, StartError},
};
use rustix::process::{Pid, test_kill_process};

use crate::{
    namespace::{eventually, in_namespace},
    stage::{EXECUTABLE, Stage},
};

/// Whether a process runs. One that has ended and that nobody has waited for does not.
fn runs(pid: u32) -> Result<bool> {
    match Proc::new(pid.try_into()?).and_then(|process| process.stat()) {
        Ok(stat) => Ok(stat.state != 'Z'),
        Err(procfs::ProcError::NotFound(_)) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether a process exists, be it as a zombie.
fn exists(pid: u32) -> Result<bool> {
    let pid = Pid::from_raw(pid.try_into()?).context("pid 0")?;
    match test_kill_process(pid) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::SRCH) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[test]
fn a_worker_gets_its_socket_as_from_systemd() -> Result<()> {
    in_namespace(|| {
        let stage = Stage::new()?;
        let folder = tempfile::tempdir()?;
        let (environment, ready) = (folder.path().join("environment"), folder.path().join("ready"));
        let mut worker = stage.shell(r#"env > "$1"; : > "$2"; exec sleep 1000"#, &[&environment, &ready])?;
        eventually("the worker has started", || Ok(ready.exists().then_some(())))?;

        let environment = fs::read_to_string(environment)?;
        let environment: HashMap<_, _> =
            environment.lines().filter_map(|line| line.split_once('=')).collect();
        let pid = worker.pid().to_string();
        for (variable, value) in [
            ("LISTEN_FDS", "1"),
            ("LISTEN_PID", &pid),
            ("LISTEN_FDNAMES", "default"),
            ("REUSEPORT_LB_WORKER", "7"),
            ("REUSEPORT_LB_GROUP", "default"),
        ] {
            assert_eq!(environment.get(variable), Some(&value), "{variable}");
        }
        assert!(environment.contains_key("PATH"), "the rest of the environment stays");

        let process = Proc::new(worker.pid().try_into()?)?;
        assert_eq!(process.fd_from_fd(0)?.target, FDTarget::Path("/dev/null".into()));
        let inode = rustix::fs::fstat(&stage.listener)?.st_ino;
        assert_eq!(process.fd_from_fd(3)?.target, FDTarget::Socket(inode));
        let sockets = process.fd()?.flatten().filter(|fd| fd.target == FDTarget::Socket(inode)).count();
        assert_eq!(sockets, 1, "the socket is handed over once");
        // What the runtime has open must not leak.
        for descriptor in process.fd()?.flatten().filter(|descriptor| descriptor.fd > 3) {
            assert!(!matches!(descriptor.target, FDTarget::AnonInode(_)), "{descriptor:?}");
        }

        let stat = process.stat()?;
        assert_eq!((stat.session, stat.pgrp), (stat.pid, stat.pid), "its own session and process group");
        let status = process.status()?;
        assert_eq!(status.sigblk, 0, "no blocked signal");
        // Signals that whoever runs the tests ignores stay ignored, as under nohup.
        let mine = Proc::myself()?.status()?.sigign;
        let sigpipe = 1 << (Signal::PIPE.as_raw() - 1);
        assert_ne!(mine & sigpipe, 0, "the Rust runtime ignores SIGPIPE");
        assert_eq!(status.sigign, mine & !sigpipe);

        worker.kill()?;
        stage.end(&mut worker)?;
        Ok(())
    })
}

#[test]
fn the_end_of_a_worker_is_told_exactly() -> Result<()> {
    in_namespace(|| {
        let stage = Stage::new()?;
        let mut worker = stage.shell("exit 3", &[])?;
        assert_eq!(stage.end(&mut worker)?.to_string(), "exited with status 3");
        assert!(!exists(worker.pid())?, "no zombie");
        assert_eq!(stage.end(&mut worker)?, ExitStatus::Exited(3), "the same answer again");

        let mut worker = stage.demo(0)?;
        worker.signal(Signal::KILL)?;
        assert_eq!(stage.end(&mut worker)?.to_string(), "killed by SIGKILL");
        Ok(())
    })
}

#[test]
fn a_worker_that_ended_cannot_be_signalled_any_more() -> Result<()> {
    in_namespace(|| {
        let stage = Stage::new()?;
        let mut worker = stage.shell("exit 0", &[])?;
        eventually("the worker is a zombie", || Ok((!runs(worker.pid())?).then_some(())))?;
        worker.signal(Signal::TERM).context("a zombie")?;
        worker.kill().context("a zombie")?;
        assert!(stage.end(&mut worker)?.success());
        worker.signal(Signal::TERM).context("gone")?;
        worker.kill().context("gone")?;
        Ok(())
    })
}

#[test]
fn waiting_may_be_given_up_and_begun_again() -> Result<()> {
    in_namespace(|| {
        let stage = Stage::new()?;
        let mut worker = stage.shell("exec sleep 1000", &[])?;
        for _ in 0..5 {
            let waited = stage
                .runtime
                .block_on(async { tokio::time::timeout(Duration::from_millis(5), worker.exited()).await });
            assert!(waited.is_err(), "it has not ended: {waited:?}");
        }
        worker.kill()?;
        assert_eq!(stage.end(&mut worker)?, ExitStatus::Killed { signal: 9, core_dumped: false });
        Ok(())
    })
}

#[test]
fn killing_reaches_the_worker_s_own_children() -> Result<()> {
    in_namespace(|| {
        let stage = Stage::new()?;
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("child");
        let mut worker =
            stage.shell(r#"sleep 1000 & echo $! > "$1.new"; mv "$1.new" "$1"; wait"#, &[&file])?;
        let child = eventually("the child has started", || Ok(fs::read_to_string(&file).ok()))?;
        let child = child.trim().parse()?;
        assert!(runs(child)?);
        worker.kill()?;
        stage.end(&mut worker)?;
        eventually("the child has ended", || Ok((!runs(child)?).then_some(())))
    })
}

#[test]
fn a_worker_that_is_let_go_of_runs_on_and_is_found_again() -> Result<()> {
    in_namespace(|| {
        let stage = Stage::new()?;
        let worker = stage.try_start(Path::new(EXECUTABLE), 0, &WorkerCommand::BuiltIn)?;
        let (pid, started_at) = (worker.pid(), worker.started_at());
        drop(worker);
        let answer = crate::http::get(stage.address, "/")?;
        assert_eq!(answer.identity()?.pid, pid);

        let runtime = stage.runtime.enter();
        assert!(Process::find(pid, started_at + 1)?.is_none(), "another process that has the id");
        let mut found = Process::find(pid, started_at)?.context("it runs")?;
        found.kill()?;
        drop(runtime);
        assert_eq!(stage.end(&mut found)?, ExitStatus::Killed { signal: 9, core_dumped: false });
        let _runtime = stage.runtime.enter();
        assert!(Process::find(pid, started_at)?.is_none(), "it has ended");
        assert!(!exists(pid)?, "no zombie is left");
        Ok(())
    })
}

#[test]
fn a_program_that_cannot_run_says_why() -> Result<()> {
    in_namespace(|| {
        let stage = Stage::new()?;
        for program in ["/nonexistent/server", "/etc/passwd", "/"] {
            let command = WorkerCommand::Program { program: program.into(), args: vec![] };
            let mut worker = stage.start(0, &command)?;
            assert_eq!(stage.end(&mut worker)?, ExitStatus::Exited(1), "{program}");

            let output = Command::new(EXECUTABLE).args([EXEC_COMMAND, "--", program]).output()?;
            assert_eq!(output.status.code(), Some(1), "{program}");
            let stderr = String::from_utf8(output.stderr)?;
            let expected = format!("reuseport-lb: cannot start {program}: ");
            assert!(stderr.starts_with(&expected) && stderr.lines().count() == 1, "{stderr:?}");
        }
        Ok(())
    })
}

#[test]
fn options_of_the_program_are_the_program_s() -> Result<()> {
    in_namespace(|| {
        let args = [EXEC_COMMAND, "--", "/bin/echo", "--help", "--", "-x"];
        let output = Command::new(EXECUTABLE).args(args).output()?;
        assert_eq!(String::from_utf8(output.stdout)?, "--help -- -x\n");
        Ok(())
    })
}

#[test]
fn without_the_binary_nothing_is_started() -> Result<()> {
    in_namespace(|| {
        let stage = Stage::new()?;
        let missing = Path::new("/nonexistent/reuseport-lb");
        match stage.try_start(missing, 0, &WorkerCommand::BuiltIn) {
            Err(StartError::Spawn { executable, source }) => {
                assert_eq!(executable, missing);
                assert_eq!(source.kind(), std::io::ErrorKind::NotFound);
                Ok(())
            }
            other => anyhow::bail!("{other:?}"),
        }
    })
}

#[test]
fn a_failed_start_leaves_the_socket_alone() -> Result<()> {
    in_namespace(|| {
        let stage = Stage::new()?;
        let failed = stage.try_start(Path::new("/nonexistent"), 0, &WorkerCommand::BuiltIn);
        ensure!(failed.is_err(), "{failed:?}");
        let mut client = crate::http::Client::connect(stage.address)?;
        client.send("/")?;
        let _worker = stage.demo(4)?;
        assert_eq!(client.receive()?.identity()?.worker, 4);
        assert!(fs::metadata(EXECUTABLE)?.mode() & 0o111 != 0);
        Ok(())
    })
}
