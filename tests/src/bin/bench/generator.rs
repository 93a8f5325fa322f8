//! The load: connections made by a thread a CPU, each of them timed from before `connect` to the first byte of the
//! answer, and accounted for.
//!
//! The threads and the workers share all CPUs, so that whatever a connection costs, on either side of it, is missing for
//! the next one: no idle CPU hides it.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use hdrhistogram::Histogram;
use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send, socket_with,
        sockopt::set_socket_linger,
    },
};

use crate::worker::{CLOSE, KEEP, REQUEST_BYTES, pin, uniform};

/// How a load is paced.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// So many connections are always under way: the next one begins when one ends.
    Closed {
        /// Altogether, over all threads.
        in_flight: usize,
    },
    /// Connections begin at random moments (a Poisson process), whatever became of those before. Their time counts
    /// from that moment, so that a stall is felt by all who would have come meanwhile.
    Open {
        /// The mean rate.
        per_second: f64,
    },
}

/// What to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Whom to connect to.
    pub(crate) server: SocketAddr,
    pub(crate) pace: Pace,
    /// No connection begins after that.
    pub(crate) time: Duration,
    /// What ends within this time from the start is not counted.
    pub(crate) warm_up: Duration,
    /// When a client gives up, and its connection has failed.
    pub(crate) patience: Duration,
    /// The connections to make, and to keep open; otherwise each is closed after its answer.
    pub(crate) keep: Option<usize>,
}

/// What became of the connections of a load.
#[derive(Debug)]
pub(crate) struct Account {
    /// Of each answered connection the time to the first byte, in ns, and of each that was given up the time until then.
    pub(crate) times: Histogram<u64>,
    /// The connections that each worker answered.
    pub(crate) by_worker: Vec<u64>,
    /// When each answered connection was begun, and how long it took; only of those that took longer than
    /// [`LONG`](Self::LONG), by worker.
    pub(crate) long: Vec<(u16, Instant, Duration)>,
    /// Refused or reset.
    pub(crate) broken: u64,
    /// Given up for want of an answer.
    pub(crate) timed_out: u64,
    /// The time in which what is counted ended.
    pub(crate) elapsed: Duration,
    /// Those that were to be kept.
    pub(crate) kept: Vec<OwnedFd>,
}

impl Account {
    /// From here on an answer is remembered by itself.
    const LONG: Duration = Duration::from_millis(30);

    fn new() -> Self {
        Self {
            times: new_histogram(),
            by_worker: Vec::new(),
            long: Vec::new(),
            broken: 0,
            timed_out: 0,
            elapsed: Duration::ZERO,
            kept: Vec::new(),
        }
    }

    /// The answered connections.
    pub(crate) fn answered(&self) -> u64 {
        self.times.len() - self.timed_out
    }

    /// The connections without an answer.
    pub(crate) fn failed(&self) -> u64 {
        self.broken + self.timed_out
    }

    /// The answered connections a second.
    pub(crate) fn per_second(&self) -> f64 {
        self.answered() as f64 / self.elapsed.as_secs_f64()
    }

    fn time(&mut self, time: Duration) {
        self.times.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    fn answer(&mut self, worker: u16, begun: Instant, time: Duration) {
        self.time(time);
        let index = usize::from(worker);
        if self.by_worker.len() <= index {
            self.by_worker.resize(index + 1, 0);
        }
        self.by_worker[index] += 1;
        if time > Self::LONG {
            self.long.push((worker, begun, time));
        }
    }

    fn add(&mut self, other: Self) -> Result<()> {
        let Self { times, by_worker, long, broken, timed_out, elapsed, kept } = other;
        self.times.add(times).context("histogram")?;
        self.by_worker.resize(self.by_worker.len().max(by_worker.len()), 0);
        for (sum, count) in self.by_worker.iter_mut().zip(by_worker) {
            *sum += count;
        }
        self.long.extend(long);
        self.broken += broken;
        self.timed_out += timed_out;
        self.elapsed = self.elapsed.max(elapsed);
        self.kept.extend(kept);
        Ok(())
    }
}

/// From a microsecond to a minute, with three digits.
pub(crate) fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, 60_000_000_000, 3).unwrap_or_else(|error| panic!("bounds: {error}"))
}

