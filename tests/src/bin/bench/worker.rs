//! The worker of the benchmarks: the cheapest server that is fair to everybody who puts a connection before it.
//!
//! One process, one thread, one event loop. It takes a connection, reads one request of [`REQUEST_BYTES`], answers
//! with as many, of which the first two say who answers, and closes, or keeps the connection when the request says so.
//! Whatever takes longer stops the whole worker, as a busy server is stopped.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Args;
use reuseport_lb::worker::WORKER_VARIABLE;
use rustix::{
    buffer::spare_capacity,
    event::{PollFd, PollFlags, Timespec, epoll, poll},
    io::Errno,
    net::{RecvFlags, SendFlags, SocketFlags, accept_with, recv, send},
    thread::{ClockId, CpuSet, clock_nanosleep_relative, sched_setaffinity},
};
use socket2::{Domain, Socket, Type};

/// The length of a request and of an answer: that of a small line of HTTP.
pub(crate) const REQUEST_BYTES: usize = 64;
/// The first byte of a request after whose answer the worker closes.
pub(crate) const CLOSE: u8 = b'c';
/// The first byte of a request after whose answer the connection stays.
pub(crate) const KEEP: u8 = b'k';

/// Where workers listen for themselves: this port and their number.
pub(crate) const OWN_PORT: u16 = 20_000;

/// The backlog of a worker's own socket, as large as that of the group's.
const BACKLOG: i32 = 4096;

/// What a worker is told. Its number comes from the environment.
#[derive(Args, Debug, Default)]
pub(crate) struct Options {
    /// Run on one CPU only: that of the worker's number.
    #[arg(long)]
    pin: bool,
    /// Also listen on a port of its own, for a proxy.
    #[arg(long)]
    own_port: bool,
    /// The worker that takes this long for each request.
    #[arg(long, value_name = "ID=TIME", value_parser = slow)]
    slow: Option<(u16, Duration)>,
    /// The worker whose requests have a heavy tail.
    #[arg(long, value_name = "ID")]
    tail: Option<u16>,
}

fn slow(text: &str) -> Result<(u16, Duration)> {
    let (id, time) = text.split_once('=').context("ID=TIME")?;
    Ok((id.parse()?, humantime::parse_duration(time)?))
}

/// Serves until it is killed. The group's socket is in `LISTEN_FDS`, or else is the standard input.
pub(crate) fn run(options: &Options) -> Result<()> {
    let id: u16 =
        std::env::var(WORKER_VARIABLE).context(WORKER_VARIABLE)?.parse().context(WORKER_VARIABLE)?;
    if options.pin {
        pin(id.into())?;
    }
    let socket = match listenfd::ListenFd::from_env().take_tcp_listener(0)? {
        Some(socket) => socket.into(),
        None => std::io::stdin().as_fd().try_clone_to_owned()?,
    };
    let mut worker = Worker::new(id, options)?;
    worker.listen(socket)?;
    if options.own_port {
        let own = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        own.set_reuse_address(true)?;
        own.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, OWN_PORT + id)).into())?;
        own.listen(BACKLOG)?;
        worker.listen(own.into())?;
    }
    worker.serve()
}

/// Keeps the calling thread on one CPU; `n` counts round those that there are.
pub(crate) fn pin(n: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(n % std::thread::available_parallelism()?.get());
    sched_setaffinity(None, &set).context("sched_setaffinity")
}

struct Worker {
    answer: [u8; REQUEST_BYTES],
    time: ServiceTime,
    epoll: OwnedFd,
    listeners: Vec<OwnedFd>,
    connections: HashMap<u64, OwnedFd>,
}

impl Worker {
    fn new(id: u16, options: &Options) -> Result<Self> {
        let mut answer = [b'.'; REQUEST_BYTES];
        answer[..2].copy_from_slice(&id.to_be_bytes());
        let time = match *options {
            Options { slow: Some((slow, time)), .. } if slow == id => ServiceTime::Fixed(time),
            Options { tail: Some(tail), .. } if tail == id => ServiceTime::Tail { random: 1 },
            _ => ServiceTime::Nothing,
        };
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context("epoll_create")?;
        Ok(Self { answer, time, epoll, listeners: Vec::new(), connections: HashMap::new() })
    }

