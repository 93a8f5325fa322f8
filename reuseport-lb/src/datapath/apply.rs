//! Carries out the steps of a plan, whole or not at all.

use std::os::fd::BorrowedFd;

use super::{Datapath, Error, Selection};
use crate::{
    plan::{State, Step, steps},
    policy::{ring::Ring, shares},
};

/// A datapath, and what has been applied to it.
#[derive(Debug)]
pub struct Applied<D> {
    datapath: D,
    state: State,
    ring: Ring,
    shares: Vec<u16>,
}

impl<D: Datapath> Applied<D> {
    /// A datapath to which nothing has been applied, for a group that begins with `workers` workers.
    pub fn new(datapath: D, workers: u16) -> Self {
        let ring = Ring::new(Ring::size_for(workers));
        Self { datapath, state: State::default(), ring, shares: Vec::new() }
    }

    /// The datapath, to read from it.
    pub const fn datapath(&self) -> &D {
        &self.datapath
    }

    /// Makes the kernel's side what `desired` says.
    ///
    /// `socket` gives the socket of a slot, for each slot in `desired.sockets`.
    ///
    /// # Errors
    ///
    /// Everything is as before then. Should the way back fail too, what remains is safe for connections, and the
    /// next call goes on from there.
    pub fn apply<'a>(
        &mut self,
        desired: &State,
        socket: impl Fn(u16) -> Option<BorrowedFd<'a>>,
    ) -> Result<(), Error> {
        let before = self.state.clone();
        self.advance(desired, &socket).inspect_err(|_| {
            // Back to the very same ring, too: it remembers the tables that its members had before.
            if let Err(error) = self.advance(&before, &socket) {
                tracing::error!(%error, "cannot undo a change that failed");
            }
        })
    }

    /// Waits until no program runs any more that has not seen what was applied.
    ///
    /// # Errors
    ///
    /// The kernel refuses to wait; what was applied is applied.
    pub fn settle(&mut self) -> Result<(), Error> {
        self.datapath.settle()
    }

    fn advance<'a>(
        &mut self,
        desired: &State,
        socket: &impl Fn(u16) -> Option<BorrowedFd<'a>>,
    ) -> Result<(), Error> {
        for step in steps(&self.state, desired) {
            match step {
                Step::Insert(slot) => {
                    self.datapath.insert(slot, socket(slot).ok_or(Error::NoSocket(slot))?)?;
                    self.state.sockets.insert(slot);
                }
                Step::Commit => self.commit(desired)?,
                Step::Attach(policy) => {
                    let any = desired.sockets.iter().find_map(|&slot| socket(slot));
                    if let Some(any) = any {
                        self.datapath.attach(policy, any)?;
                        self.state.policy = policy;
                    }
                }
                Step::Remove(slot) => {
                    self.datapath.remove(slot)?;
                    self.state.sockets.remove(&slot);
                }
            }
        }
        if self.state.sockets.is_empty() {
            // The kernel's group goes with its last socket, and takes the program along.
            self.state.policy = State::default().policy;
        }
        Ok(())
    }

    fn commit(&mut self, desired: &State) -> Result<(), Error> {
        let State { members, hash_on, refuse, stall_after, .. } = desired;
        if *members != self.state.members {
            self.ring.rebuild(members);
            shares::schedule(members, &mut self.shares);
        }
        self.datapath.commit(&Selection {
            members,
            shares: &self.shares,
            ring: self.ring.as_slice(),
            hash_on: *hash_on,
            refuse: *refuse,
            stall_after: *stall_after,
        })?;
        self.state.members.clone_from(members);
        self.state.hash_on = *hash_on;
        self.state.refuse = *refuse;
        self.state.stall_after = *stall_after;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::{
        datapath::fake::{Call, FakeDatapath},
        policy::{Member, Policy},
    };

    fn state(policy: Policy, slots: &[u16]) -> State {
        State {
            policy,
            sockets: slots.iter().copied().collect(),
            members: slots.iter().map(|&slot| Member { slot, weight: 1 }).collect(),
            ..State::default()
        }
    }

    fn apply(applied: &mut Applied<FakeDatapath>, desired: &State) -> Result<(), Error> {
        // Any descriptor will do: the fake does not look at it.
        let stdin = std::io::stdin();
        applied.apply(desired, |_| Some(stdin.as_fd()))
    }

    #[test]
    fn applies_what_differs_and_nothing_else() {
        let mut applied = Applied::new(FakeDatapath::default(), 4);
        apply(&mut applied, &state(Policy::Hash, &[0, 1])).unwrap();
        applied.datapath.calls.clear();
        apply(&mut applied, &state(Policy::Random, &[0, 1])).unwrap();
        assert_eq!(applied.datapath.calls, [Call::Attach(Policy::Random)]);
    }

    /// Whichever call fails, everything is as before, down to the ring.
    #[test]
    fn a_failure_changes_nothing() {
        let (before, after) = (state(Policy::Hash, &[0, 1, 2]), state(Policy::LeastLoaded, &[0, 2, 3]));
        for failing in [Call::Insert(3), Call::Commit, Call::Attach(Policy::LeastLoaded), Call::Remove(1)] {
            let mut applied = Applied::new(FakeDatapath::default(), 4);
            apply(&mut applied, &before).unwrap();
            let untouched = applied.datapath.clone();
            applied.datapath.fail_once = Some(failing);
            apply(&mut applied, &after).unwrap_err();
            assert_eq!(applied.state, before, "{failing:?}");
            assert_eq!(applied.datapath.contents(), untouched.contents(), "{failing:?}");
            apply(&mut applied, &after).unwrap();
            assert_eq!(applied.state, after);
        }
    }

    #[test]
    fn a_group_that_lost_its_last_socket_gets_its_program_again() {
        let mut applied = Applied::new(FakeDatapath::default(), 4);
        apply(&mut applied, &state(Policy::Hash, &[0])).unwrap();
        apply(&mut applied, &state(Policy::Hash, &[])).unwrap();
        applied.datapath.calls.clear();
        apply(&mut applied, &state(Policy::Hash, &[0])).unwrap();
        assert!(applied.datapath.calls.contains(&Call::Attach(Policy::Hash)));
    }
}
