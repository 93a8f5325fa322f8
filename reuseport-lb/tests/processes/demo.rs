//! The built-in worker.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use reuseport_lb::{
    adopt::queue_depths,
    worker::{DEMO_COMMAND, ExitStatus, Process, Signal},
};
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::{
    http::{Client, Identity, get},
    namespace::{eventually, in_namespace},
    stage::{EXECUTABLE, Stage},
};

/// How long the worker waits for the first request of a connection when it ends.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often something is tried that this machine can hold up for longer than [`PATIENCE`].
const TRIES: usize = 10;

/// Waits until this many connections wait in the accept queue.
fn queued(stage: &Stage, connections: u32) -> Result<()> {
    eventually(&format!("{connections} connections are queued"), || {
        let queues = queue_depths(stage.address.port())?;
        Ok(queues.values().any(|queue| queue.depth == connections).then_some(()))
    })
}

/// Stops the process, so that what comes meanwhile waits. SIGCONT lets it go on.
fn freeze(worker: &Process) -> Result<()> {
    worker.signal(Signal::STOP)?;
    let process = procfs::process::Process::new(worker.pid().try_into()?)?;
    eventually("the worker has stopped", || Ok((matches!(process.stat()?.state, 'T' | 't')).then_some(())))
}

#[test]
fn says_who_it_is() -> Result<()> {
    in_namespace(|| {
        let stage = Stage::new()?;
        let worker = stage.demo(2)?;
        let mut client = Client::connect(stage.address)?;
        // All on one connection.
        for path in ["/", "/any/thing?else", "/slow?ms=1", "/burn?ms=1", "/"] {
            let answer = client.get(path)?;
            assert_eq!(answer.status, 200, "{path}");
            assert_eq!(answer.header("content-type"), Some("application/json"));
            assert_eq!(answer.header("x-worker"), Some("2"));
            assert_eq!(answer.body, format!(r#"{{"worker":2,"pid":{}}}"#, worker.pid()));
        }
        Ok(())
    })
}

#[test]
fn refuses_times_that_make_no_sense() -> Result<()> {
    in_namespace(|| {
        let stage = Stage::new()?;
        let _worker = stage.demo(0)?;
        let mut client = Client::connect(stage.address)?;
        for path in ["/slow", "/slow?ms=abc", "/burn?ms=-1", "/burn?ms=3600001"] {
            let answer = client.get(path)?;
            assert_eq!(answer.status, 400, "{path}");
            assert!(answer.body.starts_with(r#"{"error":"ms must be"#), "{answer:?}");
        }
        assert_eq!(client.get("/")?.status, 200, "the connection lives on");
        Ok(())
    })
}

#[test]
fn sleeps_for_one_and_burns_for_all() -> Result<()> {
    in_namespace(|| {
        let stage = Stage::new()?;
        let _worker = stage.demo(0)?;
        let (mut slow, mut other) = (Client::connect(stage.address)?, Client::connect(stage.address)?);
        // For an hour, in which others are served.
        slow.send("/slow?ms=3600000")?;
        other.get("/")?;
        let started = Instant::now();
        other.get("/slow?ms=300")?;
        assert!(started.elapsed() >= Duration::from_millis(300));

        let started = Instant::now();
        other.get("/burn?ms=300")?;
        assert!(started.elapsed() >= Duration::from_millis(300));
        Ok(())
    })
}

#[test]
fn answers_who_has_nothing_more_to_say() -> Result<()> {
    in_namespace(|| {
        let stage = Stage::new()?;
        let _worker = stage.demo(0)?;
        let mut client = Client::connect(stage.address)?;
        client.send("/slow?ms=50")?;
        client.half_close()?;
        assert_eq!(client.receive()?.status, 200);
        client.closed()
    })
}

#[test]
fn after_hang_it_accepts_nothing_and_keeps_what_it_has() -> Result<()> {
    in_namespace(|| {
        let stage = Stage::new()?;
        let mut hung = stage.demo(0)?;
        let mut old = Client::connect(stage.address)?;
        assert_eq!(old.get("/hang")?.status, 200);
        let mut new = Client::connect(stage.address)?;
        new.send("/")?;
        for _ in 0..20 {
            assert_eq!(old.get("/slow?ms=5")?.status, 200);
        }
        queued(&stage, 1)?;

        // It leaves the queue alone even when it ends, so the successor finds it.
        hung.signal(Signal::TERM)?;
        old.closed()?;
        assert_eq!(stage.end(&mut hung)?, ExitStatus::Exited(0));
        let next = stage.demo(1)?;
        assert_eq!(new.receive()?.identity()?, Identity { worker: 1, pid: next.pid() });
        Ok(())
    })
}

#[test]
fn a_killed_worker_s_queue_is_served_by_its_successor() -> Result<()> {
    in_namespace(|| {
        let stage = Stage::new()?;
        let mut first = stage.demo(0)?;
        get(stage.address, "/")?;
        freeze(&first)?;
        let mut clients = Vec::new();
        for _ in 0..20 {
            let mut client = Client::connect(stage.address)?;
            client.send("/")?;
            clients.push(client);
        }
        first.signal(Signal::KILL)?;
        stage.end(&mut first)?;
        let second = stage.demo(0)?;
        for client in &mut clients {
            assert_eq!(client.receive()?.identity()?.pid, second.pid());
        }
        Ok(())
    })
}

#[test]
fn sigterm_finishes_everything_and_exits_with_0() -> Result<()> {
    in_namespace(|| {
        let stage = Stage::new()?;
        let mut worker = stage.demo(0)?;
        let mut idle = Client::connect(stage.address)?;
        idle.get("/")?;
        let mut slow = Client::connect(stage.address)?;
        slow.get("/")?;
        slow.send("/slow?ms=300")?;
        let mut silent = Client::connect(stage.address)?;
        // Answered after the connections before it were accepted.
        get(stage.address, "/")?;

        freeze(&worker)?;
        let mut waiting = Vec::new();
        for _ in 0..50 {
            let mut client = Client::connect(stage.address)?;
            client.send("/")?;
            waiting.push(client);
        }
        let mut last_words = Client::connect(stage.address)?;
        idle.send("/")?;
        queued(&stage, 51)?;
        worker.signal(Signal::TERM)?;
        let continued = Instant::now();
        worker.signal(Signal::CONT)?;

        for client in &mut waiting {
            let answer = client.receive().context("a connection that waited")?;
            assert_eq!(answer.header("connection"), Some("close"));
            client.closed()?;
        }
        match last_words.get("/") {
            Ok(answer) => assert_eq!(answer.status, 200),
            // This machine may have kept the request back for longer than the worker waits.
            Err(error) if continued.elapsed() < PATIENCE => {
                return Err(error.context("accepted, and its request was late"));
            }
            Err(_) => {}
        }
        assert_eq!(idle.receive().context("a request that was on its way")?.status, 200);
        idle.closed()?;
        assert_eq!(slow.receive()?.status, 200);
        slow.closed()?;
        silent.closed().context("a connection that never asked")?;
        assert_eq!(stage.end(&mut worker)?, ExitStatus::Exited(0));
        Ok(())
    })
}

/// How long a worker takes to end that has idle connections only.
fn end_with_idle_connections(stage: &Stage) -> Result<Duration> {
    let mut worker = stage.demo(0)?;
    let mut idle: Vec<_> = (0..10).map(|_| Client::connect(stage.address)).collect::<Result<_>>()?;
    for client in &mut idle {
        client.get("/")?;
    }
    let started = Instant::now();
    worker.signal(Signal::TERM)?;
    for client in &mut idle {
        client.closed()?;
    }
    assert_eq!(stage.end(&mut worker)?, ExitStatus::Exited(0));
    Ok(started.elapsed())
}

#[test]
fn sigterm_closes_idle_connections_at_once() -> Result<()> {
    in_namespace(|| {
        let stage = Stage::new()?;
        let mut took = Vec::new();
        // What never asked would be waited for every time.
        while took.len() < TRIES && took.iter().all(|time| *time >= PATIENCE) {
            took.push(end_with_idle_connections(&stage)?);
        }
        assert!(took.iter().any(|time| *time < PATIENCE), "{took:?}");
        Ok(())
    })
}

/// Whether the worker was stopped before it had waited for long enough: then it must answer.
#[expect(clippy::disallowed_methods, reason = "the worker's patience is to end in this time")]
fn answers_what_came_while_it_was_stopped(stage: &Stage) -> Result<bool> {
    let mut worker = stage.demo(0)?;
    let mut first = Client::connect(stage.address)?;
    // Answered after the connection before it was accepted.
    let mut idle = Client::connect(stage.address)?;
    idle.get("/")?;
    let ending = Instant::now();
    worker.signal(Signal::TERM)?;
    idle.closed()?;
    // From here on it waits a second for the first request.
    if freeze(&worker).is_err() || ending.elapsed() >= PATIENCE {
        worker.kill()?;
        stage.end(&mut worker)?;
        return Ok(false);
    }
    first.send("/")?;
    std::thread::sleep(PATIENCE + Duration::from_millis(200));
    worker.signal(Signal::CONT)?;
    assert_eq!(first.receive()?.status, 200);
    assert_eq!(stage.end(&mut worker)?, ExitStatus::Exited(0));
    Ok(true)
}

#[test]
fn a_request_that_came_in_time_is_answered_even_if_the_worker_did_not_run_then() -> Result<()> {
    in_namespace(|| {
        let stage = Stage::new()?;
        for _ in 0..TRIES {
            if answers_what_came_while_it_was_stopped(&stage)? {
                return Ok(());
            }
        }
        bail!("never was the worker stopped in time")
    })
}

#[test]
fn sigint_is_not_for_workers() -> Result<()> {
    in_namespace(|| {
        let stage = Stage::new()?;
        let worker = stage.demo(0)?;
        get(stage.address, "/")?;
        worker.signal(Signal::INT)?;
        worker.signal(Signal::INT)?;
        assert_eq!(get(stage.address, "/")?.identity()?.pid, worker.pid());
        Ok(())
    })
}

#[test]
#[expect(clippy::disallowed_methods, reason = "nothing happens in this time, which is what is measured")]
fn out_of_descriptors_it_waits_without_spinning() -> Result<()> {
    in_namespace(|| {
        let stage = Stage::new()?;
        let worker = stage.demo(0)?;
        // Stays open, so that no descriptor becomes free later.
        let mut first = Client::connect(stage.address)?;
        first.get("/")?;
        let pid = Pid::from_raw(worker.pid().try_into()?).context("pid 0")?;
        let process = procfs::process::Process::new(worker.pid().try_into()?)?;
        let open: Vec<_> = process.fd()?.map(|descriptor| Ok(descriptor?.fd)).collect::<Result<_>>()?;
        let limit = 5 + open.iter().max().context("nothing is open")?.unsigned_abs();
        let free = limit - u32::try_from(open.len())?;
        let current = Some(u64::from(limit));
        prlimit(Some(pid), Resource::Nofile, Rlimit { current, maximum: current })?;

        let clients: Vec<_> = (0..free + 6).map(|_| Client::connect(stage.address)).collect::<Result<_>>()?;
        queued(&stage, 6)?;
        let ticks = || anyhow::Ok(process.stat().map(|stat| stat.utime + stat.stime)?);
        let (before, started) = (ticks()?, Instant::now());
        // An accept that fails makes the worker wait 100 ms, so the queue is looked at about 5 times.
        std::thread::sleep(Duration::from_millis(500));
        let spent = Duration::from_secs(ticks()? - before) / u32::try_from(procfs::ticks_per_second())?;
        // What the machine does not run counts as computed, so it is compared with the time that went by.
        let time = started.elapsed();
        assert!(spent * 4 < time, "{spent:?} of computing in {time:?} while there is nothing to do");

        // Each frees its descriptor for another when it is dropped.
        for mut client in clients {
            client.send("/")?;
            assert_eq!(client.receive()?.status, 200);
        }
        Ok(())
    })
}

#[test]
fn is_for_the_daemon_to_start() -> Result<()> {
    in_namespace(|| {
        let run = |variables: &[(&str, &str)]| {
            Command::new(EXECUTABLE).arg(DEMO_COMMAND).env_clear().envs(variables.iter().copied()).output()
        };
        for variables in [&[][..], &[("REUSEPORT_LB_WORKER", "x")], &[("REUSEPORT_LB_WORKER", "1")]] {
            let output = run(variables)?;
            assert_eq!(output.status.code(), Some(1), "{output:?}");
            assert!(output.stderr.starts_with(b"reuseport-lb: "), "{output:?}");
        }
        Ok(())
    })
}
