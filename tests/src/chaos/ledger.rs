//! The account of every connection.
//!
//! A connection is served when each of its requests was answered in full by one and the same process, and it then
//! ended in order. Any other one has failed.
//!
//! There are two excuses for a failed connection:
//!
//! * It is *lost with its worker* when a worker that was killed held it: at the moment of the kill, with the worker stopped
//!   so that nothing could change any more, the socket with the client's very address and port was among the descriptors of
//!   the process. Whatever waited in the accept queue was not, and must be served.
//! * It was *closed while idle* when its server ended it in order, as any HTTP server may, while no request was open: the end
//!   of the stream (not a reset, which is what becomes of a lost accept queue) came before the client had sent its next
//!   request; or, after an earlier answer, the other host refused the request since the socket was closed already. And the
//!   process that had answered before has exited since. That happens when the only eligible worker
//!   is restarted, which cannot be drained (docs/OPERATIONS.md, "Restarting workers"). A request that a process has read is
//!   answered.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    net::SocketAddr,
    time::Instant,
};

/// How a client behaves on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// One request at once.
    Short,
    /// One request after a while.
    Late,
    /// One request that takes a while.
    Long,
    /// Several requests with pauses.
    Kept,
}

/// A worker that was killed.
#[derive(Clone, Debug)]
pub struct Kill {
    /// Its process.
    pub pid: u32,
    /// Just before SIGKILL.
    pub at: Instant,
    /// When the process was gone.
    pub gone: Instant,
    /// The clients' ends of the connections that it had accepted and not closed.
    pub held: HashSet<SocketAddr>,
}

/// A connection that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What it was.
    pub kind: Kind,
    /// The client's end, once there was one.
    pub source: Option<SocketAddr>,
    /// The process that answered earlier on the same connection.
    pub pid: Option<u32>,
    /// Just before `connect`.
    pub started: Instant,
    /// When the error was seen.
    pub ended: Instant,
    /// Whether the server closed while no request was open.
    pub idle: bool,
    /// What went wrong.
    pub error: String,
}

impl Failure {
    /// Whether this is what the kill explains.
    fn is_lost_with(&self, kill: &Kill) -> bool {
        self.source.is_some_and(|source| kill.held.contains(&source))
            // The same client's port may be used again, by another connection.
            && self.started < kill.gone
            && kill.at < self.ended
            && self.pid.is_none_or(|pid| pid == kill.pid)
    }
}

/// What has become of all connections so far.
#[derive(Debug)]
pub struct Ledger {
    begin: Instant,
    served: BTreeMap<Kind, u64>,
    kills: Vec<Kill>,
    failures: Vec<Failure>,
    settled: Settled,
    is_gone: fn(u32) -> bool,
}

/// How many there were in the rounds before, each accounted for. Process ids and ports are used again before long, so
/// nothing is to be looked up by them later.
#[derive(Clone, Copy, Debug, Default)]
struct Settled {
    kills: usize,
    held: usize,
    lost: usize,
    idle: usize,
}

impl Ledger {
    /// An empty one; times are told since `begin`, and `is_gone` says whether a process has ended.
    pub fn new(begin: Instant, is_gone: fn(u32) -> bool) -> Self {
        Self {
            begin,
            served: BTreeMap::new(),
            kills: Vec::new(),
            failures: Vec::new(),
            settled: Settled::default(),
            is_gone,
        }
    }

    /// Notes that a connection was served.
    pub fn served(&mut self, kind: Kind) {
        *self.served.entry(kind).or_default() += 1;
    }

    /// Notes that a connection failed.
    pub fn failed(&mut self, failure: Failure) {
        self.failures.push(failure);
    }

    /// Notes that a worker was killed.
    pub fn killed(&mut self, kill: Kill) {
        self.kills.push(kill);
    }

    /// All connections.
    pub fn total(&self) -> u64 {
        let Settled { kills: _, held: _, lost, idle } = self.settled;
        self.served.values().sum::<u64>() + (lost + idle + self.failures.len()) as u64
    }

    /// The failed connections that were lost with their worker.
    pub fn lost(&self) -> usize {
        self.settled.lost + self.failures.iter().filter(|failure| self.is_lost(failure)).count()
    }

