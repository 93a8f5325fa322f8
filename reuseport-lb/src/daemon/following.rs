//! Following sockets that others open and close: which are there, whose they are, and taking them in.

use std::{
    collections::{BTreeSet, HashSet},
    fmt, io,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use reuseport_lb_ebpf::listen::ListenEvent;

use super::{
    owners::watch,
    runner::Runner,
    socket::{Found, Socket},
};
use crate::{
    adopt::{self, Kind, Owner, TakeError},
    chain::chain,
    config::Sockets,
    datapath,
    group::WorkerId,
};

/// How long after the news of a socket it is looked for: the kernel tells a moment before the socket is part of its
/// group, and a server that opens many does so in one go.
const FIRST_LOOK: Duration = Duration::from_millis(1);

/// A socket that was told of and is not there after looking for it ever more seldom for so long is none of ours.
const LAST_LOOK: Duration = Duration::from_secs(1);

/// What is known of sockets that are not the daemon's own.
#[derive(Debug, Default)]
pub(super) struct Following {
    /// When to look at the sockets, if that is due at all.
    look_at: Option<Instant>,
    delay: Duration,
    /// Sockets that were told to listen, and not seen yet.
    announced: BTreeSet<u64>,
    /// The processes that did it.
    hints: BTreeSet<u32>,
    /// Sockets that are there and not taken in. Each is told of once.
    left_out: HashSet<u64>,
    /// What all sockets of the group have in common.
    kind: Option<Kind>,
}

impl Following {
    /// When to look next.
    pub(super) const fn look_at(&self) -> Option<Instant> {
        self.look_at
    }

    /// Something has changed.
    pub(super) fn look_soon(&mut self, now: Instant) {
        self.delay = FIRST_LOOK;
        let soon = now + FIRST_LOOK;
        self.look_at = Some(self.look_at.map_or(soon, |at| at.min(soon)));
    }

    fn told(&mut self, event: ListenEvent, now: Instant) {
        let ListenEvent { cookie, pid, listens } = event;
        if listens == 0 {
            self.announced.remove(&cookie);
        } else {
            self.announced.insert(cookie);
            self.hints.insert(pid);
        }
        self.look_soon(now);
    }

    /// These sockets were seen, all there are.
    fn saw(&mut self, cookies: &HashSet<u64>, now: Instant) {
        self.announced.retain(|cookie| !cookies.contains(cookie));
        self.left_out.retain(|cookie| cookies.contains(cookie));
        self.look_at = None;
        if !self.announced.is_empty() && self.delay < LAST_LOOK {
            self.look_at = Some(now + self.delay);
            self.delay *= 2;
        } else {
            self.announced.clear();
            self.hints.clear();
        }
    }
}

/// A socket of the group that is not steered, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// The socket.
    pub listener: adopt::Listener,
    /// Who holds it.
    pub owners: Vec<Owner>,
    /// Why it is not taken in.
    pub why: String,
}

/// Such as `the socket of nginx (pid 123) at 0.0.0.0:80: …`.
impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { listener, owners, why } = self;
        let address = listener.address;
        match adopt::serving(owners) {
            Some(owner) => write!(f, "the socket of {owner} at {address}: {why}"),
            None => write!(f, "a socket of user {} at {address}: {why}", listener.uid),
        }
    }
}

impl Runner {
    /// Whether sockets are others' to open and close.
    pub(super) const fn follows(&self) -> bool {
        !matches!(self.spec.sockets, Sockets::HandedOver)
    }

    /// A socket has begun or ceased to listen.
    pub(super) fn told(&mut self, event: ListenEvent) {
        self.following.told(event, Instant::now());
    }

    /// Looks at the sockets, if that is due.
    pub(super) fn follow_when_due(&mut self) {
        let now = Instant::now();
        if self.following.look_at.is_none_or(|at| at > now) {
            return;
        }
        match self.follow() {
            Ok(left_out) => {
                for left_out in left_out {
                    tracing::warn!(
                        group = self.spec.name,
                        "not steered, so without new connections: {left_out}"
                    );
                }
            }
            Err(error) => {
                tracing::error!(group = self.spec.name, %error, "cannot list the listening sockets");
                self.following.look_at = Some(now + LAST_LOOK);
            }
        }
    }