/// Runs a load to its end, from the thread's network namespace.
pub(crate) fn run(load: &Load) -> Result<Account> {
    let threads = thread::available_parallelism().context("cannot count the CPUs")?.get();
    let begin = Barrier::new(threads);
    thread::scope(|scope| {
        let begin = &begin;
        let started: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || {
                    let driver = pin(thread).and_then(|()| Driver::new(load, thread, threads));
                    begin.wait();
                    driver?.run()
                })
            })
            .collect();
        let mut account = Account::new();
        for thread in started {
            let Ok(part) = thread.join() else { bail!("a thread of the generator panicked") };
            account.add(part?)?;
        }
        Ok(account)
    })
}

/// One connection under way.
#[derive(Debug)]
struct Connection {
    socket: OwnedFd,
    begun: Instant,
    sent: bool,
    /// Which use of its place this is.
    generation: u32,
}

/// One thread's part of the load.
struct Driver<'a> {
    load: &'a Load,
    request: [u8; REQUEST_BYTES],
    epoll: OwnedFd,
    start: Instant,
    /// How many may be under way.
    room: usize,
    /// How many may still begin.
    left: usize,
    /// In an open loop: when the next one is to begin.
    due: Instant,
    /// In an open loop: the mean time between two.
    gap: Duration,
    random: u64,
    places: Vec<Option<Connection>>,
    free: Vec<usize>,
    generation: u32,
    /// The order in which connections began, for giving up.
    begun: VecDeque<(Instant, usize, u32)>,
    account: Account,
}