    /// The failed connections that nothing excuses.
    pub fn unexplained(&self) -> Vec<&Failure> {
        self.failures
            .iter()
            .filter(|failure| {
                let excused = failure.idle && failure.pid.is_none_or(self.is_gone);
                !excused && !self.is_lost(failure)
            })
            .collect()
    }

    fn so_far(&self) -> Settled {
        let Settled { kills, held, lost: _, idle } = self.settled;
        let lost = self.lost();
        let lost_since = lost - self.settled.lost;
        Settled {
            kills: kills + self.kills.len(),
            held: held + self.kills.iter().map(|kill| kill.held.len()).sum::<usize>(),
            lost,
            idle: idle + self.failures.len() - lost_since - self.unexplained().len(),
        }
    }

    fn is_lost(&self, failure: &Failure) -> bool {
        self.kills.iter().any(|kill| failure.is_lost_with(kill))
    }

    /// Settles the accounts at a moment at which no connection is open.
    ///
    /// # Errors
    /// Every connection that nothing excuses, as text.
    pub fn settle(&mut self) -> Result<(), String> {
        let unexplained = self.unexplained();
        if unexplained.is_empty() {
            self.settled = self.so_far();
            self.kills.clear();
            self.failures.clear();
            return Ok(());
        }
        let since = |when: Instant| when.duration_since(self.begin).as_secs_f64();
        let lines: Vec<_> = unexplained
            .iter()
            .map(|failure| {
                let Failure { kind, source, pid, started, ended, idle: _, error } = failure;
                let (from, to) = (since(*started), since(*ended));
                format!("{from:9.3}s to {to:9.3}s  {kind:?} from {source:?}, process {pid:?}: {error}")
            })
            .collect();
        Err(format!(
            "{} of {} connections failed, and nothing excuses it:\n{}",
            unexplained.len(),
            self.total(),
            lines.join("\n")
        ))
    }
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} connections; served:", self.total())?;
        for (kind, count) in &self.served {
            write!(f, " {count} {kind:?}")?;
        }
        let Settled { kills, held, lost, idle } = self.so_far();
        write!(
            f,
            "; {kills} workers killed, which held {held} connections; lost with them: {lost}; closed while idle: {idle}; \
             failed otherwise: {}",
            self.unexplained().len()
        )
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_what_a_killed_worker_held_or_an_ended_one_closed_is_excused() {
        const GONE: u32 = 9;
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let source = |port| SocketAddr::from(([10, 0, 0, 1], port));
        let kill = Kill { pid: 5, at: at(100), gone: at(110), held: [source(1)].into() };
        let failure = |port: Option<u16>, pid, started, ended| Failure {
            kind: Kind::Short,
            source: port.map(source),
            pid,
            started: at(started),
            ended: at(ended),
            idle: false,
            error: "reset".to_owned(),
        };
        let idle = |failure| Failure { idle: true, ..failure };
        for (what, failure, lost, excused) in [
            ("held", failure(Some(1), None, 50, 105), true, true),
            ("held, and answered before by the same process", failure(Some(1), Some(5), 50, 105), true, true),
            ("held, but served by another process", failure(Some(1), Some(6), 50, 105), false, false),
            ("not held: it waited in the queue", failure(Some(2), None, 50, 105), false, false),
            ("failed before the kill", failure(Some(1), None, 50, 99), false, false),
            ("started after it", failure(Some(1), None, 111, 120), false, false),
            ("never connected", failure(None, None, 50, 105), false, false),
            ("idle, and its process ended", idle(failure(Some(2), Some(GONE), 50, 105)), false, true),
            ("idle, but its process is still there", idle(failure(Some(2), Some(6), 50, 105)), false, false),
            ("idle before its first request", idle(failure(Some(2), None, 50, 105)), false, true),
            ("in a request of a process that ended", failure(Some(2), Some(GONE), 50, 105), false, false),
        ] {
            let mut ledger = Ledger::new(begin, |pid| pid == GONE);
            ledger.killed(kill.clone());
            ledger.served(Kind::Long);
            ledger.failed(failure);
            assert_eq!(ledger.lost() == 1, lost, "{what}");
            assert_eq!(ledger.unexplained().is_empty(), excused, "{what}");
            assert_eq!(ledger.total(), 2);
            assert_eq!(ledger.settle().is_ok(), excused, "{what}");
            assert_eq!((ledger.lost() == 1, ledger.total()), (lost, 2), "{what}");
        }
    }
}