    /// Makes the workers those whose sockets are there. Gives the sockets that could not be taken in and were not told
    /// of before.
    pub(super) fn follow(&mut self) -> io::Result<Vec<LeftOut>> {
        let listen = self.spec.listen;
        let mut present = self.netns.within(|| adopt::listeners(listen.port()))??;
        present.retain(|listener| adopt::is_at(listener, listen));
        present.sort_by_key(|listener| listener.cookie);
        let cookies: HashSet<u64> = present.iter().map(|listener| listener.cookie).collect();

        self.let_go(&cookies);
        let known: HashSet<u64> = self.listeners.values().map(Socket::cookie).collect();
        let is_new = |cookie| !known.contains(&cookie) && !self.following.left_out.contains(&cookie);
        present.retain(|listener| is_new(listener.cookie));
        let left_out = if present.is_empty() { vec![] } else { self.take_in(present) };
        self.following.left_out.extend(left_out.iter().map(|left_out| left_out.listener.cookie));
        self.following.saw(&cookies, Instant::now());
        Ok(left_out)
    }

    /// Lets the workers go whose sockets are closed.
    fn let_go(&mut self, present: &HashSet<u64>) {
        let gone: Vec<WorkerId> = self
            .listeners
            .iter()
            .filter(|(_, socket)| !present.contains(&socket.cookie()))
            .map(|(id, _)| *id)
            .collect();
        for id in &gone {
            self.listeners.remove(id);
            if self.group.is_adopted() {
                self.group.left(*id);
            } else {
                self.group.closed(*id);
            }
            tracing::info!(group = self.spec.name, worker = id.0, "socket closed");
        }
        if !gone.is_empty()
            && let Err(error) = self.apply()
        {
            tracing::error!(
                group = self.spec.name,
                error = chain(&error),
                "cannot let go of sockets that are closed"
            );
        }
    }

    /// Makes workers of sockets that were not there before.
    fn take_in(&mut self, strangers: Vec<adopt::Listener>) -> Vec<LeftOut> {
        let inodes: Vec<u32> = strangers.iter().map(|listener| listener.inode).collect();
        let mut owners = adopt::owners_among(self.following.hints.iter().copied(), &inodes);
        if inodes.iter().any(|inode| owners.iter().all(|owner| owner.inode != *inode)) {
            owners = adopt::owners(&inodes);
        }
        let mut left_out = Vec::new();
        let mut taken = Vec::new();
        for listener in strangers {
            let owners = adopt::held(&owners, listener.inode);
            match self.handle_on(&listener, &owners) {
                Ok(handle) => taken.push((listener, owners, handle)),
                Err(None) => {}
                Err(Some(why)) => left_out.push(LeftOut { listener, owners, why }),
            }
        }
        // All at once, since each commit waits for the programs; and one by one when one of them is refused.
        let mut added = Vec::new();
        for (listener, owners, handle) in &taken {
            match self.add(listener, owners, handle) {
                Ok(id) => added.push(id),
                Err(why) => {
                    left_out.push(LeftOut { listener: listener.clone(), owners: owners.clone(), why });
                }
            }
        }
        if self.apply().is_err() {
            for id in added.drain(..) {
                self.take_back(id);
            }
            for (listener, owners, handle) in taken {
                // What `add` refuses was told above.
                let Ok(id) = self.add(&listener, &owners, &handle) else { continue };
                if let Err(error) = self.apply() {
                    self.take_back(id);
                    left_out.push(LeftOut { listener, owners, why: explain(&error) });
                }
            }
        }
        for (id, socket) in &mut self.listeners {
            if let Socket::Found(found) = socket
                && found.fresh.take().is_some()
            {
                let Found { owner, listener, .. } = found;
                let (pid, cookie) = (owner.pid, listener.cookie);
                tracing::info!(
                    group = self.spec.name,
                    worker = id.0,
                    pid,
                    cookie,
                    "socket of {owner} taken in"
                );
            }
        }
        left_out
    }