    fn listen(&mut self, socket: OwnedFd) -> Result<()> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        // Listeners are known by their index, connections by their descriptor, which is never that small.
        let data = epoll::EventData::new_u64(self.listeners.len() as u64);
        epoll::add(&self.epoll, &socket, data, epoll::EventFlags::IN).context("epoll_ctl")?;
        self.listeners.push(socket);
        Ok(())
    }

    fn serve(&mut self) -> Result<()> {
        let mut ready = Vec::with_capacity(64);
        loop {
            ready.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut ready), None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("epoll_wait"),
            }
            for event in ready.iter().map(|event| event.data.u64()) {
                if event < self.listeners.len() as u64 {
                    self.accept(event as usize)?;
                } else if let Some(connection) = self.connections.remove(&event) {
                    self.request(connection, true);
                }
            }
        }
    }

    fn accept(&mut self, listener: usize) -> Result<()> {
        loop {
            match accept_with(&self.listeners[listener], SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                // Most often the request is there already, which saves asking for it.
                Ok(connection) => self.request(connection, false),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::CONNABORTED | Errno::INTR) => {}
                Err(error) => return Err(error).context("accept"),
            }
        }
    }

    /// Answers the request that a connection has, if it has one. An error is the client's business.
    fn request(&mut self, connection: OwnedFd, watched: bool) {
        let mut request = [0; REQUEST_BYTES];
        let kept = match recv(&connection, &mut request, RecvFlags::empty()) {
            Err(Errno::AGAIN) => true,
            Ok((1.., _)) => {
                self.work(&connection);
                send(&connection, &self.answer, SendFlags::NOSIGNAL).is_ok() && request[0] == KEEP
            }
            _ => false,
        };
        if !kept {
            return;
        }
        let key = connection.as_raw_fd().cast_unsigned().into();
        if watched
            || epoll::add(&self.epoll, &connection, epoll::EventData::new_u64(key), epoll::EventFlags::IN)
                .is_ok()
        {
            self.connections.insert(key, connection);
        }
    }

    /// Takes the time that a request takes here, unless its client has gone: nobody waits for it then.
    fn work(&mut self, connection: &OwnedFd) {
        let time = self.time.next();
        if time.is_zero() {
            return;
        }
        let mut client = [PollFd::new(connection, PollFlags::empty())];
        let gone = poll(&mut client, Some(&Timespec::default())).is_ok_and(|events| events > 0);
        if !gone && let Ok(time) = Timespec::try_from(time) {
            // The thread does nothing else meanwhile, and that is what is wanted.
            let _ = clock_nanosleep_relative(ClockId::Monotonic, &time);
        }
    }
}

/// How long requests take.
#[derive(Clone, Copy, Debug)]
enum ServiceTime {
    Nothing,
    Fixed(Duration),
    /// A bounded Pareto distribution; see [`pareto`].
    Tail {
        random: u64,
    },
}

impl ServiceTime {
    fn next(&mut self) -> Duration {
        match self {
            Self::Nothing => Duration::ZERO,
            Self::Fixed(time) => *time,
            Self::Tail { random } => {
                *random = random.wrapping_add(1);
                pareto(uniform(*random))
            }
        }
    }
}

/// A number of `0..1`, as good as random, that belongs to `n`.
pub(crate) fn uniform(n: u64) -> f64 {
    // 53 bits are what the type holds exactly.
    (reuseport_lb_ebpf::flow::mix(n) >> 11) as f64 / (1_u64 << 53) as f64
}

/// The quantile `u` of the service time with a heavy tail: a Pareto distribution with the exponent 1.1, between 0.2 and
/// 500 ms. The mean is 1.2 ms; one request in 440 takes 50 ms and more.
fn pareto(u: f64) -> Duration {
    const SHAPE: f64 = 1.1;
    const LEAST_S: f64 = 0.000_2;
    const MOST_S: f64 = 0.5;
    let ratio = (LEAST_S / MOST_S).powf(SHAPE);
    Duration::from_secs_f64(LEAST_S / (1.0 - u * (1.0 - ratio)).powf(1.0 / SHAPE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_as_heavy_as_it_says() {
        assert_eq!(pareto(0.0), Duration::from_micros(200));
        assert!(pareto(1.0).abs_diff(Duration::from_millis(500)) < Duration::from_micros(1));
        let times: Vec<f64> = (0..100_000).map(|n| pareto(uniform(n)).as_secs_f64()).collect();
        let mean = times.iter().sum::<f64>() / times.len() as f64;
        assert!((0.001..0.001_4).contains(&mean), "{mean}");
        let long = times.iter().filter(|time| **time >= 0.05).count();
        assert!((150..320).contains(&long), "{long}");
    }

    #[test]
    fn uniform_numbers_are_uniform() {
        let mean = (0..10_000).map(uniform).sum::<f64>() / 10_000.0;
        assert!((0.48..0.52).contains(&mean), "{mean}");
    }
}