impl<'a> Driver<'a> {
    fn new(load: &'a Load, thread: usize, threads: usize) -> Result<Self> {
        let share = |total: usize| total / threads + usize::from(thread < total % threads);
        let (room, gap) = match load.pace {
            Pace::Closed { in_flight } => (share(in_flight), Duration::ZERO),
            Pace::Open { per_second } => (usize::MAX, Duration::from_secs_f64(threads as f64 / per_second)),
        };
        let mut request = [b'.'; REQUEST_BYTES];
        request[0] = if load.keep.is_some() { KEEP } else { CLOSE };
        let now = Instant::now();
        Ok(Self {
            load,
            request,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC).context("epoll_create")?,
            start: now,
            room,
            left: load.keep.map_or(usize::MAX, share),
            due: now,
            gap,
            // Each thread has its own numbers, and the same ones each time.
            random: (thread as u64) << 32,
            places: Vec::new(),
            free: Vec::new(),
            generation: 0,
            begun: VecDeque::new(),
            account: Account::new(),
        })
    }

    fn run(mut self) -> Result<Account> {
        self.start = Instant::now();
        self.due = self.start;
        let mut ready = Vec::with_capacity(256);
        loop {
            let now = Instant::now();
            self.begin_due(now)?;
            self.give_up(now);
            let under_way = self.places.len() - self.free.len();
            if under_way == 0 && !self.may_begin(now) {
                break;
            }
            ready.clear();
            let timeout = Timespec::try_from(self.next_event(now).saturating_duration_since(now))?;
            match epoll::wait(&self.epoll, spare_capacity(&mut ready), Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("epoll_wait"),
            }
            for event in &ready {
                self.handle(event.data.u64());
            }
        }
        self.account.elapsed = match self.load.keep {
            // The last one ended just now.
            Some(_) => self.start.elapsed(),
            None => self.load.time - self.load.warm_up,
        };
        Ok(self.account)
    }

    fn may_begin(&self, now: Instant) -> bool {
        self.left > 0 && now.duration_since(self.start) < self.load.time
    }

    fn begin_due(&mut self, now: Instant) -> Result<()> {
        match self.load.pace {
            Pace::Closed { .. } => {
                while self.places.len() - self.free.len() < self.room && self.may_begin(Instant::now()) {
                    self.begin(Instant::now())?;
                }
            }
            Pace::Open { .. } => {
                while self.due <= now && self.may_begin(self.due) {
                    self.begin(self.due)?;
                    self.random += 1;
                    self.due += self.gap.mul_f64(-(1.0 - uniform(self.random)).ln());
                }
            }
        }
        Ok(())
    }

    /// When there is something to do even if nothing happens.
    fn next_event(&self, now: Instant) -> Instant {
        let give_up = self.begun.front().map(|(begun, ..)| *begun + self.load.patience);
        let due = (!self.gap.is_zero() && self.may_begin(self.due)).then_some(self.due);
        give_up.into_iter().chain(due).min().unwrap_or(now)
    }

    fn begin(&mut self, begun: Instant) -> Result<()> {
        self.left -= 1;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).context("socket")?;
        // Closed by a reset, a connection leaves no TIME_WAIT behind, and ports are never used up.
        set_socket_linger(&socket, Some(Duration::ZERO)).context("SO_LINGER")?;
        match connect(&socket, &self.load.server) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(_) => {
                self.account.broken += 1;
                return Ok(());
            }
        }
        // Over loopback the handshake is over when `connect` returns.
        let sent = send(&socket, &self.request, SendFlags::NOSIGNAL).is_ok();
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        self.generation = self.generation.wrapping_add(1);
        let data = epoll::EventData::new_u64((u64::from(self.generation) << 32) | place as u64);
        let mut events = epoll::EventFlags::IN;
        if !sent {
            events |= epoll::EventFlags::OUT;
        }
        epoll::add(&self.epoll, &socket, data, events).context("epoll_ctl")?;
        self.begun.push_back((begun, place, self.generation));
        self.places[place] = Some(Connection { socket, begun, sent, generation: self.generation });
        Ok(())
    }

    fn handle(&mut self, data: u64) {
        let (place, generation) = ((data & u64::from(u32::MAX)) as usize, (data >> 32) as u32);
        let Some(connection) = self.places[place].as_mut().filter(|here| here.generation == generation)
        else {
            return;
        };
        if !connection.sent {
            match send(&connection.socket, &self.request, SendFlags::NOSIGNAL) {
                Ok(_) => {
                    connection.sent = true;
                    let data = epoll::EventData::new_u64(data);
                    if epoll::modify(&self.epoll, &connection.socket, data, epoll::EventFlags::IN).is_ok() {
                        return;
                    }
                }
                Err(Errno::AGAIN) => return,
                Err(_) => {}
            }
            self.end(place, None);
            return;
        }
        let mut answer = [0; REQUEST_BYTES];
        match recv(&connection.socket, &mut answer, RecvFlags::empty()) {
            Err(Errno::AGAIN) => {}
            Ok((REQUEST_BYTES, _)) => self.end(place, Some(u16::from_be_bytes([answer[0], answer[1]]))),
            _ => self.end(place, None),
        }
    }

    /// Ends what is in a place: a worker has answered, or it has failed.
    fn end(&mut self, place: usize, worker: Option<u16>) {
        let Some(connection) = self.places[place].take() else { return };
        self.free.push(place);
        while self.begun.front().is_some_and(|(_, place, generation)| {
            self.places[*place].as_ref().is_none_or(|here| here.generation != *generation)
        }) {
            self.begun.pop_front();
        }
        let now = Instant::now();
        let Some(worker) = worker else {
            self.account.broken += 1;
            return;
        };
        let since_start = now.duration_since(self.start);
        // In a closed loop the rate is what ends within the time; in an open one everyone counts.
        let late = matches!(self.load.pace, Pace::Closed { .. }) && since_start > self.load.time;
        if since_start >= self.load.warm_up && !late {
            self.account.answer(worker, connection.begun, now.duration_since(connection.begun));
        }
        if self.load.keep.is_some() {
            self.account.kept.push(connection.socket);
        }
    }

    fn give_up(&mut self, now: Instant) {
        while let Some((begun, place, generation)) = self.begun.front().copied() {
            if now.duration_since(begun) < self.load.patience {
                return;
            }
            self.begun.pop_front();
            if self.places[place].as_ref().is_some_and(|here| here.generation == generation) {
                self.places[place] = None;
                self.free.push(place);
                self.account.timed_out += 1;
                self.account.time(self.load.patience);
            }
        }
    }
}