    /// A handle on a socket that may be one of the group. No reason means that it is gone again.
    fn handle_on(&mut self, listener: &adopt::Listener, owners: &[Owner]) -> Result<OwnedFd, Option<String>> {
        let kind = Kind::of(listener);
        let common = *self.following.kind.get_or_insert(kind);
        if kind.uid != common.uid {
            return Err(Some(format!(
                "it is user {}'s and the group is user {}'s, so the kernel keeps them apart",
                kind.uid, common.uid
            )));
        }
        if kind != common {
            return Err(Some(
                "it takes another kind of addresses than the group, so the kernel keeps them apart".into(),
            ));
        }
        let handle = adopt::take(listener.inode, listener.cookie, owners).map_err(|error| match error {
            TakeError::Gone => None,
            error => Some(error.to_string()),
        })?;
        match rustix::net::sockopt::socket_reuseport(&handle) {
            Ok(true) => Ok(handle),
            Ok(false) => Err(Some(
                "it was opened without SO_REUSEPORT, so it is alone and there is nothing to steer".into(),
            )),
            Err(error) => Err(Some(error.to_string())),
        }
    }

    /// Makes a socket that of a worker: of a new one, or of the one that has opened it.
    fn add(
        &mut self,
        listener: &adopt::Listener,
        owners: &[Owner],
        handle: &OwnedFd,
    ) -> Result<WorkerId, String> {
        let fresh = handle.try_clone().map_err(|error| error.to_string())?;
        let owner = adopt::serving(owners).ok_or("no process that holds it can be seen")?.clone();
        let id = if self.group.is_adopted() {
            self.group
                .join(owner.pid, Instant::now())
                .ok_or_else(|| format!("the group has {} workers already", crate::config::MAX_WORKERS))?
        } else {
            let id = self.who_opened(owners)?;
            self.group.bound(id, Instant::now());
            id
        };
        let watch = self.group.is_adopted().then(|| watch(self.events.clone(), id, owner.pid)).flatten();
        let found = Found { listener: listener.clone(), owner, fresh: Some(fresh), watch };
        self.listeners.insert(id, Socket::Found(found));
        Ok(id)
    }

    /// The worker whose process, or one that it started, holds a socket.
    fn who_opened(&self, owners: &[Owner]) -> Result<WorkerId, String> {
        let opened = |pid: u32| owners.iter().any(|owner| adopt::descends(owner.pid, pid));
        let mut workers = self
            .group
            .workers()
            .filter(|(_, worker)| worker.pid().is_some_and(opened))
            .map(|(id, _)| id)
            .peekable();
        let Some(first) = workers.peek().copied() else {
            return Err("its process is no worker of this group".into());
        };
        workers.find(|id| !self.listeners.contains_key(id)).ok_or_else(|| {
            format!("worker {first} has opened one before, and a worker has one; `adopt` takes all")
        })
    }

    fn take_back(&mut self, id: WorkerId) {
        self.listeners.remove(&id);
        if self.group.is_adopted() {
            self.group.forget(id);
        } else {
            self.group.closed(id);
        }
    }
}

/// What went wrong with a socket, in the words of somebody who runs servers.
fn explain(error: &datapath::Error) -> String {
    if error.is_busy() {
        "another program steers it already: it is in that program's socket array".into()
    } else {
        chain(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(cookie: u64, listens: u32) -> ListenEvent {
        ListenEvent { cookie, pid: 1, listens }
    }

    #[test]
    fn a_socket_that_is_told_of_is_looked_for_until_it_is_there() {
        let start = Instant::now();
        let mut following = Following::default();
        assert_eq!(following.look_at(), None);
        following.told(told(7, 1), start);
        assert_eq!(following.look_at(), Some(start + FIRST_LOOK));
        // Not there yet.
        following.saw(&HashSet::new(), start);
        assert_eq!(following.look_at(), Some(start + FIRST_LOOK));
        following.saw(&HashSet::from([7]), start);
        assert_eq!(following.look_at(), None);
    }

    #[test]
    fn a_socket_that_never_comes_is_given_up() {
        let start = Instant::now();
        let mut following = Following::default();
        following.told(told(7, 1), start);
        let looks = (0..100).take_while(|_| {
            following.saw(&HashSet::new(), start);
            following.look_at().is_some()
        });
        assert!(looks.count() < 12);
        following.told(told(8, 1), start);
        following.told(told(8, 0), start);
        following.saw(&HashSet::new(), start);
        assert_eq!(following.look_at(), None);
    }
}
